"""resnet.py against torchvision, hand numbers and brute force."""

import copy
import math
import os

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from medlm_utils import ct, resnet, training
from medlm_utils.runtime import MedlmError


@pytest.fixture(scope="module")
def model():
    """From scratch, with running means that are not those of a new one."""
    return warmed(resnet.build(2, seed=1))


def warmed(net):
    """With the running means of some images, as after a training."""
    torch.manual_seed(0)
    normalisations = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for module in normalisations:
        module.momentum = None  # the mean of all batches
    net.train()
    with torch.no_grad():
        for _ in range(2):
            net(torch.rand(8, net.channels, 48, 48))
    for module in normalisations:
        module.momentum = 0.1
    return net.eval()


def weights_of(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


# From first principles ----------------------------------------------------------------


@pytest.mark.parametrize("inputs, outputs, stride", [(8, 8, 1), (8, 16, 2), (8, 12, 1)])
@pytest.mark.parametrize("mode", [True, False])
def test_a_block_is_that_of_torchvision(inputs, outputs, stride, mode):
    torch.manual_seed(0)
    ours = resnet.ResidualBlock(inputs, outputs, stride)
    down = None
    if ours.downsample is not None:
        down = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )
    theirs = models.resnet.BasicBlock(inputs, outputs, stride, down)
    theirs.load_state_dict(ours.state_dict())
    ours.train(mode), theirs.train(mode)
    x = torch.randn(4, inputs, 10, 14)
    for _ in range(2):  # in training mode the running means change
        torch.testing.assert_close(ours(x), theirs(x))
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor)


def test_the_twin_without_shortcut_adds_nothing():
    torch.manual_seed(0)
    block = resnet.ResidualBlock(4, 8, 2, shortcut=False).eval()
    assert block.downsample is None
    x = torch.randn(2, 4, 8, 8)
    plain = nn.Sequential(block.conv1, block.bn1, nn.ReLU(), block.conv2, block.bn2)
    torch.testing.assert_close(block(x), F.relu(plain(x)))


def test_the_shortcut_keeps_the_gradient_alive():
    with_, without = (resnet.gradients_by_depth(20, s) for s in (True, False))
    assert with_.shape == (20,)
    # With batch normalisation the gradient grows towards the input, and far more so
    # without shortcuts; without it, it dies.
    assert 2 < with_[0] < 50 and without[0] > 10 * with_[0]
    with_, without = (
        resnet.gradients_by_depth(20, s, normalise=False) for s in (True, False)
    )
    assert 0.1 < with_[0] < 10 and without[0] < 1e-10
    np.testing.assert_array_equal(with_, resnet.gradients_by_depth(
        20, True, normalise=False))  # fmt: skip


def test_gradients_are_those_of_finite_differences():
    """One block: the change of the output along a random direction, by hand."""
    found = resnet.gradients_by_depth(1, True, channels=2, size=4, seed=3)
    torch.manual_seed(3)
    block = resnet.ResidualBlock(2, 2).double()
    x, direction = torch.randn(8, 2, 4, 4).double(), torch.randn(8, 2, 4, 4).double()
    gradient = torch.zeros_like(x)
    with torch.no_grad():
        for place in range(x.numel()):
            step = torch.zeros(x.numel(), dtype=torch.double)
            step[place] = 1e-6
            step = step.view(x.shape)
            change = (block(x + step) - block(x - step)) / 2e-6
            gradient.view(-1)[place] = (change * direction).sum()
    expected = gradient.norm() / direction.norm()
    assert found[0] == pytest.approx(float(expected), rel=1e-3)


