"""The command `medlm ct-predict`: classes of CT images, a chunk of files at a time.

Where the classes are known, it says how good the model is on these images.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medlm_utils import runtime
from medlm_utils.cli import ct_report, ct_results, files, processes, results
from medlm_utils.cli.processes import Team
from medlm_utils.runtime import MedlmError

if TYPE_CHECKING:
    from medlm_utils import image_files, resnet

    Groups = argparse._SubParsersAction[argparse.ArgumentParser]

CHUNK = 8  # batches of each process in memory at a time
OUTSIDE = "outside"  # the name of the part that a report is about
_BYTES_A_ROW = 200  # of the output, about
_NEEDED = {"kind", "classes", "images", "height", "width", "resized", "temperature"}
_FEW = 50  # patients: with fewer an interval is too narrow


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
    text = (
        "table with the columns file and patient: writes a row a patient beside; and "
        "a report, if folders or a column label say the classes"
    )
    add("--patients", metavar="CSV", type=Path, help=text)
    text = "PNG files of 16 bits hold HU plus this; default: as the model learned"
    add("--png-offset", metavar="N", type=float, help=text)
    text = "leave out files that cannot be read, and list them"
    add("--skip-bad", action="store_true", help=text)
    shown = "default: %(default)s"
    add("--batch", metavar="N", type=int, default=64, help=f"images at once; {shown}")
    processes.add_precision(command)
    add("--force", action="store_true", help="replace the output if it is there")
    command.set_defaults(run=run_predict)


@dataclasses.dataclass
class Known:
    """What the table and the folders say of the files.

    Parameters
    ----------
    names
        Of all files.
    patient
        File to patient; None without a table.
    label
        File to the number of its class; None if these are not known.
    warnings
        What is odd about the table.
    no_report
        Why the classes are not known; empty if they are, or without a table.
    """

    names: list[str]
    patient: dict[str, str] | None
    label: dict[str, int] | None
    warnings: list[str]
    no_report: str = ""


def run_predict(chosen: argparse.Namespace) -> int:
    """Ask the model about every image, and write the answers."""
    team, started = Team(), time.monotonic()
    with team.one_voice():
        model, about = team.all_do(lambda: _model(chosen.model))
        known = team.all_do(lambda: _checked(chosen, about))
        for warning in known.warnings:
            team.say(f"Warning: {warning}")
        model.to(team.device)
        read: list[str] = []
        parts: list[np.ndarray] = []
        skipped: list[tuple[str, str]] = []
        for some, logits, bad, said in _answers(
            chosen, team, model, about, known.names
        ):
            read += some
            parts.append(logits)
            skipped += bad
            for warning in said:
                if warning not in known.warnings:
                    team.say(f"Warning: {warning}")
                    known.warnings.append(warning)
        if not read:
            raise MedlmError(f"None of the {len(known.names)} images can be read.")
        if team.is_main:
            logits = np.concatenate(parts)
            shares = results.probabilities(logits, about["temperature"])
            _write(chosen, about["classes"], read, shares, known.patient)
            if known.patient is not None:
                _write_patients(chosen, about, read, shares, known.patient)
            if known.label is not None:
                seconds = time.monotonic() - started
                machine = {"seconds": seconds, "device": team.profile.device}
                _write_report(chosen, about, known, read, logits, skipped, machine)
    if team.is_main:
        _tell(chosen, len(read), skipped, known)
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


def _checked(chosen: argparse.Namespace, about: dict[str, Any]) -> Known:
    """Names of the files, and whose they are, once nothing is known to be wrong."""
    from medlm_utils import image_files

    if chosen.batch < 1:
        raise MedlmError(f"--batch is {chosen.batch}; expected at least 1.")
    folder = chosen.images
    names = [p.relative_to(folder).as_posix() for p in image_files.find(folder)]
    is_grey = image_files.is_picture(names[0]) and _offset(chosen, about) is None
    kind = "grey" if is_grey else "HU"
    if kind != about["images"]:
        learned = {"HU": "images in HU", "grey": "pictures, in grey"}
        raise MedlmError(
            f"The model learned from {learned[about['images']]}, and {folder} holds "
            f"{learned[kind]}; expected the same kind."
        )
    known = Known(names, None, None, [])
    inputs, outputs = [chosen.model], [chosen.output]
    if chosen.patients is not None:
        known = _known(chosen, about, names)
        inputs.append(chosen.patients)
        outputs.append(patients_file(chosen.output))
    if known.label is not None:
        outputs += [beside(chosen.output, kind) for kind in (".html", ".json")]
    for path in outputs:
        needed = _BYTES_A_ROW * len(names)
        files.check_output(path, inputs, chosen.force, needed)
    return known


def _offset(chosen: argparse.Namespace, about: dict[str, Any]) -> float | None:
    offset: float | None = about.get("png_offset")
    return offset if chosen.png_offset is None else chosen.png_offset


def _known(
    chosen: argparse.Namespace, about: dict[str, Any], names: list[str]
) -> Known:
    """Patients of the table; and classes, where they are those of the model."""
    from medlm_utils import image_folder

    rows, warnings = image_folder.rows_of(names, chosen.images, chosen.patients)
    of_file = [rows[name] for name in names]
    patient = [row["patient"] for row in of_file]
    warnings += image_folder.one_image_each(names, np.array(patient))
    whose = dict(zip(names, patient, strict=True))
    label, said = None, ""
    try:
        where = image_folder.places(names, patient)
        said_of = image_folder.labels_of(names, where, of_file, chosen.patients)
        label, said = _numbers(said_of[0], about["classes"])
        # The table may call them as the model does where the folders do not.
        told = [said_of[1].get(name, name) for name in said_of[0]]
        by_table, _ = _numbers(told, about["classes"])
        if label and by_table and label != by_table:
            label, said = None, "Folders and column label contradict each other."
        elif label is None:
            label = by_table
    except MedlmError as error:
        said = str(error)
    if label is None and any("label" in row for row in of_file):
        raise MedlmError(
            f"{said} Take the column label out of {chosen.patients} to predict without "
            "a report."
        )
    numbers = None if label is None else dict(zip(names, label, strict=True))
    return Known(names, whose, numbers, warnings, said if label is None else "")


def _numbers(
    labels: Sequence[str], classes: Sequence[str]
) -> tuple[list[int] | None, str]:
    """The number of each class, or what is wrong with their names."""
    from medlm_utils import ct

    place = {name.casefold(): number for number, name in enumerate(classes)}
    if len(place) < len(classes):  # two that differ in capitals alone
        place = {name: number for number, name in enumerate(classes)}
    key = {name: name if name in place else name.casefold() for name in set(labels)}
    odd = sorted(name for name in key if key[name] not in place)
    if odd:
        return None, (
            f"The classes of these images are {ct.some(odd)}, and the model knows "
            f"{', '.join(classes)}; expected the same names."
        )
    return [place[key[name]] for name in labels], ""


def patients_file(output: Path) -> Path:
    """Where the rows of patients go: beside the rows of images."""
    return output.with_name(f"{output.stem}_patients{output.suffix}")


def beside(output: Path, kind: str) -> Path:
    """Where the report goes."""
    return output.with_name(f"{output.stem}.report{kind}")


def _answers(
    chosen: argparse.Namespace,
    team: Team,
    model: resnet.ResNet18,
    about: dict[str, Any],
    names: list[str],
) -> Iterator[tuple[list[str], np.ndarray, list[tuple[str, str]], list[str]]]:
    """Chunks: names that were read, logits, files that were left out, and warnings."""
    from tqdm import tqdm

    from medlm_utils import ct, resnet

    size = CHUNK * chosen.batch * team.size
    window = ct.Window(*about["window"]) if about["window"] else None
    with tqdm(total=len(names), disable=not team.shows_bars, unit="image") as bar:
        for place in range(0, len(names), size):
            some = names[place : place + size]
            reading = functools.partial(_read, chosen, about, some)
            images, read, bad, said = team.all_do(reading)
            if len(read):
                logits = resnet.predict(
                    model,
                    images,
                    window,
                    chosen.batch,
                    team.precision(chosen.precision),
                    team.accelerator,
                )
                yield read, logits, bad, said
            else:
                yield [], np.empty((0, model.classes)), bad, said
            bar.update(len(some))


def _read(
    chosen: argparse.Namespace, about: dict[str, Any], names: Sequence[str]
) -> tuple[np.ndarray, list[str], list[tuple[str, str]], list[str]]:
    """The images of a chunk, of the size that the model has learned from."""
    from medlm_utils import image_files

    height, width = about["height"], about["width"]
    reading = image_files.Reading(
        size=height if about["resized"] else None,
        spacing_mm=about.get("spacing_mm"),
        grey=True,
        png_offset=_offset(chosen, about),
    )
    good: list[str] = list(names)
    bad: list[tuple[str, str]] = []
    if chosen.skip_bad:
        good, bad = _readable(chosen.images, names, reading)
    if not good:
        return np.empty((0, height, width)), [], bad, []
    found = image_files.read(chosen.images, good, reading)
    images = found.values
    if images.shape[1:] != (height, width):
        raise MedlmError(
            f"The images have {images.shape[2]} x {images.shape[1]} pixels; expected "
            f"{width} x {height}, as the model learned from. Bring them to that size, "
            "or train with --size, which the model then does itself."
        )
    return images, list(found.names), bad, list(found.warnings)


def _readable(
    folder: Path, names: Sequence[str], reading: image_files.Reading
) -> tuple[list[str], list[tuple[str, str]]]:
    """The files that can be read; and the others, each with the reason."""
    from medlm_utils import image_files

    good: list[str] = []
    bad: list[tuple[str, str]] = []
    for name in names:
        try:
            image_files.read(folder, [name], reading)
            good.append(name)
        except MedlmError as error:
            bad.append((name, str(error)))
    return good, bad


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
    whose = np.array([patients[name] for name in names])
    each = ct_results.by_patient(whose, shares, about["by"])
    ct_results.write_patients(
        patients_file(chosen.output),
        about["classes"],
        np.unique(whose),
        each,
        about["threshold"],
    )


def _write_report(
    chosen: argparse.Namespace,
    about: dict[str, Any],
    known: Known,
    names: list[str],
    logits: np.ndarray,
    skipped: list[tuple[str, str]],
    machine: dict[str, Any],
) -> None:
    """How good the model is on these images: a page, and the same numbers as JSON."""
    patients, label = known.patient or {}, known.label or {}
    found = ct_results.Answers(
        files=names,
        patient=np.array([patients[name] for name in names]),
        label=np.array([label[name] for name in names]),
        logits=logits,
        shares=results.probabilities(logits, about["temperature"]),
        by=about["by"],
    )
    classes, point = about["classes"], about["threshold"]
    scores = ct_results.measured(found, classes, point)
    counted = ct_results.counts(found.patient, found.label, classes)
    if counted["patients"] < _FEW:
        known.warnings.append(
            f"only {counted['patients']} patients: its intervals are wide, and too "
            "narrow still"
        )
    content = {
        **runtime.results(
            {f"{OUTSIDE}_{name}": value for name, value in scores.items()},
            machine["seconds"],
            machine["device"],
        ),
        "warnings": known.warnings,
        "skipped": [list(pair) for pair in skipped],
        "model": {"why_positive": "as the model learned", "temperature_remark": ""}
        | about,
        "data": {OUTSIDE: counted},
        "parts": {OUTSIDE: ct_results.part(found, point)},
    }
    with files.beside(beside(chosen.output, ".html")) as page:
        page.write(ct_report.outside_page(content))
    files.save_json(beside(chosen.output, ".json"), content)
    print(f"{OUTSIDE}: {ct_report.in_words(content, OUTSIDE)}")


def _tell(
    chosen: argparse.Namespace,
    count: int,
    skipped: list[tuple[str, str]],
    known: Known,
) -> None:
    for name, why in skipped:
        print(f"left out: {name}: {why}")
    if skipped:
        print(f"{len(skipped):,} files could not be read and were left out.")
    print(f"Wrote {count:,} rows: {chosen.output}")
    if known.patient is not None:
        print(f"One row a patient: {patients_file(chosen.output)}")
    if known.label is not None:
        print(f"Report: {beside(chosen.output, '.html')}")
    elif known.no_report:
        print(f"No report: {known.no_report}")
