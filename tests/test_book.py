"""The book: what is staged, what our extension makes of it, what the pages hold."""

from __future__ import annotations

import ast
import base64
import doctest
import importlib.util
import json
import os
import re
import shutil
import struct
import sys
import types
from pathlib import Path

import nbformat
import pytest
import yaml
from myst_parser.mdit_to_docutils.base import default_slugify

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"

# The promises of the five outlines that the course set out from.
PROMISES = [
    f"S{outline}.{number}"
    for outline, count in enumerate((8, 4, 6, 6, 7))
    for number in range(1, count + 1)
]


def load(path: Path):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


build_book = load(ROOT / "tools" / "build_book.py")
check_links = load(ROOT / "tools" / "check_links.py")
medlm_results = load(BOOK / "_ext" / "medlm_results.py")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def chapters() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def prose(path: Path) -> str:
    """A page's text, or the text cells of a notebook."""
    if path.suffix == ".md":
        return read(path)
    cells = nbformat.read(path, 4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def headings(path: Path) -> list[str]:
    """The anchors that MyST gives to a page's headings."""
    found = re.findall(r"^#{1,4} +(.+?)\s*$", prose(path), re.MULTILINE)
    return [default_slugify(text) for text in found]


# Staging ------------------------------------------------------------------------------


def test_sync_copies_what_is_new_and_deletes_what_has_vanished(tmp_path):
    new = write(tmp_path / "from" / "new.md", "new")
    target = tmp_path / "to"
    write(target / "old" / "gone.md", "gone")
    changed = build_book.sync({"a/new.md": new}, target)
    assert sorted(changed) == ["a/new.md", "old/gone.md"]
    assert read(target / "a/new.md") == "new"
    assert not (target / "old").exists()


def test_sync_keeps_the_time_stamp_of_what_is_equal(tmp_path):
    source = write(tmp_path / "page.md", "text")
    copy = write(tmp_path / "to" / "page.md", "text")
    os.utime(copy, (1000, 1000))
    assert build_book.sync({"page.md": source}, tmp_path / "to") == []
    assert copy.stat().st_mtime == 1000


def test_sync_makes_what_differs_newer_even_if_its_source_is_old(tmp_path):
    source = write(tmp_path / "page.md", "committed")
    os.utime(source, (1000, 1000))
    copy = write(tmp_path / "to" / "page.md", "executed.")
    os.utime(copy, (2000, 2000))
    build_book.sync({"page.md": source}, tmp_path / "to")
    assert copy.stat().st_mtime > 2000


@pytest.fixture
def small_root(tmp_path):
    """A repository with one chapter and its solutions."""
    for name in ("_config.yml", "_toc.yml", "CHANGELOG.md", "book/index.md"):
        write(tmp_path / name, name)
    write(tmp_path / "notebooks" / "01_a.ipynb", "committed")
    write(tmp_path / "notebooks" / "solutions" / "01_a.ipynb", "solutions")
    write(tmp_path / "book" / "_ext" / "__pycache__" / "x.pyc", "")
    return tmp_path


def test_sources_leave_solutions_and_caches_out(small_root):
    staged = set(build_book.sources(small_root))
    pages = {"_config.yml", "_toc.yml", "CHANGELOG.md", "book/index.md"}
    assert staged == pages | {"notebooks/01_a.ipynb"}


def test_executed_notebooks_replace_the_committed_ones(small_root):
    run = write(small_root / "_build" / "executed" / "01_a.ipynb", "executed")
    staged = build_book.sources(small_root, executed=True)
    assert staged["notebooks/01_a.ipynb"] == run


def test_a_notebook_that_was_not_executed_is_named(small_root):
    with pytest.raises(build_book.BuildError, match=r"01_a\.ipynb not found"):
        build_book.sources(small_root, executed=True)


def test_a_missing_source_is_named(small_root):
    (small_root / "CHANGELOG.md").unlink()
    with pytest.raises(build_book.BuildError, match=r"CHANGELOG\.md not found"):
        build_book.sources(small_root)


def test_a_changed_extension_starts_the_build_anew(tmp_path):
    source, book = tmp_path / "source", tmp_path / "book"
    extension = write(source / "book" / "_ext" / "x.py", "a = 1")
    build_book.forget_if_reshaped(source, book)
    kept = write(book / "_build" / "page.html", "")
    build_book.forget_if_reshaped(source, book)
    assert kept.exists()
    extension.write_text("a = 2")
    build_book.forget_if_reshaped(source, book)
    assert not kept.exists()


def test_problems_are_the_warnings_without_colour_and_repetition():
    output = (
        "reading\n\x1b[91ma.md:3: WARNING: bad link\x1b[0m\na.md:3: WARNING: bad link"
    )
    assert build_book.problems(output) == ["a.md:3: WARNING: bad link"]
    assert build_book.problems("only\nthis") == ["only", "this"]


def test_publish_copies_the_site_and_marks_it_for_github(tmp_path):
    html, out = tmp_path / "html", tmp_path / "public"
    write(html / "index.html", "one")
    build_book.publish(html, out)
    write(html / "index.html", "two")
    build_book.publish(html, out)
    assert read(out / "index.html") == "two"
    assert (out / ".nojekyll").exists()


def test_publish_never_empties_a_folder_that_is_not_its_own(tmp_path):
    write(tmp_path / "html" / "index.html", "")
    precious = write(tmp_path / "home" / "thesis.txt", "")
    with pytest.raises(build_book.BuildError, match="not an earlier copy"):
        build_book.publish(tmp_path / "html", tmp_path / "home")
    assert precious.exists()


def test_a_folder_of_others_is_no_build_folder(small_root):
    precious = write(small_root / "book" / "thesis.md", "")
    with pytest.raises(build_book.BuildError, match="holds book, which no build"):
        build_book.build(small_root, small_root)
    assert precious.exists()


def test_an_earlier_build_folder_may_be_used_again(tmp_path):
    build_book.claim(tmp_path / "lint", usual=tmp_path / "_build")
    write(tmp_path / "lint" / "html" / "index.html", "")
    build_book.claim(tmp_path / "lint", usual=tmp_path / "_build")


def said_by_main(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """Exit status and error output of the command line."""
    monkeypatch.setattr(sys, "argv", ["build_book.py", *arguments])
    return build_book.main(), capsys.readouterr().err


def test_another_build_folder_takes_the_book(tmp_path, monkeypatch, capsys):
    def built(*, build_folder, **_):
        return write(build_folder / "html" / "index.html", "")

    monkeypatch.setattr(build_book, "build", built)
    folder = tmp_path / "lint"
    assert said_by_main(monkeypatch, capsys, "--build-folder", str(folder)) == (0, "")
    assert (folder / "html" / "index.html").is_file()


def test_a_build_folder_that_is_a_file_is_explained(tmp_path, monkeypatch, capsys):
    file = write(tmp_path / "taken", "")
    status, said = said_by_main(monkeypatch, capsys, "--build-folder", str(file))
    assert status == 1
    assert said.startswith(f"The book was not built. {file}: File exists.")
    assert "--build-folder" in said
    assert said.count("\n") == 1


def test_an_interrupted_build_ends_without_a_traceback(monkeypatch, capsys):
    def stopped(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_book, "build", stopped)
    status, said = said_by_main(monkeypatch, capsys)
    assert status == 130
    assert said == "\nStopped. Nothing half-written is left; call again.\n"


def test_after_an_interruption_the_next_build_starts_anew(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    stamp = write(tmp_path / "book" / "shape.txt", "")
    monkeypatch.setattr(build_book.subprocess, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        build_book.run_jupyter_book(
            tmp_path, stamp.parent, tmp_path, tmp_path, show=False
        )
    assert not stamp.exists()


def test_an_interrupted_copy_leaves_the_old_file(tmp_path, monkeypatch):
    def stopped(path, part):
        part.write_text("ha")
        raise KeyboardInterrupt

    source = write(tmp_path / "new.html", "half")
    copy = write(tmp_path / "to" / "page.html", "old")
    monkeypatch.setattr(build_book.shutil, "copyfile", stopped)
    with pytest.raises(KeyboardInterrupt):
        build_book.sync({"page.html": source}, copy.parent)
    assert read(copy) == "old"
    assert list(copy.parent.iterdir()) == [copy]


# Links --------------------------------------------------------------------------------


def links_wrong(tmp_path: Path, body: str) -> list[str]:
    """What the checker says of a page with this body, beside a sound page."""
    write(tmp_path / "a.html", f"<html><body>{body}</body></html>")
    write(tmp_path / "sub" / "b.html", '<h1 id="here">B</h1>')
    write(tmp_path / "logo.svg", "<svg/>")
    return check_links.check(tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        '<a href="sub/b.html#here">x</a>',
        '<a href="#">x</a> <a href="#top">x</a>',
        '<p id="i">x</p><a href="#i">x</a>',
        '<img src="logo.svg"> <img src="data:image/png;base64,AAAA">',
        '<a href="https://example.org/page">x</a> <a href="mailto:a@example.org">x</a>',
        '<link rel="canonical" href="https://example.org/">',
        "<style>a { background: url(logo.svg) }</style>",
    ],
)
def test_sound_links_pass(tmp_path, body):
    assert links_wrong(tmp_path, body) == []


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<a href="sub/c.html">x</a>', "leads to no file"),
        ('<a href="sub/b.html#gone">x</a>', "leads to no id"),
        ('<a href="#gone">x</a>', "leads to no id"),
        ('<img src="gone.png">', "leads to no file"),
        ('<a href="/sub/b.html">x</a>', "is not relative"),
        ('<script src="https://example.org/x.js"></script>', "another host"),
        ('<script src="//example.org/x.js"></script>', "another host"),
        ('<link rel="stylesheet" href="https://example.org/x.css">', "another host"),
        ('<link rel="preconnect" href="https://example.org">', "another host"),
        ('<img srcset="https://example.org/x.png 2x">', "another host"),
        ('<p style="background: url(https://example.org/x)">x</p>', "another host"),
        ("<style>@import 'https://example.org/x.css';</style>", "another host"),
        ('<meta http-equiv="refresh" content="0; url=gone.html">', "leads to no file"),
    ],
)
def test_broken_links_and_foreign_assets_are_found(tmp_path, body, problem):
    (wrong,) = links_wrong(tmp_path, body)
    assert wrong.startswith("a.html: ")
    assert problem in wrong


def test_style_sheets_are_checked_too(tmp_path):
    write(tmp_path / "x.css", "@font-face { src: url('https://example.org/f.woff2') }")
    (wrong,) = links_wrong(tmp_path, "")
    assert wrong.startswith("x.css: loads https://example.org")


def test_a_folder_without_pages_is_an_error(tmp_path):
    assert "no pages" in check_links.check(tmp_path)[0]


# Results ------------------------------------------------------------------------------

RECORD = {
    "metrics": {
        "error": {"value": 1.2345e-7},
        "auroc": {"value": 0.87, "low": 0.79, "high": 0.931, "n": 120, "unit": "AUROC"},
    },
    "notebook_seconds": 41.2,
    "peak_memory_gb": 1.3,
    "hardware": "2 cores, x86_64",
    "versions": {"python": "3.11.7", "torch": "2.15.0"},
    "seed": 2017,
    "date": "2026-11-22",
}


def test_a_metric_shows_its_interval_sample_and_unit():
    assert medlm_results.metric_rows(RECORD) == [
        ["`error`", "1.23e-07", "", "", ""],
        ["`auroc`", "0.87", "0.79 to 0.931", "120", "AUROC"],
    ]


def test_columns_that_no_metric_fills_are_left_out():
    rows = [["`a`", "1", "", "20", ""], ["`b`", "2", "", "", ""]]
    head, cells = medlm_results.filled(medlm_results.METRIC_COLUMNS, rows)
    assert head == ["Metric", "Value", "n"]
    assert cells == [["`a`", "1", "20"], ["`b`", "2", ""]]


def test_a_run_shows_only_what_was_recorded():
    rows = dict(medlm_results.run_rows(RECORD))
    assert rows["Running time"] == "41.2 s"
    assert rows["Versions"] == "python 3.11.7, torch 2.15.0"
    assert "Command" not in rows


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (1.0, "1"), (1.9876, "1.99"), (12345.6, "12346"), ("0.5", "0.5")],
)
def test_numbers_have_three_digits(value, text):
    assert medlm_results.number(value) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot be read"),
        ("[]", "no table 'metrics'"),
        ("{}", "no table 'metrics'"),
        ('{"metrics": {"a": {}}}', "'a' has no 'value'"),
        ('{"metrics": {"a": 1}}', "'a' has no 'value'"),
    ],
)
def test_a_malformed_record_is_explained(tmp_path, text, problem):
    with pytest.raises(medlm_results.RecordError, match=problem):
        medlm_results.read_record(write(tmp_path / "x.json", text))


