"""Tests of the command line `medlm`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medlm_utils import data
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
    "words", [[], ["data"], ["data", "fetch"], ["data", "eat", "pair"], ["datum"]]
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
