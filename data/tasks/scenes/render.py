"""Draws scenes: one coloured, textured shape on a blurred background, and a caption for it.

A shape is a signed distance to its outline in units of its radius, so one formula gives any size,
rotation and sharpness. Everything is computed in float64, so the bytes of an image do not depend on
how a processor rounds.
"""

from dataclasses import dataclass, fields

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "heart")
COLOURS = {  # RGB in 0..1
    "red": (0.85, 0.12, 0.12), "orange": (0.95, 0.55, 0.10), "yellow": (0.93, 0.87, 0.15),
    "green": (0.15, 0.62, 0.22), "blue": (0.13, 0.30, 0.85), "purple": (0.52, 0.18, 0.68),
    "white": (0.96, 0.96, 0.96), "black": (0.08, 0.08, 0.08),
}  # fmt: skip
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = {"small": (0.24, 0.30), "medium": (0.38, 0.46), "large": (0.56, 0.66)}  # radius / half side
POSITIONS = {"centre": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, 1), "bottom": (0, -1)}
STYLES = ("plain", "sketch", "inverted", "noisy")

# Pairs that occur only in the split `held_out`: every shape once and every colour once.
HELD_OUT = {shape: (3 * shape + 1) % len(COLOURS) for shape in range(len(SHAPES))}

WORDS = {
    "circle": ("circle", "disc", "round shape"), "square": ("square", "box"),
    "triangle": ("triangle", "three-sided shape"), "star": ("star", "five-pointed star"),
    "cross": ("cross", "plus sign"), "ring": ("ring", "hoop", "loop"),
    "crescent": ("crescent", "sickle", "moon"), "heart": ("heart", "heart shape"),
    "red": ("red", "crimson", "scarlet"), "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "lemon"), "green": ("green", "emerald"), "blue": ("blue", "navy"),
    "purple": ("purple", "violet"), "white": ("white", "snowy"), "black": ("black", "ebony"),
    "plain": ("plain", "solid"), "striped": ("striped", "banded"),
    "dotted": ("dotted", "spotted"), "checkered": ("checkered", "chequered"),
    "small": ("small", "little", "tiny"), "medium": ("medium", "middling"),
    "large": ("large", "big", "huge"),
    "centre": ("in the middle", "at the centre"), "left": ("on the left", "at the left side"),
    "right": ("on the right", "at the right side"), "top": ("at the top", "above the middle"),
    "bottom": ("at the bottom", "below the middle"),
}  # fmt: skip
OPENINGS = ("", "a picture of ", "an image of ", "this is ", "here is ", "there is ")


@dataclass(frozen=True)
class Scenes:
    """The contents of n scenes: int arrays (n,), indices into the tables above."""

    shape: np.ndarray
    colour: np.ndarray
    texture: np.ndarray
    size: np.ndarray
    position: np.ndarray

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, chosen) -> "Scenes":
        return Scenes(*(getattr(self, field.name)[chosen] for field in fields(self)))


def sample(n: int, rng: np.random.Generator, held_out: bool = False) -> Scenes:
    """Return random scenes, either without the held-out pairs of shape and colour or only those."""
    shape = rng.integers(len(SHAPES), size=n)
    forbidden = np.array([HELD_OUT[one] for one in range(len(SHAPES))])[shape]
    colour = rng.integers(len(COLOURS) - 1, size=n)
    colour = forbidden if held_out else colour + (colour >= forbidden)
    others = [rng.integers(len(table), size=n) for table in (TEXTURES, SIZES, POSITIONS)]
    return Scenes(shape, colour, *others)


