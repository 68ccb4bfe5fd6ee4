"""Draws the synthetic patients: their lesions, the views of each lesion, and the reports."""

import numpy as np

from .reports import write_reports

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
HAM10000 = (327, 514, 1099, 115, 1113, 6705, 142)  # images of each class in HAM10000, 10,015 in all
HAIRS = 10  # hairs drawn for each image; at most 8 of them are visible
AGE = (66, 67, 64, 50, 61, 45, 50)  # mean age by class in years; the spread is 13
# Means by class, in the order of CLASSES, and the spread within each class.
TRAITS = {  # pigments in units of render.MELANIN and BLOOD; radius relative to half the image
    "melanin":     ((0.35, 0.35, 0.95, 0.70, 1.40, 1.10, 0.40), 0.40),
    "blood":       ((0.55, 0.45, 0.20, 0.30, 0.25, 0.15, 0.75), 0.22),
    "radius":      ((0.52, 0.50, 0.52, 0.46, 0.56, 0.48, 0.46), 0.08),
    "irregular":   ((0.50, 0.45, 0.45, 0.25, 0.60, 0.25, 0.30), 0.20),
    "asymmetry":   ((0.30, 0.30, 0.30, 0.20, 0.45, 0.20, 0.25), 0.15),
    "variegation": ((0.40, 0.45, 0.45, 0.30, 0.65, 0.30, 0.35), 0.18),
    "softness":    ((0.50, 0.40, 0.18, 0.50, 0.25, 0.35, 0.25), 0.12),
}  # fmt: skip
# How often a lesion of each class shows a structure, in percent.
CRITERIA = {
    "network":    ( 5,  3, 10, 60, 55, 65,  0),
    "atypical":   (35, 30, 25, 15, 70, 12, 10),
    "globules":   ( 3,  8, 10,  8, 45, 45,  0),
    "streaks":    ( 0,  2,  2,  2, 40,  4,  0),
    "blotch":     ( 3,  8, 12,  3, 45, 12,  5),
    "veil":       ( 1, 12,  6,  3, 45,  3,  8),
    "regression": ( 6,  5, 10,  4, 35,  4,  0),
    "cysts":      ( 4,  5, 60,  5,  4,  4,  0),
    "openings":   ( 5,  2, 50,  2,  3,  2,  0),
    "fissures":   ( 4,  1, 45,  3,  3,  3,  0),
    "vessels":    ( 8, 70,  3,  3,  6,  2,  4),
    "dots":       (60,  5,  5,  8, 10,  3,  2),
    "nests":      ( 2, 50,  4,  2,  8,  2,  2),
    "ulcer":      (20, 35,  3,  1,  6,  1,  3),
    "lacunae":    ( 0,  2,  1,  1,  1,  1, 90),
    "patch":      ( 3,  4,  3, 80,  6,  2,  2),
    "scale":      (60, 12, 25,  5,  3,  1,  1),
    "strawberry": (50,  3,  2,  2,  1,  0,  1),
}  # fmt: skip


def count_images(total: int) -> list[int]:
    """Divide `total` images among the classes as in HAM10000; nv, the largest, gets the rest."""
    counts = [round(total * part / sum(HAM10000)) for part in HAM10000]
    counts[CLASSES.index("nv")] += total - sum(counts)
    return counts


def draw_patients(rng: np.random.Generator, images: int) -> dict[str, np.ndarray]:
    """Draw patients, their lesions, and the number of images of each lesion (1 to 4).

    Returns:
        Arrays with one row per lesion: `label`, `pictures` (number of images), `patient` (counted
        from 0), and properties of the patient: `skin_melanin` and `skin_blood` as quantiles, `age`
        in years, `woman`.
    """
    label, pictures = [], []
    for number, wanted in enumerate(count_images(images)):
        some = rng.choice([1, 2, 3, 4], wanted, p=[0.5, 0.3, 0.15, 0.05])
        some = some[np.cumsum(some) - some < wanted]
        some[-1] -= some.sum() - wanted
        label += [number] * len(some)
        pictures += some.tolist()
    order = rng.permutation(len(label))
    label, n = np.array(label)[order], len(label)
    patient = np.repeat(np.arange(n), rng.choice([1, 2, 3], n, p=[0.6, 0.3, 0.1]))[:n]
    lead = np.searchsorted(patient, patient)  # the patient's first lesion, which decides the age
    age = np.clip(np.array(AGE)[label] + 13 * rng.standard_normal(n), 6, 95)
    return {
        "label": label,
        "pictures": np.array(pictures)[order],
        "patient": patient,
        "skin_melanin": rng.random(n)[lead],
        "skin_blood": rng.random(n)[lead],
        "age": age[lead].astype("int64"),
        "woman": rng.random(n)[lead] < 0.5,
    }


