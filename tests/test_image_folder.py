"""image_folder.py: the positive class, splits of folders, tables of all spellings."""

import csv
import re
import shutil

import numpy as np
import pydicom
import pytest
from PIL import Image

from medlm_utils import ct, dicom, image_folder
from medlm_utils.runtime import MedlmError

# Which class is the positive one ------------------------------------------------------

# The first one means that nothing, or less, was found.
PAIRS = """
Normal cases|Malignant cases    CT_NonCOVID|CT_COVID        normal|benign
No Hemorrhage|Hemorrhage        benign|malignant            control|patient
neg|pos                         NC|COVID                    Negative|Positive
normal|abnormal                 healthy|sick                noncovid|covid
non-COVID|COVID                 COVID-negative|COVID-positive
COVIDnegative|COVIDpositive     no_tumor|tumor              notumor|tumor
NoFinding|Finding               0|1                         -1|1
class_0|class_1                 hemorrhage_0|hemorrhage_1   Healthy|Pneumonia
without nodule|with nodule      tumor-free|tumor            disease_free|diseased
uninfected|infected             healthy|unhealthy           normal|not normal
False|True                      no|yes                      NonDemented|Demented
normal_lung|lung_cancer         healthy_control|PE          Bengin cases|Malignant cases
正常|异常                        阴性|阳性                     良性|恶性
无出血|出血                      非新冠|新冠                   未见异常|异常
正常|不正常                      健康|患者
gesund|krank                    ohne Befund|mit Befund      unauffällig|auffällig
kein Tumor|Tumor                gutartig|bösartig
sain|malade                     témoin|patient              bénin|malin
sans lésion|avec lésion         pas de lésion|lésion        non|oui
sano|enfermo                    sin hallazgos|con hallazgos  normal|patológico
benigno|maligno                 negativo|positivo
"""
PAIRS = [
    tuple(pair.split("|")) for pair in re.split(r"\s{2,}|\n", PAIRS) if "|" in pair
]
PAIRS.append(("negativ", "positiv"))  # codespell:ignore


@pytest.mark.parametrize("pair", PAIRS, ids="|".join)
def test_the_positive_class_is_read_off_the_names(pair):
    for given in (pair, pair[::-1]):
        classes, why = image_folder.ordered_classes(given)
        assert classes == pair and why


# Nobody can tell these without knowing what is looked for.
UNSURE = [
    ("cyst", "stone"),
    ("left", "right"),
    ("1", "2"),
    ("class_1", "class_2"),
    ("normal", "healthy"),
    ("No finding", "Normal"),
    ("CAP", "COVID"),
    ("adenocarcinoma", "squamous"),
    ("small cell", "non-small cell"),
    ("SmallCell", "NonSmallCell"),
    ("小细胞肺癌", "非小细胞肺癌"),
    ("clear cell", "papillary"),
    ("normal_dose", "low_dose"),
    ("nodule", "non-specific infection"),
    ("benign", "cyst"),
    ("low", "high"),
    ("N", "P"),
]


@pytest.mark.parametrize("pair", UNSURE, ids="|".join)
def test_where_names_do_not_say_it_somebody_has_to(pair):
    for given in (pair, pair[::-1]):
        with pytest.raises(MedlmError, match="Name it with --positive") as caught:
            image_folder.ordered_classes(given)
        assert "\n" not in str(caught.value)
        classes, why = image_folder.ordered_classes(given, positive=pair[0])
        assert classes == pair[::-1] and "--positive" in why


def test_what_is_named_wins_and_has_to_be_a_class():
    order = image_folder.ordered_classes
    assert order(["normal", "abnormal"], "normal")[0] == ("abnormal", "normal")
    assert order(["Normal", "CAP"], " cap ")[0] == ("Normal", "CAP")
    with pytest.raises(MedlmError, match="none of the classes; expected 'a' or 'b'"):
        order(["a", "b"], "c")
    with pytest.raises(MedlmError, match="of two classes, and there are 3"):
        order(["a", "b", "c"], "c")


