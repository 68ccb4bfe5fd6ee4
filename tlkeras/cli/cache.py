"""`tlkeras cache`: show or remove the cached outputs of frozen networks."""

import argparse
import json

from tlkeras.utils import paths

TEXT = "show how much is cached of frozen networks, to speed up later runs; --clear removes it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clear", action="store_true", help="remove it")


def run(options: argparse.Namespace) -> int:
    from tlkeras.features import kept
    from tlkeras.features.store import in_bytes

    folder = paths.kept_dir()
    files = sorted(folder.glob(f"*{kept.ENDING}"))
    size = sum(file.stat().st_size for file in files)
    for file in files if options.clear else []:
        file.unlink()
    if options.json:
        print(json.dumps({"folder": str(folder), "bytes": size, "cleared": options.clear}))
    else:
        done = "removed from" if options.clear else "in"
        print(f"{in_bytes(size)} {done} {folder} ({len(files)} files)")
    return 0
