"""The command `medlm ct-finetune`: from a folder of CT images to model and report."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medlm_utils import metrics, runtime
from medlm_utils.cli import (
    ct_pictures,
    ct_report,
    ct_results,
    files,
    processes,
    results,
)
from medlm_utils.cli.ct_run import PARTS, WINDOWS, CtRun
from medlm_utils.cli.processes import Team
from medlm_utils.runtime import MedlmError

if TYPE_CHECKING:
    from medlm_utils import resnet

    Groups = argparse._SubParsersAction[argparse.ArgumentParser]

REMINDER = (
    "Reminder: identifiable images of patients do not belong on a shared machine. "
    "Model, checkpoint, predictions and report may reveal the images that they come "
    "from."
)
MODEL = "model.safetensors"
AGGREGATIONS = ("mean", "max", "noisy-or")  # as in ct.by_patient


def add_commands(groups: Groups) -> None:
    """Add the command ``ct-finetune`` to the parser."""
    text = "fine-tune a ResNet-18 to tell the class of CT images, and report by patient"
    command = groups.add_parser("ct-finetune", help=text, description=text)
    add = command.add_argument
    text = "a folder for each class, of PNG, JPEG or DICOM files; or any folder of them"
    add("--images", metavar="FOLDER", type=Path, required=True, help=text)
    text = "table with the columns file and patient, perhaps label and split"
    add("--patients", metavar="CSV", type=Path, help=f"{text}; needed")
    add("--out", metavar="FOLDER", type=Path, required=True, help="made if missing")
    shown = "default: %(default)s"
    text = f"simulated, imagenet, none, or a file of weights; {shown}"
    add("--weights", metavar="W", default="simulated", help=text)
    text = "of two classes, the one that is looked for; by default its name says it"
    add("--positive", metavar="CLASS", help=text)
    text = "bring all images to so many pixels in height and width"
    add("--size", metavar="N", type=int, help=text)
    text = "bring DICOM files to so many mm a pixel; needs --size"
    add("--spacing", metavar="MM", type=float, help=text)
    text = f"of images in HU: {', '.join(WINDOWS)}, or WIDTH,LEVEL in HU; {shown}"
    add("--window", metavar="W", default="lung", help=text)
    text = "PNG files of 16 bits hold HU plus this, such as 32768 or 1024"
    add("--png-offset", metavar="N", type=float, help=text)
    text = "bring pictures of different modes to grey"
    add("--grey", action="store_true", help=text)
    text = "leave out files that cannot be read, and list them"
    add("--skip-bad", action="store_true", help=text)
    add("--epochs", metavar="N", type=int, default=8, help=f"over the images; {shown}")
    add("--batch", metavar="N", type=int, default=32, help=f"images a step; {shown}")
    text = f"peak learning rate; {shown}"
    add("--rate", metavar="R", type=float, default=0.01, help=text)
    text = f"so many of stem and four layers stay as they are; {shown}"
    add("--frozen", metavar="N", type=int, default=0, help=text)
    text = f"how slices make a score of their patient; {shown}"
    add("--by", choices=AGGREGATIONS, default="mean", help=text)
    text = f"that the operating point has on the validation patients; {shown}"
    add("--sensitivity", metavar="S", type=float, default=0.9, help=text)
    add("--seed", metavar="S", type=int, default=runtime.SEED, help=shown)
    text = "believe the table where headers or equal pictures say otherwise"
    add("--trust-table", action="store_true", help=text)
    text = "leave images of patients out of the report"
    add("--no-pictures", action="store_true", help=text)
    text = f"steps between two checkpoints; {shown}"
    add("--checkpoint-every", metavar="N", type=int, default=100, help=text)
    processes.add_precision(command)
    text = "go on from the last checkpoint in FOLDER, if there is one"
    add("--resume", action="store_true", help=text)
    command.set_defaults(run=run_finetune)


def run_finetune(chosen: argparse.Namespace) -> int:
    """Check everything, train, and write model, predictions and report."""
    team = Team()
    with team.one_voice():
        team.say(REMINDER)
        run = team.all_do(lambda: CtRun.prepare(chosen, team))
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


# Training -----------------------------------------------------------------------------


def _train(run: CtRun, team: Team) -> None:
    """Train, ask the best model about the other parts, and write everything."""
    from medlm_utils import resnet

    for warning in run.warnings:
        team.say(f"Warning: {warning}")
    counted = ", ".join(f"{len(rows):,} {part}" for part, rows in run.rows.items())
    if run.images.why and len(run.images.classes) == 2:
        team.say(f"positive class: {run.images.classes[1]} ({run.images.why})")
    team.say(
        f"{counted} images of {len(set(run.images.patient)):,} patients; "
        f"{', '.join(run.images.classes)}; {run.settings.epochs} epochs on "
        f"{team.device}, {team.size} process{'es' * (team.size > 1)}"
    )
    run.model.to(team.device)
    tuned = _finetune(run, team)
    logits = {
        part: resnet.predict(
            run.model,
            run.images.images[rows],
            run.window,
            precision=run.settings.precision,
            accelerator=team.accelerator,
        )
        for part, rows in run.rows.items()
        if part != "training"
    }
    if team.is_main:  # the others need not wait: nothing is left to share
        _write(run, team, tuned, logits)


def _finetune(run: CtRun, team: Team) -> resnet.Tuned:
    import torch

    from medlm_utils import resnet

    images, label = run.images.images, run.images.label
    training, validation = (run.rows[part] for part in PARTS[:2])
    try:
        return resnet.finetune(
            run.model,
            images[training],
            label[training],
            images[validation],
            label[validation],
            run.settings,
            window=run.window,
            checkpoint=run.chosen.out / files.CHECKPOINT,
            checkpoint_every=run.chosen.checkpoint_every,
            resume=run.chosen.resume,
            progress=team.shows_bars,
            accelerator=team.accelerator,
        )
    except torch.OutOfMemoryError as error:
        raise MedlmError(
            f"The memory of {team.device} is too small for {run.settings.batch} images "
            f"of {images.shape[1]} x {images.shape[2]} pixels at once. Choose a "
            "smaller --batch or --size, and another --out."
        ) from error


def _write(
    run: CtRun, team: Team, tuned: resnet.Tuned, logits: dict[str, np.ndarray]
) -> None:
    """Model, predictions, page and, last, the report that says: finished."""
    from medlm_utils import resnet

    out, classes = run.chosen.out, run.images.classes
    validation = run.images.label[run.rows["validation"]]
    temperature, remark = results.temperature(logits["validation"], validation)
    answers = {part: _answers(run, part, z, temperature) for part, z in logits.items()}
    threshold = _threshold(run, answers["validation"])
    about = _about(run, temperature, threshold)
    resnet.save(run.model, out / MODEL, about)
    for part, found in answers.items():
        ct_results.write_slices(out / f"predictions_{part}_slices.csv", classes, found)
        whole, path = found.patients, out / f"predictions_{part}_patients.csv"
        ct_results.write_patients(
            path, classes, whole.names, whole.shares, threshold, whole.label
        )
    content = _content(run, team, tuned, answers, about, remark)
    with files.beside(out / files.PAGE) as page:
        page.write(ct_report.page(content, _pictures(run, answers, threshold)))
    files.save_json(out / files.REPORT, content)
    (out / files.CHECKPOINT).unlink(missing_ok=True)
    for part in answers:
        print(f"{part}: {ct_report.in_words(content, part)}")
    print(f"Report: {out / files.PAGE}\nModel: {out / MODEL}")


def _answers(
    run: CtRun, part: str, logits: np.ndarray, temperature: float
) -> ct_results.Answers:
    rows, images = run.rows[part], run.images
    return ct_results.Answers(
        files=[images.files[row] for row in rows],
        patient=images.patient[rows],
        label=images.label[rows],
        logits=logits,
        shares=results.probabilities(logits, temperature),
        by=run.chosen.by,
    )


def _threshold(run: CtRun, found: ct_results.Answers) -> float | None:
    """The operating point, chosen on the validation patients; two classes only."""
    if len(run.images.classes) != 2:
        return None
    patients = found.patients
    return metrics.threshold_for_sensitivity(
        patients.label, patients.shares[:, 1], run.chosen.sensitivity
    )


def _about(run: CtRun, temperature: float, threshold: float | None) -> dict[str, Any]:
    """What `medlm ct-predict` has to know of a model."""
    height, width = run.images.images.shape[1:]
    return {
        "kind": "ct-finetune",
        "classes": list(run.images.classes),
        "why_positive": run.images.why if len(run.images.classes) == 2 else "",
        "images": "HU" if run.window else "grey",
        "window": run.window and list(run.window),
        "height": height,
        "width": width,
        "resized": run.chosen.size is not None,
        "spacing_mm": run.chosen.spacing,
        "png_offset": run.chosen.png_offset,
        "by": run.chosen.by,
        "temperature": temperature,
        "threshold": threshold,
        "sensitivity_wanted": run.chosen.sensitivity,
        "seed": run.settings.seed,
        "command": run.command,
    }


def _pictures(
    run: CtRun, answers: dict[str, ct_results.Answers], threshold: float | None
) -> list[ct_pictures.Picture]:
    """Of the last part: test where there is one, else validation."""
    if run.chosen.no_pictures:
        return []
    part, found = list(answers.items())[-1]
    images = run.images.images[run.rows[part]]
    return ct_pictures.of_part(
        run.model, images, run.window, found, run.images.classes, threshold
    )


# What the report is made of -----------------------------------------------------------


def _content(
    run: CtRun,
    team: Team,
    tuned: resnet.Tuned,
    answers: dict[str, ct_results.Answers],
    about: dict[str, Any],
    remark: str,
) -> dict[str, Any]:
    """What ``report.json`` holds."""
    scores: dict[str, Any] = {}
    classes, point, blind = run.images.classes, about["threshold"], _without_pixels(run)
    for part, found in answers.items():
        of_part = ct_results.measured(
            found, classes, point, _majority(run), blind[run.rows[part]]
        )
        scores |= {f"{part}_{name}": value for name, value in of_part.items()}
    seconds = time.monotonic() - run.started
    return {
        **runtime.results(scores, seconds, team.profile.device),
        "seed": run.settings.seed,
        "command": run.command,
        "processes": team.size,
        "settings": dataclasses.asdict(run.settings),
        "warnings": run.warnings + ct_results.blind_warning(scores, list(answers)[-1]),
        "skipped": [list(pair) for pair in run.images.skipped],
        "model": {
            **about,
            "weights": Path(run.chosen.weights).name,
            "weights_sha256": run.sha256["weights"],
            "parameters": run.weights,
            "trained": run.trained,
            "temperature_remark": remark,
        },
        "data": {
            part: ct_results.counts(
                run.images.patient[rows], run.images.label[rows], classes
            )
            for part, rows in run.rows.items()
        },
        "images_sha256": run.sha256["images"],
        "history": {
            "loss": [round(loss, 5) for loss in tuned.history.loss],
            "steps_per_epoch": len(tuned.history) // run.settings.epochs,
            "validation_loss": list(tuned.loss),
            "steps": list(tuned.steps),
            "best": tuned.best,
        },
        "parts": {part: ct_results.part(a, point) for part, a in answers.items()},
    }


def _majority(run: CtRun) -> int:
    """The class that most training patients have."""
    from medlm_utils import ct

    rows = run.rows["training"]
    _, label = ct.by_patient(run.images.patient[rows], run.images.label[rows])
    return results.majority(label.astype(int))


def _without_pixels(run: CtRun) -> np.ndarray:
    """(slices,) what a forest says that knows the files and has seen no image.

    It learns on the training files. Where it is good, classes differ in how they were
    stored, and a network can learn that too.
    """
    from sklearn.ensemble import RandomForestClassifier

    training = run.rows["training"]
    forest = RandomForestClassifier(200, min_samples_leaf=3, random_state=0)
    forest.fit(run.facts[training], run.images.label[training])
    return forest.predict_proba(run.facts)[:, -1]
