"""studies/bert_learning_curve.py: equal terms for four learners, and honest numbers."""

import dataclasses
import json
import math
import time
import types

import numpy as np
import pytest
import torch
from study_runs import a_study, run_tiny, tracked
from test_studies_bert import Words

from medlm_utils import clinic, metrics, runtime
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import bert_learning_curve as curve
from medlm_utils.studies import clinic_runs, core, nsp_ablation

HOME = clinic.Clinic("A")
TINY = curve.PLANS["tiny"]
ALWAYS = {
    "patients",
    "ceiling_accuracy",
    "held_out_ceiling_accuracy",
    *(f"accuracy_over_ceiling_{name}" for name in curve.LEARNERS),
    *(f"excess_log_loss_{name}" for name in curve.LEARNERS),
    "held_out_accuracy_minilm",
    "held_out_accuracy_tfidf",
    "held_out_gain_minilm_over_tfidf",
    "negation_notes_accuracy_minilm",
    "negation_notes_accuracy_tfidf",
    "negation_notes_accuracy_negation_blind",
    "negation_notes_accuracy_exact",
    "negation_notes_gain_minilm_over_tfidf",
    "over_ceiling_gain_of_last_point_minilm",
}
WHERE_REACHED = {
    *(f"patients_for_goal_{name}" for name in curve.LEARNERS),
    "times_fewer_patients_by_pretraining",
}


pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.fixture
def study(tmp_path):
    made = a_study(tmp_path, tiny=True)
    made._running = core.Part("example", {}, 1.0, dict)
    return made


def timeless(record):
    """Metrics and series of a record, without seconds."""
    points = [
        point | {"runs": [run | {"seconds": 0} for run in point["runs"]]}
        for point in record["series"]["points"]
    ]
    return record["metrics"], record["series"] | {"points": points}


@pytest.mark.slow
class TestTiny:
    def test_the_record_has_its_shape(self, tmp_path):
        before, started = tracked(), time.process_time()
        record = run_tiny(curve, tmp_path)
        assert time.process_time() - started < 60
        assert tracked() == before
        assert ALWAYS <= set(record["metrics"]) <= ALWAYS | WHERE_REACHED
        for metric in record["metrics"].values():
            assert set(metric) <= set(runtime.METRIC_FIELDS)
            if "low" in metric:
                assert metric["low"] <= metric["value"] <= metric["high"]
        points = record["series"]["points"]
        expected = [(one, n) for one in curve.LEARNERS for n in TINY.patients]
        assert [(p["learner"], p["patients"]) for p in points] == expected
        for point in points:
            seeds = curve.seeds_of(TINY, point["learner"], point["patients"])
            assert point["seeds"] == len(point["runs"]) == seeds
            assert ("c" in point["runs"][0]) == (point["learner"] == "tfidf")
            mean = np.mean([run["accuracy"] for run in point["runs"]])
            assert point["accuracy"]["value"] == pytest.approx(mean)
            ratio = mean / record["metrics"]["ceiling_accuracy"]["value"]
            found = point["accuracy_over_ceiling"]["value"]
            assert found == pytest.approx(ratio, abs=1e-5)
        assert record["series"]["pretraining"]["steps"] == 6
        assert "weights" not in record["series"]["pretraining"]

    def test_the_same_again_and_nothing_twice(self, tmp_path, capsys):
        first = run_tiny(curve, tmp_path)
        capsys.readouterr()
        again = run_tiny(curve, tmp_path)
        assert "14 of 14 parts are kept" in capsys.readouterr().err
        assert again["series"] == first["series"]
        for weights in (tmp_path / "work").rglob("*.safetensors"):
            weights.unlink()
        for part in (tmp_path / "work").rglob("pretrained_small-48*"):
            part.unlink()
        assert curve.main(["--tiny", "--work", str(tmp_path / "work")]) == 1
        assert "does not hold the weights" in capsys.readouterr().err
        fresh = run_tiny(curve, tmp_path, "--fresh")
        assert timeless(first) == timeless(fresh)


# What is learned, and from what -------------------------------------------------------


