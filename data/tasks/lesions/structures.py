"""Structures that a dermatoscope shows in a lesion: pigment, blood, and scattering tissue."""

from dataclasses import dataclass

import numpy as np

TABLE = 16  # points per side of a lesion's table of random numbers, which repeats
BLUE, WHITE, KERATIN, CRUST = np.array(
    [[0.40, 0.46, 0.60], [0.90, 0.82, 0.80], [0.93, 0.86, 0.68], [0.42, 0.17, 0.10]]
)
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Place:
    """The position of each pixel in its lesion; arrays are (n, size, size) unless noted.

    Attributes:
        r, angle: distance from the lesion's centre (1 is about its boundary), angle in radians.
        x, y: coordinates in the lesion, warped by noise; textures are read at these.
        inside: signed distance to the boundary, positive inside.
        cover: how far the pixel is covered by the lesion, 0 to 1; it fades at a soft border.
        noise: (4, n, size, size), smooth, about N(0, 0.6): two of large patches, two of small.
    """

    r: np.ndarray
    angle: np.ndarray
    x: np.ndarray
    y: np.ndarray
    inside: np.ndarray
    cover: np.ndarray
    noise: np.ndarray


def column(values: np.ndarray) -> np.ndarray:
    """Reshape n numbers, one per image, so that they broadcast over pixels."""
    return values[:, None, None]


def step(t: np.ndarray) -> np.ndarray:
    """Smooth step: 0 for t <= 0, 1 for t >= 1, smooth between."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def _clods(
    lesions: Arrays,
    place: Place,
    at: np.ndarray,
    rate: float,
    radius: float,
    share: float,
    which: int,
) -> np.ndarray:
    """Draw round spots, one per cell in a `share` of the cells of a lattice (`rate` per unit).

    `radius` is in cells. Each spot is displaced in its cell at random, without leaving it. `which`
    gives each structure a different lattice.
    """
    x, y = place.x[at] * rate + 0.37 * which, place.y[at] * rate + 0.61 * which
    i, j = np.floor(x), np.floor(y)
    cell = (j.astype("int64") + 5 * which) % TABLE * TABLE + (i.astype("int64") + 3 * which) % TABLE
    cell += at[:, None, None] * 4 * TABLE * TABLE
    flat = lesions["cells"].reshape(-1)
    right, down, large, there = (flat[cell + k * TABLE * TABLE] for k in range(4))
    large = radius * (0.7 + 0.6 * large)
    room = np.maximum(0.9 - 2 * large, 0)
    distance = np.hypot(x - i - 0.5 - (right - 0.5) * room, y - j - 0.5 - (down - 0.5) * room)
    return np.clip((large - distance) * 5 + 0.5, 0, 1) * (there < share)


def _honeycomb(x: np.ndarray, y: np.ndarray, rate: float) -> np.ndarray:
    """Add three plane waves at 120 degrees: 3 in the centre of a hole, -1.5 where lines meet."""
    k = 2 * np.pi * rate
    return np.cos(k * x) + np.cos(k * (-0.5 * x + 0.866 * y)) + np.cos(k * (-0.5 * x - 0.866 * y))


def _present(lesions: Arrays, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the lesions that show a structure, and its strength in each."""
    at = np.flatnonzero(lesions[name])
    return at, column(lesions[name][at])


def pigments(lesions: Arrays, place: Place) -> tuple[np.ndarray, np.ndarray]:
    """Return the melanin and the blood that the lesion adds to the skin: (n, size, size) each."""
    cover, noise = place.cover, place.noise
    tilt = place.x * column(np.cos(lesions["lean"])) + place.y * column(np.sin(lesions["lean"]))
    patches = column(lesions["variegation"]) * (noise[0] + 0.4 * noise[2])
    uneven = np.exp(patches + column(lesions["asymmetry"]) * np.clip(tilt, -1.2, 1.2))
    melanin = cover * column(lesions["melanin"]) * uneven
    red = 1 + column(lesions["variegation"]) * 1.5 * noise[1]
    blood = cover * column(lesions["blood"]) * np.maximum(red, 0) + 0.05 * noise[3]
    _brown(melanin, lesions, place)
    _red(blood, melanin, lesions, place)
    return melanin, blood


