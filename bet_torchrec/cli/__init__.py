"""The library from the shell: bet-torchrec data | plan | train | evaluate | compare | compress |
inspect.

Exit codes: 0 done, 2 bad input (one line on stderr says what), 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from .._versions import report
from ..errors import BetError
from . import compare, compress, data, evaluate, inspect, plan, train

COMMANDS = (data, plan, train, evaluate, compare, compress, inspect)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; argparse would print the whole usage first."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    # A plain version= would look all the packages up whether it is asked for or not.
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(report())
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The command line; each command's module adds its own part."""
    top = _Parser(
        prog="bet-torchrec",
        description="Embedding sizes row by row, strictly within a memory budget.",
    )
    top.add_argument(
        "--version", action=_Version, nargs=0, help="versions, and whether torch and FBGEMM fit"
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = parser().parse_args(argv)
    name = f"bet-torchrec {arguments.command}"
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        resumable = hasattr(arguments, "resume")
        hint = "the same command with --resume continues it" if resumable else "nothing was kept"
        print(f"{name}: interrupted; {hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (BetError, OSError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
