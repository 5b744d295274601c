"""The command `medlm finetune`: from tables of notes to a classifier and a report."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medlm_utils import runtime
from medlm_utils.cli import content, files, many_labels, processes, report, results
from medlm_utils.cli.processes import Team
from medlm_utils.cli.reading import Reading
from medlm_utils.cli.run import Run
from medlm_utils.runtime import MedlmError

if TYPE_CHECKING:
    from medlm_utils import bert

    Groups = argparse._SubParsersAction[argparse.ArgumentParser]

REMINDER = (
    "Reminder: identifiable patient data do not belong on a shared machine. Model, "
    "checkpoint and predictions may reveal the notes that they come from."
)


def add_commands(groups: Groups) -> None:
    """Add the command ``finetune`` to the parser."""
    text = "fine-tune a pretrained encoder to name the label of a note, and report"
    command = groups.add_parser("finetune", help=text, description=text)
    add = command.add_argument
    text = "all notes in one file, split by patient: 60, 20 and 20%%"
    add("--data", metavar="TABLE", type=Path, help=text)
    text = "with --data: split.csv of another run; default: drawn by --seed"
    add("--split", metavar="CSV", type=Path, help=text)
    add("--train", metavar="TABLE", type=Path, help="notes to learn from")
    add("--val", metavar="TABLE", type=Path, help="notes to choose by")
    add("--test", metavar="TABLE", type=Path, help="notes for one look at the end")
    add("--out", metavar="FOLDER", type=Path, required=True, help="made if missing")
    shown = "default: %(default)s"
    text = f"of the notes; {shown}"
    add("--text", metavar="COLUMN", default="text", help=text)
    text = f"of what is to be named; {shown}"
    add("--label", metavar="COLUMN", default="label", help=text)
    text = "a note may have several labels, with this between them, such as '|'"
    add("--multi-label", metavar="SEPARATOR", help=text)
    text = (
        "rare classes count as much as frequent ones; probabilities are then too high"
    )
    add("--class-weights", action="store_true", help=text)
    text = "of whose note it is; default: patient, where there is one"
    add("--patient", metavar="COLUMN", help=text)
    text = (
        "minilm, bert-base-uncased, a folder with an encoder, or owner/name on the "
        f"Hugging Face Hub; {shown}"
    )
    add("--model", metavar="NAME_OR_PATH", default="minilm", help=text)
    add("--epochs", metavar="N", type=int, default=3, help=f"over the notes; {shown}")
    add("--batch", metavar="N", type=int, default=16, help=f"notes a step; {shown}")
    text = "of a note that are read; default: 256, or what the model has places for"
    add("--tokens", metavar="N", type=int, help=text)
    text = f"peak learning rate of the encoder; {shown}"
    add("--rate", metavar="R", type=float, default=1e-4, help=text)
    text = f"share of hidden values left out in training; {shown}"
    add("--dropout", metavar="R", type=float, default=0.1, help=text)
    processes.add_precision(command)
    add("--seed", metavar="S", type=int, default=runtime.SEED, help=shown)
    text = f"steps between two checkpoints; {shown}"
    add("--checkpoint-every", metavar="N", type=int, default=200, help=text)
    text = "go on from the last checkpoint in FOLDER, if there is one"
    add("--resume", action="store_true", help=text)
    command.set_defaults(run=run_finetune)


def run_finetune(chosen: argparse.Namespace) -> int:
    """Check everything, train, and write model, predictions and report."""
    team = Team()
    with team.one_voice():
        team.say(REMINDER)
        run = team.all_do(lambda: Run.prepare(chosen, team.precision(chosen.precision)))
        folder = files.RunFolder(chosen.out, run.identity)
        try:
            needed = run.needed_bytes
            if team.main_does(lambda: folder.enter(chosen.resume, needed)):
                team.say(f"This run is finished. Report: {chosen.out / files.PAGE}")
            else:
                _train(run, team)
        except KeyboardInterrupt:
            team.say("The same command with --resume goes on from the last checkpoint.")
            raise
        finally:
            folder.leave()
    team.leave()
    return 0


def _train(run: Run, team: Team) -> None:
    """Train, ask the best epoch's model about the other parts, and write everything."""
    from medlm_utils import bert

    model = run.model
    read = {name: Reading(model) for name in run.parts}
    rows = {name: read[name].encode(part.text) for name, part in run.parts.items()}
    for name, of_part in read.items():
        of_part.refuse_alike(can_read_pieces=False)
        found = of_part.warnings(can_read_pieces=False)
        run.warnings.extend(f"The {name} notes: {warning}" for warning in found)
    model.to(team.device)
    _announce(run, team)
    tuned = _finetune(run, team, rows)
    logits = {
        name: bert.predict_logits(
            model,
            rows[name],
            precision=run.settings.precision,
            accelerator=team.accelerator,
        )
        for name in list(rows)[1:]
    }
    cut = {name: of_part.cut for name, of_part in read.items()}
    if team.is_main:  # the others need not wait: nothing is left to share
        _write(run, team, tuned, logits, cut)


