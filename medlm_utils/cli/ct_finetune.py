"""The command `medlm ct-finetune`: from a folder of CT images to model and report."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medlm_utils import metrics, runtime
from medlm_utils.cli import ct_report, files, results
from medlm_utils.cli.processes import Team
from medlm_utils.runtime import MedlmError

if TYPE_CHECKING:
    from medlm_utils import ct, image_folder, resnet

    Groups = argparse._SubParsersAction[argparse.ArgumentParser]

REMINDER = (
    "Reminder: identifiable images of patients do not belong on a shared machine. "
    "Model, checkpoint and predictions may reveal the images that they come from."
)
MODEL = "model.safetensors"
PARTS = ("training", "validation", "test")
SHARES = (0.6, 0.2, 0.2)  # where the table has no column split
WINDOWS = ("lung", "mediastinum")
AGGREGATIONS = ("mean", "max", "noisy-or")  # as in ct.by_patient
# What the column split may say.
_WORDS = {"train": "training", "val": "validation", "valid": "validation"}
_SPARE_BYTES = 10_000_000  # of predictions and the report


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
    text = "bring all images to so many pixels in height and width"
    add("--size", metavar="N", type=int, help=text)
    text = f"of DICOM files; {shown}"
    add("--window", choices=WINDOWS, default="lung", help=text)
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
    text = f"steps between two checkpoints; {shown}"
    add("--checkpoint-every", metavar="N", type=int, default=100, help=text)
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


@dataclasses.dataclass
class CtRun:
    """A fine-tuning of which no fault is known.

    Parameters
    ----------
    chosen
        The options of the command.
    images
        All of them, whose they are and what they show.
    rows
        ``"training"``, ``"validation"`` and ``"test"`` to row numbers.
    model, settings
        As `resnet.finetune` takes them.
    sha256
        Of images, labels, patients and parts; and of the weights at the start.
    warnings
        What makes the results look better than they are.
    started
        Of `time.monotonic`.
    """

    chosen: argparse.Namespace
    images: image_folder.Folder
    rows: dict[str, np.ndarray]
    model: resnet.ResNet18
    settings: resnet.FineTuning
    sha256: dict[str, str]
    warnings: list[str]
    started: float

    @classmethod
    def prepare(cls, chosen: argparse.Namespace, team: Team) -> CtRun:
        """Read the images and load the weights.

        Raises
        ------
        MedlmError
            For every fault of files, table and settings.
        """
        from medlm_utils import image_folder, resnet

        started = time.monotonic()
        _check_options(chosen)
        settings = resnet.FineTuning(
            epochs=chosen.epochs,
            batch=chosen.batch,
            rate=chosen.rate,
            head_rate=2 * chosen.rate,
            frozen_stages=chosen.frozen,
            head_first=chosen.weights != "none",
            seed=chosen.seed,
            precision=runtime.fast_precision(team.profile),
        )
        images = image_folder.read_folder(
            chosen.images, chosen.patients, chosen.size, chosen.grey, chosen.skip_bad
        )
        rows = _parts(images, chosen.seed)
        warnings = _warnings(images, rows)
        runtime.seed_everything(chosen.seed)
        weights = None if chosen.weights == "none" else chosen.weights
        model = resnet.build(len(images.classes), weights, seed=chosen.seed)
        resnet.freeze(model, chosen.frozen)
        sha256 = {"images": _digest(images, rows), "weights": _digest_of(model)}
        return cls(chosen, images, rows, model, settings, sha256, warnings, started)

    @property
    def window(self) -> ct.Window | None:
        """Of DICOM files; None for pictures."""
        from medlm_utils import ct

        windows = {"lung": ct.LUNG, "mediastinum": ct.MEDIASTINUM}
        return windows[self.chosen.window] if self.images.window else None

    @property
    def identity(self) -> dict[str, Any]:
        """What the resulting weights depend on, in short."""
        return {
            "command": "ct-finetune",
            "images": self.sha256["images"][:12],
            "weights": self.sha256["weights"][:12],
            "window": self.chosen.window if self.window else None,
            "by": self.chosen.by,
            "sensitivity": self.chosen.sensitivity,
            **dataclasses.asdict(self.settings),
        }

    @property
    def weights(self) -> int:
        """How many weights the model has."""
        return sum(weight.numel() for weight in self.model.parameters())

    @property
    def trained(self) -> int:
        """How many of them are learned."""
        return sum(w.numel() for w in self.model.parameters() if w.requires_grad)

    @property
    def needed_bytes(self) -> int:
        """Of the model and two checkpoints, since one is written beside the other."""
        checkpoint = self.weights + 2 * self.trained  # momentum, the best weights
        return 4 * (2 * checkpoint + self.weights) + _SPARE_BYTES

    @property
    def command(self) -> str:
        """The command with its settings; of paths only the last part."""
        words = ["medlm", "ct-finetune"]
        left_out = {"run", "resume", "checkpoint_every"}
        for name, value in vars(self.chosen).items():
            option = f"--{name.replace('_', '-')}"
            if name in left_out or value is None or value is False:
                continue
            if value is True:
                words.append(option)
            else:
                is_path = isinstance(value, Path) or name == "weights"
                words += [option, Path(value).name if is_path else str(value)]
        return shlex.join(words)


def _check_options(chosen: argparse.Namespace) -> None:
    if chosen.checkpoint_every < 1:
        raise MedlmError(
            f"--checkpoint-every is {chosen.checkpoint_every}; expected at least 1."
        )
    if not 0 < chosen.sensitivity <= 1:
        raise MedlmError(
            f"--sensitivity is {chosen.sensitivity}; expected above 0, at most 1."
        )


def _parts(images: image_folder.Folder, seed: int) -> dict[str, np.ndarray]:
    """The rows of each part: as the table says, or by our own split."""
    from medlm_utils import ct

    if images.split is None:
        drawn = ct.split(images.patient, SHARES, seed, images.label)
        rows = dict(zip(PARTS, drawn, strict=True))
    else:
        named = [_WORDS.get(word.lower(), word.lower()) for word in images.split]
        odd = sorted(set(named) - set(PARTS))
        if odd:
            raise MedlmError(
                f"The column split says {odd[0]!r}; expected train, val or test."
            )
        split = np.array(named)
        rows = {part: np.flatnonzero(split == part) for part in PARTS}
        rows = {part: chosen for part, chosen in rows.items() if len(chosen)}
    _check_classes(images, rows)
    return rows


def _check_classes(images: image_folder.Folder, rows: dict[str, np.ndarray]) -> None:
    """Training and validation need every class, or nothing can be learned or chosen."""
    if len(images.classes) > 2:
        _, numbers = np.unique(images.patient, return_inverse=True)
        pairs = set(zip(numbers.tolist(), images.label.tolist(), strict=True))
        if len(pairs) > numbers.max() + 1:
            raise MedlmError(
                f"There are {len(images.classes)} classes, and a patient with images "
                "of two of them; expected one class a patient, or two classes."
            )
    for part in PARTS[:2]:
        found = set(images.label[rows.get(part, [])].tolist())
        missing = [c for n, c in enumerate(images.classes) if n not in found]
        if missing:
            raise MedlmError(
                f"The {part} part has no image of the class {missing[0]!r}; expected "
                "every class in training and validation. Add patients, or give the "
                "table a column split with train, val and test."
            )


def _warnings(images: image_folder.Folder, rows: dict[str, np.ndarray]) -> list[str]:
    found = []
    if images.skipped:
        names = ", ".join(name for name, _ in images.skipped[:5])
        more = ", ..." if len(images.skipped) > 5 else ""
        found.append(
            f"{len(images.skipped)} files could not be read and were left out: "
            f"{names}{more}"
        )
    if images.window is None:
        found.append(
            "PNG and JPEG files have lost their Hounsfield units: whoever exported "
            "them chose the window, perhaps another one for each class"
        )
    few = {part: len(set(images.patient[chosen])) for part, chosen in rows.items()}
    found += [
        f"only {count} {part} patients: its intervals are wide, and too narrow still"
        for part, count in few.items()
        if count < 50 and part != "training"
    ]
    return found


def _digest(images: image_folder.Folder, rows: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(images.images).tobytes())
    told = [images.files, images.label.tolist(), images.patient.tolist()]
    told.append({part: chosen.tolist() for part, chosen in rows.items()})
    digest.update(repr(told).encode())
    return digest.hexdigest()


def _digest_of(model: resnet.ResNet18) -> str:
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(name.encode() + weight.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


# Training -----------------------------------------------------------------------------


def _train(run: CtRun, team: Team) -> None:
    """Train, ask the best model about the other parts, and write everything."""
    from medlm_utils import resnet

    for warning in run.warnings:
        team.say(f"Warning: {warning}")
    counted = ", ".join(f"{len(rows):,} {part}" for part, rows in run.rows.items())
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

    out, label = run.chosen.out, run.images.label
    temperature, remark = results.temperature(
        logits["validation"], label[run.rows["validation"]]
    )
    shares = {part: results.probabilities(z, temperature) for part, z in logits.items()}
    answers = {part: _patients(run, part, p) for part, p in shares.items()}
    threshold = _threshold(run, answers["validation"])
    about = _about(run, temperature, threshold)
    resnet.save(run.model, out / MODEL, about)
    for part in answers:
        _write_predictions(out, run, part, shares[part], answers[part])
    content = _content(run, team, tuned, logits, answers, about, remark)
    with files.beside(out / files.PAGE) as page:
        page.write(ct_report.page(content))
    files.save_json(out / files.REPORT, content)
    (out / files.CHECKPOINT).unlink(missing_ok=True)
    for part in answers:
        print(f"{part}: {ct_report.in_words(content, part)}")
    print(f"Report: {out / files.PAGE}\nModel: {out / MODEL}")


@dataclasses.dataclass
class Patients:
    """What a model says of the patients of a part.

    Parameters
    ----------
    names, label
        (patients,) and (patients,) numbers of classes.
    shares
        (patients, classes) probabilities, from those of their slices.
    """

    names: np.ndarray
    label: np.ndarray
    shares: np.ndarray


def _patients(run: CtRun, part: str, shares: np.ndarray) -> Patients:
    """From slices to patients; one is abnormal if one of his slices is."""
    from medlm_utils import ct

    rows = run.rows[part]
    patient, label = run.images.patient[rows], run.images.label[rows]
    names, most = ct.by_patient(patient, label)
    return Patients(names, most.astype(int), by_patient(patient, shares, run.chosen.by))


def by_patient(patient: np.ndarray, shares: np.ndarray, how: str) -> np.ndarray:
    """(patients, classes) probabilities, from (slices, classes).

    With two classes `how` is about the second one. With more it is the mean: the
    largest of each class would not sum to 1.
    """
    from medlm_utils import ct

    if shares.shape[1] == 2:
        _, second = ct.by_patient(patient, shares[:, 1].astype(float), how)
        return np.stack([1 - second, second], axis=1)
    columns = [ct.by_patient(patient, column, "mean")[1] for column in shares.T]
    return np.stack(columns, axis=1)


def _threshold(run: CtRun, found: Patients) -> float | None:
    """The operating point, chosen on the validation patients; two classes only."""
    if len(run.images.classes) != 2:
        return None
    return metrics.threshold_for_sensitivity(
        found.label, found.shares[:, 1], run.chosen.sensitivity
    )


def _about(run: CtRun, temperature: float, threshold: float | None) -> dict[str, Any]:
    """What `medlm ct-predict` has to know of a model."""
    height, width = run.images.images.shape[1:]
    return {
        "kind": "ct-finetune",
        "classes": list(run.images.classes),
        "images": "HU" if run.window else "grey",
        "window": run.window and list(run.window),
        "height": height,
        "width": width,
        "resized": run.chosen.size is not None,
        "by": run.chosen.by,
        "temperature": temperature,
        "threshold": threshold,
        "seed": run.settings.seed,
        "command": run.command,
    }


def _write_predictions(
    out: Path, run: CtRun, part: str, shares: np.ndarray, found: Patients
) -> None:
    """One file with a row a slice, one with a row a patient."""
    classes, rows = run.images.classes, run.rows[part]
    with files.beside(out / f"predictions_{part}_slices.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "patient", "label", *results.heading(classes)])
        for row, p in zip(rows, shares, strict=True):
            known = (run.images.files[row], run.images.patient[row])
            label = classes[run.images.label[row]]
            writer.writerow([*known, label, *results.answer(classes, p)])
    with files.beside(out / f"predictions_{part}_patients.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["patient", "label", *results.heading(classes)])
        for name, label, p in zip(found.names, found.label, found.shares, strict=True):
            writer.writerow([name, classes[label], *results.answer(classes, p)])


# What the report is made of -----------------------------------------------------------


def _content(
    run: CtRun,
    team: Team,
    tuned: resnet.Tuned,
    logits: dict[str, np.ndarray],
    answers: dict[str, Patients],
    about: dict[str, Any],
    remark: str,
) -> dict[str, Any]:
    """What ``report.json`` holds."""
    from medlm_utils import ct

    measured: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    blind = _without_pixels(run)
    for part, found in answers.items():
        rows = run.rows[part]
        label, patient = run.images.label[rows], run.images.patient[rows]
        shares = results.probabilities(logits[part], about["temperature"])
        _, blind_score = ct.by_patient(patient, blind[rows], "mean")
        scores = _scores(found.names, found.label, found.shares, about["threshold"])
        scores |= _baselines(run, found, blind_score)
        scores |= {
            f"slice_{name}": value
            for name, value in _scores(patient, label, shares, None).items()
        }
        measured |= {f"{part}_{name}": value for name, value in scores.items()}
        parts[part] = _part(found, about["threshold"])
        parts[part] |= {
            "before": results.calibration(label, results.probabilities(logits[part])),
            "after": results.calibration(label, shares),
        }
    seconds = time.monotonic() - run.started
    return {
        **runtime.results(measured, seconds, team.profile.device),
        "seed": run.settings.seed,
        "command": run.command,
        "processes": team.size,
        "settings": dataclasses.asdict(run.settings),
        "warnings": run.warnings + _blind_warning(measured, answers),
        "skipped": [list(pair) for pair in run.images.skipped],
        "model": {
            **about,
            "weights": Path(run.chosen.weights).name,
            "weights_sha256": run.sha256["weights"],
            "parameters": run.weights,
            "trained": run.trained,
            "temperature_remark": remark,
        },
        "data": {part: _data_facts(run, part) for part in run.rows},
        "images_sha256": run.sha256["images"],
        "history": {
            "loss": [round(loss, 5) for loss in tuned.history.loss],
            "steps_per_epoch": len(tuned.history) // run.settings.epochs,
            "validation_loss": list(tuned.loss),
            "steps": list(tuned.steps),
            "best": tuned.best,
        },
        "parts": parts,
    }


def _estimate(
    patient: np.ndarray, function: Any, *columns: np.ndarray
) -> dict[str, Any]:
    """A number with its interval by patient, without one where there is none."""
    try:
        found = metrics.interval_by_patient(function, patient, *columns)
        return dict(found.as_metric())
    except MedlmError:  # too few patients, or of one class, in some of the draws
        try:
            value = float(function(*columns))
        except metrics.UndefinedError:
            return {}
        return {"value": value, "n": len(set(patient.tolist()))}


def _scores(
    patient: np.ndarray, label: np.ndarray, shares: np.ndarray, threshold: float | None
) -> dict[str, Any]:
    """How good the answers are; a number that has no value is left out."""
    classes = shares.shape[1]
    chosen = shares.argmax(axis=1)

    def macro_f1(truth: np.ndarray, named: np.ndarray) -> float:
        return metrics.f1(truth, named, classes, "macro")

    found = {
        "accuracy": _estimate(patient, metrics.accuracy, label, chosen),
        "macro_f1": _estimate(patient, macro_f1, label, chosen),
        "log_loss": _estimate(patient, metrics.log_loss, label, shares),
    }
    if classes == 2:
        score = shares[:, 1]
        found["auroc"] = _estimate(patient, metrics.auroc, label, score)
        found["auprc"] = _estimate(patient, metrics.average_precision, label, score)
        found["prevalence"] = {"value": float(label.mean()), "n": len(label)}
    if threshold is not None:
        called = shares[:, 1] >= threshold
        sick, well = label == 1, label == 0
        rights = {"sensitivity": called[sick], "specificity": ~called[well]}
        for name, right in rights.items():
            if len(right):
                of = metrics.wilson(int(right.sum()), len(right))
                found[name] = dict(of.as_metric())
    return {name: value for name, value in found.items() if value}


def _baselines(run: CtRun, found: Patients, blind: np.ndarray) -> dict[str, Any]:
    """What a model has to beat: the most frequent class, and one without pixels."""
    training = run.images.label[run.rows["training"]]
    most = found.label == results.majority(training)
    scores = {"majority_accuracy": {"value": float(most.mean()), "n": len(most)}}
    if len(run.images.classes) == 2:
        scores["no_pixels_auroc"] = _estimate(
            found.names, metrics.auroc, found.label, blind
        )
    return {name: value for name, value in scores.items() if value}


def _without_pixels(run: CtRun) -> np.ndarray:
    """(slices,) what a forest says that knows the files and has seen no image.

    It learns on the training files. Where it is good, classes differ in how they were
    stored, and a network can learn that too.
    """
    from sklearn.ensemble import RandomForestClassifier

    facts = np.array([_facts(run.chosen.images / name) for name in run.images.files])
    training = run.rows["training"]
    forest = RandomForestClassifier(200, min_samples_leaf=3, random_state=0)
    forest.fit(facts[training], run.images.label[training])
    return forest.predict_proba(facts)[:, -1]


def _facts(path: Path) -> list[float]:
    """Numbers about a file that say nothing about its patient."""
    from medlm_utils import image_files

    size = float(path.stat().st_size)
    if image_files.is_picture(path):
        from PIL import Image

        with Image.open(path) as picture:
            told: list[Any] = [picture.width, picture.height]
            words = f"{picture.mode} {picture.format}"
    else:
        import pydicom

        header = pydicom.dcmread(path, stop_before_pixels=True)
        spacing = header.get("PixelSpacing") or (0,)
        told = [header.get("Columns"), header.get("Rows"), spacing[0]]
        told += [header.get("SliceThickness"), header.get("KVP")]
        named = ("Manufacturer", "ManufacturerModelName", "ConvolutionKernel")
        words = " ".join(str(header.get(name)) for name in named)
    # Words become a number that is the same for the same words, and means no more.
    of_words = int(hashlib.sha256(words.encode()).hexdigest()[:8], 16)
    return [size, float(of_words), *(float(number or 0) for number in told)]


def _blind_warning(measured: dict[str, Any], answers: dict[str, Any]) -> list[str]:
    """Said where files alone tell the class, and this can be no accident."""
    found = measured.get(f"{list(answers)[-1]}_no_pixels_auroc", {})
    if found.get("low", 0) <= 0.5:
        return []
    return [
        "a forest that sees no pixels, only size, format and header of the files, "
        f"reaches an AUROC of {found['value']:.2f}: the classes were stored or "
        "compress differently, and the network may have learned that"
    ]


def _part(found: Patients, threshold: float | None) -> dict[str, Any]:
    """Counts and curves of the patients of a part."""
    classes = found.shares.shape[1]
    chosen = found.shares.argmax(axis=1)
    if threshold is not None:
        chosen = (found.shares[:, 1] >= threshold).astype(int)
    part: dict[str, Any] = results.by_class(found.label, chosen, classes)
    if classes == 2 and len(set(found.label.tolist())) == 2:
        wrong, right, _ = metrics.roc_curve(found.label, found.shares[:, 1])
        part["roc"] = {"x": np.asarray(wrong).tolist(), "y": np.asarray(right).tolist()}
    return part


def _data_facts(run: CtRun, part: str) -> dict[str, Any]:
    from medlm_utils import ct

    rows, images = run.rows[part], run.images
    _, label = ct.by_patient(images.patient[rows], images.label[rows])
    return {
        "images": len(rows),
        "patients": len(label),
        "frequencies": {
            name: int((label == number).sum())
            for number, name in enumerate(images.classes)
        },
    }
