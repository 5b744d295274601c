"""Tests of `medlm finetune` with one file, class weights and several labels a note."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli_bert import Page, write_encoder

from medlm_utils import bert, metrics
from medlm_utils.cli import main as cli
from medlm_utils.cli import many_labels
from medlm_utils.cli.content import epochs_in_words
from medlm_utils.runtime import MedlmError

LABELS = ("cough", "fever", "pain", "rash")


def write_several(path: Path, notes: int) -> None:
    """Two notes a patient; a word for each label that a note has, or "no"."""
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["patient", "text", "label"])
        for number in range(notes):
            chances = zip(LABELS, (0.5, 0.4, 0.3, 0.15), strict=True)
            found = [label for label, chance in chances if draw.random() < chance]
            words = [*(found or ["no"]), *draw.choices(["head", "chest"], k=3)]
            draw.shuffle(words)
            row = [f"p{number // 2}", " ".join(words), "|".join(found) or "none"]
            writer.writerow(row)


@pytest.fixture(scope="module", autouse=True)
def _few_draws() -> Iterator[None]:
    """Intervals of a tenth of the draws: their ends are not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many_labels, "DRAWS", (100, 100))
        yield


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder and a file of notes with several labels; nobody writes into it."""
    folder = tmp_path_factory.mktemp("given")
    write_encoder(folder / "encoder")
    write_several(folder / "notes.csv", 160)
    return folder


def words_of(given: Path, out: Path, *more: str) -> list[str]:
    files = [f"--data={given / 'notes.csv'}", f"--out={out}"]
    settings = ["--epochs=3", "--batch=8", "--rate=0.01"]
    return ["finetune", *files, f"--model={given / 'encoder'}", *settings, *more]


@pytest.fixture(scope="module")
def run(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    assert cli.main(words_of(given, out, "--multi-label=|", "--class-weights")) == 0
    return out


@pytest.fixture(scope="module")
def content(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text(encoding="utf-8"))


def predictions(run: Path, part: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Truth and probabilities, (notes, labels), and what was predicted."""
    rows = list(csv.DictReader((run / f"predictions_{part}.csv").open()))
    names = [name[2:] for name in rows[0] if name.startswith("p_")]
    truth = [[int(n in row["label"].split("|")) for n in names] for row in rows]
    p = [[float(row[f"p_{name}"]) for name in names] for row in rows]
    return np.array(truth), np.array(p), [row["predicted"] for row in rows]


def test_each_label_has_scikit_learns_numbers(
    run: Path, content: dict[str, Any]
) -> None:
    from sklearn import metrics as theirs

    names, limits = content["model"]["classes"], content["model"]["thresholds"]
    assert names == ["cough", "fever", "none", "pain", "rash"]
    truth, p, predicted = predictions(run, "test")
    yes = np.array([[int(n in row.split("|")) for n in names] for row in predicted])
    assert ((p >= np.array(limits) - 1e-5) == yes).all()
    facts = content["parts"]["test"]["labels"]
    for n, of in enumerate(facts):
        assert of["notes"] == truth[:, n].sum()
        expected = {
            "auroc": theirs.roc_auc_score(truth[:, n], p[:, n]),
            "average_precision": theirs.average_precision_score(truth[:, n], p[:, n]),
            "f1": theirs.f1_score(truth[:, n], yes[:, n]),
        }
        for name, value in expected.items():
            assert of[name]["value"] == pytest.approx(value, abs=1e-4)
        reached = of["average_precision"]
        assert reached["low"] - 1e-9 <= reached["value"] <= reached["high"] + 1e-9
    found = {k: v["value"] for k, v in content["metrics"].items()}
    macro = np.mean([of["average_precision"]["value"] for of in facts])
    assert found["test_macro_average_precision"] == pytest.approx(macro, abs=1e-4)
    micro = theirs.f1_score(truth, yes, average="micro")
    assert found["test_micro_f1"] == pytest.approx(micro, abs=1e-6)
    loss = np.mean([theirs.log_loss(truth[:, n], p[:, n]) for n in range(5)])
    assert found["test_log_loss"] == pytest.approx(loss, abs=1e-4)
    gained = found["test_gain_over_word_counts"]
    beside = found["test_word_counts_macro_average_precision"]
    assert gained == pytest.approx(macro - beside, abs=1e-4)


