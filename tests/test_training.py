"""training.py: oracles for its parts, and runs that are killed and taken up again."""

import contextlib
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from medlm_utils import text, training
from medlm_utils.runtime import MedlmError
from medlm_utils.transformer import TransformerLM


def tiny_model(seed=0):
    torch.manual_seed(seed)
    return TransformerLM(
        vocabulary=20, longest=16, d_model=16, heads=2, d_ff=32, blocks=2
    )


def some_rows(count=40, seed=0, longest=14):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest - 1, size=count)
    return [torch.tensor([2, *rng.integers(4, 20, size=n), 3]) for n in lengths]


@pytest.fixture()
def batches():
    return text.DocumentBatches(some_rows(), 8, seed=1)


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


class TestEvaluate:
    @pytest.mark.parametrize("batch_size", [1, 3, 40, 100])
    def test_the_batch_size_does_not_matter(self, batch_size):
        model, rows = tiny_model().train(), some_rows()
        nats = training.evaluate(model, rows, batch_size)
        alone = [
            F.cross_entropy(model(row[None, :-1])[0], row[1:], reduction="none")
            for row in rows
        ]
        assert nats.tokens == sum(len(row) - 1 for row in rows)
        assert nats.total == pytest.approx(sum(a.sum().item() for a in alone), rel=1e-6)
        for got, expected in zip(nats.by_row, alone, strict=True):
            np.testing.assert_allclose(got, expected.detach(), rtol=1e-4)

    def test_the_mean_is_over_tokens(self):
        nats = training.evaluate(tiny_model(), some_rows(), 3)
        assert nats.nats_per_token == nats.total / nats.tokens
        of_rows = np.mean([row.mean() for row in nats.by_row])
        assert abs(of_rows - nats.nats_per_token) > 1e-5

    def test_a_uniform_model_needs_log_vocabulary(self):
        model = tiny_model()
        model.embedding.weight.data.zero_()
        nats = training.evaluate(model, some_rows())
        assert nats.nats_per_token == pytest.approx(math.log(20), rel=1e-6)

    def test_mode_and_gradients_are_left_alone(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.table = nn.Embedding(20, 20)
                self.modes = []

            def forward(self, tokens):
                self.modes += [self.training, torch.is_grad_enabled()]
                return self.table(tokens)

        for mode in (True, False):
            model = Model().train(mode)
            training.evaluate(model, some_rows(5))
            assert model.training is mode
            assert not any(model.modes)

    @pytest.mark.parametrize("context", [0, 3, 7])
    def test_windows_with_context_score_each_target_once(self, context):
        running = torch.arange(50) % 16 + 4
        rows = text.windows(running, 8, context)
        nats = training.evaluate(tiny_model(), rows, 4, context)
        assert nats.tokens == 49

    def test_more_context_sees_more(self):
        model = tiny_model()
        running = torch.randint(4, 20, (50,))
        nats = training.evaluate(model, text.windows(running, 8, 7), context=7)
        by_hand = model(running[None, 20:28])[0, -1].log_softmax(-1)[running[28]]
        assert np.concatenate(nats.by_row)[27] == pytest.approx(
            -by_hand.item(), rel=1e-4
        )

    def test_bad_input(self):
        with pytest.raises(MedlmError, match="0 rows"):
            training.evaluate(tiny_model(), [])
        with pytest.raises(MedlmError, match="the shortest with 1 tokens"):
            training.evaluate(tiny_model(), [torch.tensor([2])])
        with pytest.raises(MedlmError, match="batches of 0"):
            training.evaluate(tiny_model(), some_rows(2), 0)
        with pytest.raises(MedlmError, match="precision is 'half'; expected one of"):
            training.evaluate(tiny_model(), some_rows(2), precision="half")


class TestParts:
    def test_the_loss_is_a_sum_and_padding_does_not_count(self):
        model, rows = tiny_model(), some_rows(9)
        nats, count = training.language_loss(model, text.pad(rows))
        assert count == sum(len(row) - 1 for row in rows)
        assert nats.item() == pytest.approx(
            training.evaluate(model, rows).total, rel=1e-5
        )

    def test_only_matrices_decay(self):
        model = tiny_model()
        decaying, others = training.parameter_groups(model, 0.3)
        assert (decaying["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
        names = {id(p): name for name, p in model.named_parameters()}
        decays = {names[id(p)] for p in decaying["params"]}
        assert len(decays) == 2 * 6
        assert all(n.startswith("blocks") and n.endswith("weight") for n in decays)
        rest = {names[id(p)] for p in others["params"]}
        assert {"embedding.weight", "positions.weight", "norm.gain"} < rest
        assert decays | rest == set(names.values()) and not decays & rest

    def test_frozen_parameters_are_left_out(self):
        model = tiny_model()
        model.embedding.weight.requires_grad_(False)
        groups = training.parameter_groups(model, 0.1)
        every = [p for group in groups for p in group["params"]]
        assert len(every) == len(list(model.parameters())) - 1

    def test_the_schedule_goes_up_in_a_line_and_down_in_a_cosine(self):
        rates = [training.warm_up_cosine(s, 101, 2.0, 10, 0.1) for s in range(101)]
        np.testing.assert_allclose(rates[:10], 0.2 * np.arange(1, 11))
        assert rates[9] == rates[10] == max(rates) == 2.0
        assert rates[100] == pytest.approx(0.2)
        assert rates[55] == pytest.approx((2.0 + 0.2) / 2)
        assert (np.diff(rates[10:]) < 0).all()
        assert training.warm_up_cosine(500, 101, 2.0, 10, 0.1) == pytest.approx(0.2)

    def test_the_other_schedule_goes_down_in_a_line(self):
        rates = [training.warm_up_linear(s, 100, 2.0, 10) for s in range(100)]
        np.testing.assert_allclose(rates[:10], 0.2 * np.arange(1, 11))
        assert rates[9] == rates[10] == max(rates) == 2.0
        np.testing.assert_allclose(np.diff(rates[10:]), -2.0 / 90)
        assert rates[-1] == pytest.approx(2.0 / 90)
        assert training.warm_up_linear(500, 100, 2.0, 10) == 0.0
        assert training.warm_up_linear(100, 100, 2.0, 10, 0.3) == pytest.approx(0.6)

    @pytest.mark.slow
    def test_without_warm_up_it_is_that_of_transformers(self):
        from transformers import get_linear_schedule_with_warmup

        adam = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=2.0)
        theirs = get_linear_schedule_with_warmup(adam, 0, 7)
        for step in range(7):
            ours = training.warm_up_linear(step, 7, 2.0, 0)
            assert ours == pytest.approx(theirs.get_last_lr()[0])
            adam.step()
            theirs.step()

    @pytest.mark.parametrize(
        "wrong", [{"warm_up": 11}, {"steps": 0}, {"peak": 0}, {"floor": 1.5}]
    )
    @pytest.mark.parametrize(
        "schedule", [training.warm_up_cosine, training.warm_up_linear]
    )
    def test_a_schedule_that_cannot_be(self, wrong, schedule):
        right = {"step": 0, "steps": 10, "peak": 1.0, "warm_up": 2}
        with pytest.raises(MedlmError, match="a warm-up no longer than the run"):
            schedule(**right | wrong)

    def test_the_longest_beginning_that_fits_gives_the_rate(self):
        model = tiny_model()
        rates = {"blocks": 0.5, "blocks.1.feed": 4.0, "norm": 0.5}
        groups = training.parameter_groups(model, 0.3, rates)
        factor = {id(p): g["factor"] for g in groups for p in g["params"]}
        decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
        assert len(factor) == sum(len(g["params"]) for g in groups)
        for name, parameter in model.named_parameters():
            if name.startswith("blocks.1.feed"):
                expected = 4.0
            else:
                expected = 0.5 if name.startswith(("blocks", "norm")) else 1.0
            assert factor[id(parameter)] == expected, name
            decays = name.startswith("blocks") and name.endswith("weight")
            assert decay[id(parameter)] == (0.3 if decays else 0.0), name

    def test_rates_that_cannot_be(self):
        model = tiny_model()
        with pytest.raises(MedlmError, match="a name that begins with 'head'"):
            training.adamw(model, rates={"head": 2.0})
        with pytest.raises(MedlmError, match=r"factor of 'norm' is 0.*requires_grad_"):
            training.adamw(model, rates={"norm": 0})
        model.norm.requires_grad_(False)
        with pytest.raises(MedlmError, match="No weight that is trained"):
            training.adamw(model, rates={"norm": 2.0})


class TestFit:
    def test_equals_a_loop_by_hand(self, batches):
        ours, theirs = tiny_model(), tiny_model()
        rates = [training.warm_up_cosine(s, 20, 1e-2, 4, 0.2) for s in range(20)]
        training.fit(
            ours,
            batches.at,
            steps=20,
            learning_rate=1e-2,
            warm_up=4,
            floor=0.2,
            clip=0.5,
        )
        matrices = [
            parameter
            for name, parameter in theirs.named_parameters()
            if name.startswith("blocks.") and name.endswith(".weight")
        ]
        chosen = set(map(id, matrices))
        others = [p for p in theirs.parameters() if id(p) not in chosen]
        adam = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": 0.1},
                {"params": others, "weight_decay": 0},
            ],
            betas=(0.9, 0.95),
        )
        for step, rate in enumerate(rates):
            batch = batches.at(step)
            logits = theirs(batch[:, :-1]).flatten(0, 1)
            loss = F.cross_entropy(logits, batch[:, 1:].flatten(), ignore_index=0)
            for group in adam.param_groups:
                group["lr"] = rate
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
            adam.step()
        # Logits, not weights: what has no gradient, such as the bias of the keys, is
        # moved by rounding errors alone, and changes nothing.
        batch = batches.at(0)[:, :-1]
        torch.testing.assert_close(ours(batch), theirs(batch), atol=1e-3, rtol=1e-3)

    def test_sgd_equals_that_of_torch_by_hand(self, batches):
        ours, theirs = tiny_model(), tiny_model()
        settings = {"steps": 12, "learning_rate": 0.3, "warm_up": 3, "floor": 0.2}
        training.fit(
            ours,
            batches.at,
            **settings,
            optimiser="sgd",
            momentum=0.8,
            weight_decay=0.01,
            rates={"blocks": 2.0, "blocks.1": 0.5},
        )
        groups = training.parameter_groups(
            theirs, 0.01, rates={"blocks": 2.0, "blocks.1": 0.5}
        )
        plain = torch.optim.SGD(groups, lr=1.0, momentum=0.8)
        for step in range(12):
            for group in plain.param_groups:
                rate = training.warm_up_cosine(step, 12, 0.3, 3, 0.2)
                group["lr"] = rate * group["factor"]
            nats, count = training.language_loss(theirs, batches.at(step))
            plain.zero_grad()
            (nats / count).backward()
            nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
            plain.step()
        for name, weight in weights_of(theirs).items():
            torch.testing.assert_close(weights_of(ours)[name], weight, msg=name)

    @pytest.mark.parametrize(
        "wrong", [{"optimiser": "adam"}, {"optimiser": "sgd", "momentum": 1.0}]
    )
    def test_an_optimiser_that_is_not_there(self, batches, wrong):
        with pytest.raises(MedlmError, match="expected 'adamw' or 'sgd'"):
            training.fit(tiny_model(), batches.at, steps=1, **wrong)

    def test_learns_and_says_so(self, batches, capsys):
        model = tiny_model()
        rows = some_rows()
        history = training.fit(
            model,
            batches.at,
            steps=60,
            learning_rate=1e-2,
            warm_up=5,
            evaluation=lambda: training.evaluate(model, rows).nats_per_token,
            evaluate_every=25,
        )
        assert len(history) == 60
        assert [step for step, _ in history.evaluations] == [25, 50, 60]
        before, after = history.loss[0], history.evaluations[-1][1]
        assert before == pytest.approx(math.log(20), rel=0.2)
        assert after < before - 0.3
        count = (batches.at(7)[:, 1:] != 0).sum().item()
        assert history.targets[7] == count
        assert history.learning_rate[4] == max(history.learning_rate) == 1e-2
        assert history.seconds == sorted(history.seconds)
        assert history.targets_per_second > 0
        assert not model.training
        assert capsys.readouterr() == ("", "")

    def test_the_model_trains_in_training_mode_and_is_evaluated_in_the_other(
        self, batches
    ):
        modes = []
        model = tiny_model()

        def loss(model, batch):
            modes.append(model.training)
            return training.language_loss(model, batch)

        training.fit(
            model,
            batches.at,
            steps=4,
            loss=loss,
            evaluate_every=2,
            evaluation=lambda: modes.append(model.training) or 0.0,
        )
        assert modes == [True, True, False, True, True, False]

    def test_evaluating_does_not_change_the_run(self, batches):
        plain, watched = tiny_model(), tiny_model()
        training.fit(plain, batches.at, steps=6)
        training.fit(
            watched,
            batches.at,
            steps=6,
            evaluate_every=2,
            evaluation=lambda: training.evaluate(watched, some_rows()).total,
        )
        assert_same(weights_of(plain), weights_of(watched))

    def test_half_precision_on_a_cpu(self, batches):
        model = tiny_model()
        history = training.fit(
            model, batches.at, steps=40, learning_rate=1e-2, precision="bfloat16"
        )
        assert history.loss[-1] < history.loss[0] - 0.1
        assert all(p.dtype == torch.float32 for p in model.parameters())

    def test_any_task_can_use_it(self):
        model = nn.Linear(2, 1)
        x = torch.randn(64, 2)
        y = x @ torch.tensor([[1.0], [-2.0]])

        def squared(model, batch):
            return (model(batch) - y).square().sum(), len(batch)

        history = training.fit(
            model,
            lambda step: x,
            steps=200,
            learning_rate=0.05,
            weight_decay=0,
            clip=10.0,
            loss=squared,
        )
        assert history.loss[-1] < 1e-3

    def test_each_group_has_its_own_rate(self):
        """One step of AdamW from rest moves every weight by its learning rate."""
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
        before = weights_of(model)
        training.fit(
            model,
            lambda step: torch.randn(8, 3),
            steps=4,
            learning_rate=1e-3,
            rates={"1.": 10.0},
            warm_up=4,
            weight_decay=0,
            clip=1e9,
            loss=lambda model, batch: (model(batch).sum(), len(batch)),
            schedule=lambda step, *_: 1e-3 if step == 0 else 1e-12,
        )
        moved = {n: (before[n] - w).abs().max() for n, w in weights_of(model).items()}
        for name, distance in moved.items():
            rate = 1e-2 if name.startswith("1.") else 1e-3
            assert distance == pytest.approx(rate, rel=1e-3)

    def test_the_history_holds_the_rates_of_the_schedule(self, batches):
        history = training.fit(
            tiny_model(),
            batches.at,
            steps=6,
            learning_rate=0.5e-2,
            warm_up=2,
            floor=0.0,
            schedule=training.warm_up_linear,
        )
        assert history.learning_rate == [
            training.warm_up_linear(step, 6, 0.5e-2, 2) for step in range(6)
        ]

    def test_what_is_frozen_stays_and_is_not_remembered(self, batches, tmp_path):
        model = tiny_model()
        model.blocks[0].requires_grad_(False)
        before, path = weights_of(model), tmp_path / "run"
        training.fit(model, batches.at, steps=3, checkpoint=path)
        for name, weight in weights_of(model).items():
            assert torch.equal(weight, before[name]) == name.startswith("blocks.0")
        kept = safetensors.torch.load_file(path)
        trained = [p for p in model.parameters() if p.requires_grad]
        assert len([n for n in kept if n.endswith("exp_avg")]) == len(trained)

    def test_the_best_weights_come_back(self, batches):
        model, seen = tiny_model(), []
        values = iter([3.0, 1.0, 2.0, 1.0])

        def evaluation():
            seen.append(weights_of(model))
            return {"loss": next(values), "accuracy": 0.5}

        history = training.fit(
            model,
            batches.at,
            steps=8,
            evaluation=evaluation,
            evaluate_every=2,
            keep_best=True,
        )
        assert_same(weights_of(model), seen[1])
        assert not torch.equal(model.norm.gain, seen[3]["norm.gain"])
        assert history.evaluations == [(2, 3.0), (4, 1.0), (6, 2.0), (8, 1.0)]
        assert history.measures[1] == {"loss": 1.0, "accuracy": 0.5}

    def test_the_best_needs_an_evaluation_that_is_a_number(self, batches):
        with pytest.raises(MedlmError, match="keep_best needs an evaluation"):
            training.fit(tiny_model(), batches.at, steps=1, keep_best=True)
        with pytest.raises(MedlmError, match="evaluation after 1 steps is nan"):
            training.fit(
                tiny_model(),
                batches.at,
                steps=1,
                keep_best=True,
                evaluation=lambda: math.nan,
            )

    def test_bad_input(self, batches):
        for wrong, message in [
            ({"steps": 0}, "at least one step"),
            ({"steps": 3, "warm_up": 4}, "warm-up no longer"),
            ({"steps": 3, "clip": 0}, "clip is 0"),
            ({"steps": 3, "precision": "int4"}, "precision is 'int4'"),
        ]:
            with pytest.raises(MedlmError, match=message):
                training.fit(tiny_model(), batches.at, **wrong)
        with pytest.raises(MedlmError, match="batch of step 0 has no target"):
            training.fit(tiny_model(), lambda step: torch.zeros(2, 4).long(), steps=2)

    def test_a_loss_that_is_not_finite_stops_the_run(self, batches):
        model = tiny_model()

        def broken(model, batch):
            nats, count = training.language_loss(model, batch)
            return nats * (math.nan if len(seen) == 3 else 1), seen.append(1) or count

        seen = []
        with pytest.raises(
            MedlmError, match="loss of step 3 is nan; expected a finite"
        ):
            training.fit(model, batches.at, steps=9, loss=broken)


