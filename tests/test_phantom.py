"""The simulated scanner against exact integrals, an oracle and its own promises."""

from __future__ import annotations

import dataclasses
import doctest
import hashlib
import math
import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from skimage.transform import iradon, radon

from medlm_utils import metrics, phantom
from medlm_utils.phantom import HOSPITALS, KINDS, WATER
from medlm_utils.runtime import MedlmError

PAGE = Path(__file__).resolve().parent.parent / "book" / "scanner.md"
SIGMAS = 4.5  # how far chance may carry a mean: about once in 150,000 tests
SIZE, SIDE = 64, 128  # of images and of the fine grid in tests of physics
SPACING = np.array([5.0])  # mm a pixel


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """No test touches the reader's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDLM_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def cohort():
    return phantom.draw(12, seed=3, prevalence=0.5)


def ellipse(x, y, a, b, hu, angle=0.0, base=None, side=SIDE):
    """(1, side, side): an ellipse painted into air, or over what is there."""
    painter = phantom._Painter(SPACING / phantom.FINER, side)
    if base is not None:
        painter.hu = base.copy()
    painter.disc(*(np.array([v]) for v in (x, y, a, b)), hu, angle)
    return painter.hu


def body_on(side):
    """Water with a lung, blood and bone in it."""
    hu = ellipse(0, 0, 140, 105, 0.0, side=side)
    hu = ellipse(-60, 0, 42, 60, -850.0, base=hu, side=side)
    hu = ellipse(60, 0, 36, 36, 60.0, base=hu, side=side)
    return ellipse(0, 68, 20, 20, 500.0, base=hu, side=side)


@pytest.fixture(scope="module")
def body():
    return body_on(SIDE)


def disc_of(x, y, radius):
    steps = (np.arange(SIZE) - (SIZE - 1) / 2) * SPACING[0]
    return (steps - x) ** 2 + (steps[:, None] - y) ** 2 < radius**2


def exact_integrals(x, y, a, b, angle):
    """Line integrals of a unit ellipse for every view and bin, from the formula."""
    turns = np.arange(phantom.VIEWS)[:, None] * np.pi / phantom.VIEWS
    bins = (np.arange(SIDE) - (SIDE - 1) / 2) * SPACING[0] / phantom.FINER
    away = bins - x * np.cos(turns) - y * np.sin(turns)
    width2 = (a * np.cos(turns - angle)) ** 2 + (b * np.sin(turns - angle)) ** 2
    return 2 * a * b * np.sqrt(np.clip(width2 - away**2, 0, None)) / width2


class TestPhysics:
    @pytest.mark.parametrize(
        "shape", [(0, 0, 120, 90, 0.0), (30, -20, 60, 35, 0.4), (-50, 40, 25, 40, 1.2)]
    )
    def test_projections_are_the_line_integrals_of_an_ellipse(self, shape):
        hu = ellipse(*shape[:4], 1000.0, shape[4])
        got = phantom.project(hu, SPACING)[0] / WATER
        exact = 2 * exact_integrals(*shape)
        # The edge of the painted ellipse is soft over one fine pixel.
        assert np.abs(got - exact).mean() < 0.01 * exact.max()
        assert got.sum() == pytest.approx(exact.sum(), rel=2e-3)

    def test_projections_agree_with_radon(self, body):
        # Its middle is a pixel, ours lies between two: hence an odd side, and the mean
        # of two neighbours.
        odd = WATER * (1 + body_on(SIDE + 1)[0] / 1000)
        angles = np.arange(phantom.VIEWS) * 180 / phantom.VIEWS
        oracle = radon(odd, theta=-angles, circle=True).T * SPACING[0] / phantom.FINER
        oracle = (oracle[:, 1:] + oracle[:, :-1]) / 2
        got = phantom.project(body, SPACING)[0]
        assert np.corrcoef(got.ravel(), oracle.ravel())[0, 1] > 0.9999
        assert np.abs(got - oracle).mean() < 0.005 * got.max()

    @pytest.mark.parametrize("cutoff", [0.7, 0.84, 1.0])
    def test_hu_are_recovered_in_large_uniform_regions(self, body, cutoff):
        hu = phantom.reconstruct(phantom.project(body, SPACING), SPACING, cutoff)[0]
        for x, y, radius, true in (
            (-60, 0, 25, -850),
            (60, 0, 20, 60),
            (0, 68, 8, 500),
            (0, -60, 20, 0),
        ):
            assert hu[disc_of(x, y, radius)].mean() == pytest.approx(true, abs=2.5)

    def test_a_reconstruction_agrees_with_the_truth_and_with_iradon(self, body):
        sums = phantom.project(body, SPACING)
        ours = phantom.reconstruct(sums, SPACING, cutoff=1.0)[0]
        angles = np.arange(phantom.VIEWS) * 180 / phantom.VIEWS
        per_mm = iradon(sums[0].T, theta=-angles, filter_name="hann", circle=True) / (
            SPACING[0] / 2
        )
        theirs = 1000 * (per_mm / WATER - 1)
        theirs = theirs.reshape(SIZE, 2, SIZE, 2).mean(axis=(1, 3))
        inside = disc_of(0, 0, 140)
        assert np.corrcoef(ours[inside], theirs[inside])[0, 1] > 0.99
        # Its middle lies half a pixel beside ours, which costs it some HU.
        for x, y, radius in ((-60, 0, 25), (60, 0, 20), (0, -60, 20)):
            region = disc_of(x, y, radius)
            assert ours[region].mean() == pytest.approx(theirs[region].mean(), abs=20)
        true = body[0].reshape(SIZE, 2, SIZE, 2).mean(axis=(1, 3))
        assert np.median(np.abs(ours - true)[inside]) < 6

    def test_an_image_is_not_mirrored_or_turned(self):
        hu = ellipse(60, -40, 12, 12, 0.0)
        image = phantom.reconstruct(phantom.project(hu, SPACING), SPACING)[0]
        row, column = np.unravel_index(image.argmax(), image.shape)
        middle = (SIZE - 1) / 2
        assert (column - middle) * SPACING[0] == pytest.approx(60, abs=6)
        assert (row - middle) * SPACING[0] == pytest.approx(-40, abs=6)

    def test_length_does_not_depend_on_the_field_of_view(self):
        near = ellipse(0, 0, 50, 50, 0.0)
        sums = phantom.project(near, SPACING)
        assert phantom.project(near, 2 * SPACING) == pytest.approx(2 * sums, rel=1e-5)

    def test_noise_falls_with_the_root_of_the_dose(self, body):
        sums = phantom.project(body, SPACING)[0]
        water = disc_of(0, -60, 25)
        spread = []
        for photons in (1e5, 4e5, 1.6e6):
            images = [
                phantom.reconstruct(
                    phantom.count_photons(sums, photons, np.random.default_rng(n))[
                        None
                    ],
                    SPACING,
                )[0]
                for n in range(12)
            ]
            spread.append(np.std(images, axis=0)[water].mean())
        ratio = np.array(spread[:-1]) / spread[1:]
        assert ratio == pytest.approx([2, 2], rel=0.06)

    def test_counts_have_the_moments_of_poisson(self):
        sums = np.full((200, 500), 2.0, np.float32)
        got = phantom.count_photons(sums, 5e3, np.random.default_rng(0))
        counts = 5e3 * np.exp(-got)
        mean = 5e3 * math.exp(-2)
        error = math.sqrt(mean / counts.size)
        assert abs(counts.mean() - mean) < SIGMAS * error
        assert counts.var() == pytest.approx(mean, rel=0.03)

    def test_a_sharper_kernel_is_noisier(self, body):
        sums = phantom.project(body, SPACING)[0]
        noisy = phantom.count_photons(sums, 5e4, np.random.default_rng(1))[None]
        water = disc_of(0, -60, 25)
        soft, sharp = (
            phantom.reconstruct(noisy, SPACING, c, b)[0][water].std()
            for c, b in ((0.72, 0.0), (1.0, 0.35))
        )
        assert sharp > 1.3 * soft

    def test_a_large_signal_is_certain_and_a_faint_one_is_not(self, body):
        added = ellipse(-60, 0, 3, 3, 150.0, base=np.zeros_like(body))[0]
        clear = phantom.known_signal_auc(body[0], added, SPACING[0], 1e5)
        faint = phantom.known_signal_auc(body[0], added, SPACING[0], 30)
        assert clear > 0.9999
        assert 0.5 < faint < 0.9

    def test_the_known_signal_ceiling_agrees_with_drawn_counts(self, body):
        added = ellipse(-60, 0, 8, 8, 60.0, base=np.zeros_like(body))[0]
        photons, draws = 40.0, 800
        ceiling = phantom.known_signal_auc(body[0], added, SPACING[0], photons)
        both = np.concatenate([body, body + added])
        mean = photons * np.exp(-phantom.project(both, np.repeat(SPACING, 2)))
        weight = np.log(mean[1] / mean[0]).astype(float)
        seen = weight != 0  # the other bins tell nothing
        rng = np.random.default_rng(2)
        score = [rng.poisson(m[seen], (draws, seen.sum())) @ weight[seen] for m in mean]
        label = np.repeat([0, 1], draws)
        assert 0.6 < ceiling < 0.8
        assert metrics.auroc(label, np.ravel(score)) == pytest.approx(ceiling, abs=0.04)


def sample(density, rng, slices):
    """Opacities of many slices at once, drawn without the module's own code."""
    count = rng.poisson(density.rate, slices)
    owner = np.repeat(np.arange(slices), count)
    kind = rng.choice(len(KINDS), size=len(owner), p=density.kinds)
    size = np.array(density.median_mm)[kind] * rng.lognormal(
        0, density.sigma_log, len(owner)
    )
    contrast = rng.normal(
        np.array(density.contrast_hu)[kind], np.array(density.contrast_sd)[kind]
    )
    return owner, kind, size, contrast