# The extension, in a book of its own --------------------------------------------------

CHAPTER = [
    "# Attention\n\n[Good](../book/bibliography.md#vaswani2017attention), "
    "[bad](../book/bibliography.md#nobody2099)\n",
    "> **Note.** An aside.\n\n> **Clinical caution.** Not for *care*.\n\n"
    "> **Exercise 1 (scores, 10 min, easy).** Write it.\n>\n> More.\n\n> A quotation.",
]
FRAME = '<table border="1" class="dataframe"><tr><th></th><th>a</th></tr></table>'
DOT = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)


def small_chapter() -> nbformat.NotebookNode:
    """A notebook with boxes, a citation, a broken one, a table and a figure."""
    v4 = nbformat.v4
    table = v4.new_output("display_data", {"text/html": FRAME})
    alt = {"image/png": {"alt": "A single dot."}}
    figure = v4.new_output("display_data", {"image/png": DOT}, metadata=alt)
    code = v4.new_code_cell("frame", outputs=[table, figure], execution_count=1)
    return v4.new_notebook(cells=[*map(v4.new_markdown_cell, CHAPTER), code])


@pytest.fixture(scope="module")
def small_book(tmp_path_factory):
    """The folder of pages of a book with two faults, and what its build said."""
    root = tmp_path_factory.mktemp("small")
    shutil.copytree(BOOK / "_ext", root / "book" / "_ext")
    shutil.copytree(BOOK / "_static", root / "book" / "_static")
    shutil.copytree(BOOK / "_templates", root / "book" / "_templates")
    for name in ("references.bib", "bibliography.md", "results.md"):
        shutil.copy(BOOK / name, root / "book" / name)
    shutil.copy(ROOT / "_config.yml", root)
    write(root / "CHANGELOG.md", "# Changes")
    files = ["book/bibliography", "book/results", "notebooks/01"]
    toc = {"format": "jb-book", "root": "book/index"}
    toc["chapters"] = [{"file": name} for name in files]
    write(root / "_toc.yml", yaml.safe_dump(toc))
    write(root / "book" / "index.md", "# Small")
    write(root / "notebooks" / "01.ipynb", nbformat.writes(small_chapter()))
    recorded = root / "medlm_utils" / "recorded" / "cpu"
    write(recorded / "01_good.json", json.dumps(RECORD))
    write(recorded / "02_broken.json", '{"metrics": {"a": {}}}')
    with pytest.raises(build_book.BuildError) as failed:
        build_book.build(root)
    return root / "_build" / "book", str(failed.value)