def kill_this_process():
    os.kill(os.getpid(), signal.SIGKILL)


def run_that_may_stop(path, stop_at=-1, stop=pytest.fail):
    """Thirty steps that depend on every generator; the model has dropout."""
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    batches = text.DocumentBatches(some_rows(29), 4, seed=1)

    def batch_at(step):
        if step == stop_at:
            stop()
        batch = batches.at(step)
        keep = random.random() + np.random.rand()  # both decide how long rows are
        return batch[:, : 2 + int(keep * batch.shape[1] / 2)]

    model = nn.Sequential(nn.Embedding(20, 16), nn.Dropout(0.3), nn.Linear(16, 20))
    history = training.fit(
        model,
        batch_at,
        steps=30,
        learning_rate=0.01,
        warm_up=5,
        checkpoint=path,
        checkpoint_every=4,
        resume=True,
        evaluation=lambda: torch.rand(()).item(),  # a careless one: it draws
        evaluate_every=3,
    )
    return weights_of(model), history


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path):
    broken = tmp_path / "broken.safetensors"
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r});"
        "import pathlib, test_training as t;"
        f"path = pathlib.Path({str(broken)!r});"
        "t.run_that_may_stop(path, 14, t.kill_this_process)"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    with safetensors.safe_open(broken, framework="pt") as file:
        stopped = json.loads(file.metadata()["state"])["history"]["loss"]
    weights, history = run_that_may_stop(broken, stop_at=11)  # it is past step 11
    expected, whole = run_that_may_stop(tmp_path / "whole.safetensors")
    assert len(stopped) == 12 and stopped == whole.loss[:12]
    assert_same(weights, expected)
    assert (history.loss, history.evaluations) == (whole.loss, whole.evaluations)
    assert len(whole) == 30 and len(whole.evaluations) == 10