def test_parameters_counted_by_hand(model):
    # Two convolutions 3 x 3 and two normalisations a block; a shortcut 1 x 1 where the
    # number of channels changes.
    def block(inputs, outputs):
        shortcut = inputs * outputs + 2 * outputs if inputs != outputs else 0
        return 9 * inputs * outputs + 9 * outputs**2 + 4 * outputs + shortcut

    stem = 49 * 64 + 2 * 64
    body = sum(block(a, b) + block(b, b) for a, b in
               [(64, 64), (64, 128), (128, 256), (256, 512)])  # fmt: skip
    assert resnet.count_parameters(model) == stem + body + 512 * 2 + 2
    assert resnet.count_parameters(models.resnet18()) == 11_689_512


def test_receptive_field_by_brute_force():
    """The pixels whose gradient is not 0, with positive weights."""
    layers = [(7, 2), (3, 2), (3, 1), (3, 2), (5, 1)]
    stack = nn.Sequential(*(nn.Conv2d(1, 1, k, s, k // 2) for k, s in layers))
    for parameter in stack.parameters():
        nn.init.constant_(parameter, 1.0)
    x = torch.zeros(1, 1, 256, 256, requires_grad=True)
    out = stack(x)
    middle = out.shape[-1] // 2

    def seen(place):
        (gradient,) = torch.autograd.grad(
            out[0, 0, middle, place], x, retain_graph=True
        )
        return gradient[0, 0].abs().sum(0).nonzero().flatten()

    field, stride = resnet.receptive_field(layers)
    assert len(seen(middle)) == field == 59
    assert seen(middle + 1)[0] - seen(middle)[0] == stride == 8
    with pytest.raises(MedlmError, match="from 1 on"):
        resnet.receptive_field([(3, 0)])


def test_receptive_fields_of_resnet18(model):
    fields = resnet.receptive_fields(model)
    assert fields == {
        "stem": (11, 4),
        "layer1": (43, 4),
        "layer2": (99, 8),
        "layer3": (211, 16),
        "layer4": (435, 32),
    }


# The network --------------------------------------------------------------------------


def test_with_three_channels_it_is_that_of_torchvision():
    ours = resnet.build(1000, channels=3, seed=4)
    theirs = models.resnet18()
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert ours.channels == 3 and ours.classes == 1000


def test_features_are_what_the_head_sees(model):
    x = torch.rand(3, 1, 64, 64)
    torch.testing.assert_close(model.fc(model.features(x)), model(x))
    images = np.random.default_rng(0).integers(-900, 100, (5, 64, 64)).astype(np.int16)
    seen = resnet.features(model, images, batch_size=2)
    assert seen.shape == (5, 512)
    expected = model.features(ct.to_tensor(images)).detach()
    np.testing.assert_allclose(seen, expected, rtol=1e-4, atol=1e-5)


def test_building_is_seeded_and_leaves_torch_alone():
    state = torch.get_rng_state()
    one, two, other = (resnet.build(3, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.conv1.weight, two.conv1.weight)
    assert not torch.equal(one.conv1.weight, other.conv1.weight)
    with pytest.raises(MedlmError, match="expected at least 1 each"):
        resnet.build(0)


@pytest.mark.parametrize(
    "stages, trained", [(0, 11_171_266), (3, 10_494_466), (5, 1026)]
)
def test_frozen_stages_stay_as_they_are(model, stages, trained):
    net = copy.deepcopy(model)
    resnet.freeze(net, stages)
    assert resnet.count_parameters(net, trained=True) == trained
    before = weights_of(net)
    net.train()
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    F.cross_entropy(
        net(torch.rand(4, 1, 64, 64)), torch.tensor([0, 1, 0, 1])
    ).backward()
    optimiser.step()
    frozen = [("conv1", "bn1"), *((s,) for s in resnet.STAGES[1:])][:stages]
    names = tuple(f"{name}." for group in frozen for name in group)
    for name, tensor in net.state_dict().items():
        is_same = torch.equal(tensor, before[name])
        assert is_same == (bool(names) and name.startswith(names)), name


def test_kept_norms_use_and_keep_what_they_know_of_others(model):
    net = copy.deepcopy(model)
    resnet.freeze(net, 0, norms=True)
    before, x = weights_of(net), torch.rand(4, 1, 64, 64)
    torch.testing.assert_close(net.train()(x), net.eval()(x))
    F.cross_entropy(net.train()(x), torch.tensor([0, 1, 0, 1])).backward()
    torch.optim.SGD(net.parameters(), 0.1).step()
    for name, tensor in net.state_dict().items():
        is_kept = "running_" in name or "num_batches" in name
        assert torch.equal(tensor, before[name]) == is_kept, name
    images = np.random.default_rng(0).integers(-900, 100, (8, 64, 64)).astype(np.int16)
    for keeps in (True, False):
        net = copy.deepcopy(model)
        settings = resnet.FineTuning(epochs=1, batch=4, keep_norms=keeps)
        resnet.finetune(net, images, [0, 1] * 4, images, [0, 1] * 4, settings)
        assert torch.equal(net.bn1.running_mean, model.bn1.running_mean) == keeps


def test_freezing_less_trains_again(model):
    net = copy.deepcopy(model)
    resnet.freeze(net, 5)
    resnet.freeze(net, 0)
    assert resnet.count_parameters(net, True) == resnet.count_parameters(net)
    assert all(m.training for m in net.train().modules())
    with pytest.raises(MedlmError, match="expected 0 to 5 of stem, layer1"):
        resnet.freeze(net, 6)


def test_weights_for_colours_see_grey_images_as_before(tmp_path):
    torch.manual_seed(0)
    colours = warmed(resnet.build(1000, channels=3))
    grey = resnet.build(2)
    resnet._load(grey, resnet.for_grey(colours.state_dict()), "here")
    x = torch.rand(2, 1, 96, 96)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1)
                 for v in (resnet.IMAGENET_MEAN, resnet.IMAGENET_STD))  # fmt: skip
    expected = colours.bn1(colours.conv1((x - mean) / std))
    found = grey.eval().bn1(grey.conv1(x))
    inside = (..., slice(2, -2), slice(2, -2))  # the border sees padded zeros
    torch.testing.assert_close(found[inside], expected[inside], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, expected, atol=1e-2)
    two = resnet.for_grey(colours.state_dict(), 2)["conv1.weight"]
    both = F.conv2d(x.expand(2, 2, 96, 96), two, None, 2, 3)
    torch.testing.assert_close(both, grey.conv1(x), atol=1e-5, rtol=1e-4)


def test_without_a_network_imagenet_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MedlmError, match=r"cannot be downloaded.*weights='simulated'"):
        resnet.build(2, "imagenet")


def test_imagenet_weights_from_the_cache(tmp_path, monkeypatch):
    theirs = warmed(resnet.build(1000, channels=3, seed=5))
    monkeypatch.setattr(
        models._api.WeightsEnum, "get_state_dict", lambda *a, **k: theirs.state_dict()
    )
    found = resnet.build(4, "imagenet")
    assert found.classes == 4 and found.channels == 1
    assert torch.equal(found.layer3[1].conv2.weight, theirs.layer3[1].conv2.weight)


# Weights in a small file --------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "deep" / "w.safetensors"
    resnet.save_int8(model, path, {"seed": 1, "recipe": "none"})
    return path


def test_weights_of_8_bits_are_off_by_half_a_step(model, kept):
    found, about = resnet.load_int8(kept)
    assert about == {"seed": 1, "recipe": "none"}
    assert os.path.getsize(kept) < 12e6
    assert [p.name for p in kept.parent.iterdir()] == ["w.safetensors"]
    assert found.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        if weight.dim() < 2:
            assert torch.equal(found[name], weight)
            continue
        step = weight.flatten(1).abs().amax(1) / 127  # of each output channel
        error = (found[name] - weight).abs().flatten(1).amax(1)
        assert (error <= step / 2 * 1.001 + 1e-9).all(), name
        assert error.max() > 0
        largest = weight.flatten(1).abs().amax(1)
        torch.testing.assert_close(found[name].flatten(1).abs().amax(1), largest)


def test_the_answers_hardly_change(model, kept):
    again = resnet.build(2, kept)
    x = torch.rand(8, 1, 64, 64)
    with torch.no_grad():
        exact, rounded = model(x), again.eval()(x)
    # A weight is off by 1% of their spread, about; this passes twenty layers.
    assert (exact - rounded).norm() < 0.2 * exact.norm()
    assert not torch.equal(exact, rounded)


def test_a_channel_of_zeros_survives(tmp_path):
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    resnet.save_int8(layer, tmp_path / "w", {})
    assert torch.equal(resnet.load_int8(tmp_path / "w")[0]["weight"], layer.weight)


def test_the_head_is_kept_where_it_fits(model, kept):
    step = float(model.fc.weight.detach().abs().max()) / 127
    same, other = resnet.build(2, kept), resnet.build(5, kept)
    torch.testing.assert_close(same.fc.weight, model.fc.weight, atol=step, rtol=0)
    assert other.classes == 5
    assert torch.equal(other.layer4[1].bn2.weight, model.layer4[1].bn2.weight)
    with pytest.raises(MedlmError, match=r"with 3 channels: conv1\.weight is another"):
        resnet.build(2, kept, channels=3)


def test_the_weights_of_the_package_have_a_new_head(model, kept, monkeypatch):
    monkeypatch.setattr(resnet, "simulated_weights", lambda: kept)
    found = resnet.build(2, "simulated")
    assert torch.equal(found.bn1.weight, model.bn1.weight)
    assert torch.equal(found.bn1.running_mean, model.bn1.running_mean)
    assert not torch.allclose(found.fc.weight, model.fc.weight, atol=1e-2)


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(MedlmError, match=r"There are no weights .*ct_pretrain"):
        resnet.build(2, tmp_path / "none")


def test_a_model_is_written_and_read_as_it_is(model, tmp_path):
    path = tmp_path / "deep" / "model.safetensors"
    resnet.save(model, path, {"classes": ["a", "b"]})
    state = torch.get_rng_state()
    found, about = resnet.load(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert about == {"classes": ["a", "b"]} and not found.training
    assert all(
        torch.equal(t, found.state_dict()[n]) for n, t in weights_of(model).items()
    )
    resnet.save_int8(nn.Linear(2, 2), path, {})
    with pytest.raises(MedlmError, match="not those of a ResNet-18"):
        resnet.load(path)


@pytest.mark.parametrize("damage", ["cut", "bit", "header", "text"])
def test_damaged_weights_are_refused(kept, tmp_path, damage):
    path = tmp_path / "w.safetensors"
    raw = bytearray(kept.read_bytes())
    if damage == "cut":
        raw = raw[:-10]
    elif damage == "bit":
        raw[-3] ^= 1
    elif damage == "text":
        raw = raw.replace(b'\\"seed\\": 1', b'\\"seed\\": 2')
        assert raw != kept.read_bytes()
    path.write_bytes(raw)
    if damage == "header":
        tensors = safetensors.torch.load_file(kept)
        safetensors.torch.save_file(tensors, path)
    with pytest.raises(MedlmError, match="holds no weights that can be used"):
        resnet.load_int8(path)


def test_weights_that_are_no_numbers_are_not_written(tmp_path):
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.bias, math.nan)
    with pytest.raises(MedlmError, match="bias is not finite"):
        resnet.save_int8(layer, tmp_path / "w", {})
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(MedlmError, match="Cannot write the weights"):
        resnet.save_int8(nn.Linear(2, 2), tmp_path / "file" / "w", {})


# Answers ------------------------------------------------------------------------------


class Pixels(nn.Module):
    """Two logits that are sums of weighted pixels: everything is known by hand."""

    def __init__(self, side=16, outputs=2):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(outputs, side, side))

    def forward(self, x):
        return torch.einsum("bchw,ohw->bo", x, self.weight)


