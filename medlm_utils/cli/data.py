"""The commands `medlm data list | fetch NAME | verify [NAME]`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from medlm_utils import data

if TYPE_CHECKING:
    Groups = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(groups: Groups) -> None:
    """Add the group ``data`` to the parser."""
    text = "data sets and weights: what there is, fetching, verifying"
    group = groups.add_parser("data", help=text, description=text)
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)

    text = "list data sets and weights, and which are here"
    command = commands.add_parser("list", help=text, description=text)
    command.set_defaults(run=run_list)

    text = "fetch a data set or weights, verify them and print their folder"
    command = commands.add_parser("fetch", help=text, description=text)
    command.add_argument("name", metavar="NAME", help="a name of `medlm data list`")
    command.set_defaults(run=run_fetch)

    text = "verify the hashes of what is here; downloads nothing"
    command = commands.add_parser("verify", help=text, description=text)
    command.add_argument("name", metavar="NAME", nargs="?", help="default: all")
    command.set_defaults(run=run_verify)


def run_list(_: argparse.Namespace) -> int:
    """Print a table of the registry; sizes are compared, hashes are not."""
    rows: list[tuple[str, ...]] = [("name", "kind", "files", "size", "here", "licence")]
    for name in _all_names():
        entry = data.entry(name)
        size = f"{entry.bytes / 1e6:,.1f} MB"
        here = _here(data.verify(name, hashes=False))
        number = f"{len(entry.files):,}"
        rows.append((name, entry.kind, number, size, here, entry.licence))
    _print_table(rows, right_aligned=(2, 3))
    print(f"\nData folder: {data.data_dir()}")
    return 0


def run_fetch(chosen: argparse.Namespace) -> int:
    """Fetch one entry and print its folder."""
    is_data = data.entry(chosen.name).kind == "data"
    print(data.fetch(chosen.name) if is_data else data.weights(chosen.name))
    return 0


def run_verify(chosen: argparse.Namespace) -> int:
    """Print how many files are right, missing and wrong.

    The status is 1 if any is wrong, or if one entry was asked for and any is missing.
    """
    bad = False
    for name in [chosen.name] if chosen.name else _all_names():
        status = data.verify(name)
        print(
            f"{name}: {len(status.right):,} right, {len(status.missing):,} missing, "
            f"{len(status.wrong):,} wrong"
        )
        for path in status.wrong:
            print(f"  wrong: {path}")
        bad = bad or bool(status.wrong) or bool(chosen.name and status.missing)
    return 1 if bad else 0


def _all_names() -> tuple[str, ...]:
    return data.names() + data.names("weights")


def _here(status: data.Status) -> str:
    """Whether the files are here, in one or two words."""
    if status.complete:
        return "yes"
    if status.wrong:
        return f"{len(status.wrong):,} wrong"
    total = len(status.right) + len(status.missing)
    return f"{len(status.right):,} of {total:,}" if status.right else "no"


def _print_table(rows: list[tuple[str, ...]], right_aligned: tuple[int, ...]) -> None:
    """Print rows of words in columns as wide as their widest word."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        words = [
            word.rjust(width) if column in right_aligned else word.ljust(width)
            for column, (word, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(words).rstrip())