def test_another_name_of_a_class_helps():
    """Such as 0 and 1 in the column label, beside folders that say nothing."""
    order = image_folder.ordered_classes
    assert order(["cyst", "stone"], told={"cyst": "1", "stone": "0"})[0] == (
        *("stone", "cyst"),
    )
    with pytest.raises(MedlmError, match="contradict each other"):
        order(["normal", "ill"], told={"normal": "1", "ill": "0"})


def test_of_several_classes_what_means_nothing_found_is_first():
    for given, expected in {
        "glioma meningioma notumor pituitary": "notumor glioma meningioma pituitary",
        "10 9 0": "0 9 10",
        "COVID Negative other": "Negative COVID other",
        "malignant benign normal": "normal benign malignant",
        "c b a": "a b c",
    }.items():
        classes, why = image_folder.ordered_classes(given.split())
        assert classes == tuple(expected.split())
        assert bool(why) == (given[0] != "c" or "COVID" in given)


# Folders ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "split"),
    {
        **dict.fromkeys(["train", "Training", "train_set", "TrainingSet"], "train"),
        **dict.fromkeys(["images_train", "训练集"], "train"),
        **dict.fromkeys(["val", "valid", "validation", "Dev", "valid_data"], "val"),
        **dict.fromkeys(["test", "Testing", "hold_out", "holdout", "test1"], "test"),
        **dict.fromkeys(["normal", "contest", "trainer", "control", "attest"]),
    }.items(),
)
def test_words_for_splits(word, split):
    assert image_folder.split_of(word) == split


# How a file of class c, split s and patient p may lie; and whether folders say splits.
LAYOUTS = {
    "{c}/{p}_{n}.png": False,
    "dataset/{c}/{p}_{n}.png": False,
    "a/b/{c}/{p}_{n}.png": False,
    "images/{c}/{p}_{n}.png": False,
    "{c}/images/{p}_{n}.png": False,
    "{c}/{p}/{n}.png": False,
    "dataset/{c}/{p}/{n}.png": False,
    "{s}/{c}/{p}_{n}.png": True,
    "{s}/{c}/{p}/{n}.png": True,
    "{s}/images/{c}/{p}_{n}.png": True,
    "dataset/{s}/{c}/{p}_{n}.png": True,
    "{c}/{s}/{p}_{n}.png": True,
    "dataset/{c}/{s}/{p}_{n}.png": True,
    "{s}_set/{c}/images/{p}_{n}.png": True,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_classes_and_splits_of_folders(layout):
    made = [
        (number, c, s, f"{c[0]}{s[0]}{number}")
        for c in ("normal", "malignant")
        for s in ("Training", "valid", "test")
        for number in range(2)
    ]
    rows = [(layout.format(c=c, s=s, p=p, n=n), p, c, s) for n, c, s, p in made]
    found = image_folder.places([row[0] for row in rows], [row[1] for row in rows])
    assert [place.name for place in found] == [row[2] for row in rows]
    splits = [{"Training": "train", "valid": "val"}.get(r[3], r[3]) for r in rows]
    assert [p.split for p in found] == (splits if LAYOUTS[layout] else [""] * len(rows))


def test_a_folder_beside_splits_is_named():
    names = [f"{top}/normal/{n}.png" for top in ("train", "test", "more") for n in "ab"]
    with pytest.raises(MedlmError, match=r"test/, train/ say a split, and more/"):
        image_folder.places(names, names)


def test_one_word_for_a_split_is_a_class():
    """A test group and its controls."""
    names = [f"{top}/{n}.png" for top in ("test", "control") for n in "abc"]
    found = image_folder.places(names, names)
    assert {place.name for place in found} == {"test", "control"}
    assert {place.split for place in found} == {""}


def test_folders_of_patients_are_no_classes(tmp_path):
    rows = make(
        tmp_path, [(f"p{n}/{k}.png", f"p{n}", "") for n in range(4) for k in "ab"]
    )
    write_table(tmp_path / "patients.csv", rows)
    with pytest.raises(MedlmError, match="folders of patients, not of classes"):
        read(tmp_path)
    for row in rows:
        row["label"] = ("ill", "well")[row["patient"] in ("p0", "p1")]
    write_table(tmp_path / "patients.csv", rows)
    assert read_as(tmp_path, positive="ill").classes == ("well", "ill")


def make(folder, entries):
    """Small pictures with their rows: name, patient, and label unless it is empty."""
    rng = np.random.default_rng(0)
    rows = []
    for name, patient, label in entries:
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8)).astype(np.uint8)).save(path)
        rows.append(
            {"file": name, "patient": patient} | ({"label": label} if label else {})
        )
    return rows