def test_it_learns_each_label(content: dict[str, Any]) -> None:
    found = content["metrics"]
    assert found["test_macro_auroc"]["value"] > 0.75
    learned = found["test_macro_average_precision"]["low"]
    assert learned > found["test_macro_prevalence"]["high"]


def test_thresholds_have_the_best_f1_on_validation(
    run: Path, content: dict[str, Any]
) -> None:
    truth, p, _ = predictions(run, "validation")
    for n, limit in enumerate(content["model"]["thresholds"]):
        column = truth[:, [n]]
        best = many_labels.f1(column, p[:, [n]] >= limit - 1e-5)
        every = [many_labels.f1(column, p[:, [n]] >= at) for at in p[:, n]]
        assert best == pytest.approx(np.nanmax(every))


def test_the_page_of_several_labels(run: Path, content: dict[str, Any]) -> None:
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert "Confusion matrix" not in page.text and "nats a label" in page.text
    assert "The labels were weighted" in page.text
    assert "was split by patient" in page.text
    assert content["history"]["remark"] in page.text
    assert content["settings"]["class_weights"] == "balanced"
    for of in content["parts"]["test"]["labels"]:
        found = of["average_precision"]
        assert f"{found['value']:.3f} ({found['low']:.3f}" in page.text


def test_the_saved_model_predicts_several_labels(
    run: Path, given: Path, tmp_path: Path
) -> None:
    model = bert.load_classifier(run / "model")
    assert model.thresholds and model.encoder.config is not None
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    out = tmp_path / "out.csv"
    files = [f"--input={given / 'notes.csv'}", f"--output={out}"]
    assert cli.main(["predict", f"--model={run / 'model'}", *files]) == 0
    rows = list(csv.DictReader(out.open()))
    split = list(csv.DictReader((run / "split.csv").open()))
    test = [row for row, of in zip(rows, split, strict=True) if of["part"] == "test"]
    _, p, predicted = predictions(run, "test")
    assert [row["predicted"] for row in test] == predicted
    ours = [[float(row[f"p_{name}"]) for name in model.labels] for row in test]
    assert np.abs(np.array(ours) - p).max() < 1e-5


