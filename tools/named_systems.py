"""Make chapters/named_systems.md from chapters/source/named_systems.toml.

python tools/named_systems.py
"""

import tomllib
from pathlib import Path
from typing import Any

CHAPTERS = Path(__file__).resolve().parents[1] / "chapters"
SOURCE, PAGE = CHAPTERS / "source" / "named_systems.toml", CHAPTERS / "named_systems.md"
TEST = "../tests/course/test_named_systems.py"
HEAD = f"""# Named systems, and how to run them

The networks and data that transfer learning is known for, each with code that runs it. Set
`TLKERAS_PROFILE=online` first. The code needs the internet and KerasHub 0.32 or newer, and most of
it needs a GPU to be fast. If a system is not open, or not in Keras, the closest available one is
used instead, and the table says so. Nothing here is medical advice.

[A test runs the same code]({TEST})
with untrained networks of the same classes instead of the downloads, and fails if Keras or KerasHub
no longer has a name. The accuracy of the real networks was not measured here.
"""
GIVEN = """## Setup

```python
import tlkeras as tlk

import keras
import keras_hub
import numpy as np
from sklearn.datasets import load_sample_image

images: np.ndarray  # your images, (number, height, width, 3), 0 to 255
labels: np.ndarray  # one integer from 0 for each image
reports: list[str]  # one text for each image
photo = load_sample_image("china.jpg").astype("float32")  # one image of any size
```
"""


def systems() -> list[dict[str, Any]]:
    """Return the rows of the table."""
    return tomllib.loads(SOURCE.read_text(encoding="utf-8"))["system"]


def page() -> str:
    """Return the page, in Markdown."""
    rows, parts = ["| system | known for | here | chapter |", "|---|---|---|---|"], []
    for system in systems():
        name, chapter = system["name"], system["chapter"]
        number = ".".join(str(int(part)) for part in chapter.split("_")[:2] if part.isdigit())
        link = f"[{number}]({chapter}.ipynb)"
        rows.append(f"| {name} | {system['known_for']} | {system['here']} | {link} |")
        parts.append(f"## {name}\n\n```python\n{system['lines'].strip()}\n```\n")
    return "\n".join([HEAD, *rows, "", GIVEN, *parts])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