def ratios(here, rng, slices, abnormal):
    """Log ratios of slices, from scipy's densities."""
    parts = [sample(here.benign, rng, slices)]
    if abnormal:
        parts.append(sample(here.abnormal, rng, slices))
    owner, kind, size, contrast = (np.concatenate(c) for c in zip(*parts, strict=True))

    def density(d):
        return (
            np.array(d.kinds)[kind]
            * scipy.stats.norm.pdf(
                np.log(size), np.log(np.array(d.median_mm)[kind]), d.sigma_log
            )
            * scipy.stats.norm.pdf(
                contrast, np.array(d.contrast_hu)[kind], np.array(d.contrast_sd)[kind]
            )
        )

    rate = here.abnormal.rate / here.benign.rate
    gain = np.log1p(rate * density(here.abnormal) / density(here.benign))
    return np.bincount(owner, gain, slices) - here.abnormal.rate


class TestOracle:
    @pytest.mark.parametrize("hospital", HOSPITALS)
    def test_a_density_integrates_to_one(self, hospital):
        size = np.linspace(0, 6, 400)
        contrast = np.linspace(-500, 1500, 800)
        for density in (HOSPITALS[hospital].benign, HOSPITALS[hospital].abnormal):
            total = 0.0
            for kind in range(len(KINDS)):
                s, c = np.meshgrid(size, contrast)
                g = np.exp(
                    phantom.log_density(density, np.full(s.shape, kind), np.exp(s), c)
                )
                total += scipy.integrate.trapezoid(
                    scipy.integrate.trapezoid(g, size, axis=1), contrast
                )
            assert total == pytest.approx(1, abs=1e-4)

    def test_the_ratio_agrees_with_the_densities_of_scipy(self, cohort):
        here = HOSPITALS["A"]
        for row, some in enumerate(cohort.opacities):
            total = -here.abnormal.rate
            for o in some:
                kind = KINDS.index(o.kind)
                g = [
                    d.rate
                    * d.kinds[kind]
                    * scipy.stats.norm.pdf(
                        math.log(o.diameter_mm / d.median_mm[kind]) / d.sigma_log
                    )
                    / d.sigma_log
                    * scipy.stats.norm.pdf(
                        o.contrast_hu, d.contrast_hu[kind], d.contrast_sd[kind]
                    )
                    for d in (here.benign, here.abnormal)
                ]
                total += math.log1p(g[1] / g[0])
            assert cohort.log_ratio[row] == pytest.approx(total, abs=1e-9)

    def test_the_mean_of_exp_llr_in_normal_patients_is_one(self):
        # E0[prod(1 + L1 g1 / L0 g0)] exp(-L1): by Campbell's theorem a sum of
        # integrals, here over a grid.
        here = HOSPITALS["A"]
        size, contrast = np.linspace(0.5, 6, 300), np.linspace(-200, 1300, 600)
        s, c = np.meshgrid(size, contrast)
        mean = 0.0
        for kind in range(len(KINDS)):
            k = np.full(s.shape, kind)
            one = np.array(
                [
                    [
                        phantom.log_ratio(
                            "A", k[:1, 0], np.exp(s[i, j : j + 1]), c[i, j : j + 1]
                        )
                        for j in range(0, 300, 60)
                    ]
                    for i in range(0, 600, 120)
                ]
            )
            g0 = np.exp(phantom.log_density(here.benign, k, np.exp(s), c))
            g1 = np.exp(phantom.log_density(here.abnormal, k, np.exp(s), c))
            factor = 1 + here.abnormal.rate * g1 / (here.benign.rate * g0)
            # The module's ratio of one opacity is this factor.
            assert np.exp(one + here.abnormal.rate) == pytest.approx(
                factor[::120, ::60], rel=1e-9
            )
            mean += scipy.integrate.trapezoid(
                scipy.integrate.trapezoid(g0 * factor, size, axis=1), contrast
            )
        total = math.exp(here.benign.rate * (mean - 1) - here.abnormal.rate)
        assert total == pytest.approx(1, abs=2e-3)

    def test_the_mean_of_exp_minus_llr_in_abnormal_patients_is_one(self):
        rng = np.random.default_rng(5)
        inverse = []
        for _ in range(4000):
            sorts = (HOSPITALS["A"].benign, HOSPITALS["A"].abnormal)
            drawn = [o for d in sorts for o in phantom._draw_opacities(rng, d)]
            inverse.append(math.exp(-phantom._ratio_of("A", drawn)))
        error = np.std(inverse) / math.sqrt(len(inverse))
        assert abs(np.mean(inverse) - 1) < SIGMAS * error

    def test_the_ceiling_is_where_it_should_be(self):
        rng = np.random.default_rng(6)
        patients = 20_000
        score = [
            ratios(HOSPITALS["A"], rng, 3 * patients, abnormal).reshape(-1, 3).sum(1)
            for abnormal in (False, True)
        ]
        label = np.repeat([0, 1], patients)
        assert 0.95 < metrics.auroc(label, np.concatenate(score)) < 0.975

    def test_the_drawn_cohort_has_that_ceiling(self):
        rng = np.random.default_rng(7)
        score, label = [], []
        for patient in range(3000):
            label.append(patient % 2)
            here = HOSPITALS["A"]
            sorts = (here.benign, here.abnormal)[: 1 + label[-1]]
            drawn = [
                o
                for _ in range(3)
                for d in sorts
                for o in phantom._draw_opacities(rng, d)
            ]
            score.append(phantom._ratio_of("A", drawn))
        independent = np.concatenate(
            [
                ratios(HOSPITALS["A"], rng, 60_000, abnormal).reshape(-1, 3).sum(1)
                for abnormal in (False, True)
            ]
        )
        ceiling = metrics.auroc(np.repeat([0, 1], 20_000), independent)
        got = metrics.auroc(label, score)
        error = math.sqrt(ceiling * (1 - ceiling) / 1500)  # an upper bound
        assert abs(got - ceiling) < SIGMAS * error

    def test_ratios_without_images_have_that_ceiling(self):
        rng = np.random.default_rng(12)
        patients = 20_000
        score = [
            ratios(HOSPITALS["A"], rng, 3 * patients, abnormal).reshape(-1, 3).sum(1)
            for abnormal in (False, True)
        ]
        ceiling = metrics.auroc(np.repeat([0, 1], patients), np.concatenate(score))
        label, ratio = phantom.draw_log_ratios(2 * patients, 1, prevalence=0.5)
        assert abs(label.mean() - 0.5) < SIGMAS * 0.5 / math.sqrt(2 * patients)
        error = math.sqrt(2 * ceiling * (1 - ceiling) / patients)  # an upper bound
        assert abs(metrics.auroc(label, ratio) - ceiling) < SIGMAS * error
        for one, drawn in enumerate(score):
            got = ratio[label == one]
            assert scipy.stats.ks_2samp(got, drawn).pvalue > 1e-5

    def test_size_alone_does_not_reach_the_ceiling(self):
        rng = np.random.default_rng(8)
        here, patients = HOSPITALS["A"], 10_000
        largest, score = [], []
        for abnormal in (False, True):
            state = rng.bit_generator.state
            score.append(
                ratios(here, rng, 3 * patients, abnormal).reshape(-1, 3).sum(1)
            )
            rng.bit_generator.state = state
            top = np.zeros(patients)
            for density in (here.benign, here.abnormal)[: 1 + abnormal]:
                owner, _, size, _ = sample(density, rng, 3 * patients)
                np.maximum.at(top, owner // 3, size)
            largest.append(top)
        label = np.repeat([0, 1], patients)
        ceiling = metrics.auroc(label, np.concatenate(score))
        assert metrics.auroc(label, np.concatenate(largest)) < ceiling - 0.03

    def test_a_patients_ratio_is_the_sum_of_its_slices(self, cohort):
        names, label, ratio = phantom.patient_log_ratio(cohort[::-1])
        assert list(names) == list(dict.fromkeys(cohort.patient[::-1]))
        for name, one, total in zip(names, label, ratio, strict=True):
            rows = cohort.patient == name
            assert set(cohort.label[rows]) == {one}
            assert total == pytest.approx(cohort.log_ratio[rows].sum())

    def test_neither_order_nor_stream_of_opacities_tells_their_sort(self, cohort):
        for some in cohort.opacities:
            size = [o.diameter_mm for o in some]
            assert size == sorted(size, reverse=True)


class TestCohort:
    def test_shapes_and_types(self, cohort):
        assert len(cohort) == 36
        assert cohort.images.shape == (36, 128, 128)
        assert cohort.images.dtype == np.int16
        assert cohort.lesions.dtype == np.uint8
        assert cohort.lungs.dtype == bool
        assert len(cohort.opacities) == 36
        assert set(cohort.scanner) <= set(HOSPITALS["A"].scanners)
        assert cohort.spacing_mm.shape == cohort.dose.shape == (36,)

    @pytest.mark.parametrize(
        ("hospital", "digest", "hu", "lung_hu"),
        [
            ("A", "3423d8b8894e93aa", -641.031, -754.579),
            ("B", "0270da9aa0f4c800", -706.779, -821.908),
            ("source", "b99b1a3b6bd3821b", -638.943, -712.937),
        ],
    )
    def test_this_version_is_frozen(self, hospital, digest, hu, lung_hu):
        """Weights and records rest on these pixels: a change needs a new VERSION."""
        some = phantom._scan(4, 2017, hospital, 3, 64, 0, 0.5)
        drawn = [
            [(o.kind, f"{o.diameter_mm:.5g}", f"{o.contrast_hu:.5g}") for o in of_slice]
            for of_slice in some.opacities
        ]
        assert hashlib.sha256(repr(drawn).encode()).hexdigest()[:16] == digest
        assert some.images.mean() == pytest.approx(hu, abs=0.05)
        assert some.images[some.lungs].mean() == pytest.approx(lung_hu, abs=0.2)

    def test_a_seed_repeats(self):
        one, two = (phantom._scan(2, 3, "A", 2, 64, 0, 0.5) for _ in range(2))
        assert np.array_equal(one.images, two.images)
        assert one.opacities == two.opacities

    def test_a_patient_does_not_depend_on_the_company(self):
        many = phantom.draw(20, seed=4, slices=2, size=32)
        few = phantom.draw(3, seed=4, slices=2, size=32, first_patient=15)
        rows = np.isin(many.patient, few.patient)
        assert rows.sum() == 6
        assert np.array_equal(many.label[rows], few.label)
        assert many[rows].opacities == few.opacities
        # Sums of many numbers may be rounded otherwise in another batch.
        assert np.abs(many.images[rows].astype(int) - few.images).max() <= 1

    def test_no_patient_is_on_two_sides(self):
        one = phantom.draw(5, seed=4, slices=1, size=32)
        two = phantom.draw(5, seed=4, slices=1, size=32, first_patient=5)
        other = phantom.draw(5, seed=5, slices=1, size=32)
        assert not set(one.patient) & (set(two.patient) | set(other.patient))
        assert not np.array_equal(one.images, two.images)

    def test_slices_of_a_patient_look_alike(self, cohort):
        small = (
            cohort.images.reshape(36, 32, 4, 32, 4).mean(axis=(2, 4)).reshape(36, -1)
        )
        away = ((small[:, None] - small[None]) ** 2).mean(axis=2)
        np.fill_diagonal(away, np.inf)
        nearest = cohort.patient[away.argmin(axis=1)]
        assert (nearest == cohort.patient).mean() > 0.9

    def test_a_patient_has_one_label_scanner_and_dose(self, cohort):
        for name in np.unique(cohort.patient):
            rows = cohort.patient == name
            for column in (cohort.label, cohort.scanner, cohort.dose):
                assert len(set(column[rows])) == 1

    def test_the_prevalence_is_kept(self):
        labels = [
            phantom.draw(n, seed=9, slices=1, size=32, prevalence=p).label.mean()
            for n, p in ((20, 0.0), (200, 0.3), (20, 1.0))
        ]
        assert labels[0] == 0 and labels[2] == 1
        assert abs(labels[1] - 0.3) < SIGMAS * math.sqrt(0.3 * 0.7 / 200)

    def test_tissues_have_their_ct_numbers(self, cohort):
        free = cohort.lungs & (cohort.lesions == 0)
        assert -870 < np.median(cohort.images[free]) < -780
        assert np.median(cohort.images[:, :6, 60:68]) == pytest.approx(-1000, abs=25)
        middle = cohort.images[:, 40:100, 20:108]
        assert (middle > 350).mean() > 0.005  # bone
        share = cohort.lungs.mean(axis=(1, 2))
        assert (share > 0.08).all() and (share < 0.35).all()

    def test_masks_lie_in_the_lungs_and_are_denser(self, cohort):
        inside = cohort.lesions > 0
        assert inside.any()
        assert (cohort.lungs[inside]).mean() > 0.97
        for row in np.flatnonzero(inside.any(axis=(1, 2))):
            free = cohort.lungs[row] & ~inside[row]
            image = cohort.images[row]
            assert np.median(image[inside[row]]) > np.median(image[free]) + 60

    def test_masks_have_the_drawn_area_and_place(self, cohort):
        checked = 0
        for row, some in enumerate(cohort.opacities):
            if len(some) != 1 or some[0].diameter_mm < 8:
                continue
            (o,) = some
            mask = cohort.lesions[row]
            assert set(np.unique(mask)) == {0, KINDS.index(o.kind) + 1}
            area = (mask > 0).sum() * cohort.spacing_mm[row] ** 2
            assert 0.55 < area / (np.pi * o.diameter_mm**2 / 4) < 1.2
            rows, columns = np.nonzero(mask)
            middle = (cohort.images.shape[1] - 1) / 2
            x = (columns.mean() - middle) * cohort.spacing_mm[row]
            y = (rows.mean() - middle) * cohort.spacing_mm[row]
            reach = 0.35 * o.diameter_mm + 2
            assert math.hypot(x - o.x_mm, y - o.y_mm) < reach
            checked += 1
        assert checked >= 5

    def test_the_area_of_an_outline_is_that_of_the_disc(self):
        for number in range(20):
            rng = np.random.default_rng(number)
            _, depth = phantom._shape(rng, number % 3, 20.0, 60.3, 58.8, 128)
            assert (depth > 0).sum() == pytest.approx(np.pi * 400, rel=0.02)

    def test_hospital_b_is_noisier(self):
        spread = []
        for hospital in ("A", "B"):
            some = phantom.draw(6, seed=3, hospital=hospital, slices=1)
            rough = (
                some.images[:, 2:-2, 2:-2]
                - (
                    some.images[:, 1:-3, 2:-2].astype(float)
                    + some.images[:, 3:-1, 2:-2]
                )
                / 2
            )
            body = np.abs(some.images[:, 2:-2, 2:-2]) < 150
            spread.append(np.median(np.abs(rough[body])))
        assert spread[1] > 1.5 * spread[0]

    @pytest.mark.parametrize("rows", [slice(3, 9), [1, 4], 5, np.arange(36) % 2 == 0])
    def test_rows_are_taken_together(self, cohort, rows):
        some = cohort[rows]
        numbers = np.atleast_1d(np.arange(36)[rows])
        assert len(some) == len(numbers)
        for field in dataclasses.fields(cohort):
            for one, number in zip(getattr(some, field.name), numbers, strict=True):
                assert np.array_equal(one, getattr(cohort, field.name)[number])

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ({"hospital": "C"}, "A, B, source"),
            ({"patients": 0}, "patients is 0"),
            ({"patients": 2.5}, "whole number"),
            ({"slices": 9}, "1 to 6"),
            ({"size": 100}, "multiple of 8"),
            ({"size": 512}, "32 to 192"),
            ({"first_patient": -1}, "first_patient is -1"),
            ({"seed": -3}, "seed is -3"),
            ({"prevalence": 1.5}, "0 to 1"),
        ],
    )
    def test_bad_arguments_are_explained(self, wrong, words):
        with pytest.raises(MedlmError, match=words):
            phantom.draw(**{"patients": 2, "seed": 0, **wrong})