def read_as(folder, **options):
    return image_folder.read_folder(
        folder / "images", folder / "patients.csv", **options
    )


def nested(folder, label=False):
    entries = [
        (f"{s}/{c}/{n}.png", f"{s}{c}{n}", c if label else "")
        for s in ("train", "test")
        for c in ("normal", "malignant")
        for n in range(3)
    ]
    return make(folder, entries)


@pytest.mark.parametrize("label", [False, True])
def test_folders_of_splits_hold_the_classes(tmp_path, label):
    rows = nested(tmp_path, label)
    write_table(tmp_path / "patients.csv", rows)
    found = read(tmp_path)
    assert found.classes == ("normal", "malignant")
    for file, split, number in zip(found.files, found.split, found.label, strict=True):
        assert file.startswith(f"{split}/{found.classes[number]}/")


def test_a_table_that_says_label_and_split_is_believed(tmp_path):
    rows = nested(tmp_path)
    for number, row in enumerate(rows):
        row["label"] = number % 2  # has nothing to do with the folders
        row["split"] = ("train", "val", "test")[number % 3]
    write_table(tmp_path / "patients.csv", rows)
    found = read(tmp_path)
    assert found.classes == ("0", "1")
    by_file = dict(
        zip(found.files, zip(found.label, found.split, strict=True), strict=True)
    )
    assert all(by_file[r["file"]] == (r["label"], r["split"]) for r in rows)
    assert any("another split than patients.csv" in words for words in found.warnings)


def test_a_slip_in_the_column_label_is_no_new_truth(tmp_path):
    rows = make(
        tmp_path,
        [(f"{c}/{n}.png", f"{c}{n}", c) for c in ("normal", "ill") for n in range(8)],
    )
    rows[3]["label"] = "ill"
    write_table(tmp_path / "patients.csv", rows)
    with pytest.raises(MedlmError, match="do not agree"):
        read(tmp_path)


def test_a_patient_in_two_folders_of_splits(tmp_path):
    rows = nested(tmp_path)
    rows[0]["patient"] = rows[-1]["patient"]
    write_table(tmp_path / "patients.csv", rows)
    with pytest.raises(MedlmError, match="in two splits of the folders"):
        read(tmp_path)


# Tables as people write them ----------------------------------------------------------


@pytest.fixture
def three(tmp_path):
    return make(
        tmp_path,
        [
            ("normal/x1.png", "5", ""),
            ("normal/x2.png", "6", ""),
            ("ill/y.png", "7", ""),
        ],
    )


def patients_of(found):
    return dict(zip(found.files, found.patient.tolist(), strict=True))


EXPECTED = {"normal/x1.png": "5", "normal/x2.png": "6", "ill/y.png": "7"}


@pytest.mark.parametrize(
    "heading",
    [
        ("File", "Patient"),
        (" file ", "patient_id"),
        ("filename", "PatientID"),
        ("path", "Subject"),
        ("Image", "ID"),
        ("file_name", "subject id"),
        ("\ufefffile", "Case ID"),
    ],
)
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_headings_and_marks(tmp_path, three, heading, mark):
    lines = [mark.join(heading), *(mark.join(row.values()) for row in three)]
    (tmp_path / "patients.csv").write_text("\n".join(lines), encoding="utf-8")
    assert patients_of(read(tmp_path)) == EXPECTED


def test_of_several_headings_the_surest_is_taken(tmp_path, three):
    rows = [{"ID": n, "image": "?", **row} for n, row in enumerate(three)]
    write_table(tmp_path / "patients.csv", rows)
    assert patients_of(read(tmp_path)) == EXPECTED
    write_table(tmp_path / "patients.csv", [row | {"Patient": 1} for row in three])
    with pytest.raises(MedlmError, match="2 columns that may be the patient"):
        read(tmp_path)


