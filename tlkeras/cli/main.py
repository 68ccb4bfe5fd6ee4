"""The command `tlkeras`.

With --json, standard output is a single JSON object; all other messages go to standard error.
Exit status: 0 success; 1 a problem, such as a failed check, an unreadable image, or training that
diverged or was interrupted; 2 an error in the user's input; 130 interrupted, nothing was written.
"""

import argparse
import shlex
import sys
import warnings
from typing import Any

import tlkeras as tlk
from tlkeras.cli import cache, doctor, export, fit, predict, recommend, report, tasks

COMMANDS = {
    "doctor": doctor,
    "tasks": tasks,
    "recommend": recommend,
    "fit": fit,
    "predict": predict,
    "report": report,
    "export": export,
    "cache": cache,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status. Errors in the input print a single line."""
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        options.parser.error(f"unrecognized arguments: {shlex.join(unknown)}")
    options.command = shlex.join(["tlkeras", *(sys.argv[1:] if arguments is None else arguments)])
    told, warnings.formatwarning = warnings.formatwarning, _warning
    try:
        return options.run(options)
    except KeyboardInterrupt as stop:
        print(f"tlkeras: interrupted{stop}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if options.traceback:
            raise
        print(f"tlkeras: {_line(error)}", file=sys.stderr)
        return 2
    finally:
        warnings.formatwarning = told


def _warning(message: Warning | str, *where: Any, **line: Any) -> str:
    """Format a warning as one line, without its place in the code."""
    return f"tlkeras: {' '.join(str(message).split())}\n"


def _line(error: Exception) -> str:
    """Return an error message as one line; for files, without the system's error number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return (
            f"cannot use {error.filename}: {error.strerror.lower()}. Expected an existing path "
            "that can be read and written."
        )
    return " ".join(str(error).split())


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object")
    common.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    parser = argparse.ArgumentParser("tlkeras", description="Staged transfer learning for Keras.")
    parser.add_argument("--version", action="version", version=f"tlkeras {tlk.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    for name, command in COMMANDS.items():
        made = commands.add_parser(
            name, parents=[common], help=command.TEXT, description=command.TEXT
        )
        command.add_arguments(made)
        made.set_defaults(run=command.run, parser=made)
    return parser
