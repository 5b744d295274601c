"""The command `medlm ct-patients`: a table of whose images a folder holds.

DICOM headers name their patients. Pictures do not: there it is a guess by what looks
alike, with a page to look at.
"""

from __future__ import annotations

import argparse
import collections
import csv
import dataclasses
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medlm_utils.cli import ct_pictures, files, pages
from medlm_utils.runtime import MedlmError

if TYPE_CHECKING:
    from medlm_utils import image_files

    Groups = argparse._SubParsersAction[argparse.ArgumentParser]

SIDE = 64  # pixels that pictures are brought to before they are compared
MOST_THUMBNAILS = 300
OF_A_GROUP = 12
_BYTES_A_ROW = 200
_PAGE_BYTES = 3_000_000
_SHOWN = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")

CAUTION = (
    "These are images of patients: keep this page and the table where they may be "
    "kept. Groups of pictures are a guess. Two people can look alike, and two slices "
    "of one person can look unlike. Only who has the records knows."
)


@dataclasses.dataclass
class Guess:
    """Whose images a folder holds, as far as files tell.

    Parameters
    ----------
    names, patient
        (images,) of each file.
    words
        How it is known, and what is doubtful; the first says it in short.
    skipped
        Files that could not be read, and why.
    images
        (images, height, width) for the page; None where headers say it.
    """

    names: list[str]
    patient: list[str]
    words: list[str]
    skipped: tuple[tuple[str, str], ...] = ()
    images: np.ndarray | None = None


def add_commands(groups: Groups) -> None:
    """Add the command ``ct-patients`` to the parser."""
    text = "write a table of whose images a folder holds, for ct-finetune"
    command = groups.add_parser("ct-patients", help=text, description=text)
    add = command.add_argument
    text = "with PNG, JPEG or DICOM files"
    add("folder", metavar="FOLDER", type=Path, help=text)
    text = "the table: file, patient, and label if the folders say it"
    add("--output", metavar="CSV", type=Path, required=True, help=text)
    text = "PNG files of 16 bits hold HU plus this, such as 32768 or 1024"
    add("--png-offset", metavar="N", type=float, help=text)
    text = "leave out files that cannot be read, and list them"
    add("--skip-bad", action="store_true", help=text)
    add("--force", action="store_true", help="replace the output if it is there")
    command.set_defaults(run=run_patients)


def run_patients(chosen: argparse.Namespace) -> int:
    """Find out whose the images are, write the table, and a page for pictures."""
    from medlm_utils import image_files

    folder, output = chosen.folder, chosen.output
    names = [path.relative_to(folder).as_posix() for path in image_files.find(folder)]
    pictures = [name for name in names if image_files.is_picture(name)]
    files.check_output(output, [], chosen.force, _BYTES_A_ROW * len(names))
    if pictures:
        files.check_output(page_of(output), [], chosen.force, _PAGE_BYTES)
        reading = image_files.Reading(
            size=SIDE,
            grey=True,
            skip_bad=chosen.skip_bad,
            png_offset=chosen.png_offset,
        )
        guess = of_pictures(folder, names, reading)
    else:
        guess = of_headers(folder, names)
    with files.beside(output) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows(_rows(guess))
    if guess.images is not None:
        with files.beside(page_of(output)) as file:
            file.write(page(guess))
    _tell(chosen, guess)
    return 0


def page_of(output: Path) -> Path:
    """Where the page goes: beside the table."""
    return output.with_name(f"{output.stem}.html")


def _rows(guess: Guess) -> Iterator[list[str]]:
    """The table: with a label only where folders say one of several classes."""
    from medlm_utils import image_folder

    try:
        where = image_folder.places(guess.names, guess.patient)
        image_folder.check_are_classes(guess.names, where, guess.patient, Path())
    except MedlmError:  # folders of which nobody can tell what they mean
        where = []
    classes = {place.name for place in where}
    pairs = set(zip((place.name for place in where), guess.patient, strict=False))
    # Folders of one patient each are of patients, or of series of theirs.
    are_patients = len(pairs) == len(classes) and len(set(guess.patient)) > 1
    has_labels = len(classes) > 1 and "" not in classes and not are_patients
    yield ["file", "patient", *["label"] * has_labels]
    for row, pair in enumerate(zip(guess.names, guess.patient, strict=True)):
        yield [*pair, *([where[row].name] if has_labels else [])]


