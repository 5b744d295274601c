"""Sphinx extension: the directive ``medlm-results``, which prints recorded results.

It reads every record of the folder MEDLM_RESULTS_DIR (by default the package's
``recorded``), so that no number of the page is typed by hand.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)

METRIC_COLUMNS = ("Metric", "Value", "95% interval", "n", "Unit")
RUN_FIELDS = {
    "notebook_seconds": "Running time",
    "peak_memory_gb": "Peak memory",
    "hardware": "Hardware",
    "versions": "Versions",
    "seed": "Seed",
    "date": "Date",
    "command": "Command",
}
UNITS = {"notebook_seconds": " s", "peak_memory_gb": " GB"}


class RecordError(ValueError):
    """A record that cannot be shown; the message says why."""


class Results(SphinxDirective):
    """``medlm-results``: for every record its metrics, and how it was made."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """The sections to show, and a note to read this page again next time."""
        folder = results_folder(Path(self.env.app.confdir))
        self.env.metadata[self.env.docname]["medlm-results"] = True
        sections = [
            section
            for path in record_files(folder)
            if (section := self.section(path, folder)) is not None
        ]
        return sections or [nodes.paragraph(text="No results are recorded yet.")]

    def section(self, path: Path, folder: Path) -> nodes.section | None:
        """One record, or nothing and a warning where it cannot be read."""
        self.env.note_dependency(str(path))
        name = path.relative_to(folder).with_suffix("").as_posix()
        try:
            record = read_record(path)
        except RecordError as error:
            logger.warning("record %s: %s", name, error, location=self.get_location())
            return None
        made = nodes.section(ids=[nodes.make_id(f"record-{name}")], names=[name])
        made += nodes.title("", heading(name))
        made += table(*filled(METRIC_COLUMNS, metric_rows(record)))
        made += table(("How it was made", ""), run_rows(record))
        self.state.document.note_implicit_target(made, made)
        return made


def results_folder(confdir: Path) -> Path:
    """Where the records lie: MEDLM_RESULTS_DIR, or the package's own folder."""
    if named := os.environ.get("MEDLM_RESULTS_DIR"):
        return Path(named)
    candidates = [at / "medlm_utils" / "recorded" for at in (confdir, *confdir.parents)]
    return next((path for path in candidates if path.is_dir()), candidates[0])


def record_files(folder: Path) -> list[Path]:
    """The records, by chapter first and profile second."""
    return sorted(folder.glob("*/*.json"), key=lambda path: (path.stem, path.parent))


def read_record(path: Path) -> dict[str, Any]:
    """The content of one record, checked.

    Raises
    ------
    RecordError
        If it is not JSON of the agreed form.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"cannot be read ({error})") from None
    metrics = record.get("metrics") if isinstance(record, dict) else None
    if not isinstance(metrics, dict):
        raise RecordError("has no table 'metrics'; write it with runtime.record()")
    for name, metric in metrics.items():
        if not isinstance(metric, dict) or "value" not in metric:
            raise RecordError(
                f"metric {name!r} has no 'value'; expected a number there"
            )
    return record


def heading(name: str) -> str:
    """`cpu/01_attention` as a reader says it."""
    group, _, stem = name.partition("/")
    if group == "studies":
        return f"Study: {stem}"
    return f"{stem}, profile {group}"


def metric_rows(record: dict[str, Any]) -> list[list[str]]:
    """The cells of every metric, one row each."""
    return [metric_row(item) for item in record["metrics"].items()]


def filled(
    head: Sequence[str], rows: list[list[str]]
) -> tuple[list[str], list[list[str]]]:
    """The same table without the columns that no row fills."""
    keep = [i for i in range(len(head)) if i < 2 or any(row[i] for row in rows)]
    return [head[i] for i in keep], [[row[i] for i in keep] for row in rows]


def metric_row(item: tuple[str, dict[str, Any]]) -> list[str]:
    """The cells of one metric."""
    name, metric = item
    interval = ""
    if "low" in metric and "high" in metric:
        interval = f"{number(metric['low'])} to {number(metric['high'])}"
    count = "" if metric.get("n") is None else str(metric["n"])
    unit = str(metric.get("unit") or "")
    return [f"`{name}`", number(metric["value"]), interval, count, unit]


def run_rows(record: dict[str, Any]) -> Iterable[list[str]]:
    """What the record says about its run, one row a field."""
    for field, label in RUN_FIELDS.items():
        value = record.get(field)
        if value in (None, "", {}):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{name} {version}" for name, version in value.items())
        elif field in UNITS:
            value = number(value)
        yield [label, f"{value}{UNITS.get(field, '')}"]


def number(value: Any) -> str:
    """A number with three significant digits; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e6):
        return str(int(value))
    if 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:.2e}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> nodes.table:
    """A table of text; `backquoted` cells are set as code."""
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    headers = row(head) if all(head) else None
    if headers:
        group += nodes.thead("", headers)
    group += nodes.tbody("", *[row(cells) for cells in rows])
    classes = ["medlm-record"] if headers else ["medlm-record", "medlm-run"]
    return nodes.table("", group, classes=classes)


def row(cells: Sequence[str]) -> nodes.row:
    """One row of a table."""
    return nodes.row("", *[nodes.entry("", cell(text)) for text in cells])


def cell(text: str) -> nodes.paragraph:
    """The content of one cell."""
    if text.startswith("`"):
        return nodes.paragraph("", "", nodes.literal(text=text.strip("`")))
    return nodes.paragraph(text=text)


def pages_to_read_again(app: Sphinx, env: BuildEnvironment, *_: Any) -> list[str]:
    """Pages with results: new records may have come, which no page depends on yet."""
    return [name for name, data in env.metadata.items() if "medlm-results" in data]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive with Sphinx."""
    app.add_directive("medlm-results", Results)
    app.connect("env-get-outdated", pages_to_read_again)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