@pytest.mark.slow
def test_a_build_with_warnings_fails_and_names_each(small_book):
    folder, said = small_book
    assert "nobody2099" in said
    assert "record cpu/02_broken: metric 'a' has no 'value'" in said
    assert "vaswani2017attention" not in said
    # The next build must not pass because it reads nothing again.
    assert not (folder / "shape.txt").exists()


@pytest.mark.slow
def test_citations_of_notebooks_lead_to_the_entry(small_book):
    pages = small_book[0] / "_build" / "html"
    target = "bibliography.html#vaswani2017attention"
    assert target in read(pages / "notebooks" / "01.html")
    assert 'id="vaswani2017attention"' in read(pages / "book" / "bibliography.html")


@pytest.mark.slow
def test_quotations_become_boxes(small_book):
    page = read(small_book[0] / "_build" / "html" / "notebooks" / "01.html")
    page = " ".join(page.split())
    assert '<div class="note admonition"> <p class="admonition-title">Note</p>' in page
    assert "caution clinical-caution" in page
    assert '<p class="admonition-title">Exercise 1 (scores, 10 min, easy)</p>' in page
    assert "<p>Write it.</p> <p>More.</p>" in page
    assert "<p>Not for <em>care</em>.</p>" in page
    assert page.count("<blockquote>") == 1


