"""run_notebooks.py, notebook_inputs.py: staleness, execution, failures, no network."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import notebook_inputs
import numpy as np
import pytest
import run_notebooks
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from notebook_inputs import bare_code, inputs_hash, is_fresh

MODULES = {
    "__init__.py": "",
    "low.py": '"""Low."""\nfrom medlm_utils import data\ndef f():\n    return 1\n',
    "data.py": '"""Data."""\n',
    "high.py": '"""High."""\nfrom medlm_utils import low\nimport numpy\n',
    "other.py": "X = 1\n",
}


@pytest.fixture
def small_root(tmp_path):
    """A project with three modules, of which `high` imports `low`."""
    package = tmp_path / "medlm_utils"
    package.mkdir()
    for name, text in MODULES.items():
        (package / name).write_text(text)
    (package / "checks").mkdir()
    (package / "checks" / "__init__.py").write_text("Y = 1\n")
    (package / "checks" / "one.py").write_text("Z = 1\n")
    (package / "registry").mkdir()
    (package / "registry" / "weights.tsv").write_text("model\t" + "a" * 64 + "\n")
    (tmp_path / "requirements.lock").write_text("numpy==2\n")
    return tmp_path


def notebook_of(*sources):
    cells = [new_code_cell(source) for source in sources]
    return json.loads(nbformat.writes(new_notebook(cells=cells)))


class TestHash:
    def test_bare_code_drops_docstrings_comments_and_blank_lines(self):
        source = (
            '"""Module\ntext."""\n\nX = "#no comment"  # a comment\n\n'
            'def f():\n    """Ünïcode "text"."""; y = 1\n    return "kept"\n'
        )
        assert bare_code(source) == (
            'X = "#no comment"\ndef f():\n    ; y = 1\n    return "kept"'
        )

    def test_blank_lines_count_inside_a_string_only(self):
        assert bare_code("x = 1\n\ny = 2") == bare_code("x = 1\ny = 2")
        assert bare_code('x = """a\n\nb"""') != bare_code('x = """a\nb"""')
        assert bare_code('x = """a  \nb"""') != bare_code('x = """a\nb"""')
        assert bare_code('"""A\n\nb."""\nx = 1') == bare_code('"""C."""\nx = 1')

    def test_a_string_that_is_no_docstring_counts(self):
        assert bare_code('x = """text"""') != bare_code('x = """other"""')

    @pytest.mark.parametrize(
        ("name", "before", "after", "stale"),
        [
            ("low.py", "return 1", "return 2", True),
            ("registry/weights.tsv", "a" * 64, "b" * 64, True),
            ("checks/__init__.py", "Y = 1", "Y = 2", True),
            ("checks/one.py", "Z = 1", "Z = 2", True),
            ("low.py", "Low.", "Quite low.", False),
            ("low.py", "def f():", "# why\n\ndef f():", False),
            ("high.py", "import numpy", "import torch", True),
            ("other.py", "X = 1", "X = 2", False),
        ],
    )
    def test_what_makes_a_notebook_stale(self, small_root, name, before, after, stale):
        notebook = notebook_of(
            "from medlm_utils import high", "import medlm_utils.checks.one"
        )
        old = inputs_hash(notebook, small_root)
        file = small_root / "medlm_utils" / name
        file.write_text(file.read_text().replace(before, after))
        assert (inputs_hash(notebook, small_root) != old) == stale

    def test_the_lock_and_the_cells_count(self, small_root):
        old = inputs_hash(notebook_of("print(1)"), small_root)
        assert inputs_hash(notebook_of("print(2)"), small_root) != old
        assert inputs_hash(notebook_of("print(1)  # comment"), small_root) == old
        (small_root / "requirements.lock").write_text("numpy==3\n")
        assert inputs_hash(notebook_of("print(1)"), small_root) != old

    def test_pins_of_testers_do_not_count(self, small_root):
        cell, lock = notebook_of("print(1)"), small_root / "requirements.lock"
        lock.write_text(
            "numpy==2 \\\n    --hash=sha256:1\npytest==9 \\\n    --hash=x\n"
        )
        old = inputs_hash(cell, small_root)
        lock.write_text("execnet==1\nnumpy==2 \\\n    --hash=sha256:1\npytest==10\n")
        assert inputs_hash(cell, small_root) == old
        lock.write_text("execnet==1\nnumpy==2 \\\n    --hash=sha256:2\npytest==10\n")
        assert inputs_hash(cell, small_root) != old

    def test_a_dial_counts_for_those_who_read_it(self, small_root):
        module = small_root / "medlm_utils" / "runtime.py"
        text = (
            "X_Y = 1\nclass Profile:\n    lm_steps: int\n    ct_size: int\n"
            'PROFILES = {\n    "cpu": Profile(\n        lm_steps=3,\n'
            "        ct_size=4,\n    )\n}\ndef f(lm_steps=5):\n    pass\n"
        )
        code = "from medlm_utils import runtime\n"
        cells = [notebook_of(code), notebook_of(code + "profile.ct_size")]

        def hashes(before, after):
            module.write_text(text.replace(before, after))
            return [inputs_hash(cell, small_root) for cell in cells]

        old = hashes("", "")
        without, reads = hashes("ct_size=4", "ct_size=5")
        assert without == old[0] and reads != old[1]
        assert hashes("lm_steps=3", "lm_steps=4") == old
        for change in (("X_Y = 1", "X_Y = 2"), ("lm_steps=5", "lm_steps=6")):
            assert not set(hashes(*change)) & set(old)  # outside of the profiles

    def test_magics_and_the_ends_of_cells_count(self, small_root):
        hashes = {
            inputs_hash(notebook_of(*cells), small_root)
            for cells in [
                ("%env A=1",),
                ("%env A=2",),
                ("x = !ls",),
                ("1", "2"),
                ("1\n2",),
                ("if True:\n    %time 1",),
            ]
        }
        assert len(hashes) == 6

    def test_the_record_of_a_study_that_is_shown_counts(self, small_root):
        folder = small_root / "medlm_utils" / "recorded" / "studies"
        folder.mkdir(parents=True)
        shown, other = notebook_of("runtime.study('speed')"), notebook_of("x = 1")
        before = [inputs_hash(nb, small_root) for nb in (shown, other)]
        (folder / "speed.json").write_text("{}", encoding="utf-8")
        after = [inputs_hash(nb, small_root) for nb in (shown, other)]
        assert before[0] != after[0] and before[1] == after[1]

    @pytest.mark.parametrize(
        "statement",
        [
            "import medlm_utils.high",
            "from medlm_utils import high",
            "from medlm_utils.high import numpy",
            "import medlm_utils.high as h",
            "%matplotlib inline\nfrom medlm_utils import high",
        ],
    )
    def test_every_way_to_import_is_followed_to_the_end(self, small_root, statement):
        code = notebook_inputs.notebook_code(notebook_of(statement))
        needed = {f.stem for f in notebook_inputs.needed_files(code, small_root)}
        assert {"high", "low"} <= needed and "other" not in needed


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The runner on a folder of its own."""
    monkeypatch.setattr(run_notebooks, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(run_notebooks, "EXECUTED", tmp_path / "executed")
    monkeypatch.setattr(run_notebooks, "RECORDED", tmp_path / "recorded")
    monkeypatch.setattr(run_notebooks, "KERNEL_LOG", tmp_path / "kernel.log")

    def put(name, *sources):
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        cells = [new_markdown_cell("# T"), *map(new_code_cell, sources)]
        nbformat.write(new_notebook(cells=cells), path)
        return path

    return put


def outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    return ["".join(o.get("text", "") for o in c.get("outputs", [])) for c in cells[1:]]


@pytest.mark.slow
class TestRuns:
    def test_in_place_once_then_fresh(self, workplace, capsys):
        path = workplace(
            "a", "import os\nprint(os.environ['MEDLM_PROFILE'])", "object()"
        )
        (run_notebooks.RECORDED / "cpu").mkdir(parents=True)
        (run_notebooks.RECORDED / "cpu" / "a.json").write_text("{}")
        run_notebooks.run_in_place([path], force=False)
        assert outputs(path)[0] == "cpu\n" and is_fresh(path)
        assert " at 0x" not in path.read_text()
        first = path.read_bytes()
        run_notebooks.run_in_place([path], force=False)
        assert path.read_bytes() == first
        assert "0 run, 1 were fresh" in capsys.readouterr().out

    def test_build_leaves_the_source_alone_and_follows_its_text(
        self, workplace, capsys
    ):
        path = workplace("a", "print(40 + 2)")
        before = path.read_bytes()
        run_notebooks.build([path], force=False)
        copy = run_notebooks.executed_path(path)
        assert path.read_bytes() == before and outputs(copy) == ["42\n"]

        path.write_text(path.read_text().replace("# T", "# Another title"))
        run_notebooks.build([path], force=False)
        assert "0 notebooks executed, 1 fresh" in capsys.readouterr().out
        assert "Another title" in copy.read_text() and outputs(copy) == ["42\n"]

        path.write_text(path.read_text().replace("40 + 2", "40 + 3"))
        run_notebooks.build([path], force=False)
        assert outputs(copy) == ["43\n"]

    def test_a_failed_cell_stops_with_its_error_and_status_1(
        self, workplace, monkeypatch, capsys
    ):
        path = workplace("a", "1 / 0", "print('never')")
        monkeypatch.setattr(sys, "argv", ["run_notebooks.py", "--build"])
        assert run_notebooks.main() == 1
        captured = capsys.readouterr()
        assert "ZeroDivisionError" in captured.err and "1 / 0" in captured.err
        assert "That was cell 2 of 3 of a.ipynb." in captured.err
        assert "\x1b" not in captured.err and "FAILED" in captured.out
        assert not run_notebooks.executed_path(path).exists()

    @pytest.mark.parametrize("starting", [True, False])
    def test_ctrl_c_stops_without_a_traceback(self, root, starting):
        """The real program, interrupted in a chapter, or while its kernel starts."""
        running = subprocess.Popen(
            [sys.executable, "tools/run_notebooks.py", "--build", "--force", "01_att"],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        said = running.stdout.readline()
        while not starting and "cell 0/" in said:
            said = running.stdout.readline()
        time.sleep(1)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
        assert running.returncode == 130, out + err
        assert "stopped after" in said + out and "Traceback" not in err
        assert "call the same command again" in err

    def test_kernels_have_no_network(self, workplace):
        path = workplace(
            "a",
            "import urllib.request\n"
            "try:\n    urllib.request.urlopen('http://example.org', timeout=3)\n"
            "except Exception as error:\n    print(error)",
        )
        run_notebooks.build([path], force=False)
        assert (
            "cut off from the network" in outputs(run_notebooks.executed_path(path))[0]
        )


class TestWithoutAKernel:
    def test_names_choose_and_unknown_names_are_refused(self, workplace):
        a, b = workplace("01_a", "1"), workplace("02_b", "1")
        assert run_notebooks.chosen([]) == [a, b]
        assert run_notebooks.chosen(["02"]) == [b]
        with pytest.raises(SystemExit, match=r"There are: 01_a\.ipynb, 02_b\.ipynb"):
            run_notebooks.chosen(["03"])

    def test_results_go_where_the_caller_says(self, tmp_path, monkeypatch):
        for name in ("HF_HUB_OFFLINE", "TQDM_DISABLE", "MEDLM_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        env = run_notebooks.kernel_environment(tmp_path)
        assert env["MEDLM_RESULTS_DIR"] == str(tmp_path)
        assert (env["MEDLM_PROFILE"], env["MEDLM_OFFLINE"]) == ("cpu", "1")
        assert (env["HF_HUB_OFFLINE"], env["TQDM_DISABLE"]) == ("1", "1")

    def test_a_failed_write_keeps_the_old_notebook(self, workplace, monkeypatch):
        path = workplace("a", "1")
        before = path.read_bytes()

        def half(_, target):
            target.write_text("{")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(run_notebooks.nbformat, "write", half)
        with pytest.raises(OSError, match="No space"):
            run_notebooks.write(nbformat.read(path, as_version=4), path)
        assert path.read_bytes() == before

    def test_a_build_folder_that_cannot_be_written_stops_before_any_work(
        self, tmp_path
    ):
        (tmp_path / "_build").write_text("a file in the way")
        with pytest.raises(SystemExit, match="Cannot write into"):
            run_notebooks.check_writable(tmp_path / "_build" / "results")

    def test_stale_says_which_and_fails(self, workplace, monkeypatch, capsys):
        path = workplace("a", "1")
        monkeypatch.setattr(run_notebooks, "ROOT", path.parent.parent)
        monkeypatch.setattr(sys, "argv", ["run_notebooks.py", "--stale"])
        assert run_notebooks.main() == 1
        assert "stale: notebooks/a.ipynb" in capsys.readouterr().out

    def test_progress_says_cell_time_and_usual_time(self):
        progress = run_notebooks.Progress("[1/2] a", 12, 30)
        progress.cell = 4
        assert progress.line() == "[1/2] a  cell 4/12  0 of about 30 s"


class TestOffline:
    """The socket block itself, in a process of its own."""

    def run(self, root, code):
        env = os.environ | {"PYTHONPATH": str(root / "tools" / "kernel")}
        return subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True
        )

    @pytest.mark.parametrize(
        "call",
        [
            "socket.create_connection(('192.0.2.1', 80), 3)",
            "socket.getaddrinfo('example.org', 80)",
            "socket.socket().connect_ex(('192.0.2.1', 80))",
            "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
            "socket.socket(socket.AF_INET6).connect(('2001:db8::1', 80))",
        ],
    )
    def test_every_way_out_is_refused(self, root, call):
        done = self.run(root, f"import socket\n{call}")
        host = re.search(r"'([^']*[.:][^']*)'", call).group(1)
        assert "NetworkBlocked: This run is cut off" in done.stderr
        assert f"something called {host}" in done.stderr

    def test_loopback_works(self, root):
        code = (
            "import socket\nserver = socket.create_server(('127.0.0.1', 0))\n"
            "client = socket.create_connection(server.getsockname())\n"
            "socket.create_connection(('localhost', server.getsockname()[1]))\n"
            "a, b = socket.socketpair()\nprint('fine')"
        )
        assert self.run(root, code).stdout == "fine\n"


class TestShaken:
    """Runs whose numbers differ as on another processor."""

    TRAIN = """
import medlm_utils, torch
torch.manual_seed(0)
model = torch.nn.Linear(3, 2)
adam = torch.optim.AdamW(model.parameters())
model(torch.ones(1, 3)).sum().backward()
adam.step(), adam.step()
print(model.weight.tolist())
print(torch.cpu._is_avx512_bf16_supported())
print(torch.rand(1).item())
"""

    TWINS = """
import copy, medlm_utils, torch
def train(model, adam):
    model(torch.ones(1, 3)).square().sum().backward()
    adam.step(), adam.zero_grad()
one = torch.nn.Linear(3, 2)
two = copy.deepcopy(one)
first, second = (torch.optim.AdamW(m.parameters()) for m in (one, two))
train(one, first), train(two, second)
resumed = copy.deepcopy(two)
third = torch.optim.AdamW(resumed.parameters())
third.load_state_dict(copy.deepcopy(second.state_dict()))
train(one, first), train(two, second), train(resumed, third)
print([torch.equal(one.weight, m.weight) for m in (two, resumed)])
"""

    def run(self, root, code, **shaking):
        paths = map(str, (root / "tools" / "kernel", root))
        env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        return subprocess.run(
            [sys.executable, "-c", code],
            env=env | shaking,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def trained(self, root, **shaking):
        weights, native, drawn = self.run(root, self.TRAIN, **shaking).splitlines()
        return np.array(json.loads(weights)), native, drawn

    def test_weights_move_by_little_and_draws_stay(self, root):
        still, native, drawn = self.trained(root)
        for seed in (1, 2):
            shaking = run_notebooks.shaken.environment(seed)
            assert ("ONEDNN_MAX_CPU_ISA" in shaking) == (seed == 1)
            weights, has_bfloat16, same = self.trained(root, **shaking)
            assert 0 < np.abs(weights / still - 1).max() < 1e-5
            assert same == drawn
            assert has_bfloat16 == ("False" if seed == 1 else native)

    def test_what_must_agree_on_one_machine_still_does(self, root):
        assert self.run(root, self.TWINS, MEDLM_SHAKE="2") == "[True, True]\n"

    def test_only_a_comparison_is_shaken(self, monkeypatch, capsys, tmp_path):
        monkeypatch.setenv("MEDLM_SHAKE", "1")
        assert run_notebooks.kernel_environment(tmp_path)["MEDLM_SHAKE"] == ""
        monkeypatch.setattr(sys, "argv", ["run_notebooks.py", "--shake", "1"])
        with pytest.raises(SystemExit):
            run_notebooks.main()
        assert "goes with --validate" in capsys.readouterr().err

    @pytest.mark.slow
    def test_a_digit_without_its_sign_is_found(self, workplace, capfd):
        *train, _, _, _ = self.TRAIN.strip().splitlines()
        shown = (f"print('{sign}', model.bias[0].item())" for sign in ("≈", "="))
        path = workplace("a", "\n".join(train), *shown)
        run_notebooks.run_in_place([path], force=True)
        assert run_notebooks.validate([path], seed=2) == 1
        assert "1 failed, 2 passed" in capfd.readouterr().out
