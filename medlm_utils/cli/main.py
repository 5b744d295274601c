"""The command `medlm`: reads arguments, calls one command, reports its errors.

Each module of this package adds its commands with ``add_commands(groups)`` and sets
``run``, a function of the parsed arguments that returns the exit status.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from medlm_utils.cli import (
    clinic,
    ct_finetune,
    ct_patients,
    ct_predict,
    data,
    detect,
    finetune,
    phantom,
    predict,
)
from medlm_utils.runtime import MedlmError

# A new module of commands is named here.
GROUPS = (
    data,
    clinic,
    phantom,
    finetune,
    predict,
    detect,
    ct_patients,
    ct_finetune,
    ct_predict,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments
        The words after ``medlm``; by default those of the command line.

    Returns
    -------
    int
        The exit status: 0 done, 1 an error that was reported, 130 stopped by Ctrl-C.
        Wrong usage leaves with 2 through `SystemExit`, as argparse does.
    """
    chosen = build_parser().parse_args(arguments)
    try:
        status: int = chosen.run(chosen)
        sys.stdout.flush()
        return status
    except MedlmError as error:
        print(f"medlm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("medlm: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has left; Python must not complain too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The parser of all groups of commands."""
    text = "The command line of the course medlm."
    parser = argparse.ArgumentParser(prog="medlm", description=text)
    version = f"medlm {metadata.version('medlm-utils')}"
    parser.add_argument("--version", action="version", version=version)
    groups = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in GROUPS:
        module.add_commands(groups)
    return parser