@pytest.mark.slow
def test_outputs_are_readable_by_all(small_book):
    page = read(small_book[0] / "_build" / "html" / "notebooks" / "01.html")
    assert 'alt="A single dot."' in page
    assert "<th></th>" not in page
    assert 'scrollable-table-container"><table border="1" class="dataframe">' in page


@pytest.mark.slow
def test_records_are_shown(small_book):
    page = read(small_book[0] / "_build" / "html" / "book" / "results.html")
    assert "0.79 to 0.931" in page
    assert "01_good, profile cpu" in page
    assert "41.2 s" in page


@pytest.mark.slow
def test_thebe_is_left_out(small_book):
    page = read(small_book[0] / "_build" / "html" / "notebooks" / "01.html")
    assert "THEBE_JS_URL" not in page


# Signatures and source ----------------------------------------------------------------

MODULE = """
@dataclass(frozen=True)
class Fields:
    size: int
    known: Tensor | None = None
    made: list[int] = field(default_factory=list)

class Block(torch.nn.Module):
    def __init__(self, width: int, mask: Tensor | None = None, *, eps: float = 0.5):
        pass

    @torch.no_grad()
    def forward(self, x: Tensor, found: Result) -> Result | None:
        pass

    @staticmethod
    def plain(x: Tensor | None) -> Tensor: ...

    @exercise
    def wrapped(self, x): ...

class Can(Protocol):
    pass
"""


