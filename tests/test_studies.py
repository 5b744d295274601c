"""studies/: every study runs small, goes on after a stop, and writes what it says."""

import importlib.util
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from study_runs import a_study, run_tiny, tracked
from torch.nn import functional as F

from medlm_utils import data, runtime, text, training
from medlm_utils.runtime import MedlmError
from medlm_utils.studies import (
    anomaly_adbench,
    anomaly_cost,
    anomaly_encoder,
    anomaly_ohsumed,
    anomaly_representations,
    bert_learning_curve,
    bert_seeds,
    bert_speed,
    bert_trainer_agreement,
    core,
    covid_ct,
    ct_learning_curve,
    ct_pretrain,
    ct_shortcut,
    ct_speed,
    lm_scaling,
    lm_speed,
    nsp_ablation,
    ohsumed,
    wikitext2,
)
from medlm_utils.transformer import TransformerLM

STUDIES = {
    "lm_speed": lm_speed,
    "lm_scaling": lm_scaling,
    "wikitext2": wikitext2,
    "bert_seeds": bert_seeds,
    "bert_trainer_agreement": bert_trainer_agreement,
    "bert_speed": bert_speed,
    "nsp_ablation": nsp_ablation,
    "ohsumed": ohsumed,
    "bert_learning_curve": bert_learning_curve,
    "anomaly_adbench": anomaly_adbench,
    "anomaly_cost": anomaly_cost,
    "anomaly_encoder": anomaly_encoder,
    "anomaly_ohsumed": anomaly_ohsumed,
    "anomaly_representations": anomaly_representations,
    "ct_pretrain": ct_pretrain,
    "ct_learning_curve": ct_learning_curve,
    "ct_shortcut": ct_shortcut,
    "covid_ct": covid_ct,
    "ct_speed": ct_speed,
}
SHARED = {
    "core",
    "peers",
    "clinic_runs",
    "anomaly_runs",
    "ct_runs",
}  # what studies have in common
HAS_TRAINER = importlib.util.find_spec("accelerate") is not None
needs_trainer = pytest.mark.skipif(
    not HAS_TRAINER, reason="the HF Trainer needs accelerate, which is not installed"
)
# Those of chapter 2; those of other chapters have files of their own.
EACH = [
    pytest.param("lm_speed", marks=needs_trainer),
    "lm_scaling",
    "wikitext2",
]
METRICS = {
    "lm_speed": {
        "tokens_per_second_ours",
        "tokens_per_second_torch_layer",
        "tokens_per_second_hf_trainer",
        "ratio_vs_fastest",
    },
    "lm_scaling": {
        "floor_nats_per_token",
        "bigram_nats_per_token",
        "law_exponent",
        "law_error_where_fitted_percent",
        "best_excess_percent",
        "floor_guessed_by_fit",
        "long_run_excess_percent",
        "long_run_foreseen_percent",
        "long_run_valid_note_percent",
    },
    "wikitext2": {
        "test_perplexity",
        "validation_perplexity",
        "epochs",
        "best_epoch",
        "parameters",
        "dropout",
        "training_hours",
    },
}


pytestmark = pytest.mark.usefixtures("on_the_cpu")


def without_times(record):
    """A record without what a clock or the memory says."""
    metrics = {k: v for k, v in record["metrics"].items() if k != "training_hours"}
    of_clock = {"notebook_seconds", "peak_memory_gb", "date"}
    rest = {k: v for k, v in record.items() if k not in of_clock}
    return {**rest, "metrics": metrics}


