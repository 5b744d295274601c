"""The simulated clinic against enumeration, and against what its notes promise."""

from __future__ import annotations

import dataclasses
import doctest
import functools
import hashlib
import itertools
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest

from medlm_utils import clinic
from medlm_utils.clinic import MENTIONS, READERS, WORLD, Clinic, Disease, Finding, World
from medlm_utils.runtime import MedlmError
from medlm_utils.text import split_words

PAGE = Path(__file__).resolve().parent.parent / "book" / "clinic.md"
SIGMAS = 4.5  # how far chance may carry a mean: about once in 150,000 tests

# The texts of 200 notes must be these on every platform.
NOTES_SHA256 = "072772df09515467742a4a68c5ae8fdd17cb9f50359d477e8c9e862a28f15658"

NEVER_WRITTEN = (
    "pneumonia|pneumonic|pneumonitis|lung infection|chest infection|heart failure|"
    "cardiac failure|failing heart|bronchitis|copd|emphysema|asthma|exacerbation|"
    "embolism|embolus|blood clot|thrombosis|thrombus|infarct\\w*|heart attack|"
    "stemi|coronary|appendicitis|appendix|gallbladder|gallstones?|cholecystitis|"
    "biliary|kidney infection|pyelonephritis|urinary infection|cystitis|uti|"
    "gastroenteritis|stomach flu|flu|stomach bug|food poisoning|norovirus|migraines?|"
    "migrainous|meningitis|meningism|meningeal|strokes?|apoplexy|tia|cerebrovascular|"
    "brain attack|sepsis"
)

TINY = World(
    diseases=(
        Disease("red", {"itch": 0.8, "ache": 0.3, "spot": 0.6}, 0.3, (0.7, 0.3), 0.4),
        Disease(
            "blue",
            {"ache": 0.9},
            severe=0.6,
            ages=(0.2, 0.8),
            women=0.9,
            vitals={"pulse": (0.25, 0.75)},
        ),
        Disease("grey", {"spot": 0.2}, severe=0.5, ages=(0.5, 0.5), women=0.5),
    ),
    findings=(
        Finding("itch", "skin", ("itch", "itching"), ("pruritus",), 0.1),
        Finding("ache", "head", ("ache",), ("dolor",), 0.2),
        Finding("spot", "examination", ("spot",), ("macule",), 0.05),
    ),
    priors={"A": (0.5, 0.2, 0.3), "B": (0.1, 0.1, 0.8)},
    mention={
        "symptom": ((0.5, 0.05, 0.3, 0.1, 0.05), (0.2, 0.5, 0.05, 0.15, 0.1)),
        "examination": ((0.4, 0.05, 0.5, 0.05, 0.0), (0.1, 0.7, 0.1, 0.1, 0.0)),
    },
    severity_odds=2.5,
    frames={
        ("symptom", "affirmed"): ("{}",),
        ("symptom", "negated"): ("no {}",),
        ("symptom", "hedged"): ("perhaps {}",),
        ("symptom", "family"): ("family history of {}",),
        ("examination", "affirmed"): ("{}",),
        ("examination", "negated"): ("no {}",),
        ("examination", "hedged"): ("possible {}",),
    },
    held_out_frames={
        ("symptom", "affirmed"): ("suffers from {}",),
        ("symptom", "negated"): ("never {}",),
        ("symptom", "hedged"): ("doubtful {}",),
        ("symptom", "family"): ("{} in a sister",),
        ("examination", "affirmed"): ("marked {}",),
        ("examination", "negated"): ("absent {}",),
        ("examination", "hedged"): ("equivocal {}",),
    },
    suffixes=("today",),
    suffix_share=0.25,
    age_bands=((30, 30), (50, 51)),
    demographics=("{sex} aged {age}",),
    vital_bands={"pulse": (("pulse 70",), ("pulse 110", "pulse 120"))},
    usual_vitals={"pulse": (0.8, 0.2)},
    headers={"A": (("ward",),), "B": (("unit", "wing"), ("by car",))},
    bays=2,
    shortcut_disease="blue",
    shortcut_share=0.9,
    company=("came with {his} son",),
    company_share=0.4,
    remarks=("{he} was thirsty",),
    remark_share=0.1,
    noun_weights={"A": (0.75, 0.25), "B": (0.5, 0.5)},
    visits=(1.0,),
)


# The oracle: plain loops over everything that is hidden -------------------------------


def rate(p: float, odds: float) -> float:
    return p / (1 - p) * odds / (1 + p / (1 - p) * odds)


def chance_of_visit(world, disease, odds, read, vitals, reader="full note"):
    """P(mentions as a reader takes them, vitals | disease, severity)."""
    total = 1.0
    for (vital, usual), band in zip(world.usual_vitals.items(), vitals, strict=True):
        total *= disease.vitals.get(vital, usual)[band]
    hidden = 0.0
    for states in itertools.product((0, 1), repeat=len(world.findings)):
        chance = 1.0
        for finding, state, seen in zip(world.findings, states, read, strict=True):
            p = rate(disease.findings.get(finding.name, finding.background), odds)
            row = world.mention[finding.place][state]
            kinds = [k for k, taken in enumerate(READERS[reader]) if taken == seen]
            chance *= (p if state else 1 - p) * sum(row[k] for k in kinds)
        hidden += chance
    return total * hidden


def brute(world, hospital, visits, band, sex, bays=(), reader="full note"):
    """P(disease, everything read), (diseases,), of one patient's visits.

    `visits` holds (mentions, vitals) of each; bays are uniform unless given as factors.
    """
    joint = []
    for prior, disease in zip(world.priors[hospital], world.diseases, strict=True):
        women = disease.women if sex == 0 else 1 - disease.women
        total = 0.0
        for severe, odds in (
            (1 - disease.severe, 1 / world.severity_odds),
            (disease.severe, world.severity_odds),
        ):
            chance = severe
            for mentions, vitals in visits:
                read = [READERS[reader][kind] for kind in mentions]
                chance *= chance_of_visit(world, disease, odds, read, vitals, reader)
            total += chance
        joint.append(prior * disease.ages[band] * women * total)
    return np.array(joint) / world.bays ** len(visits)


def normal(joint: np.ndarray) -> np.ndarray:
    return joint / joint.sum()


