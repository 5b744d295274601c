"""Tests of `medlm finetune`, `medlm predict` and `medlm embed`, and what they read."""

from __future__ import annotations

import copy
import csv
import html.parser
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medlm_utils.cli import main as cli
from medlm_utils.cli import pages, processes, report, results, tables
from medlm_utils.runtime import MedlmError

# Reading CSV files --------------------------------------------------------------------

GOOD = "patient,text,label\np1,Fever and cough.,flu\np2,No pain.,none\n"


def csv_file(folder: Path, content: str | bytes, name: str = "notes.csv") -> Path:
    path = folder / name
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(raw)
    return path


def read(path: Path, patient: str | None = "patient") -> tables.Table:
    return tables.read(path, "text", "label", patient)


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("\n", "\r"),
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\n\n"),
        GOOD.rstrip("\n"),
        GOOD.replace("flu", '" flu "').replace("p2", " p2"),
    ],
    ids=["plain", "windows", "old mac", "mark", "blank lines", "no end", "spaces"],
)
def test_files_of_all_programs_read_alike(content: str, tmp_path: Path) -> None:
    table = read(csv_file(tmp_path, content))
    assert table.text == ("Fever and cough.", "No pain.")
    assert table.label == ("flu", "none") and table.patient == ("p1", "p2")
    assert len(table) == 2 and table.unit == "patient" and table.groups == ("p1", "p2")


def test_pandas_writes_what_we_read_and_texts_stay_what_they_are(
    tmp_path: Path,
) -> None:
    import pandas as pd

    texts = ['He said "no, NA".', "Line one\nline two, three", "NA", "ängstlich, 38°"]
    path = tmp_path / "notes.csv"
    pd.DataFrame({"text": texts, "label": [0, 10, 2, 0], "age": 3}).to_csv(path)
    table = read(path, patient=None)
    assert list(table.text) == texts
    assert table.unit == "note" and len(set(table.groups)) == 4
    assert tables.classes(table.label) == ("0", "2", "10")  # by size, not by letter
    assert tables.classes(["b", "10", "9"]) == ("10", "9", "b")


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    # `printf 'one\n' | sha256sum`
    expected = "2c8b08da5ce60398e1f19af0e5dccc744df274b826abe585eaba68c525434806"
    assert tables.sha256(csv_file(tmp_path, "one\n")) == expected


