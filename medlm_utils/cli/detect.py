"""The command `medlm detect`: scores, ranks and the most unusual rows of a file."""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import functools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from medlm_utils import anomaly, runtime
from medlm_utils.cli import (
    columns,
    detect_report,
    files,
    predict,
    processes,
    reading,
    sources,
    tables,
)
from medlm_utils.cli.processes import Team
from medlm_utils.cli.search import Found, Plan
from medlm_utils.runtime import MedlmError

if TYPE_CHECKING:
    from medlm_utils import bert

    Groups = argparse._SubParsersAction[argparse.ArgumentParser]

NEAREST = 3  # usual neighbours that are shown beside a flagged row
ADDED = (
    *("row_number", "anomaly_score", "rank", "flagged"),
    *(f"nearest_{n}" for n in range(1, NEAREST + 1)),
    *(f"distance_{n}" for n in range(1, NEAREST + 1)),
)
MOST = 20  # rows that are flagged where --budget says nothing, or SHARE of them
SHARE = 0.1
_SPARE_BYTES = 2_000_000  # of the report and its page
_REFERENCE = 1000  # usual rows whose scores say what is usual
# By which share of their length equal rows may differ: as they are computed with, and
# as an encoder makes them of one text in batches of different width.
_ROUNDING = 1e-6
_OF_AN_ENCODER = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-2}

REMINDER = (
    "Reminder: identifiable patient data do not belong on a shared machine. Scores and "
    "report hold the most unusual rows, whose patients are the easiest to recognise."
)


def add_commands(groups: Groups) -> None:
    """Add the command ``detect`` to the parser."""
    text = "score how unusual each row is, and report the most unusual ones"
    command = groups.add_parser("detect", help=text, description=text)
    add = command.add_argument
    text = "CSV of texts or of numbers, or an .npy of `medlm embed`"
    add("--input", metavar="FILE", type=Path, required=True, help=text)
    text = "the rows and their scores; the report gets its name"
    add("--output", metavar="CSV", type=Path, required=True, help=text)
    text = "whose text is embedded, as title,abstract; with an .npy only shown"
    add("--text", metavar="COLUMNS", help=text)
    text = "of numbers; default without --text: all that are measurements"
    add("--columns", metavar="COLUMNS", help=text)
    text = "that are not to be used, where --columns names none"
    add("--exclude", metavar="COLUMNS", help=text)
    add("--rows", metavar="CSV", type=Path, help="the rows that an .npy is made of")
    text = "usual rows to compare with, a file like the input; default: the input"
    add("--fit", metavar="FILE", type=Path, help=text)
    shown = "default: %(default)s"
    add("--detector", metavar="NAME", default="knn", help=shown)
    text = "euclidean or cosine; default: cosine for embeddings, else euclidean"
    add("--metric", metavar="NAME", help=text)
    text = f"how many rows to flag; default: a tenth of them, at most {MOST}"
    add("--budget", metavar="N", type=int, help=text)
    text = f"of detectors that draw; {shown}"
    add("--seed", metavar="S", type=int, default=runtime.SEED, help=text)
    text = f"what embeds a text, as for `medlm embed`; {shown}"
    add("--model", metavar="NAME_OR_PATH", default="minilm", help=text)
    add("--batch", metavar="N", type=int, default=64, help=f"notes at once; {shown}")
    reading.add_options(command)
    processes.add_precision(command)
    add("--force", action="store_true", help="replace the output if it is there")
    command.set_defaults(run=run_detect)


def run_detect(chosen: argparse.Namespace) -> int:
    """Check everything, score all rows, and write the three files."""
    team = Team()
    with team.one_voice():
        _refuse_a_team(team)
        team.say(REMINDER)
        plan = prepare(chosen)
        model = _text_model(plan)
        if model is not None:
            settled = predict.precision_of(chosen, model, team)
            plan = dataclasses.replace(plan, precision=settled)
        _check_space(plan, model)
        read = _readings(plan, model)
        _announce(plan, team)
        rows, *more = (
            vectors(plan, source, model, one, team)
            for source, one in zip(plan.sources, read, strict=True)
        )
        usual = more[0] if more else None
        team.say(f"Scoring {plan.source.count:,} rows with {chosen.detector}")
        found = find(plan, rows, usual, team)
        for warning in found.warnings:
            team.say(f"Warning: {warning}")
        _write(plan, found, read, team)
    return 0


