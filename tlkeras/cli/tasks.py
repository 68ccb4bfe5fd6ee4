"""`tlkeras tasks`: list the tasks; those that come with tlkeras are first."""

import argparse
import json

from tlkeras.utils import paths

TEXT = "list the tasks; those that come with tlkeras are first"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no arguments of its own."""


def run(options: argparse.Namespace) -> int:
    from tlkeras.tasks import online

    offline = {p.name: (p / "card.md").read_text(encoding="utf-8") for p in paths.tasks()}
    cards = offline | {task.name: task.card() for task in online.TABLE}
    summaries = {name: card.splitlines()[2] for name, card in cards.items()}
    if options.json:
        tasks = [
            {"name": name, "summary": summaries[name], "card": card, "online": name not in offline}
            for name, card in cards.items()
        ]
        print(json.dumps({"tasks": tasks}))
        return 0
    width = max(map(len, summaries))
    lines = {name: f"{name.ljust(width)}  {summary}" for name, summary in summaries.items()}
    print(*(lines[name] for name in offline), sep="\n")
    print("\nDownloaded on first use; these need TLKERAS_PROFILE=online:")
    print(*(lines[name] for name in online.names()), sep="\n")
    return 0
