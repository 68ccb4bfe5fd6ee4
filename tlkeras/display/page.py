"""Self-contained HTML pages: no network, no scripts; readable on a phone and on paper.

These functions escape the text that they are given, and return HTML.
"""

import base64
import html
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from tlkeras.utils.tables import html_table

PIXELS = 90  # pixels per inch of a figure
SMALL = 160  # smaller images are enlarged, by a whole factor, to at most this many pixels per side


@dataclass
class Section:
    """A heading, and the HTML parts below it."""

    title: str
    parts: list[str] = field(default_factory=list)


def text(words: str, kind: str = "p") -> str:
    """Return a paragraph, or another HTML element."""
    return f"<{kind}>{html.escape(words)}</{kind}>"


def bullets(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(text(line, 'li') for line in lines)}</ul>"


def described(pairs: Iterable[tuple[str, str]]) -> str:
    """Return a description list of names and their texts."""
    return f"<dl>{''.join(text(name, 'dt') + text(said, 'dd') for name, said in pairs)}</dl>"


def table(rows: Iterable[Iterable[object]], header: Sequence[str]) -> str:
    """Return a table that scrolls on its own if it is wider than the page."""
    return f'<div class="wide" tabindex="0">{html_table(rows, header)}</div>'


def picture(figure: Figure, alt: str, caption: str = "") -> str:
    """Return a figure as an image, at most as wide as it was made; `alt` describes it in words."""
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=160)
    width = round(figure.get_size_inches()[0] * PIXELS)
    return _figure([_image(held.getvalue(), alt, width)], caption)


def photos(images: Sequence[tuple[np.ndarray, str]], caption: str, file: str = "") -> str:
    """Return images (height, width, 3) of 0..255 side by side, each with a description in words."""
    return _figure([_image(_png(image), alt) for image, alt in images], caption, file)


def arranged(figures: Iterable[str], how: str) -> str:
    """Arrange figures "beside" one another if there is room, or small ones in a "grid"."""
    return f'<div class="{how}">{"".join(figures)}</div>'


def page(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """Return the whole page: a title, introductory paragraphs, a list of sections, the sections."""
    links = "".join(
        f'<li><a href="#s{number}">{html.escape(section.title)}</a></li>'
        for number, section in enumerate(sections)
    )
    body = "".join(
        f'<section id="s{number}">{text(section.title, "h2")}{"".join(section.parts)}</section>'
        for number, section in enumerate(sections)
    )
    return PAGE.substitute(
        title=html.escape(title), lead="".join(map(text, lead)), links=links, body=body
    )


def write(path: Path, made: str) -> Path:
    """Write a page and return its path; an error leaves no incomplete page there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(made, encoding="utf-8", errors="backslashreplace")
    os.replace(unfinished, path)
    return path


def _figure(images: Sequence[str], caption: str, file: str = "") -> str:
    where = text(file, "small") if file else ""
    below = f"<figcaption>{html.escape(caption)} {where}</figcaption>" if caption else ""
    return f"<figure><div>{''.join(images)}</div>{below}</figure>"


def _image(png: bytes, alt: str, width: int | None = None) -> str:
    data = base64.b64encode(png).decode()
    wide = f' width="{width}"' if width else ""
    return f'<img alt="{html.escape(alt)}"{wide} src="data:image/png;base64,{data}">'


def _png(image: np.ndarray) -> bytes:
    pixels = np.clip(np.round(image), 0, 255).astype("uint8")
    held, shown = io.BytesIO(), Image.fromarray(pixels)
    times = SMALL // max(pixels.shape[:2])
    if times > 1:
        shown = shown.resize((shown.width * times, shown.height * times), Image.Resampling.NEAREST)
    shown.save(held, "PNG")
    return held.getvalue()


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { font: 1rem/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 54rem;
  margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.25rem; border-top: 1px solid #c9d3dd; padding-top: 1rem; margin-top: 2rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; padding: 0; }
a { color: #0b5fa5; }
img { max-width: 100%; height: auto; }
figure { margin: 1rem 0; }
figcaption { color: #555; font-size: .9rem; }
.beside { display: flex; flex-wrap: wrap; gap: 0 1rem; }
figcaption small { display: block; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 1rem; }
.grid figure { margin: 0; break-inside: avoid; }
.grid figure > div { display: flex; gap: 2px; }
.grid img { flex: 1 1 0; min-width: 0; object-fit: contain; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem .2rem 0; vertical-align: top; overflow-wrap: normal; }
thead th { border-bottom: 1px solid #8a8a8a; }
tbody tr:nth-child(even) { background: #f4f6f8; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .2rem 1rem; }
dt { color: #555; }
dd { margin: 0; }
pre { background: #f4f6f8; padding: .7rem; white-space: pre-wrap; font-size: .9rem; }
@media (max-width: 30rem) {
  table { font-size: .8rem; }
  th, td { padding-right: .45rem; }
  ul { padding-left: 1.2rem; }
  dl { display: block; }
  dd { margin-bottom: .4rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  .wide { overflow: visible; }
  h2, h3 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
}
</style>
</head>
<body>
<h1>$title</h1>
$lead
<nav aria-label="Contents"><ul>$links</ul></nav>
<main>
$body
</main>
</body>
</html>
""")
