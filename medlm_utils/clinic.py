"""The simulated clinic: disease -> findings -> note, with exact posterior.

Knows nothing about models. A patient has a disease and a severity; each visit draws
findings anew, decides what the note says about each (nothing, present, absent, perhaps,
in the family), and words it. Every step is a known probability, so the posterior of the
disease and the likelihood of the text are sums, not estimates.

Axes: ``notes``, ``patients``, ``diseases``, ``severities``, ``findings``, ``mentions``
(the five kinds in `MENTIONS`). Logarithms are natural, so likelihoods are in nats.

Source: book page "The simulated clinic"; chapter 2.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medlm_utils.runtime import MedlmError

MENTIONS = ("silent", "affirmed", "negated", "hedged", "family")
SEVERITIES = ("mild", "severe")
SEXES = ("woman", "man")

# A reader that cannot tell kinds of mention apart: the kind that each is taken for.
READERS = {
    "full note": (0, 1, 2, 3, 4),
    "hedge- and family-blind": (0, 1, 2, 1, 1),
    "hedge-blind": (0, 1, 2, 1, 4),
    "family-blind": (0, 1, 2, 3, 1),
    "negation-blind": (0, 1, 1, 1, 1),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """A symptom or sign, and the words for it.

    Parameters
    ----------
    name
        Such as ``"fever"``.
    group
        The part of the note in which it stands; ``"examination"`` for signs.
    nouns, held_out
        Words for it; the second are used only by ``phrasing="held out"``.
    background
        Probability in a disease that does not name it.
    """

    name: str
    group: str
    nouns: tuple[str, ...]
    held_out: tuple[str, ...]
    background: float

    @property
    def place(self) -> str:
        """``"examination"`` for a sign, ``"symptom"`` otherwise."""
        return "examination" if self.group == "examination" else "symptom"


@dataclasses.dataclass(frozen=True)
class Disease:
    """A disease and what it makes likely.

    Parameters
    ----------
    name
        Never written in a note.
    findings
        Finding to probability in a patient halfway, in log-odds, between mild and
        severe; `World.severity_odds` moves it up and down.
    severe
        Probability of the severe form.
    ages
        Probability of each band of `World.age_bands`.
    women
        Probability that a patient is a woman.
    vitals
        Vital sign to the probabilities of its bands; `World.usual_vitals` otherwise.
    """

    name: str
    findings: Mapping[str, float]
    severe: float
    ages: tuple[float, ...]
    women: float
    vitals: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class World:
    """Every parameter of a clinic: change one, and all exact quantities follow.

    Parameters
    ----------
    diseases, findings
        What there is.
    priors
        Hospital to the probability of each disease.
    mention
        ``"symptom"`` or ``"examination"`` to P(kind of mention | finding absent,
        present), (2, mentions).
    severity_odds
        The odds of a finding are multiplied by it in the severe form, and divided by
        it in the mild one.
    frames
        (``"symptom"`` or ``"examination"``, kind) to frames with ``{}`` for the noun.
    held_out_frames
        The same for ``phrasing="held out"``.
    suffixes, suffix_share
        What may follow an affirmed symptom, and how often something does.
    age_bands
        (youngest, oldest) of each band; ages are uniform inside.
    demographics
        Frames with ``{age}`` and ``{sex}``.
    vital_bands
        Vital sign to the written values of each band, uniform inside.
    usual_vitals
        Vital sign to the probabilities of its bands where the disease says nothing.
    headers
        Hospital to its header segments; a segment is a tuple of equally likely words.
    bays
        How many bays there are; in which one a patient lies means nothing, unless
        the shortcut is switched on.
    shortcut_disease, shortcut_share
        With the shortcut, patients with this disease lie in bay 1 so often.
    company, remarks
        Sentences that mean nothing: at most one of the first, each of the second or
        not, with their shares. ``{his}`` becomes his or her.
    company_share, remark_share
        Their probabilities.
    noun_weights
        Hospital to the relative weights of the first, second, third noun.
    visits
        Probability of 1, 2, 3 notes for a patient.
    """

    diseases: tuple[Disease, ...]
    findings: tuple[Finding, ...]
    priors: Mapping[str, tuple[float, ...]]
    mention: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]
    severity_odds: float
    frames: Mapping[tuple[str, str], tuple[str, ...]]
    held_out_frames: Mapping[tuple[str, str], tuple[str, ...]]
    suffixes: tuple[str, ...]
    suffix_share: float
    age_bands: tuple[tuple[int, int], ...]
    demographics: tuple[str, ...]
    vital_bands: Mapping[str, tuple[tuple[str, ...], ...]]
    usual_vitals: Mapping[str, tuple[float, ...]]
    headers: Mapping[str, tuple[tuple[str, ...], ...]]
    bays: int
    shortcut_disease: str
    shortcut_share: float
    company: tuple[str, ...]
    company_share: float
    remarks: tuple[str, ...]
    remark_share: float
    noun_weights: Mapping[str, tuple[float, ...]]
    visits: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse impossible parameters with one clear error."""
        _check_shapes(self)
        for finding in self.findings:
            _check_finding(finding, self)
        for disease in self.diseases:
            _check_disease(disease, self)
        for hospital in self.priors:
            _check_hospital(hospital, self)
        for place in sorted({finding.place for finding in self.findings}):
            _check_mention(place, self)
        for vital in self.vital_bands:
            _check_vital(vital, self.usual_vitals.get(vital, ()), self)
        for name in ("suffix_share", "company_share", "remark_share", "shortcut_share"):
            _check_probability(name, getattr(self, name))
        _check_distribution("visits", self.visits)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of symptoms in the order of the note; signs come later."""
        every = [f.group for f in self.findings if f.group != "examination"]
        return tuple(dict.fromkeys(every))


def _check_probability(what: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise MedlmError(f"The {what} is {value}; expected a probability, 0 to 1.")


def _check_distribution(what: str, values: Sequence[float]) -> None:
    for value in values:
        _check_probability(what, value)
    if abs(sum(values) - 1) > 1e-9:
        raise MedlmError(f"The {what} sums to {sum(values):.6g}; expected 1.")


def _check_length(what: str, values: Sequence[Any], expected: int) -> None:
    if len(values) != expected:
        raise MedlmError(f"The {what} has {len(values)} entries; expected {expected}.")


def _check_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise MedlmError(
            f"{what} names {', '.join(unknown)}, which this world does not have; "
            f"expected {', '.join(known)}."
        )


def _check_shapes(world: World) -> None:
    """What no distribution and no single entry shows."""
    for name in ("diseases", "findings", "suffixes", "age_bands", "demographics"):
        if not getattr(world, name):
            raise MedlmError(f"A world has no {name}; expected at least one.")
    for name in ("diseases", "findings"):
        called = [entry.name for entry in getattr(world, name)]
        if len(set(called)) < len(called):
            raise MedlmError(f"Two {name} have one name; expected different names.")
    if world.company_share and not world.company:
        raise MedlmError("company_share is positive, but there is no company to name.")
    if world.severity_odds < 1:
        raise MedlmError(
            f"severity_odds is {world.severity_odds}; expected at least 1."
        )
    if world.bays < 2:
        raise MedlmError(f"There are {world.bays} bays; expected at least 2.")
    youngest, oldest = zip(*world.age_bands, strict=True)
    if any(a > b for a, b in world.age_bands) or any(
        a <= b for a, b in zip(youngest[1:], oldest, strict=False)
    ):
        raise MedlmError(f"The age bands {world.age_bands} overlap or go backwards.")
    _check_known(
        "shortcut_disease", [world.shortcut_disease], [d.name for d in world.diseases]
    )
    _check_known("usual_vitals", world.usual_vitals, world.vital_bands)


def _check_finding(finding: Finding, world: World) -> None:
    _check_probability(f"background of {finding.name}", finding.background)
    if not finding.nouns or not finding.held_out:
        raise MedlmError(
            f"The finding {finding.name} has no words; expected at least one usual "
            "and one held-out noun."
        )


def _check_disease(disease: Disease, world: World) -> None:
    if not disease.findings:
        raise MedlmError(
            f"The disease {disease.name} has no findings; expected at least one, or "
            "no note could ever point to it."
        )
    what = f"The disease {disease.name}"
    _check_known(what, disease.findings, [f.name for f in world.findings])
    _check_known(what, disease.vitals, world.vital_bands)
    for finding, p in disease.findings.items():
        _check_probability(f"probability of {finding} in {disease.name}", p)
    _check_probability(f"severe share of {disease.name}", disease.severe)
    _check_probability(f"share of women in {disease.name}", disease.women)
    _check_distribution(f"ages of {disease.name}", disease.ages)
    _check_length(f"ages of {disease.name}", disease.ages, len(world.age_bands))
    for vital, chances in disease.vitals.items():
        _check_vital(vital, chances, world, f" in {disease.name}")


def _check_vital(
    vital: str, chances: Sequence[float], world: World, where: str = ""
) -> None:
    _check_length(f"{vital}{where}", chances, len(world.vital_bands[vital]))
    _check_distribution(f"{vital}{where}", chances)


def _check_hospital(hospital: str, world: World) -> None:
    what = f"prior of hospital {hospital}"
    _check_length(what, world.priors[hospital], len(world.diseases))
    _check_distribution(what, world.priors[hospital])
    for name in ("headers", "noun_weights"):
        _check_known("priors", [hospital], getattr(world, name))
    most = max(len(f.nouns) for f in world.findings)
    most = max(most, *(len(f.held_out) for f in world.findings))
    weights = world.noun_weights[hospital]
    if len(weights) < most or min(weights) <= 0:
        raise MedlmError(
            f"The noun weights of hospital {hospital} are {weights}; expected at least "
            f"{most} positive numbers, one for each noun."
        )


def _check_mention(place: str, world: World) -> None:
    """Each state's row is a distribution, and what can be mentioned has words."""
    _check_known("The findings", [place], world.mention)
    _check_length(f"mention of a {place}", world.mention[place], 2)
    for state, row in zip(("absent", "present"), world.mention[place], strict=True):
        _check_length(f"mention of a {place} that is {state}", row, len(MENTIONS))
        _check_distribution(f"mention of a {place} that is {state}", row)
    for number, kind in enumerate(MENTIONS[1:], start=1):
        is_said = any(row[number] > 0 for row in world.mention[place])
        for bank in (world.frames, world.held_out_frames):
            if is_said and not bank.get((place, kind)):
                raise MedlmError(
                    f"A {place} can be {kind}, but there is no frame to say so; "
                    "expected one in `frames` and in `held_out_frames`."
                )


