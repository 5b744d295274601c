"""ct.py: Hounsfield units against hand numbers, splits, batches."""

import math

import numpy as np
import pytest
import torch

from medlm_utils import ct
from medlm_utils.runtime import MedlmError

# Hounsfield units and windows ---------------------------------------------------------


def test_a_window_goes_from_black_to_white():
    assert (ct.LUNG.low_hu, ct.LUNG.high_hu) == (-1350, 150)
    assert (ct.MEDIASTINUM.low_hu, ct.MEDIASTINUM.high_hu) == (-160, 240)
    grey = ct.window([-2000, -1350, -600, 150, 3000])
    np.testing.assert_allclose(grey, [0, 0, 0.5, 1, 1])
    assert grey.dtype == np.float32
    np.testing.assert_allclose(ct.window(-60, ct.MEDIASTINUM), 0.25)


def test_a_window_needs_a_width_and_numbers():
    with pytest.raises(MedlmError, match="0 HU wide"):
        ct.window([0.0], ct.Window(0, 0))
    with pytest.raises(MedlmError, match="value of air, -1000 HU"):
        ct.window([math.nan])


def test_to_tensor_is_the_same_for_every_image():
    hu = np.array([[[-600, 150]], [[-600, -600]]], np.int16)
    tensor = ct.to_tensor(hu)
    assert tensor.shape == (2, 1, 1, 2) and tensor.dtype == torch.float32
    assert tensor[0, 0, 0, 0] == tensor[1, 0, 0, 0] == 0.5  # no min-max of an image
    assert ct.to_tensor(hu[0]).shape == (1, 1, 1, 2)


def test_pictures_have_no_window():
    grey = np.array([[0, 51, 255]], np.uint8)
    torch.testing.assert_close(
        ct.to_tensor(grey, None)[0, 0, 0], torch.tensor([0.0, 0.2, 1.0])
    )
    with pytest.raises(MedlmError, match="no Hounsfield units"):
        ct.to_tensor(grey)
    with pytest.raises(MedlmError, match="go from -1000 to 0"):
        ct.to_tensor(np.array([[-1000.0, 0.0]]), None)
    with pytest.raises(MedlmError, match=r"shape \(3,\)"):
        ct.to_tensor(np.zeros(3))


# Splits -------------------------------------------------------------------------------


def some_patients(count=60, slices=3):
    return np.repeat([f"p{n}" for n in range(count)], slices)


def test_no_patient_is_on_two_sides_and_every_row_on_one():
    patients = some_patients()[np.random.default_rng(0).permutation(180)]
    parts = ct.split(patients, (0.5, 0.3, 0.2), seed=1)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(180))
    assert [len(part) for part in parts] == [90, 54, 36]
    sides = [set(patients[part]) for part in parts]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 60
    ct.check_apart(*(patients[part] for part in parts))