def worded(name: str) -> dict[int, dict[str, float]]:
    """The ways to write a finding of TINY in hospital A: kind to words to chance."""
    nouns = {"itch": {"itch": 0.75, "itching": 0.25}}.get(name, {name: 1.0})
    if name == "spot":
        frames = {1: ("{}",), 2: ("no {}",), 3: ("possible {}",)}
    else:
        frames = {1: ("{}", "{} today"), 2: ("no {}",), 3: ("perhaps {}",)}
        frames[4] = ("family history of {}",)
    ways: dict[int, dict[str, float]] = {0: {"": 1.0}}
    for kind, forms in frames.items():
        shares = (0.75, 0.25) if len(forms) == 2 else (1.0,)
        ways[kind] = {
            form.format(noun): share * weight
            for form, share in zip(forms, shares, strict=True)
            for noun, weight in nouns.items()
        }
    return ways


@functools.cache
def all_notes() -> dict[str, float]:
    """Every text that hospital A of TINY can write, with its probability."""
    pulses = {"pulse 70": (0, 1.0), "pulse 110": (1, 0.5), "pulse 120": (1, 0.5)}
    ages = {30: (0, 1.0), 50: (1, 0.5), 51: (1, 0.5)}
    findings = [
        [
            (k, words, p)
            for k, ways in worded(f.name).items()
            for words, p in ways.items()
        ]
        for f in TINY.findings
    ]
    known = functools.cache(
        lambda kinds, vital, band, sex: brute(
            TINY, "A", [(kinds, [vital])], band, sex
        ).sum()
    )
    notes: dict[str, float] = {}
    for bay, age, sex, company, first, remark, pulse, (skin, head, sign) in (
        itertools.product(
            (1, 2), ages, (0, 1), (0, 1), (0, 1), (0, 1), pulses,
            list(itertools.product(*findings)),
        )
    ):  # fmt: skip
        band, age_share = ages[age]
        vital, pulse_share = pulses[pulse]
        symptoms = [skin[1], head[1]] if first == 0 else [head[1], skin[1]]
        sentences = [
            f"Ward, bay {bay}",
            f"{('Woman', 'Man')[sex]} aged {age}",
            f"Came with {('her', 'his')[sex]} son" if company else "",
            *(words[:1].upper() + words[1:] for words in symptoms),
            f"On examination, {pulse}" + (f", {sign[1]}" if sign[1] else ""),
            f"{('She', 'He')[sex]} was thirsty" if remark else "",
        ]
        text = ". ".join(sentence for sentence in sentences if sentence) + "."
        chance = known((skin[0], head[0], sign[0]), vital, band, sex)
        chance *= age_share * pulse_share * skin[2] * head[2] * sign[2]
        chance *= (0.4 if company else 0.6) * (0.1 if remark else 0.9) * 0.5
        notes[text] = notes.get(text, 0.0) + chance
    return notes


# Exactness on the tiny world ----------------------------------------------------------


def test_the_likelihoods_of_all_notes_are_the_enumerated_ones_and_sum_to_1():
    notes = all_notes()
    tiny = Clinic(world=TINY)
    logs = tiny.log_likelihood(tiny.parse(list(notes)))
    assert len(notes) > 10_000
    np.testing.assert_allclose(np.exp(logs), list(notes.values()), rtol=1e-10)
    assert np.exp(logs).sum() == pytest.approx(1, abs=1e-10)


def test_drawn_notes_are_among_the_enumerated_and_as_frequent():
    chances = all_notes()
    notes = Clinic(world=TINY).draw(40_000, 1)
    expected = np.zeros(100)
    for place, chance in enumerate(chances.values()):
        expected[place % 100] += chance
    group = {text: place % 100 for place, text in enumerate(chances)}
    seen = np.bincount([group[text] for text in notes.text], minlength=100)
    expected *= len(notes)
    chi_square = ((seen - expected) ** 2 / expected).sum()
    assert abs(chi_square - 99) < SIGMAS * math.sqrt(2 * 99)
    # The mean surprise of fresh notes is the entropy of the enumerated distribution.
    surprise = -np.log([chances[text] for text in notes.text])
    p = np.array(list(chances.values()))
    error = surprise.std() / math.sqrt(len(notes))
    assert abs(surprise.mean() + (p * np.log(p)).sum()) < SIGMAS * error


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("hospital", ["A", "B"])
def test_the_posterior_is_that_of_enumeration(reader, hospital):
    tiny = Clinic(hospital, world=TINY)
    notes = tiny.draw(60, 2)
    posterior = tiny.posterior(notes, reader)
    for row in range(len(notes)):
        visit = (notes.mentions[row], notes.vitals[row])
        band, sex = notes.age_band[row], notes.sex[row]
        joint = brute(TINY, hospital, [visit], band, sex, reader=reader)
        np.testing.assert_allclose(posterior[row], normal(joint), rtol=1e-10)


def test_a_reader_of_the_true_findings_needs_no_mentions():
    tiny = Clinic(world=TINY)
    notes = tiny.draw(60, 3)
    posterior = tiny.posterior(notes, "true findings")
    # A note that tells present from absent without fail says the same.
    plain = ((0.0, 0.0, 1.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0, 0.0))
    honest = dataclasses.replace(TINY, mention=dict.fromkeys(TINY.mention, plain))
    for row in range(len(notes)):
        visit = (2 - notes.findings[row], notes.vitals[row])
        joint = brute(honest, "A", [visit], notes.age_band[row], notes.sex[row])
        np.testing.assert_allclose(posterior[row], normal(joint), rtol=1e-10)


@pytest.mark.parametrize("reader", ["full note", "negation-blind"])
def test_two_notes_of_a_patient_share_disease_and_severity(reader):
    twice = dataclasses.replace(TINY, visits=(0.2, 0.8))
    source = Clinic(world=twice)
    notes = source.draw(40, 4)
    shuffled = notes[np.random.default_rng(0).permutation(len(notes))]
    patients, posterior = source.patient_posterior(shuffled, reader)
    assert list(patients) == list(dict.fromkeys(shuffled.patient))
    for patient, row in zip(patients, posterior, strict=True):
        own = notes[notes.patient == patient]
        visits = list(zip(own.mentions, own.vitals, strict=True))
        joint = brute(twice, "A", visits, own.age_band[0], own.sex[0], reader=reader)
        np.testing.assert_allclose(row, normal(joint), rtol=1e-10)