@dataclasses.dataclass(frozen=True)
class Notes:
    """Notes as codes, one row each; texts and truth where they are known.

    Parameters
    ----------
    text
        (notes,) strings.
    mentions
        (notes, findings) kinds of mention, 0 to 4.
    age_band, sex, bay
        (notes,) codes.
    vitals
        (notes, vital signs) bands.
    patient, label, severity
        (notes,) who, and the truth; empty arrays for parsed notes.
    findings
        (notes, findings) the truth, 0 or 1.
    """

    text: np.ndarray
    mentions: np.ndarray
    age_band: np.ndarray
    sex: np.ndarray
    bay: np.ndarray
    vitals: np.ndarray
    patient: np.ndarray
    label: np.ndarray
    severity: np.ndarray
    findings: np.ndarray

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, rows: Any) -> Notes:
        """The notes of these rows: a slice, a mask, numbers, or one number."""
        rows = [rows] if isinstance(rows, (int, np.integer)) else rows
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        whole = len(self)
        return Notes(
            **{n: a[rows] if len(a) == whole else a for n, a in fields.items()}
        )


@dataclasses.dataclass(frozen=True)
class Span:
    """A finding mentioned in a text.

    Parameters
    ----------
    start, end
        Characters ``text[start:end]``.
    finding
        Its name.
    assertion
        One of `MENTIONS`, never silent.
    """

    start: int
    end: int
    finding: str
    assertion: str


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a text says, read back.

    Parameters
    ----------
    mentions
        (findings,) kinds of mention.
    age_band, sex, bay
        Codes.
    vitals
        (vital signs,) bands.
    wording
        log P(these words | these codes), in nats.
    spans
        Where each mention stands.
    """

    mentions: np.ndarray
    age_band: int
    sex: int
    bay: int
    vitals: np.ndarray
    wording: float
    spans: tuple[Span, ...]


class Language:
    """How a hospital words its notes: writes texts, reads them back, knows P(wording).

    Knows nothing about diseases. Every phrase decodes to one finding and one kind of
    mention, so a text has one reading.

    Parameters
    ----------
    world, hospital, phrasing
        As in `Clinic`.

    Raises
    ------
    MedlmError
        If two different mentions could be worded alike.
    """

    def __init__(self, world: World, hospital: str, phrasing: str):
        self.world = world
        self.header = world.headers[hospital]
        self.nouns = [
            f.nouns if phrasing == "usual" else f.held_out for f in world.findings
        ]
        self.frames = world.frames if phrasing == "usual" else world.held_out_frames
        self.noun_weights = world.noun_weights[hospital]
        groups = [f.group for f in world.findings]
        self.members = {g: [j for j, h in enumerate(groups) if h == g] for g in groups}
        self.phrases = {
            (finding, kind): self._phrases_of(finding, kind)
            for finding in range(len(world.findings))
            for kind in range(1, len(MENTIONS))
            if self.frames.get((world.findings[finding].place, MENTIONS[kind]))
        }
        self.meaning = self._make_meaning()
        self.values = self._make_values()

    def _phrases_of(self, finding: int, kind: int) -> tuple[list[str], np.ndarray]:
        """Segments for a mention and their probabilities."""
        place = self.world.findings[finding].place
        nouns = self.nouns[finding]
        weights = np.array(self.noun_weights[: len(nouns)])
        frames = self.frames[place, MENTIONS[kind]]
        suffixes = {"": 1.0}
        if MENTIONS[kind] == "affirmed" and place == "symptom":
            share = self.world.suffix_share / len(self.world.suffixes)
            suffixes = {"": 1 - self.world.suffix_share}
            suffixes |= {f" {suffix}": share for suffix in self.world.suffixes}
        strings, chances = [], []
        for (noun, weight), frame, (suffix, share) in itertools.product(
            zip(nouns, weights / weights.sum(), strict=True), frames, suffixes.items()
        ):
            if share > 0:
                strings.append(frame.format(noun) + suffix)
                chances.append(weight * share / len(frames))
        return strings, np.array(chances)

    def _make_meaning(self) -> dict[str, tuple[int, int, float]]:
        """Segment to finding, kind of mention, and log-probability of the words."""
        meaning: dict[str, tuple[int, int, float]] = {}
        for (finding, kind), (strings, chances) in self.phrases.items():
            for string, chance in zip(strings, chances, strict=True):
                if string in meaning:
                    raise MedlmError(
                        f"The words {string!r} could mean two mentions; expected every "
                        "phrase of the bank to have one meaning."
                    )
                if not re.fullmatch(r"[^A-Z](?:(?!, |\. ).)*[^.,]", string):
                    raise MedlmError(
                        f"The words {string!r} could not be read back; expected no "
                        "capital at the start, and no comma or full stop that could "
                        "end them."
                    )
                meaning[string] = (finding, kind, float(np.log(chance)))
        return meaning

    def _make_values(self) -> dict[str, tuple[int, int, float]]:
        """Written value to vital sign, band, and log-probability within the band."""
        values: dict[str, tuple[int, int, float]] = {}
        for vital, bands in enumerate(self.world.vital_bands.values()):
            for band, written in enumerate(bands):
                for value in written:
                    if value in values:
                        raise MedlmError(
                            f"The value {value!r} stands in two bands; expected one."
                        )
                    values[value] = (vital, band, -float(np.log(len(written))))
        return values

    # Writing -------------------------------------------------------------------------

    def write(
        self,
        rng: np.random.Generator,
        mentions: np.ndarray,
        age: np.ndarray,
        sex: np.ndarray,
        bay: np.ndarray,
        vitals: np.ndarray,
    ) -> list[str]:
        """One text a row of codes; all choices of words are drawn here."""
        world, count = self.world, len(mentions)
        segments = self._draw_segments(rng, mentions)
        values = self._draw_values(rng, vitals)
        headers = [rng.integers(len(options), size=count) for options in self.header]
        demographics = rng.integers(len(world.demographics), size=count)
        company = rng.integers(max(1, len(world.company)), size=count)
        accompanied = rng.random(count) < world.company_share
        remarks = rng.random((count, len(world.remarks))) < world.remark_share
        opening = rng.integers(len(world.groups), size=count)
        texts = []
        for row in range(count):
            words = {"his": ("her", "his")[sex[row]], "he": ("she", "he")[sex[row]]}
            said = [o[h[row]] for o, h in zip(self.header, headers, strict=True)]
            sentences = [", ".join([*said, f"bay {bay[row] + 1}"])]
            frame = world.demographics[demographics[row]]
            sentences.append(frame.format(age=age[row], sex=SEXES[sex[row]]))
            if accompanied[row]:
                sentences.append(world.company[company[row]].format(**words))
            for group in self._order(opening[row]):
                sentences.append(self._sentence(segments[row], group))
            sentences.append(self._examination(segments[row], values[row]))
            for remark, is_said in zip(world.remarks, remarks[row], strict=True):
                sentences.append(remark.format(**words) if is_said else "")
            texts.append(". ".join(s[0].upper() + s[1:] for s in sentences if s) + ".")
        return texts

    def _draw_segments(
        self, rng: np.random.Generator, mentions: np.ndarray
    ) -> np.ndarray:
        """A segment for each mention, "" for silence, (notes, findings)."""
        uniform = rng.random(mentions.shape)
        chosen = np.full(mentions.shape, "", dtype=object)
        for (finding, kind), (strings, chances) in self.phrases.items():
            rows = np.flatnonzero(mentions[:, finding] == kind)
            numbers = _choose(uniform[rows, finding], chances)
            chosen[rows, finding] = np.array(strings, dtype=object)[numbers]
        return chosen

    def _draw_values(self, rng: np.random.Generator, vitals: np.ndarray) -> np.ndarray:
        """The written value of each vital sign, (notes, vital signs)."""
        uniform = rng.random(vitals.shape)
        values = np.full(vitals.shape, "", dtype=object)
        for column, bands in enumerate(self.world.vital_bands.values()):
            for band, written in enumerate(bands):
                rows = np.flatnonzero(vitals[:, column] == band)
                place = np.floor(uniform[rows, column] * len(written)).astype(int)
                values[rows, column] = np.array(written, dtype=object)[place]
        return values

    def _order(self, opening: int) -> list[str]:
        """The groups of symptoms, one of them moved to the front."""
        groups = list(self.world.groups)
        return [groups.pop(opening), *groups]

    def _sentence(self, segments: np.ndarray, group: str) -> str:
        return ", ".join(
            segments[j] for j in self.members.get(group, ()) if segments[j]
        )

    def _examination(self, segments: np.ndarray, values: np.ndarray) -> str:
        signs = self._sentence(segments, "examination")
        return ", ".join(["on examination", *values, *([signs] if signs else [])])

    # Reading -------------------------------------------------------------------------

    def parse(self, text: str) -> Reading:
        """Read a text back into codes, with the log-probability of its wording.

        Raises
        ------
        MedlmError
            If the text is not a note of this hospital and phrasing; it says where.
        """
        sentences = _sentences(text)
        if len(sentences) < 3:
            raise _unreadable(text, "it has fewer than three sentences")
        bay, wording = self._parse_header(text, sentences.pop(0))
        age_band, sex, more = self._parse_demographics(text, sentences.pop(0))
        wording += more
        mentions = np.zeros(len(self.world.findings), dtype=int)
        spans: list[Span] = []
        wording += self._parse_company(sentences, sex)
        opened: list[str] = []
        while sentences and not sentences[0][1].startswith("on examination"):
            group, more = self._parse_mentions(
                text, _segments(sentences.pop(0)), mentions, spans
            )
            opened.append(group)
            wording += more
        wording += self._log_opening(text, opened)
        if not sentences:
            raise _unreadable(text, 'no sentence begins with "on examination"')
        vitals, more = self._parse_examination(text, sentences.pop(0), mentions, spans)
        wording += more + self._parse_remarks(text, sentences, sex)
        return Reading(mentions, age_band, sex, bay, vitals, wording, tuple(spans))

    def _parse_header(self, text: str, sentence: tuple[int, str]) -> tuple[int, float]:
        """The bay, and the log-probability of the header."""
        said = [segment for _, segment in _segments(sentence)]
        bay = re.fullmatch(r"bay ([1-9][0-9]*)", said.pop())
        right = len(said) == len(self.header) and all(
            word in options for word, options in zip(said, self.header, strict=True)
        )
        if not right or bay is None or not 1 <= int(bay[1]) <= self.world.bays:
            raise _unreadable(text, f"its header reads {sentence[1]!r}")
        return int(bay[1]) - 1, -sum(float(np.log(len(o))) for o in self.header)

    def _parse_demographics(
        self, text: str, sentence: tuple[int, str]
    ) -> tuple[int, int, float]:
        """Age band, sex, and the log-probability of age and frame."""
        for frame in self.world.demographics:
            pattern = frame.format(
                age=r"(?P<age>[1-9][0-9]*)", sex=rf"(?P<sex>{'|'.join(SEXES)})"
            )
            match = re.fullmatch(pattern, sentence[1])
            if match is None:
                continue
            age = int(match["age"])
            for band, (low, high) in enumerate(self.world.age_bands):
                if low <= age <= high:
                    logs = np.log(high - low + 1) + np.log(len(self.world.demographics))
                    return band, SEXES.index(match["sex"]), -float(logs)
        raise _unreadable(text, f"age and sex read {sentence[1]!r}")

    def _parse_company(self, sentences: list[tuple[int, str]], sex: int) -> float:
        """Take the sentence about company away if there is one; its log-probability."""
        words = {"his": ("her", "his")[sex], "he": ("she", "he")[sex]}
        known = [company.format(**words) for company in self.world.company]
        share = self.world.company_share
        if sentences and sentences[0][1] in known:
            sentences.pop(0)
            return float(_log(share / len(known)))
        return float(_log(1 - share))

    def _parse_mentions(
        self,
        text: str,
        segments: list[tuple[int, str]],
        mentions: np.ndarray,
        spans: list[Span],
    ) -> tuple[str, float]:
        """The group of a sentence, and the log-probability of its words."""
        total, last, group = 0.0, -1, ""
        for start, segment in segments:
            if segment not in self.meaning:
                raise _unreadable(text, f"{segment!r} is no phrase of its bank")
            finding, kind, log = self.meaning[segment]
            group = group or self.world.findings[finding].group
            if finding not in self.members[group] or finding <= last:
                raise _unreadable(text, f"{segment!r} stands in the wrong place")
            mentions[finding], last = kind, finding
            name = self.world.findings[finding].name
            spans.append(Span(start, start + len(segment), name, MENTIONS[kind]))
            total += log
        return group, total

    def _log_opening(self, text: str, opened: list[str]) -> float:
        """log P(order of the sentences): which openings would give this order?"""
        filled = set(opened)
        same = 0
        for opening in range(len(self.world.groups)):
            same += [g for g in self._order(opening) if g in filled] == opened
        if not same:
            raise _unreadable(text, f"its sentences are in the order {opened}")
        return float(np.log(same / len(self.world.groups)))

    def _parse_examination(
        self,
        text: str,
        sentence: tuple[int, str],
        mentions: np.ndarray,
        spans: list[Span],
    ) -> tuple[np.ndarray, float]:
        """The bands of the vital signs, and the log-probability of the sentence."""
        segments = _segments(sentence)[1:]
        count = len(self.world.vital_bands)
        read = [self.values.get(segment) for _, segment in segments[:count]]
        vitals, total = np.zeros(count, dtype=int), 0.0
        for vital in range(count):
            found = read[vital] if vital < len(read) else None
            if found is None or found[0] != vital:
                raise _unreadable(text, f"its vital signs read {sentence[1]!r}")
            vitals[vital] = found[1]
            total += found[2]
        signs = segments[count:]
        if signs:
            group, more = self._parse_mentions(text, signs, mentions, spans)
            if group != "examination":
                raise _unreadable(text, f"{signs[0][1]!r} is no sign")
            total += more
        return vitals, total

    def _parse_remarks(
        self, text: str, sentences: list[tuple[int, str]], sex: int
    ) -> float:
        """The log-probability of the remarks that close a note."""
        words = {"his": ("her", "his")[sex], "he": ("she", "he")[sex]}
        share, total = self.world.remark_share, 0.0
        for remark in self.world.remarks:
            said = bool(sentences) and sentences[0][1] == remark.format(**words)
            total += float(_log(share if said else 1 - share))
            if said:
                sentences.pop(0)
        if sentences:
            raise _unreadable(text, f"it goes on with {sentences[0][1]!r}")
        return total


def _unreadable(text: str, why: str) -> MedlmError:
    """The error for a text that is no note of this clinic."""
    start = text if len(text) <= 60 else text[:57] + "..."
    return MedlmError(
        f"This text is no note of this clinic: {why}. It begins {start!r}. Expected a "
        "text that `Clinic.draw` wrote, with the same hospital and phrasing."
    )


def _sentences(text: str) -> list[tuple[int, str]]:
    """(start, sentence) without the full stop, the first letter made small."""
    if not text.endswith("."):
        raise _unreadable(text, "it does not end with a full stop")
    found, start = [], 0
    for sentence in text[:-1].split(". "):
        if not sentence or sentence[0] != sentence[0].upper():
            raise _unreadable(text, f"{sentence!r} does not begin with a capital")
        found.append((start, sentence[0].lower() + sentence[1:]))
        start += len(sentence) + 2
    return found


def _segments(sentence: tuple[int, str]) -> list[tuple[int, str]]:
    """(start, segment) of the parts of a sentence between commas."""
    start, words = sentence
    found = []
    for segment in words.split(", "):
        found.append((start, segment))
        start += len(segment) + 2
    return found


class Clinic:
    """One hospital of a world: draws notes, and knows everything about them exactly.

    Parameters
    ----------
    hospital
        A name of `World.priors`: ``"A"`` or ``"B"``.
    phrasing
        ``"usual"``, or ``"held out"``: words that never occur in usual notes.
    shortcut
        True: the bay tells the disease, as a planted artefact.
    world
        The parameters, by default `WORLD`.

    Raises
    ------
    MedlmError
        If the hospital or the phrasing is unknown, or two mentions would read alike.

    Source: book page "The simulated clinic"; chapter 2.
    """

    def __init__(
        self,
        hospital: str = "A",
        phrasing: str = "usual",
        shortcut: bool = False,
        world: World | None = None,
    ):
        self.world = world or WORLD
        if hospital not in self.world.priors:
            raise MedlmError(
                f"No hospital is called {hospital!r}; expected one of "
                f"{', '.join(self.world.priors)}."
            )
        if phrasing not in ("usual", "held out"):
            raise MedlmError(
                f"The phrasing is {phrasing!r}; expected 'usual' or 'held out'."
            )
        self.hospital, self.phrasing, self.shortcut = hospital, phrasing, shortcut
        self.diseases = tuple(disease.name for disease in self.world.diseases)
        self.prior = np.array(self.world.priors[hospital])
        self.language = Language(self.world, hospital, phrasing)

    # What the parameters say ---------------------------------------------------------

    @functools.cached_property
    def severity(self) -> np.ndarray:
        """P(severity | disease), (diseases, severities)."""
        severe = np.array([disease.severe for disease in self.world.diseases])
        return np.stack([1 - severe, severe], axis=1)

    @functools.cached_property
    def finding_rates(self) -> np.ndarray:
        """P(finding | disease, severity), (diseases, severities, findings)."""
        p = np.array(
            [
                [
                    disease.findings.get(f.name, f.background)
                    for f in self.world.findings
                ]
                for disease in self.world.diseases
            ]
        )
        k = self.world.severity_odds
        severe, mild = k * p / (1 - p + k * p), p / (p + k * (1 - p))
        return np.stack([mild, severe], axis=1)

    @functools.cached_property
    def mention_rates(self) -> np.ndarray:
        """P(mention | disease, severity).

        Axes: diseases, severities, findings, mentions.
        """
        present = self.finding_rates[..., None]
        absent_rows, present_rows = np.moveaxis(self.mention_given_finding, 1, 0)
        return (1 - present) * absent_rows + present * present_rows

    @functools.cached_property
    def mention_given_finding(self) -> np.ndarray:
        """P(mention | finding absent, present), (findings, 2, mentions)."""
        return np.array([self.world.mention[f.place] for f in self.world.findings])

    @functools.cached_property
    def _patient_logs(self) -> tuple[np.ndarray, np.ndarray]:
        """log P(age band | disease) and log P(sex | disease), diseases first."""
        ages = np.array([disease.ages for disease in self.world.diseases])
        women = np.array([disease.women for disease in self.world.diseases])
        return _log(ages), _log(np.stack([women, 1 - women], axis=1))

    @functools.cached_property
    def bay_rates(self) -> np.ndarray:
        """P(bay | disease), (diseases, bays): all equal unless the shortcut is on."""
        bays = self.world.bays
        rates = np.full((len(self.diseases), bays), 1 / bays)
        if self.shortcut:
            share = self.world.shortcut_share
            row = self.diseases.index(self.world.shortcut_disease)
            rates[row] = (1 - share) / (bays - 1)
            rates[row, 0] = share
        return rates

    @functools.cached_property
    def vital_rates(self) -> tuple[np.ndarray, ...]:
        """P(band | disease) of each vital sign, (diseases, bands) each."""
        return tuple(
            np.array(
                [
                    d.vitals.get(vital, self.world.usual_vitals[vital])
                    for d in self.world.diseases
                ]
            )
            for vital in self.world.vital_bands
        )

    # Exact inference -----------------------------------------------------------------

    def posterior(
        self, notes: Notes, reader: str = "full note", without: int | None = None
    ) -> np.ndarray:
        """P(disease | one note), for a reader who sees all or is blind to something.

        Parameters
        ----------
        notes
            As `draw` or `parse` give them.
        reader
            A name of `READERS`, or ``"true findings"``: told every finding instead of
            what the note says about it.
        without
            Leave out this finding, as if the note could not be read there.

        Returns
        -------
        array
            (notes, diseases); rows sum to 1.

        Raises
        ------
        MedlmError
            If the reader is unknown, or the true findings are (of parsed notes).

        Source: book page "The simulated clinic".
        """
        per_severity = self._log_joint(notes, reader, without)
        return _normalised(_log_sum(per_severity, axis=2))

    def patient_posterior(
        self, notes: Notes, reader: str = "full note"
    ) -> tuple[np.ndarray, np.ndarray]:
        """P(disease | all notes of a patient).

        Returns
        -------
        patients, posterior
            (patients,) in order of first appearance, and (patients, diseases).

        Raises
        ------
        MedlmError
            If the notes name no patients (parsed ones), or the reader is unknown.
        """
        if len(notes.patient) != len(notes):
            raise MedlmError("These notes name no patients; expected notes of `draw`.")
        names, first, row = np.unique(
            notes.patient, return_index=True, return_inverse=True
        )
        per_note = self._log_visit(notes, reader)
        total = np.zeros((len(names), *per_note.shape[1:]))
        np.add.at(total, row, per_note)
        total += self._log_patient(notes[first])
        order = np.argsort(first, kind="stable")
        return names[order], _normalised(_log_sum(total, axis=2))[order]

    def log_likelihood(self, notes: Notes) -> np.ndarray:
        """log P(text) of each note on its own, in nats, (notes,).

        The sum over diseases, severities and findings is exact; so is the wording. The
        mean of the negative over fresh notes is the entropy of the clinic's language:
        no language model can do better on average.

        Source: chapter 2.
        """
        wording = np.array([self.language.parse(text).wording for text in notes.text])
        return wording + _log_sum(
            self._log_joint(notes, "full note", None), axis=(1, 2)
        )

    def weight_of_evidence(self, notes: Notes, disease: str) -> np.ndarray:
        """What each mention adds to the log-odds of a disease, given all the others.

        Log-odds with the mention minus log-odds without it, (notes, findings), in nats.
        A silent finding has a weight too: it was worth no word.

        Raises
        ------
        MedlmError
            If the disease is unknown.

        Source: Good 1950, "weight of evidence"; chapter 3.
        """
        if disease not in self.diseases:
            raise MedlmError(
                f"No disease is called {disease!r}; expected one of "
                f"{', '.join(self.diseases)}."
            )
        full = self._log_odds(notes, disease, without=None)
        findings = range(len(self.world.findings))
        rest = [self._log_odds(notes, disease, without=j) for j in findings]
        return full[:, None] - np.stack(rest, axis=1)

    def _log_odds(self, notes: Notes, disease: str, without: int | None) -> np.ndarray:
        """Posterior log-odds, from logs: near certainty 1 - P would lose its digits."""
        logs = _log_sum(self._log_joint(notes, "full note", without), axis=2)
        is_it = np.array(self.diseases) == disease
        return _log_sum(logs[:, is_it], axis=1) - _log_sum(logs[:, ~is_it], axis=1)

    def _log_joint(self, notes: Notes, reader: str, without: int | None) -> np.ndarray:
        """log P(disease, severity, what is read), (notes, diseases, severities)."""
        return self._log_visit(notes, reader, without) + self._log_patient(notes)

    def _log_patient(self, notes: Notes) -> np.ndarray:
        """What belongs to a patient: prior, severity, age, sex."""
        ages, sexes = self._patient_logs
        known = _log(self.prior) + ages[:, notes.age_band].T + sexes[:, notes.sex].T
        return known[:, :, None] + _log(self.severity)

    def _log_visit(
        self, notes: Notes, reader: str, without: int | None = None
    ) -> np.ndarray:
        """What belongs to one visit: bay, vital signs, mentions."""
        total = np.zeros((len(notes), *self.severity.shape))
        total += _log(self.bay_rates)[:, notes.bay].T[:, :, None]
        for vital, rates in enumerate(self.vital_rates):
            total += _log(rates)[:, notes.vitals[:, vital]].T[:, :, None]
        codes, logs = self._read(notes, reader)
        for j in range(len(self.world.findings)):
            if j != without:
                total += np.moveaxis(logs[:, :, j, :][:, :, codes[:, j]], 2, 0)
        return total

    def _read(self, notes: Notes, reader: str) -> tuple[np.ndarray, np.ndarray]:
        """What a reader sees (notes, findings), and the logs of its probabilities."""
        if reader == "true findings":
            if len(notes.findings) != len(notes):
                raise MedlmError(
                    "These notes hold no true findings; expected notes of `draw`."
                )
            present = self.finding_rates[..., None]
            return notes.findings, _log(np.concatenate([1 - present, present], axis=-1))
        if reader not in READERS:
            raise MedlmError(
                f"No reader is called {reader!r}; expected one of "
                f"{', '.join([*READERS, 'true findings'])}."
            )
        taken_for = np.array(READERS[reader])
        merged = np.zeros_like(self.mention_rates)
        for kind, other in enumerate(taken_for):
            merged[..., other] += self.mention_rates[..., kind]
        return taken_for[notes.mentions], _log(merged)

    # Drawing and reading -------------------------------------------------------------

    def draw(self, patients: int, seed: int, first_patient: int = 0) -> Notes:
        """Notes of new patients, 1 to 3 each, the same on every platform.

        Two draws with different seeds share names, but never people, unless the second
        is told to go on numbering where the first has ended.

        Parameters
        ----------
        patients
            How many.
        seed
            Of the generator.
        first_patient
            The number in the name of the first one; nothing else depends on it.

        Returns
        -------
        Notes
            With texts and truth, in order of patients.

        Raises
        ------
        MedlmError
            If `patients` is no positive whole number, or another one is negative.
        """
        for what, value, least in (
            ("patients", patients, 1),
            ("seed", seed, 0),
            ("first_patient", first_patient, 0),
        ):
            if not isinstance(value, (int, np.integer)) or value < least:
                raise MedlmError(
                    f"{what} is {value!r}; expected a whole number, at least {least}."
                )
        rng = np.random.default_rng(seed)
        people = self._draw_people(rng, patients)
        visits = 1 + _choose(rng.random(patients), np.array(self.world.visits))
        who = np.repeat(np.arange(patients), visits)
        label, severity, band, age, sex = (known[who] for known in people)
        bay, vitals, findings, mentions = self._draw_visits(rng, label, severity)
        text = self.language.write(rng, mentions, age, sex, bay, vitals)
        return Notes(
            text=np.array(text, dtype=object),
            mentions=mentions,
            age_band=band,
            sex=sex,
            bay=bay,
            vitals=vitals,
            patient=np.array([f"{self.hospital}{first_patient + n:06d}" for n in who]),
            label=label,
            severity=severity,
            findings=findings,
        )

    def _draw_people(
        self, rng: np.random.Generator, count: int
    ) -> tuple[np.ndarray, ...]:
        """Disease, severity, age band, age and sex of each patient."""
        label = _choose(rng.random(count), self.prior)
        severity = _choose(rng.random(count), self.severity[label])
        ages = np.array([disease.ages for disease in self.world.diseases])
        band = _choose(rng.random(count), ages[label])
        low, high = np.array(self.world.age_bands)[band].T
        age = low + np.floor(rng.random(count) * (high - low + 1)).astype(int)
        women = np.array([disease.women for disease in self.world.diseases])
        sex = (rng.random(count) >= women[label]).astype(int)
        return label, severity, band, age, sex

    def _draw_visits(
        self, rng: np.random.Generator, label: np.ndarray, severity: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Bay, vital signs, findings and mentions of each note."""
        bay = _choose(rng.random(len(label)), self.bay_rates[label])
        vitals = np.stack(
            [_choose(rng.random(len(label)), r[label]) for r in self.vital_rates],
            axis=1,
        )
        rates = self.finding_rates[label, severity]
        findings = (rng.random(rates.shape) < rates).astype(int)
        kinds = self.mention_given_finding[np.arange(rates.shape[1]), findings]
        mentions = _choose(rng.random(rates.shape), kinds)
        return bay, vitals, findings, mentions

    def parse(self, texts: Sequence[str]) -> Notes:
        """Codes of texts that this clinic could have written; the truth stays empty.

        Raises
        ------
        MedlmError
            If a text is not a note of this hospital and phrasing, and where; or if
            there is none.
        """
        if isinstance(texts, str):
            raise MedlmError("One text came; expected a list of texts.")
        if not len(texts):
            raise MedlmError("No text came; expected a list of at least one.")
        read = [self.language.parse(text) for text in texts]
        nothing = np.zeros(0, dtype=int)
        return Notes(
            text=np.array(list(texts), dtype=object),
            mentions=np.array([r.mentions for r in read]),
            age_band=np.array([r.age_band for r in read]),
            sex=np.array([r.sex for r in read]),
            bay=np.array([r.bay for r in read]),
            vitals=np.array([r.vitals for r in read]),
            patient=nothing,
            label=nothing,
            severity=nothing,
            findings=nothing,
        )

    def spans(self, text: str) -> tuple[Span, ...]:
        """Every mention in a text: where, of what, and how it is asserted.

        Raises
        ------
        MedlmError
            If the text is not a note of this clinic.
        """
        return self.language.parse(text).spans

    # Token by token ------------------------------------------------------------------

    @functools.cached_property
    def _grammar(self) -> _Grammar:
        return _Grammar(self)

    def token_log_likelihood(self, text: str) -> tuple[list[str], np.ndarray]:
        """log P(token | all tokens before it) of a note, exactly.

        What the best possible language model would give each token. It knows neither
        disease nor severity nor what is still to come: these are summed over. Capitals
        and white space are not looked at.

        Parameters
        ----------
        text
            A note of this hospital and phrasing.

        Returns
        -------
        tokens, logs
            The words and punctuation of the text as `text.split_words` gives them, and
            ``"<end>"``; (tokens,) in nats. The sum is the `log_likelihood` of the note.

        Raises
        ------
        MedlmError
            If a token cannot come where it stands; it says which and after what.

        Source: chapter 2.
        """
        if not isinstance(text, str):
            raise MedlmError(f"A {type(text).__name__} came; expected one text.")
        tokens = [*_split_words(text), _END]
        _, chances = self._walk(tokens)
        return tokens, np.log(chances)

    def next_token(self, tokens: Sequence[str]) -> dict[str, float]:
        """P(next token | these tokens), exactly, of every token that may come.

        Parameters
        ----------
        tokens
            The beginning of a note, as `token_log_likelihood` gives it; may be empty.

        Returns
        -------
        dict
            Token to probability, ``"<end>"`` among them where a note may end. They sum
            to 1; after ``"<end>"`` there are none.

        Raises
        ------
        MedlmError
            If a token cannot come where it stands.

        Source: chapter 2.
        """
        if isinstance(tokens, str):
            raise MedlmError("One text came; expected a list of tokens.")
        return self._walk(tokens)[0].options()

    def _walk(self, tokens: Sequence[str]) -> tuple[_Walk, list[float]]:
        """After these tokens; and the probability of each."""
        walk, chances = _Walk(self._grammar), []
        for place, token in enumerate(tokens):
            chances.append(walk.take(token))
            if not chances[-1]:
                text = " ".join(tokens)
                before = " ".join(tokens[max(0, place - 4) : place])
                after = f"come after {before!r}" if before else "begin a note"
                raise _unreadable(text, f"{token!r} cannot {after}")
        return walk, chances