def test_the_seed_draws_the_split():
    one, again, other = (ct.split(some_patients(), (0.5, 0.5), s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one[0], again[0])
    assert set(one[0]) != set(other[0])


def test_each_label_gets_the_same_shares():
    patients, label = some_patients(), np.repeat(np.arange(60) < 12, 3).astype(int)
    label[1] = 0  # an abnormal patient has normal slices too
    for seed in range(5):
        train, test = ct.split(patients, (0.75, 0.25), seed, label)
        abnormal = {p for p, y in zip(patients, label, strict=True) if y}
        assert len(abnormal & set(patients[train])) == 9
        assert len(abnormal & set(patients[test])) == 3
        assert len(set(patients[test])) == 15


@pytest.mark.parametrize(
    "patients, said",
    [
        (None, "There are no patients; .* so none is made"),
        ([], "at least one"),
        (["a", ""], "row 1 .* is ''"),
        (["a", " "], "row 1"),
        (["a", None], "row 1 .* is None"),
        ([1.0, math.nan], "row 1 .* is nan"),
        ([["a"]], r"shape \(1, 1\)"),
    ],
)
def test_without_patients_no_split_is_made(patients, said):
    with pytest.raises(MedlmError, match=said):
        ct.split(patients, (0.5, 0.5), 0)
    with pytest.raises(MedlmError, match=said):
        ct.check_apart(patients)


def test_bad_shares_and_labels():
    for shares in ((0.5, 0.4), (1.5, -0.5), ()):
        with pytest.raises(MedlmError, match="expected shares above 0"):
            ct.split(some_patients(), shares, 0)
    with pytest.raises(MedlmError, match="part 0 would have none"):
        ct.split(["a", "a"], (0.5, 0.5), 0)
    with pytest.raises(MedlmError, match="one whole number a row"):
        ct.split(some_patients(), (0.5, 0.5), 0, np.zeros(180))


def test_a_patient_in_two_parts_is_named():
    with pytest.raises(
        MedlmError, match=r"1 patients are in part 0 and in part 2 .*: b"
    ):
        ct.check_apart(["a", "b"], ["c"], ["b", "d"])


def test_scores_by_patient():
    patient, score = ["b", "a", "b", "b"], [0.5, 0.2, 0.9, 0.0]
    names, most = ct.by_patient(patient, score)
    assert names.tolist() == ["a", "b"]
    np.testing.assert_allclose(most, [0.2, 0.9])
    np.testing.assert_allclose(ct.by_patient(patient, score, "mean")[1], [0.2, 1.4 / 3])
    np.testing.assert_allclose(
        ct.by_patient(patient, score, "noisy-or")[1], [0.2, 0.95]
    )
    assert ct.by_patient(["a", "a"], [1.0, 0.3], "noisy-or")[1] == 1
    with pytest.raises(MedlmError, match="probabilities"):
        ct.by_patient(["a"], [1.5], "noisy-or")
    with pytest.raises(MedlmError, match="one of max, mean, noisy-or"):
        ct.by_patient(["a"], [1.5], "median")
    with pytest.raises(MedlmError, match="one finite score"):
        ct.by_patient(["a"], [1.5, 2])


# Batches ------------------------------------------------------------------------------


def some_slices(count=26, side=16, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(-1000, 400, (count, side, side)).astype(np.int16)


def test_every_slice_is_seen_once_an_epoch():
    images = some_slices()
    batches = ct.SliceBatches(images, np.arange(26), 8, seed=3)
    assert len(batches) == 4
    for number in (0, 1):
        seen = list(batches.epoch(number))
        assert sorted(len(labels) for _, labels in seen) == [6, 6, 7, 7]
        order = torch.cat([labels for _, labels in seen])
        assert sorted(order.tolist()) == list(range(26))
        found = torch.cat([x for x, _ in seen])
        torch.testing.assert_close(found, ct.to_tensor(images[order.numpy()]))
    first = torch.cat([labels for _, labels in batches.epoch(0)])
    assert not torch.equal(first, order)


@pytest.mark.parametrize("augment", [None, ct.Augment()])
def test_a_batch_depends_on_seed_and_step_alone(augment):
    def make(seed):
        return ct.SliceBatches(some_slices(), np.arange(26) % 2, 8, seed, augment)

    batches, again = make(5), make(5)
    torch.manual_seed(0)
    one, two = batches.at(9), batches.at(2)
    torch.manual_seed(1)
    other_way = again.at(2), again.at(9)
    for a, b in ((one, other_way[1]), (two, other_way[0])):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert not torch.equal(make(6).at(9)[0][:5], one[0][:5])
    alike = ct.SliceBatches(np.repeat(some_slices(1), 8, 0), [0] * 8, 8, 5, augment)
    assert torch.equal(alike.at(0)[0], alike.at(1)[0]) == (augment is None)
    in_epoch = list(batches.epoch(2))[1]
    assert torch.equal(in_epoch[0], one[0])


def test_numbers_can_be_predicted_too():
    _, labels = ct.SliceBatches(some_slices(4), [0.5, 1, 2, 3], 4).at(0)
    assert labels.dtype == torch.float32 and labels.sum() == 6.5
    _, labels = ct.SliceBatches(some_slices(4), [0, 1, 2, 3], 4).at(0)
    assert labels.dtype == torch.int64


@pytest.mark.parametrize(
    "images, labels, size",
    [
        (some_slices(4)[0], [0], 2),
        (some_slices(4), [0, 1, 0], 2),
        (some_slices(4), [0.0, 1.0, 0.0, math.nan], 2),
        (some_slices(4), [0, 1, 0, -1], 2),
        (some_slices(4), [0, 1, 0, 1], 0),
        (some_slices(4)[:0], [], 1),
    ],
)
def test_bad_batches(images, labels, size):
    with pytest.raises(MedlmError, match="expected"):
        ct.SliceBatches(images, labels, size)


# Augmentation -------------------------------------------------------------------------

NOTHING = {"shift": 0, "rotate_degrees": 0, "scale": 0, "noise": 0, "gain": 0}


def smooth_images(count=6, side=32):
    """Blobs whose place, size and direction can be read off."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    blob = np.exp(-((x - 0.1) ** 2 / 0.02 + (y + 0.05) ** 2 / 0.005))
    return torch.from_numpy(np.repeat(blob[None, None], count, 0)).float()


def moments(image):
    """Centre (x, y), spread and direction of a blob, in pixels and degrees."""
    weights = image[0].double().numpy()
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]]
    total = weights.sum()
    cx, cy = (x * weights).sum() / total, (y * weights).sum() / total
    dx, dy = x - cx, y - cy
    xx, yy, xy = ((a * b * weights).sum() / total
                  for a, b in ((dx, dx), (dy, dy), (dx, dy)))  # fmt: skip
    return cx, cy, xx + yy, np.degrees(0.5 * np.arctan2(2 * xy, xx - yy))


def test_without_changes_nothing_changes():
    images = torch.rand(5, 1, 12, 12)
    torch.testing.assert_close(ct.Augment(**NOTHING)(images, 0), images)


@pytest.mark.parametrize(
    "name, place, most",
    [("shift", 0, 0.1 * 32), ("shift", 1, 0.1 * 32), ("rotate_degrees", 3, 15)],
)
def test_shifts_and_turns_are_as_large_as_said(name, place, most):
    limit = 0.1 if name == "shift" else 15
    images = smooth_images(60)
    changed = ct.Augment(**NOTHING | {name: limit})(images, 1)
    start = moments(images[0])[place]
    found = np.array([moments(image)[place] - start for image in changed])
    assert np.abs(found).max() <= most * 1.02 + 0.05
    assert found.max() > 0.8 * most and found.min() < -0.8 * most


def test_scale_is_as_large_as_said():
    images = smooth_images(60)
    changed = ct.Augment(**NOTHING | {"scale": 0.2})(images, 1)
    start = moments(images[0])[2]
    zoom = np.sqrt([moments(image)[2] / start for image in changed])
    assert 0.79 < zoom.min() < 0.84 and 1.13 < zoom.max() < 1.21


def test_a_turn_keeps_shapes_on_images_that_are_not_square():
    tall = torch.zeros(40, 1, 48, 24)
    tall[:, :, 20:28, 8:16] = 1
    changed = ct.Augment(**NOTHING | {"rotate_degrees": 45})(tall, 0)
    area = changed.sum((1, 2, 3))
    np.testing.assert_allclose(area, 64, rtol=0.06)
    spread = [moments(image)[2] for image in changed]
    np.testing.assert_allclose(spread, spread[0], rtol=0.06)


@pytest.mark.parametrize("name, axis", [("flip_horizontal", 3), ("flip_vertical", 2)])
def test_flips_are_off_and_flip_half_of_the_images(name, axis):
    images = torch.rand(200, 1, 4, 4)
    changed = ct.Augment(**NOTHING | {name: True})(images, 0)
    kept = torch.isclose(changed, images, atol=1e-5).all(-1).all(-1).squeeze()
    mirrored = torch.isclose(changed, images.flip(axis), atol=1e-5)
    mirrored = mirrored.all(-1).all(-1).squeeze()
    assert (kept ^ mirrored).all() and 75 < mirrored.sum() < 125
    assert not getattr(ct.Augment(), name)


def test_noise_and_gain():
    images = torch.full((40, 1, 24, 24), 0.5)
    noisy = ct.Augment(**NOTHING | {"noise": 0.05})(images, 0)
    assert float((noisy - images).std()) == pytest.approx(0.05, rel=0.05)
    brighter = ct.Augment(**NOTHING | {"gain": 0.1})(images, 0)
    assert (brighter.std((1, 2, 3)) < 1e-6).all()
    means = brighter.mean((1, 2, 3)) / 0.5
    assert 0.9 <= means.min() < 0.92 and 1.08 < means.max() <= 1.1
    assert ct.Augment(noise=1.0)(images, 0).amax() == 1  # grey stays grey


def test_a_change_that_is_too_large():
    for name in ("shift", "scale", "noise", "gain", "rotate_degrees"):
        with pytest.raises(MedlmError, match=f"{name} is -1"):
            ct.Augment(**{name: -1})
    with pytest.raises(MedlmError, match=r"expected 0 to 0\.5"):
        ct.Augment(shift=0.6)


def test_crops_that_cut_the_lesion_out_are_counted_as_by_hand():
    from torchvision.transforms import RandomResizedCrop

    masks = np.zeros((3, 32, 32), bool)
    masks[0, 3:8, 4:9] = masks[1, 14:20, 12:20] = True  # the third has none
    found = ct.share_cut_out(masks, draws=50, seed=4)
    torch.manual_seed(4)
    lost = 0
    for _ in range(50):
        y, x, h, w = RandomResizedCrop.get_params(
            torch.empty(3, 32, 32), [0.08, 1.0], [3 / 4, 4 / 3]
        )
        for mask in masks[:2]:
            lost += mask[y : y + h, x : x + w].sum() < 0.5 * mask.sum()
    assert found == pytest.approx(lost / 100) and 0 < found < 1
    assert ct.share_cut_out(masks, draws=20, scale=(1.0, 1.0), ratio=(1.0, 1.0)) == 0
    state = torch.get_rng_state()
    ct.share_cut_out(masks, draws=2)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(MedlmError, match="at least one lesion"):
        ct.share_cut_out(masks[2:])