def test_the_split_can_be_used_again_and_is_part_of_the_run(
    run: Path, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, split = tmp_path / "out", f"--split={run / 'split.csv'}"
    words = words_of(given, out, "--multi-label=|", "--epochs=1")
    assert cli.main([*words, "--seed=5", split]) == 0
    assert (out / "split.csv").read_bytes() == (run / "split.csv").read_bytes()
    found = json.loads((out / "report.json").read_text())
    assert found["split"]["how"] == "as in split.csv"
    assert "class_weights" not in found["settings"]
    capsys.readouterr()
    assert cli.main([*words, "--seed=5", "--resume"]) == 1
    assert "split " in capsys.readouterr().err
    assert cli.main([*words, "--seed=5", split, "--class-weights", "--resume"]) == 1
    assert "class weights None (now balanced)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--train={0}"], "--data alone"),
        (["--multi-label= "], "--multi-label is empty"),
        (["--multi-label=+"], "holds '|', which stands between"),
        (["--split={0}"], "no column 'row'"),
        (["--data={1}"], "Cannot read"),
    ],
)
def test_bad_options_are_one_clear_error(
    options: list[str],
    said: str,
    given: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = given / "notes.csv", tmp_path / "none.csv"
    words = [word.format(*paths) for word in options]
    assert cli.main(words_of(given, tmp_path / "out", *words)) == 1
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_no_file_at_all(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["finetune", f"--out={tmp_path / 'out'}"]) == 1
    assert "Expected --train and --val" in capsys.readouterr().err
    data = str(given / "notes.csv")
    words = ["finetune", f"--train={data}", f"--val={data}", f"--split={data}"]
    assert cli.main([*words, f"--out={tmp_path / 'out'}"]) == 1
    assert "--split is for --data" in capsys.readouterr().err


# Weights and losses -------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """Logits that do not depend on the tokens."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.logits


@pytest.mark.parametrize("weighted", [True, False])
def test_losses_are_those_of_torch(weighted: bool) -> None:
    torch.manual_seed(0)
    logits, ids = torch.randn(6, 3), torch.ones(6, 2, dtype=torch.long)
    weights = torch.tensor([0.5, 1.0, 3.0]) if weighted else None
    several = torch.randint(2, (6, 3))
    nats, count = bert.classification_loss(
        Fixed(logits), (ids, ids, several), weights=weights
    )
    expected = torch.nn.BCEWithLogitsLoss(pos_weight=weights)(logits, several.float())
    assert count == 18 and nats.item() / count == pytest.approx(expected.item())
    one = torch.tensor([0, 1, 2, 2, 1, 0])
    nats, count = bert.classification_loss(
        Fixed(logits), (ids, ids, one), weights=weights
    )
    each = torch.nn.functional.cross_entropy(logits, one, reduction="none")
    each = each * (weights[one] if weights is not None else 1)
    assert count == 6 and nats.item() == pytest.approx(each.sum().item())
    for label in (one, several):
        _, count = bert.classification_loss(Fixed(logits), (ids, ids, label))
        loss, _ = bert.classification_loss(
            Fixed(logits), (ids, ids, label), weights=weights
        )
        found = bert._measures(logits.numpy(), label.numpy(), weights)["loss"]
        assert found == pytest.approx(loss.item() / count, abs=1e-6)


def test_labels_and_weights_that_do_not_fit_are_refused() -> None:
    rows = [torch.tensor([1, 2])] * 2
    for labels in ([[0, 2], [1, 0]], [[0, 1]], [[0.5, 1], [0, 0]]):
        with pytest.raises(MedlmError, match="expected 0 or 1"):
            bert.LabelledBatches(rows, np.array(labels), 2)
    for weights in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(MedlmError, match="expected one above 0"):
            bert._checked_weights(weights, 2)


def test_weights_make_every_class_count_alike() -> None:
    from medlm_utils.cli.run import balanced_weights

    label = np.array([0] * 8 + [1] * 2)
    weights = balanced_weights(label, 2)
    assert weights[label].sum() == 10
    assert weights[0] * 8 == weights[1] * 2
    several = np.array([[1, 1], [0, 1], [0, 1], [0, 1]])
    assert balanced_weights(several, 2).tolist() == [3, 1]  # a yes weighs as every no


@pytest.mark.parametrize("seed", range(5))
def test_resamples_of_ranked_notes_are_those_of_metrics(seed: int) -> None:
    """With ties in the scores and notes that were drawn several times."""
    rng = np.random.default_rng(seed)
    label = (rng.random((50, 4)) < [0.5, 0.3, 0.1, 0.8]).astype(int)
    label[0], label[1] = 1, 0
    score = rng.integers(0, 9, (50, 4)) / 9
    ranked = many_labels.Ranked(label, score)
    for rows in (np.arange(50), np.append(rng.integers(0, 50, 48), [0, 1])):
        for n in range(4):
            columns = label[rows, n], score[rows, n]
            found = ranked.average_precision(rows)[n], ranked.auroc(rows)[n]
            expected = metrics.average_precision(*columns), metrics.auroc(*columns)
            assert found == pytest.approx(expected, abs=1e-12)
    alone = ranked.auroc(np.zeros(50, int))
    assert np.isnan(alone).all()  # one note only: no pairs


def test_a_label_that_no_note_has_is_no_number() -> None:
    label = np.array([[1, 0], [0, 0], [1, 0], [0, 0]])
    p = np.array([[0.9, 0.1], [0.2, 0.2], [0.8, 0.1], [0.1, 0.3]])
    groups = ["a", "b", "c", "d"]
    yes = many_labels.named(p, many_labels.thresholds(label, p))
    first, second = many_labels.by_label(label, (p, yes), p, groups)
    assert first["auroc"]["value"] == first["f1"]["value"] == 1
    assert second["auroc"] is None and second["average_precision"] is None
    found = many_labels.scores(label, (p, yes), (p, yes), groups)
    assert found["macro_average_precision"]["value"] == 1


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ((0.9, 0.5), "epoch 2 of 2, .*still fell in the last one. More epochs may"),
        ((0.9, 0.5, 0.7), r"epoch 2 of 3, .*\(0.500\); later .*0.700 at the end"),
        ((0.9,), "epoch 1 of 1, .*no other. More epochs may"),
    ],
)
def test_the_epoch_that_was_kept_is_said(loss: tuple[float, ...], said: str) -> None:
    assert re.search(said, epochs_in_words(loss))