def caption(scene: Scenes, rng: np.random.Generator) -> str:
    """Return a caption for one scene: shape and colour, and each other attribute 7 times in 10."""

    def say(table, index) -> str:
        return str(rng.choice(WORDS[list(table)[int(index)]]))

    colour, shape = say(COLOURS, scene.colour), say(SHAPES, scene.shape)
    texture, size, position = (rng.random() < 0.7 for _ in range(3))
    words = [colour, shape]
    if texture:
        words.insert(int(rng.integers(2)), say(TEXTURES, scene.texture))
    if size:
        words.insert(0, say(SIZES, scene.size))
    article = "an" if words[0][0] in "aeiou" else "a"
    phrase = f"{rng.choice(OPENINGS)}{article} {' '.join(words)}"
    return f"{phrase} {say(POSITIONS, scene.position)}" if position else phrase


def draw(
    scenes: Scenes, rng: np.random.Generator, size: int = 64, style: str = "plain"
) -> np.ndarray:
    """Draw scenes.

    Args:
        scenes: the contents of the scenes.
        rng: source of all other randomness (rotation, exact place and colour, background, light).
        size: pixels per side of the images.
        style: one of STYLES, or "exotic": a third each of sketch, inverted and noisy.

    Returns:
        uint8, (n, size, size, 3).
    """
    n = len(scenes)
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = (grid[None] for grid in np.meshgrid(axis, -axis))
    radius = np.array(list(SIZES.values()))[scenes.size]
    radius = rng.uniform(*radius.T)
    place = np.array(list(POSITIONS.values()))[scenes.position] * (0.88 - radius)[:, None]
    place = place + rng.normal(0, 0.05, (n, 2))
    angle = rng.uniform(-0.6, 0.6, n)
    u, v = x - _image(place[:, 0]), y - _image(place[:, 1])
    cos, sin = _image(np.cos(angle) / radius), _image(np.sin(angle) / radius)
    u, v = cos * u + sin * v, cos * v - sin * u
    distance = np.empty((n, size, size))
    for number, name in enumerate(SHAPES):
        of_it = scenes.shape == number
        distance[of_it] = _DISTANCES[name](u[of_it], v[of_it])
    inside = np.clip(0.5 - distance * _image(radius) * size / 2 / 1.2, 0, 1)
    ground = _ground(n, x, y, rng)
    colour = np.array(list(COLOURS.values()))[scenes.colour] + rng.normal(0, 0.04, (n, 3))
    pattern = _pattern(scenes.texture, u, v, rng)[..., None]
    paint = colour[:, None, None] * (1 - pattern) + _second(colour)[:, None, None] * pattern
    image = ground + (paint - ground) * inside[..., None]
    image = image * (1 + rng.uniform(0, 0.25, (n, 1, 1, 1)) * _waves(n, size, rng)[..., None])
    image = image + rng.normal(0, 0.02, image.shape)
    return _styled(np.clip(image, 0, 1), distance, radius, style, rng)


def _image(values: np.ndarray) -> np.ndarray:
    return values[:, None, None]


def _triangle(u, v):
    return np.maximum(np.maximum(0.866 * u + 0.5 * v, -0.866 * u + 0.5 * v), -v) - 0.5


def _star(u, v):
    """Star with five points: fold the plane into a wedge and take the distance to one edge."""
    sector = 2 * np.pi / 5
    turn = np.abs((np.arctan2(u, v) + sector / 2) % sector - sector / 2)
    r = np.hypot(u, v)
    tip, dent = np.array([1.05, 0.0]), 0.45 * np.array([np.cos(sector / 2), np.sin(sector / 2)])
    edge = (dent - tip) / np.hypot(*(dent - tip))
    return (r * np.cos(turn) - tip[0]) * edge[1] - (r * np.sin(turn) - tip[1]) * edge[0]


def _cross(u, v):
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u - 0.95, v - 0.3), np.maximum(u - 0.3, v - 0.95))


def _heart(u, v):
    """Heart: a square standing on its corner, with a disc on each of its two upper edges."""
    a, b = (v + u + 0.25) * 0.707, (v - u + 0.25) * 0.707
    square = np.maximum(np.abs(a), np.abs(b)) - 0.56
    discs = np.minimum(np.hypot(a - 0.56, b), np.hypot(a, b - 0.56)) - 0.56
    return np.minimum(square, discs)


