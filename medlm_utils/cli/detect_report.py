"""The report of a search for unusual rows: as JSON can hold it, and as one page.

Colours, tables and figures are those of the report of a fine-tuning.
"""

from __future__ import annotations

import inspect
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medlm_utils import anomaly, runtime
from medlm_utils.cli import pages, reading, tables
from medlm_utils.cli.search import Found, Plan

Content = dict[str, Any]

LISTED = 100  # flagged rows on the page; the CSV file has all
LONGEST = 400  # characters of a text on the page
COLUMNS = 3  # that are named for a flagged row
BINS = 50
SHARES = (0.5, 0.9, 0.99, 0.999)  # quantiles of the scores

CAUTION = (
    "Not for clinical use. A score says how far a row lies from the others, not what "
    "is wrong with it. An unusual row may be a rare disease, a slip in the record, "
    "another way of writing, or nothing; a usual one may be of somebody very ill. "
    "Nobody's care may depend on it without a study in the place where it is to be "
    "used. The patients of unusual rows are the easiest to recognise: keep this page "
    "where the rows may be kept."
)

_CSS = """
article { border-top: 1px solid var(--line); padding: .3rem 0; }
article h3 { font-size: 1rem; margin: .5rem 0; }
article p, article ul { margin: .3rem 0; max-width: 48rem; }
"""

# What is known ------------------------------------------------------------------------


def content(
    plan: Plan,
    found: Found,
    read: Sequence[reading.Reading | None],
    device: str,
) -> Content:
    """What the report holds.

    Parameters
    ----------
    plan, found
        The search and its result.
    read
        What read the texts of each of its sources.
    device
        The torch device that was used.
    """
    measured = {
        "threshold": found.threshold,
        "median_score": float(np.median(found.scores)),
        "largest_score": float(found.scores.max()),
    }
    lost = [
        f"{source.path.name}: {warning}"
        for source, one in zip(plan.sources, read, strict=True)
        for warning in (one.warnings() if one else ())
    ]
    seconds = time.monotonic() - plan.started
    return {
        **runtime.results(dict(measured), seconds, device),
        "seed": plan.chosen.seed,
        "command": command(plan),
        "input": _input_facts(plan),
        "fitted_on": _fitted_facts(plan, found),
        "detector": _detector_facts(plan),
        "budget": found.budget,
        "threshold": found.threshold,
        "tied_and_not_flagged": found.tied,
        "warnings": [*plan.warnings, *lost, *found.warnings],
        "precision": plan.precision or None,
        "reading": {
            source.path.name: one.facts()
            for source, one in zip(plan.sources, read, strict=True)
            if one
        },
        "distribution": distribution(found.scores, found.threshold),
        "flagged": _flagged(plan, found),
    }


def command(plan: Plan) -> str:
    """The command with its settings; of paths only the last part."""
    words = ["medlm", "detect"]
    for name, value in vars(plan.chosen).items():
        if name not in ("run", "force") and value is not None:
            is_path = isinstance(value, Path) or name == "model"
            words += [f"--{name}", Path(value).name if is_path else str(value)]
    return shlex.join(words)


def distribution(scores: np.ndarray, threshold: float) -> Content:
    """How many rows have which score, and quantiles.

    The bins end where the threshold is halfway between median and end; else one huge
    score would push all others into the first bin.
    """
    end = min(scores.max(), 2 * threshold - np.median(scores))
    end = end if end > scores.min() else scores.max()
    counts, edges = np.histogram(scores, bins=BINS, range=(scores.min(), end))
    quantiles = np.quantile(scores, SHARES)
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "beyond": int((scores > end).sum()),
        "quantiles": {
            f"{share:g}": float(value)
            for share, value in zip(SHARES, quantiles, strict=True)
        },
    }


def _input_facts(plan: Plan) -> Content:
    source = plan.source
    return {
        "file": source.path.name,
        "sha256": tables.sha256(source.path),
        "rows": source.count,
        "columns": list(source.columns),
        "left_out": source.left_out,
        "text_columns": [source.heading[place] for place in source.texts],
        "vectors": _vectors_in_words(plan),
    }


def _vectors_in_words(plan: Plan) -> str:
    """What a row is to the detector."""
    source = plan.source
    if source.columns:
        return (
            f"{len(source.columns)} columns, each as its robust z: minus the median, "
            "divided by 1.4826 times the median absolute deviation"
        )
    if source.values is not None:
        return f"{source.values.shape[1]} numbers, as they stand in the file"
    return f"the mean of its last hidden states in {Path(plan.chosen.model).name}"


def _fitted_facts(plan: Plan, found: Found) -> Content:
    is_new = plan.usual is not None
    return {
        "how": "inductive" if is_new else "transductive",
        "file": plan.fitted.path.name,
        "sha256": tables.sha256(plan.fitted.path),
        "rows": plan.fitted.count,
        "also_in_the_input": plan.shared if is_new else None,
        "middle_score": found.middle,
    }