def _brown(melanin: np.ndarray, lesions: Arrays, place: Place) -> None:
    """Add structures of melanin, in place: network, globules, streaks, blotches, plugs, folds."""
    at, strength = _present(lesions, "network")
    wide = column(0.1 + 0.7 * lesions["atypical"][at])
    lines = step((wide - _honeycomb(place.x[at], place.y[at], 3.3)) / 1.3)
    patchy = 1 + column(lesions["atypical"][at]) * place.noise[1][at]
    rim = step(place.r[at] * 2.2 - 0.3) * step(place.inside[at] / 0.25 + 0.9)
    melanin[at] += strength * (1.5 * lines - 0.45) * np.maximum(patchy, 0) * rim
    at, strength = _present(lesions, "globules")
    odd = column(lesions["atypical"][at])
    spots = _clods(lesions, place, at, 3.1, 0.33, 0.65, 0)
    melanin[at] += 1.7 * strength * spots * place.cover[at] * (1 + odd * place.noise[0][at])
    at, strength = _present(lesions, "streaks")
    rays = step(np.cos(19 * place.angle[at] + 4 * place.noise[0][at]) * 1.2)
    rim = step(place.inside[at] * 5 + 1.1) * step(1.8 - place.inside[at] * 4.5)
    side = step(np.cos(place.angle[at] - column(lesions["lean"][at])) + 1.0)
    melanin[at] += 2.4 * strength * rays * rim * side
    at, strength = _present(lesions, "blotch")
    melanin[at] += 2.2 * strength * _spot(lesions, place, at, 0, 0.42) * place.cover[at]
    at, strength = _present(lesions, "openings")
    melanin[at] += 2.2 * strength * _clods(lesions, place, at, 2.3, 0.26, 0.5, 1) * place.cover[at]
    at, strength = _present(lesions, "fissures")
    folds = np.cos(15 * place.x[at] + 5.5 * place.noise[0][at] + 3 * place.noise[1][at])
    melanin[at] += strength * (1.5 * step(folds) - 0.4) * place.cover[at]
    np.maximum(melanin, 0, out=melanin)


def _red(blood: np.ndarray, melanin: np.ndarray, lesions: Arrays, place: Place) -> None:
    """Add structures of blood, in place: dots, branching vessels, lacunae, strawberry pattern."""
    at, strength = _present(lesions, "dots")
    blood[at] += 1.7 * strength * _clods(lesions, place, at, 4.2, 0.27, 0.7, 2) * place.cover[at]
    at, strength = _present(lesions, "vessels")
    blood[at] += 1.9 * strength * _tree(lesions, place, at) * step(place.inside[at] * 3 + 1)
    at, strength = _present(lesions, "lacunae")
    lakes = _clods(lesions, place, at, 1.9, 0.40, 0.9, 3) * step(place.inside[at] * 4 + 0.7)
    blood[at] += 2.0 * strength * lakes
    melanin[at] += 0.7 * strength * lakes * column(lesions["tables"][at, 0, 0, 0] > 0)  # clotted
    at, strength = _present(lesions, "strawberry")
    lines = step((1.0 - _honeycomb(place.x[at], place.y[at], 1.9)) / 1.2)
    blood[at] += strength * (1.3 * lines - 0.4) * place.cover[at]
    np.maximum(blood, -0.2, out=blood)


def _spot(lesions: Arrays, place: Place, at: np.ndarray, which: int, width: float) -> np.ndarray:
    """Return a soft region away from the centre, with a ragged border."""
    angle, out = lesions["spots"][at, which].T
    x = place.x[at] - column(out * np.cos(angle))
    y = place.y[at] - column(out * np.sin(angle))
    return step(1.6 - np.hypot(x, y) / width * 0.9 + 0.35 * place.noise[2][at])