def some_slices(count=7, side=16):
    rng = np.random.default_rng(0)
    return rng.integers(-1000, 300, (count, side, side)).astype(np.int16)


def test_losses_are_sums_over_the_batch():
    net, images = Pixels(), ct.to_tensor(some_slices())
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    logits = net(images).double()
    log_p = logits - logits.exp().sum(1, keepdim=True).log()
    nats, count = resnet.cross_entropy_loss(net, (images, labels))
    expected = -sum(log_p[row, label] for row, label in enumerate(labels))
    assert count == 7 and float(nats) == pytest.approx(float(expected), rel=1e-4)
    one, wanted = Pixels(outputs=1), torch.linspace(0, 3, 7)
    squares, count = resnet.squared_error_loss(one, (images, wanted))
    expected = sum((one(images)[row, 0] - wanted[row]) ** 2 for row in range(7))
    assert count == 7 and float(squares) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_answers_do_not_depend_on_the_batch(batch_size):
    net, images = Pixels().train(), some_slices()
    found = resnet.predict(net, images, batch_size=batch_size)
    np.testing.assert_allclose(found, net(ct.to_tensor(images)).detach(), rtol=1e-4)
    assert net.training and net.weight.grad is None
    grey = ct.to_tensor(images)[:, 0].numpy()
    again = resnet.predict(net, grey, window=None, batch_size=batch_size)
    np.testing.assert_allclose(again, found, rtol=1e-4)


