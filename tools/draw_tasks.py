"""Draws a figure of every offline task, data/results/tasks/NAME.png, and of all, tasks.png.

It also draws clothes_labels.png for the README: ImageNet features and pixels, from tasks.csv.

python tools/draw_tasks.py
"""

import tlkeras as tlk
from tlkeras.display import plots

import numpy as np  # isort: skip  (after tlkeras, which keeps TensorFlow quiet)
from rows import RESULTS as OUT

SHOWN = {  # the tasks to draw, and how they are loaded
    "clothes": ("clothes", {"image_size": 64}),
    "digits": ("digits", {}),
    "glyphs": ("glyphs/letters", {}),
    "glyphs-styles": ("glyphs/styles", {}),
    "lesions": ("lesions/128", {}),
    "lesions-phone": ("lesions", {"domain": "phone"}),
    "scenes": ("scenes", {}),
    "scenes-exotic": ("scenes", {"domain": "exotic"}),
}
COLUMNS = 12
REAL = {"clothes": "real photographs", "digits": "real handwriting"}


def overview(tasks: dict):
    """Draw one row of images per task: the first ones of test, without selection."""
    with plots.canvas(len(tasks), 1, (9, 1.15 * len(tasks)), squeeze=False) as (figure, axes):
        for axis, (name, task) in zip(axes[:, 0], tasks.items(), strict=True):
            images = task.arrays("test")[0][:COLUMNS].astype("uint8")
            axis.imshow(np.concatenate(list(images), axis=1), interpolation="nearest")
            axis.set_title(f"{name}: {REAL.get(name, task.note)}", fontsize=9)
            axis.axis("off")
    return figure


def few_labels():
    """Draw scores of linear classifiers on pixels and on outputs of a network, trained or not."""
    photos = tlk.results("tasks", task="clothes", labels_per_class=[5, 10, 30])
    names = {"frozen": "ImageNet", "random": "untrained"}
    network = photos.where(preset="efficientnet_lite0", method=list(names))
    scores = network.scores("method", "labels_per_class", scale=100)
    scores |= photos.where(method="pixels").scores("method", "labels_per_class", scale=100)
    return plots.curves(
        {names.get(name, name): points for name, points in scores.items()},
        x="labelled photographs per class", y="accuracy (%)",
        title="Ten labels on ImageNet features do as well as thirty on pixels",
    )  # fmt: skip


def main() -> None:
    few_labels().savefig(OUT / "clothes_labels.png", dpi=150)
    (OUT / "tasks").mkdir(exist_ok=True)
    tasks = {name: tlk.load_task(source, **more) for name, (source, more) in SHOWN.items()}
    for name, task in tasks.items():
        task.show("train", rows=3, columns=COLUMNS).savefig(OUT / "tasks" / f"{name}.png", dpi=100)
    overview(tasks).savefig(OUT / "tasks.png", dpi=120)


if __name__ == "__main__":
    main()