class TestReaders:
    def by_patient(self, cohort, score):
        _, group = np.unique(cohort.patient, return_inverse=True)
        label = np.bincount(group, cohort.label) > 0
        return metrics.auroc(label, np.bincount(group, score))

    @pytest.mark.slow
    def test_each_reader_loses_something(self):
        many = phantom.draw(100, seed=11, slices=3, size=64, prevalence=0.5)
        oracle = self.by_patient(many, many.log_ratio)
        masks = self.by_patient(many, phantom.reader_given_masks(many))
        largest = self.by_patient(many, phantom.largest_opacity(many))
        mean = self.by_patient(many, phantom.mean_lung_hu(many))
        assert oracle + 0.02 > masks > largest > mean > 0.5
        assert masks > 0.9

    def test_the_reader_of_masks_measures_what_was_drawn(self, cohort):
        error = []
        for row, some in enumerate(cohort.opacities):
            kind, size, contrast = phantom._measured(cohort, row)
            if len(kind) == len(some) == 1 and some[0].diameter_mm > 12:
                assert KINDS[kind[0]] == some[0].kind
                error.append(
                    (
                        math.log(size[0] / some[0].diameter_mm),
                        contrast[0] - some[0].contrast_hu,
                    )
                )
        assert len(error) >= 5
        assert np.abs(np.median(error, axis=0)[0]) < 0.15
        assert np.abs(np.median(error, axis=0)[1]) < 90

    def test_a_clean_disc_is_measured_exactly(self, cohort):
        steps = np.arange(128) - 63.5
        away = np.hypot(steps + 20, steps[:, None])
        lungs = np.hypot(steps + 20, steps[:, None]) < 30
        mask = away < 6
        image = np.where(lungs, -850, 40)
        image[mask] = -550  # the rim, where the edge is blurred
        image[away < 4.5] = -300
        one = dataclasses.replace(
            cohort[0],
            images=image[None].astype(np.int16),
            lungs=lungs[None],
            lesions=2 * mask[None].astype(np.uint8),
        )
        kind, size, contrast = phantom._measured(one, 0)
        area = mask.sum() * one.spacing_mm[0] ** 2
        assert list(kind) == [1]
        assert np.pi * size[0] ** 2 / 4 == pytest.approx(area)
        assert contrast[0] == 550
        assert phantom.largest_opacity(one)[0] == size[0]

    def test_a_slice_without_opacity_has_the_least_score(self, cohort):
        empty = (cohort.lesions == 0).all(axis=(1, 2))
        score = phantom.reader_given_masks(cohort)
        assert score[empty] == pytest.approx(-HOSPITALS["A"].abnormal.rate)
        assert (phantom.largest_opacity(cohort)[empty] == 0).all()

    def test_mean_lung_hu_is_a_mean_over_the_lungs(self, cohort):
        got = phantom.mean_lung_hu(cohort)
        row = 7
        assert got[row] == pytest.approx(cohort.images[row][cohort.lungs[row]].mean())

    def test_scanners_lead_to_their_hospital(self):
        assert phantom.hospital_of("B1") == "B"
        with pytest.raises(MedlmError, match="No hospital has the scanner 'X9'"):
            phantom.hospital_of("X9")