def test_the_weight_of_evidence_is_that_of_enumeration():
    tiny = Clinic(world=TINY)
    notes = tiny.draw(30, 5)
    weights = tiny.weight_of_evidence(notes, "blue")
    for row in range(len(notes)):
        visit = (notes.mentions[row], notes.vitals[row])
        band, sex = notes.age_band[row], notes.sex[row]
        full = normal(brute(TINY, "A", [visit], band, sex))
        for finding in range(3):
            rest = np.zeros(3)
            for kind in range(len(MENTIONS)):  # unread: it may have been any
                other = notes.mentions[row].copy()
                other[finding] = kind
                rest += brute(TINY, "A", [(other, visit[1])], band, sex)
            expected = math.log(full[1] / (1 - full[1]))
            expected -= math.log(rest[1] / (rest.sum() - rest[1]))
            assert weights[row, finding] == pytest.approx(expected, abs=1e-9)


def test_weights_of_evidence_add_up_where_findings_are_independent():
    pair = dataclasses.replace(
        TINY,
        diseases=TINY.diseases[:2],
        priors={"A": (0.5, 0.5)},
        severity_odds=1.0,
        usual_vitals={"pulse": (0.25, 0.75)},
    )
    source = Clinic(world=pair)
    notes = source.draw(50, 6)
    red, blue = pair.diseases
    before = np.log(np.array(blue.ages) / red.ages)[notes.age_band]
    women = np.log([blue.women / red.women, (1 - blue.women) / (1 - red.women)])
    before += women[notes.sex]
    posterior = source.posterior(notes)
    after = np.log(posterior[:, 1] / posterior[:, 0])
    weights = source.weight_of_evidence(notes, "blue").sum(axis=1)
    np.testing.assert_allclose(before + weights, after, atol=1e-9)


def test_weights_stay_finite_where_the_posterior_rounds_to_1():
    many = tuple(
        Finding(f"f{j}", "skin", (f"f{j}",), (f"g{j}",), 0.001) for j in range(30)
    )
    sure = dataclasses.replace(
        TINY,
        findings=many,
        diseases=(
            Disease("red", {f.name: 0.999 for f in many}, 0.3, (0.7, 0.3), 0.4),
            *(dataclasses.replace(d, findings={"f0": 0.1}) for d in TINY.diseases[1:]),
        ),
    )
    source = Clinic(world=sure)
    notes = source.draw(50, 7)
    red = notes[notes.label == 0]
    assert (source.posterior(red)[:, 0] == 1).any()
    assert np.isfinite(source.weight_of_evidence(red, "red")).all()


# Token by token -----------------------------------------------------------------------


@functools.cache
def all_beginnings() -> tuple[dict[tuple[int, str], int], list[float]]:
    """The notes of `all_notes` as a tree: (beginning, token) to longer beginning.

    Also P(the note begins so), of each; beginning 0 is the empty one.
    """
    tree: dict[tuple[int, str], int] = {}
    chances = [1.0]
    for text, chance in all_notes().items():
        place = 0
        for token in [*split_words(text), "<end>"]:
            place = tree.setdefault((place, token), len(chances))
            if place == len(chances):
                chances.append(0.0)
            chances[place] += chance
    return tree, chances


def test_token_probabilities_are_those_of_enumeration():
    tree, chances = all_beginnings()
    tiny = Clinic(world=TINY)
    for text in list(all_notes())[::499]:
        tokens, logs = tiny.token_log_likelihood(text)
        place, expected = 0, []
        for token in tokens:
            after = tree[place, token]
            expected.append(math.log(chances[after] / chances[place]))
            place = after
        np.testing.assert_allclose(logs, expected, atol=1e-9)


def test_what_may_come_next_is_that_of_enumeration():
    tree, chances = all_beginnings()
    expected: dict[int, dict[str, float]] = {}
    for (place, token), after in tree.items():
        share = chances[after] / chances[place]
        expected.setdefault(place, {})[token] = share
    tiny = Clinic(world=TINY)
    for text in list(all_notes())[::2111]:
        place, tokens = 0, [*split_words(text), "<end>"]
        for number, token in enumerate(tokens):
            options = tiny.next_token(tokens[:number])
            assert options == pytest.approx(expected[place], rel=1e-9)
            place = tree[place, token]
        assert tiny.next_token(tokens) == {}


@pytest.mark.parametrize(
    ("place", "phrasing", "shortcut"),
    [
        ("A", "usual", False),
        ("A", "usual", True),
        ("B", "usual", False),
        ("B", "held out", True),
    ],
)
def test_the_tokens_of_a_note_share_its_likelihood(place, phrasing, shortcut):
    source = Clinic(place, phrasing, shortcut)
    drawn = source.draw(100, 19)[:100]
    sums = []
    for text in drawn.text:
        tokens, logs = source.token_log_likelihood(text)
        assert tokens == [*split_words(text), "<end>"]
        assert logs.shape == (len(tokens),)
        sums.append(logs.sum())
    np.testing.assert_allclose(sums, source.log_likelihood(drawn), atol=1e-9)


@pytest.mark.parametrize(
    ("place", "phrasing", "shortcut"),
    [("A", "usual", False), ("A", "usual", True), ("B", "held out", False)],
)
def test_the_tokens_that_may_come_have_probabilities_that_sum_to_1(
    place, phrasing, shortcut
):
    """With the likelihoods of whole notes, this leaves no other answer."""
    source = Clinic(place, phrasing, shortcut)
    for text in source.draw(3, 20).text[:3]:
        tokens, logs = source.token_log_likelihood(text)
        for number, token in enumerate(tokens):
            options = source.next_token(tokens[:number])
            assert min(options.values()) > 0
            assert sum(options.values()) == pytest.approx(1, abs=1e-10)
            assert options[token] == pytest.approx(math.exp(logs[number]), rel=1e-9)


def test_words_are_split_as_a_tokenizer_splits_them(notes):
    more = "Pain 3.5/10 -- a one-sided, 40-year-old's “ache”; O₂ 97% <end> x_y é"
    for text in [*notes.text[:2000], more]:
        assert clinic._split_words(text) == split_words(text)