# Before any work ----------------------------------------------------------------------


def prepare(chosen: argparse.Namespace) -> Plan:
    """Read the files and refuse what cannot be scored.

    Raises
    ------
    MedlmError
        For every fault of options and files.
    """
    started = time.monotonic()
    _check_options(chosen)
    texts, named = (_names(chosen, name) for name in ("text", "columns"))
    excluded = _names(chosen, "exclude")
    is_table = not texts and not _is_array(chosen.input)
    metric = chosen.metric or ("euclidean" if is_table else "cosine")
    detector = anomaly.detector(chosen.detector, seed=chosen.seed)
    if isinstance(detector, anomaly.Knn):
        detector = dataclasses.replace(detector, metric=metric)
    if _is_array(chosen.input):
        source = sources.read_array(chosen.input, chosen.rows, texts)
    elif texts:
        source = sources.read_texts(chosen.input, texts, must_differ=not chosen.fit)
    else:
        source = sources.read_columns(chosen.input, named, excluded)
    usual = _read_usual(chosen, source, texts) if chosen.fit else None
    budget = chosen.budget or max(1, min(MOST, int(SHARE * source.count)))
    plan = Plan(chosen, source, usual, detector, metric, budget, started)
    _check_counts(plan)
    if is_table:
        if usual and not named:
            source, usual = sources.without_counters(source, usual)
        source, usual = sources.without_constant(source, usual, bool(named))
        plan = dataclasses.replace(plan, source=source, usual=usual)
    else:
        _check_vectors(plan)
    _check_outputs(plan)
    return plan


def _check_options(chosen: argparse.Namespace) -> None:
    """Refuse what is wrong, or does not go together, whatever the files hold."""
    for name in ("budget", "batch"):
        value = getattr(chosen, name)
        if value is not None and value < 1:
            raise MedlmError(f"--{name} is {value}; expected at least 1.")
    if chosen.metric not in (None, "euclidean", "cosine"):
        raise MedlmError(
            f"--metric is {chosen.metric!r}; expected euclidean or cosine."
        )
    given, is_array = chosen.input, _is_array(chosen.input)
    has_text, has_columns = chosen.text is not None, chosen.columns is not None
    no_names = f"{given} is an array, whose columns have no names"
    does_not_fit = {
        "Got --text and --columns; expected one of them.": has_text and has_columns,
        f"{no_names}; leave out --columns.": is_array and has_columns,
        "--exclude is for columns of numbers that --columns does not name; expected it "
        "without --columns, without --text and with a table.": (
            chosen.exclude is not None and (has_text or has_columns or is_array)
        ),
        f"{no_names}; expected with --text the CSV file that it was made of: name it "
        "with --rows.": is_array and has_text and chosen.rows is None,
        f"--rows belongs to an .npy file, and --input is {given}. Leave it out.": (
            not is_array and chosen.rows is not None
        ),
        "--metric is 'cosine', which is for embeddings; columns of numbers are "
        "compared by euclidean.": (
            chosen.metric == "cosine" and not is_array and not has_text
        ),
    }
    for words, is_wrong in does_not_fit.items():
        if is_wrong:
            raise MedlmError(words)
    if not has_text or is_array:
        for option, is_given in {
            "--tokens": chosen.tokens is not None,
            "--long": chosen.long != "cut",
        }.items():
            if is_given:
                raise MedlmError(
                    f"{option} is for texts that are embedded, with --text; {given} "
                    "is read as numbers. Leave it out."
                )
    if chosen.fit is not None:
        _check_fit(chosen.fit, given)


def _check_fit(fit: Path, given: Path) -> None:
    if fit.resolve() == given.resolve():
        raise MedlmError(
            f"--fit and --input are both {fit}; expected other rows, known to be "
            "usual. Without --fit each row is judged among the others."
        )
    if _is_array(fit) != _is_array(given):
        raise MedlmError(
            f"--fit is {fit} and --input {given}; expected two CSV files, or two .npy "
            "files of the same model."
        )


