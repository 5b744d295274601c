"""runtime.py: profile, seed, the ≈ helper, records, results that can be written."""

import functools
import json
import math
import os
import platform
import random
import re
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
from nbval.plugin import get_sanitize_patterns

from medlm_utils import metrics, runtime
from medlm_utils.runtime import MedlmError, approx


@pytest.fixture(autouse=True)
def no_profile(monkeypatch):
    monkeypatch.delenv("MEDLM_PROFILE", raising=False)
    monkeypatch.setattr(runtime, "_run", None)


class TestProfile:
    def test_no_gpu_means_cpu_and_says_so(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        profile, reason = runtime.choose_profile("")
        assert (profile.name, reason) == ("cpu", "no GPU found")

    @pytest.mark.parametrize(
        ("native", "precision"), [(True, "bfloat16"), (False, "float16")]
    )
    def test_gpu_is_taken_with_the_precision_it_has(
        self, monkeypatch, native, precision
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: native)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card X")
        profile, reason = runtime.choose_profile("")
        assert (profile.name, profile.precision) == ("gpu", precision)
        assert "Card X" in reason

    def test_cpu_can_be_asked_for_on_a_gpu_machine(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        profile, reason = runtime.choose_profile("cpu")
        assert profile.name == "cpu" and "MEDLM_PROFILE" in reason

    def test_gpu_asked_for_where_there_is_none(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(MedlmError, match="finds no CUDA GPU"):
            runtime.choose_profile("gpu")

    def test_unknown_profile_names_the_known_ones(self):
        with pytest.raises(MedlmError, match=r"'tpu'.*cpu, gpu"):
            runtime.choose_profile("tpu")

    def test_the_gpu_row_is_the_bigger_one(self):
        cpu, gpu = runtime.PROFILES["cpu"], runtime.PROFILES["gpu"]
        assert max(gpu.attention_tokens) > max(cpu.attention_tokens)
        assert gpu.translator_steps > cpu.translator_steps


class TestSetup:
    def test_prints_one_line_with_the_choice_and_the_seed(self, monkeypatch, capsys):
        monkeypatch.setenv("MEDLM_PROFILE", "cpu")
        runtime.setup("no_such_notebook")
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        assert "profile cpu (MEDLM_PROFILE)" in out
        assert f"seed {runtime.SEED}" in out

    def test_tells_the_recorded_time_as_an_approximate_number(
        self, monkeypatch, capsys, tmp_path
    ):
        (tmp_path / "cpu").mkdir()
        record = tmp_path / "cpu" / "some.json"
        record.write_text(json.dumps({"notebook_seconds": 31.4}))
        monkeypatch.setattr(runtime, "shipped_records", lambda: tmp_path)
        monkeypatch.setenv("MEDLM_PROFILE", "cpu")
        runtime.setup("some")
        assert "≈31 s" in capsys.readouterr().out

    def test_seeds_every_generator(self):
        def draw():
            return random.random(), np.random.rand(), torch.rand(1).item()

        runtime.seed_everything(1)
        first = draw()
        assert draw() != first
        runtime.seed_everything(1)
        assert draw() == first

    @pytest.mark.parametrize(
        "starts",
        [
            "from medlm_utils import runtime; runtime.setup('x')",
            "import medlm_utils.studies",
        ],
    )
    def test_waiting_threads_do_not_spin(self, starts):
        code = (
            f"import os, sys; {starts};"
            "print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
        )
        env = {"PATH": "", "HOME": "", "MEDLM_PROFILE": "cpu"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True
        )
        assert done.stdout.split()[-1] == runtime.SPIN, done
        assert "setup" in starts or done.stdout.split()[-2] == "False"

    def test_all_cores_are_used(self, monkeypatch):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            runtime.use_all_cores()
            assert torch.get_num_threads() == runtime.cores()
        finally:
            torch.set_num_threads(before)


class TestMemory:
    @pytest.mark.skipif(
        platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep it"
    )
    def test_memory_that_is_freed_is_kept(self):
        code = (
            "import resource, torch\n"
            "from medlm_utils import runtime\n"
            "x, w = torch.ones(2000, 1000), torch.ones(1000, 4000)\n"
            "w.requires_grad_()\n"
            "def faults(before=None):\n"
            "    for _ in range(10):\n"
            "        (x @ w).log_softmax(-1).sum().backward()\n"
            "        w.grad = None\n"
            "    now = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
            "    return now - before if before else now\n"
            "before = faults(faults())\n"
            "assert runtime.keep_memory()\n"
            "print(before, min(faults(faults()) for _ in range(3)))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        before, after = map(int, done.stdout.split())
        assert after < before / 10

    def test_other_systems_are_left_alone(self, monkeypatch):
        monkeypatch.setattr(sys, "platform", "darwin")
        assert runtime.keep_memory() is False


class TestApprox:
    @pytest.mark.parametrize(
        ("value", "digits", "text"),
        [
            (0.12345, 3, "≈0.123"),
            (1234.5, 3, "≈1230"),
            (99.96, 3, "≈100"),
            (45, 3, "≈45"),
            (45.0, 3, "≈45.0"),
            (1234, 3, "≈1230"),
            (2.3e-7, 2, "≈2.3e-07"),
            (-3.14159, 3, "≈-3.14"),
            (0, 3, "≈0"),
            (0.0, 3, "≈0"),
            (math.nan, 3, "≈nan"),
            (np.float32(0.5), 2, "≈0.50"),
            (torch.tensor(2.0), 2, "≈2.0"),
        ],
    )
    def test_text(self, value, digits, text):
        assert approx(value, digits) == text

    @pytest.mark.parametrize("value", [0.00012345, 0.05, 1.0, 9.9951, 123456.0])
    def test_reads_back_within_its_digits(self, value):
        assert float(approx(value, 3)[1:]) == pytest.approx(value, rel=0.005)

    @pytest.mark.parametrize("digits", [0, 5])
    def test_more_digits_than_a_run_keeps_are_refused(self, digits):
        with pytest.raises(ValueError, match="expected 1 to 4"):
            approx(1.0, digits)

    @pytest.fixture
    def masked(self, root):
        """What nbval compares of a text."""
        text = (root / "tests" / "nbval_sanitize.cfg").read_text(encoding="utf-8")
        patterns = get_sanitize_patterns(text)
        return lambda said: functools.reduce(
            lambda left, pattern: re.sub(*pattern, left), patterns, said
        )

    def test_the_sanitizer_masks_every_form_and_nothing_else(self, masked):
        for value in [0.1, 1234.5, 2.3e-7, -3.0, 0, math.nan, math.inf, -math.inf]:
            said = f"took {approx(value)} s, 7 of 9"
            assert masked(said) == "took≈NUMBERs, 7 of 9", value
        plain = "AUROC 0.87 (31 of 120), -4 and 1e-3"
        assert masked(plain) == plain

    def test_the_sanitizer_masks_a_line_of_text(self, masked):
        said = "7 notes\n≈ Denies cough, pulse 88.\nnext 3"
        assert masked(said) == "7 notes\n≈TEXT\nnext 3"

    def test_the_sanitizer_masks_the_remark_of_an_interval(self, masked):
        some, all_ = (
            metrics.mean_by_patient(alarms, [1, 2, 3, 4])
            for alarms in ([True, True, True, False], 4 * [True])
        )
        assert "agree" in all_.approx() and "agree" not in some.approx()
        assert masked(all_.approx()) == masked(some.approx()) != ""
        exact = "≈0.5 (4 patients; and two more)"
        assert masked(exact) == "≈NUMBER(4 patients; and two more)"


class TestRecord:
    def start(self, monkeypatch):
        monkeypatch.setenv("MEDLM_PROFILE", "cpu")
        runtime.setup("some")

    def test_round_trip(self, monkeypatch, tmp_path):
        self.start(monkeypatch)
        full = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 120, "unit": "AUROC"}
        runtime.measured("plain", torch.tensor(1.25))
        runtime.measured("full", 0.5, low=0.4, high=0.6, n=120, unit="AUROC")
        runtime.measured("estimate", metrics.Estimate(0.5, 0.4, 0.6, 120), unit="AUROC")
        path = runtime.record()
        assert path == tmp_path / "results" / "cpu" / "some.json"
        stored = json.loads(path.read_text(encoding="utf-8"))
        plain = {"value": 1.25}
        assert stored["metrics"] == {"plain": plain, "full": full, "estimate": full}
        assert stored["seed"] == runtime.SEED
        assert stored["versions"]["torch"] == torch.__version__.split("+")[0]
        assert 0 < stored["peak_memory_gb"] < 24
        assert 0 <= stored["notebook_seconds"] < 60

    @pytest.mark.parametrize(
        "call", [lambda: runtime.measured("a", 1.0), runtime.record]
    )
    def test_without_setup(self, call):
        with pytest.raises(MedlmError, match="run the first cell"):
            call()

    def test_nothing_measured_is_no_record(self, monkeypatch, tmp_path):
        self.start(monkeypatch)
        with pytest.raises(MedlmError, match=r"no cell has called runtime\.measured"):
            runtime.record()
        assert not (tmp_path / "results").exists()

    @pytest.mark.parametrize(
        ("value", "fields", "message"),
        [
            (1, {"mean": 2}, "'mean'"),
            (math.nan, {}, "finite"),
            (1, {"low": math.inf}, "finite"),
            ("high", {}, "expected a number"),
            (True, {}, "expected a number"),
        ],
    )
    def test_a_bad_metric_is_refused_where_it_is_measured(
        self, monkeypatch, value, fields, message
    ):
        self.start(monkeypatch)
        with pytest.raises(MedlmError, match=message):
            runtime.measured("bad", value, **fields)

    def test_one_name_for_two_values_in_a_cell_is_refused(self, monkeypatch):
        self.start(monkeypatch)
        runtime.measured("share", 0.974)
        with pytest.raises(MedlmError, match=r"'share' is measured twice in one cell"):
            runtime.measured("share", 0.012)

    def test_a_cell_may_be_run_again(self, monkeypatch):
        from IPython.core.interactiveshell import InteractiveShell

        self.start(monkeypatch)
        shell = InteractiveShell()
        monkeypatch.setattr("IPython.get_ipython", lambda: shell)
        source = "runtime.measured('share', {})"
        shell.push({"runtime": runtime})
        for value in (0.5, 0.25):
            shell.run_cell(source.format(value), store_history=True).raise_error()
        twice = "\n".join(map(source.format, (1, 2)))
        with pytest.raises(MedlmError, match="twice in one cell"):
            shell.run_cell(twice, store_history=True).raise_error()
        path = runtime.record()
        stored = json.loads(path.read_text(encoding="utf-8"))
        assert stored["metrics"]["share"]["value"] == 1

    def test_another_notebook_begins_with_nothing(self, monkeypatch):
        self.start(monkeypatch)
        runtime.measured("share", 0.5)
        self.start(monkeypatch)
        with pytest.raises(MedlmError, match="Nothing to record"):
            runtime.record()

    def test_folder_that_cannot_be_written(self, monkeypatch, tmp_path):
        self.start(monkeypatch)
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("MEDLM_RESULTS_DIR", str(tmp_path / "file"))
        runtime.measured("a", 1.0)
        with pytest.raises(MedlmError, match="MEDLM_RESULTS_DIR"):
            runtime.record()

    def test_a_failed_write_leaves_the_old_file_and_no_other(
        self, monkeypatch, tmp_path
    ):
        path = tmp_path / "some.json"
        runtime.write_json(path, {"old": 1})

        def full_disk(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(runtime.os, "replace", full_disk)
        with pytest.raises(MedlmError, match="No space left"):
            runtime.write_json(path, {"new": 2})
        assert [file.name for file in tmp_path.iterdir()] == ["some.json"]
        assert json.loads(path.read_text()) == {"old": 1}

    @pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
    def test_a_record_may_be_read_by_whom_the_umask_says(self, umask, tmp_path):
        before = os.umask(umask)
        try:
            runtime.write_json(tmp_path / "some.json", {"a": 1})
        finally:
            os.umask(before)
        mode = (tmp_path / "some.json").stat().st_mode
        assert stat.S_IMODE(mode) == 0o666 & ~umask

    def test_a_folder_is_tried_before_the_work(self, tmp_path):
        runtime.check_writable(tmp_path / "new" / "one", "name another")
        assert list((tmp_path / "new" / "one").iterdir()) == []
        (tmp_path / "file").write_text("")
        with pytest.raises(MedlmError, match=r"Cannot write into .*write; go away\.$"):
            runtime.check_writable(tmp_path / "file", "go away")

    def test_without_the_variable_nothing_tracked_is_written(self, monkeypatch):
        monkeypatch.delenv("MEDLM_RESULTS_DIR")
        assert runtime.shipped_records() not in runtime.results_dir().parents
        assert runtime.results_dir() != runtime.shipped_records()


class TestStudy:
    @pytest.fixture
    def records(self, tmp_path, monkeypatch):
        monkeypatch.setattr(runtime, "shipped_records", lambda: tmp_path)
        content = runtime.results({"loss": {"value": 0.5, "n": 3}}, 90.0, "cpu")
        content |= {"command": "python -m x", "series": [1]}
        (tmp_path / "studies").mkdir()
        runtime.write_json(tmp_path / "studies" / "small.json", content)
        return content

    def test_it_says_what_was_found_and_how(self, records, capsys):
        assert runtime.study("small") == json.loads(json.dumps(records))
        said = capsys.readouterr().out
        assert "≈0.500 (n = 3)" in said and "in ≈1.5 min" in said
        assert records["date"] in said and "Again: python -m x" in said

    def test_it_can_say_less(self, records, capsys):
        assert runtime.study("small", only=[]) == json.loads(json.dumps(records))
        said = capsys.readouterr().out
        assert "loss" not in said and records["date"] in said
        runtime.study("small", only=["loss"])
        assert "loss" in capsys.readouterr().out
        with pytest.raises(MedlmError, match=r"no metric 'lost'; it has loss"):
            runtime.study("small", only=["lost"])

    def test_an_unknown_study_is_one_clear_error(self, records):
        with pytest.raises(MedlmError, match=r"'big'.*expected one of small"):
            runtime.study("big")