@pytest.mark.slow
class TestTiny:
    @pytest.mark.parametrize("name", EACH)
    def test_the_record_has_its_shape(self, name, tmp_path):
        before, started = tracked(), time.process_time()
        record = run_tiny(STUDIES[name], tmp_path)
        assert time.process_time() - started < 60
        assert tracked() == before
        assert set(record) >= {"hardware", "versions", "seed", "date"}
        assert record["notebook_seconds"] > 0
        assert record["command"] == f"python -m medlm_utils.studies.{name} --tiny"
        assert set(record["metrics"]) == METRICS[name]
        for metric in record["metrics"].values():
            assert set(metric) <= set(runtime.METRIC_FIELDS)
            if "low" in metric:
                assert metric["low"] <= metric["value"] <= metric["high"]
        assert record["series"]

    @pytest.mark.parametrize("name", ["lm_scaling", "wikitext2"])
    def test_the_same_again_and_nothing_twice(self, name, tmp_path, capsys):
        first = run_tiny(STUDIES[name], tmp_path)
        assert "are kept" not in capsys.readouterr().err
        made = {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("*.json")}
        again = run_tiny(STUDIES[name], tmp_path)
        assert "are kept" in capsys.readouterr().err
        assert {p: p.stat().st_mtime_ns for p in made} == made
        fresh = run_tiny(STUDIES[name], tmp_path, "--fresh")
        assert without_times(first) == without_times(again) == without_times(fresh)

    @pytest.mark.parametrize("name", ["lm_scaling", "wikitext2"])
    def test_killed_and_taken_up_again(self, name, tmp_path, monkeypatch):
        steps, step = [], training._Run.step
        monkeypatch.setattr(
            training._Run, "step", lambda *a: steps.append(1) or step(*a)
        )
        unbroken = run_tiny(STUDIES[name], tmp_path / "unbroken")
        of_unbroken = len(steps)
        folder = tmp_path / "killed"
        code = (
            "import os, signal, sys\n"
            "from medlm_utils import training\n"
            f"from medlm_utils.studies import {name}\n"
            "save, saves = training._Run.save, []\n"
            "def dying(self, path):\n"
            "    save(self, path)\n"
            "    saves.append(path)\n"
            "    if len(saves) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
            "training._Run.save = dying\n"
            f"{name}.main(sys.argv[1:])\n"
        )
        options = ["--tiny", "--out", folder, "--work", folder / "work"]
        done = subprocess.run([sys.executable, "-c", code, *map(str, options)])
        assert done.returncode == -signal.SIGKILL
        assert list((folder / "work").rglob("*.checkpoint"))
        assert not (folder / "studies" / f"{name}.json").exists()
        assert without_times(run_tiny(STUDIES[name], folder)) == without_times(unbroken)
        assert len(steps) - of_unbroken < of_unbroken  # the rest alone
        assert not list((folder / "work").rglob("*.checkpoint"))

    def test_as_a_command(self, tmp_path):
        command = [sys.executable, "-m", "medlm_utils.studies.lm_scaling", "--tiny"]
        results = {"MEDLM_RESULTS_DIR": str(tmp_path)}
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | results
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "studies" / "lm_scaling.json").exists()
        assert "12 parts to do" in done.stderr and "about" in done.stderr
        assert re.search(r"law_exponent +≈", done.stdout)


def parts_of(counter, count=3, **settings):
    """Parts that count how often they are made."""

    def make(number):
        counter.append(number)
        return {"number": number, "drawn": float(torch.rand(()))}

    return [
        core.Part(f"part-{n}", {"n": n, **settings}, 1.0, lambda n=n: make(n))
        for n in range(count)
    ]


@pytest.fixture()
def study(tmp_path):
    return a_study(tmp_path, tiny=True)


class TestCore:
    def test_parts_are_made_once_and_from_their_own_seed(self, study):
        made = []
        first = study.run(parts_of(made))
        (study.work / "x").mkdir()
        next(study.work.glob("part-1-*.json")).unlink()
        assert study.run(parts_of(made)) == first
        assert made == [0, 1, 2, 1]

    def test_other_settings_make_another_part(self, study):
        made = []
        study.run(parts_of(made, 1))
        study.run(parts_of(made, 1, steps=5))
        assert made == [0, 0]

    def test_a_damaged_part_is_one_clear_error(self, study):
        study.run(parts_of([], 1))
        next(study.work.glob("part-0-*.json")).write_text("{")
        with pytest.raises(MedlmError, match="is no part of a study"):
            study.run(parts_of([], 1))

    def test_time_left_is_said_after_the_first_part(self, study, capsys):
        study.run(parts_of([]))
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == "medlm: part-0; 3 parts to do"
        assert re.fullmatch(r"medlm: part-2; 1 part to do, about \d+ s", lines[2])

    def test_a_long_training_says_how_long_it_takes(self, monkeypatch, capsys):
        times = iter([0, 0, 10, 200, 210, 220])
        monkeypatch.setattr(core.time, "monotonic", lambda: next(times))
        monkeypatch.setattr(core, "TELL_EVERY_S", 100)
        at = core._telling(lambda step: step, 30)
        assert [at(step) for step in (5, 6, 15, 16, 17)] == [5, 6, 15, 16, 17]
        said = capsys.readouterr().err
        assert said == "medlm: step 15 of 30, about 5 min\n"

    def test_work_files_belong_to_a_part(self, study):
        with pytest.raises(ValueError, match="No part is being made"):
            study.file(".checkpoint")

    @pytest.mark.parametrize(
        ("seconds", "words"), [(40, "40 s"), (700, "12 min"), (12_600, "3.5 h")]
    )
    def test_durations(self, seconds, words):
        assert core.in_words(seconds) == words

    def test_intervals_over_seeds(self):
        got = core.over_seeds([1.0, 2.0, 3.0])
        assert got["value"] == 2 and got["n"] == 3
        assert got["high"] - 2 == pytest.approx(4.303 / math.sqrt(3))
        with pytest.raises(ValueError, match="1 values; expected 2 to 10"):
            core.over_seeds([1.0])

    @pytest.mark.parametrize(("n", "edge"), [(1, 0), (5, 0), (6, 0), (9, 1), (20, 5)])
    def test_intervals_of_the_median(self, n, edge):
        got = core.over_repeats([float(v) for v in range(n)])
        assert (got["low"], got["high"]) == (edge, n - 1 - edge)

    def test_the_interval_of_the_median_covers_it(self):
        rng = np.random.default_rng(0)
        draws = rng.exponential(size=(1000, 9))
        spans = [core.over_repeats(list(row)) for row in draws]
        inside = [span["low"] <= math.log(2) <= span["high"] for span in spans]
        assert 0.94 < np.mean(inside) < 0.98


