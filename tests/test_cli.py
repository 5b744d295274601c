"""Tests of the command line `medlm`."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medlm_utils import clinic, data
from medlm_utils.cli import clinic as cli_clinic
from medlm_utils.cli import main as cli
from medlm_utils.runtime import MedlmError

CONTENT = {"one.txt": b"one\n", "two.txt": b"second\n"}
ONE_SHA256 = "2c8b08da5ce60398e1f19af0e5dccc744df274b826abe585eaba68c525434806"
TWO_SHA256 = "480c2336b410f1ad5f8bf1b28944490255804b65350c527787e74ebdd511e3a4"


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry with nothing but the data set "pair"; returns its folder, complete."""
    (tmp_path / "pair.tsv").write_text(
        f"path\tbytes\tsha256\none.txt\t4\t{ONE_SHA256}\ntwo.txt\t7\t{TWO_SHA256}\n"
    )
    entry = data.Entry("pair", "Pair", "two files", "CC0", "none", "nobody", {})
    monkeypatch.setattr(data, "REGISTRY", tmp_path)
    monkeypatch.setattr(data, "ENTRIES", {"pair": entry})
    monkeypatch.setenv("MEDLM_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("MEDLM_OFFLINE", "1")
    folder = tmp_path / "pair"
    folder.mkdir()
    for path, content in CONTENT.items():
        (folder / path).write_bytes(content)
    return folder


def test_list_shows_each_entry_once(
    pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "list"]) == 0
    heading, row, _, folder = capsys.readouterr().out.splitlines()
    assert heading.split() == ["name", "kind", "files", "size", "here", "licence"]
    assert row.split() == ["pair", "data", "2", "0.0", "MB", "yes", "CC0"]
    assert folder.endswith(str(pair.parent))
    (pair / "one.txt").unlink()
    cli.main(["data", "list"])
    assert " 1 of 2 " in capsys.readouterr().out
    (pair / "two.txt").unlink()
    cli.main(["data", "list"])
    assert " no " in capsys.readouterr().out
    (pair / "two.txt").write_text("another size")
    cli.main(["data", "list"])
    assert " 1 wrong " in capsys.readouterr().out


def test_list_names_every_real_entry(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert tuple(line.split()[0] for line in lines[1:7]) == tuple(data.ENTRIES)


def test_fetch_prints_the_folder_only(
    pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "fetch", "pair"]) == 0
    assert capsys.readouterr() == (f"{pair}\n", "")


