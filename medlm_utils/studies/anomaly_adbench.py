"""Our detectors on six medical tables of ADBench, beside published AUROCs.

The published numbers are those of Livernoche et al. 2024, unsupervised setting, and so
is the protocol, one for all tables and detectors. A table of fewer than 1,000 rows is
first drawn with replacement to 1,000. Its columns are standardised. A detector is
fitted on as many rows, drawn with replacement, anomalies among them, and scores all
rows; so a row may be its own neighbour, and that more than once. Five seeds. The rows
are drawn as their program draws them.

Two settings are not what one would take, and the record has both ways. kNN has 32
neighbours: their program names no number, PyOD's default is 5, and with 32 the means of
all six tables are theirs to the last digit. ECOD takes the larger tail of each column
and adds up, as PyOD does; the paper adds up first and takes the largest of three sums.
`DEFAULTS` are these two as one would take them.

Where ten anomalies become thirty by copying, a local detector finds clusters, or not,
by the luck of the draw. So each difference stands beside what five seeds against five
can differ by chance.

A reader's table has no copies of its rows. So the study also scores each table as it
is, every row once and judged by the others (`training_scores`), with intervals over
rows: the tables name no patients.

Source: chapter 4; `python -m medlm_utils.studies.anomaly_adbench`. The tables are those
of Han et al. 2022, ECOD is that of Li et al. 2022.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medlm_utils import anomaly, data, metrics
from medlm_utils.runtime import SEED, MedlmError
from medlm_utils.studies import core

WITHIN = 0.03  # the largest difference from a published AUROC that we call agreement


@dataclasses.dataclass(frozen=True)
class Plan:
    """How often the tables are drawn, and their size."""

    seeds: tuple[int, ...]
    least: int  # rows; a smaller table is drawn with replacement to so many
    draws: int  # of rows, for an interval


PLANS = {
    "tiny": Plan((0, 1), 80, 60),
    "cpu": Plan((0, 1, 2, 3, 4), 1000, 1000),
    "gpu": Plan((0, 1, 2, 3, 4), 1000, 1000),
}


# The tables ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Size:
    """A table's file, and what it must hold."""

    file: str
    rows: int
    columns: int
    anomalies: int