def _is_array(path: Path) -> bool:
    return path.suffix.lower() == ".npy"


def _names(chosen: argparse.Namespace, option: str) -> tuple[str, ...]:
    """The columns that an option names; a name with a comma stands in quotes."""
    words = getattr(chosen, option)
    if words is None:
        return ()
    fields = next(csv.reader([words], skipinitialspace=True), [])
    names = tuple(name.strip() for name in fields)
    if not names or not all(names) or len(set(names)) < len(names):
        raise MedlmError(
            f"--{option} is {words!r}; expected names of columns, each once, with "
            "commas between them."
        )
    return names


def _read_usual(
    chosen: argparse.Namespace, source: sources.Source, texts: Sequence[str]
) -> sources.Source:
    """The rows to fit on, which must be like those of the source."""
    path, is_named = chosen.fit, chosen.columns is not None
    if source.columns:
        lacking = sources.lacking(path, source.columns)
        if lacking and not is_named:
            raise MedlmError(
                f"{path} has no column {lacking[0]!r}, which is compared in "
                f"{source.path}; expected its columns. Leave it out with --exclude."
            )
        return sources.read_columns(path, source.columns, is_named=is_named)
    if source.values is None:
        return sources.read_texts(path, texts)
    usual = sources.read_array(path, None, ())
    widths = [rows.values.shape[1] for rows in (usual, source)]  # type: ignore[union-attr]
    if widths[0] != widths[1]:
        raise MedlmError(
            f"{path} has {widths[0]:,} numbers a row and {source.path} has "
            f"{widths[1]:,}; expected vectors of the same model."
        )
    return usual


def _check_counts(plan: Plan) -> None:
    source, fitted, budget = plan.source, plan.fitted, plan.budget
    if budget > source.count:
        raise MedlmError(
            f"--budget is {budget:,}, and {source.path} has {source.count:,} rows; "
            "expected at most as many. Choose a smaller one."
        )
    least = plan.detector.least_rows()
    if fitted.count < least:
        rows = "1 row" if fitted.count == 1 else f"{fitted.count:,} rows"
        raise MedlmError(
            f"{fitted.path} has {rows}; {plan.chosen.detector} "
            f"compares each row with {least - 1} others, and needs at least {least}."
        )


def _check_vectors(plan: Plan) -> None:
    source, fitted = plan.source, plan.fitted
    _refuse_equal(fitted)
    if plan.metric == "cosine":
        _refuse_zeros(source)
        _refuse_zeros(fitted)


def _refuse_equal(source: sources.Source) -> None:
    """Vectors of which none differs; one column that does not is no harm."""
    if source.values is None:
        return
    low = high = source.values[:1]
    for _, chunk in sources.chunks_of(source.values):
        low = np.minimum(low, chunk.min(axis=0))
        high = np.maximum(high, chunk.max(axis=0))
    if len(anomaly.constant_columns(np.vstack([low, high]))) == low.size:
        raise MedlmError(
            f"All {source.count:,} rows of {source.path} are equal; expected rows that "
            "differ."
        )


def _refuse_zeros(source: sources.Source) -> None:
    if source.values is None:
        return
    for start, chunk in sources.chunks_of(source.values):
        zero = np.flatnonzero(~chunk.any(axis=1))
        if len(zero):
            raise MedlmError(
                f"{source.path}, row {start + zero[0] + 1:,} (counted from 1) holds "
                "zeros only and has no direction; expected other numbers for cosine. "
                "Choose --metric euclidean, or leave the row out."
            )


def _check_outputs(plan: Plan) -> None:
    chosen, source = plan.chosen, plan.source
    if source.heading:
        taken = [name for name in ADDED if name in source.heading]
        if taken:
            raise MedlmError(
                f"{source.table} has a column {taken[0]!r} already, which is to be "
                "added; rename it."
            )
    inputs = [*source.files, *(plan.usual.files if plan.usual else [])]
    copied = source.table.stat().st_size if source.table else 0
    needed = copied + 80 * source.count + _SPARE_BYTES
    for path in plan.outputs.values():
        files.check_output(path, inputs, chosen.force, needed)
    files.check_ending(chosen.output, ".csv")


# From rows to vectors -----------------------------------------------------------------


