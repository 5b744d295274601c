"""Points and patients against closed forms, enumeration, and what ratios promise."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re

import numpy as np
import pytest
from scipy import stats
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from test_clinic import TINY, brute

from medlm_utils import anomaly_worlds, metrics
from medlm_utils.anomaly_worlds import (
    KINDS,
    REGIMES,
    UNREADABLE,
    WAYS,
    Box,
    Clusters,
    Regime,
    fact_names,
    facts,
    odd_patients,
    surprise,
    together,
    usual_clinic,
)
from medlm_utils.clinic import MENTIONS, WORLD, Clinic, Notes
from medlm_utils.runtime import MedlmError

SIGMAS = 4.5  # how far chance may carry a mean: about once in 150,000 tests
CLINIC_KINDS = KINDS[:3]  # those with a clinic of their own

every_regime = pytest.mark.parametrize("regime", REGIMES.values(), ids=list(REGIMES))
every_clinic_kind = pytest.mark.parametrize("kind", CLINIC_KINDS)


# Points in the plane ------------------------------------------------------------------


def gaussian(points, mean, spread, correlation):
    """The density that SciPy gives."""
    covariance = spread**2 * np.array([[1, correlation], [correlation, 1]])
    return stats.multivariate_normal(mean, covariance).pdf(points)


def test_the_densities_are_those_of_scipy():
    points = np.random.default_rng(0).uniform(-5.5, 5.5, size=(500, 2))
    spread = math.sqrt(1 - 0.55**2)
    centres = ((-0.55, 0.55), (0.55, -0.55))
    usual = sum(gaussian(points, c, spread, 0.95) for c in centres) / 2
    marginals = [
        sum(stats.norm(sign * 0.55, spread).pdf(x) for sign in (1, -1)) / 2
        for x in points.T
    ]
    inside = (np.abs(points) <= 5).all(axis=1)
    expected = {
        "global outliers": inside / 100,
        "clustered anomalies": gaussian(points, (0, 0), 0.2, 0),
        "broken dependency": marginals[0] * marginals[1],
    }
    assert list(REGIMES) == list(expected)
    for name, regime in REGIMES.items():
        np.testing.assert_allclose(np.exp(regime.log_p0(points)), usual, atol=1e-12)
        p1 = np.exp(regime.log_p1(points))
        np.testing.assert_allclose(p1, expected[name], atol=1e-12)
    assert not inside.all()


@every_regime
def test_points_are_drawn_from_their_densities(regime):
    points, label = regime.draw(40_000, 40_000, 1)
    cells = anomaly_worlds._grid(600)
    area = (cells[1, 1] - cells[0, 1]) ** 2
    for kind, log_density in ((0, regime.log_p0), (1, regime.log_p1)):
        logs = log_density(cells)
        density = np.exp(logs) * area
        assert density.sum() == pytest.approx(1, abs=1e-6)
        seen = log_density(points[label == kind])
        said = seen > -np.inf  # outside a box there is nothing
        expected = (density[density > 0] * logs[density > 0]).sum()
        error = seen.std() / math.sqrt(len(seen)) + 1e-9
        assert said.all() and abs(seen.mean() - expected) < SIGMAS * error
        # Not only as likely: also where they should be.
        for at, value in ((cells[:, 0], points[:, 0]), (cells[:, 1], points[:, 1])):
            corner = (at > 0.3) & (cells[:, 0] > cells[:, 1])
            share = density[corner].sum()
            own = points[label == kind]
            hit = (value[label == kind] > 0.3) & (own[:, 0] > own[:, 1])
            error = math.sqrt(share * (1 - share) / len(hit)) + 1e-4
            assert abs(hit.mean() - share) < SIGMAS * error


@every_regime
def test_usual_points_are_standardised_and_the_same_in_every_regime(regime):
    points, label = regime.draw(20_000, 0, 3)
    first, _ = next(iter(REGIMES.values())).draw(20_000, 0, 3)
    assert (points == first).all() and not label.any()
    assert np.abs(points.mean(axis=0)).max() < SIGMAS / math.sqrt(20_000)
    assert np.abs(points.std(axis=0) - 1).max() < SIGMAS / math.sqrt(40_000)


def test_a_broken_dependency_keeps_both_marginal_distributions():
    points, label = REGIMES["broken dependency"].draw(20_000, 20_000, 4)
    usual, odd = points[label == 0], points[label == 1]
    for axis in (0, 1):
        assert stats.ks_2samp(usual[:, axis], odd[:, axis]).pvalue > 1e-5
    x, y = odd.T
    assert abs(np.corrcoef(x, y)[0, 1]) < SIGMAS / math.sqrt(20_000)
    assert abs(np.corrcoef(x, usual[:, 1])[0, 1]) < SIGMAS / math.sqrt(20_000)
    assert np.corrcoef(usual.T)[0, 1] > 0.2


@pytest.mark.parametrize("apart", [0.5, 1.0, 2.0])
def test_the_ceiling_of_two_gaussians_is_the_closed_form(apart):
    regime = Regime(
        "shift", Clusters(((0, 0),), 0.8), Clusters(((0.8 * apart, 0),), 0.8)
    )
    assert regime.neyman_pearson_auroc == pytest.approx(
        stats.norm.cdf(apart / math.sqrt(2)), abs=5e-5
    )


def test_the_label_free_line_of_a_wider_gaussian_is_the_closed_form():
    # Squared distances are exponential, with means in the ratio of the variances.
    regime = Regime("wide", Clusters(((0, 0),), 0.5), Clusters(((0, 0),), 0.9))
    expected = 0.9**2 / (0.5**2 + 0.9**2)
    assert regime.neg_log_p0_auroc == pytest.approx(expected, abs=5e-5)
    assert regime.neyman_pearson_auroc == pytest.approx(expected, abs=5e-5)


@pytest.mark.slow
@every_regime
def test_the_exact_aurocs_are_those_of_a_finer_grid_and_of_many_points(regime):
    points, label = regime.draw(60_000, 60_000, 5)
    for of_ratio, exact, score in (
        (True, regime.neyman_pearson_auroc, regime.log_ratio(points)),
        (False, regime.neg_log_p0_auroc, -regime.log_p0(points)),
    ):
        assert exact == pytest.approx(regime._exact_auroc(of_ratio, 1500), abs=5e-5)
        error = math.sqrt(0.25 / 60_000)  # of an AUROC, at most
        assert abs(metrics.auroc(label, score) - exact) < SIGMAS * error


def test_the_three_regimes_differ_in_ceiling_and_line():
    ceilings = [regime.neyman_pearson_auroc for regime in REGIMES.values()]
    lines = [regime.neg_log_p0_auroc for regime in REGIMES.values()]
    clear, cluster, broken = ceilings
    assert broken < 0.85 < 0.96 < clear < 0.98 < 0.995 < cluster < 0.9995
    # Uniform anomalies: p0 alone ranks as p1/p0 does. Else it gives something away.
    assert lines[0] == pytest.approx(clear, abs=1e-6)
    assert lines[1] < cluster - 0.02 and lines[2] < broken - 0.03


def test_between_two_groups_isolation_forest_is_worse_than_chance():
    regime = REGIMES["clustered anomalies"]
    train, _ = regime.draw(1000, 0, 6)
    points, label = regime.draw(1000, 1000, 7)
    forest = IsolationForest(random_state=0).fit(train)
    lof = LocalOutlierFactor(20, novelty=True).fit(train)
    assert metrics.auroc(label, -forest.score_samples(points)) < 0.55
    assert metrics.auroc(label, -lof.score_samples(points)) > 0.95


def test_the_same_seed_gives_the_same_points_in_no_order():
    regime = REGIMES["global outliers"]
    points, label = regime.draw(950, 50, 8)
    again, same = regime.draw(950, 50, 8)
    assert (points == again).all() and (label == same).all()
    assert points.shape == (1000, 2) and label.sum() == 50
    assert 0 < label[:500].sum() < 50  # the anomalies do not stand in a row
    assert (regime.draw(950, 50, 9)[0] != points).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda r: r.log_p0([1.0, 2.0]), "have the shape (2,); expected (rows, 2)"),
        (lambda r: r.log_p1(np.zeros((4, 3))), "have the shape (4, 3); expected"),
        (lambda r: r.log_ratio([[0.0, math.nan]]), "hold NaN or infinity; expected"),
        (lambda r: r.log_p0([["a", "b"]]), "cannot be read as numbers"),
        (lambda r: r.draw(-1, 5, 0), "usual is -1; expected a whole number"),
        (lambda r: r.draw(1, 2.5, 0), "anomalies is 2.5; expected a whole number"),
        (lambda r: r.draw(1, 1, -3), "seed is -3; expected a whole number"),
        (lambda r: r.draw(0, 0, 0), "No points were asked for"),
    ],
)
def test_bad_points_and_numbers_are_refused(call, said):
    with pytest.raises(MedlmError, match=re.escape(said)):
        call(REGIMES["global outliers"])


def test_outside_its_box_an_anomaly_cannot_be():
    regime = Regime("box", Clusters(((0, 0),), 1.0), Box(2.0))
    assert regime.log_ratio([[0, 2.5]]) == -np.inf
    assert regime.log_p1([[1.9, -1.9]]) == pytest.approx(-math.log(16))


# Enumeration of a tiny clinic ---------------------------------------------------------

SHAPE = (5, 5, 4, 2, 2, 2)  # kinds of mention of itch, ache, spot; pulse, age, sex


@functools.cache
def all_facts() -> Notes:
    """One note of each combination of facts that TINY knows, in order of the codes."""
    codes = np.array(list(itertools.product(*map(range, SHAPE))))
    mentions, vitals, band, sex = codes[:, :3], codes[:, 3:4], codes[:, 4], codes[:, 5]
    age, bay = np.array([30, 50])[band], np.zeros(len(codes), dtype=int)
    rng = np.random.default_rng(0)
    text = Clinic(world=TINY).language.write(rng, mentions, age, sex, bay, vitals)
    texts, none = np.array(text, dtype=object), np.zeros(0, dtype=int)
    return Notes(texts, mentions, band, sex, bay, vitals, none, none, none, none)


@functools.cache
def enumerated() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """P(facts) of the usual patients without "blue", and of each kind, as tables."""
    every = all_facts()
    rows = zip(every.mentions, every.vitals, every.age_band, every.sex, strict=True)
    joint = np.array([brute(TINY, "A", [(m, v)], b, s) for m, v, b, s in rows])
    joint = joint.reshape(*SHAPE, 3) * TINY.bays
    usual = (joint[..., 0] + joint[..., 2]) / 0.8  # red .5, blue .2, grey .3
    axes = range(len(SHAPE))
    alone = [usual.sum(tuple(a for a in axes if a != axis)) for axis in axes]
    mixed = functools.reduce(np.multiply.outer, alone)
    rest = usual.sum((4, 5))
    header = np.multiply.outer(rest, np.multiply.outer(alone[4], alone[5]))
    tables = (joint[..., 1] / 0.2, mixed, header)
    return usual, dict(zip(CLINIC_KINDS, tables, strict=True))


def test_the_usual_surprise_is_that_of_enumeration():
    usual, _ = enumerated()
    assert usual.sum() == pytest.approx(1, abs=1e-12)
    values = surprise(usual_clinic("blue", TINY), all_facts())
    np.testing.assert_allclose(np.exp(-values), usual.ravel(), rtol=1e-10)


@every_clinic_kind
def test_the_ratio_is_that_of_enumeration_and_its_mean_is_1(kind):
    usual, tables = enumerated()
    ratio = np.exp(odd_patients(kind, "blue", TINY).log_ratio(all_facts()))
    np.testing.assert_allclose(ratio, (tables[kind] / usual).ravel(), rtol=1e-9)
    assert (usual.ravel() * ratio).sum() == pytest.approx(1, abs=1e-10)


def test_a_clinic_with_certainties_has_infinite_ratios():
    red = dataclasses.replace(TINY.diseases[0], women=1.0)
    grey = dataclasses.replace(TINY.diseases[2], women=1.0)
    sure = dataclasses.replace(TINY, diseases=(red, TINY.diseases[1], grey))
    every = all_facts()
    ratio = odd_patients("unseen disease", "blue", sure).log_ratio(every)
    assert (np.isposinf(ratio) == (every.sex == 1)).all()
    with pytest.raises(
        MedlmError, match="400 of 800 notes are impossible in the usual"
    ):
        odd_patients("another patient's header", "blue", sure).log_ratio(every)


# The clinic's odd patients ------------------------------------------------------------


@functools.cache
def sample(kind: str, unseen: str = "meningitis", patients: int = 1500):
    """Usual and odd notes, which is which, and the log-ratios."""
    patients_of = odd_patients(kind, unseen)
    usual = patients_of.usual.draw(patients, 11)
    notes, label = together(usual, patients_of.draw(patients, 11, patients))
    return notes, label, patients_of.log_ratio(notes)


def mean_and_error(values, patients):
    """Of notes, with a standard error by patient."""
    _, row = np.unique(patients, return_inverse=True)
    total, count = np.bincount(row, values), np.bincount(row)
    mean = values.mean()
    return mean, math.sqrt(((total - mean * count) ** 2).sum()) / len(values)


@every_clinic_kind
def test_the_words_cancel_in_the_ratio(kind):
    patients = odd_patients(kind)
    for notes in (patients.usual.draw(100, 1), patients.draw(100, 1)):
        expected = patients.odd.log_likelihood(notes)
        expected -= patients.usual.log_likelihood(notes)
        np.testing.assert_allclose(patients.log_ratio(notes), expected, atol=1e-9)
        parsed = patients.usual.parse(notes.text)
        np.testing.assert_allclose(patients.log_ratio(parsed), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "unseen"),
    [*((kind, "meningitis") for kind in CLINIC_KINDS), ("unseen disease", "migraine")],
)
def test_ratios_are_calibrated_where_both_kinds_are_as_frequent(kind, unseen):
    notes, label, log_ratio = sample(kind, unseen)
    # Both kinds count the same, however many notes each has.
    weight = np.where(
        label == 1, len(label) / label.sum(), len(label) / (1 - label).sum()
    )
    odd_share = 1 / (1 + np.exp(-log_ratio))
    for low, high in itertools.pairwise((0, 0.02, 0.2, 0.4, 0.6, 0.8, 0.98, 1.01)):
        inside = (odd_share >= low) & (odd_share < high)
        if inside.sum() < 30:
            continue
        gap = ((label - odd_share) * weight)[inside]
        mean, error = mean_and_error(gap, notes.patient[inside])
        # Where one kind is rare, none of it may have come: then the shares
        # themselves say how far chance goes.
        chance = (odd_share * (1 - odd_share) * weight**2)[inside]
        error = max(error, math.sqrt(chance.mean() / inside.sum()))
        assert abs(mean) < SIGMAS * error, (low, high)


@pytest.mark.parametrize("kind", CLINIC_KINDS[1:])
def test_the_mean_ratio_of_usual_notes_is_1(kind):
    notes, label, log_ratio = sample(kind)
    usual = label == 0
    mean, error = mean_and_error(np.exp(log_ratio[usual]), notes.patient[usual])
    assert error < 0.15 and abs(mean - 1) < SIGMAS * error


@pytest.mark.parametrize("unseen", ["meningitis", "migraine", "appendicitis"])
def test_the_same_mean_from_both_sides_for_an_unseen_disease(unseen):
    """E0[r] has no useful error here: few notes carry it. E0[r/(1+r)] is bounded."""
    notes, label, log_ratio = sample("unseen disease", unseen)
    odd_share = 1 / (1 + np.exp(-log_ratio))
    usual, odd = label == 0, label == 1
    first, error = mean_and_error(odd_share[usual], notes.patient[usual])
    second, other = mean_and_error(1 - odd_share[odd], notes.patient[odd])
    assert abs(first - second) < SIGMAS * math.hypot(error, other)


def test_the_kinds_have_ceilings_that_differ_and_lie_above_the_line():
    ceilings = []
    for kind in KINDS:
        notes, label, log_ratio = sample(kind)
        line = surprise(usual_clinic(), notes)
        ceilings.append(metrics.auroc(label, log_ratio))
        assert ceilings[-1] >= metrics.auroc(label, line)
        assert metrics.auroc(label, line) > 0.52
    unseen, mixed, header, garbled = ceilings
    assert header < 0.72 < 0.88 < mixed < 0.92 < 0.99 < unseen < garbled == 1


def test_the_unseen_disease_is_never_usual_and_always_odd():
    number = [disease.name for disease in WORLD.diseases].index("stroke")
    patients = odd_patients("unseen disease", "stroke")
    assert not (patients.usual.draw(2000, 2).label == number).any()
    assert (patients.draw(100, 2).label == number).all()
    expected = np.delete(np.array(WORLD.priors["A"]), number) / (1 - 0.06)
    np.testing.assert_allclose(np.delete(patients.usual.prior, number), expected)
    assert patients.usual.diseases == Clinic().diseases


def test_a_mixed_up_record_has_the_usual_marginals_exactly():
    patients = odd_patients("mixed-up record")
    usual, odd = patients.usual, patients.odd
    joint = usual.prior[:, None] * usual.severity
    average = (joint[:, :, None, None] * usual.mention_rates).sum((0, 1))
    np.testing.assert_allclose(odd.mention_rates[-1, 0], average, rtol=1e-12)
    np.testing.assert_allclose(odd.mention_rates[-1, 1], average, rtol=1e-12)
    for mine, theirs in zip(odd.vital_rates, usual.vital_rates, strict=True):
        np.testing.assert_allclose(mine[-1], joint.sum(1) @ theirs, rtol=1e-12)
    assert odd.diseases[-1] == "mixed-up record" and odd.prior[-1] == 1


def test_drawn_mixed_up_records_have_usual_marginals_and_nothing_goes_together():
    notes, label, _ = sample("mixed-up record", patients=4000)
    columns = facts(notes)
    usual, odd = columns[label == 0], columns[label == 1]
    for column in range(columns.shape[1]):
        (a, first), (b, second) = (
            mean_and_error(columns[label == kind, column], notes.patient[label == kind])
            for kind in (0, 1)
        )
        assert abs(a - b) < SIGMAS * math.hypot(first, second)
    names = fact_names(usual_clinic())
    pair = [names.index("cough: affirmed"), names.index("sputum: affirmed")]
    assert np.corrcoef(usual[:, pair].T)[0, 1] > 0.25
    assert abs(np.corrcoef(odd[:, pair].T)[0, 1]) < SIGMAS / math.sqrt(len(odd))


def test_another_patients_header_says_nothing_and_is_as_frequent_as_usual():
    patients = odd_patients("another patient's header")
    odd, usual = patients.odd.world, patients.usual.world
    assert len({(disease.ages, disease.women) for disease in odd.diseases}) == 1
    ages = patients.usual.prior @ np.array([d.ages for d in usual.diseases])
    women = patients.usual.prior @ np.array([d.women for d in usual.diseases])
    assert odd.diseases[0].ages == pytest.approx(ages)
    assert odd.diseases[0].women == pytest.approx(women)
    for before, after in zip(usual.diseases, odd.diseases, strict=True):
        same = dataclasses.replace(after, ages=before.ages, women=before.women)
        assert same == before


@every_clinic_kind
def test_the_language_is_the_usual_one(kind):
    patients = odd_patients(kind)
    notes = patients.draw(100, 3)
    usual, odd = patients.usual.language, patients.odd.language
    for text in notes.text:
        assert usual.parse(text).wording == odd.parse(text).wording


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_and_names_of_odd_patients(kind):
    patients = odd_patients(kind)
    notes, again = patients.draw(20, 4, 500), patients.draw(20, 4, 500)
    assert (notes.text == again.text).all()
    assert list(dict.fromkeys(notes.patient)) == [f"A{500 + n:06d}" for n in range(20)]
    assert (patients.draw(20, 4).text == notes.text).all()  # names apart
    usual = patients.usual.draw(20, 4)
    assert not set(notes.text) & set(usual.text)
    least = min(len(notes), len(usual))
    assert (notes.label[:least] != usual.label[:least]).any()  # not the same people


# Garbled text -------------------------------------------------------------------------


@functools.cache
def garbled() -> Notes:
    return odd_patients("garbled text").draw(300, 5)


def test_no_garbled_text_is_a_note():
    usual = usual_clinic()
    assert len(garbled()) > 400
    for text in garbled().text:
        with pytest.raises(MedlmError, match="no note of this clinic"):
            usual.language.parse(text)


def test_a_garbled_text_is_certain_and_has_no_facts():
    patients = odd_patients("garbled text")
    assert patients.odd is None
    assert np.isposinf(patients.log_ratio(garbled())).all()
    assert np.isneginf(patients.log_ratio(patients.usual.draw(50, 6))).all()
    assert np.isposinf(surprise(patients.usual, garbled())).all()
    assert np.isposinf(surprise(patients.usual, garbled(), "text")).all()
    assert (garbled().mentions == UNREADABLE).all()
    # Nothing takes these codes for others.
    with pytest.raises(IndexError):
        patients.usual.posterior(garbled())


def test_shuffled_sentences_have_their_words_and_commas_in_another_order():
    rng = np.random.default_rng(0)
    text = "Woman of 40 years. No fever, chills since yesterday."
    mixed = anomaly_worlds._shuffled(text, rng)
    assert mixed != text
    for before, after in zip(text.split(". "), mixed.split(". "), strict=True):
        bare = [sorted(re.findall(r"[\w']+", s.lower())) for s in (before, after)]
        assert bare[0] == bare[1] and after[0] == after[0].upper()
        commas = [[w.endswith(",") for w in s.split()] for s in (before, after)]
        assert commas[0] == commas[1]


def test_a_pasted_note_is_two_notes_in_which_a_symptom_stands_twice():
    usual = usual_clinic()
    for text in garbled().text[1::3]:
        history, examination = text.split("On examination")  # stands in it once
        assert examination and re.match(r"Emergency note, bay \d\. ", history)
        groups, twice = [], False
        for sentence in history.removesuffix(". ").split(". ")[2:]:
            first = sentence[0].lower() + sentence[1:]
            meaning = usual.language.meaning.get(first.split(", ")[0])
            if meaning:
                group = usual.world.findings[meaning[0]].group
                twice |= group in groups
                groups.append(group)
        assert twice


def test_pasting_without_a_common_symptom_changes_nothing():
    usual = usual_clinic()
    end = "On examination, temp 37.0, pulse 80, saturation 97%."
    start = "Emergency note, bay 2. Woman aged 40. Came alone."
    text, other = f"{start} Fever. {end}", f"{start} Cough. {end}"
    assert anomaly_worlds._pasted(usual, text, other) == text
    twice = f"{start} Fever. No fever. {end}"
    assert anomaly_worlds._pasted(usual, text, f"{start} No fever. {end}") == twice


def test_misreading_takes_characters_for_similar_ones_in_a_share_of_the_words():
    usual = usual_clinic().draw(300, 7)
    rng = np.random.default_rng(0)
    changed = words = 0
    for text in usual.text:
        misread = anomaly_worlds._misread(text, rng).split(" ")
        pairs = list(zip(text.split(" "), misread, strict=True))
        changed += sum(a != b for a, b in pairs)
        words += len(pairs)
        assert all(abs(len(a) - len(b)) <= 1 for a, b in pairs)
    assert changed / words == pytest.approx(0.2, abs=0.02)
    ways = {anomaly_worlds._misread_word("burn", rng) for _ in range(100)}
    assert ways == {"bum", "bvrn"}
    assert anomaly_worlds._misread_word("92", rng) == "92"


def test_the_ways_take_turns_and_each_leaves_its_mark():
    commas, twice, characters = (garbled().text[way::3] for way in range(len(WAYS)))
    known = {
        word
        for text in usual_clinic().draw(2000, 8).text
        for word in re.findall(r"[a-z]+", text.lower())
    }

    def strange(texts):
        return np.mean(
            [w not in known for t in texts for w in re.findall(r"[a-z]+", t.lower())]
        )

    assert strange(commas) == strange(twice) == 0 < 0.05 < strange(characters)
    assert np.mean([len(t) for t in twice]) > 1.2 * np.mean([len(t) for t in commas])


def test_a_note_that_cannot_be_spoiled_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(anomaly_worlds, "_shuffled", lambda text, rng: text)
    with pytest.raises(MedlmError, match="stays possible, shuffled words 100 times"):
        odd_patients("garbled text").draw(1, 0)


# Surprise, facts, and both kinds together ---------------------------------------------


def test_the_surprise_of_a_text_is_the_sum_of_its_tokens():
    usual = usual_clinic()
    notes = usual.draw(10, 9)
    tokens = [usual.token_log_likelihood(text)[1].sum() for text in notes.text]
    np.testing.assert_allclose(surprise(usual, notes, "text"), -np.array(tokens))


def test_notes_of_another_hospital_have_facts_but_no_text_and_no_ratio():
    usual, other = usual_clinic(), Clinic("B").draw(300, 10)
    values = surprise(usual, other)
    assert np.isfinite(values).all()
    assert np.isposinf(surprise(usual, other, "text")).all()
    mixed, _ = together(usual.draw(300, 10), other)
    both = surprise(usual, mixed, "text")
    assert (np.isinf(both) == [name[0] == "B" for name in mixed.patient]).all()
    for kind in CLINIC_KINDS:
        with pytest.raises(MedlmError, match="expected notes of hospital A"):
            odd_patients(kind).log_ratio(other)


def test_facts_are_the_codes_as_columns():
    usual = usual_clinic()
    notes = usual.draw(1500, 11)
    columns, names = facts(notes), fact_names(usual)
    assert columns.shape == (len(notes), len(names)) and columns.dtype == float
    assert len(set(names)) == len(names)
    assert (columns.std(axis=0) > 0).all()  # no column is constant
    for column, name in zip(columns.T, names, strict=True):
        if ": " in name:
            finding, kind = name.split(": ")
            place = [f.name for f in WORLD.findings].index(finding)
            expected = notes.mentions[:, place] == MENTIONS.index(kind)
        elif name in WORLD.vital_bands:
            expected = notes.vitals[:, list(WORLD.vital_bands).index(name)]
        else:
            expected = {"age band": notes.age_band, "sex": notes.sex}[name]
        assert (column == expected).all(), name
    assert not any(name.startswith("crackles: family") for name in names)


def test_usual_and_odd_notes_come_together_with_their_label():
    patients = odd_patients("unseen disease")
    usual, odd = patients.usual.draw(30, 12), patients.draw(10, 12, 30)
    notes, label = together(usual, odd)
    assert list(label) == [0] * len(usual) + [1] * len(odd)
    for part, kind in ((usual, 0), (odd, 1)):
        for field in dataclasses.fields(Notes):
            mine = getattr(notes[label == kind], field.name)
            assert (mine == getattr(part, field.name)).all()


GARBLED = "notes are garbled and have no facts"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda u: odd_patients("odd"),
            "No kind of odd patient is called 'odd'; expected",
        ),
        (lambda u: odd_patients("odd"), ", ".join(KINDS)),
        (lambda u: odd_patients(KINDS[0], "gout"), "No disease is called 'gout'; exp"),
        (lambda u: usual_clinic("gout"), "'gout'; expected one of pneumonia, heart"),
        (
            lambda u: surprise(u, u.draw(2, 1), "words"),
            "of is 'words'; expected 'facts'",
        ),
        (lambda u: odd_patients(KINDS[1]).log_ratio(garbled()), GARBLED),
        (lambda u: facts(garbled()), GARBLED),
        (
            lambda u: facts(all_facts()),
            "3 findings and 1 vital signs; expected 30 and 3",
        ),
        (lambda u: surprise(u, all_facts()), "3 findings and 1 vital signs; expected"),
        (lambda u: together(u.draw(2, 1), u.draw(2, 1)), "2 patients, such as A000000"),
        (
            lambda u: together(u.draw(2, 1), u.parse(u.draw(2, 1).text)),
            "Some notes name no patients",
        ),
        (
            lambda u: odd_patients(KINDS[3]).draw(0, 1),
            "patients is 0; expected a whole",
        ),
        (lambda u: odd_patients(KINDS[3]).draw(1.5, 1), "patients is 1.5; expected"),
        (lambda u: odd_patients(KINDS[0]).draw(1, -1), "seed is -1; expected a whole"),
        (lambda u: odd_patients(KINDS[0]).draw(1, 1, -1), "first_patient is -1; exp"),
    ],
)
def test_a_bad_call_is_refused(call, said):
    with pytest.raises(MedlmError, match=re.escape(said)):
        call(usual_clinic())


def test_a_world_with_one_disease_has_no_usual_patients_without_it():
    only = dataclasses.replace(TINY, priors={"A": (0.0, 1.0, 0.0)})
    with pytest.raises(MedlmError, match="Without blue there are no patients"):
        usual_clinic("blue", only)