_DISTANCES = {
    "circle": lambda u, v: np.hypot(u, v) - 0.92,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.8,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.72) - 0.22,
    "crescent": lambda u, v: np.maximum(np.hypot(u, v) - 0.95, 0.72 - np.hypot(u - 0.5, v)),
    "heart": _heart,
}


def _pattern(texture, u, v, rng) -> np.ndarray:
    """Return the share of the second colour in each pixel, 0..1: (n, size, size)."""
    n = len(texture)
    pitch = _image(rng.uniform(6.0, 8.0, n))  # radians per radius: about two periods across
    a, b = np.cos(u * pitch), np.cos(v * pitch)
    level = np.stack([np.full_like(a, -1.0), b, a + b - 0.9, a * b])
    level = np.take_along_axis(level, texture[None, :, None, None], axis=0)[0]
    return np.clip(level * 2 + 0.5, 0, 1)


def _second(colour: np.ndarray) -> np.ndarray:
    """Return the second colour of a texture: a lighter tone if the first is dark, else a darker."""
    dark = (colour.mean(axis=-1, keepdims=True) < 0.4).astype(float)
    return dark * (0.5 * colour + 0.5) + (1 - dark) * 0.45 * colour


def _ground(n: int, x, y, rng) -> np.ndarray:
    """Draw a background of two muted colours that blend into each other, with a few faint lines."""
    size = x.shape[-1]
    first, second = (rng.uniform(0.25, 0.75, (n, 1, 1, 1)) + rng.normal(0, 0.06, (n, 1, 1, 3))
                     for _ in range(2))  # fmt: skip
    blend = np.clip(0.5 + _waves(n, size, rng), 0, 1)[..., None]
    ground = first + (second - first) * blend
    for _ in range(4):
        angle, offset = _image(rng.uniform(0, np.pi, n)), _image(rng.uniform(-0.9, 0.9, n))
        across = np.cos(angle) * x + np.sin(angle) * y - offset
        line = np.clip(1.5 - np.abs(across) * size / 2 / 1.5, 0, 1)[..., None]
        ground = ground + line * rng.uniform(-0.18, 0.18, (n, 1, 1, 3))
    return ground


def _waves(n: int, size: int, rng: np.random.Generator, order: int = 3) -> np.ndarray:
    """Return smooth random surfaces, mostly in [-1, 1], sums of slow cosines: (n, size, size)."""
    waves = np.cos(np.pi * np.arange(order)[:, None] * (np.arange(size) + 0.5) / size)
    amplitude = rng.normal(0, 1 / order, (n, order, order))
    return waves.T @ amplitude @ waves


def _styled(image, distance, radius, style: str, rng) -> np.ndarray:
    """Return the finished scenes in a style, as uint8."""
    n, size = image.shape[:2]
    styles = np.full(n, STYLES.index(style)) if style != "exotic" else rng.integers(1, 4, n)
    sketch, inverted, noisy = (styles == STYLES.index(name) for name in STYLES[1:])
    if sketch.any():  # a pencil line along the outline, on paper
        width = distance[sketch] * _image(radius[sketch]) * size / 2
        line = np.clip(1.6 - np.abs(width) / 0.8, 0, 1) * rng.uniform(
            0.5, 0.95, (sketch.sum(), 1, 1)
        )
        paper = 0.93 - 0.06 * np.abs(rng.normal(0, 1, (sketch.sum(), size, size)))
        image[sketch] = (paper * (1 - line))[..., None]
    image[inverted] = 1 - image[inverted]
    grain = rng.normal(0, 0.14, (int(noisy.sum()), size, size, 3))
    image[noisy] = 0.25 + 0.5 * image[noisy] + grain
    return (np.clip(image, 0, 1) * 255).round().astype("uint8")
