"""`tlkeras predict`: predict classes and probabilities for images with a saved run."""

import argparse
import contextlib
import csv
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:  # at run time, Keras is loaded only when it is needed
    from tlkeras.advice.predictions import Predictions

TEXT = "predict what is in images, with a run that `tlkeras fit` wrote"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="the folder of a run: runs/TASK")
    parser.add_argument(
        "files", metavar="FILES-or-FOLDER", nargs="+", help="images, or folders of images"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table to this file")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes shown; default: 3")
    parser.add_argument(
        "--tta",
        action="store_true",
        help="average over five views of each image; takes five times as long",
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: 64")


def run(options: argparse.Namespace) -> int:
    with contextlib.redirect_stdout(sys.stderr):  # output of other libraries
        from tlkeras.advice.predicting import Predictor, files_of
        from tlkeras.utils.tables import printable

        files = files_of(options.files)
        predictor = Predictor(options.folder, options.top, options.tta, options.batch_size)
    with predictor, contextlib.ExitStack() as opened:
        rows = csv.writer(opened.enter_context(_open(options.csv))) if options.csv else None
        start, count = time.perf_counter(), 0
        shown, broken = list[dict](), dict[str, str]()
        for number, part in enumerate(predictor.stream(files)):
            found = _told(part)
            count, broken = count + len(part), broken | part.unreadable
            if rows:
                rows.writerows([*([] if number else [part.header()]), *part.lines()])
            if options.json:
                shown += found
            elif not rows:
                for told in found:
                    ranked = "  ".join(f"{name} {value:.3f}" for name, value in told["ranked"])
                    print(printable(f"{told['file']}  {ranked}"), flush=True)
    seconds = time.perf_counter() - start
    for name, why in broken.items():
        print(f"tlkeras: cannot read {name}: {why}", file=sys.stderr)
    result = {
        "images": count,
        "seconds": round(seconds, 3),
        "images_per_second": round(count / seconds, 1),
        "unreadable": broken,
        "csv": str(options.csv) if options.csv else None,
        "predictions": shown,
    }
    print(json.dumps(result) if options.json else _last_line(result))
    return 1 if broken else 0


def _open(path: Path) -> TextIO:
    return path.open("w", newline="", encoding="utf-8", errors="surrogateescape")


def _told(part: "Predictions") -> list[dict[str, Any]]:
    """Return the predictions of a batch as dictionaries, for JSON."""
    return [
        {"file": name, part.kind: said, "ranked": part.ranked(row)}
        for row, (name, said) in enumerate(zip(part.files, part.names, strict=True))
    ]


def _last_line(result: dict[str, Any]) -> str:
    count, images = result["images"], "image" if result["images"] == 1 else "images"
    line = f"{count:,} {images} in {result['seconds']:.1f} s"
    line += f" ({result['images_per_second']:,.1f} a second)"
    if result["unreadable"]:
        line += f"; {len(result['unreadable'])} could not be read"
    return f"{line}; written to {result['csv']}" if result["csv"] else line