def _detector_facts(plan: Plan) -> Content:
    name = plan.chosen.detector
    said = (inspect.getdoc(anomaly.DETECTORS[name]) or name).splitlines()[0]
    settings = {
        setting: value
        for setting, value in vars(plan.detector).items()
        if isinstance(value, (str, int, float)) and setting.strip("_") == setting
    }
    return {
        "name": name,
        "about": said,
        "settings": settings,
        "metric": plan.metric,
    }


def _flagged(plan: Plan, found: Found) -> list[Content]:
    """The rows at the top, with their texts, neighbours and columns."""
    rows = found.flagged[:LISTED]
    near = found.nearest[:LISTED]
    texts = plan.source.texts_at([*rows, *([] if plan.usual else near.ravel())])
    beside = plan.usual.texts_at(near.ravel()) if plan.usual else texts
    listed = []
    for place, row in enumerate(rows):
        fact: Content = {
            "rank": place + 1,
            "row_number": int(row) + 1,
            "score": float(found.scores[row]),
            "nearest": [
                {"row_number": int(other) + 1, "distance": float(far)}
                | ({"text": shortened(beside[other])} if other in beside else {})
                for other, far in zip(near[place], found.distance[place], strict=True)
            ],
        }
        if row in texts:
            fact["text"] = shortened(texts[row])
        if found.deviations is not None:
            fact["stands_out"] = _outstanding(plan, row, found.deviations[place])
        listed.append(fact)
    return listed


def _outstanding(plan: Plan, row: int, deviations: np.ndarray) -> list[Content]:
    """The columns with the largest robust z, of either sign."""
    values = plan.source.values
    assert values is not None
    return [
        {
            "column": plan.source.columns[place],
            "value": float(values[row, place]),
            "robust_z": float(deviations[place]),
        }
        for place in np.argsort(-np.abs(deviations), kind="stable")[:COLUMNS]
    ]


