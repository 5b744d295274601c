"""The commands `medlm predict` and `medlm embed`: CSV files of any size, in chunks."""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from medlm_utils.cli import content, files, processes, reading, results, tables
from medlm_utils.cli.processes import Team
from medlm_utils.cli.reading import Reading
from medlm_utils.runtime import MedlmError

if TYPE_CHECKING:
    from medlm_utils import bert

    Groups = argparse._SubParsersAction[argparse.ArgumentParser]

_MODEL = "medlm.json"  # in the folder of a model
CHUNK = 8  # batches of each process in memory at a time


def add_commands(groups: Groups) -> None:
    """Add the commands ``predict`` and ``embed`` to the parser."""
    text = "the label of each note, with probabilities, by a model of `medlm finetune`"
    command = groups.add_parser("predict", help=text, description=text)
    text = "the folder model of a run"
    command.add_argument(
        "--model", metavar="FOLDER", type=Path, required=True, help=text
    )
    _add_files(command, "CSV")
    command.set_defaults(run=run_predict)

    text = "one vector for each note: the mean of its last hidden states"
    command = groups.add_parser("embed", help=text, description=text)
    text = (
        "minilm, bert-base-uncased, a folder with an encoder, the folder model of a "
        "run, or owner/name on the Hugging Face Hub; default: %(default)s"
    )
    command.add_argument("--model", metavar="NAME_OR_PATH", default="minilm", help=text)
    _add_files(command, "NPY")
    command.set_defaults(run=run_embed)


def _add_files(command: argparse.ArgumentParser, kind: str) -> None:
    add = command.add_argument
    add("--input", metavar="CSV", type=Path, required=True, help="of any size")
    add("--output", metavar=kind, type=Path, required=True, help="in the input's order")
    shown = "default: %(default)s"
    add("--text", metavar="COLUMN", default="text", help=f"of the notes; {shown}")
    add("--batch", metavar="N", type=int, default=64, help=f"notes at once; {shown}")
    reading.add_options(command)
    processes.add_precision(command)
    add("--force", action="store_true", help="replace the output if it is there")


def run_predict(chosen: argparse.Namespace) -> int:
    """Copy the rows, and add the label and the probabilities to each."""
    from medlm_utils import bert

    team = Team()
    with team.one_voice():
        model = team.all_do(lambda: _load(chosen.model))
        added = results.heading(model.labels)
        width = len(model.labels) * 12
        notes = team.all_do(lambda: _checked(chosen, model, width, added))
        read = team.all_do(lambda: Reading(model, chosen.tokens, chosen.long))
        precision = precision_of(chosen, model, team)
        logits_of = functools.partial(bert.predict_logits, precision=precision)

        def shares_of(*arguments: Any, **settings: Any) -> np.ndarray:
            return content.shares(model, logits_of(*arguments, **settings))

        with _output(team, chosen.output, "w") as file:
            writer = csv.writer(file, lineterminator="\n") if file else None
            if writer:
                writer.writerow([*notes.heading, *added])
            for chunk, shares in computed(chosen, team, notes, model, read, shares_of):
                answers = content.answers(model, shares)
                if writer:
                    writer.writerows(map(operator.add, chunk, answers))
            read.refuse_alike()
    return _done(team, chosen, notes, read)


def run_embed(chosen: argparse.Namespace) -> int:
    """Write an array of float32, one row a note."""
    from medlm_utils import bert

    team = Team()
    with team.one_voice():
        model = team.all_do(lambda: load_encoder(chosen.model))
        width = model.encoder.config.hidden_size
        notes = team.all_do(lambda: _checked(chosen, model, 4 * width))
        read = team.all_do(lambda: Reading(model, chosen.tokens, chosen.long))
        precision = precision_of(chosen, model, team)
        compute = functools.partial(bert.embed, precision=precision)
        with _output(team, chosen.output, "wb") as file:
            if file:
                _write_header(file, (notes.count, width))
            for _, vectors in computed(chosen, team, notes, model, read, compute):
                if file:
                    file.write(np.ascontiguousarray(vectors, "<f4").data)
            read.refuse_alike()
    return _done(team, chosen, notes, read)