class TestPlan:
    @pytest.mark.parametrize("size", curve.PLANS)
    def test_points_rise_and_no_draw_is_one_of_the_test(self, size):
        plan = curve.PLANS[size]
        assert list(plan.patients) == sorted(set(plan.patients))
        tests = {clinic_runs.TEST_SEED, clinic_runs.OTHER_WORDS_SEED}
        assert not set(curve.DRAWS) & tests
        assert curve.DRAWS[0] == clinic_runs.DRAW
        assert len(set(curve.DRAWS)) == len(curve.DRAWS)
        pretraining = runtime.SEED, nsp_ablation.TEST_SEED, nsp_ablation.WATCHED_SEED
        assert not {*curve.DRAWS, *tests} & set(pretraining)

    def test_the_test_is_that_of_the_chapter(self):
        profile = runtime.PROFILES["cpu"]
        assert curve.PLANS["cpu"].test_patients == profile.bert_test_patients
        assert curve.PLANS["cpu"].longest == clinic_runs.Sizes(1, 1).longest

    @pytest.mark.parametrize(
        ("notes", "expected"), [(100, 16), (101, 16), (800, 2), (801, 2), (9999, 2)]
    )
    def test_epochs_fall_with_the_notes(self, notes, expected):
        assert curve.epochs_for(notes, 1600, 2) == expected
        assert notes * curve.epochs_for(notes, 1600, 1) >= 1600

    def test_few_patients_are_drawn_thrice(self):
        plan = curve.PLANS["cpu"]
        assert curve.seeds_of(plan, "minilm", plan.repeated_minilm) == 3
        assert curve.seeds_of(plan, "minilm", plan.repeated_minilm + 1) == 1
        assert curve.seeds_of(plan, "scratch", plan.repeated) == 3

    def test_a_part_depends_on_what_its_learner_does_alone(self, study):
        hidden = {"weights": "pretrain.safetensors"}

        def settings(**changes):
            plan = dataclasses.replace(TINY, **changes)
            return {
                name: curve._part(study, plan, hidden, name, 24, 0).settings
                for name in curve.LEARNERS
            }

        first = settings()
        json.dumps(first)
        assert settings(patients=(24, 48, 96), repeated=99) == first
        small = {"scratch", "pretrained_small"}
        for change, changed in [
            ({"passes_minilm": 99}, {"minilm"}),
            ({"epochs_minilm": 99}, {"minilm"}),
            ({"passes_small": 99}, small),
            ({"epochs_small": 99}, small),
            ({"tfidf_c": (5.0,)}, {"tfidf"}),
            ({"test_patients": 99}, set(curve.LEARNERS)),
        ]:
            other = settings(**change)
            assert {n for n in other if other[n] != first[n]} == changed
        assert first["scratch"] != first["pretrained_small"]


class Caught(Exception):
    pass


def catch(monkeypatch, name):
    """What a function of `clinic_runs` is given, in place of its work."""

    def stop(study, model, notes, settings):
        raise Caught(model, notes, settings)

    monkeypatch.setattr(clinic_runs, name, stop)