def test_what_can_follow_at_some_places_of_a_note(hospital):
    assert hospital.next_token([]) == {"emergency": 1}
    start = split_words("Emergency note, bay")
    bays = {str(bay + 1): 1 / WORLD.bays for bay in range(WORLD.bays)}
    assert hospital.next_token(start) == pytest.approx(bays)
    # Who lies in bay 1 has pneumonia more often, if the shortcut is planted.
    planted = Clinic(shortcut=True).next_token(start)
    prior = hospital.prior[hospital.diseases.index(WORLD.shortcut_disease)]
    expected = prior * WORLD.shortcut_share + (1 - prior) / WORLD.bays
    assert planted["1"] == pytest.approx(expected)


# The teaching world -------------------------------------------------------------------


@pytest.fixture(scope="module")
def hospital():
    return Clinic()


@pytest.fixture(scope="module")
def notes(hospital):
    return hospital.draw(12_000, 11)


@pytest.fixture(scope="module")
def firsts(notes):
    """The first note of each patient: independent of one another."""
    return notes[np.unique(notes.patient, return_index=True)[1]]


def assert_calibrated(posterior: np.ndarray, label: np.ndarray) -> None:
    """Each disease as frequent as promised, overall and at every level of certainty."""
    truth = label[:, None] == np.arange(posterior.shape[1])
    error = np.sqrt((posterior * (1 - posterior)).sum(axis=0))
    assert (abs((truth - posterior).sum(axis=0)) < SIGMAS * error).all()
    level = np.digitize(posterior, [0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99])
    for number in range(8):
        promised, came = posterior[level == number], truth[level == number]
        error = math.sqrt((promised * (1 - promised)).sum())
        assert abs(came.sum() - promised.sum()) < SIGMAS * error, number


def assert_reached(posterior: np.ndarray, label: np.ndarray) -> None:
    """The best guess is right as often as the ceiling says."""
    best = posterior.max(axis=1)
    right = posterior.argmax(axis=1) == label
    error = math.sqrt((best * (1 - best)).mean() / len(label))
    assert clinic.accuracy_ceiling(posterior) == pytest.approx(best.mean())
    assert abs(right.mean() - best.mean()) < SIGMAS * error


@pytest.mark.parametrize("reader", [*READERS, "true findings"])
def test_every_reader_is_calibrated_and_reaches_its_ceiling(hospital, firsts, reader):
    posterior = hospital.posterior(firsts, reader)
    np.testing.assert_allclose(posterior.sum(axis=1), 1)
    assert_calibrated(posterior, firsts.label)
    assert_reached(posterior, firsts.label)


def test_the_posterior_of_patients_is_calibrated_and_better(hospital, notes, firsts):
    patients, posterior = hospital.patient_posterior(notes)
    assert list(patients) == list(firsts.patient)
    assert_calibrated(posterior, firsts.label)
    assert_reached(posterior, firsts.label)
    single = hospital.posterior(firsts)
    assert clinic.accuracy_ceiling(posterior) > clinic.accuracy_ceiling(single)


def test_the_ladder_has_its_order_and_its_heights(hospital, notes):
    ceilings = {
        reader: clinic.accuracy_ceiling(hospital.posterior(notes, reader))
        for reader in [*READERS, "true findings"]
    }
    assert 0.82 <= ceilings["full note"] <= 0.90
    assert ceilings["negation-blind"] <= ceilings["full note"] - 0.20
    less_and_more = [
        ("negation-blind", "hedge- and family-blind"),
        ("hedge- and family-blind", "hedge-blind"),
        ("hedge- and family-blind", "family-blind"),
        ("hedge-blind", "full note"),
        ("family-blind", "full note"),
        ("full note", "true findings"),
    ]
    for less, more in less_and_more:
        assert ceilings[less] < ceilings[more]


def test_the_second_hospital_is_calibrated_and_another_place():
    second = Clinic("B")
    drawn = second.draw(4000, 12)
    firsts = drawn[np.unique(drawn.patient, return_index=True)[1]]
    assert_calibrated(second.posterior(firsts), firsts.label)
    with pytest.raises(MedlmError, match="its header reads"):
        Clinic("A").parse(drawn.text[:1])


def test_there_are_enough_diseases_findings_and_words(hospital):
    assert len(WORLD.diseases) >= 10
    assert len(WORLD.findings) == 30
    for number, finding in enumerate(WORLD.findings):
        for phrasing, least in (("usual", 6), ("held out", 2)):
            strings, _ = Clinic(phrasing=phrasing).language.phrases[number, 1]
            plain = {
                s for s in strings if not s.endswith(WORLD.suffixes)
            }  # "fever since yesterday" is no other word for fever
            assert len(plain) >= least, finding.name


# Texts --------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["A", "B"])
@pytest.mark.parametrize("phrasing", ["usual", "held out"])
def test_a_text_reads_back_to_its_codes(place, phrasing):
    source = Clinic(place, phrasing, shortcut=place == "B")
    drawn = source.draw(300, 13)
    read = source.parse(drawn.text)
    for name in ("text", "mentions", "age_band", "sex", "bay", "vitals"):
        assert (getattr(read, name) == getattr(drawn, name)).all(), name
    np.testing.assert_array_equal(source.posterior(read), source.posterior(drawn))
    assert len(read.patient) == len(read.label) == 0


def test_spans_point_at_their_words(hospital, notes):
    for row in range(300):
        text, mentions = notes.text[row], notes.mentions[row]
        spans = hospital.spans(text)
        names = [finding.name for finding in WORLD.findings]
        found = {span.finding: span.assertion for span in spans}
        assert len(found) == len(spans) == (mentions > 0).sum()
        for span in spans:
            number = names.index(span.finding)
            kind = MENTIONS.index(span.assertion)
            assert kind == mentions[number] > 0
            phrase = text[span.start : span.end]
            strings, _ = hospital.language.phrases[number, kind]
            assert phrase[0].lower() + phrase[1:] in strings
            assert text[span.end] in ",."


