"""Files of notes as users have them: what was taken for something else in silence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import transformers

from medlm_utils import bert
from medlm_utils.cli import files, formats, predict, reading, tables
from medlm_utils.runtime import MedlmError


def a_table(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    """Columns patient, text and label, none of which needs quotes."""
    lines = [",".join(row) for row in [("patient", "text", "label"), *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def parts_of(
    folder: Path, others: Sequence[str] = ("flu", "none"), separator: str | None = None
) -> dict[str, tables.Table]:
    """Two parts; `others` are the labels of the second one."""
    labels = {"training": ("flu", "none"), "validation": others}
    return {
        part: tables.read(
            a_table(
                folder / f"{part}.csv",
                [(f"{part}{n}", f"{part} note {n}", k) for n, k in enumerate(of_part)],
            ),
            *("text", "label", "patient", separator),
        )
        for part, of_part in labels.items()
    }


@pytest.mark.parametrize(
    "names",
    [("label", "label", "patient"), ("text", "label", "text"), ("text", "a", "a")],
)
def test_a_column_has_one_role(tmp_path: Path, names: tuple[str, str, str]) -> None:
    path = a_table(tmp_path / "a.csv", [("p1", "cough", "flu")])
    with pytest.raises(MedlmError, match="both name the column"):
        tables.read(path, *names)


def test_a_part_of_one_class_says_nothing_of_the_others(tmp_path: Path) -> None:
    assert not tables.check_parts(parts_of(tmp_path))
    (warning,) = tables.check_parts(parts_of(tmp_path, ("flu", "flu")))
    assert "All 2 labels" in warning and "the other classes" in warning


def test_a_mark_that_no_cell_has_is_a_warning(tmp_path: Path) -> None:
    (warning,) = tables.check_parts(parts_of(tmp_path, separator="|"))
    assert "--multi-label" in warning


@pytest.mark.parametrize("name", ["1.23457E+11", "1,23457E+11", "1e+16"])
def test_long_numbers_that_a_spreadsheet_cut(tmp_path: Path, name: str) -> None:
    parts = parts_of(tmp_path)
    rows = [(f'"{name}"', "cough and more", "flu"), ("12E4", "fever", "none")]
    path = a_table(tmp_path / "b.csv", rows)
    parts["training"] = tables.read(path, "text", "label", "patient")
    (warning,) = tables.check_parts(parts)
    assert f"the patient {name!r}" in warning


@pytest.mark.parametrize("text", ["\u00a0", "\u200b", " \u2060\ufeff "])
def test_a_text_of_nothing_to_see_is_empty(tmp_path: Path, text: str) -> None:
    path = a_table(tmp_path / "a.csv", [("p1", "cough", "x"), ("p2", text, "y")])
    for read in (
        lambda: tables.read(path, "text", "label", "patient"),
        lambda: tables.scan(path, "text"),
    ):
        with pytest.raises(MedlmError, match=r"without a text .* in line 3"):
            read()


@pytest.mark.parametrize("mark", ";,\t")
def test_the_line_that_tells_excel_the_mark_is_no_heading(
    tmp_path: Path, mark: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"sep={mark}\ntext{mark}label\nfever{mark}flu\n", encoding="utf-8")
    assert list(formats.rows(path)) == [(2, ["text", "label"]), (3, ["fever", "flu"])]


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({"text": "a"}) + '\n{"text": "Mr Quagmire", "text": "b"}\n',
        encoding="utf-8",
    )
    with pytest.raises(MedlmError, match="line 2: a key stands twice") as caught:
        list(formats.rows(path))
    assert "Quagmire" not in str(caught.value)


def test_a_name_does_not_promise_another_kind_of_file() -> None:
    for path in ("a.csv", "a.txt", "a", "a.2024"):
        files.check_ending(Path(path), ".csv")
    for path, own in (
        ("a.XLSX", ".csv"),
        ("a.tsv", ".csv"),
        ("a.csv.gz", ".csv"),
        ("a.csv", ".npy"),
    ):
        with pytest.raises(MedlmError, match=f"expected a name that ends in {own}"):
            files.check_ending(Path(path), own)


def test_the_folder_of_a_run_is_told_from_its_model(tmp_path: Path) -> None:
    inner = tmp_path / "model"
    inner.mkdir()
    (inner / "medlm.json").touch()
    with pytest.raises(MedlmError, match=f"--model {inner}"):
        predict.load_encoder(str(tmp_path))


def test_an_encoder_that_needs_float32_gets_it() -> None:
    """The first DeBERTa fills its mask with a number that bfloat16 cannot hold."""
    sizes = {"vocab_size": 9, "hidden_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 16}
    for kind, taken in (("Deberta", "float32"), ("Bert", "bfloat16")):
        config = getattr(transformers, f"{kind}Config")(**sizes)
        encoder = getattr(transformers, f"{kind}Model")(config)
        model = bert.Classifier(encoder, ("no", "yes"))
        assert reading.usable_precision(model, "bfloat16", "auto") == taken
        if taken == "float32":
            with pytest.raises(MedlmError, match="expected float32"):
                reading.usable_precision(model, "bfloat16", "bfloat16")