class TestMarker:
    def test_all_or_none(self, cohort):
        marked = phantom.with_marker(cohort, 1.0, 0.0, seed=1)
        changed = (marked.images != cohort.images).any(axis=(1, 2))
        assert np.array_equal(changed, cohort.label == 1)

    def test_it_lies_in_a_corner_off_the_body(self, cohort):
        marked = phantom.with_marker(cohort, 1.0, 1.0, seed=1)
        rows, columns = np.nonzero((marked.images != cohort.images).any(axis=0))
        assert max(rows.max(), columns.max()) < 24
        under = cohort.images[:, : rows.max() + 1, : columns.max() + 1]
        assert (under < -900).all()
        assert set(np.unique(marked.images[marked.images != cohort.images])) == {1000}

    def test_a_patient_has_it_in_all_slices_or_in_none(self, cohort):
        marked = phantom.with_marker(cohort, 0.5, 0.5, seed=2)
        changed = (marked.images != cohort.images).any(axis=(1, 2)).reshape(-1, 3)
        assert (changed.all(axis=1) | ~changed.any(axis=1)).all()
        assert 0 < changed.mean() < 1

    def test_the_cohort_itself_stays(self, cohort):
        before = cohort.images.copy()
        phantom.with_marker(cohort, 1.0, 1.0, seed=1)
        assert np.array_equal(before, cohort.images)

    def test_a_share_is_a_probability(self, cohort):
        with pytest.raises(MedlmError, match="expected 0 to 1"):
            phantom.with_marker(cohort, 1.2, 0.0, seed=1)