def test_spans_of_a_note_written_by_hand(hospital):
    text = (
        "Emergency note, bay 2. Woman aged 40. Fever, no chills. Phlegm in a brother. "
        "On examination, temp 37.0, pulse 80, saturation 97%, questionable wet "
        "crackles."
    )
    assert [
        (text[s.start : s.end], s.finding, s.assertion) for s in hospital.spans(text)
    ] == [
        ("Fever", "fever", "affirmed"),
        ("no chills", "chills", "negated"),
        ("Phlegm in a brother", "sputum", "family"),
        ("questionable wet crackles", "crackles", "hedged"),
    ]


@pytest.mark.parametrize("place", ["A", "B"])
@pytest.mark.parametrize("phrasing", ["usual", "held out"])
def test_no_note_names_a_disease(place, phrasing):
    source = Clinic(place, phrasing)
    bank = [text for strings, _ in source.language.phrases.values() for text in strings]
    bank += [*WORLD.company, *WORLD.remarks, *itertools.chain(*WORLD.headers[place])]
    everything = "\n".join([*bank, *source.draw(1000, 14).text]).lower()
    names = "|".join([NEVER_WRITTEN, *map(re.escape, source.diseases)])
    assert re.findall(rf"\b(?:{names})\b", everything) == []


def test_held_out_words_never_occur_in_usual_notes(notes):
    usual = [s for strings, _ in Clinic().language.phrases.values() for s in strings]
    usual += [*WORLD.company, *WORLD.remarks, *WORLD.demographics]
    everything = "\n".join([*usual, *notes.text[:2000]]).lower()
    nouns = {noun for finding in WORLD.findings for noun in finding.held_out}
    frames = set(itertools.chain(*WORLD.held_out_frames.values()))
    for words in nouns | {frame.replace("{}", "").strip() for frame in frames}:
        assert not re.search(rf"\b{re.escape(words)}\b", everything), words
    held_out = Clinic(phrasing="held out")
    with pytest.raises(MedlmError, match="is no phrase of its bank"):
        held_out.parse(notes.text[:1])


@pytest.mark.parametrize("place", ["A", "B"])
def test_notes_have_the_length_of_a_short_note(place):
    words = [len(text.split()) for text in Clinic(place).draw(3000, 15).text]
    assert np.mean([40 <= count <= 110 for count in words]) >= 0.99
    assert 60 <= np.median(words) <= 90


def test_the_median_patient_is_an_adult_with_one_or_two_notes(notes):
    patients, counts = np.unique(notes.patient, return_counts=True)
    assert len(patients) == 12_000
    assert set(counts) == {1, 2, 3}
    assert np.median(counts) in (1, 1.5, 2)
    ages = [int(re.search(r"\d\d", text.split(". ")[1])[0]) for text in notes.text]
    assert 45 <= np.median(ages) <= 65
    assert min(ages) >= 18 and max(ages) <= 92
    for patient in patients[:50]:
        own = notes[notes.patient == patient]
        for name in ("label", "severity", "sex", "age_band"):
            assert len(set(getattr(own, name))) == 1


# Nothing but the mentions tells the disease -------------------------------------------


def assert_alike(
    value: np.ndarray, label: np.ndarray, mean: float | np.ndarray
) -> None:
    """In every disease, `value` has this mean within sampling error."""
    for disease in np.unique(label):
        apart = (value - mean)[label == disease]
        error = max(apart.std(), 1e-12) / math.sqrt(len(apart))
        assert abs(apart.mean()) < SIGMAS * error, disease


def test_the_choice_of_words_does_not_depend_on_the_disease(hospital, notes):
    phrases = hospital.language.phrases
    meaning = hospital.language.meaning
    expected = {key: (p * np.log(p)).sum() for key, (_, p) in phrases.items()}
    few = notes[:6000]
    surplus = np.zeros(len(few))
    for row, text in enumerate(few.text):
        for span in hospital.spans(text):
            phrase = text[span.start : span.end]
            finding, kind, log = meaning[phrase[0].lower() + phrase[1:]]
            surplus[row] += log - expected[finding, kind]
    assert surplus.std() > 0.5
    assert_alike(surplus, few.label, 0.0)


def test_sentences_that_mean_nothing_are_as_frequent_in_every_disease(notes):
    joined = [text.lower() for text in notes.text]
    for sentence in WORLD.company:
        pattern = re.compile(sentence.format(his="(?:his|her)"))
        said = np.array([pattern.search(text) is not None for text in joined])
        share = WORLD.company_share / len(WORLD.company)
        assert_alike(said, notes.label, share)
    for sentence in WORLD.remarks:
        pattern = re.compile(sentence.format(he="(?:he|she)"))
        said = np.array([pattern.search(text) is not None for text in joined])
        assert_alike(said, notes.label, WORLD.remark_share)
    assert {text.split(",")[0] for text in joined} == {"emergency note"}
    for bay in range(WORLD.bays):
        assert_alike(notes.bay == bay, notes.label, 1 / WORLD.bays)


def test_which_group_opens_a_note_does_not_depend_on_the_disease(hospital, notes):
    groups = np.array([finding.group for finding in WORLD.findings])
    few = notes[:6000]
    filled = np.array(
        [(few.mentions[:, groups == g] > 0).any(axis=1) for g in WORLD.groups]
    )
    group_of = {finding.name: finding.group for finding in WORLD.findings}
    first = np.array([group_of[hospital.spans(text)[0].finding] for text in few.text])
    for number in range(1, len(WORLD.groups)):
        # It can only stand first by being drawn, for an earlier group is there too.
        rows = filled[number] & filled[:number].any(axis=0)
        opens = first[rows] == WORLD.groups[number]
        assert_alike(opens, few.label[rows], 1 / len(WORLD.groups))


def test_length_depends_on_the_disease_through_the_mentions_alone(hospital, notes):
    phrases = hospital.language.phrases
    words = {
        key: sum(c * len(s.split()) for s, c in zip(strings, chances, strict=True))
        for key, (strings, chances) in phrases.items()
    }
    expected = np.zeros(len(notes))
    for (finding, kind), mean in words.items():
        expected[notes.mentions[:, finding] == kind] += mean
    length = np.array([len(text.split()) for text in notes.text])
    assert_alike(length - expected, notes.label, (length - expected).mean())


# The shortcut -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted():
    """The hospital with the shortcut, and the first notes of its patients."""
    source = Clinic(shortcut=True)
    drawn = source.draw(8000, 16)
    return source, drawn[np.unique(drawn.patient, return_index=True)[1]]


