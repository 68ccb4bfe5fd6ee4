"""The model card of a run, in Markdown (Mitchell et al. 2019, "Model Cards")."""

from typing import Any

from tlkeras.display import markdown as md

SEEN = (
    "The model was trained only on images like those counted above. On images from another camera, "
    "place or year it may be less accurate. Measure it on your own images before you rely on it."
)
INTERVAL = (
    "The interval says how much the score would vary with other images of the same kind. "
    "Another training run would give a different score, too."
)
ALWAYS = "The model always answers with one of its classes, even if an image shows something else."


def limits(record: dict[str, Any]) -> list[str]:
    """Return the limits of the model that a reader should keep in mind."""
    return [SEEN, *([ALWAYS] if record["output"] == "softmax" else [])]


def facts(record: dict[str, Any], most: int | None = None) -> list[tuple[str, str]]:
    """Return the facts about a run as pairs of name and text, with at most `most` class names."""
    network, data, size, names = (record[n] for n in ("network", "data", "image_size", "classes"))
    kind = {"softmax": "one class per image", "sigmoid": "yes or no for every label"}
    given = f"RGB images of {size[0]}x{size[1]} pixels, 0 to 255" if size else "as trained on"
    counts = ", ".join(f"{split} {n:,}" for split, n in data["counts"].items())
    return [
        ("predicts" if record["output"] == "numbers" else f"{len(names)} classes",
         ", ".join(names[:most]) + (", ..." if names[most:] and most else "")),
        ("input", f"{given}; the model scales them itself"),
        ("output", kind.get(record["output"], "numbers")),
        ("network", f"{network['name']}: {network['parameters']:,} parameters in the blocks "
         f"{', '.join(network['blocks'])}"),
        ("chosen because", record.get("why") or "not stated"),
        ("licence of the network", network["licence"]),
        ("data", data["name"] + (f" ({data['note']})" if data["note"] else "")),
        ("images", counts or "not counted"),
        ("training", f"{record['seconds']:.0f} s, seed {record.get('seed', 'not stated')}"),
    ]  # fmt: skip


def measured(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the results passed as `metrics`: rows of (images, measure, value)."""
    return [
        (split, name, shown_score(value))
        for split, scores in (record.get("metrics") or {}).items()
        for name, value in scores.items()
        if value is not None
    ]


def model_card(record: dict[str, Any]) -> str:
    """Return the model card for the contents of `run.json`; class and data names are escaped."""
    network, data = record["network"], record["data"]
    parts = [
        f"# {md.text(data['name'])}: a model based on {md.text(network['name'])}",
        md.table(("", ""), facts(record)),
    ]
    if record["stopped"]:
        parts.append(f"**Training stopped early:** {md.text(record['stopped'])}.")
    parts += ["## Results", *_results(record)]
    parts += ["## Training", md.code(record["plan_text"])]
    remarks = [data["note"], *limits(record), record["worse"], record["unsaved"]]
    parts += ["## Limits", md.bullets(filter(None, remarks))]
    if data["report"]:
        parts += ["## What was done to the files", md.bullets(data["report"])]
    parts += ["## Made with", md.bullets(f"{n} {v}" for n, v in record["versions"].items())]
    if record.get("command"):
        parts.append(md.code(md.one_line(record["command"])))
    use = 'import tlkeras as tlk\n\ntlk.predict("THIS FOLDER", ["photo.jpg"])'
    return "\n\n".join([*parts, "## Use", md.code(use, "python")]) + "\n"


def _results(record: dict[str, Any]) -> list[str]:
    rows, judged = measured(record), record.get("interpretation")
    parts = [md.table(("images", "measure", "value"), rows)] if rows else []
    if judged:
        value, interval = value_of(judged["scores"])
        rows = [(judged["split"], name, shown_score(v)) for name, v in judged["scores"].items()]
        counted = f"Measured on {judged['count']:,} images ({judged['split']}). {interval}"
        parts += [md.table(("images", "measure", value), rows), counted.rstrip()]
        each = [
            (row["class"], f"{row['precision']:.3f}", f"{row['recall']:.3f}", str(row["support"]))
            for row in judged["classes"]
        ]
        parts += [md.table(("class", "precision", "recall", "images"), each)] if each else []
    return parts or ["Not measured on images that the model was not trained on."]


def value_of(scores: dict[str, Any]) -> tuple[str, str]:
    """Return the header for a column of scores, and an explanation of their intervals, or ""."""
    if any(isinstance(value, list | tuple) for value in scores.values()):
        return "value (95 % interval)", INTERVAL
    return "value", ""


def shown_score(value: Any) -> str:
    """Return a score as text: a number, or a number with its interval (value, low, high)."""
    if isinstance(value, list | tuple):
        return f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