def draw_lesions(rng: np.random.Generator, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Draw the properties of lesions of these classes: arrays with a row each, for render.draw."""
    n = len(labels)
    drawn = {}
    for name, (means, spread) in TRAITS.items():
        least = 0.3 if name == "radius" else 0.08
        drawn[name] = np.maximum(np.array(means)[labels] + spread * rng.standard_normal(n), least)
    for name, percents in CRITERIA.items():
        there = rng.random(n) * 100 < np.array(percents)[labels]
        drawn[name] = there * rng.uniform(0.6, 1, n)
    drawn["elongation"] = np.abs(rng.normal(0, 0.09, n))
    drawn["lean"] = rng.uniform(0, 2 * np.pi, n)
    drawn["harmonics"] = rng.standard_normal((n, 2, 9))
    drawn["tables"] = rng.standard_normal((n, 6, 16, 16))
    drawn["cells"] = rng.random((n, 4, 16, 16))
    drawn["spots"] = np.stack(
        [rng.uniform(0, 2 * np.pi, (n, 2)), rng.uniform(0.15, 0.5, (n, 2))], -1
    )
    return drawn


def draw_views(rng: np.random.Generator, n: int, domain: str) -> dict[str, np.ndarray]:
    """Draw how each image is taken: arrays of n rows for render.draw, in its units of length."""
    phone = domain == "phone"
    hairs = (rng.random(n) < 0.4) * rng.integers(1, 9, n)
    many = (n, HAIRS)
    hair = [
        rng.uniform(0, np.pi, n)[:, None] + rng.normal(0, 0.4, many),  # direction
        rng.uniform(-1, 1, many),  # distance from the centre
        rng.normal(0, 0.25, many),  # curvature
        rng.uniform(0.009, 0.02, many),  # width
    ]
    fair = rng.random((n, 1)) < 0.25
    warm = np.array([1.06, 0.98, 0.84]) if phone else np.ones(3)
    exposure = np.exp(rng.normal(0, 0.14, (n, 1)))
    return {
        "right": rng.normal(0, 0.07, n),
        "down": rng.normal(0, 0.07, n),
        "angle": rng.uniform(0, 2 * np.pi, n),
        "zoom": np.exp(rng.normal(0, 0.13, n)) * (1.1 if phone else 1.22),
        "hairs": hairs,
        "hair": np.stack(hair, -1),
        "hair_colour": np.where(fair, [0.72, 0.55, 0.35], [0.12, 0.08, 0.07]),
        "light": rng.normal(0, 0.16 if phone else 0.05, (n, 2)),
        "balance": warm * exposure * np.exp(rng.normal(0, 0.06, (n, 3))),
        "vignette": (not phone) * rng.uniform(0, 0.5, n),
        "aperture": np.where((rng.random(n) < 0.08) & (not phone), rng.uniform(0.9, 1.2, n), 9),
        "ruler": np.where((rng.random(n) < 0.12) & (not phone), rng.uniform(0.8, 0.9, n), 0),
        "blur": (phone | (rng.random(n) < 0.3)) * rng.uniform(0.004, 0.016 if phone else 0.01, n),
        "grain": rng.uniform(0.004, 0.03 if phone else 0.018, n),
        "seed": rng.integers(2**32, size=n),
    }


def draw_cases(
    seed: list[int], domain: str, images: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray, list[str]]:
    """Draw a split without its pixels: lesions, views, the lesion of each view, and reports."""
    rng = np.random.default_rng(seed)
    lesions = draw_patients(rng, images)
    lesions |= draw_lesions(rng, lesions["label"])
    darkest, reddest = (1.1, 0.35) if domain == "phone" else (0.5, 0.3)
    lesions["skin_melanin"] *= darkest
    lesions["skin_blood"] *= reddest
    of_view = np.repeat(np.arange(len(lesions["label"])), lesions["pictures"])
    views = draw_views(rng, len(of_view), domain)
    return lesions, views, of_view, write_reports(rng, lesions, of_view)