def _announce(run: Run, team: Team) -> None:
    for warning in run.warnings:
        team.say(f"Warning: {warning}")
    counted = ", ".join(f"{len(part):,} {name}" for name, part in run.parts.items())
    epochs = run.settings.epochs
    team.say(
        f"{counted} notes; {len(run.model.labels)} classes; "
        f"{epochs} {'epoch' if epochs == 1 else 'epochs'} on {team.device}, "
        f"{team.size} {'process' if team.size == 1 else 'processes'}"
    )


def _finetune(run: Run, team: Team, rows: dict[str, list[Any]]) -> bert.Tuned:
    import torch

    from medlm_utils import bert

    try:
        return bert.finetune(
            run.model,
            rows["training"],
            run.numbers("training"),
            rows["validation"],
            run.numbers("validation"),
            run.settings,
            weights=run.weights,
            checkpoint=run.chosen.out / files.CHECKPOINT,
            checkpoint_every=run.chosen.checkpoint_every,
            resume=run.chosen.resume,
            progress=team.shows_bars,
            accelerator=team.accelerator,
        )
    except torch.OutOfMemoryError as error:
        raise MedlmError(
            f"The memory of {team.device} is too small for {run.settings.batch} notes "
            f"of up to {run.settings.longest} tokens at once. Choose a smaller --batch "
            "or --tokens, and another --out."
        ) from error


def _write(
    run: Run,
    team: Team,
    tuned: bert.Tuned,
    logits: dict[str, np.ndarray],
    cut: dict[str, int],
) -> None:
    """Model, predictions, page and, last, the report that says: finished."""
    out, model = run.chosen.out, run.model
    remark = _calibrate(run, logits["validation"])
    model.save(out / files.MODEL)
    if run.split is not None:
        run.split.write(out / files.SPLIT)
    for name, of_part in logits.items():
        answers = content.answers(model, content.shares(model, of_part))
        _write_predictions(out / f"predictions_{name}.csv", run, name, answers)
    team.say(content.epochs_in_words(tuned.loss))
    team.say("Comparing with counting words")
    machine = {"device": team.profile.device, "processes": team.size}
    found = content.content(run, tuned, logits, remark, cut, machine)
    with files.beside(out / files.PAGE) as page:
        page.write(report.page(found))
    files.save_json(out / files.REPORT, found)
    (out / files.CHECKPOINT).unlink(missing_ok=True)
    for part in logits:
        print(f"{part}: {report.in_words(found, part)}")
    print(f"Report: {out / files.PAGE}\nModel: {out / files.MODEL}")


def _calibrate(run: Run, logits: np.ndarray) -> str:
    """Give the model its temperature, and thresholds if it needs them; a remark."""
    model, label = run.model, run.numbers("validation")
    if not run.has_several_labels:
        model.temperature, remark = results.temperature(logits, label)
        return remark
    model.temperature, remark = many_labels.temperature(logits, label)
    p = many_labels.probabilities(logits, model.temperature)
    model.thresholds = many_labels.thresholds(label, p)
    return remark


def _write_predictions(
    path: Path, run: Run, part: str, answers: list[list[str]]
) -> None:
    """Patient, label, prediction and probabilities, in the order of the file."""
    table, labels = run.parts[part], run.model.labels
    patients = [] if table.patient is None else [table.patient]
    with files.beside(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        names = ["patient"] * len(patients)
        writer.writerow([*names, "label", *results.heading(labels)])
        for *known, answer in zip(*patients, table.label, answers, strict=True):
            writer.writerow([*known, *answer])