def shortened(text: str) -> str:
    """A text in one line, cut where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rstrip()} …"


# The page -----------------------------------------------------------------------------


def page(content: Content) -> str:
    """The report as an HTML page.

    Parameters
    ----------
    content
        What `medlm detect` writes into its ``.report.json``.

    Returns
    -------
    str
        A page that needs no other file.
    """
    makers: dict[str, Callable[[Content], str]] = {
        "How the scores are spread": _spread,
        "The flagged rows": _rows,
        "What was read": _read,
        "How it was found": _method,
        "How it was run": _run,
    }
    title = f"Unusual rows of {content['input']['file']}"
    lead = f"{_summary(content)}\n{pages.caution(CAUTION)}\n{_warnings(content)}"
    return pages.whole(title, lead + pages.sections(content, makers), _CSS)


def _summary(content: Content) -> str:
    rows, budget = content["input"]["rows"], content["budget"]
    threshold = content["metrics"]["threshold"]["value"]
    return (
        f"<p><strong>{budget:,} of {rows:,} rows are flagged</strong> "
        f"({100 * budget / rows:.2g}%): the highest scores, from {threshold:.4g}. "
        f"{_fitted_in_words(content)}</p>"
    )


def _warnings(content: Content) -> str:
    if not content["warnings"]:
        return ""
    lines = "".join(f"<li>{pages.text(line)}</li>" for line in content["warnings"])
    return f"<p><strong>Warnings</strong></p>\n<ul>{lines}</ul>\n"


def _fitted_in_words(content: Content) -> str:
    fitted = content["fitted_on"]
    if fitted["how"] == "inductive":
        return (
            f"The detector was fitted on {fitted['rows']:,} rows of "
            f"{pages.text(fitted['file'])}, which are taken to be usual, and judged "
            "these rows as new ones (inductive)."
        )
    return (
        "The detector was fitted on these very rows, anomalies included, and judged "
        "each among the others (transductive). Anomalies that are many and alike can "
        "hide one another; rows known to be usual, given with --fit, prevent that."
    )


def _spread(content: Content) -> str:
    spread, found = content["distribution"], content["metrics"]
    threshold = found["threshold"]["value"]
    median, largest = (
        found[f"{name}_score"]["value"] for name in ("median", "largest")
    )

    def draw(ax: Any) -> None:
        edges = spread["edges"]
        ax.stairs(spread["counts"], edges, fill=True, color=pages.ONE, label="all rows")
        ax.axvline(threshold, color=pages.TWO, ls="--", label="threshold")
        ax.set_yscale("symlog", linthresh=1)  # one row must be seen beside thousands
        ax.yaxis.set_major_formatter("{x:,.0f}")
        pages.finish(ax, "anomaly score", "rows")

    rows = [[f"{float(q):.1%}", f"{v:.4g}"] for q, v in spread["quantiles"].items()]
    rows.append(["all", f"{largest:.4g}"])
    beyond = spread["beyond"]
    beyond = f" Rows beyond the right end: {beyond:,}." if beyond else ""
    tied = content["tied_and_not_flagged"]
    remark = f" Rows left out with that score, but for rounding: {tied:,}." * (tied > 0)
    return pages.figures(
        pages.figure(
            "scores",
            draw,
            f"Histogram of {content['input']['rows']:,} anomaly scores: median "
            f"{median:.4g}, threshold {threshold:.4g}, largest {largest:.4g}.",
            f"Higher is more unusual. The counts are on a logarithmic axis.{beyond}",
        ),
        pages.table(
            ["share of the rows", "score up to"],
            rows,
            "The threshold is where the budget ends. It does not say how many rows are "
            f"anomalies.{remark}",
            "Quantiles of the scores",
        ),
    )


def _rows(content: Content) -> str:
    listed, fitted = content["flagged"], content["fitted_on"]
    of = f" of {fitted['file']}" if fitted["how"] == "inductive" else ""
    if content["budget"] > len(listed):
        lead = f"The first {len(listed):,}; the CSV file has all."
    else:
        lead = "From the most unusual one down."
    lead += (
        f" Nearest usual rows{of}: what the row resembles most, none of them flagged. "
        "Row numbers count from 1, without the heading."
    )
    return f"<p>{pages.text(lead)}</p>\n" + "\n".join(_row(fact, of) for fact in listed)


def _row(fact: Content, of: str) -> str:
    """One flagged row."""
    head = f"{fact['rank']}. Row {fact['row_number']:,}, score {fact['score']:.4g}"
    parts = [f"<h3>{head}</h3>"]
    if "text" in fact:
        parts.append(f"<p>{pages.text(fact['text'])}</p>")
    if "stands_out" in fact:
        named = "; ".join(
            f"{one['column']} {one['value']:g} (robust z {one['robust_z']:+.1f})"
            for one in fact["stands_out"]
        )
        parts.append(f"<p>Furthest from the median: {pages.text(named)}</p>")
    if fact["nearest"]:
        near = "".join(f"<li>{_neighbour(one)}</li>" for one in fact["nearest"])
        lead = pages.text(f"Nearest usual rows{of}:")
        parts.append(f'<p class="faint">{lead}</p><ul>{near}</ul>')
    return f"<article>{''.join(parts)}</article>"


def _neighbour(one: Content) -> str:
    words = f"row {one['row_number']:,}, distance {one['distance']:.4g}"
    return f"{words}: {pages.text(one['text'])}" if "text" in one else words


def _read(content: Content) -> str:
    """What of the input is compared, and what is not, and why."""
    given = content["input"]
    facts = {
        "Input": f"{given['file']}, {given['rows']:,} rows",
        "Its SHA-256": given["sha256"][:12],
        "A row is": given["vectors"],
        "Columns": ", ".join(given["columns"] or given["text_columns"]) or "none",
    }
    facts |= {f"Left out: {name}": why for name, why in given["left_out"].items()}
    for name, one in content["reading"].items():
        facts |= {f"Texts of {name}": _reading_in_words(one)}
    return pages.table([], facts.items(), "", "What was read", words=True)


def _reading_in_words(one: Content) -> str:
    """How much of the texts the model has read."""
    if one["long"] == "cut":
        longer = f"{one['cut']:,} lose their end"
    else:
        longer = f"longer ones in pieces, {one['rows']:,} in all"
    return (
        f"{one['notes']:,}, at most {one['longest']:,} tokens at once; {longer}. Of "
        f"{one['tokens']:,} tokens {one['tokens_lost']:,} are not read and "
        f"{one['unknown']:,} unknown to the model"
    )


def _method(content: Content) -> str:
    detector, fitted = content["detector"], content["fitted_on"]
    settings = ", ".join(f"{n} {v}" for n, v in detector["settings"].items())
    cosine = "1 - cosine: 0 in the same direction, 1 at a right angle"
    facts = {
        "Detector": f"{detector['name']}: {detector['about']}",
        "Settings": settings,
        "Distance": cosine if detector["metric"] == "cosine" else "Euclidean",
        "Fitted on": f"{fitted['file']}, {fitted['rows']:,} rows: {fitted['how']}",
        "Its middle row": f"scores {fitted['middle_score']:.4g}; no row that scores as "
        "little is flagged",
        "Scores": "higher is more anomalous; comparable within this run only",
    }
    shown = [(name, value) for name, value in facts.items() if value]
    return pages.table([], shown, "", "How it was found", words=True)


def _run(content: Content) -> str:
    versions = ", ".join(f"{n} {v}" for n, v in content["versions"].items())
    facts = {
        "Command": content["command"],
        "Seed": str(content["seed"]),
        "Precision": content["precision"] or "",
        "Machine": content["hardware"],
        "Time": f"{content['notebook_seconds']:,.0f} s",
        "Versions": versions,
        "Date": content["date"],
    }
    shown = [(name, value) for name, value in facts.items() if value]
    return pages.table([], shown, "", "The run", words=True)