@pytest.fixture
def signature(tmp_path, monkeypatch):
    """What the extension says that one name of a small module is called with."""
    extension = load(BOOK / "_ext" / "medlm_book.py")
    module = types.ModuleType("medlm_utils.small")
    module.__file__ = str(write(tmp_path / "small.py", MODULE))
    module.Result = type("Result", (), {"__module__": "medlm_utils.checks.core"})
    monkeypatch.setitem(sys.modules, "medlm_utils.small", module)

    def signed(name: str):
        name = f"medlm_utils.small.{name}"
        return extension.sign_as_in_source(None, "", name, None, None, "(*args)", "")

    return signed


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "Fields",
            ("(size: int, known: Tensor | None=None, made: list[int]=...)", None),
        ),
        ("Block", ("(width: int, mask: Tensor | None=None, *, eps: float=0.5)", None)),
        (
            "Block.forward",
            (
                "(x: Tensor, found: ~medlm_utils.checks.core.Result)",
                "~medlm_utils.checks.core.Result | None",
            ),
        ),
        ("Block.plain", ("(x: Tensor | None)", "Tensor")),
        ("Block.wrapped", None),
        ("Can", ("", None)),
        ("nothing", None),
    ],
)
def test_signatures_stand_as_in_the_source(signature, name, expected):
    assert signature(name) == expected


def test_only_our_modules_are_listed_as_source():
    extension = load(BOOK / "_ext" / "medlm_book.py")
    env = types.SimpleNamespace(
        _viewcode_modules={"torch": False, "medlm_utils.data": ("text", {}, {}, "")}
    )
    extension.list_only_our_source(None, env)
    assert list(env._viewcode_modules) == ["medlm_utils.data"]
    extension.list_only_our_source(None, types.SimpleNamespace())  # no viewcode


def png(width: int) -> str:
    """The head of a picture of this width, as notebooks hold it."""
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, 400)
    return base64.b64encode(head).decode()


def test_figures_with_several_panels_are_wide():
    extension = load(BOOK / "_ext" / "medlm_book.py")
    for width, wide in [(617, False), (740, False), (781, True), (1000, True)]:
        output = types.SimpleNamespace(mime_type="image/png", content=png(width))
        assert extension.is_wide(output) is wide
    assert not extension.is_wide(types.SimpleNamespace(mime_type="image/svg+xml"))


# The pages ----------------------------------------------------------------------------


def test_the_table_of_contents_lists_every_notebook():
    toc = yaml.safe_load(read(ROOT / "_toc.yml"))
    files = [page["file"] for part in toc["parts"] for page in part["chapters"]]
    listed = {name for name in files if name.startswith("notebooks/")}
    assert listed == {f"notebooks/{path.stem}" for path in chapters()}