# DICOM --------------------------------------------------------------------------------


def of_headers(folder: Path, names: Sequence[str]) -> Guess:
    """Patients as DICOM headers have them, or else studies, series or folders.

    Raises
    ------
    MedlmError
        If there is nothing to tell images apart by.
    """
    from medlm_utils.cli import ct_leaks

    headers = [_header(folder / name) for name in names]
    patient = ct_leaks.known_ids([header["PatientID"] for header in headers])
    counted: collections.Counter[str] = collections.Counter()
    for row, header in enumerate(headers):
        if patient[row]:
            counted["PatientID"] += 1
            continue
        what, value = _instead(names[row], header)
        patient[row] = f"{what} {value}"
        counted[what] += 1
    words = [f"{len(set(patient))} patients, by the headers of the DICOM files"]
    named = counted.pop("PatientID", 0)
    if counted:
        by = ", ".join(f"{count} by their {what}" for what, count in counted.items())
        words.append(
            f"{len(names) - named} of {len(names)} files have no PatientID that tells "
            f"people apart: {by}. Who came twice then counts as two people, and slices "
            "of one may be in training and test; correct the table"
        )
    if len(set(patient)) == 1:
        words.append("all images are of one patient: nothing can be split by patient")
    return Guess(list(names), patient, words)


def _header(path: Path) -> dict[str, str]:
    """The tags that tell patients apart; empty where there are none."""
    import pydicom

    from medlm_utils import dicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            content = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            return {name: dicom.text(content, name) for name in _SHOWN}
        except Exception:  # pydicom raises what it likes; the file then says nothing
            return dict.fromkeys(_SHOWN, "")


def _instead(name: str, header: dict[str, str]) -> tuple[str, str]:
    """What stands for a patient where no ID does, and its value."""
    if header["StudyInstanceUID"]:
        return "study", header["StudyInstanceUID"]
    if header["SeriesInstanceUID"]:
        return "series", header["SeriesInstanceUID"]
    if "/" in name:
        return "folder", name.rsplit("/", 1)[0]
    return "file", name


# Pictures -----------------------------------------------------------------------------


def of_pictures(
    folder: Path, names: Sequence[str], reading: image_files.Reading
) -> Guess:
    """Groups of pictures that look alike, or nearly and are neighbours by their names.

    Raises
    ------
    MedlmError
        If files cannot be read, or there are too many to compare.
    """
    from medlm_utils import image_files
    from medlm_utils.cli import ct_leaks

    if len(names) > ct_leaks.MOST_IMAGES:
        raise MedlmError(
            f"{folder} holds {len(names):,} pictures; expected at most "
            f"{ct_leaks.MOST_IMAGES:,}, since each is compared with all others. Make "
            "the table by hand, or folder by folder."
        )
    found = image_files.read(folder, names, reading)
    pairs = _linked(found)
    number = ct_leaks.groups(len(found.names), pairs)
    order = {old: new for new, old in enumerate(dict.fromkeys(number.tolist()), 1)}
    digits = len(str(len(order)))
    patient = [f"group{order[old]:0{digits}d}" for old in number.tolist()]
    sizes = collections.Counter(patient)
    alone = sum(count == 1 for count in sizes.values())
    words = [
        f"{len(sizes)} groups of {len(patient)} pictures that look alike: a guess, not "
        f"knowledge; {alone} pictures look like no other one",
        *found.warnings,
    ]
    if ct_leaks.is_no_guide(len(patient), pairs):
        words.append(
            f"{max(sizes.values())} of {len(patient)} pictures form one group: they "
            "look too much alike to tell people apart; take the patients from "
            "elsewhere"
        )
    return Guess(list(found.names), patient, words, found.skipped, found.values)


