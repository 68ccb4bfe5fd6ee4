"""`tlkeras report`: find the report of a run, or evaluate the run on other images."""

import argparse
import contextlib
import json
import sys
from pathlib import Path

import tlkeras as tlk

TEXT = "print the path of a run's report; or evaluate the run on other images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="the folder of a run: runs/TASK")
    parser.add_argument(
        "--data",
        metavar="TASK-or-FOLDER",
        help="evaluate the run on the test images of this task or folder, or on its validation "
        "images if it has no test images",
    )
    parser.add_argument("--out", type=Path, help="file for the page; default: RUN/report.html")


def run(options: argparse.Namespace) -> int:
    with contextlib.redirect_stdout(sys.stderr):  # output of other libraries
        run = tlk.load_run(options.folder)
        path = options.out or run.folder / "report.html"
        found = run.record.get("interpretation")
        if options.data:
            task = tlk.load_task(
                options.data, image_size=run.image_size, white=run.record.get("white"),
                regression=run.output == "numbers",
            )  # fmt: skip
            judged = tlk.interpret(run, task)
            found = judged.record
            run.save_report(path, interpretation=judged, classes=None)
        elif options.out or not path.exists():
            run.save_report(path)
    scores = found["scores"] if found else {}
    if options.json:
        split, count = (found["split"], found["count"]) if found else (None, 0)
        print(json.dumps({"report": str(path), "scores": scores, "split": split, "images": count}))
        return 0
    for name, value in scores.items():
        print(f"{name} {value[0] if isinstance(value, list | tuple) else value:.4g}")
    print(path)
    return 0
