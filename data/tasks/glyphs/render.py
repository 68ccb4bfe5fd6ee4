"""Draws printed letters as small RGB images, from the fonts that ship with matplotlib.

Every glyph (one letter in one font) is stored as two distance fields on a square grid:
the distance to its outline, and the distance to its centre line. Reading a warped field and
cutting it at a random level gives any slant, wobble, stroke width and sharpness at the cost
of one interpolation, so no training image has to be used twice.
"""

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from matplotlib.ft2font import FT2Font, LoadFlags
from scipy import ndimage

FONTS = (
    "DejaVuSans", "DejaVuSans-Oblique", "DejaVuSans-Bold", "DejaVuSansMono",
    "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSerif-Bold",
    "STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "STIXGeneralBolIta",
    "cmr10", "cmmi10", "cmss10", "cmtt10", "cmb10",
)  # fmt: skip
FIELD = 48  # points per side of a distance field
REACH = 1.25  # a field spans [-REACH, REACH]; the glyph's longer side spans [-1, 1]


def font_path(name: str) -> Path:
    """Return the file of one of matplotlib's fonts."""
    return Path(get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"


def drawing(character: str, font: str, points: int = 96) -> np.ndarray:
    """Draw a character in the centre of a square (bool); its longer side is `points / REACH`."""
    face = FT2Font(str(font_path(font)))
    size = 64.0
    for _ in range(2):  # once to measure, once at the final size
        face.set_size(size, 72)
        face.set_text(character, 0, flags=LoadFlags.NO_HINTING)
        face.draw_glyphs_to_bitmap(antialiased=True)
        ink = np.asarray(face.get_image()) > 127
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        size *= points / REACH / max(ink.shape)
    square = np.zeros((points, points), bool)
    height, width = np.minimum(ink.shape, points)
    top, left = (points - height) // 2, (points - width) // 2
    square[top : top + height, left : left + width] = ink[:height, :width]
    return square


def fields(inside: np.ndarray) -> np.ndarray:
    """Return distances to the outline (negative inside) and the centre line: (2, FIELD, FIELD)."""
    unit = 2 * REACH / len(inside)
    depth = ndimage.distance_transform_edt(inside) * unit
    to_outline = ndimage.distance_transform_edt(~inside) * unit - depth
    smooth = ndimage.gaussian_filter(depth, 0.7)
    slope = np.hypot(*np.gradient(smooth, unit))
    centre = inside & (slope < 0.75) & (smooth > 0.4 * ndimage.maximum_filter(smooth, 9))
    to_centre = ndimage.distance_transform_edt(~centre) * unit
    step = len(inside) // FIELD
    small = [
        ndimage.uniform_filter(f, step)[step // 2 :: step, step // 2 :: step]
        for f in (to_outline, to_centre)
    ]
    return np.stack(small).astype("float32")


@lru_cache(maxsize=1)
def letters() -> tuple[str, ...]:
    """Return the classes: letters without accents that look like no digit and no earlier letter.

    They are chosen from the characters that both DejaVu Sans and DejaVu Serif have. Two characters
    look alike if their drawings, scaled to the same box, overlap by more than 78 % (intersection
    over union). This keeps one of the Latin, Greek and Cyrillic `A`s, and drops `O`, which looks
    like `0`.
    """
    known = set(FT2Font(str(font_path("DejaVuSans"))).get_charmap())
    known &= set(FT2Font(str(font_path("DejaVuSerif"))).get_charmap())
    wanted = [chr(c) for c in sorted(known) if c < 0x2C00 or 0x10A0 <= c < 0x1100]
    wanted = [
        c
        for c in wanted
        if unicodedata.category(c) in ("Lu", "Ll", "Lo") and not unicodedata.decomposition(c)
    ]
    seen, kept = [_in_a_box(drawing(d, "DejaVuSans")) for d in "0123456789"], []
    for character in wanted:
        shape = _in_a_box(drawing(character, "DejaVuSans"))
        overlap = [(shape & s).sum() / max((shape | s).sum(), 1) for s in seen]
        if max(overlap) <= 0.78:
            seen.append(shape)
            kept.append(character)
    return tuple(kept)


def _in_a_box(ink: np.ndarray) -> np.ndarray:
    """Crop a drawing and stretch it to 40 x 40, thin ones (`l`) at most fourfold."""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    pad = [max(0, max(ink.shape) // 4 - side) for side in ink.shape]
    ink = np.pad(ink, [(p // 2, p - p // 2) for p in pad])
    return ndimage.zoom(ink.astype("float32"), 40 / np.array(ink.shape), order=1) > 0.5


@dataclass(frozen=True)
class Glyphs:
    """Every letter in every font that has it.

    Attributes:
        fields: float16, (glyphs, 2, FIELD, FIELD), see `fields`.
        labels: int, (glyphs,), index into `classes`.
        fonts: int, (glyphs,), index into FONTS.
        classes: the characters.
    """

    fields: np.ndarray
    labels: np.ndarray
    fonts: np.ndarray
    classes: tuple[str, ...]


def glyphs(classes: tuple[str, ...] | None = None) -> Glyphs:
    """Compute the distance fields of all classes; this takes about 20 seconds for all letters."""
    classes = classes or letters()
    known = [set(FT2Font(str(font_path(font))).get_charmap()) for font in FONTS]
    pairs = [
        (c, f)
        for c in range(len(classes))
        for f in range(len(FONTS))
        if ord(classes[c]) in known[f]
    ]
    all_fields = np.stack(
        [fields(drawing(classes[c], FONTS[f])).astype("float16") for c, f in pairs]
    )
    labels, fonts = np.array(pairs).T
    return Glyphs(all_fields, labels, fonts, classes)


def draw(
    source: Glyphs,
    chosen: np.ndarray,
    rng: np.random.Generator,
    size: int = 32,
    as_printed: bool = False,
    bright: float = 0.5,
) -> np.ndarray:
    """Draw a batch of glyphs, each warped, inked and coloured at random.

    Args:
        source: the glyphs to choose from.
        chosen: int, (batch,), indices into `source.fields`.
        rng: the source of all randomness.
        size: pixels per side of the images.
        as_printed: nearly keep the slant, widths and strokes of the font.
        bright: share of images whose ink is brighter than the paper, in [0, 1].

    Returns:
        uint8, (batch, size, size, 3).
    """
    n = len(chosen)
    x, y = _warp(n, size, rng, 0.1 if as_printed else 1.0)
    with_pen = rng.random(n) < (0 if as_printed else 0.6)
    distance = _interpolate(source.fields, chosen * 2 + with_pen, x, y)
    level = np.where(
        with_pen,
        rng.uniform(0.03, 0.2, n),
        rng.uniform(*((-0.01, 0.01) if as_printed else (-0.05, 0.08)), n),
    )
    edge = rng.uniform(0.04, 0.35, n)  # width of the transition from ink to paper
    ink = np.clip((level[:, None, None] - distance) / edge[:, None, None] + 0.5, 0, 1)
    ink *= 1 - rng.uniform(0, 0.5, (n, 1, 1)) * _waves(n, size, rng, 2)  # uneven pressure
    return _colour(_coarsen(ink, rng), rng, bright)


def _warp(n: int, size: int, rng: np.random.Generator, much: float = 1.0):
    """Return (x, y) in the glyph's frame for each pixel: an affine map plus a smooth wobble."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    u, v = (grid[None] for grid in np.meshgrid(axis, -axis))

    def column(values: np.ndarray) -> np.ndarray:
        return values[:, None, None]

    angle = column(rng.normal(0, np.radians(8) * much, n))
    height = column(rng.uniform(0.55, 1.0, n))
    width = height * column(np.exp(rng.normal(0, 0.2 * much, n)))
    slant = column(rng.normal(0, 0.2 * much, n))
    u = u - column(rng.normal(0, 0.08, n))
    v = v - column(rng.normal(0, 0.08, n))
    a = (np.cos(angle) * u + np.sin(angle) * v) / width
    b = (-np.sin(angle) * u + np.cos(angle) * v) / height
    strength = column(np.abs(rng.normal(0, 0.12 * much, n)))
    return a - slant * b + strength * _waves(n, size, rng, 4), b + strength * _waves(
        n, size, rng, 4
    )


def _waves(n: int, size: int, rng: np.random.Generator, order: int) -> np.ndarray:
    """Return smooth random surfaces in about [-1, 1], sums of slow cosines: (n, size, size)."""
    position = (np.arange(size) + 0.5) / size
    waves = np.cos(np.pi * np.arange(order)[:, None] * position)
    amplitude = rng.normal(0, 1 / order, (n, order, order))
    return np.einsum("nij,ix,jy->nxy", amplitude, waves, waves, optimize=True)


def _interpolate(
    all_fields: np.ndarray, which: np.ndarray, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Interpolate field `which` bilinearly at glyph coordinates (x, y)."""
    flat = all_fields.reshape(-1)
    column = np.clip((x + REACH) / (2 * REACH) * FIELD - 0.5, 0, FIELD - 1.001)
    row = np.clip((REACH - y) / (2 * REACH) * FIELD - 0.5, 0, FIELD - 1.001)
    left, top = column.astype("int32"), row.astype("int32")
    right_part, low_part = column - left, row - top
    at = which[:, None, None] * FIELD * FIELD + top * FIELD + left
    upper = flat[at] * (1 - right_part) + flat[at + 1] * right_part
    lower = flat[at + FIELD] * (1 - right_part) + flat[at + FIELD + 1] * right_part
    outside = np.maximum(np.abs(x), np.abs(y)) - REACH
    return upper * (1 - low_part) + lower * low_part + np.maximum(outside, 0)


def _coarsen(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Reduce the resolution of half of the images, as if they were enlarged from small ones."""
    size = ink.shape[1]
    sides = range(size // 4, size // 2 + 1, 2)
    blurs = np.stack([np.eye(size)] * len(sides) + [_down_and_up(size, side) for side in sides])
    blur = blurs[rng.integers(len(blurs), size=len(ink))]
    return blur @ ink @ blur.transpose(0, 2, 1)


def _down_and_up(size: int, side: int) -> np.ndarray:
    """Return the matrix that averages `size` pixels down to `side` and interpolates back up."""
    left, cell = np.arange(size), np.arange(side)[:, None] * size / side
    overlap = np.minimum(left + 1, cell + size / side) - np.maximum(left, cell)
    down = np.maximum(overlap, 0) * side / size
    position = (np.arange(size)[:, None] + 0.5) / size * side - 0.5
    up = np.maximum(1 - np.abs(np.clip(position, 0, side - 1) - np.arange(side)), 0)
    return up @ down


def _colour(ink: np.ndarray, rng: np.random.Generator, bright: float) -> np.ndarray:
    """Colour ink and paper (at least 0.3 apart in brightness, half tinted); add light and noise."""
    n, size = len(ink), ink.shape[1]
    gap = rng.uniform(0.3, 1.0, n)
    dark = rng.uniform(0, 1 - gap)
    pair = np.stack([dark, dark + gap])
    paper, pen = np.where(rng.random(n) < bright, pair, pair[::-1])[..., None, None, None]
    tint = rng.uniform(-0.3, 0.3, (2, n, 1, 1, 3)) * (rng.random((n, 1, 1, 1)) < 0.5)
    paper, pen = paper + tint[0], pen + tint[1]
    image = paper + (pen - paper) * ink[..., None]
    image += rng.uniform(0, 0.15, (n, 1, 1, 1)) * _waves(n, size, rng, 2)[..., None]
    noise = rng.standard_normal((n, size, size, 1), dtype="float32")
    image += rng.uniform(0, 0.08, (n, 1, 1, 1)) * noise
    return (np.clip(image, 0, 1) * 255).round().astype("uint8")