def test_running_means_are_left_alone_by_answers(model):
    before = weights_of(model)
    model.train()
    resnet.predict(model, some_slices(4, 32))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    model.eval()


class TwoProcesses:
    """Stands in for an accelerator: this process is one of two."""

    num_processes = 2

    def __init__(self, number, shares):
        self.process_index, self.shares = number, shares

    def gather(self, own):
        self.shares[self.process_index] = own
        return torch.cat([self.shares.get(n, torch.zeros_like(own)) for n in (0, 1)])


@pytest.mark.parametrize("count", [7, 8, 1])
def test_processes_share_the_slices(count):
    net, images, shares = Pixels(), some_slices(count), {}
    resnet.predict(net, images, accelerator=TwoProcesses(0, shares))
    found = resnet.predict(net, images, accelerator=TwoProcesses(1, shares))
    np.testing.assert_allclose(found, resnet.predict(net, images), rtol=1e-4)
    assert len(shares[0]) == len(shares[1]) == -(-count // 2)


def test_no_slices():
    for images, size in ((some_slices()[:0], 3), (some_slices(), 0)):
        with pytest.raises(MedlmError, match="at least one slice"):
            resnet.predict(Pixels(), images, batch_size=size)


# Fine-tuning --------------------------------------------------------------------------


def bright_or_not(count, side=32, seed=0):
    """Slices with a bright square in every other one."""
    rng = np.random.default_rng(seed)
    images = rng.normal(-800, 60, (count, side, side))
    labels = np.arange(count) % 2
    for image, label in zip(images, labels, strict=True):
        y, x = rng.integers(2, side - 12, 2)
        image[y : y + 10, x : x + 10] += 500 * label
    return images.astype(np.int16), labels


QUICK = resnet.FineTuning(epochs=2, batch=16, looks=2, augment=None)


@pytest.mark.slow
def test_fine_tuning_learns_and_keeps_the_best(model):
    train, val = bright_or_not(48), bright_or_not(16, seed=1)
    net = copy.deepcopy(model)
    tuned = resnet.finetune(net, *train, *val, QUICK)
    found = resnet.predict(net, val[0])
    loss = F.cross_entropy(torch.from_numpy(found), torch.from_numpy(val[1]))
    assert float(loss) == pytest.approx(min(tuned.loss), rel=1e-4)
    assert tuned.loss[tuned.best - 1] == min(tuned.loss)
    assert tuned.steps == (2, 4, 6) and len(tuned.history) == 6
    assert float(loss) < 0.3 and (found.argmax(1) == val[1]).mean() > 0.85
    rates = tuned.history.learning_rate
    assert max(rates) == pytest.approx(0.01) and rates[-1] < 1e-6


def test_the_head_first_is_a_logistic_regression(model):
    from sklearn.linear_model import LogisticRegression

    images, labels = bright_or_not(40)
    net = copy.deepcopy(model)
    resnet.fit_head(net, images, labels, penalty=3.0)
    seen = resnet.features(model, images).astype(float)
    seen -= seen.mean(0)
    seen /= np.sqrt(np.mean(seen**2))
    oracle = LogisticRegression(C=1 / 3, max_iter=2000).fit(seen, labels)
    logits = resnet.predict(net, images).astype(float)
    np.testing.assert_allclose(
        logits[:, 1] - logits[:, 0], oracle.decision_function(seen), atol=2e-3
    )
    for name, tensor in net.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(tensor, model.state_dict()[name])


def test_a_class_without_a_slice_is_not_named(model):
    images, labels = bright_or_not(20)
    net = copy.deepcopy(model)
    net.new_head(4)
    resnet.fit_head(net, images, labels * 2)
    assert set(resnet.predict(net, images).argmax(1)) <= {0, 2}
    with pytest.raises(MedlmError, match="All 20 slices have the label 1"):
        resnet.fit_head(net, images, np.ones(20, int))


def test_numbers_are_fitted_with_the_squared_error(model):
    images, labels = bright_or_not(40)
    area = labels * 100.0 + 3
    net = copy.deepcopy(model)
    net.new_head(1)
    resnet.fit_head(net, images, area, loss="squared error", penalty=0.1)
    error = np.mean((resnet.predict(net, images)[:, 0] - area) ** 2)
    assert error < 0.2 * area.var()
    settings = resnet.FineTuning(
        epochs=1,
        batch=20,
        rate=1e-4,
        head_rate=1e-4,
        loss="squared error",
        augment=None,
    )
    tuned = resnet.finetune(net, images, area, images, area, settings)
    found = np.mean((resnet.predict(net, images)[:, 0] - area) ** 2)
    assert min(tuned.loss) == pytest.approx(found, rel=1e-3)
    with pytest.raises(MedlmError, match="expected one number a slice, and one output"):
        resnet.finetune(model, images, area, images, area, settings)


@pytest.mark.slow
def test_a_stopped_fine_tuning_goes_on(model, tmp_path, monkeypatch):
    train, val = bright_or_not(32), bright_or_not(8, seed=1)
    settings = resnet.FineTuning(epochs=2, batch=8, frozen_stages=2)
    path = tmp_path / "run"
    whole, broken, fresh = (copy.deepcopy(model) for _ in range(3))
    expected = resnet.finetune(whole, *train, *val, settings)
    at = ct.SliceBatches.at

    def stop(self, step):
        if step == 5:
            raise KeyboardInterrupt
        return at(self, step)

    monkeypatch.setattr(ct.SliceBatches, "at", stop)
    keep = {"checkpoint": path, "checkpoint_every": 2, "resume": True}
    with pytest.raises(KeyboardInterrupt):
        resnet.finetune(broken, *train, *val, settings, **keep)
    monkeypatch.undo()
    found = resnet.finetune(fresh, *train, *val, settings, **keep)
    assert found.loss == expected.loss and found.history.loss == expected.history.loss
    for name, tensor in whole.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name
    with pytest.raises(MedlmError, match="of another run: slices"):
        resnet.finetune(fresh, train[0] + 1, train[1], *val, settings, **keep)


def test_fast_settings_give_nearly_the_same(model):
    images, labels = bright_or_not(16)
    losses = []
    for precision, channels_last in (("float32", False), ("bfloat16", True)):
        settings = resnet.FineTuning(
            epochs=1, batch=8, precision=precision, channels_last=channels_last
        )
        net = copy.deepcopy(model)
        tuned = resnet.finetune(net, images, labels, images, labels, settings)
        losses.append(tuned.history.loss[0])
        assert net.conv1.weight.dtype == torch.float32
    assert losses[1] == pytest.approx(losses[0], rel=0.1, abs=0.02)
    layer = net.layer2[0].conv1.weight
    assert layer.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch": 0},
        {"rate": 0},
        {"momentum": 1},
        {"warm_up": 1},
        {"frozen_stages": -1},
        {"loss": "hinge"},
    ],
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(MedlmError, match=f"{next(iter(wrong))} is .*; expected"):
        resnet.FineTuning(**wrong)