@pytest.mark.parametrize(
    "spelled",
    [
        "C:\\data\\images\\{}",
        "D:\\elsewhere\\{last}",
        "/home/me/images/{}",
        "images/{}",
        "./{}",
        "{last}",
        "{stem}",
    ],
)
def test_files_are_found_where_it_is_clear_which_are_meant(tmp_path, three, spelled):
    for row in three:
        last = row["file"].split("/")[1]
        name = spelled.format(row["file"], last=last, stem=last.removesuffix(".png"))
        row["file"] = name.replace("/", "\\") if "\\" in spelled else name
    write_table(tmp_path / "patients.csv", three)
    assert patients_of(read(tmp_path)) == EXPECTED


def test_a_bare_name_of_two_files_is_not_clear(tmp_path, three):
    shutil.copy(tmp_path / "images/ill/y.png", tmp_path / "images/normal/y.png")
    three[2]["file"] = "y.png"
    write_table(tmp_path / "patients.csv", three)
    with pytest.raises(MedlmError, match=r"may be ill/y\.png, normal/y\.png"):
        read(tmp_path)
    three[2]["file"] = "normal/y.png"  # says clearly another one than ill/y.png
    write_table(tmp_path / "patients.csv", three)
    with pytest.raises(MedlmError, match=r"not in .*ill/y\.png"):
        read(tmp_path)


SPELLED = [
    ("5", "5.0", "005"),
    ("P1", "p1", "p 1"),
    ("M\u00fcller", "Mu\u0308ller", "m\u00fcller"),  # as Windows and macOS write it
    ("12", "\uff11\uff12", "012"),  # digits of the width of Chinese signs
]


@pytest.mark.parametrize("names", SPELLED)
def test_patients_that_are_written_in_several_ways_are_one(tmp_path, three, names):
    rows = [row | {"patient": name} for row, name in zip(three, names, strict=True)]
    write_table(tmp_path / "patients.csv", rows)
    found = read(tmp_path)
    assert set(found.patient.tolist()) == {names[0]}
    words = [w for w in found.warnings if "count as one patient" in w]
    assert len(words) == 1 and all(name in words[0] for name in names)


@pytest.mark.parametrize("names", SPELLED)
def test_nor_may_they_be_in_two_splits(tmp_path, three, names):
    parts = ("train", "train", "test")
    rows = [
        row | {"patient": name, "split": part}
        for row, name, part in zip(three, names, parts, strict=True)
    ]
    write_table(tmp_path / "patients.csv", rows)
    with pytest.raises(MedlmError, match=r"also written .* in two splits") as caught:
        read(tmp_path)
    assert names[0] in str(caught.value) and names[2] in str(caught.value)


def placed(tmp_path, *tops):
    """Classes of images in folders such as ``fold1/normal``, two patients each."""
    rows = []
    for number, top in enumerate(tops):
        (tmp_path / "images" / top).mkdir(parents=True)
        for one in range(2):
            name = f"{top}/{one}.png"
            rows.append({"file": name, "patient": f"p{number}_{one}"})
            grey = np.random.default_rng(len(rows)).integers(0, 255, (12, 12))
            Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "images" / name)
    write_table(tmp_path / "patients.csv", rows)
    return read(tmp_path).classes


@pytest.mark.parametrize(
    "tops",
    [
        ("fold1", "fold2", "fold3"),
        ("2019", "2020"),
        ("hospital0", "hospital1"),
        ("kouluttaa", "testata"),  # splits in a language that is not known
    ],
)
def test_folders_that_hold_the_same_folders_may_be_no_classes(tmp_path, tops):
    both = [f"{top}/{label}" for top in tops for label in ("normal", "tumor")]
    with pytest.raises(MedlmError, match="hold the same folders, normal, tumor; "):
        placed(tmp_path, *both)
    rows = list(csv.DictReader((tmp_path / "patients.csv").open()))
    for row in rows:
        row["label"] = row["file"].split("/")[1]
    write_table(tmp_path / "patients.csv", rows)
    assert read(tmp_path).classes == ("normal", "tumor")


def test_what_lies_below_a_class_may_repeat(tmp_path):
    tops = [f"{label}/{kind}" for label in ("normal", "tumor") for kind in "ab"]
    assert placed(tmp_path, *tops) == ("normal", "tumor")


