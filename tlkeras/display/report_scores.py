"""The report's sections on how good a model is: scores, mistakes, calibration, examples."""

from collections.abc import Mapping, Sequence
from typing import Any

from tlkeras.display import judged
from tlkeras.display.model_card import measured, shown_score, value_of
from tlkeras.display.page import Section, arranged, photos, picture, table, text

CHOSEN = {"worst": "The worst mistakes", "uncertain": "The least certain answers"}
CLASSES = 30  # longer tables of classes are cut
FEW = 100  # with fewer images, the calibration error is not reliable
LESS = 0.001  # the smallest reduction of the calibration error that is visible in percent
FLATTERS = (
    " These images were also used to choose the best epoch, so scores on new images will be "
    "somewhat lower: keep some for testing."
)


def of_images(found: dict[str, Any]) -> str:
    """Return how many images the model was evaluated on, and which, as text."""
    named = found["split"] in ("test", "validation")
    which = f"{found['split']} images" if named else f"images ({found['split']})"
    return f"{found['count']:,} {which}"


def good(record: dict[str, Any]) -> list[Section]:
    """Return the sections on scores and calibration."""
    found = record.get("interpretation")
    rows = measured(record)
    section = Section("How good it is")
    if rows:
        section.parts.append(table(rows, ("images", "measure", "value")))
    if not found:
        return [section] if rows else []
    value, mind = value_of(found["scores"])
    scores = [(name, shown_score(score)) for name, score in found["scores"].items()]
    section.parts.append(table(scores, (f"on {of_images(found)}", value)))
    mind += FLATTERS if found["split"] == "validation" else ""
    section.parts += [text(mind)] if mind else []
    if found["classes"]:
        names = [n for n in found["classes"][0] if n != "class"]
        worst = sorted(found["classes"], key=lambda row: row["recall"])
        each = [
            (row["class"], *("-" if row[n] is None else shown_score(row[n]) for n in names))
            for row in worst[:CLASSES]
        ]
        section.parts += [text("Each class, lowest recall first", "h3"),
                          table(each, ("class", *names))]  # fmt: skip
    if found.get("confused"):
        pairs = [(p["is"], p["taken for"], f"{p['count']} of {p['of']}") for p in found["confused"]]
        section.parts += [text("Most frequent confusions", "h3"),
                          table(pairs, ("is", "taken for", "images"))]  # fmt: skip
    for column, name in enumerate(found["names"] if "pairs" in found else ()):
        truth, said = zip(*([one[column] for one in pair] for pair in found["pairs"]), strict=True)
        alt = (
            f"Predicted against true {name}: true from {min(truth):.4g} to {max(truth):.4g}, "
            f"predicted from {min(said):.4g} to {max(said):.4g}"
        )
        section.parts.append(picture(judged.scatter(truth, said, name), alt))
    if "matrix" in found:
        alt = "The confusion matrix, one row per true class; its largest mistakes are: " + (
            "; ".join(f"{p['is']} taken for {p['taken for']}, {p['count']} of {p['of']}"
                      for p in found["confused"][:5]) or "none"
        )  # fmt: skip
        figure = judged.confusion(found["matrix"], found["names"])
        section.parts.append(picture(figure, alt, "Colours are shares of the true class."))
    sure = [_sure(found["calibration"], found["count"])] if "calibration" in found else []
    return [section, *sure]


def _sure(found: dict[str, Any], count: int) -> Section:
    """Return the section on calibration."""
    figure = judged.reliability(found["confidence"], found["accuracy"], found["share"])
    points = zip(found["confidence"], found["accuracy"], strict=True)
    alt = "Share of right answers at each predicted probability: " + ", ".join(
        f"{right:.0%} at {said:.0%}" for said, right in points
    )
    said = (
        "On average, the probability of an answer and the share of right answers differ by "
        f"{found['error']:.1%} (expected calibration error)."
    )
    heat, after = found["temperature"], found["error_after"]
    if heat is not None and found["error"] - after >= LESS:
        way = "overconfident" if heat > 1 else "underconfident"
        said += (
            f" The model is {way}: dividing its scores by {heat:.2f}, a temperature chosen on "
            f"validation images, reduces this to {after:.1%}."
        )
    elif heat is not None:
        said += f" A temperature chosen on validation images ({heat:.2f}) hardly reduces that."
    if count < FEW:
        said += f" But {count} images are too few to be sure of that."
    return Section("Is its confidence right?", [text(said), picture(figure, alt)])


def looked_at(examples: Mapping[str, Sequence[Any]]) -> list[Section]:
    """Return the section of examples worth looking at, if there are any."""
    parts = []
    for why, chosen in examples.items():
        cards = [_card(one) for one in chosen]
        parts += [text(CHOSEN[why], "h3"), arranged(cards, "grid")] if cards else []
    warmth = any(one.heat is not None for chosen in examples.values() for one in chosen)
    lead = "The bright parts of the second image led to the answer (Grad-CAM). " * warmth
    rule = "Only look at these images: if you change the model because of them, test on others."
    return [Section("Examples", [text(lead + rule), *parts])] if parts else []


def _card(one: Any) -> str:
    where = f" {one.file}" if one.file else ""
    images = [(one.image, f"Image{where}: {one.truth}, predicted as {one.said}")]
    if one.heat is not None:
        row, column = divmod(int(one.heat.argmax()), one.heat.shape[1])
        place = f"row {row + 1} of {one.heat.shape[0]}, column {column + 1} of {one.heat.shape[1]}"
        images.append((judged.warm(one.image, one.heat), f"Where it looked: most at {place}"))
    return photos(images, f"is {one.truth}; said {one.answer}", one.file)