@pytest.mark.parametrize("labels", [[0, 1, 2, 0], [0, 1, 0], [0.0, 1.0, 0.0, 1.0]])
def test_labels_that_do_not_fit(model, labels):
    images = some_slices(4)
    with pytest.raises(MedlmError, match="expected one whole number a slice, 0 to 1"):
        resnet.finetune(model, images, labels, images, [0, 1, 0, 1])


# What it looked at --------------------------------------------------------------------


def test_grad_cam_is_the_class_activation_map_of_a_linear_head(model):
    """On the last stage the gradient is the head's weight, over the map's size."""
    x = torch.rand(3, 1, 64, 96)
    with torch.no_grad():
        seen = model.layer4(model.layer3(model.layer2(model.layer1(
            model.maxpool(F.relu(model.bn1(model.conv1(x))))))))  # fmt: skip
    target = torch.tensor([1, 0, 1])
    maps = F.relu(torch.einsum("bc,bchw->bhw", model.fc.weight.detach()[target], seen))
    maps = F.interpolate(maps[:, None], (64, 96), mode="bilinear", align_corners=False)
    expected = maps[:, 0] / maps.amax((2, 3)).clamp(min=1e-12).view(3, 1, 1)
    torch.testing.assert_close(resnet.grad_cam(model, x, target), expected)
    assert all(p.grad is None for p in model.parameters())