def test_without_the_shortcut_the_bay_says_nothing(hospital, firsts):
    moved = dataclasses.replace(firsts, bay=(firsts.bay + 1) % WORLD.bays)
    np.testing.assert_array_equal(hospital.posterior(moved), hospital.posterior(firsts))


def test_with_the_shortcut_the_bay_tells_the_disease(planted):
    source, firsts = planted
    its = firsts.label == source.diseases.index(WORLD.shortcut_disease)
    share, count = WORLD.shortcut_share, its.sum()
    error = math.sqrt(share * (1 - share) / count)
    assert abs((firsts.bay[its] == 0).mean() - share) < SIGMAS * error
    assert_alike((firsts.bay == 0)[~its], firsts.label[~its], 1 / WORLD.bays)
    assert_calibrated(source.posterior(firsts), firsts.label)
    assert_reached(source.posterior(firsts), firsts.label)


def test_a_bay_blind_reader_of_planted_notes_is_calibrated_and_lower(hospital, planted):
    source, firsts = planted
    blind = hospital.posterior(firsts)
    assert_calibrated(blind, firsts.label)
    sighted = clinic.accuracy_ceiling(source.posterior(firsts))
    assert clinic.accuracy_ceiling(blind) < sighted


def test_who_trusts_the_shortcut_misjudges_where_it_is_absent(planted, firsts):
    source, _ = planted
    column = source.diseases.index(WORLD.shortcut_disease)
    believed = source.posterior(firsts)[:, column]
    error = np.sqrt(believed * (1 - believed))
    surplus = believed - (firsts.label == column)
    for rows, sign in ((firsts.bay == 0, 1), (firsts.bay != 0, -1)):
        standard_error = math.sqrt((error[rows] ** 2).sum()) / rows.sum()
        assert sign * surplus[rows].mean() > SIGMAS * standard_error


# Splitting and cutting ----------------------------------------------------------------


def test_no_patient_is_on_two_sides(notes):
    parts = clinic.split_by_patient(notes, (0.7, 0.1, 0.2), 1)
    patients = [set(part.patient) for part in parts]
    assert [len(names) for names in patients] == [8400, 1200, 2400]
    assert len(set.union(*patients)) == 12_000
    assert sum(map(len, parts)) == len(notes)
    for part in parts:
        assert list(part.patient) == sorted(part.patient)
    again = clinic.split_by_patient(notes, (0.7, 0.1, 0.2), 1)
    assert all((a.text == b.text).all() for a, b in zip(parts, again, strict=True))
    other = clinic.split_by_patient(notes, (0.7, 0.1, 0.2), 2)
    assert set(other[0].patient) != patients[0]
    # Dealt at random: the last part holds no more of a disease than its share.
    assert_alike(np.isin(notes.patient, list(patients[2])), notes.label, 0.2)


def test_title_and_abstract_are_the_note(notes):
    for text in notes.text[:500]:
        title, abstract = clinic.title_and_abstract(text)
        assert f"{title} {abstract}" == text
        assert title.endswith(".") and title.count(". ") <= 2
        assert "On examination" not in title
        assert "On examination" in abstract


def test_a_note_without_symptoms_keeps_its_examination_out_of_the_title():
    title, abstract = clinic.title_and_abstract(
        "Emergency note, bay 1. Man aged 40. On examination, temp 37.0. Bloods sent."
    )
    assert title == "Emergency note, bay 1. Man aged 40."
    assert abstract == "On examination, temp 37.0. Bloods sent."


def test_rows_of_notes_can_be_taken_in_every_way(hospital, notes):
    assert len(notes[3]) == len(notes[np.int64(3)]) == len(notes[3:4]) == 1
    assert notes[3].text[0] == notes.text[3]
    assert len(notes[[1, 2]]) == 2
    assert len(hospital.parse(notes.text[:4])[1:3]) == 2


# The same notes everywhere ------------------------------------------------------------


def test_the_same_seed_gives_the_same_notes_on_every_platform(hospital):
    texts = hospital.draw(200, 2017).text[:200]
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    assert digest == NOTES_SHA256
    assert (Clinic().draw(200, 2017).text[:200] == texts).all()
    assert (hospital.draw(200, 2018).text[:200] != texts).mean() > 0.99


def test_going_on_with_the_numbers_changes_the_names_alone(hospital):
    first, other = hospital.draw(30, 5), hospital.draw(30, 5, first_patient=30)
    assert (hospital.draw(30, 5, first_patient=0).patient == first.patient).all()
    names = [f"A{number:06d}" for number in range(60)]
    assert list(dict.fromkeys([*first.patient, *other.patient])) == names
    for field in dataclasses.fields(first):
        same = getattr(first, field.name) == getattr(other, field.name)
        assert np.all(same) == (field.name != "patient"), field.name


@pytest.mark.slow
def test_50_000_notes_with_their_posteriors_take_less_than_20_seconds():
    started = time.monotonic()
    source = Clinic()
    drawn = source.draw(30_000, 18)
    posterior = source.posterior(drawn)
    assert time.monotonic() - started < 20
    assert len(posterior) >= 50_000


# The page of the book -----------------------------------------------------------------


def test_the_examples_and_numbers_of_the_page_are_true():
    plain = re.sub(r"^```.*$", "", PAGE.read_text(encoding="utf-8"), flags=re.M)
    example = doctest.DocTestParser().get_doctest(plain, {}, "clinic", None, 0)
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(example, out=said.append)
    assert runner.tries >= 10
    assert runner.failures == 0, "".join(said)


def test_the_table_of_the_page_is_that_of_the_world():
    rows = re.findall(
        r"^\| ([a-z ]+) \| (\d+)% \| (\d+)% \| (.+) \|$",
        PAGE.read_text(encoding="utf-8"),
        re.M,
    )
    shares = zip(WORLD.diseases, WORLD.priors["A"], WORLD.priors["B"], strict=True)
    assert [row[:3] for row in rows] == [
        (disease.name, f"{100 * a:.0f}", f"{100 * b:.0f}") for disease, a, b in shares
    ]
    assert {name for name, _, _, source in rows if source == "none"} == {
        "chronic bronchitis flare",
        "heart attack",
        "kidney infection",
        "stomach flu",
        "stroke",
    }


