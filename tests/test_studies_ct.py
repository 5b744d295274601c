"""studies/ct_*.py of networks: what they ask for, their arithmetic, and tiny runs."""

import dataclasses
import functools
import time

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from study_runs import a_study, run_tiny, tracked
from torch.nn import functional as F

from medlm_utils import ct, dicom, metrics, phantom, resnet, runtime
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import ct_learning_curve, ct_pretrain, ct_runs, ct_shortcut

pytestmark = pytest.mark.usefixtures("on_the_cpu")

KINDS = [kind.replace(" ", "_") for kind in phantom.KINDS]
METRICS = {
    ct_pretrain: {
        "kinds_auroc_float",
        "kinds_auroc_int8",
        "kinds_auroc_lost_by_int8",
        *(f"auroc_{kind}" for kind in KINDS),
        "counts_explained",
        "counts_explained_int8",
        "weights_megabytes",
        "slices_per_second",
        "training_minutes",
    },
    ct_learning_curve: {
        "patients",
        "auroc_gain_over_ceiling",
        "auroc_lead_of_finetuned_over_scratch",
        "auroc_oracle",
        *(
            f"{what}_{who}"
            for what in ("auroc", "gain_over_ceiling")
            for who in (
                "given_masks",
                "largest_opacity",
                "mean_lung_hu",
                *ct_learning_curve.LEARNERS,
            )
        ),
    },
    ct_shortcut: {
        "oracle_auroc",
        "oracle_auroc_second_hospital",
        "marker_alone_auroc",
        "oracle_with_marker_auroc",
        *(
            f"auroc_{name}_{way}"
            for name in ct_shortcut.TRAININGS
            for way in ct_shortcut.WAYS
        ),
        *(f"auroc_lost_without_marker_{name}" for name in ct_shortcut.TRAININGS),
    },
}
OF_CLOCK = {"slices_per_second", "training_minutes"}


def found_in(record):
    """A record without what a clock says."""
    metrics_ = {k: v for k, v in record["metrics"].items() if k not in OF_CLOCK}
    text = repr((metrics_, without_seconds(record["series"])))
    return text


def without_seconds(entry):
    if isinstance(entry, dict):
        return {k: without_seconds(v) for k, v in entry.items() if k != "seconds"}
    return [without_seconds(v) for v in entry] if isinstance(entry, list) else entry


@pytest.mark.slow
class TestTiny:
    @pytest.mark.parametrize("module", METRICS, ids=lambda m: m.__name__.split(".")[-1])
    def test_the_record_has_its_shape_and_is_the_same_again(
        self, module, tmp_path, capsys, monkeypatch
    ):
        monkeypatch.setattr(ct_runs, "DRAWS", 50)
        before, started = tracked(), time.process_time()
        record = run_tiny(module, tmp_path)
        assert time.process_time() - started < 60
        assert tracked() == before
        goals = {f"patients_for_goal_{n}" for n in ct_learning_curve.LEARNERS}
        assert set(record["metrics"]) - goals == METRICS[module]
        for metric in record["metrics"].values():
            assert set(metric) <= set(runtime.METRIC_FIELDS)
            if "low" in metric:
                assert metric["low"] <= metric["value"] <= metric["high"]
        capsys.readouterr()
        again = run_tiny(module, tmp_path)
        assert "parts are kept" in capsys.readouterr().err
        assert found_in(record) == found_in(again)

    def test_pretraining_again_gives_the_same_weights(self, tmp_path):
        files = []
        for name in ("one", "other"):
            run_tiny(ct_pretrain, tmp_path / name)
            files.append(tmp_path / name / "weights" / resnet.SIMULATED)
        (weights, about), (again, told) = map(resnet.load_int8, files)
        assert weights.keys() == again.keys() and about == told
        assert all(torch.equal(weights[name], again[name]) for name in weights)
        assert about["plan"] == dataclasses.asdict(ct_pretrain.PLANS["tiny"])
        assert about["image_passes"] == 6 * 8
        # A network that uses them has them, and learnt them: none is as it began.
        built = resnet.build(2, files[0], seed=3)
        began = ct_pretrain.new_model(runtime.SEED).network
        name = "layer4.1.conv2.weight"
        kept, fresh = (m.state_dict()[name] for m in (built, began))
        assert 0 < float((kept - fresh).abs().mean()) < float(fresh.abs().mean())