def test_grad_cam_of_an_earlier_stage_by_finite_differences(model):
    """The weight of a channel is how the logit changes when all of it does."""
    torch.manual_seed(0)
    net = copy.deepcopy(model).double()
    x = torch.rand(1, 1, 32, 32).double()
    with torch.no_grad():
        seen = net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x))))))
        steps = 1e-8 * torch.eye(seen.shape[1]).double()[:, :, None, None]
        after, before = (
            net.fc(net.layer4(net.layer3(s)).mean((2, 3)))
            for s in (seen + steps, seen - steps)
        )
        weights = (after - before) / 2e-8
    maps = F.relu(torch.einsum("ko,bkhw->obhw", weights, seen))
    maps = F.interpolate(maps, (32, 32), mode="bilinear", align_corners=False)[:, 0]
    assert maps.max() > 0
    for target in (0, 1):
        expected = maps[target] / maps[target].max().clamp(min=1e-12)
        found = resnet.grad_cam(net, x, target, "layer2")[0]
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-2)
        assert found.max() in (0, 1) and found.min() >= 0
    with pytest.raises(MedlmError, match="The stage is 'fc'"):
        resnet.grad_cam(net, x, 0, "fc")


def test_occlusion_by_brute_force():
    net, images = Pixels(12), torch.rand(2, 1, 12, 12)
    target = torch.tensor([1, 0])
    found = resnet.occlusion_map(net, images, target, patch=5, stride=3, batch_size=4)
    for row in range(2):
        falls, covers = np.zeros((12, 12)), np.zeros((12, 12))
        for y in (0, 3, 6, 7):
            for x in (0, 3, 6, 7):
                there = (slice(y, y + 5), slice(x, x + 5))
                lost = images[row, 0][there] - images[row].mean()
                fall = float((net.weight[target[row]][there] * lost).sum())
                falls[there] += fall
                covers[there] += 1
        np.testing.assert_allclose(found[row], falls / covers, atol=1e-4)
    black = resnet.occlusion_map(net, images[:1], 1, patch=12, stride=1, fill=0.0)
    np.testing.assert_allclose(black, float(net(images)[0, 1].detach()), rtol=1e-4)
    with pytest.raises(MedlmError, match="expected squares that fit"):
        resnet.occlusion_map(net, images, 1, patch=13)