def test_the_prose_of_the_page_types_no_result():
    """Digits stand in tested blocks and tables, or are no result."""
    page = PAGE.read_text(encoding="utf-8")
    tested = r"(?s:^```.*?^```$)|^\|.*$"
    other = r"(?s:\$\$.*?\$\$)|\$[^$]*\$|`[^`]*`|^\d\. "
    prose = re.sub(f"{tested}|{other}", "", page, flags=re.M)
    assert "ladder" in prose and re.findall(r"\d", prose) == []


# Bad input ----------------------------------------------------------------------------

GOOD = (
    "Emergency note, bay 2. Woman aged 40. Came alone. Fever, no chills. Cough. "
    "On examination, temp 37.0, pulse 80, saturation 97%, stiff neck. Bloods sent."
)


def test_the_note_that_the_broken_ones_come_from_is_read(hospital):
    assert hospital.parse([GOOD]).mentions.sum() == 1 + 2 + 1 + 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (GOOD, "", "does not end with a full stop"),
        (GOOD, "Hello.", "fewer than three sentences"),
        ("sent.", "sent", "does not end with a full stop"),
        ("Bloods", "bloods", "'bloods sent' does not begin with a capital"),
        (". Fever", ".. Fever", "its sentences|does not begin|is no phrase"),
        (" Fever", "  Fever", "is no phrase of its bank"),
        (
            "Emergency note",
            "Admission unit",
            "its header reads 'admission unit, bay 2'",
        ),
        ("bay 2", "bay 7", "its header reads"),
        ("bay 2", "bay 02", "its header reads"),
        ("bay 2", "bed 2", "its header reads"),
        (", bay 2", "", "its header reads"),
        ("aged 40", "aged 17", "age and sex read 'woman aged 17'"),
        ("Woman", "Person", "age and sex read"),
        ("Fever", "Fevers", "'fevers' is no phrase of its bank"),
        ("Fever, no chills", "No chills, fever", "'fever' stands in the wrong place"),
        ("no chills", "cough", "'cough' stands in the wrong place"),
        ("no chills", "no fever", "'no fever' stands in the wrong place"),
        ("Cough.", "Cough. No chills.", "its sentences are in the order"),
        ("Cough.", "Stiff neck.", "its sentences are in the order"),
        ("Fever, no chills. Cough.", "Headache. Palpitations. Cough.", "in the order"),
        ("On examination", "Examined", "'examined' is no phrase"),
        (GOOD, GOOD[: GOOD.index("On exam")].strip(), 'begins with "on examination"'),
        ("temp 37.0", "temp 45.0", "its vital signs read"),
        ("temp 37.0, pulse 80", "pulse 80, temp 37.0", "its vital signs read"),
        (", saturation 97%, stiff neck", "", "its vital signs read"),
        ("stiff neck", "nausea", "'nausea' is no sign"),
        ("Bloods sent", "Bloods lost", "it goes on with 'bloods lost'"),
        ("Bloods sent.", "Bloods sent. Bloods sent.", "it goes on with 'bloods sent'"),
        ("Bloods sent", "Bloods sent. No known allergies", "it goes on with"),
        ("Came alone", "Came with his partner", "'came with his partner' is no phrase"),
    ],
)
def test_a_text_that_is_no_note_is_refused_and_it_says_where(hospital, old, new, said):
    text = GOOD.replace(old, new)
    for read in (lambda: hospital.parse([GOOD, text]), lambda: hospital.spans(text)):
        with pytest.raises(MedlmError, match="no note of this clinic") as caught:
            read()
        assert re.search(said, str(caught.value)), caught.value


def changed(disease=None, finding=None, **fields):
    """TINY with another first disease or finding, or other fields."""
    if disease:
        first = dataclasses.replace(TINY.diseases[0], **disease)
        fields["diseases"] = (first, *TINY.diseases[1:])
    if finding:
        first = dataclasses.replace(TINY.findings[0], **finding)
        fields["findings"] = (first, *TINY.findings[1:])
    return dataclasses.replace(TINY, **fields)