class TestCommand:
    def test_no_study_is_forgotten(self):
        files = Path(core.__file__).parent.glob("[a-z]*.py")
        assert {file.stem for file in files} == {*STUDIES, *SHARED}

    @pytest.mark.parametrize("name", STUDIES)
    def test_unknown_options(self, name, capsys):
        with pytest.raises(SystemExit) as left:
            STUDIES[name].main(["--big"])
        assert left.value.code == 2
        assert "unrecognized arguments: --big" in capsys.readouterr().err

    def no_run(self, study):
        raise AssertionError("must not start")

    def failing(self, capsys, *arguments):
        assert core.main("example", "About.", self.no_run, arguments) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    def test_tiny_never_writes_a_tracked_record(self, capsys):
        folder = runtime.shipped_records()
        error = self.failing(capsys, "--tiny", "--out", str(folder))
        assert "--tiny does not write into" in error

    def test_a_folder_that_cannot_be_written(self, capsys, tmp_path):
        file = tmp_path / "file"
        file.write_text("")
        for option in ("--out", "--work"):
            error = self.failing(capsys, "--tiny", option, str(file))
            assert "Cannot write into" in error

    def test_an_unknown_profile(self, capsys, monkeypatch):
        monkeypatch.setenv("MEDLM_PROFILE", "tpu")
        assert "expected one of cpu, gpu" in self.failing(capsys, "--tiny")

    def test_two_runs_do_not_share_a_folder(self, tmp_path, capsys):
        options, errors = ["--tiny", "--work", str(tmp_path)], []

        def outer(study):
            capsys.readouterr()
            errors.append(self.failing(capsys, *options))
            return {"value": 1.0}, {}

        assert core.main("example", "About.", outer, options) == 0
        assert "Another run of this study" in errors[0]

    def test_ctrl_c(self, tmp_path, capsys):
        def run(study):
            raise KeyboardInterrupt

        assert core.main("example", "About.", run, ["--tiny"]) == 130
        assert "The same command goes on" in capsys.readouterr().err

    def test_where_records_go(self, tmp_path, monkeypatch):
        cpu, gpu = runtime.PROFILES["cpu"], runtime.PROFILES["gpu"]
        results = runtime.results_dir() / "studies"
        assert core._record_path("x", cpu, False, None) == results / "x.json"
        named = core._record_path("x", gpu, True, tmp_path)
        assert named == tmp_path / "studies" / "x_gpu.json"
        monkeypatch.delenv("MEDLM_RESULTS_DIR")
        own = runtime.shipped_records() / "studies" / "x.json"
        assert core._record_path("x", cpu, False, None) == own
        assert core._record_path("x", cpu, True, None) != own