@pytest.mark.parametrize("stages", [1, 3, 6])
def test_what_is_randomised_forgets(model, stages):
    before = weights_of(model)
    twin = resnet.randomised(model, stages, seed=1)
    again = resnet.randomised(model, stages, seed=1)
    forgotten = resnet.STAGES[6 - stages :]
    for name, tensor in twin.state_dict().items():
        stage = "stem" if name.startswith(("conv1", "bn1")) else name.split(".")[0]
        if name.endswith(("conv1.weight", "fc.weight", "running_mean")):
            assert torch.equal(tensor, before[name]) == (stage not in forgotten), name
        assert torch.equal(tensor, again.state_dict()[name])
        assert torch.equal(model.state_dict()[name], before[name])
    with pytest.raises(MedlmError, match="expected 1 to 6"):
        resnet.randomised(model, 0)


def test_a_new_model_can_be_randomised_too():
    new = resnet.build(2, seed=0)
    assert not torch.equal(resnet.randomised(new, 1, seed=0).fc.weight, new.fc.weight)


def test_overlap_by_hand():
    maps, masks = np.zeros((3, 4, 4)), np.zeros((3, 4, 4), bool)
    masks[0, 0, :] = True
    maps[0, 0, 1:] = [5, 4, 3]  # three of the four highest lie in the lesion
    maps[0, 3, 3] = 2
    masks[1, 2, 2] = masks[1, 2, 3] = True
    maps[1, 1, 1], maps[1, 2, 3] = 9, 8  # the peak misses, the second hits
    maps[2, 0, 0] = 1  # without a lesion: left out
    found = resnet.overlap(maps, masks)
    np.testing.assert_allclose(found.inside, [0.75, 0.5])
    assert found.pointing.tolist() == [True, False]
    np.testing.assert_allclose(found.chance, [4 / 16, 2 / 16])


