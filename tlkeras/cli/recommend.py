"""`tlkeras recommend`: which strategy to try first, from what is known about the data."""

import argparse
import json

import tlkeras as tlk

TEXT = "which strategy to try first, with a plan; without arguments: all there are"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", metavar="N", help="how many, or small, medium, large")
    parser.add_argument(
        "--shift", choices=("low", "high"), default="low", help="from what the network has learned"
    )
    parser.add_argument(
        "--compute", choices=("low", "medium", "high"), default="low", help="a laptop is low"
    )
    parser.add_argument("--labelled", type=int, metavar="N", help="images that have a label")


def run(options: argparse.Namespace) -> int:
    if options.images is None:
        from tlkeras.advice.recommending import guide

        table = guide()
        rows = [dict(zip(table.header, row, strict=True)) for row in table.cells]
        print(json.dumps({"guide": rows}) if options.json else table)
        return 0
    number = options.images.removeprefix("-").isdecimal()
    images = int(options.images) if number else options.images
    labelled = True if options.labelled is None else options.labelled
    advice = tlk.recommend(images, options.shift, options.compute, labelled)
    found = dict(advice.lines()) | {"plan": advice.plan.to_dict()}
    print(json.dumps(found) if options.json else advice)
    return 0
