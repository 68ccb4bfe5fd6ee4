"""`tlkeras export`: export a run's model for use without Keras, and check its outputs."""

import argparse
import contextlib
import json
import sys
from pathlib import Path

TEXT = "export a run's model for use without Keras, and check that its outputs are the same"
FORMATS = ("onnx", "litert", "savedmodel")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="the folder of a run: runs/TASK")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="onnx",
        help="onnx (the default), litert (TensorFlow Lite; from Keras 3.13 on) or savedmodel; the "
        "first two need pip install 'tlkeras[export]'",
    )
    parser.add_argument("--out", type=Path, help="default: in the run's folder")


def run(options: argparse.Namespace) -> int:
    with contextlib.redirect_stdout(sys.stderr):  # output of other libraries
        from tlkeras.advice.exporting import export

        try:
            made = export(options.folder, options.format, options.out)
        except ImportError as error:
            raise ValueError(str(error)) from error
    result = {
        "format": options.format,
        "path": str(made.path),
        "bytes": _size(made.path),
        "largest_difference": made.difference,
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f"{made.path}: {result['bytes'] / 2**20:.1f} MB; its outputs differ from the model's "
            f"own by at most {made.difference:.1e}"
        )
    return 0


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