BAD_FILES = {
    "empty": ("", r"is empty; expected a CSV file whose first line names"),
    "blank": ("\n\n", r"is empty"),
    "heading only": ("patient,text,label\n", r"has a heading and no rows"),
    "no column": (
        GOOD.replace("text,", "note,"),
        r"no column 'text'; it has 'patient', 'note', 'label'. Name the right .*--text",
    ),
    "no label": (GOOD.replace("label", "y"), r"no column 'label'; .*with --label\."),
    "no patient": (GOOD.replace("patient,", "id,"), r"'patient'; .*with --patient\."),
    "two columns": (GOOD.replace("patient,", "text,"), r"has 2 columns 'text'"),
    "semicolons": (GOOD.replace(",", ";"), r"separated by semicolons; expected commas"),
    "tabs": (GOOD.replace(",", "\t"), r"separated by tabs; expected commas"),
    "empty text": (
        GOOD.replace("No pain.", " \t"),
        r"1 row without a text \(column 'text'\), in line 3; expected one in every",
    ),
    "empty texts": (
        "patient,text,label\np,,1\np,a,2\n\np,,2\n",
        r"2 rows without a text \(column 'text'\), the first in line 2",
    ),
    "NaN label": (GOOD.replace("flu", "NaN"), r"1 row without a label .*in line 2"),
    "no value": (GOOD.replace("flu", ""), r"1 row without a label .*in line 2"),
    "nameless": (GOOD.replace("p2,", ","), r"1 row without a patient .*in line 3"),
    "short row": (GOOD + "p3,Cough.\n", r"line 4: 2 fields; expected 3, as in the"),
    "long row": (GOOD + "p3,Cough, fever,flu\n", r"line 4: 4 fields; expected 3"),
    "late": ('patient,text,label\np,"a\nb",1\n\np,c\n', r"line 5: 2 fields"),
    "open quote": (
        GOOD + 'p3,"Cough,flu\np4,Fever,flu\n',
        r"in the row that begins in line 4, a double quote is opened and not closed",
    ),
    "odd quote": (GOOD + 'p3,"Cough" and fever,flu\n', r"line 4, ',' expected after"),
    "latin-1": (
        (GOOD + "p3,Übelkeit,flu\n").encode("latin-1"),
        r"not in UTF-8: line 4 cannot be decoded. Save it as UTF-8",
    ),
    "utf-16": (GOOD.encode("utf-16"), r"is in UTF-16; expected UTF-8"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_clear_error(name: str, tmp_path: Path) -> None:
    content, said = BAD_FILES[name]
    path = csv_file(tmp_path, content)
    with pytest.raises(MedlmError) as caught:
        read(path)
    message = str(caught.value)
    assert re.search(said, message), message
    assert message.count(str(path)) == 1 and "\n" not in message
    about_text = not any(word in message for word in ("label", "patient"))
    if about_text or "--text" in message:
        with pytest.raises(MedlmError, match=said):
            tables.scan(path, "text")


def test_a_quote_that_is_never_closed_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "LONGEST_FIELD", 1000)
    path = csv_file(tmp_path, GOOD + 'p3,"Cough,flu\n' + "p4,Fever,flu\n" * 1000)
    with pytest.raises(MedlmError, match="line 4, a double quote is opened"):
        read(path)


@pytest.mark.parametrize("missing", [True, False])
def test_a_file_that_cannot_be_opened(missing: bool, tmp_path: Path) -> None:
    path = tmp_path / "none.csv" if missing else tmp_path
    with pytest.raises(MedlmError, match=f"Cannot read {path}: .*Expected a CSV file"):
        read(path)


def table(name: str, *notes: str) -> tables.Table:
    """Notes written as ``patient text label``."""
    patient, text, label = zip(*(note.split() for note in notes), strict=True)
    return tables.Table(Path(name), name, text, label, patient)


def test_parts_without_a_fault_give_no_warning() -> None:
    parts = {
        "training": table("train.csv", "p1 a x", "p1 b y", "p2 c x"),
        "validation": table("val.csv", "p3 d x"),
        "test": table("test.csv", "p4 e y"),
    }
    assert tables.check_parts(parts) == []


@pytest.mark.parametrize(
    ("training", "other", "said"),
    [
        (["p1 a x", "p2 b x"], ["p3 c x"], r"All 2 labels of train.csv are 'x'"),
        (["p1 a x", "p2 b y"], ["p3 c z"], r"val.csv has the label 'z' that train"),
        (["p1 a 1", "p2 b 2"], ["p3 c 1.0"], r"the label '1.0' .*labels are '1', '2'"),
        (
            ["p1 a 1", "p2 b 2"],
            ["p3 c 3", "p3 c 4", "p3 c 5", "p3 c 6"],
            r"the labels '3', '4', '5', \.\.\. \(4 in all\) that",
        ),
        (["p1 a x", "p2 b y"], ["p2 c x"], r"train.csv and val.csv share the patient"),
        (["1 a x", "2 b y"], ["1 c x", "2 d y"], r"share the patients '1', '2'; "),
    ],
)
def test_bad_parts(training: list[str], other: list[str], said: str) -> None:
    parts = {
        "training": table("train.csv", *training),
        "validation": table("val.csv", *other),
    }
    with pytest.raises(MedlmError, match=said):
        tables.check_parts(parts)


def test_a_patient_in_validation_and_test_is_refused_too() -> None:
    parts = {
        "training": table("train.csv", "p1 a x", "p2 b y"),
        "validation": table("val.csv", "p3 c x"),
        "test": table("test.csv", "p3 d x"),
    }
    with pytest.raises(
        MedlmError, match=r"val.csv and test.csv share the patient 'p3'"
    ):
        tables.check_parts(parts)


def test_a_text_on_both_sides_is_a_warning() -> None:
    parts = {
        "training": table("train.csv", "p1 a x", "p2 b y"),
        "validation": table("val.csv", "p3 a x", "p4 a x", "p5 c y"),
        "test": table("test.csv", "p6 c x"),
    }
    first, second = tables.check_parts(parts)
    assert first.startswith("2 of 3 validation texts are training texts too, word")
    assert second.startswith("1 of 1 test texts is a validation text too, word")


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_chunks_hold_all_rows_in_order(size: int, tmp_path: Path) -> None:
    body = "".join(f'{n},"text {n},\nmore"\n' for n in range(7))
    stream = tables.scan(csv_file(tmp_path, "id,text\n" + body), "text")
    assert stream.heading == ("id", "text") and stream.column == 1
    chunks = list(stream.chunks(size))
    assert all(len(chunk) == size for chunk in chunks[:-1])
    expected = [[str(n), f"text {n},\nmore"] for n in range(7)]
    assert [fields for chunk in chunks for fields in chunk] == expected
    assert stream.count == 7


@pytest.mark.parametrize("now", ["text\na\n", "text\na\nb\nc\n", "text\na\n' '\n"])
def test_a_file_that_changes_under_our_hands_is_noticed(
    now: str, tmp_path: Path
) -> None:
    path = csv_file(tmp_path, "text\na\nb\n")
    stream = tables.scan(path, "text")
    path.write_text(now.replace("'", '"'))
    with pytest.raises(MedlmError, match="has changed while it was read"):
        list(stream.chunks(2))


def test_a_large_file_is_read_in_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = csv_file(tmp_path, "text\n" + "A note of some words.\n" * 50_000)  # 1.1 MB
    tracemalloc.start()
    stream = tables.scan(path, "text")
    assert sum(map(len, stream.chunks(1000))) == 50_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e5


# A tiny model and its notes -----------------------------------------------------------

EXACT = "--precision=float32"  # what is compared with an oracle
WORDS = ("fever", "cough", "pain", "no", "rash", "head", "chest", "denies", "nausea")
ROOT = Path(__file__).resolve().parents[1]


def write_encoder(folder: Path) -> Path:
    """A random BERT of two blocks, with a vocabulary of a few words."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def write_notes(path: Path, notes: int, first: int, seed: int) -> None:
    """Two notes a patient; a word tells the label, but for one note in five."""
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient", "text", "label"])
        for number in range(notes):
            label, words = (
                draw.choice(["flu", "none", "rash"]),
                draw.choices(WORDS, k=9),
            )
            words[0] = {"flu": "fever", "none": "no", "rash": "rash"}[label]
            text = " ".join(words[: draw.randint(4, 9)])
            label = "flu" if draw.random() < 0.2 else label
            writer.writerow([f"p{first + number // 2}", f"{text}.", label])


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder and three parts; nobody writes into it."""
    folder = tmp_path_factory.mktemp("given")
    write_encoder(folder / "encoder")
    write_notes(folder / "train.csv", 101, 0, 1)
    write_notes(folder / "val.csv", 31, 1000, 2)
    write_notes(folder / "test.csv", 33, 2000, 3)
    return folder


def words_of(given: Path, out: Path, *more: str) -> list[str]:
    """The words of a command that takes half a second."""
    files = [f"--{part}={given / part}.csv" for part in ("train", "val", "test")]
    settings = ["--epochs=3", "--batch=5", "--rate=0.01", "--checkpoint-every=10"]
    return [
        *["finetune", *files, f"--model={given / 'encoder'}", f"--out={out}"],
        *[*settings, EXACT],
        *more,
    ]


@pytest.fixture(scope="module")
def run(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert cli.main(words_of(given, out)) == 0
    return out


@pytest.fixture(scope="module")
def content(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text(encoding="utf-8"))


def said_by(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error, the reminder apart."""
    lines = capsys.readouterr().err.splitlines()
    assert sum("identifiable patient data" in line for line in lines) <= 1
    kept = [line for line in lines if "identifiable patient data" not in line]
    assert len(kept) == 1, kept
    return kept[0]


# medlm finetune -----------------------------------------------------------------------


def test_a_run_leaves_model_predictions_and_report(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == {
        *["model", "report.json", "report.html", "run.json"],
        *["predictions_validation.csv", "predictions_test.csv"],
    }
    weights = [path.suffix for path in run.rglob("*") if path.is_file()]
    assert set(weights) <= {".json", ".html", ".csv", ".safetensors", ".txt"}


@pytest.mark.parametrize("part", ["validation", "test"])
def test_the_report_agrees_with_the_predictions(
    part: str, run: Path, given: Path, content: dict[str, Any]
) -> None:
    """scikit-learn's numbers, from the file of predictions alone."""
    import pandas as pd
    from sklearn import metrics as theirs

    rows = pd.read_csv(run / f"predictions_{part}.csv", keep_default_na=False)
    source = pd.read_csv(
        given / f"{part[: 3 if part == 'validation' else 4]}.csv", keep_default_na=False
    )
    assert (rows.patient == source.patient).all() and (rows.label == source.label).all()
    shares = rows.filter(like="p_").astype(float)
    assert list(shares) == ["p_flu", "p_none", "p_rash"]
    assert shares.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    assert (shares.idxmax(axis=1) == "p_" + rows.predicted).all()
    names = ["flu", "none", "rash"]
    exact = shares.to_numpy() / shares.sum(axis=1).to_numpy()[:, None]
    expected = {
        "accuracy": (rows.label == rows.predicted).mean(),
        "macro_f1": theirs.f1_score(rows.label, rows.predicted, average="macro"),
        "weighted_f1": theirs.f1_score(rows.label, rows.predicted, average="weighted"),
        "log_loss": theirs.log_loss(rows.label, exact, labels=names),
    }
    for name, value in expected.items():
        found = content["metrics"][f"{part}_{name}"]
        assert found["value"] == pytest.approx(value, abs=1e-5)
        assert found["low"] <= found["value"] <= found["high"]
        assert found["n"] == rows.patient.nunique()
    counts = theirs.confusion_matrix(rows.label, rows.predicted, labels=names)
    assert content["parts"][part]["confusion"] == counts.tolist()
    assert sum(content["parts"][part]["after"]["count"]) == len(rows)


def test_the_model_beats_doing_nothing_and_the_best_epoch_is_kept(
    content: dict[str, Any],
) -> None:
    found, history = content["metrics"], content["history"]
    learned = found["validation_accuracy"]["value"]
    assert learned > found["validation_majority_accuracy"]["value"] + 0.1
    losses = [epoch["loss"] for epoch in history["epochs"]]
    best = history["best_epoch"]
    assert len(losses) == 3 and losses[best - 1] == min(losses)
    assert learned == pytest.approx(history["epochs"][best - 1]["accuracy"])
    assert len(history["loss"]) == 3 * history["steps_per_epoch"] == 63


def test_the_report_says_what_was_run(content: dict[str, Any], given: Path) -> None:
    data = content["data"]
    assert [data[part]["notes"] for part in data] == [101, 31, 33]
    assert [data[part]["patients"] for part in data] == [51, 16, 17]
    assert data["training"]["sha256"] == tables.sha256(given / "train.csv")
    assert data["training"]["cut"] == 0 and content["warnings"] == []
    assert sum(data["test"]["frequencies"].values()) == 33
    assert content["settings"]["epochs"] == 3 and content["processes"] == 1
    assert content["model"]["longest"] == 32  # all the places that this encoder has
    assert content["model"]["classes"] == ["flu", "none", "rash"]
    assert str(given) not in json.dumps(content)  # paths may name people
    command = content["command"]
    assert "--train train.csv" in command and "--model encoder" in command


def test_the_saved_model_is_the_one_that_was_measured(
    run: Path, given: Path, content: dict[str, Any]
) -> None:
    from medlm_utils import bert, metrics

    model = bert.load_classifier(run / "model")
    test = tables.read(given / "test.csv", "text", "label", "patient")
    rows = bert.encode(model.tokenizer, test.text, model.longest)
    logits = bert.predict_logits(model, rows)
    p = metrics.softmax(logits / model.temperature)
    loss = metrics.log_loss(model.numbers(test.label), p)
    assert content["metrics"]["test_log_loss"]["value"] == pytest.approx(loss, 1e-4)
    assert content["model"]["temperature"] == model.temperature != 1


def test_the_temperature_is_the_best_one_on_validation(run: Path, given: Path) -> None:
    from medlm_utils import bert, metrics

    model = bert.load_classifier(run / "model")
    val = tables.read(given / "val.csv", "text", "label", "patient")
    rows = bert.encode(model.tokenizer, val.text, model.longest)
    logits, label = bert.predict_logits(model, rows), model.numbers(val.label)
    losses = [
        metrics.log_loss(label, metrics.softmax(logits / (model.temperature * factor)))
        for factor in (0.95, 1, 1.05)
    ]
    assert losses[1] == min(losses)


def test_long_notes_are_cut_and_counted(given: Path, tmp_path: Path) -> None:
    """Five tokens: the two special ones and three of the note."""
    from medlm_utils import bert

    assert cli.main(words_of(given, tmp_path / "out", "--tokens=5", "--epochs=1")) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    train = tables.read(given / "train.csv", "text", "label", None)
    tokens = [len(text.split()) + 1 for text in train.text]  # the full stop is one
    assert found["data"]["training"]["cut"] == sum(count > 3 for count in tokens) > 0
    assert bert.load_classifier(tmp_path / "out" / "model").longest == 5


def test_files_without_patients_and_without_test(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "val"):
        rows = csv.DictReader((given / f"{part}.csv").open())
        lines = [f"{row['text']},{row['label']}\n" for row in rows]
        (tmp_path / f"{part}.csv").write_text("note,y\n" + "".join(lines))
    words = [word for word in words_of(given, tmp_path / "out") if "csv" not in word]
    files = [f"--train={tmp_path}/train.csv", f"--val={tmp_path}/val.csv"]
    assert cli.main([*words, *files, "--text=note", "--label=y"]) == 0
    printed = capsys.readouterr()
    assert "Warning:" in printed.err and "does not name its patients" in printed.err
    assert "validation: accuracy" in printed.out and "test: " not in printed.out
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["interval_unit"] == "note" and list(found["parts"]) == ["validation"]
    assert found["metrics"]["validation_accuracy"]["n"] == 31
    header = (tmp_path / "out" / "predictions_validation.csv").read_text()
    assert header.startswith("label,predicted,p_flu")
    assert "name no patients" in (tmp_path / "out" / "report.html").read_text()


def test_it_reminds_once_and_prints_the_results(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words_of(given, tmp_path / "out", "--epochs=1")) == 0
    printed = capsys.readouterr()
    assert printed.err.count("identifiable patient data do not belong") == 1
    assert "101 training, 31 validation, 33 test notes; 3 classes" in printed.err
    assert re.search(r"test: accuracy 0\.\d{3} \(0\.\d{3} to 0\.\d{3}\)", printed.out)
    assert f"Model: {tmp_path / 'out' / 'model'}" in printed.out


# What is refused before any training --------------------------------------------------

HEAD = "patient,text,label\n"
BAD_INPUT = {
    "no column": (["--label=y"], {}, "has no column 'y'", "it has 'patient', 'text'"),
    "empty text": ([], {"val": HEAD + "q, ,flu\n"}, "1 row without a text", "line 2"),
    "NaN label": ([], {"train": HEAD + "q,a,nan\n"}, "1 row without a label", "line 2"),
    "one class": ([], {"train": HEAD + "q,a,flu\nr,b,flu\n"}, "are 'flu'", "classes"),
    "unseen": ([], {"val": HEAD + "q,a,gout\n"}, "the label 'gout'", "'flu', 'none'"),
    "unseen test": ([], {"test": HEAD + "q,a,gout\n"}, "test.csv has the label", ""),
    "both sides": ([], {"val": HEAD + "p3,a,flu\n"}, "the patient 'p3'", "Split by"),
    "latin-1": ([], {"val": HEAD + "q,Übel,flu\n"}, "not in UTF-8: line 2", ""),
    "empty file": ([], {"val": ""}, "is empty", ""),
    "malformed": ([], {"val": HEAD + 'q,"a,flu\n'}, "is no CSV file", "line 2"),
    "same file": (["--val={given}/train.csv"], {}, "are the same file", ""),
    "no file": (["--val={given}/none.csv"], {}, "Cannot read", "none.csv"),
    "no model": (["--model=nothing"], {}, "There is no model 'nothing'", "minilm"),
    "epochs": (["--epochs=0"], {}, "--epochs is 0; expected at least 1", ""),
    "rate": (["--rate=-1"], {}, "--rate is -1.0; expected above 0", ""),
    "tokens": (["--tokens=33"], {}, "--tokens is 33; expected", "32"),
    "every": (["--checkpoint-every=0"], {}, "--checkpoint-every is 0", ""),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_clear_error(
    name: str, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, changed, *said = BAD_INPUT[name]
    words = words_of(given, tmp_path / "out")
    for part, text in changed.items():
        encoding = "latin-1" if name == "latin-1" else "utf-8"
        (tmp_path / f"{part}.csv").write_text(text, encoding=encoding)
        words.append(f"--{part}={tmp_path / part}.csv")
    assert cli.main([*words, *(word.format(given=given) for word in options)]) == 1
    line = said_by(capsys)
    assert line.startswith("medlm: ") and all(part in line for part in said), line
    assert not (tmp_path / "out").exists()


def spoil(encoder: Path, how: str) -> None:
    """Make a folder with a model into one that is none."""
    weights, config = encoder / "model.safetensors", encoder / "config.json"
    if how == "pickle only":
        weights.rename(encoder / "pytorch_model.bin")
    elif how == "cut short":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif how == "no config":
        config.unlink()
    elif how == "not an encoder":
        config.write_text('{"model_type": "vit"}')
    elif how == "of another kind":
        config.write_text('{"model_type": "unheard_of"}')


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("pickle only", "no model.safetensors, only pytorch_model.bin, a pickle"),
        ("cut short", "cannot be read; expected a file of safetensors"),
        ("no config", "There is no model"),
        ("not an encoder", "expected an encoder such as BERT"),
        ("of another kind", "is no configuration that transformers knows"),
    ],
)
@pytest.mark.parametrize("command", ["finetune", "embed"])
def test_a_folder_that_is_no_model(
    command: str,
    how: str,
    said: str,
    given: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    encoder = tmp_path / "encoder"
    shutil.copytree(given / "encoder", encoder)
    spoil(encoder, how)
    out = tmp_path / "out"
    words = {
        "finetune": words_of(given, out),
        "embed": ["embed", f"--input={given / 'test.csv'}", f"--output={out}"],
    }
    assert cli.main([*words[command], f"--model={encoder}"]) == 1
    assert said in said_by(capsys)
    assert not out.exists()


def test_a_folder_of_something_else_is_left_alone(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("All my work")
    assert cli.main(words_of(given, tmp_path)) == 1
    assert "holds files that are not of a run" in said_by(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "run.json").write_text("no JSON")
    assert cli.main(words_of(given, tmp_path, "--resume")) == 1
    assert "holds files that are not of a run" in said_by(capsys)


@pytest.mark.parametrize("below", [False, True])
def test_a_place_that_cannot_be_written(
    below: bool, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "file"
    out.write_text("")
    out = out / "below" if below else out
    assert cli.main(words_of(given, out)) == 1
    assert said_by(capsys).startswith(f"medlm: Cannot write {out}: ")
    assert (tmp_path / "file").read_text() == ""


def test_a_disk_that_is_too_small(
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9e9, 9e9, 3_000_000))
    assert cli.main(words_of(given, tmp_path / "out")) == 1
    assert "has 3 MB free; this needs about 10 MB" in said_by(capsys)
    assert not (tmp_path / "out").exists()


# Runs that were stopped ---------------------------------------------------------------


def test_a_finished_run_is_not_done_again(
    run: Path, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    assert cli.main(words_of(given, run)) == 1
    assert "holds this very run, finished. Add --resume" in said_by(capsys)
    assert cli.main(words_of(given, run, "--resume")) == 0
    assert "This run is finished. Report: " in said_by(capsys)
    assert contents(run) == before


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--epochs=4", "epochs 3 (now 4)"),
        ("--seed=5", "seed 2017 (now 5)"),
        ("--dropout=0.2", "dropout 0.1 (now 0.2)"),
        ("--train={tmp_path}/train.csv", "training notes "),
    ],
)
def test_another_run_does_not_enter_the_folder(
    option: str,
    said: str,
    run: Path,
    given: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_notes(tmp_path / "train.csv", 50, 0, 9)
    before = contents(run)
    words = words_of(given, run, option.format(tmp_path=tmp_path), "--resume")
    assert cli.main(words) == 1
    line = said_by(capsys)
    assert f"{run} holds another run: {said}" in line and "with --out" in line
    assert contents(run) == before


def test_two_processes_do_not_work_in_one_folder(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import filelock

    (tmp_path / "out").mkdir()
    with filelock.FileLock(tmp_path / "out" / ".lock"):
        assert cli.main(words_of(given, tmp_path / "out")) == 1
    assert "Another process works in" in said_by(capsys)


def test_ctrl_c_says_how_to_go_on(
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from medlm_utils import bert

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bert, "finetune", stopped)
    assert cli.main(words_of(given, tmp_path / "out")) == 130
    err = capsys.readouterr().err
    assert "with --resume goes on from the last checkpoint" in err
    assert not (tmp_path / "out" / ".lock").exists()


WEIGHTS = "model/model.safetensors"


def test_a_run_that_breaks_off_while_it_trains_ends_in_the_same_weights(
    run: Path, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It breaks off 7 steps after the second checkpoint, between two epochs' ends."""
    from medlm_utils import bert

    out, at, seen = tmp_path / "out", bert.LabelledBatches.at, []

    def broken(self: Any, step: int) -> Any:
        seen.append(step)
        if step == 27:
            raise MedlmError("The power is off.")
        return at(self, step)

    monkeypatch.setattr(bert.LabelledBatches, "at", broken)
    assert cli.main(words_of(given, out)) == 1
    assert (out / "checkpoint.safetensors").exists()
    monkeypatch.setattr(bert.LabelledBatches, "at", at)
    seen.clear()

    def counted(self: Any, step: int) -> Any:
        seen.append(step)
        return at(self, step)

    monkeypatch.setattr(bert.LabelledBatches, "at", counted)
    assert cli.main(words_of(given, out, "--resume")) == 0
    assert seen == list(range(20, 63))  # no more is lost than since the checkpoint
    assert (out / WEIGHTS).read_bytes() == (run / WEIGHTS).read_bytes()
    for name in ("predictions_validation.csv", "predictions_test.csv"):
        assert (out / name).read_bytes() == (run / name).read_bytes()


def test_a_run_that_breaks_off_while_it_writes_can_be_finished(
    run: Path,
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No space for the page: what is there stays whole, and nothing says finished."""
    replace, out = os.replace, tmp_path / "out"

    def full(source: Path, target: Path) -> None:
        if str(target).endswith(".html"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert cli.main(words_of(given, out)) == 1
    assert "report.html: No space left on device" in capsys.readouterr().err
    assert not list(out.glob("*.part")) and not (out / "report.json").exists()
    monkeypatch.setattr(os, "replace", replace)
    assert cli.main(words_of(given, out, "--resume")) == 0
    assert (out / WEIGHTS).read_bytes() == (run / WEIGHTS).read_bytes()
    assert not (out / "checkpoint.safetensors").exists()


def start(*words: str) -> subprocess.Popen[str]:
    """A command of its own process; what it prints comes out of its pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env={**os.environ, "MEDLM_PROFILE": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_run_that_was_killed_ends_in_the_same_weights(
    run: Path, given: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    checkpoint = out / "checkpoint.safetensors"
    words = ["medlm_utils", *words_of(given, out, "--checkpoint-every=1")]
    process = start(*words)
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert checkpoint.exists() and not (out / "report.json").exists()
    second = start(*words, "--resume")
    _, err = second.communicate()
    assert second.returncode == 0, err
    assert (out / WEIGHTS).read_bytes() == (run / WEIGHTS).read_bytes()
    assert not list(out.glob("*.part"))


# medlm predict and medlm embed --------------------------------------------------------


def predict(run: Path, given: Path, out: Path, *more: str) -> int:
    files = [f"--input={given / 'test.csv'}", f"--output={out}"]
    return cli.main(["predict", f"--model={run / 'model'}", *files, EXACT, *more])


def embed(model: Path, given: Path, out: Path, *more: str) -> int:
    files = [f"--input={given / 'test.csv'}", f"--output={out}"]
    return cli.main(["embed", f"--model={model}", *files, EXACT, *more])


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_predict_adds_columns_and_keeps_the_order(
    batch: int, run: Path, given: Path, tmp_path: Path
) -> None:
    """With small batches the file is read in chunks of 8 or 24 rows, of 33."""
    out = tmp_path / "out.csv"
    assert predict(run, given, out, f"--batch={batch}") == 0
    source = list(csv.reader((given / "test.csv").open()))
    added = list(csv.reader((run / "predictions_test.csv").open()))
    found = list(csv.reader(out.open()))
    assert [row[:3] for row in found] == source
    assert found[0][3:] == ["predicted", "p_flu", "p_none", "p_rash"]
    assert [row[3] for row in found] == [row[2] for row in added]
    ours = np.array([row[4:] for row in found[1:]], float)
    assert np.abs(ours - np.array([row[3:] for row in added[1:]], float)).max() < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("kind", ["encoder", "classifier"])
def test_embed_writes_what_bert_embeds(
    kind: str, batch: int, run: Path, given: Path, tmp_path: Path
) -> None:
    from medlm_utils import bert

    folder = given / "encoder" if kind == "encoder" else run / "model"
    model = (
        bert.Classifier.pretrained(("a", "b"), folder)
        if kind == "encoder"
        else bert.load_classifier(folder)
    )
    texts = tables.read(given / "test.csv", "text", "label", None).text
    expected = bert.embed(model, bert.encode(model.tokenizer, texts, 32))
    out = tmp_path / "emb.npy"
    assert embed(folder, given, out, f"--batch={batch}") == 0
    found = np.load(out, mmap_mode="r", allow_pickle=False)
    assert found.shape == (33, 16) and found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["emb.npy"]


@pytest.mark.parametrize("command", [predict, embed])
def test_never_more_than_a_chunk_is_in_memory(
    command: Any,
    run: Path,
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from medlm_utils import bert

    encode, sizes = bert.encode, []

    def counted(tokenizer: Any, texts: Any, longest: int) -> Any:
        sizes.append(len(texts))
        return encode(tokenizer, texts, longest)

    monkeypatch.setattr(bert, "encode", counted)
    model = run if command is predict else run / "model"
    assert command(model, given, tmp_path / "out", "--batch=2") == 0
    assert sizes == [16, 16, 1]


@pytest.mark.parametrize("command", [predict, embed])
def test_an_output_in_the_way_is_not_lost(
    command: Any,
    run: Path,
    given: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = run if command is predict else run / "model"
    out = tmp_path / "out"
    out.write_text("Weeks of work")
    assert command(model, given, out) == 1
    assert "is there already. Name another file, or add --force" in said_by(capsys)
    assert out.read_text() == "Weeks of work"
    assert command(model, given, out, "--force") == 0
    assert out.read_bytes()[:7] in (b"patient", b"\x93NUMPY\x01")
    shutil.copy(given / "test.csv", tmp_path)
    assert command(model, tmp_path, tmp_path / "test.csv", "--force") == 1
    assert "is read and cannot be written too" in capsys.readouterr().err


@pytest.mark.parametrize("command", [predict, embed])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_full_disk_leaves_nothing_half_written(
    is_new: bool,
    command: Any,
    run: Path,
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    model, out = run if command is predict else run / "model", tmp_path / "out"
    if not is_new:
        out.write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    assert command(model, given, out, "--force") == 1
    assert said_by(capsys).startswith(f"medlm: Cannot write {out}: No space left")
    assert contents(tmp_path) == ({} if is_new else {"out": b"before"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--text=note"], "no column 'note'; it has 'patient', 'text', 'label'"),
        (["--batch=0"], "--batch is 0; expected at least 1"),
        (["--output={tmp_path}"], "is a folder; expected the name of a file"),
        (["--output={tmp_path}/a/b"], "/a/b: No such file or directory"),
        (["--input={tmp_path}/bad.csv"], "1 row without a text"),
        (["--model={tmp_path}"], "medlm.json"),
        (["--model={given}/encoder"], "no medlm.json in it"),
    ],
)
def test_predict_refuses_bad_input(
    options: list[str],
    said: str,
    run: Path,
    given: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    csv_file(tmp_path, "text\na\n' '\n".replace("'", '"'), "bad.csv")
    before = contents(tmp_path)
    words = [word.format(given=given, tmp_path=tmp_path) for word in options]
    assert predict(run, given, tmp_path / "out.csv", *words) == 1
    assert said in said_by(capsys)
    assert contents(tmp_path) == before


def test_predict_does_not_add_a_column_twice(
    run: Path, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(run, given, tmp_path / "test.csv") == 0
    capsys.readouterr()
    assert predict(run, tmp_path, tmp_path / "again.csv") == 1
    assert "has a column 'predicted' already" in said_by(capsys)


# Several processes --------------------------------------------------------------------


def launch(*words: str) -> tuple[str, str]:
    """Two processes on this machine's CPU, by Accelerate; what they print."""
    options = ["--num_processes=2", "--num_machines=1", "--mixed_precision=no"]
    process = start(
        "accelerate.commands.launch",
        *["--multi_gpu", *options, "--dynamo_backend=no", "--main_process_port=0"],
        *["-m", "medlm_utils", *words],
    )
    printed, err = process.communicate()
    assert process.returncode == 0, err
    return printed, err


@pytest.mark.slow
def test_two_processes_train_as_one(given: Path, tmp_path: Path) -> None:
    """Without dropout, whose draws differ; batches of 5 rows do not split evenly."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli.main(words_of(given, one, "--dropout=0")) == 0
    printed, err = launch(*words_of(given, two, "--dropout=0"))
    assert printed.count("test: accuracy") == printed.count("Report: ") == 1
    assert err.count("identifiable patient data") == err.count("2 processes") == 1
    a, b = (json.loads((out / "report.json").read_text()) for out in (one, two))
    assert (a["processes"], b["processes"]) == (1, 2)
    assert b["history"]["loss"] == pytest.approx(a["history"]["loss"], abs=1e-3)
    ends = [[e["loss"] for e in found["history"]["epochs"]] for found in (a, b)]
    assert ends[1] == pytest.approx(ends[0], abs=1e-3)
    assert {path.name for path in two.iterdir()} == {
        path.name for path in one.iterdir()
    }


@pytest.mark.slow
def test_two_processes_embed_in_the_order_of_the_file(
    given: Path, tmp_path: Path
) -> None:
    """33 rows in chunks of 32 and 1: the last one has less than a row for each."""
    assert embed(given / "encoder", given, tmp_path / "one.npy") == 0
    printed, _ = launch(
        *["embed", f"--model={given / 'encoder'}", f"--input={given / 'test.csv'}"],
        *[f"--output={tmp_path / 'two.npy'}", "--batch=2", EXACT],
    )
    assert printed.count("Wrote 33 rows") == 1
    one, two = np.load(tmp_path / "one.npy"), np.load(tmp_path / "two.npy")
    assert np.abs(one - two).max() < 1e-5
    assert np.abs(one - one[::-1]).max() > 0.1  # the order matters


class FakeAccelerator:
    """Process 1 of 2, whose partner reports `said`."""

    process_index, num_processes = 1, 2


def test_an_error_of_one_process_ends_all_and_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import accelerate.utils

    team = processes.Team()
    monkeypatch.setattr(team, "accelerator", FakeAccelerator())
    answers = {"other": "No such file."}
    monkeypatch.setattr(
        accelerate.utils, "gather_object", lambda own: [answers["other"], *own]
    )
    assert not team.is_main and not team.shows_bars
    team.say("not by me")
    with pytest.raises(SystemExit) as left, team.one_voice():
        team.all_do(lambda: None)
    assert left.value.code == 1
    answers["other"] = ""
    with pytest.raises(MedlmError, match="Process 1 of 2: Here is no file"):
        team.all_do(lambda: fail("Here is no file."))
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def fail(text: str) -> None:
    raise MedlmError(text)


# The page -----------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """What a test must know of a page."""

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_says_what_its_figures_show(run: Path) -> None:
    source = (run / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    tags = [tag for tag, _ in page.seen]
    assert tags.count("svg") == 3 and "script" not in tags and "img" not in tags
    assert not re.search(r"(src|href)\s*=\s*\"(?!#)", source)
    assert "url(http" not in source and "@import" not in source
    for tag, attributes in page.seen:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert len((attributes["aria-label"] or "").split()) > 5
    ids = [attributes["id"] for _, attributes in page.seen if "id" in attributes]
    assert len(ids) == len(set(ids)) > 10
    for target in re.findall(r'(?:url\(#|href="#)([^)"]+)', source):
        assert target in ids
    assert 'name="viewport"' in source and "prefers-color-scheme: dark" in source
    assert "DejaVu" not in source  # texts are set in the reader's own font
    for ink in pages.INKS:
        assert ink not in source  # every colour follows the page's mode


def test_the_page_shows_the_numbers_of_the_report(
    run: Path, content: dict[str, Any]
) -> None:
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    for name in ("accuracy", "macro_f1", "log_loss", "word_counts_accuracy"):
        found = content["metrics"][f"test_{name}"]
        assert f"{found['value']:.3f} ({found['low']:.3f}" in page.text
    assert report.CAUTION in page.text and content["command"] in page.text
    assert "33 test notes of 17 patients" in page.text
    assert f"{content['model']['temperature']:.3f}" in page.text
    data = content["data"]["training"]
    assert data["sha256"][:12] in page.text and "train.csv" in page.text


def test_the_same_report_gives_the_same_page(content: dict[str, Any]) -> None:
    assert report.page(content) == report.page(json.loads(json.dumps(content)))


def test_names_from_files_cannot_change_the_page(content: dict[str, Any]) -> None:
    changed = copy.deepcopy(content)
    evil = '<script>alert("x")</script>'
    names = [evil, "none", "rash"]
    changed["model"]["classes"] = names
    for part in changed["data"].values():
        part["frequencies"] = dict(zip(names, (40, 30, 31), strict=True))
        part["file"] = f"{evil}.csv"
    changed["warnings"], changed["command"] = [evil], evil
    changed["model"]["base"] = evil
    page = Page(report.page(changed))
    assert not any(tag == "script" for tag, _ in page.seen)
    assert page.text.count(evil) >= 6


def test_a_page_of_many_classes_shows_the_frequent_ones(
    content: dict[str, Any],
) -> None:
    changed, names = copy.deepcopy(content), [f"code {n}" for n in range(60)]
    changed["model"]["classes"] = names
    for part in changed["data"].values():
        part["frequencies"] = {name: n for n, name in enumerate(names)}
    for part in changed["parts"].values():
        part["confusion"] = np.eye(60, dtype=int).tolist()
        part |= {n: [None, *[0.5] * 59] for n in ("precision", "recall", "f1")}
    page = Page(report.page(changed))
    assert page.text.count("Only the 25 most frequent of 60 classes") == 2
    assert "code 35" in page.text and page.text.count("code 34") == 0


def test_no_resample_no_interval() -> None:
    """A part of one patient has values, and no interval that would promise much."""
    label, p = np.array([0, 1]), np.array([[0.9, 0.1], [0.6, 0.4]])
    found = results.scores(label, p, ["a", "a"], 0, np.array([0, 0]))
    assert found["accuracy"] == {"value": 0.5, "n": 1}
    assert all("low" not in metric for metric in found.values())
    assert found["log_loss"]["unit"] == "nats"


def test_the_gain_over_counting_words_is_paired() -> None:
    """Both are right on the same notes: the difference is 0, for sure."""
    rng = np.random.default_rng(0)
    label = rng.integers(3, size=60)
    named = np.where(rng.random(60) < 0.5, label, (label + 1) % 3)
    p = np.eye(3)[named] * 0.7 + 0.1
    groups = [str(row // 2) for row in range(60)]
    found = results.scores(label, p, groups, 0, named)
    gain = found["gain_over_word_counts"]
    assert gain["value"] == gain["low"] == gain["high"] == 0
    assert found["accuracy"]["low"] < found["accuracy"]["high"]
    other = results.scores(label, p, groups, 0, label)["gain_over_word_counts"]
    assert other["high"] < 0


def test_counting_words_learns_from_words_and_survives_without() -> None:
    texts, label = ["has fever", "no fever"] * 20, np.array([0, 1] * 20)
    asked = ["patient has fever", "patient no fever"]
    assert results.word_counts(texts, label, asked, 0).tolist() == [0, 1]
    silent = results.word_counts(["?", "!"] * 3, np.array([1, 1, 1, 1, 0, 0]), ["?"], 0)
    assert silent.tolist() == [1]


def test_a_model_that_is_always_right_keeps_its_temperature() -> None:
    logits = np.array([[5.0, 0.0], [0.0, 5.0]])
    temperature, remark = results.temperature(logits, np.array([0, 1]))
    assert temperature == 1 and "No row is wrong" in remark