SHORT = (0.5, 0.5)
SYMPTOM = TINY.mention["symptom"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"disease": {"findings": {"itch": 1.2}}},
            "itch in red is 1.2; expected a pro",
        ),
        ({"disease": {"findings": {"itch": math.nan}}}, "itch in red is nan"),
        ({"disease": {"findings": {}}}, "red has no findings"),
        (
            {"disease": {"findings": {"cough": 0.5}}},
            "red names cough, which this world",
        ),
        ({"disease": {"severe": -0.1}}, "severe share of red is -0.1"),
        ({"disease": {"women": 2}}, "share of women in red is 2"),
        ({"disease": {"ages": (0.5, 0.6)}}, "ages of red sums to 1.1"),
        ({"disease": {"ages": (1.0,)}}, "ages of red has 1 entries; expected 2"),
        ({"disease": {"vitals": {"heartbeat": SHORT}}}, "red names heartbeat, which"),
        ({"disease": {"vitals": {"pulse": (1.0,)}}}, "pulse in red has 1 entries"),
        ({"disease": {"vitals": {"pulse": (0.5, 0.4)}}}, "pulse in red sums to 0.9"),
        ({"disease": {"name": "blue"}}, "Two diseases have one name"),
        ({"finding": {"background": 1.01}}, "background of itch is 1.01"),
        ({"finding": {"nouns": ()}}, "itch has no words"),
        ({"finding": {"name": "ache"}}, "Two findings have one name"),
        ({"diseases": ()}, "no diseases"),
        ({"priors": {"A": (0.5, 0.2, 0.2)}}, "prior of hospital A sums to 0.9"),
        ({"priors": {"A": SHORT}}, "prior of hospital A has 2 entries; expected 3"),
        ({"priors": {"C": (0.5, 0.2, 0.3)}}, "names C, which this world does not have"),
        ({"noun_weights": {"A": (1.0,), "B": SHORT}}, "noun weights of hospital A"),
        ({"mention": {"symptom": SYMPTOM}}, "names examination, which this world"),
        ({"mention": {**TINY.mention, "symptom": SYMPTOM[:1]}}, "has 1 entries"),
        ({"mention": {**TINY.mention, "symptom": (SHORT, SHORT)}}, "has 2 entries"),
        (
            {"mention": {**TINY.mention, "symptom": ((0.9,) * 5, SYMPTOM[1])}},
            "mention of a symptom that is absent sums to 4.5",
        ),
        (
            {"mention": dict.fromkeys(TINY.mention, SYMPTOM)},
            "examination can be family",
        ),
        ({"held_out_frames": {}}, "can be affirmed, but there is no frame"),
        ({"usual_vitals": {}}, "pulse has 0 entries; expected 2"),
        ({"usual_vitals": {"heartbeat": SHORT}}, "usual_vitals names heartbeat"),
        ({"severity_odds": 0.5}, "severity_odds is 0.5; expected at least 1"),
        ({"suffix_share": 1.5}, "suffix_share is 1.5"),
        ({"shortcut_share": -1}, "shortcut_share is -1"),
        ({"shortcut_disease": "green"}, "shortcut_disease names green"),
        ({"bays": 1}, "There are 1 bays; expected at least 2"),
        ({"visits": (0.5, 0.4)}, "visits sums to 0.9"),
        ({"age_bands": ((30, 50), (50, 51))}, "overlap or go backwards"),
        ({"age_bands": ((31, 30), (50, 51))}, "overlap or go backwards"),
        ({"company": ()}, "no company to name"),
    ],
)
def test_an_impossible_parameter_is_refused(change, said):
    with pytest.raises(MedlmError, match=re.escape(said)):
        changed(**change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"finding": {"nouns": ("ache",)}}, "'ache' could mean two mentions"),
        ({"finding": {"nouns": ("ache, bad",)}}, "'ache, bad' could not be read back"),
        ({"finding": {"nouns": ("Itch",)}}, "'Itch' could not be read back"),
        ({"finding": {"nouns": ("itch.",)}}, "'itch.' could not be read back"),
        ({"vital_bands": {"pulse": (("p 1",), ("p 1",))}}, "'p 1' stands in two bands"),
    ],
)
def test_words_with_two_readings_are_refused(change, said):
    with pytest.raises(MedlmError, match=re.escape(said)):
        Clinic(world=changed(**change))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Clinic("C"), "No hospital is called 'C'; expected one of A, B"),
        (lambda: Clinic(phrasing="odd"), "'odd'; expected 'usual' or 'held out'"),
        (lambda: Clinic().draw(0, 1), "patients is 0; expected a whole number"),
        (lambda: Clinic().draw(2.5, 1), "patients is 2.5; expected a whole number"),
        (lambda: Clinic().draw(1, -1), "seed is -1; expected a whole number"),
        (lambda: Clinic().draw(1, 1, -1), "first_patient is -1; expected a whole"),
        (lambda: Clinic().draw(1, 1, 0.5), "first_patient is 0.5; expected a whole"),
        (lambda: Clinic().parse(GOOD), "expected a list of texts"),
    ],
)
def test_a_bad_call_is_refused(call, said):
    with pytest.raises(MedlmError, match=re.escape(said)):
        call()


def test_a_bad_question_about_notes_is_refused(hospital, notes):
    parsed = hospital.parse([GOOD])
    for call, said in (
        (lambda: hospital.posterior(notes, "blind"), "No reader is called 'blind'"),
        (lambda: hospital.patient_posterior(notes, "blind"), "No reader is called"),
        (lambda: hospital.posterior(parsed, "true findings"), "hold no true findings"),
        (lambda: hospital.patient_posterior(parsed), "name no patients"),
        (lambda: hospital.weight_of_evidence(notes, "gout"), "No disease is called"),
        (lambda: clinic.split_by_patient(notes, (0.5, 0.4), 1), "sums to 0.9"),
        (lambda: clinic.split_by_patient(notes[:3], (0.9, 0.1), 1), "would be empty"),
        (lambda: clinic.split_by_patient(parsed, (0.5, 0.5), 1), "would be empty"),
    ):
        with pytest.raises(MedlmError, match=said):
            call()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Fever", "Gout", "'gout' cannot come after '. came alone .'"),
        ("Emergency", "Urgent", "'urgent' cannot begin a note"),
        ("Cough", "Flatulence", "'flatulence' cannot come after ', no chills .'"),
        ("aged 40", "aged 17", "'17' cannot come after '2 . woman aged'"),
        ("bay 2.", "bay 2,", "',' cannot come after"),
        ("Fever, no chills", "No chills, fever", "'fever' cannot come after"),
        ("Came alone", "Came with his partner", "'his' cannot come after"),
        (", stiff neck. Bloods sent.", "", "'<end>' cannot come after"),
        ("Bloods sent.", "Bloods sent. Fever.", "'fever' cannot come after"),
        ("Bloods sent.", "Bloods sent. <end>", "'<' cannot come after"),
        (GOOD, "", "'<end>' cannot begin a note"),
    ],
)
def test_a_token_that_cannot_come_is_refused_and_it_says_where(
    hospital, old, new, said
):
    with pytest.raises(MedlmError, match="no note of this clinic") as caught:
        hospital.token_log_likelihood(GOOD.replace(old, new))
    assert said in str(caught.value)


def test_tokens_and_texts_are_not_mixed_up(hospital):
    tokens, _ = hospital.token_log_likelihood(GOOD)
    for call, said in (
        (lambda: hospital.token_log_likelihood(tokens), "A list came; expected one"),
        (lambda: hospital.next_token(GOOD), "expected a list of tokens"),
        (lambda: hospital.next_token([*tokens, "."]), "'.' cannot come after"),
    ):
        with pytest.raises(MedlmError, match=said):
            call()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"remarks": ("came with {his} son",)}, "'came with her son' stand for two"),
        ({"finding": {"nouns": ("2,5 itches",)}}, "hold a comma or a full stop"),
    ],
)
def test_words_whose_tokens_cannot_be_told_apart_are_refused(change, said):
    with pytest.raises(MedlmError, match=re.escape(said)):
        Clinic(world=changed(**change)).next_token([])


def test_nothing_to_read_is_one_clear_error():
    with pytest.raises(MedlmError, match="No text came"):
        Clinic().parse([])
    with pytest.raises(MedlmError, match="at least one note"):
        clinic.accuracy_ceiling(np.zeros((0, 12)))