def precision_of(chosen: argparse.Namespace, model: bert.Classifier, team: Team) -> str:
    """What `team` takes, if the model can be computed in it."""
    fast, wanted = team.precision(chosen.precision), chosen.precision
    return team.all_do(lambda: reading.usable_precision(model, fast, wanted))


def _write_header(file: IO[bytes], shape: tuple[int, int]) -> None:
    """What stands before the numbers in a file of NumPy."""
    kind = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, kind)


def _load(folder: Path) -> bert.Classifier:
    """The model of a run; whoever names the folder of the run is told."""
    from medlm_utils import bert

    inner = folder / files.MODEL
    if (inner / _MODEL).is_file() and not (folder / _MODEL).exists():
        raise MedlmError(
            f"{folder} is the folder of a run, and its model is {inner}; expected "
            "that: --model " + str(inner)
        )
    return bert.load_classifier(folder)


def load_encoder(name: str) -> bert.Classifier:
    """The model of a run, or an encoder with a head that nobody asks."""
    from medlm_utils import bert

    if any((Path(name) / inner / _MODEL).is_file() for inner in ("", files.MODEL)):
        return _load(Path(name))
    return bert.Classifier.pretrained(("no", "yes"), name)


def _checked(
    chosen: argparse.Namespace,
    model: bert.Classifier,
    bytes_a_row: int,
    added: list[str] | None = None,
) -> tables.Stream:
    """The notes to read, once nothing is known to be wrong with the whole command."""
    if model.tokenizer is None:
        raise MedlmError(
            f"{chosen.model} was saved without a tokenizer; expected one, to read text."
        )
    if chosen.batch < 1:
        raise MedlmError(f"--batch is {chosen.batch}; expected at least 1.")
    notes = tables.scan(chosen.input, chosen.text)
    taken = [name for name in added or () if name in notes.heading]
    if taken:
        raise MedlmError(
            f"{chosen.input} has a column {taken[0]!r} already, which is to be added; "
            "rename it."
        )
    copied = chosen.input.stat().st_size if added else 0
    needed = notes.count * bytes_a_row + copied
    files.check_output(chosen.output, [chosen.input], chosen.force, needed)
    files.check_ending(chosen.output, ".csv" if added else ".npy")
    return notes


@contextlib.contextmanager
def _output(team: Team, path: Path, mode: str) -> Iterator[IO[Any] | None]:
    """The file to write, in the main process; the others have none."""
    if not team.is_main:
        yield None
        return
    with files.beside(path, mode) as file:
        yield file


def computed(
    chosen: argparse.Namespace,
    team: Team,
    notes: tables.Stream,
    model: bert.Classifier,
    read: Reading,
    compute: Callable[..., np.ndarray],
) -> Iterator[tuple[list[list[str]], np.ndarray]]:
    """Chunks of rows, each with what `compute` makes of its notes."""
    from tqdm import tqdm

    model.to(team.device)
    compute = functools.partial(
        compute, model, batch_size=chosen.batch, accelerator=team.accelerator
    )
    with tqdm(total=notes.count, disable=not team.shows_bars, unit="note") as bar:
        for chunk in notes.chunks(CHUNK * chosen.batch * team.size):
            texts = [row[notes.column] for row in chunk]
            yield chunk, read.answers(texts, compute)
            bar.update(len(chunk))


def _done(
    team: Team, chosen: argparse.Namespace, notes: tables.Stream, read: Reading
) -> int:
    for warning in read.warnings():
        team.say(f"Warning: {warning}")
    if team.is_main:
        print(f"Wrote {notes.count:,} rows: {chosen.output}")
    team.leave()
    return 0