@pytest.mark.parametrize(
    "words",
    [
        ("Training", "Validierung", "Test"),
        ("entra\u00eenement", "validation", "test"),
        ("entrenamiento", "validaci\u00f3n", "prueba"),
    ],
)
def test_splits_in_other_languages(tmp_path, words):
    tops = [f"{word}/{label}" for word in words for label in ("normal", "tumor")]
    assert placed(tmp_path, *tops) == ("normal", "tumor")
    assert set(read(tmp_path).split.tolist()) == {"train", "val", "test"}


@pytest.mark.parametrize(
    "tops, said",
    [
        (("train_normal", "train_tumor", "test_normal", "test_tumor"), "at once"),
        (("normal-train", "tumor-test"), "at once"),
        (("train/Normal", "train/tumor", "test/normal"), "in two ways"),
    ],
)
def test_folders_that_name_a_class_badly(tmp_path, tops, said):
    with pytest.raises(MedlmError, match=said):
        placed(tmp_path, *tops)


def test_classes_may_have_the_word_of_a_split(tmp_path):
    found = placed(tmp_path, "test_negative", "test_positive")
    assert found == ("test_negative", "test_positive")


def test_a_row_of_more_cells_than_headings_is_refused(tmp_path, three):
    path = tmp_path / "patients.csv"
    write_table(path, three)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, ""]) + ",,,\n")  # as Excel leaves them
    read(tmp_path)
    path.write_text("\n".join([*lines[:-1], f"{lines[-1]}, Jane"]))
    with pytest.raises(MedlmError, match=r"The row of .* has 3 cells, and the heading"):
        read(tmp_path)


def test_a_patient_for_every_image_is_a_loud_warning(tmp_path, three):
    write_table(tmp_path / "patients.csv", [r | {"patient": r["file"]} for r in three])
    assert any("named as its file" in words for words in read(tmp_path).warnings)
    write_table(tmp_path / "patients.csv", three)
    words = [w for w in read(tmp_path).warnings if "for every image" in w]
    assert len(words) == 1 and "named as its file" not in words[0]
    write_table(
        tmp_path / "patients.csv", [r | {"patient": r["file"][0]} for r in three]
    )
    assert not read(tmp_path).warnings


# Whole folders ------------------------------------------------------------------------


