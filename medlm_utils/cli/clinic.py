"""The command `medlm clinic write FOLDER`: notes of the simulated clinic as files."""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlm_utils import clinic
from medlm_utils.runtime import SEED, MedlmError

if TYPE_CHECKING:
    Groups = argparse._SubParsersAction[argparse.ArgumentParser]

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}  # of the patients
ABOUT = "clinic.json"  # how the files were made, the names of the labels, the hashes


def add_commands(groups: Groups) -> None:
    """Add the group ``clinic`` to the parser."""
    text = "the simulated clinic: notes whose best possible reading is known"
    group = groups.add_parser("clinic", help=text, description=text)
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)

    text = "draw patients and write their notes: train, val, test, medical_data (csv)"
    command = commands.add_parser("write", help=text, description=text)
    command.add_argument("folder", metavar="FOLDER", type=Path, help="made if missing")
    command.add_argument(
        "--patients", metavar="N", type=int, default=3000, help="default: %(default)s"
    )
    command.add_argument(
        "--seed", metavar="S", type=int, default=SEED, help="default: %(default)s"
    )
    command.add_argument(
        "--hospital", metavar="H", default="A", help="A or B; default: %(default)s"
    )
    command.add_argument(
        "--phrasing", metavar="P", default="usual", help="usual (default) or held-out"
    )
    command.add_argument(
        "--shortcut", action="store_true", help="let the bay tell the disease"
    )
    command.add_argument(
        "--force", action="store_true", help="overwrite files of another origin"
    )
    command.set_defaults(run=run_write)


def run_write(chosen: argparse.Namespace) -> int:
    """Draw, split by patient, write all files or none, and say what was written."""
    phrasing = chosen.phrasing.replace("-", " ")
    source = clinic.Clinic(chosen.hospital, phrasing, chosen.shortcut)
    notes = source.draw(chosen.patients, chosen.seed)
    split = clinic.split_by_patient(notes, tuple(SHARES.values()), chosen.seed)
    parts = dict(zip(SHARES, split, strict=True))
    files = {f"{name}.csv": _text_and_label(part) for name, part in parts.items()}
    files["medical_data.csv"] = _title_and_abstract(notes)
    about = {
        "hospital": source.hospital,
        "phrasing": source.phrasing,
        "shortcut": source.shortcut,
        "patients": chosen.patients,
        "seed": chosen.seed,
        "labels": source.diseases,
    }
    _write(chosen.folder, files, about, chosen.force)
    _report(chosen.folder, source, {**parts, "medical_data": notes})
    return 0


def _text_and_label(notes: clinic.Notes) -> bytes:
    rows = zip(notes.patient, notes.text, notes.label, strict=True)
    return _csv(("patient", "text", "label"), rows)


def _title_and_abstract(notes: clinic.Notes) -> bytes:
    cut = map(clinic.title_and_abstract, notes.text)
    rows = zip(notes.patient, cut, notes.label, strict=True)
    return _csv(
        ("patient", "title", "abstract", "label"),
        ((patient, *halves, label) for patient, halves, label in rows),
    )


def _csv(heading: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> bytes:
    """A table as the bytes of a file, the same on every platform."""
    page = io.StringIO()
    writer = csv.writer(page, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(rows)
    return page.getvalue().encode("utf-8")


def _write(
    folder: Path, files: Mapping[str, bytes], about: dict[str, Any], force: bool
) -> None:
    """Write the files and, last, `ABOUT`; each appears whole or not at all."""
    hashes = {name: _sha256(content) for name, content in files.items()}
    page = json.dumps({**about, "sha256": hashes}, indent=1) + "\n"
    is_new = not folder.exists()
    try:
        if not force:
            _refuse_foreign(folder, files)
        folder.mkdir(parents=True, exist_ok=True)
        _write_whole(folder, {**files, ABOUT: page.encode("utf-8")})
    except OSError as error:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise MedlmError(
            f"Cannot write into {folder}: {error.strerror}. Expected a folder with "
            "free space that you may write; name another."
        ) from error


def _write_whole(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write all files beside their places, and only then move them there."""
    beside = Path(tempfile.mkdtemp(prefix=".clinic-", dir=folder))
    try:
        for name, content in files.items():
            (beside / name).write_bytes(content)
        for name in files:
            os.replace(beside / name, folder / name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _refuse_foreign(folder: Path, names: Iterable[str]) -> None:
    """Raise if a file in the way is not as this command wrote it."""
    hashes = _earlier_hashes(folder)
    foreign = [
        name
        for name in names
        if (folder / name).exists()
        and _sha256((folder / name).read_bytes()) != hashes.get(name)
    ]
    if not hashes and (folder / ABOUT).exists():
        foreign.append(ABOUT)
    if foreign:
        raise MedlmError(
            f"{folder} holds {', '.join(foreign)}, not written by this command or "
            "changed since. Name another folder, or add --force to overwrite."
        )


def _earlier_hashes(folder: Path) -> dict[str, str]:
    """What an earlier call says that it wrote; empty if there was none."""
    try:
        hashes = json.loads((folder / ABOUT).read_text(encoding="utf-8"))["sha256"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    return hashes if isinstance(hashes, dict) else {}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _report(
    folder: Path, source: clinic.Clinic, parts: Mapping[str, clinic.Notes]
) -> None:
    """Print the counts, what the labels mean, and the ceilings of the test part."""
    print(f"Wrote into {folder}:")
    for name, part in parts.items():
        patients = len(set(part.patient))
        print(f"  {name}.csv: {len(part):,} notes of {patients:,} patients")
    print(f"  {ABOUT}: how they were made, and their hashes")
    labels = (f"{number} {name}" for number, name in enumerate(source.diseases))
    print(f"Labels: {', '.join(labels)}.")
    print("The best accuracy that a reader of test.csv can expect, note by note:")
    for reader in clinic.READERS:
        ceiling = clinic.accuracy_ceiling(source.posterior(parts["test"], reader))
        print(f"  {reader}: {ceiling:.3f}")
