"""The command `medlm ct-predict`: classes of CT images, a chunk of files at a time."""

from __future__ import annotations

import argparse
import csv
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medlm_utils import runtime
from medlm_utils.cli import files, results
from medlm_utils.cli.ct_finetune import by_patient
from medlm_utils.cli.processes import Team
from medlm_utils.runtime import MedlmError

if TYPE_CHECKING:
    from medlm_utils import resnet

    Groups = argparse._SubParsersAction[argparse.ArgumentParser]

CHUNK = 8  # batches of each process in memory at a time
_BYTES_A_ROW = 200  # of the output, about
_NEEDED = {"kind", "classes", "images", "height", "width", "resized", "temperature"}


def add_commands(groups: Groups) -> None:
    """Add the command ``ct-predict`` to the parser."""
    text = "the class of each CT image, with probabilities, by a model of ct-finetune"
    command = groups.add_parser("ct-predict", help=text, description=text)
    add = command.add_argument
    text = "the file model.safetensors of a run"
    add("--model", metavar="FILE", type=Path, required=True, help=text)
    text = "with PNG, JPEG or DICOM files, as the model learned from"
    add("--images", metavar="FOLDER", type=Path, required=True, help=text)
    add("--output", metavar="CSV", type=Path, required=True, help="a row an image")
    text = "table with the columns file and patient: writes a row a patient beside"
    add("--patients", metavar="CSV", type=Path, help=text)
    text = "leave out files that cannot be read, and list them"
    add("--skip-bad", action="store_true", help=text)
    shown = "default: %(default)s"
    add("--batch", metavar="N", type=int, default=64, help=f"images at once; {shown}")
    add("--force", action="store_true", help="replace the output if it is there")
    command.set_defaults(run=run_predict)


def run_predict(chosen: argparse.Namespace) -> int:
    """Ask the model about every image, and write the answers."""
    team = Team()
    with team.one_voice():
        model, about = team.all_do(lambda: _model(chosen.model))
        names, patients = team.all_do(lambda: _checked(chosen, about))
        model.to(team.device)
        read: list[str] = []
        parts: list[np.ndarray] = []
        skipped: list[tuple[str, str]] = []
        for some, shares, bad in _answers(chosen, team, model, about, names):
            read += some
            parts.append(shares)
            skipped += bad
        if not read:
            raise MedlmError(f"None of the {len(names)} images can be read.")
        if team.is_main:
            shares = np.concatenate(parts)
            _write(chosen, about["classes"], read, shares, patients)
            if patients is not None:
                _write_patients(chosen, about, read, shares, patients)
    if team.is_main:
        _report(chosen, len(read), skipped, patients)
    team.leave()
    return 0


def _model(path: Path) -> tuple[resnet.ResNet18, dict[str, Any]]:
    """The model of a run, and what is known about it."""
    from medlm_utils import resnet

    model, about = resnet.load(path)
    if about.get("kind") != "ct-finetune" or not about.keys() >= _NEEDED:
        raise MedlmError(
            f"{path} is no model of `medlm ct-finetune`; expected the file "
            "model.safetensors of a run."
        )
    return model, about


def _checked(
    chosen: argparse.Namespace, about: dict[str, Any]
) -> tuple[list[str], dict[str, str] | None]:
    """Names of the files, and whose they are, once nothing is known to be wrong."""
    from medlm_utils import image_files, image_folder

    if chosen.batch < 1:
        raise MedlmError(f"--batch is {chosen.batch}; expected at least 1.")
    folder = chosen.images
    names = [p.relative_to(folder).as_posix() for p in image_files.find(folder)]
    kind = "grey" if image_files.is_picture(names[0]) else "HU"
    if kind != about["images"]:
        learned = {"HU": "DICOM files, in HU", "grey": "pictures, in grey"}
        raise MedlmError(
            f"The model learned from {learned[about['images']]}, and {folder} holds "
            f"{learned[kind]}; expected the same kind."
        )
    patients, inputs = None, [chosen.model]
    outputs = [chosen.output]
    if chosen.patients is not None:
        rows = image_folder.read_table(chosen.patients)
        image_folder.check_table(names, rows, folder, chosen.patients)
        patients = {name: row["patient"] for name, row in rows.items()}
        inputs.append(chosen.patients)
        outputs.append(patients_file(chosen.output))
    for path in outputs:
        needed = _BYTES_A_ROW * len(names)
        files.check_output(path, inputs, chosen.force, needed)
    return names, patients