def write_table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def pictures(tmp_path):
    """Class folders with PNG files, and a table: four patients of two slices each."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(4):
        name = ("normal", "abnormal")[number % 2]
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        for place in range(2):
            file = f"{name}/p{number}_{place}.png"
            values = rng.integers(0, 255, (12, 10)).astype(np.uint8)
            Image.fromarray(values).save(tmp_path / "images" / file)
            rows.append({"file": file, "patient": f"p{number}", "label": number % 2})
    write_table(tmp_path / "patients.csv", rows)
    return tmp_path


@pytest.fixture
def dicoms(tmp_path):
    (tmp_path / "images").mkdir()
    rows = []
    for number in range(4):
        content = pydicom.dcmread(dicom.sample_dicom())
        content.RescaleIntercept = str(-1024 - number)
        content.save_as(tmp_path / "images" / f"{number}.dcm")
        rows.append({"file": f"{number}.dcm", "patient": number, "label": number % 2})
    write_table(tmp_path / "patients.csv", rows)
    return tmp_path


def read(folder, **changes):
    return image_folder.read_folder(
        folder / "images", folder / "patients.csv", **changes
    )


def table_of(folder):
    with (folder / "patients.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_pictures_are_read_with_class_and_patient(pictures):
    found = read(pictures)
    assert found.images.shape == (8, 12, 10) and found.images.dtype == np.uint8
    assert found.classes == ("normal", "abnormal") and found.window is None
    for place, file in enumerate(found.files):
        with Image.open(pictures / "images" / file) as picture:
            np.testing.assert_array_equal(found.images[place], np.asarray(picture))
        assert found.patient[place] == file.split("/")[1][:2]
        assert found.classes[found.label[place]] == file.split("/")[0]
    assert found.split is None and found.skipped == ()


def test_labels_come_from_folders_where_the_table_has_none(pictures):
    rows = [{k: r[k] for k in ("file", "patient")} for r in table_of(pictures)]
    expected = read(pictures)
    write_table(pictures / "patients.csv", rows)
    np.testing.assert_array_equal(read(pictures).label, expected.label)


def test_dicom_files_are_read_in_hu(dicoms):
    sample = dicom.read_dicom(dicom.sample_dicom())
    found = read(dicoms)
    assert found.images.dtype == np.int16 and found.window == ct.LUNG
    np.testing.assert_array_equal(found.images[3], sample.hu - 3)
    assert found.classes == ("0", "1") and found.label.tolist() == [0, 1, 0, 1]
    assert found.patient.tolist() == ["0", "1", "2", "3"]


def test_no_table(pictures):
    with pytest.raises(MedlmError, match="There is no table of patients"):
        image_folder.read_folder(pictures / "images", None)
    with pytest.raises(MedlmError, match=r"No file .*none\.csv"):
        image_folder.read_folder(pictures / "images", pictures / "none.csv")


BAD_TABLES = {
    "no patient column": (
        lambda rows: [{"file": r["file"]} for r in rows],
        "'patient'",
    ),
    "no file column": (lambda rows: [{"patient": 1} for _ in rows], "no column 'file'"),
    "nameless": (
        lambda rows: [*rows[:-1], rows[-1] | {"patient": " "}],
        "row without a",
    ),
    "twice": (lambda rows: [*rows, rows[0]], "names normal/p0_0.png twice"),
    "image missing in table": (lambda rows: rows[1:], "1 of 8 images .* are not in"),
    "file missing": (
        lambda rows: [*rows, rows[0] | {"file": "normal/x.png"}],
        "1 files of .* are not in .*: normal/x.png",
    ),
    "no label": (lambda rows: [*rows[:-1], rows[-1] | {"label": ""}], "have no label"),
    "contradiction": (
        lambda rows: [*rows[:-1], rows[-1] | {"label": "0"}],
        "do not agree: 0 in abnormal/, 1 in abnormal/, 0 in normal/",
    ),
    "some splits": (
        lambda rows: [r | {"split": "train" * bool(n)} for n, r in enumerate(rows)],
        "1 of 8 rows .* have no split",
    ),
    "patient in two splits": (
        lambda rows: [
            r | {"split": "train" if n else "test"} for n, r in enumerate(rows)
        ],
        "The patient p0 is in two splits",
    ),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_one_clear_error(name, pictures):
    change, said = BAD_TABLES[name]
    write_table(pictures / "patients.csv", change(table_of(pictures)))
    with pytest.raises(MedlmError, match=said) as caught:
        read(pictures)
    assert "\n" not in str(caught.value)


def test_a_table_in_another_encoding(pictures):
    (pictures / "patients.csv").write_bytes("file,patient\nä,b\n".encode("utf-16"))
    with pytest.raises(MedlmError, match="expected a CSV file in UTF-8"):
        read(pictures)


def test_splits_are_kept(pictures):
    rows = [r | {"split": "val" if "p3" in r["file"] else "train"}
            for r in table_of(pictures)]  # fmt: skip
    write_table(pictures / "patients.csv", rows)
    found = read(pictures)
    for patient, split in zip(found.patient, found.split, strict=True):
        assert split == ("val" if patient == "p3" else "train")


def test_one_class(pictures):
    rows = [r | {"label": 1} for r in table_of(pictures)]
    write_table(pictures / "patients.csv", rows)
    with pytest.raises(MedlmError, match=r"All 8 images in .* are of the class '1'"):
        read(pictures)
    shutil.rmtree(pictures / "images" / "abnormal")
    rows = [r for r in table_of(pictures) if r["file"].startswith("normal")]
    write_table(pictures / "patients.csv", rows)
    with pytest.raises(MedlmError, match="of the class 'normal'"):
        read(pictures)


def test_loose_images_without_a_class(dicoms):
    rows = [{"file": r["file"], "patient": r["patient"]} for r in table_of(dicoms)]
    write_table(dicoms / "patients.csv", rows)
    with pytest.raises(MedlmError, match=r"4 images have no class: 0\.dcm"):
        read(dicoms)