def test_a_map_that_knows_nothing_is_at_chance():
    masks = np.zeros((400, 10, 10), bool)
    masks[:, :3, :4] = True
    found = resnet.overlap(np.zeros(masks.shape), masks)
    assert found.inside.mean() == pytest.approx(0.12, abs=0.02)
    assert found.pointing.mean() == pytest.approx(0.12, abs=0.05)


@pytest.mark.parametrize(
    "maps, masks, said",
    [
        (np.zeros((2, 4, 4)), np.ones((2, 4, 5), bool), "the same shape"),
        (np.zeros((2, 4, 4)), np.zeros((2, 4, 4), bool), "and a lesion"),
        (np.full((2, 4, 4), math.nan), np.ones((2, 4, 4), bool), "not finite"),
    ],
)
def test_maps_that_cannot_be_compared(maps, masks, said):
    with pytest.raises(MedlmError, match=said):
        resnet.overlap(maps, masks)


def test_the_loop_takes_it(model):
    """One step of training.fit with SGD equals one by hand."""
    images, labels = bright_or_not(8)
    batch = ct.to_tensor(images), torch.from_numpy(labels)
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model).train()
    training.fit(
        ours,
        lambda step: batch,
        steps=2,
        learning_rate=0.05,
        schedule=lambda *_: 0.05,
        weight_decay=0.0,
        optimiser="sgd",
        clip=1e9,
        loss=resnet.cross_entropy_loss,
    )
    by_hand = torch.optim.SGD(theirs.parameters(), 0.05, momentum=0.9)
    for _ in range(2):
        by_hand.zero_grad()
        F.cross_entropy(theirs(batch[0]), batch[1]).backward()
        by_hand.step()
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(
            ours.state_dict()[name], tensor, atol=1e-5, rtol=1e-4, msg=name
        )