class TestLearners:
    def caught(self, study, weights, seed=0):
        with pytest.raises(Caught) as found:
            curve.learn_small(study, TINY, weights, 24, seed)
        return found.value.args

    def test_the_small_encoder_starts_from_chance_or_from_what_it_knows(
        self, study, monkeypatch
    ):
        catch(monkeypatch, "train")
        hidden = curve._pretraining(study, nsp_ablation.PLANS["tiny"]).make()
        scratch, notes, settings = self.caught(study, None)
        taught, _, same = self.caught(study, hidden["weights"])
        assert settings == same
        assert settings.epochs == curve.epochs_for(len(notes.train.rows), 40, 1)
        assert not settings.frozen_words
        assert torch.equal(scratch.head.weight, taught.head.weight)
        words = [model.encoder.words.weight for model in (scratch, taught)]
        assert not torch.equal(*words)
        again, _, _ = self.caught(study, None)
        assert torch.equal(again.encoder.words.weight, words[0])

    def test_its_notes_are_those_of_the_others(self, study, monkeypatch):
        catch(monkeypatch, "train")
        _, notes, _ = self.caught(study, None, seed=1)
        expected = clinic_runs.material(None, curve.sizes_of(TINY, 24), curve.DRAWS[1])
        tokenizer = curve.small_material(nsp_ablation.PLANS["tiny"]).tokenizer
        for part in ("train", "val", "test", "other_words"):
            one, other = getattr(notes, part), getattr(expected, part)
            assert list(one.notes.text) == list(other.notes.text)
            np.testing.assert_array_equal(one.label, other.label)
            assert len(one.rows) == len(one.notes)
        first = " ".join(nsp_ablation.halves_of(tokenizer, notes.train.rows[0]))
        assert first == notes.train.notes.text[0]

    def test_minilm_is_trained_as_in_the_chapter_but_for_its_length(
        self, study, monkeypatch
    ):
        catch(monkeypatch, "fine_tune")
        model = types.SimpleNamespace(tokenizer=Words())
        monkeypatch.setattr(clinic_runs, "build", lambda **_: model)
        with pytest.raises(Caught) as found:
            curve.learn_minilm(study, TINY, 48, 1)
        _, notes, settings = found.value.args
        epochs = curve.epochs_for(len(notes.train.rows), TINY.passes_minilm, 1)
        looks = math.ceil(curve.FEWEST_LOOKS / epochs)
        expected = clinic_runs.settings_of(study, epochs=epochs, looks=looks, seed=1)
        assert settings == expected

    def test_the_regression_knows_classes_that_it_never_saw(self):
        from sklearn.linear_model import LogisticRegression

        rng = np.random.default_rng(0)
        known, label = rng.normal(size=(40, 5)), np.arange(40) % 3 * 4
        asked = [rng.normal(size=(n, 5)) for n in (7, 9)]
        found = curve.regression_logits(known, label, asked, 2.0)
        fitted = LogisticRegression(C=2.0, max_iter=1000).fit(known, label)
        for logits, notes in zip(found, asked, strict=True):
            assert logits.shape == (len(notes), 12)
            known_ones = fitted.predict_log_proba(notes)
            np.testing.assert_allclose(logits[:, [0, 4, 8]], known_ones)
            rest = np.delete(logits, [0, 4, 8], axis=1)
            np.testing.assert_allclose(np.exp(rest), 1 / 40)

    def test_tfidf_takes_the_c_with_the_lowest_validation_loss(self, monkeypatch):
        plan = dataclasses.replace(TINY, tfidf_c=(0.01, 10.0))
        notes = clinic_runs.material(None, curve.sizes_of(plan, 60), 1)
        truth = notes.val.label

        def answers(known, label, asked, c):
            """Right for one c alone, and otherwise always the same."""
            val = np.eye(12)[truth if c == best else (truth + 1) % 12]
            rest = [np.full((one.shape[0], 12), c) for one in asked[1:]]
            val[0] = 1 / 12  # so that there is a best temperature
            return [np.log(val + 0.1), *rest]

        monkeypatch.setattr(curve, "regression_logits", answers)
        for best in plan.tfidf_c:
            assert curve.learn_tfidf(plan, 60, 0)["c"] == best

    def test_tfidf_reads_training_notes_alone(self):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        plan = dataclasses.replace(TINY, tfidf_c=(10.0,))
        found = curve.learn_tfidf(plan, 150, 0)
        notes = clinic_runs.material(None, curve.sizes_of(plan, 150), 1)
        words = TfidfVectorizer(ngram_range=(1, 3), min_df=2, sublinear_tf=True)
        known = words.fit_transform(notes.train.notes.text)
        fitted = LogisticRegression(C=10.0, max_iter=1000)
        fitted.fit(known, notes.train.label)
        for name, part in [("right", notes.test), ("right_other", notes.other_words)]:
            said = fitted.predict(words.transform(part.notes.text))
            assert found[name] == list(said == part.label)
        assert (
            found["notes"]
            == len(notes.train.notes)
            < len(notes.train.notes) + len(notes.val.notes)
        )

    def test_answers_of_a_perfect_reader(self):
        notes = clinic_runs.material(None, curve.sizes_of(TINY, 24))
        test, other = (np.log(p.exact) for p in (notes.test, notes.other_words))
        found = curve.answered(notes, test, other)
        assert not np.any(found["excess"])
        for name, part in [("right", notes.test), ("right_other", notes.other_words)]:
            assert found[name] == list(part.exact.argmax(axis=1) == part.label)
        json.dumps(found)


# From points to numbers ---------------------------------------------------------------


@pytest.fixture(scope="module")
def asked():
    return curve.asked_notes(dataclasses.replace(TINY, test_patients=150))


def point(asked, right, patients=100, learner="minilm", other=None):
    """A point with one run that has these notes right."""
    other = np.zeros(len(asked.other.notes)) if other is None else other
    run = {"right": right, "right_other": other, "excess": np.zeros(len(right))}
    return curve.Point(learner, patients, [run | {"notes": 9}])


def shares(asked, *counts):
    """Points at 100, 200, 400 ... patients with so many notes right, from the first."""
    first = np.arange(len(asked.usual.notes))
    return [
        point(asked, (first < count).astype(int), 100 * 2**place)
        for place, count in enumerate(counts)
    ]


