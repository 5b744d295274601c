"""The study ct_speed: a fair race, counted right, with honest intervals."""

import inspect

import numpy as np
import pytest
import torch
from PIL import Image
from study_runs import run_tiny, tracked
from torch import nn

from medlm_utils import ct, resnet, runtime, training
from medlm_utils.studies import core, ct_speed

pytestmark = pytest.mark.usefixtures("on_the_cpu")

SIZE = ct_speed.SIZES["tiny"]


class Clock:
    """Stands for the watch; counts calls of a model instead of seconds."""

    calls = 0

    def __init__(self, device):
        self.first = None

    def start(self):
        self.first = Clock.calls

    def stop(self):
        return Clock.calls - self.first


@pytest.fixture
def clock(monkeypatch):
    """Every forward pass of a ResNet lasts one second."""
    forward = resnet.ResNet18.__base__.forward

    def counted(self, x):
        Clock.calls += 1
        return forward(self, x)

    monkeypatch.setattr(resnet.ResNet18.__base__, "forward", counted)
    monkeypatch.setattr(ct_speed, "Watch", Clock)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The smallest table."""
    folder = tmp_path_factory.mktemp("png")
    return ct_speed.Table(SIZE, runtime.PROFILES["cpu"], folder)


class TestSlices:
    def test_like_slices_and_the_same_again(self):
        hu = ct_speed.made_slices(3, 48)
        assert hu.shape == (3, 48, 48) and hu.dtype == np.int16
        assert hu.min() >= -1024 and -900 < hu.mean() < -300
        neighbours = np.corrcoef(hu[:, 1:].ravel(), hu[:, :-1].ravel())[0, 1]
        assert neighbours > 0.9  # no noise alone
        assert np.array_equal(hu, ct_speed.made_slices(3, 48))

    def test_files_show_the_same(self, tmp_path):
        hu = ct_speed.made_slices(4, 24)
        ct_speed.write_pngs(tmp_path, hu, np.array([0, 1, 1, 0]))
        found = sorted(
            p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")
        )
        assert found == [
            "abnormal/00001.png",
            "abnormal/00002.png",
            "normal/00000.png",
            "normal/00003.png",
        ]
        levels = np.asarray(Image.open(tmp_path / found[0]))
        assert np.abs(levels / 255 - ct.window(hu[1])).max() <= 0.5 / 255 + 1e-6


class TestRace:
    def test_the_steps_that_are_timed_are_those_that_count(self, table, clock):
        ours = SIZE.batch  # a second a step, so many slices
        assert table.way("ours") == table.way("ours_float32") == ours
        assert table.step("float32", "first") == ours
        assert table.plain("float32", "first", 1.0) == ours
        assert table.way("tutorial_alone") == SIZE.tutorial_batch

    def test_there_are_slices_enough_for_one_epoch(self):
        for size in ct_speed.SIZES.values():
            ours = (size.warm_up + size.steps) * size.batch
            theirs = (size.tutorial_warm_up + size.tutorial_steps) * size.tutorial_batch
            assert size.slices >= ours and size.slices >= theirs

    def test_what_the_tutorials_read(self, table):
        torch.manual_seed(0)
        loader = ct_speed.tutorial_loader(table.folder, SIZE, 0)
        images, label = next(iter(loader))
        shape = (SIZE.tutorial_batch, 3, SIZE.side, SIZE.side)
        assert images.shape == shape and set(label.tolist()) <= {0, 1}
        spread, mean = (
            torch.tensor(v).view(3, 1, 1)
            for v in (resnet.IMAGENET_STD, resnet.IMAGENET_MEAN)
        )
        grey = images * spread + mean
        assert grey.min() > -0.01 and grey.max() < 1.01
        assert torch.allclose(grey[:, 0], grey[:, 2], atol=1e-5)

    def test_the_ready_batches_are_of_the_same_slices(self, table):
        seen = torch.cat([images for images, _ in table.ready])
        assert len(seen) == (SIZE.warm_up + SIZE.steps) * SIZE.batch
        one = ct.to_tensor(table.hu[:1])[0]
        assert (seen - one).abs().amax((1, 2, 3)).min() == 0

    def test_the_layouts(self, table):
        last, first = table._model("last"), table._model("first")
        weight = last.layer1[0].conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert first.layer1[0].conv1.weight.is_contiguous()
        pairs = zip(last.parameters(), first.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)

    def test_the_plain_loop_learns(self, table):
        model = table._model("first")
        before = [p.detach().clone() for p in model.parameters()]
        ct_speed.seconds_of_plain_loop(model, table.ready, 1, "float32", "cpu")
        pairs = zip(model.parameters(), before, strict=True)
        assert all(not torch.equal(a, b) for a, b in pairs)

    def test_the_clipping_is_ours(self, table):
        default = inspect.signature(training.fit).parameters["clip"].default
        timed = ct_speed.contestants("bfloat16")
        assert timed["plain_float32_first"].keywords["clip"] == default
        assert timed["bare_float32_first"].keywords["clip"] is None
        moved = []
        for clip in (None, 1e-9):
            model = table._model("first")
            before = model.layer4[0].conv1.weight.detach().clone()
            ct_speed.seconds_of_plain_loop(
                model, table.ready, 1, "float32", "cpu", clip
            )
            moved.append(
                float((model.layer4[0].conv1.weight.detach() - before).abs().max())
            )
        assert moved[1] < moved[0] / 10  # what is left is the decay of weights

    def test_who_takes_part(self):
        fast = ct_speed.contestants("bfloat16")
        assert list(fast) == [
            *ct_speed.WAYS,
            "step_float32_last",
            "step_float32_first",
            "step_bfloat16_last",
            "step_bfloat16_first",
            "plain_float32_first",
            "bare_float32_first",
            "plain_bfloat16_last",
            "bare_bfloat16_last",
        ]
        assert "plain_float32_last" in ct_speed.contestants("float32")
        assert "step_float16_last" in ct_speed.contestants("float16")


class TestOperations:
    def test_counted_by_hand(self):
        model = resnet.build(2)
        layers, side = [], 64

        def note(layer, inputs, output):
            layers.append((layer, output.shape[-1]))

        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(note)
        with torch.no_grad():
            model.eval()(torch.zeros(1, 1, side, side))
        forward = [
            2 * layer.weight.numel() * (out**2 if isinstance(layer, nn.Conv2d) else 1)
            for layer, out in layers
        ]
        # Twice as much backward; but nobody asks for the gradient of the image.
        expected = 3 * sum(forward) - forward[0]
        assert ct_speed.flops_of_step(model, side) == pytest.approx(expected)
        assert all(p.grad is None for p in model.parameters())


def made_row(**changed):
    names = ct_speed.contestants("bfloat16")
    speeds = {name: [10.0 * (n + 1)] * 6 for n, name in enumerate(names)}
    return {
        "slices_per_second": {**speeds, **changed},
        "fast_precision": "bfloat16",
        "matrix_rate": [4e11] * 6,
        "flops_per_slice": 1e9,
    }


class TestComparisons:
    def test_against_the_faster_of_the_tutorials(self):
        row = made_row(ours=[90.0] * 6, tutorial=[30.0] * 6, tutorial_alone=[45.0] * 6)
        assert ct_speed._metrics(row)["ratio_vs_tutorial"]["value"] == 2
        row = made_row(ours=[90.0] * 6, tutorial=[30.0] * 6, tutorial_alone=[15.0] * 6)
        assert ct_speed._metrics(row)["ratio_vs_tutorial"]["value"] == 3

    def test_which_is_divided_by_which(self):
        row = made_row(
            step_float32_last=[20.0] * 6,
            step_float32_first=[10.0] * 6,
            step_bfloat16_last=[60.0] * 6,
            step_bfloat16_first=[15.0] * 6,
            plain_float32_first=[8.0] * 6,
            plain_bfloat16_last=[50.0] * 6,
            bare_float32_first=[4.0] * 6,
            bare_bfloat16_last=[30.0] * 6,
            ours=[54.0] * 6,
        )
        got = {n: m["value"] for n, m in ct_speed._metrics(row).items()}
        assert got["ratio_vs_plain_float32"] == 1.25
        assert got["ratio_vs_plain_fast"] == 1.2
        assert got["ratio_vs_bare_float32"] == 2.5
        assert got["ratio_vs_bare_fast"] == 2
        assert got["channels_last_gain_float32"] == 2
        assert got["channels_last_gain_bfloat16"] == 4
        assert got["bfloat16_gain_last"] == 3
        assert got["bfloat16_gain_first"] == 1.5
        assert got["pipeline_share"] == 0.9
        assert got["share_of_matrix_rate"] == pytest.approx(100 * 60e9 / 4e11)

    def test_pairs_of_one_repeat(self):
        slow = np.array([1.0, 2, 3, 4, 5, 6])  # a machine that others use too
        row = made_row(
            step_float32_first=list(3 * slow), plain_float32_first=list(2 * slow)
        )
        ratio = ct_speed._metrics(row)["ratio_vs_plain_float32"]
        assert ratio["low"] == ratio["high"] == 1.5


@pytest.mark.slow
@pytest.mark.enable_socket  # processes that read files hand them over through one
class TestTiny:
    def test_the_record_and_taken_up_again(self, tmp_path, monkeypatch):
        before, orders = tracked(), []
        for kind in ("way", "step", "plain"):
            method = getattr(ct_speed.Table, kind)

            def noted(self, method=method, **chosen):
                orders.append(tuple(chosen.values()))
                return method(self, **chosen)

            monkeypatch.setattr(ct_speed.Table, kind, noted)
        record = run_tiny(ct_speed, tmp_path)
        fast = record["series"]["fast_precision"]
        names = list(ct_speed.contestants(fast))
        assert len(orders) == 2 * len(names)
        first, second = orders[: len(names)], orders[len(names) :]
        assert set(first) == set(second) and len(set(first)) == len(names)
        assert second == [*first[1:], first[0]]  # another one begins
        metrics = record["metrics"]
        assert {f"slices_per_second_{name}" for name in names} < set(metrics)
        for metric in metrics.values():
            assert 0 < metric["low"] <= metric["value"] <= metric["high"]
            assert metric["n"] == SIZE.repeats
        assert record["series"]["threads"] == torch.get_num_threads()
        assert record["command"] == "python -m medlm_utils.studies.ct_speed --tiny"
        assert tracked() == before
        monkeypatch.setattr(ct_speed, "made_slices", None)  # nothing is timed anew
        assert run_tiny(ct_speed, tmp_path)["metrics"] == metrics


def test_the_intervals_need_six_repeats():
    sizes = [ct_speed.SIZES[name] for name in ("cpu", "gpu")]
    for size in sizes:
        inner = core.over_repeats(list(range(size.repeats)))
        assert inner["high"] - inner["low"] == size.repeats - 1
        assert size.repeats >= 6