class TestCheckpoints:
    @pytest.fixture()
    def path(self, tmp_path):
        return tmp_path / "deep" / "run.safetensors"

    @pytest.fixture()
    def fit(self, batches, path):
        def run(model, stop=None, **changes):
            def batch_at(step):
                if step == stop:
                    raise KeyboardInterrupt
                return batches.at(step)

            settings = {"steps": 10, "checkpoint": path, "checkpoint_every": 4}
            return training.fit(model, batch_at, **settings | changes)

        return run

    def test_an_interrupted_run_goes_on(self, fit):
        whole, broken = tiny_model(), tiny_model()
        expected = fit(whole, checkpoint=None)
        with pytest.raises(KeyboardInterrupt):
            fit(broken, stop=7)
        fresh = tiny_model(seed=9)
        history = fit(fresh, resume=True)
        assert_same(weights_of(fresh), weights_of(whole))
        assert history.loss == expected.loss
        assert history.seconds == sorted(history.seconds)

    @pytest.mark.parametrize("momentum", [0.9, 0.0])
    def test_an_interrupted_run_with_sgd_goes_on(self, fit, momentum):
        settings = {"optimiser": "sgd", "momentum": momentum, "learning_rate": 0.1}
        whole, broken, fresh = tiny_model(), tiny_model(), tiny_model(seed=9)
        fit(whole, checkpoint=None, **settings)
        with pytest.raises(KeyboardInterrupt):
            fit(broken, stop=7, **settings)
        fit(fresh, resume=True, **settings)
        assert_same(weights_of(fresh), weights_of(whole))
        with pytest.raises(MedlmError, match=r"optimiser sgd \(now None\)"):
            fit(fresh, resume=True, learning_rate=0.1)

    @pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
    def test_weights_that_lie_otherwise_in_memory_go_on(self, path, optimiser):
        def net():
            torch.manual_seed(0)
            layers = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Flatten()
            return nn.Sequential(*layers).to(memory_format=torch.channels_last)

        def loss(model, batch):
            return model(batch).square().sum(), len(batch)

        def run(model, stop=None, **changes):
            def batch_at(step):
                if step == stop:
                    raise KeyboardInterrupt
                return torch.randn(4, 3, 8, 8, generator=torch.manual_seed(step))

            settings = {"steps": 8, "loss": loss, "optimiser": optimiser}
            return training.fit(model, batch_at, **settings | changes)

        whole, broken, fresh = net(), net(), net()
        run(whole)
        with pytest.raises(KeyboardInterrupt):
            run(broken, 5, checkpoint=path, checkpoint_every=2)
        run(fresh, checkpoint=path, resume=True)
        assert_same(weights_of(fresh), weights_of(whole))

    def test_the_usual_optimiser_leaves_no_trace(self, fit, path):
        fit(tiny_model())
        with safetensors.safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
        assert not {"optimiser", "momentum"} & set(state["settings"])

    def test_a_finished_run_is_only_read(self, fit):
        model, fresh = tiny_model(), tiny_model(seed=9)
        first = fit(model)
        assert fit(fresh, stop=0, resume=True) == first
        assert_same(weights_of(fresh), weights_of(model))

    def test_without_resume_it_starts_anew(self, fit):
        fit(tiny_model())
        with pytest.raises(KeyboardInterrupt):
            fit(tiny_model(), stop=0)

    def test_resume_without_a_checkpoint_starts_anew(self, fit):
        assert len(fit(tiny_model(), resume=True)) == 10

    def test_it_is_plain_safetensors_and_nothing_else_is_left(self, fit, path):
        model = tiny_model()
        fit(model)
        tensors = safetensors.torch.load_file(path)
        assert torch.equal(tensors["model.norm.gain"], model.norm.gain)
        assert list(path.parent.iterdir()) == [path]

    def test_shared_weights_are_kept_once(self, batches, path):
        def tied():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20, bias=False))
            model[1].weight = model[0].weight
            return model

        settings = {"steps": 3, "checkpoint": path}
        model, fresh = tied(), tied()
        training.fit(model, batches.at, **settings)
        training.fit(fresh, batches.at, resume=True, **settings)
        assert_same(weights_of(fresh), weights_of(model))
        assert fresh[1].weight is fresh[0].weight

    def test_writing_that_fails_leaves_the_old_one(self, fit, path, monkeypatch):
        fit(tiny_model())
        before = path.read_bytes()

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(MedlmError, match=r"Cannot write the .*No space"):
            fit(tiny_model(seed=3))
        assert path.read_bytes() == before

    def test_a_folder_that_is_a_file(self, fit, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(MedlmError, match="Expected a folder"):
            fit(tiny_model(), checkpoint=tmp_path / "file" / "run.safetensors")

    @pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped", "header"])
    def test_a_damaged_one_is_refused(self, fit, path, damage):
        fit(tiny_model())
        good = path.read_bytes()
        flipped = bytearray(good)
        flipped[-1000] ^= 1
        path.write_bytes(
            {
                "cut": good[:-10],
                "empty": b"",
                "text": b"not a checkpoint",
                "flipped": bytes(flipped),
                "header": good.replace(b"loss", b"lost", 1),
            }[damage]
        )
        with pytest.raises(
            MedlmError, match=r"no checkpoint that can be used.*resume=F"
        ):
            fit(tiny_model(), resume=True)

    @pytest.mark.parametrize("header", [None, {"medlm": "0"}, {"format": "pt"}])
    def test_a_foreign_one_is_refused(self, fit, path, header):
        path.parent.mkdir()
        safetensors.torch.save_file({"model.x": torch.ones(2)}, path, header)
        with pytest.raises(MedlmError, match="another program, or another version"):
            fit(tiny_model(), resume=True)

    def test_a_pickle_is_refused_unread(self, fit, path):
        path.parent.mkdir()
        torch.save(tiny_model().state_dict(), path)
        with pytest.raises(MedlmError, match="damaged or of another kind"):
            fit(tiny_model(), resume=True)

    def test_one_of_another_run_is_refused(self, fit):
        fit(tiny_model())
        with pytest.raises(MedlmError, match=r"of another run: steps 10 \(now 11\)"):
            fit(tiny_model(), resume=True, steps=11)
        other = TransformerLM(20, 16, 16, 2, 32, 3)
        with pytest.raises(MedlmError, match="do not fit this model"):
            fit(other, resume=True)

    def test_settings_that_are_not_there_count_as_well(self, fit):
        schedule = training.warm_up_linear
        fit(tiny_model(), schedule=schedule)
        with pytest.raises(MedlmError, match=r"schedule warm_up_linear \(now None\)"):
            fit(tiny_model(), resume=True)
        assert len(fit(tiny_model(), resume=True, schedule=schedule)) == 10

    def test_what_else_a_run_depends_on_is_kept(self, fit):
        fit(tiny_model(), identity={"texts": "ab12"})
        with pytest.raises(MedlmError, match=r"texts ab12 \(now cd34\)"):
            fit(tiny_model(), resume=True, identity={"texts": "cd34"})
        assert len(fit(tiny_model(), resume=True, identity={"texts": "ab12"})) == 10

    def test_the_best_weights_are_kept(self, fit):
        def run(model, resume=False, stop=-1):
            values = iter([1.0, 2.0, 3.0, 4.0, 5.0][2 if resume else 0 :])
            return fit(
                model,
                resume=resume,
                stop=stop,
                evaluation=lambda: next(values),
                evaluate_every=2,
                keep_best=True,
            )

        whole, stopped = tiny_model(), tiny_model()
        run(whole)
        with pytest.raises(KeyboardInterrupt):
            run(stopped, stop=5)
        resumed = tiny_model(seed=9)
        history = run(resumed, resume=True)
        assert [value for _, value in history.evaluations] == [1.0, 2.0, 3.0, 4.0, 5.0]
        assert_same(weights_of(resumed), weights_of(whole))

    def test_history_is_json(self, fit, path):
        history = fit(tiny_model())
        with safetensors.safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
        assert state["history"]["loss"] == history.loss


# Many processes -----------------------------------------------------------------------

TEAM = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import {module}
from medlm_utils.cli import processes

team = processes.Team()
{module}.run_of_a_team(Path({folder!r}), team.accelerator)
team.leave()
"""


def run_of_a_team(folder, accelerator):
    """Three trainings; weights and histories of each process in files of its own."""
    size = accelerator.num_processes if accelerator else 1
    number = accelerator.process_index if accelerator else 0
    rows = some_rows(17)  # so that the last batch of an epoch has one row
    batches = text.DocumentBatches(rows, 8, seed=1)

    def fit(model, steps=10, batch_at=batches.at, **settings):
        return training.fit(
            model,
            batch_at,
            steps=steps,
            learning_rate=1e-2,
            accelerator=accelerator,
            evaluation=lambda: training.evaluate(model, rows).nats_per_token + number,
            evaluate_every=5,
            **settings,
        )

    # Another seed in each process: the main one's weights have to count.
    plain = tiny_model(seed=number)
    histories = [fit(plain), fit(plain, steps=2)]  # one after the other works too
    with_dropout = nn.Sequential(tiny_model(), nn.Dropout(0.2))
    torch.manual_seed(3)
    fit(with_dropout)

    def stop(step):
        if step == 7:
            raise KeyboardInterrupt
        return batches.at(step)

    resumed = nn.Sequential(tiny_model(), nn.Dropout(0.2))
    path = folder / f"run-{size}"
    torch.manual_seed(3)
    with contextlib.suppress(KeyboardInterrupt):
        fit(resumed, batch_at=stop, checkpoint=path, checkpoint_every=3)
    torch.manual_seed(99)
    resumed = nn.Sequential(tiny_model(seed=8), nn.Dropout(0.2))
    histories.append(fit(resumed, checkpoint=path, resume=True))

    weights = {"plain": plain, "with_dropout": with_dropout, "resumed": resumed}
    for name, model in weights.items():
        safetensors.torch.save_file(
            model.state_dict(), folder / f"{name}-{size}{number}"
        )
    content = [(h.loss, h.targets, h.evaluations) for h in histories]
    (folder / f"history-{size}{number}").write_text(json.dumps(content))


def launch(folder, module="test_training"):
    """`run_of_a_team` of a module of tests, in two processes on this machine's CPU."""
    script, tests = folder / "team.py", str(Path(__file__).parent)
    script.write_text(TEAM.format(tests=tests, module=module, folder=str(folder)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
        *("--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--main_process_port", str(port)),
        str(script),
    ]
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "MEDLM_PROFILE": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    """The files of one process on its own, and of two that worked together."""
    folder = tmp_path_factory.mktemp("team")
    run_of_a_team(folder, None)
    launch(folder)
    return folder


@pytest.mark.slow
class TestTeam:
    @staticmethod
    def model(team, name):
        model = tiny_model()
        weights = safetensors.torch.load_file(team / name)
        model.load_state_dict({n.removeprefix("0."): w for n, w in weights.items()})
        return model

    @staticmethod
    def histories(team, name):
        return json.loads((team / f"history-{name}").read_text())

    def test_two_processes_learn_what_one_does(self, team):
        batch = text.pad(some_rows(8))
        one, two = (self.model(team, f"plain-{which}") for which in ("10", "20"))
        # Logits, as in the comparison with a loop by hand.
        torch.testing.assert_close(one(batch), two(batch), atol=1e-3, rtol=1e-3)
        alone, together = self.histories(team, "10"), self.histories(team, "20")
        for ours, theirs in zip(alone[:2], together[:2], strict=True):
            np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
            assert ours[1] == theirs[1]

    def test_all_processes_end_with_the_same(self, team):
        for name in ("plain", "with_dropout", "resumed"):
            assert_same(
                weights_of(self.model(team, f"{name}-20")),
                weights_of(self.model(team, f"{name}-21")),
            )
        # Also the values of evaluations that the two did not agree on.
        assert self.histories(team, "20") == self.histories(team, "21")

    @pytest.mark.parametrize("size", ["10", "20"])
    def test_a_run_that_was_stopped_ends_with_the_same_weights(self, team, size):
        assert_same(
            weights_of(self.model(team, f"with_dropout-{size}")),
            weights_of(self.model(team, f"resumed-{size}")),
        )

    def test_dropout_is_not_the_same_in_all_processes(self, team):
        """With one process's pattern in both, the state of both would be the same."""
        states = safetensors.torch.load_file(team / "run-2")["generator.cpu"]
        assert states.shape[0] == 2 and not torch.equal(states[0], states[1])

    def test_another_number_of_processes_is_refused(self, team):
        with pytest.raises(MedlmError, match=r"processes 2 \(now None\)"):
            training.fit(
                nn.Sequential(tiny_model(), nn.Dropout(0.2)),
                text.DocumentBatches(some_rows(17), 8, seed=1).at,
                steps=10,
                learning_rate=1e-2,
                checkpoint=team / "run-2",
                resume=True,
            )


def test_an_accelerator_that_cuts_the_model_is_refused(batches):
    class Accelerator:
        distributed_type = "FSDP"

    with pytest.raises(MedlmError, match="FSDP; expected processes that each hold"):
        training.fit(tiny_model(), batches.at, steps=1, accelerator=Accelerator())


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_make_up_the_batch(size):
    class Accelerator:
        distributed_type, num_processes = "MULTI_CPU", size

    batch = (torch.arange(8).view(4, 2), {"labels": torch.arange(4)})
    seen = []
    for number in range(size):
        Accelerator.process_index = number
        share, counts = training._Team(Accelerator()).share(batch)
        assert len(share[0]) == len(share[1]["labels"]) >= 1
        seen += share[1]["labels"].tolist() if counts else []
    assert sorted(seen) == [0, 1, 2, 3]


# The time that is left ----------------------------------------------------------------


def simulated_run(seed, steps=600, first=0):
    """Tokens of each step, its seconds, and those of the evaluations behind steps.

    Batches differ five times in length, the first steps are slow, and an epoch of 150
    steps ends in an evaluation that takes as long as 40 steps.
    """
    rng = np.random.default_rng(seed)
    tokens = 16.0 * rng.integers(60, 300, size=steps)
    seconds = (0.05 + tokens * 2e-4) * rng.lognormal(0, 0.2, steps)
    seconds[first : first + 4] *= [12, 4, 3, 2]
    evaluation = np.where(np.arange(1, steps + 1) % 150 == 0, 40 * seconds.mean(), 0)
    return tokens, seconds, evaluation


@pytest.mark.parametrize("first", [0, 320])
def test_the_time_left_is_right_from_the_first_minute(first):
    """Also where a run was taken up again, and no evaluation has been seen."""
    for seed in range(10):
        tokens, seconds, evaluation = simulated_run(seed, first=first)
        in_tokens = evaluation.max() * tokens.mean() / seconds.mean()
        left = training.TimeLeft(tokens, 150, in_tokens)
        assert left.seconds == math.inf
        truth = np.cumsum((seconds + evaluation)[::-1])[::-1]
        gone = 0.0
        for step in range(first, len(tokens)):
            left.note(step, seconds[step], evaluation[step])
            gone += seconds[step] + evaluation[step]
            after = truth[step + 1] if step + 1 < len(tokens) else 0.0
            if gone > 60:
                near = max(0.15 * after, 5 * seconds.mean())
                assert abs(left.seconds - after) < near, (seed, step)
        assert left.seconds == 0


def test_the_time_left_counts_the_evaluations_to_come():
    left = training.TimeLeft(np.ones(10), 4, 2.0)  # after 4, 8 and 10 steps
    left.note(0, 1.0)
    assert left.seconds == 9 + 3 * 2
    for step in (1, 2):
        left.note(step, 1.0)
    left.note(3, 1.0, 5.0)
    assert left.seconds == 6 + 2 * 5.0
    assert training.TimeLeft(np.ones(3)).evaluate_every is None


def test_the_bar_says_what_is_left(batches, capsys, monkeypatch):
    monkeypatch.setattr(training.TimeLeft, "seconds", 3723.4)
    torch.manual_seed(0)
    training.fit(tiny_model(), batches.at, steps=3, progress=True)
    assert "3/3 steps, 1:02:03 left" in capsys.readouterr().err