class TestAsked:
    def test_a_denial_stands_in_each_note_where_denials_mislead(self, asked):
        mentions = asked.usual.notes.mentions[asked.misleading]
        assert len(mentions) > 20
        assert (mentions == clinic.MENTIONS.index("negated")).any(axis=1).all()

    def test_there_the_blind_reader_gives_another_answer(self, asked):
        notes = asked.usual.notes
        exact, blind, rest = (
            HOME.posterior(notes, name).argmax(axis=1)
            for name in ("full note", "negation-blind", "hedge- and family-blind")
        )
        np.testing.assert_array_equal(asked.blind, blind == notes.label)
        for note in range(len(notes)):
            expected = blind[note] != exact[note] == rest[note]
            assert asked.misleading[note] == expected


class TestCrossing:
    def test_a_line_over_the_logarithm(self):
        assert curve.crossing([100, 400], [0.6, 0.8]) == pytest.approx(200)
        patients, reached = [75, 150, 300, 600], [0.2, 0.4, 0.65, 0.9]
        for goal in (0.3, 0.5, 0.7, 0.9):
            expected = math.exp(np.interp(goal, reached, np.log(patients)))
            assert curve.crossing(patients, reached, goal) == pytest.approx(expected)

    def test_the_first_time_counts(self):
        found = curve.crossing([100, 200, 400, 800], [0.5, 0.8, 0.6, 0.9], 0.65)
        assert found == pytest.approx(100 * 2**0.5)

    def test_reached_at_once_or_never(self):
        assert curve.crossing([100, 200], [0.7, 0.9]) == 100
        assert math.isnan(curve.crossing([100, 200], [0.5, 0.69]))


class TestNeeded:
    def test_the_number_with_its_interval(self, asked):
        best = asked.usual.exact.max(axis=1).sum()
        rng = np.random.default_rng(0)
        right = [
            (rng.random(len(asked.blind)) < p).astype(int) for p in (0.3, 0.5, 0.8)
        ]
        points = [point(asked, r, 100 * 2**n) for n, r in enumerate(right)]
        found = curve.needed([points], asked.usual)
        expected = curve.crossing([100, 200, 400], [r.sum() / best for r in right])
        assert found["value"] == pytest.approx(expected)
        assert found["unit"] == "patients" and found["n"] == 150
        assert 100 < found["low"] < found["value"] < found["high"] < 400
        doubled = [dataclasses.replace(p, patients=2 * p.patients) for p in points]
        ratio = curve.needed([doubled, points], asked.usual)
        assert ratio["value"] == pytest.approx(2) and "unit" not in ratio

    def test_a_goal_that_is_not_reached_has_no_number(self, asked):
        few = len(asked.blind) // 4
        never, reached = shares(asked, 5, few), shares(asked, 5, len(asked.blind))
        assert curve.needed([never], asked.usual) is None
        assert curve.needed([reached, never], asked.usual) is None
        assert curve.needed([never, reached], asked.usual) is None

    def test_a_goal_that_is_just_reached_has_no_interval(self, asked):
        just = math.ceil(curve.GOAL * asked.usual.exact.max(axis=1).sum())
        found = curve.needed([shares(asked, 5, just)], asked.usual)
        assert set(found) == {"value", "unit"} and found["value"] <= 200