def _linked(found: image_files.Images) -> np.ndarray:
    """(pairs, 2) rows that are taken to be of one patient."""
    from medlm_utils.cli import ct_leaks

    bits = ct_leaks.hashes(found.values)
    near = ct_leaks.near(bits, ct_leaks.NEAR_NEIGHBOUR)
    apart = (bits[near[:, 0]] != bits[near[:, 1]]).mean(axis=1)
    numbered = [_numbered(name) for name in found.names]
    close = [_are_neighbours(numbered[a], numbered[b]) for a, b in near.tolist()]
    kept = near[(apart <= ct_leaks.NEAR) | np.array(close, bool)]
    equal = [
        np.stack([rows[:-1], rows[1:]], axis=1)
        for rows in ct_leaks.equal(found.digests)
    ]
    return np.concatenate([kept, *equal])


def _numbered(name: str) -> tuple[str, int] | None:
    """The name without its last number, and that number."""
    found = re.fullmatch(r"(.*?)(\d+)(\D*)", name)
    return (found[1] + found[3], int(found[2])) if found else None


def _are_neighbours(one: tuple[str, int] | None, other: tuple[str, int] | None) -> bool:
    if one is None or other is None or one[0] != other[0]:
        return False
    return abs(one[1] - other[1]) == 1


# The page -----------------------------------------------------------------------------

_CSS = """
.group { display: flex; flex-wrap: wrap; gap: .3rem; }
.group figure { max-width: 6rem; } .group figcaption { font-size: .7rem; }
"""


def page(guess: Guess) -> str:
    """The groups as an HTML page with small pictures, the largest groups first."""
    lines = "".join(f"<li>{pages.text(line)}</li>" for line in guess.words)
    caution = (
        f'<p class="caution" role="note"><strong>Patients.</strong> '
        f"{pages.text(CAUTION)}</p>"
    )
    rows = collections.defaultdict(list)
    for row, name in enumerate(guess.patient):
        rows[name].append(row)
    groups = sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))
    drawn, left = [], MOST_THUMBNAILS
    for name, of_group in groups:
        shown = of_group[: min(OF_A_GROUP, left)]
        if not shown:
            break
        left -= len(shown)
        drawn.append(_group(guess, name, of_group, shown))
    rest = len(groups) - len(drawn)
    after = f"<p>{rest:,} more groups are in the table alone.</p>" if rest else ""
    body = f"{caution}<ul>{lines}</ul>{''.join(drawn)}{after}"
    return pages.whole("Whose images are these? A guess", body, _CSS)


def _group(guess: Guess, name: str, rows: list[int], shown: list[int]) -> str:
    images: Any = guess.images
    each = "".join(
        f'<figure><img src="{ct_pictures.thumbnail(images[row])}" '
        f'alt="{pages.text(guess.names[row])}"/>'
        f"<figcaption>{pages.text(guess.names[row])}</figcaption></figure>"
        for row in shown
    )
    count = f"{len(rows)} pictures" if len(rows) > 1 else "1 picture"
    more = f", of which {len(shown)} are shown" if len(shown) < len(rows) else ""
    return (
        f"<section><h2>{pages.text(name)}: {count}{more}</h2>"
        f'<div class="group">{each}</div></section>\n'
    )


def _tell(chosen: argparse.Namespace, guess: Guess) -> None:
    for name, why in guess.skipped:
        print(f"left out: {name}: {why}")
    print(f"{guess.words[0]}.")
    for words in guess.words[1:]:
        print(f"Warning: {words}.")
    print(f"Wrote {len(guess.names):,} rows: {chosen.output}")
    if guess.images is not None:
        print(
            f"Look at {page_of(chosen.output)}, which shows images of patients, and "
            "correct the table."
        )