class TestSpeed:
    def test_the_torch_layer_model_is_causal(self):
        torch.manual_seed(0)
        model = lm_speed.TorchLayerLM(20, 16, 16, 2, 32, 2).eval()
        tokens = torch.randint(4, 20, (2, 12))
        changed = tokens.clone()
        changed[:, 8:] = 5
        # Without gradients torch takes another path: both must hide the future.
        for is_training, with_gradients in [
            (False, True),
            (False, False),
            (True, True),
        ]:
            with torch.set_grad_enabled(with_gradients):
                model.train(is_training)
                before, after = model(tokens), model(changed)
            torch.testing.assert_close(before[:, :8], after[:, :8])
            assert not torch.allclose(before[:, 8:], after[:, 8:])

    def test_it_times_the_model_of_the_chapter(self):
        for name in ("cpu", "gpu"):
            size, profile = lm_speed.SIZES[name]["chapter 2"], runtime.PROFILES[name]
            assert (size.d_model, size.blocks) == (
                profile.lm_d_model,
                profile.lm_blocks,
            )
            assert (size.batch, size.d_ff) == (profile.lm_batch, 3 * size.d_model)

    def test_gpt2_has_our_size_and_our_loss(self):
        gpt2 = lm_speed._gpt2(20, 16, 16, 2, 32, 2)
        ours = TransformerLM(20, 16, 16, 2, 32, 2)
        sizes = [sum(p.numel() for p in m.parameters()) for m in (gpt2, ours)]
        assert sizes[0] == sizes[1]
        batch = text.pad([torch.tensor([2, 7, 9, 3]), torch.tensor([2, 8, 3])])
        row = lm_speed._for_trainer(batch)
        inputs, targets = text.inputs_and_targets(batch)
        expected = F.cross_entropy(
            gpt2(inputs).logits.flatten(0, 1), targets.flatten(), ignore_index=-100
        )
        torch.testing.assert_close(gpt2(**row).loss, expected)

    def test_the_compiled_loss_is_the_loss(self, monkeypatch):
        monkeypatch.setattr(torch, "compile", lambda function: function)
        model = TransformerLM(20, 16, 16, 2, 32, 2)
        batch = text.pad([torch.tensor([2, 7, 9, 3]), torch.tensor([2, 8, 3])])
        ours, count = lm_speed._compiled_loss()(model, batch)
        nats, targets = training.language_loss(model, batch)
        assert count == targets == 5
        torch.testing.assert_close(ours, nats)

    def test_operations_against_torch_counter(self):
        from torch.utils.flop_counter import FlopCounterMode

        size = lm_speed.Size(16, 2, 32, 2, 1, 8, 20, 0, 1, 1)
        model = TransformerLM(20, 8, 16, 2, 32, 2, attend=by_hand)
        with FlopCounterMode(display=False) as counter:
            model(torch.randint(4, 20, (1, 8))).sum().backward()
        masked = 6 * size.blocks * size.d_model * 8  # the half that we do not count
        ours = lm_speed.flops_per_token(size, 20, 8)
        # The first block's input needs no gradient beyond the table: nothing is saved.
        assert counter.get_total_flops() / 8 == pytest.approx(ours + masked)

    def test_only_timed_tokens_count(self):
        size = lm_speed.Size(16, 2, 32, 1, 3, 0, 0, 2, 4, 1)
        batches, vocabulary = lm_speed._batches(size)
        assert len(batches) == 6 and all(len(batch) == 3 for batch in batches)
        assert max(int(batch.max()) for batch in batches) < vocabulary
        targets = sum(training.language_loss(flat, b)[1] for b in batches[2:])
        assert lm_speed._timed_targets(size, batches) == targets

    def test_a_peak_is_known_only_for_a_gpu(self):
        assert lm_speed.peak_flops("cpu") is None

    def test_without_accelerate_one_clear_error(self, study, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MedlmError, match="pip install accelerate"):
            lm_speed.run(study)


def by_hand(query, key, value, mask=None):
    """Attention whose products torch's counter sees."""
    scores = query @ key.transpose(-2, -1)
    return scores.masked_fill(~mask, -math.inf).softmax(-1) @ value