class TestPage:
    @pytest.mark.slow
    def test_the_examples_and_numbers_of_the_page_are_true(self):
        plain = re.sub(r"^```.*$", "", PAGE.read_text(encoding="utf-8"), flags=re.M)
        example = doctest.DocTestParser().get_doctest(plain, {}, "scanner", None, 0)
        said: list[str] = []
        runner = doctest.DocTestRunner(verbose=False)
        runner.run(example, out=said.append)
        assert runner.tries >= 20
        assert runner.failures == 0, "".join(said)

    def test_the_table_of_the_page_is_that_of_the_densities(self):
        rows = re.findall(
            r"^\| (benign|abnormal) \| (.+) \| (.+)% \| (.+) \| (.+) ± (.+) \|$",
            PAGE.read_text(encoding="utf-8"),
            re.M,
        )
        assert HOSPITALS["A"].benign == HOSPITALS["B"].benign
        assert HOSPITALS["A"].abnormal == HOSPITALS["B"].abnormal
        assert rows == [
            (
                name,
                kind,
                f"{100 * density.kinds[k]:.0f}",
                f"{density.median_mm[k]:g}",
                f"{density.contrast_hu[k]:g}",
                f"{density.contrast_sd[k]:g}",
            )
            for name in ("benign", "abnormal")
            for density in (getattr(HOSPITALS["A"], name),)
            for k, kind in enumerate(KINDS)
        ]

    def test_the_prose_of_the_page_types_no_result(self):
        """Digits stand in tested blocks and tables, or are no result."""
        tested = r"(?s:^```.*?^```$)|^\|.*$"
        other = r"(?s:\$\$.*?\$\$)|\$[^$]*\$|`[^`]*`|^\d\. "
        page = PAGE.read_text(encoding="utf-8")
        prose = re.sub(f"{tested}|{other}", "", page, flags=re.M)
        prose = prose.replace("Chapter 5", "").replace("chapter 5", "")
        prose = re.sub(r"\{cite\}", "", prose)
        assert "chain of readers" in prose and re.findall(r"\d", prose) == []