def patients_file(output: Path) -> Path:
    """Where the rows of patients go: beside the rows of images."""
    return output.with_name(f"{output.stem}_patients{output.suffix}")


def _answers(
    chosen: argparse.Namespace,
    team: Team,
    model: resnet.ResNet18,
    about: dict[str, Any],
    names: list[str],
) -> Iterator[tuple[list[str], np.ndarray, list[tuple[str, str]]]]:
    """Chunks: names that were read, probabilities, and files that were left out."""
    from tqdm import tqdm

    from medlm_utils import ct, resnet

    size = CHUNK * chosen.batch * team.size
    window = ct.Window(*about["window"]) if about["window"] else None
    with tqdm(total=len(names), disable=not team.shows_bars, unit="image") as bar:
        for place in range(0, len(names), size):
            some = names[place : place + size]
            reading = functools.partial(_read, chosen, about, some)
            images, read, bad = team.all_do(reading)
            if len(read):
                logits = resnet.predict(
                    model,
                    images,
                    window,
                    chosen.batch,
                    runtime.fast_precision(team.profile),
                    team.accelerator,
                )
                shares = results.probabilities(logits, about["temperature"])
                yield read, shares, bad
            else:
                yield [], np.empty((0, model.classes)), bad
            bar.update(len(some))


def _read(
    chosen: argparse.Namespace, about: dict[str, Any], names: Sequence[str]
) -> tuple[np.ndarray, list[str], list[tuple[str, str]]]:
    """The images of a chunk, of the size that the model has learned from."""
    from medlm_utils import image_files

    height, width = about["height"], about["width"]
    size = height if about["resized"] else None
    reading = image_files.Reading(size=size, grey=True)
    good, bad = [], []
    for name in names if chosen.skip_bad else ():
        try:
            image_files.read(chosen.images, [name], reading)
            good.append(name)
        except MedlmError as error:
            bad.append((name, str(error)))
    if chosen.skip_bad and not good:
        return np.empty((0, height, width)), [], bad
    chunk = good if chosen.skip_bad else names
    found = image_files.read(chosen.images, chunk, reading)
    images = found.values
    if images.shape[1:] != (height, width):
        raise MedlmError(
            f"The images have {images.shape[2]} x {images.shape[1]} pixels; expected "
            f"{width} x {height}, as the model learned from. Bring them to that size, "
            "or train with --size, which the model then does itself."
        )
    return images, list(found.names), bad


def _write(
    chosen: argparse.Namespace,
    classes: list[str],
    names: list[str],
    shares: np.ndarray,
    patients: dict[str, str] | None,
) -> None:
    """A row an image, in the order of the folder."""
    with files.beside(chosen.output) as file:
        writer = csv.writer(file, lineterminator="\n")
        known = ["file"] + ["patient"] * (patients is not None)
        writer.writerow([*known, *results.heading(classes)])
        for name, p in zip(names, shares, strict=True):
            whose = [] if patients is None else [patients[name]]
            writer.writerow([name, *whose, *results.answer(classes, p)])


def _write_patients(
    chosen: argparse.Namespace,
    about: dict[str, Any],
    names: list[str],
    shares: np.ndarray,
    patients: dict[str, str],
) -> None:
    """A row a patient; what is called positive is decided by the operating point."""
    classes = about["classes"]
    whose = np.array([patients[name] for name in names])
    each = by_patient(whose, shares, about["by"])
    with files.beside(patients_file(chosen.output)) as file:
        writer = csv.writer(file, lineterminator="\n")
        has_point = about["threshold"] is not None
        point = ["at_operating_point"] if has_point else []
        writer.writerow(["patient", *results.heading(classes), *point])
        for name, p in zip(np.unique(whose), each, strict=True):
            called = [classes[int(p[1] >= about["threshold"])]] if has_point else []
            writer.writerow([name, *results.answer(classes, p), *called])


def _report(
    chosen: argparse.Namespace,
    count: int,
    skipped: list[tuple[str, str]],
    patients: dict[str, str] | None,
) -> None:
    for name, why in skipped:
        print(f"left out: {name}: {why}")
    if skipped:
        print(f"{len(skipped):,} files could not be read and were left out.")
    print(f"Wrote {count:,} rows: {chosen.output}")
    if patients is not None:
        print(f"One row a patient: {patients_file(chosen.output)}")