def test_the_table_of_contents_lists_every_page():
    toc = yaml.safe_load(read(ROOT / "_toc.yml"))
    files = [page["file"] for part in toc["parts"] for page in part["chapters"]]
    pages = {f"book/{path.stem}" for path in BOOK.glob("*.md")}
    assert {name for name in files if name.startswith("book/")} == pages - {toc["root"]}


def coverage_rows() -> list[tuple[str, str, str]]:
    rows = re.findall(
        r"^\| (S\d\.\d+) \| (.+?) \| (.+) \|$", read(BOOK / "coverage.md"), re.M
    )
    return rows


def test_every_promise_is_listed_once_and_kept():
    rows = coverage_rows()
    assert [name for name, _, _ in rows] == PROMISES
    for name, _, where in rows:
        assert where.startswith(("chapter ", "appendix")) and "](" in where, name


def test_every_kept_promise_leads_to_a_section_of_a_notebook():
    for name, _, where in coverage_rows():
        for page, anchor in re.findall(r"\]\(\.\./(notebooks/[^)#]+)#([^)]+)\)", where):
            assert anchor in headings(ROOT / page), (name, anchor)


def test_what_is_cited_stands_in_the_bibliography():
    keys = set(re.findall(r"^@\w+\{([^,]+),", read(BOOK / "references.bib"), re.M))
    for path in [*BOOK.glob("*.md"), *chapters()]:
        cited = set(re.findall(r"bibliography\.md#([\w-]+)", prose(path)))
        assert cited <= keys, path.name


def test_bibliography_keys_can_be_ids():
    keys = re.findall(r"^@\w+\{([^,]+),", read(BOOK / "references.bib"), re.M)
    assert len(keys) == len(set(keys)) >= 20
    assert all(re.fullmatch(r"[a-z][a-z0-9]*", key) for key in keys)


def package_modules() -> set[str]:
    """The modules of the package, without those that only mark it as one."""
    files = (ROOT / "medlm_utils").rglob("*.py")
    named = (path for path in files if not path.name.startswith("__"))
    relative = (path.relative_to(ROOT).with_suffix("") for path in named)
    return {".".join(path.parts) for path in relative}


REFERENCE = ("api", "api_checks", "api_studies", "api_cli")


def test_the_reference_lists_every_module_in_the_order_of_imports():
    text = "".join(read(BOOK / f"{page}.md") for page in REFERENCE)
    listed = re.findall(r"automodule:: (\S+)", text)
    assert sorted(listed) == sorted(package_modules())
    for place, module in enumerate(listed):
        later = set(listed[place:])
        tree = ast.parse(read(ROOT / (module.replace(".", "/") + ".py")))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                assert not (names | {node.module}) & later, f"{module} imports upwards"


def test_the_refreshers_examples_are_true():
    plain = re.sub(r"^```.*$", "", read(BOOK / "refresher.md"), flags=re.MULTILINE)
    example = doctest.DocTestParser().get_doctest(plain, {}, "refresher", None, 0)
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(example, out=said.append)
    assert runner.tries >= 15
    assert runner.failures == 0, "".join(said)


def glossary() -> dict[str, str]:
    entries = re.findall(
        r"^(\S.*)\n  (\S.*)$", read(BOOK / "glossary.md"), re.MULTILINE
    )
    return dict(entries)


def test_every_glossary_term_has_its_chinese_equivalent():
    entries = glossary()
    assert len(entries) >= 50
    for term, first_line in entries.items():
        assert re.match(r"[^.]*[\u4e00-\u9fff][^.]*\.", first_line), term


def test_glossary_terms_stand_in_alphabetical_order():
    terms = [term.lower() for term in glossary()]
    assert terms == sorted(set(terms))


def test_environment_variables_are_explained():
    page = read(BOOK / "how_to_use.md")
    code = "\n".join(read(path) for path in (ROOT / "medlm_utils").rglob("*.py"))
    used = set(re.findall(r"MEDLM_[A-Z]+(?:_[A-Z]+)*", code))
    assert {name for name in used if f"| `{name}` |" not in page} == set()