def _refuse_a_team(team: Team) -> None:
    if team.size > 1:
        raise MedlmError(
            f"medlm detect was started in {team.size} processes; expected one. Let "
            "them embed with medlm embed, then give its .npy to medlm detect alone, "
            "with --rows."
        )


def _text_model(plan: Plan) -> bert.Classifier | None:
    """What embeds the texts; None where there are none to embed."""
    if plan.source.values is not None:
        return None
    model = predict.load_encoder(plan.chosen.model)
    if model.tokenizer is None:
        raise MedlmError(
            f"{plan.chosen.model} was saved without a tokenizer; expected one, to read "
            "text."
        )
    return model


def _readings(
    plan: Plan, model: bert.Classifier | None
) -> list[reading.Reading | None]:
    """What reads the texts of the input and of the usual rows, each with its count."""
    chosen = plan.chosen
    return [
        reading.Reading(model, chosen.tokens, chosen.long) if model else None
        for _ in plan.sources
    ]


def _check_space(plan: Plan, model: bert.Classifier | None) -> None:
    """Refuse a disk on which the vectors have no place."""
    folder, needed = plan.chosen.output.parent, _SPARE_BYTES
    for source in plan.sources:
        if model is not None:
            needed += 4 * model.encoder.config.hidden_size * source.count
        elif not source.columns and source.values is not None:
            needed += source.values.nbytes
    files.check_space(folder, shutil.disk_usage(folder).free, needed)


def _announce(plan: Plan, team: Team) -> None:
    source = plan.source
    if source.columns:
        team.say(f"Columns: {', '.join(source.columns)}")
    for name, why in source.left_out.items():
        team.say(f"Left out: {tables.listing([name])}, {why}")
    for warning in plan.warnings:
        team.say(f"Warning: {warning}")
    how = f"usual rows of {plan.usual.path.name}" if plan.usual else "the others"
    few = "1 is" if plan.budget == 1 else f"{plan.budget:,} are"
    why = " (a tenth, at most 20; --budget says more)"
    team.say(
        f"{source.count:,} rows, each compared with {how}; {few} to be flagged"
        f"{why if plan.chosen.budget is None else ''}"
    )


def vectors(
    plan: Plan,
    source: sources.Source,
    model: bert.Classifier | None,
    read: reading.Reading | None,
    team: Team,
) -> np.ndarray:
    """What a detector gets: (rows, features), on the disk unless they are columns.

    Columns are centred at the median of the fitted rows and divided by their spread,
    so that no unit of measurement counts more than another. For the metric cosine
    each row gets length 1, whatever the detector: then only the angle counts.
    """
    values = source.values
    if source.columns:
        assert values is not None and plan.fitted.values is not None
        apart = deviations(plan.fitted.values, values)
        _refuse_far(source, apart)
        return apart
    if values is not None and plan.metric == "euclidean" and _is_plain(values):
        return values
    if values is None:
        assert model is not None and read is not None
        width, kind = model.encoder.config.hidden_size, np.dtype(np.float32)
        pieces = _embedded(plan, source, model, read, team)
    else:
        width, kind = values.shape[1], np.result_type(values.dtype, np.float32)
        pieces = (chunk for _, chunk in sources.chunks_of(values))
    if plan.metric == "cosine":
        pieces = map(anomaly.unit_length, pieces)
    return _on_disk(pieces, (source.count, width), kind, plan.chosen.output.parent)


def _is_plain(values: np.ndarray) -> bool:
    """Whether a detector can read the numbers where they lie, without a copy."""
    return values.flags.c_contiguous and values.dtype in (np.float32, np.float64)