class TestSummary:
    def curves(self, asked):
        """TF-IDF is the negation-blind reader, MiniLM in the end the exact one."""
        usual, other = asked.usual, asked.other
        exact = (usual.exact.argmax(axis=1) == usual.label).astype(int)
        blind = asked.blind.astype(int)
        everything = np.ones(len(other.notes))
        early, late = 100, 200
        return {
            name: [
                point(asked, first, early, name),
                point(asked, last, late, name, held_out),
            ]
            for name, first, last, held_out in [
                ("scratch", blind, blind, None),
                ("pretrained_small", blind, exact, None),
                ("minilm", blind, exact, everything),
                ("tfidf", blind, blind, None),
            ]
        }

    def test_the_numbers_of_known_readers(self, asked):
        found, series = curve.summary(self.curves(asked), asked)
        assert ALWAYS <= set(found) <= ALWAYS | WHERE_REACHED
        usual, there = asked.usual, asked.misleading
        exact = usual.exact.argmax(axis=1) == usual.label
        at = {name: one["value"] for name, one in found.items() if "gain" in name}
        on = "negation_notes_accuracy_"
        assert found[on + "minilm"] == found[on + "exact"]
        assert found[on + "tfidf"] == found[on + "negation_blind"]
        right, blind = exact[there].mean(), asked.blind[there].mean()
        assert found[on + "exact"]["value"] == pytest.approx(right)
        assert found[on + "exact"]["n"] == len(np.unique(usual.notes.patient[there]))
        lead = at["negation_notes_gain_minilm_over_tfidf"]
        assert lead == pytest.approx(right - blind)
        grown = (exact.mean() - asked.blind.mean()) / usual.ceiling
        assert at["over_ceiling_gain_of_last_point_minilm"] == pytest.approx(grown)
        assert at["held_out_gain_minilm_over_tfidf"] == 1
        assert found["patients"]["value"] == 200
        share = found["accuracy_over_ceiling_minilm"]["value"]
        assert share == pytest.approx(exact.mean() / usual.ceiling)
        assert series["negation_notes"] == there.sum()

    def test_who_reaches_the_goal(self, asked):
        found, series = curve.summary(self.curves(asked), asked)
        reached = {n for n in found if n.startswith("patients_for_goal")}
        goal = {"patients_for_goal_minilm", "patients_for_goal_pretrained_small"}
        assert reached == goal
        assert series["patients_for_goal"]["tfidf"] is None
        assert "times_fewer_patients_by_pretraining" not in found
        every = self.curves(asked)
        every["scratch"] = [
            dataclasses.replace(p, patients=4 * p.patients)
            for p in every["pretrained_small"]
        ]
        found, _ = curve.summary(every, asked)
        saved = found["times_fewer_patients_by_pretraining"]
        assert saved["value"] == pytest.approx(4)

    def test_intervals_are_by_patient_of_the_notes_in_question(self, asked):
        rng = np.random.default_rng(0)
        usual, elsewhere = (
            (notes, rng.integers(2, size=len(notes.notes)))
            for notes in (asked.usual, asked.other)
        )
        found = curve.row(point(asked, usual[1], other=elsewhere[1]), asked)
        for name, over, (notes, right) in [
            ("accuracy", "accuracy_over_ceiling", usual),
            ("held_out_accuracy", "held_out_over_ceiling", elsewhere),
        ]:
            who, best = notes.notes.patient, notes.exact.max(axis=1)
            mean = metrics.mean_by_patient(right, who)
            ratio = metrics.interval_by_patient(
                lambda right, best: right.sum() / best.sum(), who, right, best
            )
            assert found[name] == mean.as_metric()
            assert found[over] == pytest.approx(ratio.as_metric())

    def test_a_point_is_the_mean_over_its_seeds(self, asked):
        one = point(asked, asked.blind.astype(int))
        wrong = {**one.runs[0], "right": np.zeros(len(asked.blind))}
        both = curve.row(dataclasses.replace(one, runs=[one.runs[0], wrong]), asked)
        alone = curve.row(one, asked)
        assert both["seeds"] == 2
        half = alone["accuracy"]["value"] / 2
        assert both["accuracy"]["value"] == pytest.approx(half)
        assert [run["accuracy"] for run in both["runs"]] == [2 * half, 0]
        share = alone["accuracy_over_ceiling"]["value"]
        assert share == pytest.approx(asked.blind.mean() / asked.usual.ceiling)


# What clinic_runs shares --------------------------------------------------------------


class TestShared:
    def test_other_rows_for_the_same_notes(self):
        notes = clinic_runs.material(None, curve.sizes_of(TINY, 24))
        assert notes.train.rows == notes.test.rows == []
        found = clinic_runs.with_rows(
            notes, lambda part: [torch.tensor([len(text)]) for text in part.text]
        )
        for part in ("train", "val", "test", "other_words"):
            one, other = getattr(notes, part), getattr(found, part)
            assert [int(row) for row in other.rows] == [len(t) for t in one.notes.text]
            assert other.notes is one.notes and other.exact is one.exact
        assert found.labels == notes.labels

    def test_a_temperature_where_there_is_a_best_one(self):
        logits = np.array([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0]])
        label = np.array([0, 0, 1])
        found = clinic_runs.temperature(logits, label)
        assert metrics.softmax(logits / found)[0, 0] == pytest.approx(2 / 3)
        assert clinic_runs.temperature(logits, np.zeros(3, dtype=int)) == 1

    def test_the_seed_of_test_notes_is_refused(self, monkeypatch):
        monkeypatch.setattr(curve, "DRAWS", (clinic_runs.TEST_SEED,))
        with pytest.raises(MedlmError, match="the seed of test notes"):
            curve.learn_tfidf(TINY, 24, 0)