def test_a_tag_publishes_the_checked_pages():
    workflow = yaml.safe_load(read(ROOT / ".github" / "workflows" / "publish.yml"))
    assert workflow[True]["push"]["tags"] == ["v*"]  # YAML reads the key "on" as true
    commands = [step.get("run") for step in workflow["jobs"]["build"]["steps"]]
    build = commands.index("make publish")
    assert commands.index("python tools/check_links.py public") > build


def test_every_push_runs_everything_and_keeps_the_pictures():
    workflow = yaml.safe_load(read(ROOT / ".github" / "workflows" / "ci.yml"))
    assert {"push", "pull_request"} <= set(workflow[True])
    (job,) = workflow["jobs"].values()
    runs = [step.get("run") for step in job["steps"]]
    assert "bash .ci/run" in runs
    (kept,) = (s for s in job["steps"] if "upload-artifact" in s.get("uses", ""))
    assert kept["if"] == "always()"
    assert kept["with"]["path"] == "_build/screenshots"


def test_code_of_the_pages_fits_beside_the_contents():
    """At 1280 pixels 80 characters fit; the browser's tests hold the font's size."""
    for path in BOOK.glob("*.md"):
        blocks = re.findall(r"^```(?!\{)\w*\n(.*?)^```", read(path), re.M | re.S)
        lines = [line for block in blocks for line in block.splitlines()]
        assert [line for line in lines if len(line) > 80] == [], path.name


def test_the_licences_of_code_and_text_are_told_apart():
    page = " ".join(read(BOOK / "index.md").split())
    assert "The code, also that in the notebooks, is under the BSD 3-Clause" in page
    assert "figures, also those in the notebooks, are under [CC BY 4.0]" in page


def imported_first(path: Path) -> list[str]:
    """The packages that a module needs as soon as it is imported."""
    names = []
    for node in ast.parse(read(path)).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module)
    return [name.split(".")[0] for name in names]


def test_the_book_builds_where_torch_is_missing():
    """What the package imports is a stand-in, or stands in the extra `book`."""
    mocked = yaml.safe_load(read(ROOT / "_config.yml"))["sphinx"]["config"]
    known = {"numpy", "matplotlib", "IPython", "medlm_utils", *sys.stdlib_module_names}
    for path in (ROOT / "medlm_utils").rglob("*.py"):
        assert set(imported_first(path)) <= known | set(
            mocked["autodoc_mock_imports"]
        ), path.name


# The whole book -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def site():
    """The book built from the committed notebooks, where `make lint` builds it too."""
    return build_book.build(ROOT, ROOT / "_build" / "lint").parent


@pytest.mark.slow
def test_every_link_leads_somewhere_and_no_asset_is_foreign(site):
    assert check_links.check(site) == []


@pytest.mark.slow
def test_the_list_of_source_code_leads_to_our_modules_only(site):
    listed = re.findall(r'href="([^"#]+)\.html">', read(site / "_modules/index.html"))
    assert "torch" not in listed
    assert any(name.startswith("medlm_utils/") for name in listed)


@pytest.mark.slow
def test_no_signature_of_the_reference_is_a_stand_ins(site):
    html = "".join(read(site / "book" / f"{page}.html") for page in REFERENCE)
    page = re.sub(r"<[^>]+>", "", html)
    assert "kwargs: Any" not in page
    assert "mask: Tensor | None = None" in " ".join(page.split())


@pytest.mark.slow
def test_wide_figures_stand_in_a_box(site):
    page = read(site / "notebooks" / "01_attention.html")
    assert 5 <= page.count('<div class="medlm-wide-figure') < page.count("/_images/")


@pytest.mark.slow
def test_formulas_come_from_the_site_itself(site):
    assert (site / "_static" / "mathjax" / "tex-chtml.js").is_file()


@pytest.mark.slow
def test_every_figure_has_a_text(site):
    for path in sorted((site / "notebooks").glob("*.html")):
        for image in re.findall(r'<img [^>]*src="\.\./_images[^>]*>', read(path)):
            text = re.search(r'alt="([^"]*)"', image)
            assert text and len(text[1]) > 20 and "_images" not in text[1], image


@pytest.mark.slow
def test_pages_name_no_path_of_this_machine(site):
    for path in sorted(site.rglob("*.html")):
        assert str(ROOT) not in read(path), path.name
