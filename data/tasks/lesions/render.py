"""Draws synthetic dermoscopy images, small and RGB, from properties of lesions and views.

Each lesion has its own coordinates, in which its boundary is about one unit from its centre, so it
can be drawn again turned, nearer, in other light, or with more pixels. Colours are computed as in
skin: melanin and haemoglobin absorb light, each more in some channels (Beer-Lambert), and keratin,
scars and deep pigment scatter white or blue light on top. Everything is computed in float64, so
that rounding to bytes does not depend on how a version of NumPy vectorises.
"""

import numpy as np
from scipy import ndimage

from .structures import TABLE, Arrays, Place, column, mix, pigments, scatter, step

COARSE = 32  # pixels per side of the smooth noise, at any image size
# Optical density in red, green and blue of bare skin, and of one unit of each pigment.
SKIN, MELANIN, BLOOD = np.array([[0.14, 0.33, 0.40], [0.34, 0.60, 0.72], [0.10, 0.70, 0.58]])


def draw(lesions: Arrays, views: Arrays, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw lesion i as seen in view i.

    Args:
        lesions: arrays of n rows from `cases.draw_cases`, one per image.
        views: arrays of n rows from `cases.draw_views`.
        size: pixels per side.

    Returns:
        Images, uint8 (n, size, size, 3), and masks, uint8 (n, size, size, 1), 1 in the lesion.
    """
    place = _place(lesions, views, size)
    melanin, blood = pigments(lesions, place)
    melanin += column(lesions["skin_melanin"])
    blood += column(lesions["skin_blood"])
    absorbs = zip(SKIN, MELANIN, BLOOD, strict=True)
    rgb = np.stack([np.exp(-(skin + m * melanin + b * blood)) for skin, m, b in absorbs])
    scatter(rgb, lesions, place)
    _hair(rgb, views, size)
    rgb = _camera(rgb, views, size)
    mask = (place.inside > 0).astype("uint8")[..., None]
    return (np.clip(rgb, 0, 1) * 255).round().astype("uint8"), mask


def _axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of the pixels across and down the image, -1 to 1."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    return axis[None, None, :], axis[None, :, None]


def _frame(lesions: Arrays, views: Arrays, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lesion's coordinates of each pixel: shifted, turned, scaled, stretched."""
    across, down = _axes(size)
    across, down = across - column(views["right"]), down - column(views["down"])
    scale = 1 / column(lesions["radius"] * views["zoom"])
    cos, sin = column(np.cos(views["angle"])), column(np.sin(views["angle"]))
    stretch = column(1 + lesions["elongation"])
    u = (cos * across + sin * down) * scale / stretch
    return u, (cos * down - sin * across) * scale * stretch


def _place(lesions: Arrays, views: Arrays, size: int) -> Place:
    """Return the Place of each pixel. Noise is read on a coarse grid and enlarged."""
    u, v = _frame(lesions, views, COARSE)
    noise = np.stack(
        [
            _enlarge(_read(lesions["tables"][:, c], u * rate, v * rate), size)
            for c, rate in enumerate((1.7, 1.7, 1.7, 1.7, 4.5, 4.5))
        ]
    )
    u, v = _frame(lesions, views, size)
    r, angle = np.hypot(u, v), np.arctan2(v, u)
    bite = column(0.02 + 0.20 * lesions["irregular"])
    inside = _outline(lesions, angle) - r + bite * noise[4] * 0.6 + bite * noise[2] * 0.5
    cover = step(inside / column(lesions["softness"]) + 0.5)
    warp = column(0.04 + 0.14 * lesions["atypical"])
    return Place(r, angle, u + warp * noise[0], v + warp * noise[1], inside, cover, noise[2:])


def _enlarge(coarse: np.ndarray, size: int) -> np.ndarray:
    """Interpolate (n, COARSE, COARSE) to (n, size, size), pixel centres aligned."""
    # Not a matrix product: BLAS would start threads, which slow down other work on the same cores.
    position = np.clip((np.arange(size) + 0.5) * COARSE / size - 0.5, 0, COARSE - 1)
    left = np.minimum(position.astype("int64"), COARSE - 2)
    part = position - left
    wide = coarse[:, :, left] * (1 - part) + coarse[:, :, left + 1] * part
    part = part[:, None]
    return wide[:, left] * (1 - part) + wide[:, left + 1] * part


def _read(table: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Read (n, TABLE, TABLE) numbers at (x, y), interpolating smoothly and repeating the table."""
    left, top = np.floor(x), np.floor(y)
    across, down = step(x - left), step(y - top)
    left, top = left.astype("int64"), top.astype("int64")
    base = np.arange(len(table))[:, None, None] * TABLE * TABLE
    flat = table.reshape(-1)
    rows = base + top % TABLE * TABLE, base + (top + 1) % TABLE * TABLE
    columns = left % TABLE, (left + 1) % TABLE
    upper, lower = (
        flat[row + columns[0]] * (1 - across) + flat[row + columns[1]] * across for row in rows
    )
    return upper * (1 - down) + lower * down


def _outline(lesions: Arrays, angle: np.ndarray, points: int = 128) -> np.ndarray:
    """Return the boundary's distance from the centre at each angle: a circle with harmonics."""
    order = np.arange(2, 2 + lesions["harmonics"].shape[-1])
    turn = np.arange(points) / points * 2 * np.pi
    waves = np.stack([np.cos(order[:, None] * turn), np.sin(order[:, None] * turn)])
    sizes = lesions["harmonics"] * (0.06 + 0.30 * column(lesions["irregular"])) / order
    table = np.exp(np.einsum("nik,ikp->np", sizes, waves))
    position = angle / (2 * np.pi) * points % points
    left = np.floor(position)
    part, left = position - left, left.astype("int64") % points
    rows = np.arange(len(table))[:, None, None] * points
    flat = table.reshape(-1)
    return flat[rows + left] * (1 - part) + flat[rows + (left + 1) % points] * part


def _hair(rgb: np.ndarray, views: Arrays, size: int) -> None:
    """Draw hairs, dark or fair, each a parabola in its own coordinates."""
    across, down = _axes(size)
    for number in range(views["hair"].shape[1]):
        at = np.flatnonzero(views["hairs"] > number)
        turn, offset, bend, width = (column(part) for part in views["hair"][at, number].T)
        along = np.cos(turn) * across + np.sin(turn) * down
        aside = np.cos(turn) * down - np.sin(turn) * across - offset - bend * along**2
        slope = np.sqrt(1 + (2 * bend * along) ** 2)
        share = 0.75 * np.clip(1.5 - np.abs(aside) / slope / width, 0, 1)
        for channel in range(3):
            colour = column(views["hair_colour"][at, channel])
            rgb[channel][at] += share * (colour - rgb[channel][at])


def _camera(rgb: np.ndarray, views: Arrays, size: int) -> np.ndarray:
    """Apply light, vignette, ruler, white balance, blur and grain; return (n, size, size, 3)."""
    across, down = _axes(size)
    light = 1 + column(views["light"][:, 0]) * across + column(views["light"][:, 1]) * down
    far = np.hypot(across, down)
    light = light * (1 - column(views["vignette"]) * step((far - 0.55) / 0.9))
    light = light * (1 - step((far - column(views["aperture"])) * 12))
    rgb = rgb * light * views["balance"].T[:, :, None, None]
    at = np.flatnonzero(views["ruler"])
    ticks = (np.abs(across * 8 % 1 - 0.5) < 0.08) * (down > column(views["ruler"][at]))
    mix(rgb, at, 0.8 * ticks, np.array([0.1, 0.1, 0.12]))
    for image in np.flatnonzero(views["blur"]):
        width = views["blur"][image] * size
        rgb[:, image] = ndimage.gaussian_filter(rgb[:, image], (0, width, width), mode="nearest")
    rgb = np.moveaxis(rgb, 0, -1)
    grain = [np.random.default_rng(s).standard_normal((size, size, 3)) for s in views["seed"]]
    return rgb + views["grain"][:, None, None, None] * np.stack(grain)