TABLES = {
    "breastw": Size("4_breastw.npz", 683, 9, 239),
    "cardio": Size("6_cardio.npz", 1831, 21, 176),
    "thyroid": Size("38_thyroid.npz", 3772, 6, 93),
    "annthyroid": Size("2_annthyroid.npz", 7200, 6, 534),
    "mammography": Size("23_mammography.npz", 11183, 6, 260),
    "wdbc": Size("43_WDBC.npz", 367, 30, 10),
}


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows, (rows, columns), and which of them are anomalies, (rows,) of 0 and 1."""

    rows: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: np.ndarray) -> Table:
        """The rows of these numbers, repeated where a number is."""
        return Table(self.rows[chosen], self.label[chosen])

    @property
    def contamination(self) -> float:
        """The share of anomalies: what guessing has as its average precision."""
        return float(self.label.mean())

    def standardised(self) -> Table:
        """With mean 0 and standard deviation 1 in every column that varies."""
        spread = self.rows.std(axis=0)
        centred = self.rows - self.rows.mean(axis=0)
        return Table(centred / np.where(spread > 0, spread, 1), self.label)


def read_table(name: str, tiny: bool = False) -> Table:
    """One of `TABLES`; in a tiny run, made numbers in its place.

    Raises
    ------
    MedlmError
        If the files are not there and cannot be fetched, or a table has not the
        published size.
    """
    if tiny:
        return _stand_in(list(TABLES).index(name))
    return load(data.fetch("adbench"), TABLES[name])


def load(folder: Path, size: Size) -> Table:
    """Read a table's file.

    Raises
    ------
    MedlmError
        If it has another size.
    """
    with np.load(folder / size.file, allow_pickle=False) as file:
        table = Table(file["X"].astype(float), file["y"].astype(int))
    found = (*table.rows.shape, int(table.label.sum()))
    expected = (size.rows, size.columns, size.anomalies)
    if found != expected:
        raise MedlmError(
            f"{size.file} has {found} rows, columns and anomalies; expected "
            f"{expected}. Fetch it again: `medlm data fetch adbench`."
        )
    return table


def _stand_in(number: int) -> Table:
    """60 usual rows and 8 that lie apart in two of four columns."""
    rng = np.random.default_rng(number)
    label = np.repeat([0, 1], [60, 8])
    rows = rng.normal(size=(68, 4))
    rows[label == 1, :2] += 2.5
    return Table(rows, label)


def sample(table: Table, seed: int, least: int) -> tuple[Table, np.ndarray]:
    """A table as it is scored, and which of its rows the detectors learn from.

    Parameters
    ----------
    table
        As it was read.
    seed
        Of the draws. With NumPy's old generator, whose streams never change, they are
        those of the published run.
    least
        As in `Plan`.

    Returns
    -------
    tuple
        The standardised table, and the numbers of the training rows, as many as the
        table has, drawn with replacement.
    """
    rng = np.random.RandomState(seed)
    if len(table) < least:
        table = table[rng.choice(len(table), least)]
    # That run chooses which anomalies are known, none of them; the stream moves on.
    rng.permutation(int(table.label.sum()))
    return table.standardised(), rng.choice(len(table), len(table))


# The detectors ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Setting:
    """A detector as it is run here."""

    detector: str
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    words: str = "as in chapter 4"

    def fit(self, rows: np.ndarray, seed: int) -> anomaly.Detector:
        """The detector, fitted on these rows."""
        return anomaly.detector(self.detector, seed=seed, **self.more).fit(rows)


# As published, by the names that the detectors have there: IForest, ECOD, KNN, LOF and
# OCSVM.
AS_PUBLISHED = {
    "isolation_forest": Setting(
        "isolation_forest",
        {"trees": 100, "rows_a_tree": 256},
        "100 trees of 256 rows",
    ),
    "ecod": Setting(
        "ecod",
        {"largest_of": "columns"},
        "the larger tail of each column, then the sum, as in PyOD",
    ),
    "knn": Setting(
        "knn", {"k": 32, "reduce": "largest"}, "distance to the 32nd neighbour"
    ),
    "lof": Setting("lof", {"k": 20}, "20 neighbours"),
    "one_class_svm": Setting("one_class_svm", {"nu": 0.5}, "RBF, nu 0.5"),
}
DEFAULTS = {
    "ecod": Setting(
        "ecod", {"largest_of": "sums"}, "the largest of three sums, as in the paper"
    ),
    "knn": Setting(
        "knn", {"k": 5, "reduce": "largest"}, "distance to the 5th neighbour"
    ),
}
OTHERS = {
    name: Setting(name)
    for name in ("robust_z", "mahalanobis", "kernel_density", "gaussian_mixture")
}
SETTINGS = {
    **AS_PUBLISHED,
    **{f"{name}_default": setting for name, setting in DEFAULTS.items()},
    **OTHERS,
}

# AUROC in percent: mean and standard deviation over five seeds.
PUBLISHED_SEEDS = 5
PUBLISHED = {
    "isolation_forest": {
        "breastw": (98.32, 0.46),
        "cardio": (92.21, 1.22),
        "thyroid": (97.91, 0.55),
        "annthyroid": (81.63, 1.18),
        "mammography": (85.96, 1.73),
        "wdbc": (98.83, 0.39),
    },
    "ecod": {
        "breastw": (99.04, 0.25),
        "cardio": (93.49, 0.12),
        "thyroid": (97.71, 0.11),
        "annthyroid": (78.91, 0.11),
        "mammography": (90.62, 0.03),
        "wdbc": (97.05, 0.65),
    },
    "knn": {
        "breastw": (98.02, 0.53),
        "cardio": (83.02, 1.85),
        "thyroid": (96.52, 0.21),
        "annthyroid": (76.05, 0.14),
        "mammography": (85.17, 0.24),
        "wdbc": (98.04, 0.64),
    },
    "lof": {
        "breastw": (44.61, 3.25),
        "cardio": (55.12, 2.42),
        "thyroid": (65.69, 3.08),
        "annthyroid": (70.95, 1.05),
        "mammography": (70.15, 1.87),
        "wdbc": (84.87, 9.38),
    },
    "one_class_svm": {
        "breastw": (93.49, 2.12),
        "cardio": (93.42, 0.35),
        "thyroid": (95.83, 0.12),
        "annthyroid": (68.17, 0.21),
        "mammography": (87.11, 0.13),
        "wdbc": (98.42, 0.37),
    },
}


# The parts ----------------------------------------------------------------------------


def by_published_protocol(table: Table, seed: int, least: int) -> dict[str, Any]:
    """AUROC and average precision of every detector, for one seed.

    Parameters
    ----------
    table
        As it was read.
    seed, least
        As in `sample`.
    """
    drawn, train = sample(table, seed, least)

    def measured(setting: Setting) -> dict[str, Any]:
        score = setting.fit(drawn.rows[train], seed).anomaly_score(drawn.rows)
        return {
            "auroc": metrics.auroc(drawn.label, score),
            "average_precision": metrics.average_precision(drawn.label, score),
        }

    return {"contamination": drawn.contamination, "found": each(measured)}


def row_by_row(table: Table, draws: int) -> dict[str, Any]:
    """The same of the table as it is, each row judged without itself; over rows.

    Parameters
    ----------
    table
        As it was read.
    draws
        As in `Plan`.
    """
    whole = table.standardised()

    def measured(setting: Setting) -> dict[str, Any]:
        score = setting.fit(whole.rows, SEED).training_scores()
        return {
            name: _over_rows(statistic, whole.label, score, draws)
            for name, statistic in (
                ("auroc", metrics.auroc),
                ("average_precision", metrics.average_precision),
            )
        }

    return {"contamination": whole.contamination, "found": each(measured)}


def each(measured: Callable[[Setting], dict[str, Any]]) -> dict[str, Any]:
    """What is measured of every setting; where a detector refuses a table, its words.

    Parameters
    ----------
    measured
        A function of a `Setting`.
    """
    found: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        try:
            found[name] = measured(setting)
        except MedlmError as error:
            if name in AS_PUBLISHED:
                raise
            found[name] = {"refused": str(error)}
    return found


def _over_rows(
    statistic: Callable[..., float], label: np.ndarray, score: np.ndarray, draws: int
) -> dict[str, Any]:
    found = metrics.interval_by_patient(
        statistic, np.arange(len(label)), label, score, draws=draws, seed=SEED
    )
    return found.as_metric()


# Beside the published numbers ---------------------------------------------------------


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """As `core.over_seeds`, for a share: the interval stays between 0 and 1."""
    found = core.over_seeds(values)
    return {**found, "low": max(found["low"], 0.0), "high": min(found["high"], 1.0)}


def compare(values: Sequence[float], published: float, spread: float) -> dict[str, Any]:
    """Our AUROC beside a published one.

    Parameters
    ----------
    values
        Ours, one for each seed.
    published, spread
        Mean and standard deviation of `PUBLISHED_SEEDS` others.

    Returns
    -------
    dict
        `within` says whether the means differ by at most `WITHIN`, `chance` whether
        the 95% interval of their difference holds 0, by Welch's t.
    """
    from scipy.stats import t

    ours = over_seeds(values)
    own = float(np.var(values, ddof=1))
    errors = [own / len(values), spread**2 / PUBLISHED_SEEDS]
    counts = [len(values), PUBLISHED_SEEDS]
    freedom = sum(errors) ** 2 / sum(
        error**2 / (n - 1) for error, n in zip(errors, counts, strict=True)
    )
    difference = ours["value"] - published
    half = float(t.ppf(0.975, freedom)) * math.sqrt(sum(errors))
    return {
        "auroc": ours,
        "published": published,
        "published_sd": spread,
        "difference": difference,
        "difference_low": difference - half,
        "difference_high": difference + half,
        "within": abs(difference) <= WITHIN,
        "chance": abs(difference) <= half,
    }


def cells(by_seed: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Every table and every setting of a published detector, beside its number.

    Parameters
    ----------
    by_seed
        Of each table, what `by_published_protocol` found, one for each seed.
    """
    rows = []
    for table, seeds in by_seed.items():
        for name in (*AS_PUBLISHED, *(f"{name}_default" for name in DEFAULTS)):
            detector = name.removesuffix("_default")
            mean, spread = (value / 100 for value in PUBLISHED[detector][table])
            values = [one["found"][name]["auroc"] for one in seeds]
            row = {"table": table, "detector": detector, "setting": name}
            rows.append({**row, **compare(values, mean, spread)})
    return rows


