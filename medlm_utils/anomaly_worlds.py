"""What is unusual: points and patients from worlds whose best possible detector is
known.

Knows nothing about detectors. Every world has two probabilities: p0 of what is usual,
and p1 of what is not. Where both are known, so is the best detector: it ranks by p1/p0,
and no other finds more anomalies at any rate of false alarms (Neyman and Pearson). A
detector that never saw an anomaly knows at best p0. To rank by -log p0 is its plain
choice, the label-free line; it is no bound, for p0 can be used in other ways too.

In the plane, `REGIMES` set one usual population against three kinds of anomaly. In the
clinic, `KINDS` of odd patients are patients of another clinic: some probabilities
differ, the language does not, so the words cancel in p1/p0 and the facts remain.

Axes: ``rows`` (points), ``notes``, ``findings``, ``diseases``, ``severities``.
Logarithms are natural, so log-ratios are in nats. In a label, 1 is an anomaly and 0 is
usual.

Source: Neyman and Pearson 1933; chapter 4.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from medlm_utils.clinic import (
    MENTIONS,
    WORLD,
    Clinic,
    Disease,
    Notes,
    World,
    title_and_abstract,
)
from medlm_utils.runtime import MedlmError

_REACH, _CELLS = 6.0, 720  # the grid of the exact AUROCs: -6 to 6 on both axes

# No code of a clinic is as large: an index by it fails instead of picking another.
UNREADABLE = 99
WAYS = ("shuffled words", "copied and pasted", "misread characters")
_HOSPITAL = "A"
_TRIES = 100  # to spoil one note
_MISREAD_SHARE = 0.2  # of the words
_EXAMINATION = "On examination"

# What a scanner takes for what.
_MISREADINGS = (
    ("rn", "m"), ("m", "rn"), ("l", "1"), ("1", "l"), ("o", "0"), ("0", "o"),
    ("e", "c"), ("h", "b"), ("i", "l"), ("u", "v"), ("s", "5"), ("a", "o"),
)  # fmt: skip

# Points in the plane ------------------------------------------------------------------


class Population(Protocol):
    """What points can be drawn from, with a density."""

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """log p of each point, (rows, 2) to (rows,), in nats."""

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """New points, (count, 2)."""


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Equally likely Gaussian clusters of one shape.

    Parameters
    ----------
    centres
        (clusters, 2).
    spread
        Standard deviation of each coordinate within a cluster.
    correlation
        Of the two coordinates within a cluster, between -1 and 1.
    """

    centres: tuple[tuple[float, float], ...]
    spread: float
    correlation: float = 0.0

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """log p of each point, (rows, 2) to (rows,), in nats."""
        rest = 1 - self.correlation**2
        x, y = np.moveaxis(
            (points[:, None] - np.array(self.centres)) / self.spread, 2, 0
        )
        squared = (x**2 - 2 * self.correlation * x * y + y**2) / rest
        scale = np.log(2 * np.pi * self.spread**2 * np.sqrt(rest) * len(self.centres))
        return np.logaddexp.reduce(-squared / 2, axis=1) - scale

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """New points, (count, 2)."""
        cluster = rng.integers(len(self.centres), size=count)
        x, own = rng.standard_normal((2, count))
        y = self.correlation * x + np.sqrt(1 - self.correlation**2) * own
        return np.array(self.centres)[cluster] + self.spread * np.stack([x, y], axis=1)


@dataclasses.dataclass(frozen=True)
class Box:
    """Every point of a square is equally likely.

    Parameters
    ----------
    half_width
        The square reaches so far from 0 on both axes.
    """

    half_width: float

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """log p of each point, (rows, 2) to (rows,), in nats; -inf outside."""
        inside = (np.abs(points) <= self.half_width).all(axis=1)
        return np.where(inside, -2 * np.log(2 * self.half_width), -np.inf)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """New points, (count, 2)."""
        return rng.uniform(-self.half_width, self.half_width, size=(count, 2))


