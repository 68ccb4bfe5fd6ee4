"""`tlkeras recommend`: recommend a strategy to try first, from a few facts about the data."""

import argparse
import json

import tlkeras as tlk

TEXT = "recommend a strategy to try first, with a plan; without arguments, list all of them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", metavar="N", help="number, or small, medium, large")
    parser.add_argument(
        "--shift",
        choices=("low", "high"),
        default="low",
        help="how different the images are from those the network was trained on; default: low",
    )
    parser.add_argument(
        "--compute",
        choices=("low", "medium", "high"),
        default="low",
        help="low is a laptop, medium a GPU for an hour or two; default: low",
    )
    parser.add_argument(
        "--labelled", type=int, metavar="N", help="number of images with a label; default: all"
    )


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