class TestCache:
    ARGUMENTS: ClassVar = {"patients": 2, "seed": 6, "slices": 1, "size": 32}

    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MEDLM_CACHE_DIR", str(tmp_path / "cache"))
        return tmp_path / "cache" / "phantom"

    def count_scans(self, monkeypatch):
        scans = []
        real = phantom._scan

        def counted(*arguments):
            scans.append(arguments)
            return real(*arguments)

        monkeypatch.setattr(phantom, "_scan", counted)
        return scans

    def test_a_second_call_reads_the_same(self, folder, monkeypatch):
        scans = self.count_scans(monkeypatch)
        one, two = (phantom.draw(**self.ARGUMENTS) for _ in range(2))
        assert len(scans) == 1
        for field in dataclasses.fields(one):
            a, b = getattr(one, field.name), getattr(two, field.name)
            assert np.array_equal(a, b) if field.name != "opacities" else a == b
            assert type(a) is type(b)
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None)
        assert {p.suffix for p in folder.iterdir()} <= {".npz", ".sha256", ".lock"}

    @pytest.mark.parametrize(
        "other",
        [
            {"seed": 7},
            {"patients": 3},
            {"hospital": "B"},
            {"prevalence": 0.9},
            {"first_patient": 1},
            {"size": 40},
            {"slices": 2},
        ],
    )
    def test_other_parameters_have_other_names(self, other):
        names = {"hospital": "A", "prevalence": 0.4, "first_patient": 0}
        one = {**names, **self.ARGUMENTS}
        two = {**one, **other}
        keys = {phantom._key(p["hospital"], *sorted(p.items())) for p in (one, two)}
        assert len(keys) == 2

    def test_other_densities_have_another_name(self, monkeypatch):
        before = phantom._key("A", 1)
        here = HOSPITALS["A"]
        changed = dataclasses.replace(
            here, benign=dataclasses.replace(here.benign, rate=9.0)
        )
        monkeypatch.setitem(HOSPITALS, "A", changed)
        assert phantom._key("A", 1) != before

    @pytest.mark.parametrize("damage", ["flip", "cut", "no hash", "empty"])
    def test_a_damaged_cache_is_made_again(self, folder, monkeypatch, capsys, damage):
        one = phantom.draw(**self.ARGUMENTS)
        scans = self.count_scans(monkeypatch)
        (path,) = folder.glob("*.npz")
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 1
        if damage == "no hash":
            path.with_suffix(".sha256").unlink()
        ends = {"cut": 100, "empty": 0}.get(damage, len(content))
        path.write_bytes(content[:ends])
        two = phantom.draw(**self.ARGUMENTS)
        assert len(scans) == 1
        assert np.array_equal(one.images, two.images)
        assert capsys.readouterr().err.count("damaged; it is made again") == 1
        phantom.draw(**self.ARGUMENTS)
        assert len(scans) == 1

    def test_a_folder_that_cannot_be_written_means_no_cache(
        self, tmp_path, monkeypatch
    ):
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("MEDLM_CACHE_DIR", str(tmp_path / "file"))
        scans = self.count_scans(monkeypatch)
        for _ in range(2):
            assert len(phantom.draw(**self.ARGUMENTS)) == 2
        assert len(scans) == 2

    def test_a_full_disk_means_no_cache(self, folder, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(phantom.os, "replace", full)
        assert len(phantom.draw(**self.ARGUMENTS)) == 2
        assert {p.suffix for p in folder.iterdir()} <= {".lock"}