def _tree(lesions: Arrays, place: Place, at: np.ndarray) -> np.ndarray:
    """Return how near each pixel is to branching vessels, made of seven segments."""
    x, y = place.x[at], place.y[at]
    turns = lesions["cells"][at, 0].reshape(len(at), TABLE * TABLE)
    nearest = np.zeros_like(x)
    start = lesions["spots"][at, 1, 0]
    ends = [(np.cos(start) * 0.95, np.sin(start) * 0.95, start + np.pi)]
    for number in range(7):
        x0, y0, heading = ends[(number + 1) // 2 if number else 0]
        spread = (0.35 + 0.5 * turns[:, number]) * (1 if number % 2 else -1) * (number > 0)
        heading = heading + spread
        length = (0.55 + 0.3 * turns[:, 20 + number]) * (1, 0.8, 0.8, 0.6, 0.6, 0.6, 0.6)[number]
        cos, sin = np.cos(heading), np.sin(heading)
        along = (x - column(x0)) * column(cos) + (y - column(y0)) * column(sin)
        aside = (y - column(y0)) * column(cos) - (x - column(x0)) * column(sin)
        over = along - np.clip(along, 0, column(length))
        width = (0.075, 0.055, 0.055, 0.04, 0.04, 0.04, 0.04)[number]
        np.maximum(nearest, np.clip(1.7 - np.hypot(aside, over) / width, 0, 1), out=nearest)
        ends.append((x0 + cos * length, y0 + sin * length, heading))
    return nearest


def mix(rgb: np.ndarray, at: np.ndarray, share: np.ndarray, colour: np.ndarray) -> None:
    """Blend a colour into some images, in place: `share` is (len(at), size, size), 0 to 1."""
    for channel in range(3):
        rgb[channel][at] += share * (colour[channel] - rgb[channel][at])


def scatter(rgb: np.ndarray, lesions: Arrays, place: Place) -> None:
    """Blend in scattering structures, in place: veil, nests, scars, cysts, crust and scale."""
    noise, cover = place.noise, place.cover
    at, strength = _present(lesions, "veil")
    mix(rgb, at, 0.8 * strength * _spot(lesions, place, at, 1, 0.45) * cover[at], BLUE)
    at, strength = _present(lesions, "nests")
    nests = _clods(lesions, place, at, 1.6, 0.33, 0.6, 4)
    mix(rgb, at, 0.75 * strength * nests * cover[at], BLUE * 0.8)
    at, strength = _present(lesions, "regression")
    scar = step(noise[1][at] * 2.5 - 0.1) * cover[at]
    mix(rgb, at, 0.65 * strength * scar, WHITE)
    mix(rgb, at, 0.6 * strength * scar * _clods(lesions, place, at, 4.5, 0.3, 0.6, 5), BLUE)
    at, strength = _present(lesions, "patch")
    star = 1.5 - place.r[at] * 2.1 + 0.5 * noise[2][at]
    mix(rgb, at, 0.75 * strength * step(star), WHITE)
    at, strength = _present(lesions, "strawberry")
    holes = step((_honeycomb(place.x[at], place.y[at], 1.9) - 1.9) / 0.8)
    mix(rgb, at, 0.6 * strength * holes * cover[at], KERATIN)
    at, strength = _present(lesions, "ulcer")
    mix(rgb, at, 0.85 * strength * _spot(lesions, place, at, 0, 0.3), CRUST)
    at, strength = _present(lesions, "cysts")
    cysts = _clods(lesions, place, at, 2.6, 0.26, 0.5, 6)
    mix(rgb, at, 0.85 * strength * cysts * cover[at], KERATIN)
    at, strength = _present(lesions, "scale")
    flakes = step(noise[2][at] * 3 + noise[3][at] - 0.7) * step(place.inside[at] * 4 + 0.5)
    mix(rgb, at, 0.55 * strength * flakes, KERATIN)