@dataclasses.dataclass(frozen=True)
class Unrelated:
    """The coordinates of some clusters, each drawn as if the other were not there.

    Both marginal distributions stay as they are; what ties them together is gone.

    Parameters
    ----------
    clusters
        Whose marginal distributions.
    """

    clusters: Clusters

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """log p of each point, (rows, 2) to (rows,), in nats."""
        spread, centres = self.clusters.spread, np.array(self.clusters.centres)
        squared = ((points[:, None] - centres) / spread) ** 2  # (rows, clusters, 2)
        scale = np.log(np.sqrt(2 * np.pi) * spread * len(centres))
        return (np.logaddexp.reduce(-squared / 2, axis=1) - scale).sum(axis=1)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """New points, (count, 2)."""
        first, second = self.clusters.draw(rng, count), self.clusters.draw(rng, count)
        return np.stack([first[:, 0], second[:, 1]], axis=1)


@dataclasses.dataclass(frozen=True)
class Regime:
    """Usual points and anomalies whose densities are known.

    Parameters
    ----------
    name
        Its key in `REGIMES`.
    usual, anomalies
        The two populations.

    Source: chapter 4.
    """

    name: str
    usual: Population
    anomalies: Population

    def log_p0(self, points: ArrayLike) -> np.ndarray:
        """log density of the usual population, (rows, 2) to (rows,), in nats.

        Raises
        ------
        MedlmError
            If the points are not (rows, 2) finite numbers.
        """
        return self.usual.log_density(_plane(points))

    def log_p1(self, points: ArrayLike) -> np.ndarray:
        """log density of the anomalies, (rows, 2) to (rows,); -inf where none can be.

        Raises
        ------
        MedlmError
            If the points are not (rows, 2) finite numbers.
        """
        return self.anomalies.log_density(_plane(points))

    def log_ratio(self, points: ArrayLike) -> np.ndarray:
        """log p1/p0, the score of the best possible detector, (rows,), in nats.

        Raises
        ------
        MedlmError
            If the points are not (rows, 2) finite numbers.

        Source: Neyman and Pearson 1933; chapter 4.
        """
        return self.log_p1(points) - self.log_p0(points)

    def draw(
        self, usual: int, anomalies: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Points of both kinds in random order.

        Parameters
        ----------
        usual, anomalies
            How many of each; one of them may be 0.
        seed
            Of the generator.

        Returns
        -------
        points, label
            (rows, 2), and (rows,) with 1 for an anomaly.

        Raises
        ------
        MedlmError
            If a number is no whole number of at least 0, or both are 0.
        """
        for what, value in (("usual", usual), ("anomalies", anomalies), ("seed", seed)):
            _check_whole(what, value, 0)
        if not usual + anomalies:
            raise MedlmError("No points were asked for; expected at least one.")
        rng = np.random.default_rng(seed)
        points = np.concatenate(
            [self.usual.draw(rng, usual), self.anomalies.draw(rng, anomalies)]
        )
        label = np.repeat([0, 1], [usual, anomalies])
        order = rng.permutation(len(label))
        return points[order], label[order]

    @functools.cached_property
    def neyman_pearson_auroc(self) -> float:
        """The AUROC of p1/p0: no detector has a higher one.

        Summed over a grid, not drawn: the error is below 0.00005.
        """
        return self._exact_auroc(of_ratio=True)

    @functools.cached_property
    def neg_log_p0_auroc(self) -> float:
        """The AUROC of -log p0: of a detector that knows all about the usual points.

        The label-free line, which is no bound. Summed over a grid: the error is below
        0.00005.
        """
        return self._exact_auroc(of_ratio=False)

    def _exact_auroc(self, of_ratio: bool, cells: int = _CELLS) -> float:
        """P(an anomaly scores higher than a usual point), cell by cell."""
        points = _grid(cells)
        p0, p1 = np.exp(self.log_p0(points)), np.exp(self.log_p1(points))
        score = self.log_ratio(points) if of_ratio else -self.log_p0(points)
        order = np.argsort(score, kind="stable")
        p0, p1 = p0[order] / p0.sum(), p1[order] / p1.sum()
        return float(np.sum(p1 * (np.cumsum(p0) - p0 / 2)))  # within a cell: a tie


def _check_whole(what: str, value: Any, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or value < least:
        raise MedlmError(
            f"{what} is {value!r}; expected a whole number, at least {least}."
        )


def _plane(points: ArrayLike) -> np.ndarray:
    """(rows, 2) finite numbers."""
    try:
        given = np.asarray(points, dtype=float)
    except (TypeError, ValueError) as error:
        raise MedlmError(
            f"The points cannot be read as numbers ({error}); expected (rows, 2)."
        ) from error
    if given.ndim != 2 or given.shape[1] != 2:
        raise MedlmError(
            f"The points have the shape {given.shape}; expected (rows, 2)."
        )
    if not np.isfinite(given).all():
        raise MedlmError("The points hold NaN or infinity; expected finite numbers.")
    return given


def _grid(cells: int) -> np.ndarray:
    """The middles of square cells, (cells * cells, 2)."""
    middles = _REACH * ((2 * np.arange(cells) + 1) / cells - 1)
    return np.stack(np.meshgrid(middles, middles, indexing="ij"), axis=-1).reshape(
        -1, 2
    )


# Two measurements in units of their standard deviations: each alone looks normal, but
# they rise together in two groups of patients, one of which is higher on the second.
_USUAL_POINTS = Clusters(((-0.55, 0.55), (0.55, -0.55)), (1 - 0.55**2) ** 0.5, 0.95)

REGIMES: dict[str, Regime] = {
    name: Regime(name, _USUAL_POINTS, anomalies)
    for name, anomalies in (
        ("global outliers", Box(5.0)),
        ("clustered anomalies", Clusters(((0.0, 0.0),), 0.2)),  # between the two groups
        ("broken dependency", Unrelated(_USUAL_POINTS)),
    )
}

# Patients of the clinic ---------------------------------------------------------------


def usual_clinic(unseen: str = "meningitis", world: World = WORLD) -> Clinic:
    """Hospital A as if one disease did not exist; the others are rescaled.

    Parameters
    ----------
    unseen
        The disease whose prior becomes 0; it keeps its number.
    world
        The clinic's parameters.

    Returns
    -------
    Clinic
        Where the usual patients come from.

    Raises
    ------
    MedlmError
        If the disease is unknown, or no other is ever seen.

    Source: chapter 4.
    """
    is_unseen = _is_disease(unseen, world)
    rest = np.where(is_unseen, 0.0, world.priors[_HOSPITAL])
    if not rest.sum():
        raise MedlmError(
            f"Without {unseen} there are no patients; expected a world in which "
            "another disease is seen."
        )
    return _with_prior(world, rest / rest.sum())


def _is_disease(name: str, world: World) -> np.ndarray:
    """Which of the diseases it is, (diseases,) bool."""
    names = [disease.name for disease in world.diseases]
    if name not in names:
        raise MedlmError(
            f"No disease is called {name!r}; expected one of {', '.join(names)}."
        )
    return np.array(names) == name


def _with_prior(world: World, prior: np.ndarray, **changes: Any) -> Clinic:
    """Hospital A of a world with this prior, and other changes."""
    priors = {_HOSPITAL: tuple(float(p) for p in prior)}
    return Clinic(_HOSPITAL, world=dataclasses.replace(world, priors=priors, **changes))


# The other clinics --------------------------------------------------------------------


def _unseen_disease(usual: Clinic, unseen: str) -> Clinic:
    """Nobody has anything else."""
    return _with_prior(usual.world, _is_disease(unseen, usual.world).astype(float))


def _mixed_up_record(usual: Clinic, unseen: str) -> Clinic:
    """One more disease, and the only one: each thing is as frequent as usual."""
    findings = np.einsum(
        "d,ds,dsf->f", usual.prior, usual.severity, usual.finding_rates
    )
    names = [finding.name for finding in usual.world.findings]
    vitals = zip(usual.world.vital_bands, usual.vital_rates, strict=True)
    record = Disease(
        "mixed-up record",
        dict(zip(names, findings.tolist(), strict=True)),
        severe=0.0,
        vitals={vital: _average(usual, rates) for vital, rates in vitals},
        **_marginal_header(usual),
    )
    diseases = (*usual.world.diseases, record)
    prior = np.arange(len(diseases)) == len(diseases) - 1
    return _with_prior(usual.world, prior, diseases=diseases, severity_odds=1.0)


def _other_header(usual: Clinic, unseen: str) -> Clinic:
    """Age and sex say nothing about the disease, nor about each other."""
    header = _marginal_header(usual)
    diseases = tuple(
        dataclasses.replace(disease, **header) for disease in usual.world.diseases
    )
    return _with_prior(usual.world, usual.prior, diseases=diseases)


def _marginal_header(usual: Clinic) -> dict[str, Any]:
    """P(age band) and P(woman) of all usual patients, as a disease takes them."""
    diseases = usual.world.diseases
    ages = _average(usual, np.array([disease.ages for disease in diseases]))
    women = _average(usual, np.array([[disease.women] for disease in diseases]))
    return {"ages": ages, "women": women[0]}


def _average(usual: Clinic, rates: np.ndarray) -> tuple[float, ...]:
    """Over the usual patients, (diseases, categories) to one number each."""
    return tuple(float(rate) for rate in usual.prior @ rates)


_OTHER_CLINICS = {
    "unseen disease": _unseen_disease,
    "mixed-up record": _mixed_up_record,
    "another patient's header": _other_header,
}
KINDS = (*_OTHER_CLINICS, "garbled text")


@dataclasses.dataclass(frozen=True)
class OddPatients:
    """Patients who are unusual in a known way.

    Parameters
    ----------
    kind
        One of `KINDS`.
    usual
        The clinic of the usual patients.
    odd
        The clinic of the odd ones; None where there is none that could write them.

    Source: chapter 4.
    """

    kind: str
    usual: Clinic
    odd: Clinic | None

    def draw(self, patients: int, seed: int, first_patient: int = 0) -> Notes:
        """Notes of odd patients, 1 to 3 each.

        Parameters
        ----------
        patients, seed, first_patient
            As in `Clinic.draw`. With one seed, usual and odd patients are different
            people; with one number, they have one name.

        Returns
        -------
        Notes
            `label` numbers the diseases of `odd`: those of `usual`, and behind them a
            mixed-up record. Of garbled texts every code is `UNREADABLE`, and the truth
            is that of the patient for whom the note was written; they take `WAYS` in
            turn.

        Raises
        ------
        MedlmError
            If a number is no whole number or too small, or a note cannot be spoiled.
        """
        _check_whole("patients", patients, 1)
        _check_whole("seed", seed, 0)
        _check_whole("first_patient", first_patient, 0)
        # With the seed itself the same people would come as in the usual clinic.
        own_seeds = np.random.SeedSequence([seed, KINDS.index(self.kind)])
        own_seed = int(own_seeds.generate_state(1)[0])
        if self.odd is None:
            return _draw_garbled(self.usual, patients, own_seed, first_patient)
        return self.odd.draw(patients, own_seed, first_patient)

    def log_ratio(self, notes: Notes) -> np.ndarray:
        """log p1/p0 of each note on its own, the best possible score.

        The words cancel, so it is computed from the codes. A garbled text is impossible
        in the usual clinic and any other impossible as a garbled one: inf or -inf.

        Parameters
        ----------
        notes
            As `draw` or `Clinic.parse` gives them.

        Returns
        -------
        array
            (notes,), in nats; inf where p0 is 0.

        Raises
        ------
        MedlmError
            If a note is of another hospital, cannot be read or is impossible in both
            clinics.

        Source: Neyman and Pearson 1933; chapter 4.
        """
        if self.odd is None:
            return np.where(_is_note(self.usual, notes), -np.inf, np.inf)
        _check_hospital(self.usual, notes)
        log_p0, log_p1 = _log_facts(self.usual, notes), _log_facts(self.odd, notes)
        impossible = np.isneginf(log_p0) & np.isneginf(log_p1)
        if impossible.any():
            raise MedlmError(
                f"{impossible.sum()} of {len(notes)} notes are impossible in the usual "
                "clinic and in the odd one; expected notes of one of them."
            )
        return log_p1 - log_p0


def odd_patients(
    kind: str, unseen: str = "meningitis", world: World = WORLD
) -> OddPatients:
    """One kind of odd patient, beside the usual ones.

    Parameters
    ----------
    kind
        ``"unseen disease"``: patients with the disease that usual ones never have.
        ``"mixed-up record"``: every finding, vital sign, age and sex is as frequent as
        in usual patients, but drawn for itself: nothing goes together.
        ``"another patient's header"``: age and sex are drawn for themselves, all else
        is one usual patient's.
        ``"garbled text"``: a usual note, spoiled in one of `WAYS`, that the clinic
        cannot have written.
    unseen
        The disease that no usual patient has, whatever the kind.
    world
        The clinic's parameters.

    Raises
    ------
    MedlmError
        If the kind or the disease is unknown.

    Source: chapter 4.
    """
    if kind not in KINDS:
        raise MedlmError(
            f"No kind of odd patient is called {kind!r}; expected one of "
            f"{', '.join(KINDS)}."
        )
    usual = usual_clinic(unseen, world)
    make = _OTHER_CLINICS.get(kind)
    return OddPatients(kind, usual, make(usual, unseen) if make else None)


def together(usual: Notes, odd: Notes) -> tuple[Notes, np.ndarray]:
    """Usual and odd notes in one, with the label that tells them apart.

    Parameters
    ----------
    usual, odd
        With patients, as `draw` gives them; none of them in both.

    Returns
    -------
    notes, label
        The usual ones first; (notes,) with 1 for an odd one.

    Raises
    ------
    MedlmError
        If notes name no patients, or a name stands in both.
    """
    for notes in (usual, odd):
        if len(notes.patient) != len(notes):
            raise MedlmError("Some notes name no patients; expected notes of `draw`.")
    shared = np.intersect1d(usual.patient, odd.patient)
    if len(shared):
        raise MedlmError(
            f"{len(shared)} patients, such as {shared[0]}, are usual and odd; expected "
            "other names: draw the second ones with `first_patient`."
        )
    columns = {
        field.name: np.concatenate(
            [getattr(notes, field.name) for notes in (usual, odd)]
        )
        for field in dataclasses.fields(Notes)
    }
    return Notes(**columns), np.repeat([0, 1], [len(usual), len(odd)])


# How likely ---------------------------------------------------------------------------


def surprise(usual: Clinic, notes: Notes, of: str = "facts") -> np.ndarray:
    """-log p0 of each note, in nats: the label-free line.

    Parameters
    ----------
    usual
        The clinic whose p0 it is.
    notes
        Of any clinic with the same findings and vital signs.
    of
        ``"facts"``: mentions, vital signs, age band and sex. ``"text"``: every word.

    Returns
    -------
    array
        (notes,); inf for a text that `usual` cannot write, and for facts that cannot
        be read.

    Raises
    ------
    MedlmError
        If `of` is neither, or the notes have other findings.

    Source: chapter 4.
    """
    if of not in ("facts", "text"):
        raise MedlmError(f"of is {of!r}; expected 'facts' or 'text'.")
    is_text = of == "text"
    known = _is_note(usual, notes) if is_text else ~_is_unreadable(notes)
    values = np.full(len(notes), np.inf)
    if known.any():
        rest = notes[known]
        values[known] = (
            -usual.log_likelihood(rest) if is_text else -_log_facts(usual, rest)
        )
    return values


def _log_facts(clinic: Clinic, notes: Notes) -> np.ndarray:
    """log P(mentions, vital signs, age band, sex) of each note on its own, (notes,)."""
    _check_facts(notes, clinic.world)
    diseases = clinic.world.diseases
    ages = np.array([disease.ages for disease in diseases])[:, notes.age_band]
    women = np.array([disease.women for disease in diseases])[:, None]
    sexes = np.where(notes.sex == 0, women, 1 - women)
    known = clinic.prior[:, None] * ages * sexes  # (diseases, notes)
    for vital, rates in enumerate(clinic.vital_rates):
        known *= rates[:, notes.vitals[:, vital]]
    with np.errstate(divide="ignore"):  # log 0 = -inf is meant
        total = np.log(known)[:, None] + np.log(clinic.severity)[:, :, None]
        rates = np.log(clinic.mention_rates)
    for finding, kind in enumerate(notes.mentions.T):
        total += rates[:, :, finding, kind]  # (diseases, severities, notes)
    return np.logaddexp.reduce(total.reshape(-1, len(notes)), axis=0)


def _is_unreadable(notes: Notes) -> np.ndarray:
    """Which notes have no codes, (notes,) bool."""
    return np.asarray(notes.age_band == UNREADABLE)


def _is_note(clinic: Clinic, notes: Notes) -> np.ndarray:
    """Which texts the clinic could have written, (notes,) bool."""
    return np.array([_can_write(clinic, text) for text in notes.text], dtype=bool)


def _can_write(clinic: Clinic, text: str) -> bool:
    """Whether the text is in the clinic's language."""
    try:
        clinic.language.parse(text)
    except MedlmError:
        return False
    return True


def _check_facts(notes: Notes, world: World) -> None:
    """Every note can be read, and is about these findings."""
    unreadable = int(_is_unreadable(notes).sum())
    if unreadable:
        raise MedlmError(
            f"{unreadable} of {len(notes)} notes are garbled and have no facts; "
            "expected notes that can be read."
        )
    columns = notes.mentions.shape[1], notes.vitals.shape[1]
    expected = len(world.findings), len(world.vital_bands)
    if columns != expected:
        raise MedlmError(
            f"The notes have {columns[0]} findings and {columns[1]} vital signs; "
            f"expected {expected[0]} and {expected[1]}, those of the clinic."
        )


def _check_hospital(clinic: Clinic, notes: Notes) -> None:
    """Every note begins as this hospital's notes do: elsewhere words do not cancel."""
    headers = itertools.product(*clinic.language.header)
    known = {", ".join(words).lower() for words in headers}
    for text in notes.text[~_is_unreadable(notes)]:
        header = text.partition(", bay ")[0].lower()
        if header not in known:
            raise MedlmError(
                f"A note begins {header[:40]!r}; expected notes of hospital "
                f"{clinic.hospital}, which begin {' or '.join(sorted(known))!r}."
            )


# Raw findings as columns --------------------------------------------------------------


def facts(notes: Notes, world: World = WORLD) -> np.ndarray:
    """What the notes say, as numbers: the baseline that needs no network.

    Parameters
    ----------
    notes
        As `draw` or `Clinic.parse` gives them.
    world
        The clinic's parameters.

    Returns
    -------
    array
        (notes, columns) of `fact_names`: 1 or 0 for each finding and kind of mention;
        the number of the band of each vital sign, and of age; 1 for a man.

    Raises
    ------
    MedlmError
        If notes are garbled, or have other findings than this world.

    Source: chapter 4.
    """
    _check_facts(notes, world)
    said = [notes.mentions[:, finding] == kind for finding, kind in _columns(world)]
    columns = [*said, *notes.vitals.T, notes.age_band, notes.sex]
    return np.stack(columns, axis=1).astype(float)


def fact_names(clinic: Clinic) -> list[str]:
    """The names of the columns of `facts`, such as ``"fever: negated"``."""
    findings = clinic.world.findings
    said = [
        f"{findings[finding].name}: {MENTIONS[kind]}"
        for finding, kind in _columns(clinic.world)
    ]
    return [*said, *clinic.world.vital_bands, "age band", "sex"]


def _columns(world: World) -> list[tuple[int, int]]:
    """(finding, kind of mention) of all that a note may say; silence is no column."""
    return [
        (number, kind)
        for number, finding in enumerate(world.findings)
        for kind in range(1, len(MENTIONS))
        if any(row[kind] > 0 for row in world.mention[finding.place])
    ]


# Garbled text -------------------------------------------------------------------------


def _draw_garbled(usual: Clinic, patients: int, seed: int, first_patient: int) -> Notes:
    """Usual notes, spoiled in turn in each of `WAYS`."""
    drawn = usual.draw(2 * patients, seed, first_patient)
    own = np.isin(drawn.patient, list(dict.fromkeys(drawn.patient))[:patients])
    notes, donors = drawn[own], drawn[~own].text
    rng = np.random.default_rng([seed, 1])  # not the clinic's own chances again
    texts = [
        _spoiled(usual, text, WAYS[row % len(WAYS)], donors, rng)
        for row, text in enumerate(notes.text)
    ]
    codes = ("mentions", "age_band", "sex", "bay", "vitals")
    unknown = {c: np.full_like(getattr(notes, c), UNREADABLE) for c in codes}
    return dataclasses.replace(notes, text=np.array(texts, dtype=object), **unknown)


def _spoiled(
    usual: Clinic, text: str, way: str, donors: np.ndarray, rng: np.random.Generator
) -> str:
    """The text, spoiled anew until the clinic cannot have written it."""
    for _ in range(_TRIES):
        if way == "shuffled words":
            changed = _shuffled(text, rng)
        elif way == "copied and pasted":
            changed = _pasted(usual, text, str(rng.choice(donors)))
        else:
            changed = _misread(text, rng)
        if not _can_write(usual, changed):
            return changed
    raise MedlmError(
        f"A note stays possible, {way} {_TRIES} times over: {text[:60]!r}. Expected "
        "notes with more words."
    )


def _shuffled(text: str, rng: np.random.Generator) -> str:
    """The words of each sentence in random order; every comma stays where it was."""
    sentences = []
    for sentence in text.removesuffix(".").split(". "):
        words = (sentence[0].lower() + sentence[1:]).split(" ")
        bare = [word.removesuffix(",") for word in words]
        order = rng.permutation(len(words))
        mixed = " ".join(
            bare[place] + word[len(word.removesuffix(",")) :]
            for place, word in zip(order, words, strict=True)
        )
        sentences.append(mixed[0].upper() + mixed[1:])
    return ". ".join(sentences) + "."


def _pasted(usual: Clinic, text: str, donor: str) -> str:
    """A history, and behind it the second part of another patient's note.

    Some symptom stands in both, or else the text is given back as it was.
    """
    history = text[: text.index(_EXAMINATION)]
    second = title_and_abstract(donor)[1]
    cut = len(donor) - len(second)
    before = {s.finding for s in usual.spans(text) if s.end <= len(history)}
    after = {s.finding for s in usual.spans(donor) if s.start >= cut}
    return history + second if before & after else text


def _misread(text: str, rng: np.random.Generator) -> str:
    """Some of the words with a character taken for another, as a scanner does."""
    return " ".join(
        _misread_word(word, rng) if rng.random() < _MISREAD_SHARE else word
        for word in text.split(" ")
    )


def _misread_word(word: str, rng: np.random.Generator) -> str:
    """One character, or pair, taken for another; the word itself if none can be."""
    places = [
        (start, seen, taken)
        for seen, taken in _MISREADINGS
        for start in range(len(word))
        if word.startswith(seen, start)
    ]
    if not places:
        return word
    start, seen, taken = places[rng.integers(len(places))]
    return word[:start] + taken + word[start + len(seen) :]