def _log(values: Any) -> np.ndarray:
    """Natural logarithm with log 0 = -inf, silently."""
    with np.errstate(divide="ignore"):
        return np.log(values)


def _log_sum(logs: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """log of the sum of exponentials along an axis; -inf where all are."""
    top = logs.max(axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    return _log(np.exp(logs - top).sum(axis=axis)) + top.squeeze(axis)


def _normalised(logs: np.ndarray) -> np.ndarray:
    """Rows of logs to rows of probabilities."""
    return np.exp(logs - _log_sum(logs, axis=1)[:, None])


def _choose(uniform: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """Category numbers for uniform numbers in [0, 1).

    `chances` is one distribution, (categories,), or one for each number.
    """
    edges = np.cumsum(chances, axis=-1)[..., :-1]  # the last is 1, but for rounding
    return (uniform[..., None] >= edges).sum(axis=-1)


def accuracy_ceiling(posterior: np.ndarray) -> float:
    """The accuracy that no reader of the same notes can pass on average.

    E[max P(disease | note)], from (notes, diseases). Source: chapter 3.

    Raises
    ------
    MedlmError
        If there are no notes.
    """
    if not len(posterior):
        raise MedlmError("The posterior of no notes came; expected at least one note.")
    return float(posterior.max(axis=1).mean())


def split_by_patient(
    notes: Notes, shares: Sequence[float], seed: int
) -> tuple[Notes, ...]:
    """Parts of the notes in which no patient occurs twice.

    Parameters
    ----------
    notes
        With patients, as `Clinic.draw` gives them.
    shares
        Of the patients, for each part; they sum to 1.
    seed
        Of the order in which patients are dealt out.

    Returns
    -------
    tuple of Notes
        One a share; within each, the notes keep their order.

    Raises
    ------
    MedlmError
        If the shares do not sum to 1, or are too small for one patient each.

    Source: contract "splits go by patient", book page "The simulated clinic".
    """
    _check_distribution("list of shares", shares)
    names, row = np.unique(notes.patient, return_inverse=True)
    ends = np.rint(np.cumsum(shares) * len(names)).astype(int)
    if (np.diff(ends, prepend=0) < 1).any():
        raise MedlmError(
            f"{len(names)} patients cannot be split into shares of "
            f"{', '.join(f'{share:g}' for share in shares)}: a part would be empty. "
            "Draw more patients."
        )
    place = np.random.default_rng(seed).permutation(len(names))[row]
    part = np.searchsorted(ends, place, side="right")
    return tuple(notes[part == number] for number in range(len(shares)))


def title_and_abstract(text: str) -> tuple[str, str]:
    """Cut a note in two, as a paper has a title and an abstract.

    The title is where, who, and what comes next (the company or the first symptoms),
    but never the examination. ``f"{title} {abstract}"`` is the note.
    """
    end = 0
    for _ in range(3):
        after = text.find(". ", end) + 2
        if after < 2 or text.startswith("On examination", end):
            break
        end = after
    return text[:end].rstrip(), text[end:]


# Token by token ----------------------------------------------------------------------
# A note is a row of slots: the parts of the header, age and sex, company, each finding,
# "on examination", each vital sign, each remark, the end. A slot is passed over or
# takes one segment of words; the comma or full stop that closes a segment tells whether
# the sentence goes on. What is hidden stays a sum: which group opens the note, and sex,
# disease and severity, flattened to one axis.

# The rule of `text.split_words`; this module imports nothing of text.
_WORDS = re.compile(r"\d+(?:\.\d+)?%?|-?[^\W\d_]+(?:['’-][^\W\d_]+)*|[^\w\s]|_")
_GOES_ON, _STOPS, _END = ",", ".", "<end>"


def _split_words(text: str) -> list[str]:
    """A text as words in small letters, numbers and punctuation among them."""
    return _WORDS.findall(text.lower())


# P(it is said | hidden), its wordings, and their shares.
_Event = tuple[np.ndarray, Sequence[str], Sequence[float] | np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Slot:
    """A place in the note.

    Parameters
    ----------
    sentence
        Slots of one name stand in one sentence.
    silent
        P(nothing is said here | hidden), (hidden,).
    events
        What may be said here.
    """

    sentence: str
    silent: np.ndarray
    events: list[_Event]


class _Slots:
    """The slots of a clinic's notes; each method gives those of one part."""

    def __init__(self, clinic: Clinic):
        self.clinic, self.world = clinic, clinic.world
        self.anyone, self.no_one = self.full(1.0), self.full(0.0)
        self.is_sex = [self.full(row[:, None, None]) for row in np.eye(len(SEXES))]

    def full(self, values: Any) -> np.ndarray:
        """Broadcast over sexes, diseases, severities, and flattened: (hidden,)."""
        shape = len(SEXES), *self.clinic.severity.shape
        return np.broadcast_to(values, shape).ravel()

    def prior(self) -> np.ndarray:
        """P(sex, disease, severity), (hidden,)."""
        sexes = np.exp(self.clinic._patient_logs[1]).T[:, :, None]
        joint = self.clinic.prior[:, None] * self.clinic.severity
        return self.full(sexes * joint)

    def header(self) -> list[_Slot]:
        rates = self.clinic.bay_rates.T[:, :, None]
        bays: list[_Event] = [
            (self.full(rate), [f"bay {bay + 1}"], [1.0])
            for bay, rate in enumerate(rates)
        ]
        said = [
            [self._uniform(self.anyone, words)] for words in self.clinic.language.header
        ]
        return [_Slot("header", self.no_one, events) for events in [*said, bays]]

    def demographics(self) -> list[_Slot]:
        rates = np.exp(self.clinic._patient_logs[0]).T[:, :, None]
        events = []
        for rate, (low, high) in zip(rates, self.world.age_bands, strict=True):
            for is_sex, sex in zip(self.is_sex, SEXES, strict=True):
                texts = [
                    frame.format(age=age, sex=sex)
                    for frame in self.world.demographics
                    for age in range(low, high + 1)
                ]
                events.append(self._uniform(self.full(rate) * is_sex, texts))
        return [_Slot("demographics", self.no_one, events)]

    def company(self) -> list[_Slot]:
        share, known = self.world.company_share, self.world.company
        events = [e for text in known for e in self._of_sex(text, share / len(known))]
        return [_Slot("company", self.full(1 - share), events)]

    def mentions(self, group: str) -> list[_Slot]:
        rates, phrases = self.clinic.mention_rates, self.clinic.language.phrases
        sentence = group if group == "examination" else f"group {group}"
        return [
            _Slot(
                sentence,
                self.full(rates[:, :, finding, 0]),
                [
                    (self.full(rates[:, :, finding, kind]), *phrases[finding, kind])
                    for kind in range(1, len(MENTIONS))
                    if (finding, kind) in phrases
                ],
            )
            for finding in self.clinic.language.members.get(group, ())
        ]

    def examination(self) -> list[_Slot]:
        said = [[self._uniform(self.anyone, ["on examination"])]]
        for rates, bands in zip(
            self.clinic.vital_rates, self.world.vital_bands.values(), strict=True
        ):
            pairs = zip(rates.T[:, :, None], bands, strict=True)
            said.append([self._uniform(self.full(rate), w) for rate, w in pairs])
        before = [_Slot("examination", self.no_one, events) for events in said]
        return before + self.mentions("examination")

    def remarks(self) -> list[_Slot]:
        share = self.world.remark_share
        return [
            _Slot(f"remark {number}", self.full(1 - share), self._of_sex(text, share))
            for number, text in enumerate(self.world.remarks)
        ]

    def _of_sex(self, text: str, share: float) -> list[_Event]:
        """A sentence with his or her in it; one event where both read alike."""
        hers, his = text.format(his="her", he="she"), text.format(his="his", he="he")
        if hers == his:
            return [(self.full(share), [text], [1.0])]
        pairs = zip(self.is_sex, (hers, his), strict=True)
        return [(share * is_sex, [text], [1.0]) for is_sex, text in pairs]

    @staticmethod
    def _uniform(chance: np.ndarray, texts: Sequence[str]) -> _Event:
        return chance, texts, np.full(len(texts), 1 / len(texts))


class _Grammar:
    """Every segment that a note can hold, and what must be true for it to come.

    Axes: ``openings``, ``slots``, ``hidden``; ``events`` (something said in a slot, and
    how the segment closes) and ``segments`` (an event in words), sorted by their words:
    those that begin alike are neighbours.

    Raises
    ------
    MedlmError
        If two segments are the same words, or one has a comma or full stop inside.
    """

    def __init__(self, clinic: Clinic):
        make, world = _Slots(clinic), clinic.world
        start = [_Slot("start", make.no_one, [])]
        first = start + make.header() + make.demographics() + make.company()
        groups = {group: make.mentions(group) for group in world.groups}
        last = make.examination() + make.remarks()
        end = [_Slot("end", make.no_one, [(make.anyone, [""], [1.0])])]
        slots = first + [slot for g in groups.values() for slot in g] + last + end
        self.sentence = np.array([slot.sentence for slot in slots])
        self.start = np.tile(make.prior() / len(groups), (len(groups), 1))
        self._make_orders(clinic.language, np.array([slot.silent for slot in slots]))
        self._make_segments(slots)

    def _make_orders(self, language: Language, silent: np.ndarray) -> None:
        """Where each slot stands under each opening, and the silences in that order."""
        orders = []
        for opening in range(len(self.start)):
            order = [f"group {group}" for group in language._order(opening)]
            parts = [np.flatnonzero(self.sentence == group) for group in order]
            moved = np.arange(len(self.sentence))
            moved[np.isin(self.sentence, order)] = np.concatenate(parts)
            orders.append(moved)
        self.place = np.argsort(orders, axis=1)  # (openings, slots)
        self.silent = silent[np.array(orders)]  # (openings, slots by place, hidden)

    def _make_segments(self, slots: list[_Slot]) -> None:
        """What can be said, as events and as rows of words, sorted by the words."""
        rows: list[tuple[list[str], int, float]] = []
        slot_of: list[int] = []
        said: list[np.ndarray] = []
        closed: list[np.ndarray] = []
        for number, slot in enumerate(slots):
            for (chance, texts, shares), (close, factor) in itertools.product(
                slot.events, self._closings(slots, number).items()
            ):
                for text, share in zip(texts, shares, strict=True):
                    rows.append(([*_split_words(text), close], len(said), float(share)))
                slot_of.append(number)
                said.append(chance)
                closed.append(chance * factor)
        rows.sort(key=lambda row: row[0])
        _check_segments([row[0] for row in rows])
        self.slot_of = np.array(slot_of)  # (events,)
        self.said, self.closed = np.array(said), np.array(closed)  # (events, hidden)
        self.event_of = np.array([row[1] for row in rows])  # (segments,)
        self.share = np.array([row[2] for row in rows])
        self._number_words([row[0] for row in rows])

    @staticmethod
    def _closings(slots: list[_Slot], number: int) -> dict[str, np.ndarray]:
        """P(what closes a segment of this slot | hidden)."""
        sentence, silent = slots[number].sentence, slots[number].silent
        if sentence == "end":
            return {_END: np.ones_like(silent)}
        rest = [s.silent for s in slots[number + 1 :] if s.sentence == sentence]
        stops = np.prod([np.ones_like(silent), *rest], axis=0)
        return {_GOES_ON: 1 - stops, _STOPS: stops}

    def _number_words(self, rows: list[list[str]]) -> None:
        """Rows of words as numbers in alphabetical order, -1 where a row has ended."""
        self.vocabulary = sorted({word for row in rows for word in row})
        self.number = {word: n for n, word in enumerate(self.vocabulary)}
        self.words = np.full((len(rows), max(map(len, rows))), -1)
        for row, words in zip(self.words, rows, strict=True):
            row[: len(words)] = [self.number[word] for word in words]

    def reach(self, weights: np.ndarray, slot: int, close: str) -> np.ndarray:
        """P(hidden, what was read, silence from `slot` up to each later slot).

        `weights` is (openings, hidden); the result (openings, slots, hidden), 0 for
        slots that cannot come next.
        """
        stays = self.sentence == self.sentence[slot]
        may = (stays if close == _GOES_ON else ~stays)[None] & (
            self.place > self.place[:, [slot]]
        )
        passed = np.arange(len(stays)) <= self.place[:, [slot]]
        factors = np.where(passed[:, :, None], 1.0, self.silent)
        before = np.ones_like(factors)
        np.cumprod(factors[:, :-1], axis=1, out=before[:, 1:])
        by_slot = before[np.arange(len(before))[:, None], self.place]
        return weights[:, None] * by_slot * may[:, :, None]

    def chances(self, reach: np.ndarray) -> np.ndarray:
        """P(what was read, this segment comes next), (segments,)."""
        at_event = reach.sum(axis=0)[self.slot_of]
        return (at_event * self.closed).sum(axis=1)[self.event_of] * self.share


def _check_segments(rows: list[list[str]]) -> None:
    """Sorted segments can be told apart by their words, and end where one sees it."""
    for words, following in itertools.zip_longest(rows, rows[1:]):
        text = " ".join(words[:-1])
        if words == following:
            raise MedlmError(
                f"The words {text!r} stand for two things; expected one, or the "
                "probability of a word could not be told."
            )
        if {_GOES_ON, _STOPS} & set(words[:-1]):
            raise MedlmError(
                f"The words {text!r} hold a comma or a full stop; expected none, or "
                "one could not see where they end."
            )


class _Walk:
    """Goes through a note word by word and knows what may come next.

    The segments that begin with the words read since the last comma or full stop are
    neighbours, ``low`` to ``high``; their probabilities sum to that of what was read.
    """

    def __init__(self, grammar: _Grammar):
        self.grammar = grammar
        self._begin(grammar.start, 0, _STOPS)

    def _begin(self, weights: np.ndarray, slot: int, close: str) -> None:
        """A new segment; the weights sum to 1 over all that may follow."""
        self.reach = self.grammar.reach(weights, slot, close)
        self.chances = self.grammar.chances(self.reach)
        self.low, self.high, self.column = 0, len(self.chances), 0
        self.total = 1.0

    def options(self) -> dict[str, float]:
        """P(word | words before) of every word that may come next."""
        rows = slice(self.low, self.high)
        numbers = self.grammar.words[rows, self.column]
        chances = np.bincount(numbers, weights=self.chances[rows]) / self.total
        words = self.grammar.vocabulary
        return {words[n]: float(chances[n]) for n in np.flatnonzero(chances)}

    def take(self, word: str) -> float:
        """Go on by one word; its probability, 0 if it could not come."""
        number = self.grammar.number.get(word, len(self.grammar.number))
        column = self.grammar.words[self.low : self.high, self.column]
        low, high = np.searchsorted(column, [number, number + 1])
        self.low, self.high = self.low + int(low), self.low + int(high)
        total = float(self.chances[self.low : self.high].sum())
        chance = total / self.total
        self.total, self.column = total, self.column + 1
        if total and word in (_GOES_ON, _STOPS, _END):
            self._close(word)
        return chance

    def _close(self, close: str) -> None:
        """The segment is complete: one is left, and it becomes part of the past."""
        grammar = self.grammar
        event = grammar.event_of[self.low]
        slot = grammar.slot_of[event]
        weights = self.reach[:, slot] * grammar.said[event]
        weights = weights * (grammar.share[self.low] / self.total)
        self._begin(weights, int(slot), close)


# The teaching world ------------------------------------------------------------------
# Probabilities with a source are rounded from it (the page "The simulated clinic" names
# them); the others are teaching values that look right and make reading matter.


def _findings(table: str) -> tuple[Finding, ...]:
    """Findings from lines ``name background: usual words | held-out words``."""
    found, group = [], ""
    for line in table.replace("\n          ", " ").strip().splitlines():
        left, _, words = line.strip().partition(":")
        if not words:
            group = left
            continue
        name, background = left.rsplit(" ", 1)
        usual, held_out = (tuple(w.strip().split(", ")) for w in words.split("|"))
        found.append(Finding(name, group, usual, held_out, float(background)))
    return tuple(found)


def _rates(text: str) -> dict[str, float]:
    """Finding to probability from ``name .12, other name .34``."""
    pairs = (item.rsplit(" ", 1) for item in " ".join(text.split()).split(", "))
    return {name: float(rate) for name, rate in pairs}


_FINDINGS = _findings(
    """
    general:
      fever 0.03: fever, high temperature, feverishness | pyrexia
      chills 0.025: chills, shivering, shaking chills | rigors
      sweating 0.04: sweating, night sweats, cold sweat | diaphoresis
      fatigue 0.125: fatigue, tiredness, exhaustion | lethargy
      poor appetite 0.06: poor appetite, loss of appetite, reduced appetite |
          anorexia
    chest:
      cough 0.05: cough, coughing, coughing fits | tussis
      sputum 0.025: sputum, phlegm, coloured sputum | expectoration
      breathlessness 0.05: breathlessness, shortness of breath, trouble breathing |
          dyspnoea
      pleuritic pain 0.02: pain on breathing in, sharp pain with each breath, chest
          pain when coughing | pleuritic pain
      blood in sputum 0.005: blood in the sputum, bloody sputum, coughing up blood |
          haemoptysis
    heart:
      chest pressure 0.02: chest pressure, tightness in the chest, pressing chest
          pain | squeezing behind the breastbone
      palpitations 0.035: palpitations, racing heart, irregular heartbeat | heart
          fluttering
      breathless lying flat 0.015: breathlessness lying flat, need of three pillows,
          waking up breathless | orthopnoea
      leg swelling 0.035: swollen legs, ankle swelling, leg swelling | peripheral
          oedema
    belly:
      nausea 0.06: nausea, feeling sick, queasiness | upset stomach
      vomiting 0.03: vomiting, being sick, throwing up | emesis
      diarrhoea 0.025: diarrhoea, loose stools, watery stools | frequent stools
      lower right pain 0.015: pain in the lower right belly, right lower abdominal
          pain, pain low on the right | right iliac pain
      upper right pain 0.015: pain in the upper right belly, right upper abdominal
          pain, pain under the right ribs | right subcostal pain
    urine:
      painful urination 0.02: painful urination, burning on passing water, stinging
          urine | dysuria
      frequent urination 0.035: frequent urination, passing water often, urgency |
          pollakiuria
      flank pain 0.02: flank pain, pain in the side, pain over the kidney | loin
          pain
    head:
      headache 0.075: headache, head pain, pounding head | cephalalgia
      light sensitivity 0.015: light sensitivity, dislike of light, eyes hurting in
          light | photophobia
      flickering vision 0.01: flickering vision, zigzag lines, flashing lights |
          scintillations
      one-sided weakness 0.01: weakness on one side, weak arm, drooping face |
          hemiparesis
      slurred speech 0.01: slurred speech, trouble finding words, garbled speech |
          dysarthria
    examination:
      crackles 0.025: crackles, crackles at the bases, wet crackles | rales
      wheeze 0.025: wheeze, wheezing, expiratory wheeze | sibilant rhonchi
      stiff neck 0.01: stiff neck, neck stiffness, rigid neck | nuchal rigidity
    """
)


_YOUNG, _MIDDLE = (0.45, 0.30, 0.15, 0.07, 0.03), (0.15, 0.25, 0.28, 0.20, 0.12)
_OLD, _OLDEST = (0.03, 0.09, 0.23, 0.35, 0.30), (0.01, 0.04, 0.15, 0.35, 0.45)
_FEVERISH = {"temperature": (0.20, 0.30, 0.50), "pulse": (0.25, 0.45, 0.30)}
_BREATHLESS = {"saturation": (0.25, 0.40, 0.35), "pulse": (0.30, 0.45, 0.25)}

_DISEASES = (
    Disease(
        "pneumonia",
        _rates(
            """
            fever .74, chills .73, sweating .69, fatigue .91, poor appetite .60, cough
            .86, sputum .64, breathlessness .72, pleuritic pain .46, blood in sputum
            .15, crackles .70, wheeze .15, headache .30, nausea .25
            """
        ),
        severe=0.4,
        ages=_OLD,
        women=0.48,
        vitals={
            "temperature": (0.2, 0.3, 0.5),
            "pulse": (0.25, 0.45, 0.3),
            "saturation": (0.35, 0.4, 0.25),
        },
    ),
    Disease(
        "heart failure",
        _rates(
            """
            breathlessness .90, breathless lying flat .50, leg swelling .51, fatigue
            .60, cough .36, palpitations .25, crackles .60, wheeze .22, poor appetite
            .25, chest pressure .15
            """
        ),
        severe=0.5,
        ages=_OLDEST,
        women=0.48,
        vitals={"saturation": (0.25, 0.4, 0.35), "pulse": (0.3, 0.45, 0.25)},
    ),
    Disease(
        "chronic bronchitis flare",
        _rates(
            """
            breathlessness .92, cough .85, sputum .70, wheeze .75, fatigue .55,
            crackles .25, breathless lying flat .15, fever .15, chest pressure .12
            """
        ),
        severe=0.4,
        ages=_OLD,
        women=0.45,
        vitals={"saturation": (0.25, 0.4, 0.35), "pulse": (0.3, 0.45, 0.25)},
    ),
    Disease(
        "pulmonary embolism",
        _rates(
            """
            breathlessness .73, pleuritic pain .44, leg swelling .41, cough .34,
            wheeze .21, crackles .18, palpitations .30, sweating .12, blood in sputum
            .12, chest pressure .19
            """
        ),
        severe=0.3,
        ages=_MIDDLE,
        women=0.55,
        vitals={"saturation": (0.4, 0.38, 0.22), "pulse": (0.3, 0.42, 0.28)},
    ),
    Disease(
        "heart attack",
        _rates(
            """
            chest pressure .85, sweating .50, breathlessness .45, nausea .40, vomiting
            .20, palpitations .15, fatigue .35, crackles .12
            """
        ),
        severe=0.4,
        ages=_OLD,
        women=0.36,
    ),
    Disease(
        "appendicitis",
        _rates(
            """
            lower right pain .84, poor appetite .68, nausea .58, vomiting .51, fever
            .50, diarrhoea .15, chills .12
            """
        ),
        severe=0.3,
        ages=_YOUNG,
        women=0.47,
        vitals={"temperature": (0.4, 0.42, 0.18), "pulse": (0.45, 0.42, 0.13)},
    ),
    Disease(
        "gallbladder inflammation",
        _rates(
            """
            upper right pain .85, nausea .77, vomiting .71, poor appetite .65, fever
            .35, chills .20, pleuritic pain .10
            """
        ),
        severe=0.3,
        ages=_MIDDLE,
        women=0.64,
        vitals={"temperature": (0.45, 0.37, 0.18)},
    ),
    Disease(
        "kidney infection",
        _rates(
            """
            flank pain .80, fever .80, chills .65, painful urination .65, frequent
            urination .62, nausea .50, vomiting .35, fatigue .55
            """
        ),
        severe=0.3,
        ages=_YOUNG,
        women=0.85,
        vitals={"temperature": (0.2, 0.3, 0.5), "pulse": (0.25, 0.45, 0.3)},
    ),
    Disease(
        "stomach flu",
        _rates(
            """
            diarrhoea .90, vomiting .72, nausea .85, poor appetite .70, fever .40,
            fatigue .60, headache .35, chills .30
            """
        ),
        severe=0.3,
        ages=_YOUNG,
        women=0.52,
        vitals={"temperature": (0.5, 0.35, 0.15), "pulse": (0.45, 0.4, 0.15)},
    ),
    Disease(
        "migraine",
        _rates(
            """
            headache .98, light sensitivity .80, nausea .73, vomiting .30, flickering
            vision .31, fatigue .40, slurred speech .05
            """
        ),
        severe=0.4,
        ages=_YOUNG,
        women=0.75,
    ),
    Disease(
        "meningitis",
        _rates(
            """
            headache .87, stiff neck .83, fever .77, nausea .74, vomiting .55, light
            sensitivity .50, chills .40, fatigue .60, one-sided weakness .08
            """
        ),
        severe=0.5,
        ages=_MIDDLE,
        women=0.5,
        vitals={"temperature": (0.2, 0.3, 0.5), "pulse": (0.25, 0.45, 0.3)},
    ),
    Disease(
        "stroke",
        _rates(
            """
            one-sided weakness .80, slurred speech .57, headache .27, nausea .15,
            vomiting .12, flickering vision .06
            """
        ),
        severe=0.5,
        ages=_OLDEST,
        women=0.5,
    ),
)


def _written(low: float, high: float, step: float, form: str) -> tuple[str, ...]:
    """Values of a vital sign as words."""
    count = round((high - low) / step) + 1
    return tuple(form.format(low + i * step) for i in range(count))


WORLD = World(
    diseases=_DISEASES,
    findings=_FINDINGS,
    priors={
        "A": (0.13, 0.11, 0.09, 0.06, 0.11, 0.07, 0.07, 0.08, 0.11, 0.08, 0.03, 0.06),
        "B": (0.06, 0.05, 0.04, 0.08, 0.06, 0.12, 0.10, 0.12, 0.16, 0.13, 0.05, 0.03),
    },
    # silent, affirmed, negated, hedged, family
    mention={
        "symptom": (
            (0.580, 0.006, 0.324, 0.040, 0.050),
            (0.080, 0.785, 0.015, 0.100, 0.020),
        ),
        "examination": (
            (0.460, 0.006, 0.494, 0.040, 0.000),
            (0.080, 0.805, 0.015, 0.100, 0.000),
        ),
    },
    severity_odds=1.6,
    frames={
        ("symptom", "affirmed"): ("{}", "reports {}", "with {}", "complains of {}"),
        ("symptom", "negated"): ("no {}", "denies {}", "without {}"),
        ("symptom", "hedged"): ("possible {}", "perhaps {}", "unsure about {}"),
        ("symptom", "family"): (
            "history of {} in the mother",
            "family history of {}",
            "{} in a brother",
        ),
        ("examination", "affirmed"): ("{}", "{} found", "definite {}"),
        ("examination", "negated"): ("no {}", "free of {}", "{} absent"),
        ("examination", "hedged"): ("possible {}", "questionable {}"),
    },
    held_out_frames={
        ("symptom", "affirmed"): ("suffers from {}", "admits to {}"),
        ("symptom", "negated"): ("negative for {}", "never noticed {}"),
        ("symptom", "hedged"): ("some doubt about {}", "thinks there was {}"),
        ("symptom", "family"): ("father known for {}", "sister treated for {}"),
        ("examination", "affirmed"): ("marked {}", "presence of {}"),
        ("examination", "negated"): ("absence of {}", "not one sign of {}"),
        ("examination", "hedged"): ("equivocal {}", "hardly any {}"),
    },
    suffixes=("since yesterday", "for two days", "for a week", "getting worse"),
    suffix_share=0.3,
    age_bands=((18, 29), (30, 44), (45, 59), (60, 74), (75, 92)),
    demographics=("{age}-year-old {sex}", "{sex} of {age} years", "{sex} aged {age}"),
    vital_bands={
        "temperature": (
            _written(36.4, 37.2, 0.2, "temp {:.1f}"),
            _written(37.6, 38.2, 0.2, "temp {:.1f}"),
            _written(38.5, 39.5, 0.2, "temp {:.1f}"),
        ),
        "pulse": (
            _written(64, 88, 4, "pulse {:.0f}"),
            _written(92, 108, 4, "pulse {:.0f}"),
            _written(112, 132, 4, "pulse {:.0f}"),
        ),
        "saturation": (
            _written(96, 99, 1, "saturation {:.0f}%"),
            _written(92, 95, 1, "saturation {:.0f}%"),
            _written(86, 91, 1, "saturation {:.0f}%"),
        ),
    },
    usual_vitals={
        "temperature": (0.80, 0.15, 0.05),
        "pulse": (0.65, 0.25, 0.10),
        "saturation": (0.80, 0.15, 0.05),
    },
    headers={
        "A": (("emergency note",),),
        "B": (
            ("admission unit",),
            ("came on foot", "came by car", "came by ambulance"),
        ),
    },
    bays=6,
    shortcut_disease="pneumonia",
    shortcut_share=0.9,
    company=("came alone", "came with {his} partner", "brought in by a neighbour"),
    company_share=0.4,
    remarks=(
        "no known allergies",
        "takes no regular medicine",
        "bloods sent",
        "{he} would like a second opinion",
    ),
    remark_share=0.25,
    noun_weights={"A": (0.5, 0.3, 0.2), "B": (0.2, 0.3, 0.5)},
    visits=(0.5, 0.3, 0.2),
)