def agreement(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How far these cells are from the published ones.

    Parameters
    ----------
    rows
        Of `cells`.
    """
    apart = [abs(row["difference"]) for row in rows]
    return {
        "largest_difference": max(apart),
        "mean_difference": float(np.mean(apart)),
        "cells": len(rows),
        "cells_within": sum(row["within"] for row in rows),
        "cells_explained": sum(row["within"] or row["chance"] for row in rows),
    }


def by_table(
    by_seed: Mapping[str, Sequence[dict[str, Any]]],
    row_by_row: Mapping[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """Every setting on every table, in both protocols, for the series.

    Parameters
    ----------
    by_seed, row_by_row
        Of each table, what the two functions of these names found.
    """
    rows = []
    for table, seeds in by_seed.items():
        whole = row_by_row[table]
        for name in SETTINGS:
            rows.append(
                {
                    "table": table,
                    "setting": name,
                    "contamination": float(
                        np.mean([s["contamination"] for s in seeds])
                    ),
                    "published_protocol": _of_seeds([s["found"][name] for s in seeds]),
                    "contamination_row_by_row": whole["contamination"],
                    "row_by_row": whole["found"][name],
                }
            )
    return rows


def _of_seeds(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each measure over the seeds; where a seed was refused, why."""
    refused = [one for one in found if "refused" in one]
    if refused:
        return refused[0]
    return {name: over_seeds([one[name] for one in found]) for name in found[0]}


# The study ----------------------------------------------------------------------------


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Score every table with every detector, in both protocols; compare.

    Raises
    ------
    MedlmError
        As `read_table`.
    """
    plan = PLANS[study.size]
    tables = {name: read_table(name, study.tiny) for name in TABLES}
    parts = [
        part for name, table in tables.items() for part in _parts(name, table, plan)
    ]
    results = iter(study.run(parts))
    by_seed, whole = {}, {}
    for name in tables:
        by_seed[name] = [next(results) for _ in plan.seeds]
        whole[name] = next(results)
    return summary(plan, by_seed, whole)


def _parts(name: str, table: Table, plan: Plan) -> list[core.Part]:
    """One for each seed, and one for the table as it is."""
    fixed = {
        "table": name,
        "rows": table.rows.shape,
        "settings": {key: [s.detector, dict(s.more)] for key, s in SETTINGS.items()},
    }
    cost = float(max(len(table), plan.least)) ** 1.5
    return [
        *(
            core.Part(
                f"{name}-{seed}",
                {**fixed, "seed": seed, "least": plan.least},
                cost,
                functools.partial(by_published_protocol, table, seed, plan.least),
            )
            for seed in plan.seeds
        ),
        core.Part(
            f"{name}-row-by-row",
            {**fixed, "draws": plan.draws},
            2 * cost,
            functools.partial(row_by_row, table, plan.draws),
        ),
    ]


def summary(
    plan: Plan,
    by_seed: Mapping[str, Sequence[dict[str, Any]]],
    whole: Mapping[str, dict[str, Any]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics and series of all parts.

    Parameters
    ----------
    plan
        Of the run.
    by_seed, whole
        Of each table, the results of its seeds and of the table as it is.
    """
    rows = cells(by_seed)
    chosen = [row for row in rows if row["setting"] in AS_PUBLISHED]
    # The same five detectors, two of them as one would take them.
    usual = [
        row
        for row in rows
        if row["setting"].endswith("_default") or row["detector"] not in DEFAULTS
    ]
    found = {f"auroc_{r['table']}_{r['detector']}": r["auroc"] for r in chosen}
    with_defaults = agreement(usual)
    found |= agreement(chosen)
    found |= {
        f"{name}_default_settings": with_defaults[name]
        for name in ("largest_difference", "mean_difference", "cells_within")
    }
    return found, {
        "plan": dataclasses.asdict(plan),
        "within": WITHIN,
        "settings": {name: setting.words for name, setting in SETTINGS.items()},
        "published_source": "DTE README, unsupervised setting (ICLR 2024)",
        "cells": rows,
        "by_table": by_table(by_seed, whole),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see `core.main`."""
    about = "Our detectors on six medical tables of ADBench, beside published AUROCs."
    return core.main("anomaly_adbench", about, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
