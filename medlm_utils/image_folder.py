"""A folder of images with the table of its patients: classes, splits, what leaks.

Knows nothing about networks.

Axes: `slices height width`.

Source: chapter 5.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medlm_utils import image_files
from medlm_utils.ct import LUNG, Window, some
from medlm_utils.runtime import MedlmError

Row = dict[str, str]  # of a table, by the name of the column


@dataclasses.dataclass(frozen=True)
class Folder:
    """The images of a folder, all of one size and kind, and whose they are.

    Parameters
    ----------
    images
        (slices, height, width): int16 in HU from DICOM files, uint8 from pictures.
    files
        (slices,) names within the folder, with ``/``.
    classes
        Names, as `ordered_classes` has them: of two, the second is the positive one.
    why
        How the positive class of two is known; of more, how it is known that the first
        one means "nothing found", and empty where it is not.
    label
        (slices,) numbers of classes.
    patient
        (slices,) as the table says.
    split
        (slices,) as the table or the folders say; None if neither does.
    skipped
        Files that could not be read, and why.
    digests
        (slices,) the same for files of the same pixels.
    header_patients
        (slices,) as the DICOM files name them; empty where they do not.
    warnings
        What a reader of results has to know of files and table.

    Source: chapter 5.
    """

    images: np.ndarray
    files: tuple[str, ...]
    classes: tuple[str, ...]
    why: str
    label: np.ndarray
    patient: np.ndarray
    split: np.ndarray | None
    skipped: tuple[tuple[str, str], ...] = ()
    digests: tuple[str, ...] = ()
    header_patients: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def window(self) -> Window | None:
        """For `to_tensor`: the lung window for HU, None for pictures."""
        return LUNG if self.images.dtype == np.int16 else None


def read_folder(
    folder: str | Path,
    patients: str | Path | None,
    reading: image_files.Reading | None = None,
    positive: str | None = None,
) -> Folder:
    """A folder of pictures or DICOM files, with the table of its patients.

    Parameters
    ----------
    folder
        Each class in a folder of its own, such as ``normal/`` and ``abnormal/``,
        perhaps below ``train/``, ``val/`` and ``test/``; or any folder, and the table
        says the labels. What the table says is believed.
    patients
        A CSV file with the columns ``file`` (its name within the folder) and
        ``patient``, perhaps ``label`` and ``split``. Other columns do not matter.
    reading
        How each file becomes an image; by default as it is.
    positive
        Of two classes, the one that is looked for. By default the names say it.

    Raises
    ------
    MedlmError
        If there is no table, or it does not fit the files; a file is damaged or cut
        short; sizes, modes or kinds differ; there is one class, or nobody can tell
        which of two is the positive one; or a patient is in two splits.

    Source: chapter 5.
    """
    folder, table = Path(folder), Path(str(patients))
    names = [path.relative_to(folder).as_posix() for path in image_files.find(folder)]
    rows, remarks = rows_of(names, folder, patients)
    found = image_files.read(folder, names, reading or image_files.Reading())
    of_file = [rows[name] for name in found.names]
    patient = np.array([row["patient"] for row in of_file])
    where = places(found.names, patient.tolist())
    labels, told = labels_of(found.names, where, of_file, table)
    split, said = _splits(where, of_file, table)
    odd = one_image_each(found.names, patient)
    classes, why = ordered_classes(labels, positive, told)
    if len(classes) < 2:
        raise MedlmError(
            f"All {len(labels)} images in {folder} are of the class {classes[0]!r}; "
            "expected at least two classes, each in a folder of its own or named in "
            "the column label of the table."
        )
    return Folder(
        images=found.values,
        files=tuple(found.names),
        classes=classes,
        why=why,
        label=np.array([classes.index(name) for name in labels]),
        patient=patient,
        split=split,
        skipped=tuple(found.skipped),
        digests=tuple(found.digests),
        header_patients=tuple(found.header_patients),
        warnings=(*found.warnings, *remarks, *said, *odd),
    )


# The table ----------------------------------------------------------------------------

# How the headings of a table may be written; capitals, blanks and _ do not matter. Of
# several columns the first kind of name is taken.
_HEADINGS = {
    "file": (
        ("file",),
        ("filename", "filepath", "path", "imagefile", "imagepath", "imagename"),
        ("image", "img", "picture", "slice"),
    ),
    "patient": (
        ("patient",),
        ("patientid", "patientname", "patientnumber", "subject", "subjectid", "pid"),
        ("case", "caseid", "participant", "participantid"),
        ("id",),
    ),
    "label": (("label",), ("labels", "class")),
    "split": (("split",), ("splits",)),
}
_NO_VALUE = {"", "nan", "na", "n/a", "#n/a", "<na>", "null"}


def read_table(path: str | Path | None) -> dict[str, Row]:
    r"""The rows of a table of patients, by file.

    Parameters
    ----------
    path
        A file with the columns ``file`` and ``patient``, perhaps others, separated by
        commas, semicolons or tabs. Such names as ``PatientID`` or ``filename`` do too.

    Returns
    -------
    dict
        File to row, with ``file`` and ``patient``, and ``label`` and ``split`` where
        there are such columns. ``\`` in names of files is ``/``.

    Raises
    ------
    MedlmError
        If there is no such file, it lacks a column, or a row has no file or patient.
    """
    if path is None or not Path(path).is_file():
        missing = "There is no table of patients" if path is None else f"No file {path}"
        raise MedlmError(
            f"{missing}; expected a CSV file with the columns file and patient, such "
            "as `medlm ct-patients` writes. Without it slices of one patient would "
            "come into training and test, and the result would be too good."
        )
    heading, lines = _lines(Path(path))
    columns = _columns(Path(path), heading)
    by_file: dict[str, Row] = {}
    for line in lines:
        if not any(field.strip() for field in line):
            continue
        row = {
            what: line[place].strip() if place < len(line) else ""
            for what, place in columns.items()
        }
        name = row["file"].replace("\\", "/").removeprefix("./")
        if any(field.strip() for field in line[len(heading) :]):
            raise MedlmError(
                f"The row of {name} in {path} has {len(line)} cells, and the heading "
                f"{len(heading)}; expected as many. A cell with the mark that "
                "separates cells needs quotation marks around it."
            )
        if not name or row["patient"].lower() in _NO_VALUE:
            raise MedlmError(
                f"{path} has a row without a {'file' if not name else 'patient'}: "
                f"{', '.join(row.values())}. Expected both in every row."
            )
        if name in by_file:
            raise MedlmError(f"{path} names {name} twice; expected one row a file.")
        by_file[name] = row
    return by_file


def _lines(path: Path) -> tuple[list[str], list[list[str]]]:
    """The heading of a table, and its rows; the mark that separates is found."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = text.splitlines(keepends=True)
        if lines and lines[0].lower().startswith("sep="):  # Excel's own
            del lines[0]
        most = max(",;\t|", key=lambda mark: len(_known(lines[:1], mark)))
        heading, *rows = list(csv.reader(lines, delimiter=most)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MedlmError(
            f"{path} cannot be read; expected a CSV file in UTF-8. Save it as one."
        ) from error
    return [name.strip() for name in heading], rows


def _known(lines: list[str], mark: str) -> list[str]:
    """The names of a heading that mean something, were this its mark."""
    names = {_plain(name) for name in next(csv.reader(lines, delimiter=mark), [])}
    kinds = (kind for kinds in _HEADINGS.values() for kind in kinds)
    return [name for kind in kinds for name in kind if name in names]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _columns(path: Path, heading: list[str]) -> dict[str, int]:
    """Where the columns stand that matter."""
    plain = [_plain(name) for name in heading]
    found: dict[str, int] = {}
    for what, kinds in _HEADINGS.items():
        for kind in kinds:
            fits = [place for place, name in enumerate(plain) if name in kind]
            if len(fits) > 1:
                raise MedlmError(
                    f"{path} has {len(fits)} columns that may be the {what}: "
                    f"{', '.join(heading[place] for place in fits)}. Expected one; "
                    f"call it {what}, and the others something else."
                )
            if fits:
                found[what] = fits[0]
                break
    for what in ("file", "patient"):
        if what not in found:
            raise MedlmError(
                f"{path} has no column {what!r}; it has "
                f"{', '.join(heading) or 'none'}. Expected the columns file and "
                "patient, separated by commas, semicolons or tabs."
            )
    return found


def rows_of(
    names: Sequence[str], folder: Path, table: str | Path | None
) -> tuple[dict[str, Row], list[str]]:
    """The row of each file of a folder, and what is odd about the table.

    Parameters
    ----------
    names
        Of the images in the folder.
    folder
        Where they lie.
    table
        As `read_table` takes it. A file may be named with the folders above it, or
        without any, as long as it is clear which one is meant.

    Returns
    -------
    tuple
        File to row, and the remarks. Patients who differ only in capitals, spaces or
        zeros, such as 5, 5.0 and 005, are one, named as the first row does; ``written``
        is what stands in the table.

    Raises
    ------
    MedlmError
        As in `read_table`; and if an image is not in the table, or the other way round.
    """
    given = read_table(table)
    meant = _meant(list(given), names, Path(str(table)))
    unknown = sorted(set(names) - set(meant.values()))
    if unknown:
        raise MedlmError(
            f"{len(unknown)} of {len(names)} images in {folder} are not in {table}: "
            f"{some(unknown)}. Expected the patient of every image, its file named as "
            "in the folder, such as normal/p1_0.png."
        )
    missing = sorted(name for name in given if name not in meant)
    if missing:
        raise MedlmError(
            f"{len(missing)} files of {table} are not in {folder}, or are no images: "
            f"{some(missing)}. Expected all of them; copy them, or take the rows out."
        )
    rows = {meant[name]: row for name, row in given.items()}
    alike = _written_otherwise(row["patient"] for row in rows.values())
    remarks = [
        f"{some(alike)} in {Path(str(table)).name} are written differently and count "
        "as one patient; give other people other names"
    ]
    first: dict[str, str] = {}
    for row in rows.values():
        row["written"] = row["patient"]
        row["patient"] = first.setdefault(_bare(row["patient"]), row["patient"])
    return rows, remarks if alike else []


def _meant(given: list[str], names: Sequence[str], table: Path) -> dict[str, str]:
    """The name in a table to the file of the folder, where it is clear."""
    by_last: dict[str, list[str]] = {}
    for name in names:
        for last in {_parts(name)[-1], _parts(name)[-1].rsplit(".", 1)[0]}:
            by_last.setdefault(last, []).append(name)
    meant, known = {}, set(names)
    for name in given:
        likely = [name] if name in known else _likely(name, by_last)
        if len(likely) > 1:
            raise MedlmError(
                f"{table} names {name}, and that may be {some(likely)}. Expected it "
                f"named as in the folder, such as {likely[0]}."
            )
        if likely:
            meant[name] = likely[0]
    for file, count in collections.Counter(meant.values()).items():
        if count > 1:
            twice = [name for name, other in meant.items() if other == file]
            raise MedlmError(
                f"{table} names {file} twice, as {some(twice)}; expected one row a "
                "file."
            )
    return meant


def _likely(name: str, by_last: dict[str, list[str]]) -> list[str]:
    """The files that a name in a table may mean."""
    parts = _parts(name)
    others = by_last.get(parts[-1], [])
    folders = parts[:-1]
    fits = []
    for other in others:
        pairs = zip(reversed(folders), reversed(_parts(other)[:-1]), strict=False)
        if all(a == b for a, b in pairs):
            fits.append(other)
    is_absolute = name.startswith("/") or name[1:2] == ":"
    return fits or (others if is_absolute else [])


def _parts(name: str) -> list[str]:
    return name.lower().split("/")


def _written_otherwise(values: Iterable[str]) -> list[str]:
    """Names that differ only in how they are written, such as 5, 5.0 and 005."""
    kinds: dict[str, list[str]] = {}
    for value in dict.fromkeys(values):
        kinds.setdefault(_bare(value), []).append(value)
    return [" and ".join(kind) for kind in kinds.values() if len(kind) > 1]


def _bare(value: str) -> str:
    """5 for 5, 5.0 and 005; p1 for P1 and "P 1"; accents in one of their two ways."""
    value = unicodedata.normalize("NFKC", value)
    if re.fullmatch(r"\d+([.,]0*)?", value):
        return str(int(re.split("[.,]", value)[0]))
    return "".join(value.casefold().split())


def one_image_each(names: Sequence[str], patient: np.ndarray) -> list[str]:
    """A warning where the table says of every image that it is of another patient."""
    if len(patient) < 3 or len(set(patient.tolist())) < len(patient):
        return []
    bare = [_parts(name)[-1].rsplit(".", 1)[0] for name in names]
    ends = [p.lower().replace("\\", "/").split("/")[-1] for p in patient.tolist()]
    pairs = zip(ends, bare, strict=True)
    named = sum(end.rsplit(".", 1)[0] == stem or end == stem for end, stem in pairs)
    how = ", named as its file" if 2 * named > len(patient) else ""
    return [
        f"the table has a patient of its own for every image{how}: nobody can see "
        "whether two images are of one person. If they are, a split is no split by "
        "patient, every number is too good and every interval too narrow"
    ]


# Classes and splits of folders --------------------------------------------------------

_SPLIT_WORDS = {
    "train": (
        *("train", "training", "trn", "tr", "训练", "训练集", "訓練"),
        *("entrainement", "apprentissage", "entrenamiento"),
    ),
    "val": (
        *("val", "valid", "validation", "dev", "development", "验证", "验证集"),
        *("validierung", "validacion"),
    ),
    "test": (
        *("test", "testing", "tst", "holdout", "测试", "测试集", "測試"),
        *("prueba", "pruebas"),
    ),
}
_OF_SPLITS = {"set", "data", "images", "image", "imgs", "split", "ct", "folder", "dir"}


def split_of(word: str) -> str | None:
    """train, val or test, if a word such as ``Training`` or ``test_set`` means that."""
    tokens = [t for t in _tokens(word) if t not in _OF_SPLITS and not t.isdigit()]
    joined = "".join(tokens).removesuffix("set")
    for name, words in _SPLIT_WORDS.items():
        if joined in words:
            return name
    return None


class Place(NamedTuple):
    """What the folders of a file say; empty where they say nothing."""

    name: str  # of the class
    split: str
    below: str = ""  # the folder within that of the class


def places(names: Sequence[str], patient: Sequence[str]) -> list[Place]:
    """Class and split of each file, by its folders.

    A folder around everything is passed over. Where most folders of a level are called
    train, val, test or the like, that level is the split, and another one the class.

    Parameters
    ----------
    names
        Of files, with ``/``.
    patient
        Whose they are: folders of one patient each are no classes.

    Raises
    ------
    MedlmError
        If a folder beside ``train/`` and ``test/`` says no split.
    """
    folders = [name.split("/")[:-1] for name in names]
    split = [""] * len(names)
    level = _split_level(folders)
    if level is not None:
        words = {f[level]: split_of(f[level]) for f in folders}
        odd = sorted(word for word, split in words.items() if split is None)
        if odd:
            said = ", ".join(f"{word}/" for word in sorted(set(words) - set(odd)))
            raise MedlmError(
                f"The folders {said} say a split, and {odd[0]}/ beside them does not; "
                "expected train, val or test. Move it elsewhere, or give the table "
                "the columns label and split and the files other folders."
            )
        split = [words[f[level]] or "" for f in folders]
        folders = [f[:level] + f[level + 1 :] for f in folders]
    depth = _wrappers(folders, patient)
    tops = [f[depth] if len(f) > depth else "" for f in folders]
    within = [f[depth + 1] if len(f) > depth + 1 else "" for f in folders]
    return [Place(*said) for said in zip(tops, split, within, strict=True)]


def _split_level(folders: list[list[str]]) -> int | None:
    for level in range(min(map(len, folders), default=0)):
        words = {f[level] for f in folders}
        known = [word for word in words if split_of(word)]
        if len({split_of(word) for word in known}) > 1 and 2 * len(known) > len(words):
            return level
    return None


def _wrappers(folders: list[list[str]], patient: Sequence[str]) -> int:
    """How many levels are the same for all files, above folders of classes."""
    for level in range(min(map(len, folders), default=0)):
        inside: dict[str, set[str]] = {}
        for f, whose in zip(folders, patient, strict=True):
            inside.setdefault(f[level], set()).add(whose)
        if len(inside) > 1:
            # Folders of a patient each are below the class, which is then the wrapper.
            return level if any(len(some) > 1 for some in inside.values()) else 0
    return 0


def labels_of(
    names: Sequence[str], where: Sequence[Place], rows: Sequence[Row], table: Path
) -> tuple[list[str], dict[str, str]]:
    """The class of each file: of its folder, or of the table.

    Parameters
    ----------
    names, where, rows
        Of each file: its name, what its folders say, and its row of the table.
    table
        For the words of an error.

    Returns
    -------
    tuple
        Classes; and, where folders and table say the same, the folder's in words, with
        what the table calls each of them.

    Raises
    ------
    MedlmError
        If a file has no class, or folders and table contradict each other.
    """
    folders = [place.name for place in where]
    if not any("label" in row for row in rows):
        whose = [row["patient"] for row in rows]
        check_are_classes(names, where, whose, table)
        return folders, {}
    labels = [row["label"] for row in rows]
    nameless = [n for n, lab in zip(names, labels, strict=True) if not lab]
    if nameless:
        raise MedlmError(
            f"{len(nameless)} rows of {table} have no label: {some(nameless)}. "
            "Expected one in every row, or no column label."
        )
    alike = _written_otherwise(labels)
    if alike:
        raise MedlmError(
            f"The column label of {table} writes a class in two ways: {some(alike)}. "
            "Expected one."
        )
    pairs = collections.Counter(zip(folders, labels, strict=True))
    if len(pairs) == len(set(folders)) == len(set(labels)):
        return folders, dict(pairs.keys())
    if len(set(folders)) == len(set(labels)) > 1 and _nearly_agree(pairs):
        said = [f"{label} in {top}/" for top, label in sorted(pairs)]
        raise MedlmError(
            f"The column label of {table} and the folders do not agree: "
            f"{some(said, 6)}. Expected one label a folder, or labels without such "
            "folders."
        )
    return labels, {}


def check_are_classes(
    names: Sequence[str], where: Sequence[Place], patient: Sequence[str], table: Path
) -> None:
    """Refuse folders that are not those of classes, or may be others.

    Parameters
    ----------
    names, where, patient
        Of each file: its name, what its folders say, and whose it is.
    table
        For the words of an error.

    Raises
    ------
    MedlmError
        If a file has no folder, or folders are those of patients, of splits and classes
        at once, or of sites, years or folds.
    """
    loose = [name for name, place in zip(names, where, strict=True) if not place.name]
    if loose:
        raise MedlmError(
            f"{len(loose)} images have no class: {some(loose)}. Expected each "
            f"class in a folder of its own, or a column label in {table}."
        )
    pairs = {(place.name, name) for place, name in zip(where, patient, strict=True)}
    tops = {place.name for place in where}
    if len(pairs) == len(tops) > 2:
        raise MedlmError(
            f"Each of the {len(tops)} folders, such as {some(sorted(tops))}, holds one "
            "patient: these are folders of patients, not of classes. Expected each "
            f"class in a folder of its own, or a column label in {table}."
        )
    _check_one_way(tops, table)
    _check_level(where, patient, table)


def _check_one_way(tops: set[str], table: Path) -> None:
    """Refuse folders that name a class twice, or a class and a split at once."""
    alike = _written_otherwise(sorted(tops))
    if alike:
        raise MedlmError(
            f"The folders write a class in two ways: {some(alike)}. Expected one."
        )
    cuts = [_tokens(top) or [""] for top in tops]
    ends = {split_of(cut[0]) or split_of(cut[-1]) for cut in cuts}
    if None not in ends and len(ends) > 1:
        raise MedlmError(
            f"The folders {some(sorted(tops), 6)} name a split and a class at once; "
            "expected a folder of each split with a folder of each class in it, or "
            f"the columns label and split in {table}."
        )


def _check_level(where: Sequence[Place], patient: Sequence[str], table: Path) -> None:
    """Refuse folders of sites, years or folds that all hold the same folders."""
    whose: dict[str, set[str]] = {}
    above: dict[str, set[str]] = {}
    for place, name in zip(where, patient, strict=True):
        if place.below:
            whose.setdefault(place.below, set()).add(name)
            above.setdefault(place.below, set()).add(place.name)
    shared = sorted(
        name for name in above if len(above[name]) > 1 and len(whose[name]) > 1
    )
    tops = sorted({place.name for place in where})
    if len(shared) > 1 and not (_say_a_class(tops) and not _say_a_class(shared)):
        raise MedlmError(
            f"The folders {some(tops)} hold the same folders, {some(shared)}; expected "
            "to know which of them are the classes. Move the files, or say it in a "
            f"column label of {table}."
        )


def _say_a_class(names: Sequence[str]) -> bool:
    return any(_rank(name, names) is not None for name in names)


def _nearly_agree(pairs: Mapping[tuple[str, str], int]) -> bool:
    """Whether a few labels of a table are slips, and not about something else."""
    most: dict[str, tuple[int, str]] = {}
    for (top, label), count in pairs.items():
        most[top] = max(most.get(top, (0, "")), (count, label))
    agreed = sum(count for count, _ in most.values())
    apart = len({label for _, label in most.values()}) == len(most)
    return apart and agreed > 0.75 * sum(pairs.values())


def _splits(
    where: list[Place], rows: Sequence[Row], table: Path
) -> tuple[np.ndarray | None, list[str]]:
    """(slices,) splits, of the table or else of the folders; and what is odd."""
    by_folder = np.array([place.split for place in where])
    told = np.array([row.get("split", "") for row in rows])
    if (told == "").all():
        if not by_folder.any():
            return None, []
        _check_splits(rows, by_folder, "the folders")
        return by_folder, []
    _check_splits(rows, told, str(table))
    differ = [split_of(a) != b for a, b in zip(told, by_folder, strict=True) if b]
    remark = (
        f"{sum(differ)} images lie in a folder of another split than {table.name} "
        "says; the table was believed"
    )
    return told, [remark] if any(differ) else []


def _check_splits(rows: Sequence[Row], split: np.ndarray, who: str) -> None:
    """No patient in two splits, as far as any are named."""
    nameless = split == ""
    if nameless.any():
        raise MedlmError(
            f"{nameless.sum()} of {len(split)} rows of {who} have no split; expected "
            "one in every row, or no column split."
        )
    of_patient: dict[str, tuple[str, str]] = {}
    for row, part in zip(rows, split.tolist(), strict=True):
        here = row["written"]
        there, other = of_patient.setdefault(row["patient"], (here, part))
        if other != part:
            name = here if here == there else f"{there}, also written {here},"
            raise MedlmError(
                f"The patient {name} is in two splits of {who}, {other} and {part}; "
                "expected each patient in one. Slices of one patient look alike, so "
                "the test would be no test."
            )


# Which class is the positive one ------------------------------------------------------


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words of names of classes, without accents, in English, German, French, Spanish and
# Chinese. They are compared with whole tokens; Chinese has none, so with parts.
_NOTHING = _words(
    "normal normals healthy control controls negative negatives neg none absent "
    "absence unremarkable nothing nc hc false "
    "normale normaler normalbefund gesund gesunde gesunder "  # codespell:ignore
    "unauffallig negativ kontrolle kontrollen falsch nein "  # codespell:ignore
    "normaux sain saine sains temoin temoins negatif negatifs faux "
    "controle controles absente "  # codespell:ignore
    "normales sano sana sanos sanas negativo negativa falso "  # codespell:ignore
    "ausente ausencia"
)
_LESSER = _words(
    "benign bengin gutartig gutartige gutartiger benin benins benigne benigno benigna"
)
_POSITIVE = _words(
    "abnormal pathological pathologic positive positives pos yes true sick ill "
    "diseased pathologisch positiv krank kranke auffallig ja wahr "  # codespell:ignore
    "anormal anormale anormales pathologique positif oui "  # codespell:ignore
    "malade malades vrai patologico patologica positivo positiva si enfermo enferma "
    "enfermos"
)
_FOUND = _POSITIVE | _words(
    "disease diseases patient patients finding findings malignant malignancy cancer "
    "cancers cancerous carcinoma adenocarcinoma tumor tumors tumour tumours covid "
    "covid19 corona coronavirus sarscov2 ncov pneumonia hemorrhage hemorrhages "
    "haemorrhage hemorrhagic bleeding bleed bleeds ich lesion lesions nodule nodules "
    "infected infection affected stroke fracture effusion emphysema fibrosis "
    "metastasis metastases embolism pe suspicious "
    "patienten befund bosartig bosartige maligne maligner krebs karzinom tumoren "
    "pneumonie blutung lasion lasionen nodul infektion schlaganfall fraktur emphysem "
    "malin carcinome tumeur tumeurs hemorragie paciente pacientes maligno maligna "
    "tumores neumonia hemorragia sangrado infeccion fractura"  # codespell:ignore
)
_NOT = _words(
    "no non not without nicht ohne kein keine keinen keiner sans pas aucun aucune sin "
    "ningun ninguna"
)
_FREE = _words("free frei libre libres")  # after what is not there
_NORMAL_WHAT = {"dose", "pressure", "weight", "size"}
_FILLERS = _words("de of du des d la le el")
_NOTHING_ZH = ("正常", "健康", "阴性", "陰性", "对照", "對照", "否")
_LESSER_ZH = ("良性",)
_POSITIVE_ZH = ("异常", "異常", "阳性", "陽性", "患病", "是")
_FOUND_ZH = (
    *_POSITIVE_ZH,
    *("患者", "病人", "恶性", "惡性", "肿瘤", "腫瘤", "癌", "出血", "肺炎", "新冠"),
    *("结节", "結節", "感染", "骨折", "病变", "病變"),
)
_NOT_ZH = ("没有", "沒有", "未见", "未見", "无", "無", "非", "不")


def ordered_classes(
    labels: Iterable[str],
    positive: str | None = None,
    told: Mapping[str, str] | None = None,
) -> tuple[tuple[str, ...], str]:
    """The classes of labels in order, and how the positive one of two is known.

    Of two classes the second is the positive one, which is looked for. Of more the one
    that means "nothing found" is first, then what is benign, then the others, sorted.

    Parameters
    ----------
    labels
        Names, as often as they come.
    positive
        The positive class of two; by default it is read off the names.
    told
        Another name of each class, such as 0 and 1, where there is one.

    Raises
    ------
    MedlmError
        If `positive` is no class or there are more than two; or if it is not given and
        neither name, or both, say that nothing was found.
    """
    names = sorted(set(labels), key=_by_number)
    if positive is not None:
        return _as_asked(names, positive)
    if len(names) != 2:
        kinds = {name: _rank(name, names) for name in names}
        first = [name for name in names if kinds[name] == 0]
        lesser = [name for name in names if kinds[name] == 1]
        why = f"{first[0]!r} says that nothing was found" if len(first) == 1 else ""
        return tuple(dict.fromkeys([*first, *lesser, *names])), why
    by_name, why = _sure(names[0], names[1])
    if told and len(set(told.values())) == 2:
        number, reason = _sure(told[names[0]], told[names[1]])
        if by_name is not None and number is not None and by_name != number:
            raise _unsure(
                names, "their names and the column label contradict each other"
            )
        if by_name is None and number is not None:
            by_name, why = number, f"the column label: {reason}"
    if by_name is None:
        raise _unsure(names, why)
    return (names[1 - by_name], names[by_name]), why


def _by_number(name: str) -> tuple[float, str]:
    return float(name) if name.isdecimal() else math.inf, name


def _as_asked(names: list[str], positive: str) -> tuple[tuple[str, ...], str]:
    if len(names) != 2:
        raise MedlmError(
            f"--positive {positive} names the positive one of two classes, and there "
            f"are {len(names)}: {some(names, 6)}. Leave it out."
        )
    fits = [n for n in names if n.casefold() == positive.strip().casefold()]
    if positive in names:
        fits = [positive]
    if len(fits) != 1:
        raise MedlmError(
            f"--positive {positive} is none of the classes; expected {names[0]!r} or "
            f"{names[1]!r}."
        )
    other = next(name for name in names if name != fits[0])
    return (other, fits[0]), "--positive names it"


def _unsure(names: list[str], why: str) -> MedlmError:
    word = names[1] if " " not in names[1] else f'"{names[1]}"'
    return MedlmError(
        f"The classes are {names[0]!r} and {names[1]!r}, and {why}; expected to know "
        "which one is the positive class, that sensitivity and AUROC are about. Name "
        f"it with --positive, such as --positive {word}."
    )


def _sure(one: str, other: str) -> tuple[int | None, str]:
    """Which of two names is the positive one, 0 or 1, and why; None if unclear."""
    pair = (one, other)
    numbers = [_number(name) for name in pair]
    if None not in numbers:
        low, high = (numbers[0] or 0.0), (numbers[1] or 0.0)
        if min(low, high) <= 0 < max(low, high):
            return int(high > low), f"{pair[int(high < low)]} is not above 0"
        return None, "these numbers do not say which one means that nothing was found"
    ranks = [_rank(name, pair) for name in pair]
    nothing = [place for place, rank in enumerate(ranks) if rank == 0]
    if len(nothing) == 1:
        return 1 - nothing[0], f"{pair[nothing[0]]!r} says that nothing was found"
    if len(nothing) == 2:
        return None, "both names say that nothing was found"
    for place in (0, 1):
        if ranks[place] == 1 and ranks[1 - place] in (2, 3):
            return 1 - place, f"{pair[place]!r} is the lesser finding"
        if ranks[place] == 3 and ranks[1 - place] is None:
            return place, f"{pair[place]!r} says so"
    return None, "neither name says that nothing was found"


def _number(name: str) -> float | None:
    return float(name) if re.fullmatch(r"[-+]?\d+(\.\d+)?", name.strip()) else None


def _rank(name: str, among: Sequence[str]) -> int | None:
    """0 nothing found, 1 the lesser finding, 2 a finding, 3 just "positive"; None."""
    others = [other for other in among if other != name]
    if re.search("[\u4e00-\u9fff]", name):
        return _rank_zh(name, others)
    for cut in (_tokens, _tokens_by_capitals):
        rank = _rank_of_tokens(cut(name), [cut(other) for other in others])
        if rank is not None:
            return rank
    return None


def _rank_of_tokens(tokens: list[str], others: list[list[str]]) -> int | None:
    theirs = {token for other in others for token in other}
    # What all names share, such as "cases" or "CT", does not tell them apart.
    shared = set(tokens).intersection(*map(set, others)) if others else set()
    tokens = _with_prefixes(tokens, theirs)
    own = [t for t in tokens if t not in _FILLERS]
    for place, token in enumerate(own):
        rest = own[place + 1 :]
        if token in _NOT and not (rest and (rest[0] == "small" or rest[0].isdigit())):
            if any(word in _NOTHING for word in rest):
                return 3
            if not rest or theirs.intersection(rest) or rest[0] in _FOUND:
                return 0
        if token in _FREE and place:
            return 0
    # Normal dose, pressure or weight is about something else.
    pairs = zip(own, [*own[1:], ""], strict=True)
    own = [token for token, then in pairs if then not in _NORMAL_WHAT]
    left = [token for token in own if token not in shared]
    if _NOTHING.intersection(left) or left == ["0"]:
        return 0
    for rank, words in ((1, _LESSER), (3, _POSITIVE), (2, _FOUND)):
        if words.intersection(left):
            return rank
    return None


def _with_prefixes(tokens: list[str], theirs: set[str]) -> list[str]:
    """Tokens, with "noncovid" cut to "non" and "covid"."""
    known = _FOUND | _NOTHING | {word for word in theirs if len(word) > 2}
    cut: list[str] = []
    for token in tokens:
        for prefix in ("non", "not", "no", "un", "ohne", "kein", "sans", "sin"):
            rest = token.removeprefix(prefix)
            if rest != token and rest in known and token not in _NOTHING | _FOUND:
                cut += ["no", rest]
                break
        else:
            for suffix in ("free", "frei"):
                rest = token.removesuffix(suffix)
                if rest != token and rest in known:
                    cut += [rest, "free"]
                    break
            else:
                cut.append(token)
    return cut


def _rank_zh(name: str, others: list[str]) -> int | None:
    for no in _NOT_ZH:
        _, found, rest = name.partition(no)
        if not found or rest.startswith("小细胞"):  # non-small cell: a tumour
            continue
        if any(word in rest[:3] for word in _NOTHING_ZH):
            return 3
        starts = (*_FOUND_ZH, "明显", "明顯")
        if rest.startswith(starts) or any(rest and rest in other for other in others):
            return 0
    for rank, words in enumerate((_NOTHING_ZH, _LESSER_ZH)):
        if any(word in name for word in words):
            return rank
    if any(word in name for word in _FOUND_ZH):
        return 3 if any(word in name for word in _POSITIVE_ZH) else 2
    return None


def _tokens(name: str) -> list[str]:
    """CT_NonCOVID19 to ct, non, covid, 19: cut at marks, digits and capitals."""
    return _cut(name, r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_]+")


def _tokens_by_capitals(name: str) -> list[str]:
    """COVIDnegative to covid, negative."""
    return _cut(name, r"[A-Z]{2,}|[A-Z]?[a-z]+|\d+|[^\W\d_]+")


def _cut(name: str, pattern: str) -> list[str]:
    """Tokens in small letters, without accents."""
    bare = unicodedata.normalize("NFKD", name.replace("ß", "ss"))
    bare = "".join(sign for sign in bare if not unicodedata.combining(sign))
    return [token.lower() for token in re.findall(pattern, bare)]