class Flat(torch.nn.Module):
    """Every token is equally likely."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, tokens):
        return self.weight + torch.zeros(*tokens.shape, 400)


flat = Flat()


class TestScaling:
    def test_a_law_is_found_again(self):
        compute = np.logspace(9, 13, 20)
        law = lm_scaling.fit_law(compute, 50 * compute**-0.3)
        assert law.a == pytest.approx(50) and law.b == pytest.approx(0.3)
        assert law.excess(1e10) == pytest.approx(50 * 1e10**-0.3)

    def test_efficient_runs(self):
        runs = [
            {"compute": c, "excess": e} for c, e in [(3, 4), (1, 9), (2, 5), (4, 4)]
        ]
        assert [run["compute"] for run in lm_scaling.efficient(runs)] == [1, 2, 3]

    def test_a_floor_is_guessed(self):
        compute = np.logspace(9, 12, 12)
        runs = [{"compute": c, "nats_per_token": 0.9 + 300 * c**-0.3} for c in compute]
        assert lm_scaling.guessed_floor(runs) == pytest.approx(0.9, abs=0.002)

    def test_the_error_of_a_law(self):
        law = lm_scaling.Law(1.0, 0.0)
        runs = [{"compute": 1, "excess": 1.1}, {"compute": 2, "excess": 1 / 1.1}]
        assert lm_scaling.law_error(law, runs) == pytest.approx(0.1)

    def test_notes_are_enough_and_never_come_twice(self):
        grid = lm_scaling.GRIDS["tiny"]
        notes = lm_scaling.draw(grid)
        steps = grid.seeds * max(grid.steps) + grid.long_steps
        assert len(notes.train) == steps * grid.batch
        assert len(notes.test) == len(notes.floor) == grid.test_notes
        assert 0.8 < notes.floor_nats_per_token < 1.0
        assert not any((row == text.UNKNOWN).any() for row in notes.test)

    def test_no_two_trainings_share_a_note(self):
        grid = lm_scaling.GRIDS["cpu"]
        longest = [(max(grid.steps), seed) for seed in range(grid.seeds)]
        longest.append((grid.long_steps, grid.seeds))
        taken = [lm_scaling.rows_of(grid, *chosen) for chosen in longest]
        rows = np.concatenate([np.arange(t.start, t.stop) for t in taken])
        assert len(np.unique(rows)) == len(rows)

    def test_notes_are_told_from_what_is_none(self):
        notes = lm_scaling.draw(lm_scaling.GRIDS["tiny"])
        row = notes.test[0].tolist()
        assert notes.parses(row[1:-1]) and not notes.parses(row[1:-3])

    def test_the_share_of_valid_notes(self):
        found = lm_scaling.valid_percent({"valid": 90, "written": 100})
        assert found["value"] == 90 and found["n"] == 100
        # Wilson's formula by hand
        z, p, n = 1.959964, 0.9, 100
        middle = (p + z**2 / 2 / n) / (1 + z**2 / n)
        half = z * np.sqrt(p * (1 - p) / n + z**2 / 4 / n**2) / (1 + z**2 / n)
        assert found["low"] == pytest.approx(100 * (middle - half), rel=1e-6)
        assert found["high"] == pytest.approx(100 * (middle + half), rel=1e-6)

    def test_the_long_run_is_no_part_of_the_fit(self):
        grid = lm_scaling.GRIDS["tiny"]
        notes = lm_scaling.draw(grid)
        runs = [
            {"d_model": 8, "tokens": n, "excess": 5 * n**-0.5, "nats_per_token": 1.0}
            | {"seed": seed}
            for seed in range(grid.seeds)
            for n in (10_000, 40_000, 90_000)
        ]
        long_run = {"d_model": 8, "tokens": 1_000_000, "excess": 9.0}
        long_run |= {"valid": 1, "written": 2}
        metrics, series = lm_scaling.summary(grid, notes, runs, long_run)
        floor = notes.floor_nats_per_token
        assert metrics["long_run_foreseen_percent"] == pytest.approx(0.5 / floor)
        assert metrics["long_run_excess_percent"] == pytest.approx(900 / floor)
        assert series["law"]["b"] == pytest.approx(0.5)

    def test_operations_of_a_training(self):
        grid = lm_scaling.GRIDS["tiny"]
        notes = lm_scaling.draw(grid)
        length = round(np.mean([len(row) - 1 for row in notes.test]))
        matrices = len(notes.tokenizer) * 8 + 3 * (4 * 8 * 8 + 2 * 8 * 24)
        by_hand = 6 * (matrices + 3 * 8 * length) * 10
        run = {"d_model": 8, "tokens": 10}
        assert lm_scaling.operations(grid, notes, run) == by_hand

    def test_slopes_and_the_knee(self):
        front = [{"compute": c, "excess": 3 * c**-0.5} for c in (1.0, 100.0, 1e4)]
        assert lm_scaling.slopes(front) == pytest.approx([0.5, 0.5])
        assert lm_scaling.past_the_knee(front, 4.0) == front[1:]
        assert lm_scaling.past_the_knee(front, 100.0) == front
        assert lm_scaling.past_the_knee(front, 0.1) == front[-2:]


class TestWikiText:
    def test_the_real_files_have_the_published_counts(self):
        if not data.verify("wikitext-2", hashes=False).complete:
            pytest.skip("WikiText-2 is not here: `medlm data fetch wikitext-2`")
        corpus = wikitext2.read_corpus()
        assert len(corpus.train) == 2_088_628
        assert len(corpus.valid) == 217_646
        assert len(corpus.tokenizer) == 33_278 + 2
        words = corpus.test()
        test = text.stream(corpus.tokenizer, words)
        assert len(test) == 245_569
        assert not corpus.tokenizer.unknown([words])
        number = wikitext2.articles(words)
        assert len(number) == len(test)
        assert 50 < len(np.unique(number)) < 70

    def test_other_counts_are_refused(self):
        with pytest.raises(MedlmError, match=r"expected .*245569"):
            wikitext2.check_counts({"test": 241_859}, 33_280)
        wikitext2.check_counts(wikitext2.TOKENS, 33_280)

    def test_articles(self):
        words = " \n = A = \n \n b c \n = = D = = \n = E F = \n g \n"
        tokenizer = text.WordTokenizer.train([words], split=str.split)
        number = wikitext2.articles(words)
        assert len(number) == len(text.stream(tokenizer, words))
        assert number.tolist() == [0] + [1] * 14 + [2] * 7

    def test_every_token_is_scored_once_with_its_context(self):
        plan = wikitext2.PLANS["tiny"]
        model = wikitext2.build(plan, 20, 0.5)
        running = torch.randint(4, 20, (100,))
        nats = wikitext2.score(model, running, plan, plan.context)
        assert len(nats) == 100
        opened = wikitext2.with_opening(running)
        # Token 60 is the target of the window in which 8 to 15 tokens are read before.
        first = (60 - plan.context) // plan.context * plan.context
        logits = model.eval()(opened[None, first : 60 + 1])[0, -1]
        assert nats[60] == pytest.approx(-logits.log_softmax(-1)[running[60]].item())

    def test_dropout_is_for_training_alone(self):
        plan = wikitext2.PLANS["tiny"]
        model = wikitext2.build(plan, 20, 0.5)
        plain = TransformerLM(20, plan.window, plan.d_model, 2, plan.d_ff, plan.blocks)
        plain.load_state_dict(model.state_dict())
        tokens = torch.randint(4, 20, (2, 10))
        torch.testing.assert_close(model.eval()(tokens), plain(tokens))
        model.train()
        assert not torch.allclose(model(tokens), model(tokens))
        # Embeddings, attention, feed-forward and the last state each drop a share.
        dropped = []
        model._drop = lambda x: dropped.append(x.shape) or x
        model(tokens)
        assert len(dropped) == 2 + 2 * plan.blocks

    def test_the_best_weights_are_kept(self, tmp_path):
        plan = wikitext2.PLANS["tiny"]
        model = wikitext2.build(plan, 20, 0.0)
        best = wikitext2.Best(tmp_path / "best.safetensors")
        assert best.nats_per_token == math.inf
        best.offer(model, 2.0)
        kept = {n: t.clone() for n, t in model.state_dict().items()}
        torch.nn.init.zeros_(model.embedding.weight)
        best.offer(model, 2.5)
        assert best.nats_per_token == 2.0
        best.load(model)
        assert all(torch.equal(kept[n], t) for n, t in model.state_dict().items())

    def test_the_interval_is_over_articles(self):
        nats, article = np.repeat([1.0, 3.0], 50), np.repeat([0, 1], 50)
        got = wikitext2._interval(nats, article)
        assert (got["low"], got["high"]) == (1.0, 3.0)

    @pytest.mark.slow
    def test_the_test_text_is_read_once_and_last(self, tmp_path, monkeypatch):
        read = []
        original = wikitext2._read
        monkeypatch.setattr(
            wikitext2, "_read", lambda *a: read.append(a[0]) or original(*a)
        )
        events = []
        fit = core.Study.fit
        monkeypatch.setattr(
            core.Study, "fit", lambda *a, **k: events.append(list(read)) or fit(*a, **k)
        )
        run_tiny(wikitext2, tmp_path)
        assert read == ["train", "valid", "test"]
        assert len(events) == 2 and all("test" not in event for event in events)