def deviations(fitted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(rows, columns) robust z, with its sign: how far from the fitted rows' median."""
    known = anomaly.RobustZ().fit(fitted)
    with np.errstate(over="ignore"):
        return (values - known.median_) / known.spread_


def _refuse_far(source: sources.Source, apart: np.ndarray) -> None:
    """Numbers whose squares overflow though those of the file do not."""
    far = np.argwhere(np.abs(apart) > columns.LARGEST)
    if len(far):
        row, place = far[0]
        assert source.values is not None
        raise MedlmError(
            f"{source.path}, row {row + 1:,} (counted from 1), column "
            f"{source.columns[place]!r}: {source.values[row, place]:g} is more than "
            "1e15 times the spread from the median; expected numbers on one scale. "
            "Correct it, or leave the column out with --exclude."
        )


def _embedded(
    plan: Plan,
    source: sources.Source,
    model: bert.Classifier,
    read: reading.Reading,
    team: Team,
) -> Iterator[np.ndarray]:
    """The vectors of all texts, in pieces, made as `medlm embed` makes them."""
    from medlm_utils import bert

    compute = functools.partial(bert.embed, precision=plan.precision)
    notes = sources.Texts(source.path, ("text",), 0, source.count, source)
    for _, piece in predict.computed(plan.chosen, team, notes, model, read, compute):
        yield piece
    read.refuse_alike()
    for warning in read.warnings():
        team.say(f"Warning: {source.path.name}: {warning}")


def _on_disk(
    pieces: Iterable[np.ndarray], shape: tuple[int, int], kind: np.dtype, folder: Path
) -> np.ndarray:
    """The rows in a file without a name, which is gone when the process is.

    Written, not mapped while it grows: a full disk is an error then, not a crash.
    """
    with contextlib.ExitStack() as stack:
        try:
            file: IO[bytes] = stack.enter_context(
                tempfile.TemporaryFile(dir=folder, prefix="vectors-")
            )
            for piece in pieces:
                file.write(np.ascontiguousarray(piece, kind).data)
            file.flush()
        except OSError as error:
            raise files.unwritable(folder, error) from error
        return np.memmap(file, kind, "r", shape=shape)


# From vectors to what is found --------------------------------------------------------


def find(plan: Plan, rows: np.ndarray, usual: np.ndarray | None, team: Team) -> Found:
    """Score all rows, flag the highest, and look for usual rows near them.

    Parameters
    ----------
    plan
        With the detector.
    rows, usual
        (rows, features) to score, and to fit on; None: each row is judged among the
        others.
    team
        Shows the progress.
    """
    scores = _scores(plan, rows, usual, team)
    if not np.isfinite(scores).all():
        row = int(np.argmin(np.isfinite(scores)))
        raise MedlmError(
            f"{plan.chosen.detector} gives row {row + 1:,} (counted from 1) the score "
            f"{scores[row]}; expected finite scores. Choose another --detector."
        )
    order = np.argsort(-scores, kind="stable")
    middle = _middle(plan, usual, scores)
    rounding = _rounding(plan, rows, middle)
    above = int((scores > middle + rounding).sum())
    if not above:
        raise _nothing_stands_out(plan, scores, middle)
    flagged = order[: min(plan.budget, above)]
    asked = np.asarray(rows[flagged])
    if usual is None:
        near = _nearest(rows, flagged, asked, plan.metric)
    else:
        near = _nearest(usual, np.empty(0, int), asked, plan.metric)
    apart = None
    if plan.source.columns:
        raw, fitted = plan.source.values, plan.fitted.values
        assert raw is not None and fitted is not None
        apart = deviations(fitted, raw[flagged])
    counted = (len(flagged), *near, apart)
    return Found(scores, order, *counted, middle, rounding, plan.budget)


def _middle(plan: Plan, usual: np.ndarray | None, scores: np.ndarray) -> float:
    """What a row in the middle of those that are fitted on scores."""
    if usual is None:
        return float(np.median(scores))
    draw = np.random.default_rng(plan.chosen.seed)
    places = np.sort(draw.permutation(len(usual))[:_REFERENCE])
    return float(np.median(plan.detector.anomaly_score(np.asarray(usual[places]))))


def _rounding(plan: Plan, rows: np.ndarray, middle: float) -> float:
    """By how much scores may differ that are the same."""
    share = _OF_AN_ENCODER[plan.precision] if plan.precision else _ROUNDING
    if not isinstance(plan.detector, anomaly.Knn):
        return share * abs(middle)
    if plan.metric == "cosine":
        return share**2 / 2  # as 1 - cosine is half a squared distance
    lengths = [np.linalg.norm(chunk, axis=1) for _, chunk in sources.chunks_of(rows)]
    return share * float(np.median(np.concatenate(lengths)))


def _nothing_stands_out(plan: Plan, scores: np.ndarray, middle: float) -> MedlmError:
    whose = f"of {plan.fitted.path.name} " if plan.usual else ""
    return MedlmError(
        f"No row of {plan.source.path} stands out: the highest of its "
        f"{len(scores):,} scores is {scores.max():.3g}, and that of the middle row "
        f"{whose}is {middle:.3g}; what differs is rounding. Expected rows that differ. "
        "Are most of them equal?"
    )


def _scores(
    plan: Plan, rows: np.ndarray, usual: np.ndarray | None, team: Team
) -> np.ndarray:
    from tqdm import tqdm

    detector = plan.detector
    if usual is None:
        return detector.fit(rows).training_scores()
    detector.fit(usual)
    scores = np.empty(len(rows))
    with tqdm(total=len(rows), disable=not team.shows_bars, unit="row") as bar:
        for start, chunk in sources.chunks_of(rows):
            scores[start : start + len(chunk)] = detector.anomaly_score(chunk)
            bar.update(len(chunk))
    return scores


def _nearest(
    rows: np.ndarray, left_out: np.ndarray, asked: np.ndarray, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Places and distances of the nearest rows, piece by piece.

    Parameters
    ----------
    rows
        (rows, features) to look among.
    left_out
        Rows that do not count.
    asked
        (asked, features) whose neighbours are wanted.
    metric
        ``"euclidean"`` or ``"cosine"``.

    Returns
    -------
    tuple of ndarray
        (asked, k) each, the nearest first; k is `NEAREST`, or fewer if there are.
    """
    place = np.empty((len(asked), 0), int)
    distance = np.empty((len(asked), 0))
    counts = np.ones(len(rows), bool)
    counts[left_out] = False
    for start, chunk in sources.chunks_of(rows):
        kept = np.flatnonzero(counts[start : start + len(chunk)])
        if not len(kept):
            continue
        k = min(NEAREST, len(kept))
        near, far = anomaly.nearest(chunk[kept], asked, k, metric)
        place = np.hstack([place, start + kept[near]])
        distance = np.hstack([distance, far])
        best = np.argsort(distance, axis=1, kind="stable")[:, :NEAREST]
        place = np.take_along_axis(place, best, axis=1)
        distance = np.take_along_axis(distance, best, axis=1)
    return place, distance


# Writing ------------------------------------------------------------------------------


def _write(
    plan: Plan, found: Found, read: list[reading.Reading | None], team: Team
) -> None:
    """The scores, the page and the report: all three or none."""
    content = detect_report.content(plan, found, read, team.profile.device)
    page = detect_report.page(content)
    with contextlib.ExitStack() as stack:
        # The scores are opened first, so that they get their name last.
        opened = {
            kind: stack.enter_context(files.beside(path))
            for kind, path in plan.outputs.items()
        }
        _write_rows(opened["csv"], plan.source, found)
        opened["html"].write(page)
        opened["json"].write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        for file in opened.values():  # a full disk shows before the first has its name
            file.flush()
            os.fsync(file.fileno())
    print(
        f"Flagged {found.budget:,} of {plan.source.count:,} rows, from a score of "
        f"{found.threshold:.6g}: {plan.outputs['csv']}\nReport: {plan.outputs['html']}"
    )


def _write_rows(file: IO[str], source: sources.Source, found: Found) -> None:
    """All rows in their order, with what was found."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*source.heading, *ADDED])
    rank = np.empty(source.count, int)
    rank[found.order] = np.arange(1, source.count + 1)
    empty = [""] * (2 * NEAREST)
    for row, fields in enumerate(source.fields()):
        is_flagged = rank[row] <= found.budget
        near = _neighbour_cells(found, rank[row] - 1) if is_flagged else empty
        score = f"{found.scores[row]:.9g}"
        writer.writerow([*fields, row + 1, score, rank[row], int(is_flagged), *near])


def _neighbour_cells(found: Found, place: int) -> list[str]:
    """Row numbers, then distances; empty where there are fewer neighbours."""
    numbers = [str(row + 1) for row in found.nearest[place]]
    distances = [f"{far:.6g}" for far in found.distance[place]]
    missing = [""] * (NEAREST - len(numbers))
    return [*numbers, *missing, *distances, *missing]
