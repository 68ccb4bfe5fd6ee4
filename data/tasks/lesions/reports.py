"""Short reports on lesions: a history that no image shows, and some of what the image shows."""

import numpy as np

# Facts about a patient or a lesion, and how often each is true by class, in percent.
HISTORY = {
    "It has grown over three months. | Clearly larger than last year. | Growing lately.":
        (30, 35, 15, 8, 55, 12, 12),
    "No change for years. | Has looked the same for as long as anyone remembers. | Stable.":
        (8, 8, 30, 50, 8, 50, 40),
    "Bleeds now and then. | Bled twice after towelling. | Spots of blood on the shirt.":
        (22, 45, 8, 3, 18, 3, 28),
    "Itches. | Itching at night. | Is scratched often.": (25, 10, 30, 22, 15, 6, 3),
    "A sore that will not heal. | Opens again and again.": (20, 45, 3, 2, 6, 1, 3),
    "Rough like sandpaper. | Feels dry and scaly. | Catches on clothing.": (55, 8, 28, 6, 3, 2, 2),
    "Waxy, as if stuck on. | Greasy to the touch. | Could almost be peeled off.":
        (5, 3, 45, 2, 3, 3, 1),
    "Dimples when pinched. | Firm, like a button under the skin. | Began after an insect bite.":
        (3, 5, 3, 55, 3, 3, 3),
    "Pales under pressure. | Soft and compressible. | Swells a little on exertion.":
        (6, 6, 3, 4, 1, 2, 55),
    "Decades of outdoor work. | Much sun over the years. | Badly burnt as a child.":
        (60, 50, 25, 10, 35, 18, 8),
    "Unlike any other on this skin. | Stands out among the rest.": (10, 12, 6, 6, 50, 6, 12),
    "Several similar ones elsewhere. | One of many.": (12, 4, 35, 5, 8, 40, 20),
}  # fmt: skip
# Words of the examiner for each structure.
SEEN = {
    "network": "pigment network | a reticular pattern | a mesh of brown lines",
    "atypical": "irregular structure | uneven lines | disorder in the pattern",
    "globules": "brown globules | round brown clods",
    "streaks": "streaks at the edge | radial lines at the periphery | pseudopods",
    "blotch": "an eccentric blotch | a dark area off the centre",
    "veil": "a blue-white veil | a milky blue area",
    "regression": "scar-like areas with peppering | white areas and grey dots",
    "cysts": "milia-like cysts | small bright cysts",
    "openings": "comedo-like openings | dark plugs",
    "fissures": "fissures and ridges | a cerebriform surface",
    "vessels": "arborising vessels | branching vessels | tree-like vessels in focus",
    "dots": "dotted vessels | red dots | glomerular vessels",
    "nests": "blue-grey ovoid nests | grey-blue clods",
    "ulcer": "an erosion | a crust | ulceration",
    "lacunae": "red lacunae | red-purple clods | well-defined red lakes",
    "patch": "a white patch in the middle | central white scar",
    "scale": "scale | yellow-white flakes",
    "strawberry": "a strawberry pattern | a red pseudonetwork round pale follicles",
}  # fmt: skip
# Sites of the lesions: weights by class, in the order of cases.CLASSES.
SITES = {
    "face": (40, 45, 22, 2, 12, 8, 12),
    "scalp": (14, 8, 6, 0, 6, 3, 4),
    "chest": (6, 10, 14, 4, 12, 16, 22),
    "back": (6, 15, 26, 4, 30, 32, 18),
    "abdomen": (2, 4, 12, 4, 6, 16, 20),
    "arm": (10, 8, 10, 22, 16, 12, 12),
    "hand": (16, 4, 4, 2, 3, 3, 4),
    "leg": (6, 6, 6, 62, 15, 10, 8),
}


def write_report(rng: np.random.Generator, facts: list[str], lesion: dict, seen: list[str]) -> str:
    """Return a short report on one image: half of the facts, some structures, a few mistaken.

    Args:
        rng: chooses facts, structures and words.
        facts: keys of HISTORY that are true for the lesion.
        lesion: the `age`, `woman` and `site` of the lesion.
        seen: structures of the lesion, keys of SEEN.
    """

    def phrase(options: str) -> str:
        return str(rng.choice(options.split(" | ")))

    who = "woman" if lesion["woman"] else "man"
    age = lesion["age"]
    opening = phrase(
        f"{age}-year-old {who}, {{0}}. | {who.capitalize()} of {age}, {{0}}. | A spot on the {{0}}."
    )
    said = [phrase(fact) for fact in facts if rng.random() < 0.5]
    named = [name for name in seen if rng.random() < 0.4]
    named += [name for name in SEEN if name not in seen and rng.random() < 0.02]
    if named:
        words = [phrase(SEEN[name]) for name in rng.permutation(named)]
        said.append(
            phrase("Shows {0}. | Seen: {0}. | On closer look {0}.").format(", ".join(words))
        )
    return " ".join(
        [opening.format(lesion["site"]), *(said[k] for k in rng.permutation(len(said)))]
    )


def write_reports(rng: np.random.Generator, lesions: dict, of_view: np.ndarray) -> list[str]:
    """Return a report for each view; those of one lesion share its facts but vary in wording."""
    facts, sites = [], []
    for label in lesions["label"]:
        facts.append([text for text, how in HISTORY.items() if rng.random() * 100 < how[label]])
        odds = np.array([how[label] for how in SITES.values()])
        sites.append(str(rng.choice(list(SITES), p=odds / odds.sum())))
    reports = []
    for lesion in of_view:
        known = {name: lesions[name][lesion] for name in ("age", "woman")} | {"site": sites[lesion]}
        seen = [name for name in SEEN if lesions[name][lesion] > 0]
        reports.append(write_report(rng, facts[lesion], known, seen))
    return reports