def test_fetch_reports_an_error_on_one_line(
    pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pair / "one.txt").unlink()
    assert cli.main(["data", "fetch", "pair"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("medlm: 'pair' is not whole: missing one.txt.")
    assert err.count("\n") == 1
    assert cli.main(["data", "fetch", "peer"]) == 1
    assert "'peer' is not in the registry" in capsys.readouterr().err


def test_fetch_knows_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "weights", lambda name: Path("folder") / name)
    assert cli.main(["data", "fetch", "minilm"]) == 0
    assert capsys.readouterr().out == f"{Path('folder') / 'minilm'}\n"


@pytest.mark.parametrize(
    ("damage", "words", "named", "unnamed"),
    [
        ("nothing", "2 right, 0 missing, 0 wrong", 0, 0),
        ("missing", "1 right, 1 missing, 0 wrong", 1, 0),
        ("wrong", "1 right, 0 missing, 1 wrong", 1, 1),
    ],
)
def test_verify_counts_files(
    damage: str,
    words: str,
    named: int,
    unnamed: int,
    pair: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if damage == "missing":
        (pair / "one.txt").unlink()
    if damage == "wrong":
        (pair / "one.txt").write_bytes(b"0ne\n")  # same size: only the hash tells
    assert cli.main(["data", "verify", "pair"]) == named
    assert f"pair: {words}\n" in (said := capsys.readouterr().out)
    assert ("wrong: one.txt" in said) is (damage == "wrong")
    assert cli.main(["data", "verify"]) == unnamed


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["data"],
        ["data", "fetch"],
        ["data", "eat", "pair"],
        ["datum"],
        ["clinic"],
        ["clinic", "write"],
        ["clinic", "write", "folder", "--patients", "many"],
    ],
)
def test_wrong_usage_leaves_with_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2
    assert "usage: medlm" in capsys.readouterr().err


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["data", "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("list", "fetch", "verify"))


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "medlm: stopped.\n"),
        (MedlmError("No."), 1, "medlm: No.\n"),
    ],
)
def test_errors_become_a_line_and_a_status(
    error: BaseException,
    status: int,
    words: str,
    pair: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(name: str) -> Path:
        raise error

    monkeypatch.setattr(data, "fetch", fail)
    assert cli.main(["data", "fetch", "pair"]) == status
    assert capsys.readouterr().err == words


def test_python_m_runs_the_same_and_bears_a_closed_pipe() -> None:
    command = [sys.executable, "-m", "medlm_utils", "data", "list"]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()  # as `head` does when it has seen enough
        assert process.stderr.read() == b""
        assert process.wait() == 1


# medlm clinic write -------------------------------------------------------------------

WRITTEN = {"train.csv", "val.csv", "test.csv", "medical_data.csv", "clinic.json"}


def write_clinic(folder: Path, *options: str) -> int:
    return cli.main(["clinic", "write", str(folder), "--patients", "60", *options])


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as page:
        return list(csv.DictReader(page))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_clinic_writes_its_notes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "notes"
    assert write_clinic(folder, "--seed", "3") == 0
    assert {path.name for path in folder.iterdir()} == WRITTEN
    source = clinic.Clinic()
    drawn = source.draw(60, 3)
    expected = set(zip(drawn.patient, drawn.text, map(str, drawn.label), strict=True))
    parts = [table(folder / f"{name}.csv") for name in ("train", "val", "test")]
    rows = [row for part in parts for row in part]
    assert len(rows) == len(expected)
    assert {tuple(row.values()) for row in rows} == expected
    assert list(rows[0]) == ["patient", "text", "label"]
    patients = [{row["patient"] for row in part} for part in parts]
    assert [len(names) for names in patients] == [42, 6, 12]
    assert len(set.union(*patients)) == 60
    cut = table(folder / "medical_data.csv")
    assert list(cut[0]) == ["patient", "title", "abstract", "label"]
    assert [f"{row['title']} {row['abstract']}" for row in cut] == list(drawn.text)
    assert [row["label"] for row in cut] == [str(label) for label in drawn.label]
    assert b"\r" not in (folder / "train.csv").read_bytes()
    about = json.loads((folder / "clinic.json").read_text())
    assert about["labels"] == list(source.diseases)
    assert (about["seed"], about["hospital"], about["patients"]) == (3, "A", 60)


def test_clinic_says_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clinic(tmp_path)
    said = capsys.readouterr().out
    source = clinic.Clinic()
    test = source.parse([row["text"] for row in table(tmp_path / "test.csv")])
    assert f"  test.csv: {len(test)} notes of 12 patients\n" in said
    assert "Labels: 0 pneumonia, 1 heart failure, " in said
    for reader in clinic.READERS:
        ceiling = clinic.accuracy_ceiling(source.posterior(test, reader))
        assert f"  {reader}: {ceiling:.3f}\n" in said


def test_clinic_passes_its_options_on(tmp_path: Path) -> None:
    write_clinic(tmp_path, "--hospital", "B", "--phrasing", "held-out", "--shortcut")
    drawn = clinic.Clinic("B", "held out", shortcut=True).draw(60, 2017)
    cut = table(tmp_path / "medical_data.csv")
    assert [f"{row['title']} {row['abstract']}" for row in cut] == list(drawn.text)
    about = json.loads((tmp_path / "clinic.json").read_text())
    assert (about["phrasing"], about["shortcut"]) == ("held out", True)


def test_clinic_overwrites_its_own_files_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letter.txt").write_text("keep")
    assert write_clinic(tmp_path) == 0
    first = contents(tmp_path)
    assert write_clinic(tmp_path) == 0
    assert contents(tmp_path) == first
    assert write_clinic(tmp_path, "--seed", "4") == 0
    second = contents(tmp_path)
    assert second["letter.txt"] == b"keep" and second["val.csv"] != first["val.csv"]
    (tmp_path / "val.csv").write_text("patient,text,label\nmine,of my own,1\n")
    edited = contents(tmp_path)
    capsys.readouterr()
    assert write_clinic(tmp_path, "--seed", "3") == 1
    assert contents(tmp_path) == edited
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert f"{tmp_path} holds val.csv, not written by this command" in err
    assert write_clinic(tmp_path, "--force") == 0
    assert contents(tmp_path) == first


@pytest.mark.parametrize("other", ["train.csv", "medical_data.csv", "clinic.json"])
@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"sha256": 1}', "a,b\n1,2\n"])
def test_clinic_refuses_files_of_another_origin(
    other: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / other).write_text(content)
    assert write_clinic(tmp_path) == 1
    assert f"holds {other}, not written by" in capsys.readouterr().err
    assert contents(tmp_path) == {other: content.encode()}


@pytest.mark.parametrize("is_new", [True, False])
def test_clinic_leaves_nothing_half_written(
    is_new: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The disk is full at the third file."""
    folder = tmp_path / "notes"
    if not is_new:
        write_clinic(folder)
    before = contents(folder) if folder.exists() else None
    write_bytes, calls = Path.write_bytes, []

    def full(path: Path, content: bytes) -> int:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert write_clinic(folder, "--seed", "5") == 1
    said = f"medlm: Cannot write into {folder}: No space left on device. Expected a "
    assert capsys.readouterr().err.startswith(said)
    assert (contents(folder) if folder.exists() else None) == before


def test_clinic_explains_a_folder_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert write_clinic(folder) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"medlm: Cannot write into {folder}: ")
        assert err.count("\n") == 1


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_clinic_explains_a_folder_that_may_not_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    assert write_clinic(tmp_path / "notes") == 1
    assert "Permission denied" in capsys.readouterr().err
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--patients", "0"], "patients is 0; expected a whole number"),
        (["--patients", "2"], "2 patients cannot be split"),
        (["--seed", "-1"], "seed is -1; expected a whole number"),
        (["--hospital", "C"], "No hospital is called 'C'; expected one of A, B."),
        (["--phrasing", "odd"], "The phrasing is 'odd'; expected"),
    ],
)
def test_clinic_refuses_bad_options(
    options: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert write_clinic(tmp_path / "notes", *options) == 1
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "notes").exists()


def test_clinic_holds_its_shares_in_one_place() -> None:
    assert sum(cli_clinic.SHARES.values()) == pytest.approx(1)
