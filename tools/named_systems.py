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

The networks and data that transfer learning is known by, each with lines that run it. They need the
internet and KerasHub 0.32 or newer, and most want a GPU: set `TLKERAS_PROFILE=online` first. Where
a system is not open, or not in Keras, the nearest one that is stands in for it, and the table says
so. Nothing here is medical advice.

[A test runs the same lines]({TEST})
with untrained networks of the same classes in the place of the downloads, and fails when Keras or
KerasHub no longer knows a name. How good the real networks are was not measured here.
"""
GIVEN = """## Taken for granted

```python
import tlkeras as tlk

import keras
import keras_hub
import numpy as np
from sklearn.datasets import load_sample_image

images: np.ndarray  # your pictures, (number, height, width, 3), 0 to 255; as many
labels: np.ndarray  # whole numbers from 0, and
reports: list[str]  # texts
photo = load_sample_image("china.jpg").astype("float32")  # one picture, any size
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