class TestShippedWeights:
    def test_they_are_of_the_recipe_that_is_here(self):
        path = resnet.simulated_weights()
        weights, about = resnet.load_int8(path)
        assert path.stat().st_size <= 12e6
        assert about["plan"] == dataclasses.asdict(ct_pretrain.PLANS["cpu"])
        assert about["targets"]["sizes_mm"] == list(ct_pretrain.SIZES_MM)
        assert about["window"] == list(ct.LUNG)
        assert f"phantom version {phantom.VERSION}," in about["data"]
        assert weights["conv1.weight"].shape == (64, 1, 7, 7)

    def test_they_are_what_the_record_is_of(self):
        record = runtime.study("ct_pretrain")
        about = resnet.load_int8(resnet.simulated_weights())[1]
        assert record["series"]["curve"][-1].items() >= about["validation"].items()


@functools.cache
def cohort():
    return phantom.draw(10, 4, "source", size=64)


class TestWhatASliceSays:
    def test_every_opacity_counts_once(self):
        found = ct_pretrain.find(cohort())
        rows = range(len(cohort()))
        for cells in (1, 2, 4):
            counts = ct_pretrain.count(found, rows, cells, 64 // cells)
            assert counts.shape == (30, 15, cells, cells)
            of_kind = counts.sum(dim=(2, 3)).reshape(30, 3, 5).sum(dim=2).numpy()
            expected = [
                [sum(o.kind == kind for o in some) for kind in phantom.KINDS]
                for some in cohort().opacities
            ]
            np.testing.assert_allclose(of_kind, expected, atol=1e-5)

    def test_its_middle_lies_where_the_mask_is(self):
        found = ct_pretrain.find(cohort())
        number = np.repeat(np.arange(30), np.diff(found.first))
        row, column = np.rint(found.row).astype(int), np.rint(found.column).astype(int)
        masked = cohort().lesions[number, row, column]
        large = found.place > 2  # small ones may fill no pixel
        assert large.sum() > 10
        assert (masked == found.kind + 1)[large].mean() > 0.9

    def test_sizes_are_shared_on_the_scale_of_the_logarithm(self):
        one = dataclasses.replace(
            cohort()[0],
            opacities=(
                (
                    phantom.Opacity("nodule", 0.0, 0.0, np.sqrt(12 * 18), 700.0),
                    phantom.Opacity("nodule", 0.0, 0.0, 90.0, 700.0),
                    phantom.Opacity("ground glass", 0.0, 0.0, 2.0, 300.0),
                ),
            ),
        )
        counts = ct_pretrain.true_counts(one)[0]
        expected = np.zeros((3, 5))
        expected[2] = [0, 0.5, 0.5, 0, 1]
        expected[0, 0] = 1
        np.testing.assert_allclose(counts, expected, atol=1e-6)

    def test_a_shift_by_a_cell_moves_the_map(self):
        found = ct_pretrain.find(cohort())
        rows = np.array([3, 7, 20])
        plain = ct_pretrain.count(found, rows, 4, 16)
        moved = ct_pretrain.count(found, rows, 4, 16, (0, 16))
        # No lung lies in the outer columns of cells, so nothing is pushed out.
        assert torch.equal(moved[..., 2], plain[..., 1])
        assert plain[..., 1].sum() > 0

    def test_images_and_masks_move_alike(self):
        images = np.arange(2 * 5 * 6).reshape(2, 5, 6)
        moved = ct_pretrain.moved(images, (1, -2), -9)
        np.testing.assert_array_equal(moved[:, 1:, :4], images[:, :-1, 2:])
        assert (moved[:, 0] == -9).all() and (moved[:, :, 4:] == -9).all()
        np.testing.assert_array_equal(ct_pretrain.moved(images, (0, 0), -9), images)

    def test_opaque_shares(self):
        masks = np.zeros((1, 16, 16), np.uint8)
        masks[0, :8, :4] = 2
        share = ct_pretrain.opaque(masks, 8)
        assert share.shape == (1, 3, 2, 2)
        assert share[0, 1, 0, 0] == 0.5 and share.sum() == 0.5

    def test_a_batch_depends_on_its_step_and_each_pass_has_every_slice(self):
        plan = dataclasses.replace(ct_pretrain.PLANS["tiny"], batch=10)
        batches = ct_pretrain.Batches(cohort(), plan, 0)
        again = ct_pretrain.Batches(cohort(), plan, 0)
        for one, other in zip(batches.at(5), again.at(5), strict=True):
            assert torch.equal(one, other)
        seen = np.concatenate([batches._rows(step) for step in range(3, 6)])
        assert sorted(seen) == list(range(30))
        images, share, middle, coarse = batches.at(0)
        assert images.shape == (10, 1, 64, 64) and share.shape == (10, 3, 8, 8)
        assert middle.shape == (10, 15, 4, 4) and coarse.shape == (10, 15, 2, 2)

    def test_answers_move_with_their_images(self, monkeypatch):
        shifts, plain = [], ct_pretrain.moved

        def noted(rows, shift, outside):
            shifts.append((shift, outside))
            return plain(rows, shift, outside)

        monkeypatch.setattr(ct_pretrain, "moved", noted)
        batches = ct_pretrain.Batches(cohort(), ct_pretrain.PLANS["tiny"], 0)
        rows = batches._rows(2)
        _, share, middle, coarse = batches.at(2)
        shift = next(shift for shift, outside in shifts if outside == dicom.AIR_HU)
        assert shift != (0, 0)
        masks = plain(cohort().lesions[rows], shift, 0)
        assert torch.equal(share, ct_pretrain.opaque(masks, 8))
        found = batches.found
        assert torch.equal(middle, ct_pretrain.count(found, rows, 4, 16, shift))
        assert torch.equal(coarse, ct_pretrain.count(found, rows, 2, 32, shift))

    def test_the_loss_is_none_where_all_is_right(self):
        batches = ct_pretrain.Batches(cohort(), ct_pretrain.PLANS["tiny"], 0)
        batch = batches.at(0)
        share = batch[1].clamp(1e-6, 1 - 1e-6)

        class Says(torch.nn.Module):
            def __init__(self, *maps):
                super().__init__()
                self.unused = torch.nn.Parameter(torch.zeros(1))
                self.maps = maps

            def forward(self, images):
                return self.maps

        right = Says(share.logit(), batch[2], batch[3])
        loss, slices = ct_pretrain.richer_loss(right, batch)
        entropy = F.binary_cross_entropy(share, share, reduction="none")
        least = ct_pretrain.OPAQUE_WEIGHT * entropy.mean(dim=(1, 2, 3)).sum()
        assert slices == 8
        assert float(loss) == pytest.approx(float(least), rel=1e-3)
        # One opacity too many in one cell: 1 for the cell, and what the slice costs.
        wrong = batch[3].clone()
        wrong[0, 0, 0, 0] += 1
        more, _ = ct_pretrain.richer_loss(Says(share.logit(), batch[2], wrong), batch)
        cost = 1 + ct_pretrain.WHOLE_WEIGHT
        assert float(more - loss) == pytest.approx(cost, rel=1e-3)

    def test_what_is_explained(self):
        truth = np.random.default_rng(0).poisson(1.0, (50, 3, 5)).astype(float)
        assert ct_pretrain.explained(truth, truth) == 1
        mean = np.broadcast_to(truth.mean(axis=0), truth.shape)
        assert ct_pretrain.explained(mean, truth) == pytest.approx(0)

    def test_kinds_are_named_by_their_own_counts(self):
        truth = ct_pretrain.true_counts(cohort())
        assert ct_pretrain.kinds_auroc(truth, cohort()) == 1
        assert ct_pretrain.kinds_auroc(-truth, cohort()) == 0

    def test_lost_weights_are_missed(self, tmp_path):
        with pytest.raises(MedlmError, match="is gone"):
            ct_pretrain.keep(tmp_path / "none", tmp_path / "to")


@functools.cache
def small():
    return ct_runs.patients(20, 9, size=32)


class TestRuns:
    def test_fewer_patients_are_among_more(self):
        few, more = (ct_runs.first(small(), count) for count in (5, 9))
        assert set(few.patient) < set(more.patient)
        assert len(few) == 15 and len(more) == 27
        with pytest.raises(MedlmError, match="21 of 20 patients"):
            ct_runs.first(small(), 21)

    def test_readers_are_one_a_patient(self):
        known = ct_runs.known(small())
        names, label, ratio = phantom.patient_log_ratio(small())
        order = np.argsort(names)
        assert list(known.patient) == list(names[order])
        np.testing.assert_array_equal(known.label, label[order])
        np.testing.assert_allclose(3 * known.readers["oracle"], ratio[order])
        sizes = [max([o.diameter_mm for o in some] + [0]) for some in small().opacities]
        largest = np.reshape(sizes, (20, 3)).max(axis=1)[order]
        agree = np.corrcoef(largest, known.readers["largest_opacity"])[0, 1]
        assert agree > 0.8

    def test_no_patient_is_on_two_sides(self):
        train, val = ct_runs.parts(small(), 0)
        ct.check_apart(train.patient, val.patient)
        assert len(train) + len(val) == 60
        plan = ct_learning_curve.PLANS["tiny"]
        test = ct_runs.patients(24, ct_runs.TEST_SEED, size=32)
        cohorts = [ct_learning_curve.labelled(plan, 10, seed) for seed in range(3)]
        ct.check_apart(test.patient, *(one.patient for one in cohorts))

    def test_gain(self):
        label = np.array([0, 0, 1, 1, 0, 1])
        oracle = np.array([0.1, 0.6, 0.5, 0.9, 0.2, 0.8])
        assert ct_runs.gain(label, oracle, oracle) == 1
        assert ct_runs.gain(label, np.zeros(6), oracle) == 0
        assert ct_runs.gain(label, -oracle, oracle) == pytest.approx(-1)

    def test_means_over_runs_and_differences(self):
        rng = np.random.default_rng(0)
        label = rng.integers(0, 2, 200)
        oracle, one, other = (label + s * rng.normal(size=200) for s in (0.3, 1, 5))
        mean = ct_runs.gain_of(label, oracle, one, other)
        each = [ct_runs.gain(label, s, oracle) for s in (one, other)]
        assert mean.value == pytest.approx(np.mean(each)) and mean.n == 200
        lead = ct_runs.lead_of(label, one, other)
        expected = metrics.auroc(label, one) - metrics.auroc(label, other)
        assert lead.value == pytest.approx(expected) and lead.low > 0

    def test_epochs(self):
        assert ct_runs.epochs_for(100, 950, 4) == 10
        assert ct_runs.epochs_for(1000, 950, 4) == 4

    def test_a_frozen_network_is_its_head_on_its_features(self, tmp_path):
        study = a_study(tmp_path, tiny=True)
        model, penalty = ct_runs.fit_frozen(study, small(), None, 0)
        assert penalty in ct_runs.PENALTIES
        fresh = resnet.build(2, None, seed=0)
        seen = resnet.features(fresh, small().images)
        weight, bias = ct_runs.head(seen, small().label, penalty)
        _, expected = ct.by_patient(small().patient, seen @ weight + bias, "mean")
        found = ct_runs.scores(study, model, small())
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert np.std(found) > 0.01

    def test_a_head_is_a_logistic_regression_on_equal_spreads(self):
        rng = np.random.default_rng(0)
        label = rng.integers(0, 2, 300)
        seen = rng.normal(size=(300, 4)) + label[:, None] * [1, 0, -0.5, 0]
        even = (seen - seen.mean(axis=0)) / seen.std(axis=0)
        model = LogisticRegression(C=0.01 / 3).fit(even, label)
        # Neither the scale nor the middle of a feature counts.
        weight, bias = ct_runs.head(seen * [9, 8, 10, 9] + 5, label, 3.0)
        ours = (seen * [9, 8, 10, 9] + 5) @ weight + bias
        np.testing.assert_allclose(ours, model.decision_function(even), atol=1e-3)

    def test_a_channel_that_hardly_answers_gets_no_large_weight(self):
        rng = np.random.default_rng(0)
        label = rng.integers(0, 2, 300)
        seen = rng.normal(size=(300, 4)) * [1, 1, 1, 1e-6]
        seen[:, 3] += 1e-6 * label
        weight, _ = ct_runs.head(seen, label, 1.0)
        assert abs(weight[3]) < 1e-3  # divided by its spread it would be thousands

    def test_the_penalty_is_chosen_on_other_patients(self):
        """Slices of a patient look alike: folds of slices would choose a low one."""
        patient, chosen = np.repeat(np.arange(40), 3), []
        for seed in range(5):
            rng = np.random.default_rng(seed)
            label = np.repeat(rng.integers(0, 2, 40), 3)
            alike = np.repeat(rng.normal(size=(40, 60)), 3, axis=0)
            chosen.append(ct_runs.best_penalty(alike, label, patient, 0))
        assert np.median(chosen) == max(ct_runs.PENALTIES)
        clear = alike + 8 * label[:, None]
        found = ct_runs.best_penalty(clear, label, patient, 0)
        assert found == min(ct_runs.PENALTIES)

    def test_normalisations_stay_as_they_are(self):
        model = resnet.build(2)
        before = {n: b.clone() for n, b in model.named_buffers()}
        images = ct.to_tensor(small().images[:8])
        model.eval()
        expected = model(images)
        ct_runs.keep_norms(model)
        model.train()
        assert torch.equal(model(images), expected)
        assert all(torch.equal(before[n], b) for n, b in model.named_buffers())
        assert model.layer4[1].bn2.weight.requires_grad


class TestCurve:
    def rows(self, **curves):
        return [
            {
                "learner": learner,
                "patients": count,
                "gain_over_ceiling": {"value": value},
            }
            for learner, values in curves.items()
            for count, value in zip((25, 100, 400), values, strict=True)
        ]

    def test_patients_for_a_goal(self):
        rows = self.rows(scratch=[0.1, 0.2, 0.5], finetuned=[0.3, 0.8, 1.0])
        needed = ct_learning_curve.needed
        assert needed(rows, "finetuned") == pytest.approx(200)  # half of the way, log
        assert needed(rows, "scratch") is None
        same = ct_learning_curve.equal_to(rows)
        # From .3 to .8 lies .5 at two fifths: 25 * 4 ** .4.
        assert same["finetuned_patients"] == pytest.approx(25 * 4**0.4)
        assert same["scratch_patients"] == 400

    def test_few_patients_have_more_runs(self):
        plan = ct_learning_curve.PLANS["cpu"]
        runs = [ct_learning_curve.seeds_of(plan, count) for count in plan.patients]
        assert runs[0] == 3 and runs[-1] == 1 and runs == sorted(runs, reverse=True)

    def test_at_least_400_test_patients(self):
        assert ct_learning_curve.PLANS["cpu"].test_patients >= 400
        assert ct_shortcut.PLANS["cpu"].test_patients >= 400


class TestShortcut:
    def test_nothing_is_left_in_blanked_lungs(self):
        blank = ct_shortcut.blanked(small())
        assert (blank.images[small().lungs] == ct_shortcut.LUNG_HU).all()
        outside = ~small().lungs
        np.testing.assert_array_equal(blank.images[outside], small().images[outside])

    def test_the_letter_is_worth_what_it_is(self):
        """By enumeration: 9 of 10 abnormal and 1 of 10 normal patients carry it."""
        ratio = ct_shortcut.marker_log_ratio(np.array([True, False]))
        np.testing.assert_allclose(np.exp(ratio), [9, 1 / 9])
        label = np.repeat([1, 0], 10)
        has = np.r_[np.arange(10) < 9, np.arange(10) < 1]
        letter = ct_shortcut.marker_log_ratio(has)
        assert metrics.auroc(label, letter) == pytest.approx(0.9)

    def test_who_carries_it(self):
        plan = dataclasses.replace(ct_shortcut.PLANS["tiny"], test_patients=100)
        asked = ct_shortcut.asked(plan)
        assert set(asked) == set(ct_shortcut.WAYS)
        plain = asked["no_marker"]
        label = ct_runs.known(plain).label
        has = ct_shortcut.carries(plain, asked["home"])
        swapped = ct_shortcut.carries(plain, asked["marker_reversed"])
        for share, ill in ((0.9, 1), (0.1, 0)):
            assert has[label == ill].mean() == pytest.approx(share, abs=0.15)
            assert swapped[label == ill].mean() == pytest.approx(1 - share, abs=0.15)
        ct.check_apart(plain.patient, asked["second_hospital"].patient)
        letter = asked["home"].images != plain.images
        assert not (letter & plain.lungs).any()

    def test_the_summary_tells_a_shortcut_from_reading(self):
        rng = np.random.default_rng(1)
        label = rng.integers(0, 2, 300)
        oracle = label + 0.7 * rng.normal(size=300)
        known = ct_runs.Known(np.arange(300), label, {"oracle": oracle})
        has = rng.random(300) < np.where(label == 1, 0.9, 0.1)
        letter = has.astype(float)
        nothing = np.zeros(300)
        by_letter = {
            "home": letter,
            "no_marker": nothing,
            "marker_reversed": 1 - letter,
            "lungs_blanked": letter,
            "nothing_left": nothing,
            "second_hospital": nothing,
        }
        by_reading = dict.fromkeys(ct_shortcut.WAYS, oracle) | {
            "lungs_blanked": nothing,
            "nothing_left": nothing,
        }
        found = ct_shortcut.summary(
            {
                "with_marker": {"scores": by_letter},
                "without_marker": {"scores": by_reading},
            },
            known,
            known,
            has,
        )
        alone = found["marker_alone_auroc"]["value"]
        assert found["auroc_with_marker_home"]["value"] == alone
        assert found["auroc_with_marker_marker_reversed"]["value"] < 0.2
        assert found["auroc_with_marker_lungs_blanked"]["low"] > 0.8
        assert found["auroc_without_marker_lungs_blanked"]["value"] == 0.5
        assert found["auroc_with_marker_nothing_left"]["value"] == 0.5
        lost = found["auroc_lost_without_marker_with_marker"]["value"]
        assert lost == pytest.approx(alone - 0.5)
        both = found["oracle_with_marker_auroc"]["value"]
        assert both > max(alone, found["oracle_auroc"]["value"])
