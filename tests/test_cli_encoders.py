"""Encoders of any kind in the commands that read notes, and what is read of a note."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medlm_utils import bert, runtime, training
from medlm_utils.cli import main as cli
from medlm_utils.cli import processes
from medlm_utils.cli.reading import Reading
from medlm_utils.runtime import MedlmError

WORDS = ("fever", "cough", "pain", "no", "rash", "head", "chest", "denies", "nausea")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".")
COUNT = len(SPECIAL) + len(WORDS)
LABELS = ("flu", "none")
SIZES = {
    "vocab_size": COUNT,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 34,
    "initializer_range": 0.3,
}
# Configuration to its settings, and how many tokens the model has places for.
WORK: dict[str, tuple[dict[str, Any], int]] = {
    "Bert": ({}, 34),
    "DebertaV2": ({"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, 34),
    "Roberta": ({"pad_token_id": 0}, 33),
    "XLMRoberta": ({"pad_token_id": 1}, 32),
    "Albert": ({"embedding_size": 8}, 34),
    "Electra": ({"embedding_size": 8}, 34),
    "MPNet": ({"pad_token_id": 1}, 32),
    "Longformer": ({"pad_token_id": 1, "attention_window": 4}, 32),
    "ModernBert": (
        {
            f"{name}_token_id": n
            for name, n in (
                ("pad", 0),
                ("bos", 2),
                ("cls", 2),
                ("eos", 3),
                ("sep", 3),
            )
        },
        34,
    ),
    "DistilBert": ({"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}, 34),
    "XLNet": ({"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}, 1_000_000),
}
REFUSED = {
    "GPT2": (
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 34},
        "'gpt2': its first token is told nothing of the others, as in a decoder",
    ),
    "T5": (
        {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
        "'t5': it has a decoder beside its encoder; expected an encoder such as BERT",
    ),
    "FNet": ({}, "'fnet': the padding beside a text changes what it says"),
}
OWN_SIZES = ("DistilBert", "XLNet", "GPT2", "T5")  # which call theirs otherwise


def write_tokenizer(folder: Path, limit: int = 10**30) -> None:
    from transformers import BertTokenizerFast

    (folder / "vocab.txt").write_text("\n".join((*SPECIAL, *WORDS)) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    tokenizer.model_max_length = limit
    tokenizer.save_pretrained(folder)


def write_encoder(
    folder: Path, kind: str = "Bert", limit: int = 10**30, **settings: Any
) -> Path:
    """A random one of this architecture; its tokenizer has no limit of its own."""
    import torch
    import transformers

    usual = dict(SIZES)
    if kind in OWN_SIZES:
        usual = {n: SIZES[n] for n in ("vocab_size", "initializer_range")}
        usual |= {"max_position_embeddings": 34} if kind == "DistilBert" else {}
    if kind == "FNet":
        del usual["num_attention_heads"]
    config = getattr(transformers, f"{kind}Config")(**(usual | settings))
    torch.manual_seed(0)
    with bert.quiet():
        transformers.AutoModel.from_config(config).save_pretrained(folder)
    write_tokenizer(folder, limit)
    return folder


def write_notes(path: Path, texts: list[str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([text, LABELS[n % 2]] for n, text in enumerate(texts))
    return path


def some_texts(count: int, longest: int = 60, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, longest, size=count)
    return [" ".join(rng.choice(WORDS, size=size)) for size in sizes]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def model(encoder: Path) -> bert.Classifier:
    return bert.Classifier.pretrained(LABELS, encoder).eval()


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error, the reminder apart."""
    lines = capsys.readouterr().err.splitlines()
    kept = [line for line in lines if "Reminder" not in line]
    assert len(kept) == 1, kept
    return kept[0]


# Kinds of encoders --------------------------------------------------------------------


@pytest.mark.parametrize("kind", WORK)
def test_encoders_of_many_kinds_learn_and_come_back(kind: str, tmp_path: Path) -> None:
    settings, places = WORK[kind]
    folder = write_encoder(tmp_path / "encoder", kind, **settings)
    model = bert.Classifier.pretrained(LABELS, folder)
    assert (model.positions, model.longest) == (places, min(places, 256))
    texts = some_texts(6)
    rows = bert.encode(model.tokenizer, texts, model.longest)
    assert max(map(len, rows)) == min(places, 53)  # all places are used
    alone = np.vstack([bert.embed(model, [row]) for row in rows])
    assert np.abs(bert.embed(model, rows) - alone).max() < 1e-5
    labels = [n % 2 for n in range(6)]
    how = bert.FineTuning(epochs=1, batch=4, precision="bfloat16")
    bert.finetune(model, rows, labels, rows, labels, how)
    model.save(tmp_path / "saved")
    again = bert.load_classifier(tmp_path / "saved")
    assert again.positions == places
    same = bert.predict_logits(again, rows), bert.predict_logits(model, rows)
    assert np.array_equal(*same)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_encoder_ends_in_one_line_in_every_command(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, said = REFUSED[kind]
    notes = write_notes(tmp_path / "notes.csv", some_texts(8))
    folder = tmp_path / "model"
    folder.mkdir()
    write_encoder(folder, kind, **settings)
    out = tmp_path / "out"
    given = [f"--input={notes}", f"--output={out}.csv", f"--model={folder}"]
    for words in (
        ["embed", *given],
        ["detect", "--text=text", "--budget=2", *given],
        ["finetune", f"--train={notes}", f"--val={notes}", f"--out={out}", given[2]],
    ):
        if words[0] == "finetune":
            other = write_notes(tmp_path / "val.csv", some_texts(8, seed=1))
            words[2] = f"--val={other}"
        assert cli.main(words) == 1
        assert said in line_of(capsys)
        assert not out.exists()


def test_a_model_saved_in_half_precision_learns_in_float32(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = write_encoder(tmp_path / "encoder")
    weights = load_file(folder / "model.safetensors")
    half = {name: tensor.half() for name, tensor in weights.items()}
    save_file(half, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    model = bert.Classifier.pretrained(LABELS, folder)
    model.save(tmp_path / "saved")
    for found in (model, bert.load_classifier(tmp_path / "saved")):
        assert {p.dtype for p in found.parameters()} == {torch.float32}


def test_the_limit_of_a_tokenizer_is_the_default_and_not_a_wall(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder", limit=20)
    model = bert.Classifier.pretrained(LABELS, folder)
    assert (model.longest, model.positions) == (20, 34)
    rows = Reading(model, 30).encode(some_texts(20))
    assert max(map(len, rows)) == 30
    with pytest.raises(MedlmError, match=r"--tokens is 35; expected 3 .* up to the 34"):
        Reading(model, 35)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder", vocab_size=8)
    with pytest.raises(MedlmError, match="has 15 tokens and its model 8; expected"):
        bert.Classifier.pretrained(LABELS, folder)


def test_a_tokenizer_with_tokens_that_were_added_later(tmp_path: Path) -> None:
    """They do no harm until a text has one of them."""
    model = bert.Classifier.pretrained(LABELS, write_encoder(tmp_path / "encoder"))
    model.tokenizer.add_tokens(["dyspnoea"])
    read = Reading(model)
    assert len(read.encode(["fever"])) == 1
    with pytest.raises(MedlmError, match="has 16 tokens and its model 15"):
        read.encode(["fever", "dyspnoea"])


# Names of the Hub ---------------------------------------------------------------------


@pytest.fixture
def hub(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub with one repository, in a folder; what was fetched lies in "cache"."""
    import fnmatch

    import huggingface_hub

    repository = tmp_path / "hub"
    shutil.copytree(encoder, repository)
    for name in ("pytorch_model.bin", "modeling.py", "onnx.json"):
        (repository / name).write_text("never fetched")

    def snapshot_download(
        name: str, revision: Any, allow_patterns: Any, **_: Any
    ) -> str:
        assert (name, revision) in {("dmis-lab/tiny", None), ("dmis-lab/tiny", "v1")}
        (tmp_path / "cache").mkdir(exist_ok=True)
        for path in repository.iterdir():
            if any(fnmatch.fnmatch(path.name, one) for one in allow_patterns):
                shutil.copy(path, tmp_path / "cache")
        return str(tmp_path / "cache")

    def list_repo_files(name: str, revision: Any) -> list[str]:
        return [path.name for path in repository.iterdir()]

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", list_repo_files)
    monkeypatch.chdir(tmp_path)
    return repository


@pytest.mark.parametrize("name", ["dmis-lab/tiny", "dmis-lab/tiny@v1"])
def test_a_name_of_the_hub_is_fetched_without_code_and_pickles(
    name: str, hub: Path, model: bert.Classifier
) -> None:
    import torch

    found = bert.Classifier.pretrained(LABELS, name)
    fetched = {path.name for path in (hub.parent / "cache").iterdir()}
    assert fetched >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not fetched & {"pytorch_model.bin", "modeling.py", "onnx.json"}
    pairs = zip(found.encoder.parameters(), model.encoder.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_folder_of_that_name_wins(hub: Path) -> None:
    write_encoder(Path("dmis-lab/tiny"), num_hidden_layers=1)
    model = bert.Classifier.pretrained(LABELS, "dmis-lab/tiny")
    assert model.encoder.config.num_hidden_layers == 1
    with pytest.raises(MedlmError, match="There is no model 'dmis-lab/tny'"):
        bert.weights_folder("dmis-lab/tny")  # a slip of the pen is not sent anywhere


def test_a_hub_that_has_only_a_pickle(hub: Path) -> None:
    (hub / "model.safetensors").unlink()
    words = (
        r"dmis-lab/tiny has no model\.safetensors, only pytorch_model\.bin, a pickle"
    )
    with pytest.raises(MedlmError, match=words):
        bert.weights_folder("dmis-lab/tiny")


@pytest.mark.parametrize(
    ("kind", "offline", "said"),
    [
        ("LocalEntryNotFoundError", False, "and there is no network. Name a folder"),
        ("LocalEntryNotFoundError", True, "and downloads are forbidden. Name a folder"),
        ("RepositoryNotFoundError", False, "no such model or revision on the Hugging"),
        ("RevisionNotFoundError", False, "no such model or revision on the Hugging"),
        ("GatedRepoError", False, "is gated: accept its terms .* `hf auth login`"),
        ("", False, "did not deliver 'dmis-lab/tiny': It rained. Name a folder"),
    ],
)
def test_a_hub_that_does_not_deliver_is_one_line(
    kind: str, offline: bool, said: str, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    class Refusal(getattr(errors, kind) if kind else OSError):  # type: ignore[misc]
        def __init__(self) -> None:
            Exception.__init__(self, "It rained.\nAnd more")

        def __str__(self) -> str:
            return "It rained.\nAnd more"

    def fails(*_: Any, local_files_only: bool, **__: Any) -> str:
        assert local_files_only is offline
        raise Refusal

    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(MedlmError, match=said) as caught:
        bert.weights_folder("dmis-lab/tiny")
    assert "\n" not in str(caught.value)


# What is read of a note ---------------------------------------------------------------


@pytest.mark.parametrize("tokens", [3, 10, 33, None])
def test_what_is_cut_is_read_as_the_tokenizer_cuts_it_and_counted(
    tokens: int | None, model: bert.Classifier
) -> None:
    texts = some_texts(40)
    read = Reading(model, tokens)
    expected = bert.encode(model.tokenizer, texts, read.longest)
    found = read.encode(texts[:13]) + read.encode(texts[13:])
    assert [row.tolist() for row in found] == [row.tolist() for row in expected]
    sizes = np.array([len(text.split()) for text in texts])
    lost = np.maximum(sizes - (read.longest - 2), 0)
    facts = read.facts()
    assert facts["tokens"] == sizes.sum() and facts["tokens_lost"] == lost.sum()
    assert facts["cut"] == (lost > 0).sum() and facts["notes"] == facts["rows"] == 40
    (warning, *_) = read.warnings()
    assert f"{(lost > 0).sum()} of 40 notes are longer than" in warning
    assert ("--tokens" in warning) is (read.longest < 34) and "--long mean" in warning
    assert "--long" not in "".join(read.warnings(can_read_pieces=False))


@pytest.mark.parametrize("tokens", [3, 9, 34])
def test_pieces_hold_the_whole_note_once_and_are_of_one_length(
    tokens: int, model: bert.Classifier
) -> None:
    texts = some_texts(30)
    read = Reading(model, tokens, "mean")
    for text, rows in zip(texts, read.pieces(texts), strict=True):
        (whole,) = bert.encode(model.tokenizer, [text], None)
        assert all(row[0] == 2 and row[-1] == 3 for row in rows)
        inside = [number for row in rows for number in row.tolist()[1:-1]]
        assert inside == whole.tolist()[1:-1]
        sizes = [len(row) for row in rows]
        assert max(sizes) <= tokens and max(sizes) - min(sizes) <= 1
        assert len(rows) == -(-len(inside) // (tokens - 2))
    assert read.facts()["tokens_lost"] == 0 and not read.warnings()


def test_the_answer_for_a_long_note_is_the_mean_over_its_pieces(
    encoder: Path, model: bert.Classifier, tmp_path: Path
) -> None:
    texts = some_texts(12)
    notes = write_notes(tmp_path / "notes.csv", texts)
    model.save(tmp_path / "model")
    given = [f"--input={notes}", "--precision=float32", "--tokens=12", "--long=mean"]
    out = tmp_path / "out"
    words = ["embed", f"--model={encoder}", f"--output={out}.npy", *given]
    assert cli.main(words) == 0
    words = ["predict", f"--model={tmp_path / 'model'}", f"--output={out}.csv", *given]
    assert cli.main(words) == 0
    with out.with_suffix(".csv").open(newline="") as file:
        shares = [[float(r["p_flu"]), float(r["p_none"])] for r in csv.DictReader(file)]
    for text, vector, share in zip(texts, np.load(f"{out}.npy"), shares, strict=True):
        (rows,) = Reading(model, 12, "mean").pieces([text])
        alone = [bert.embed(model, [row])[0] for row in rows]
        assert np.abs(np.mean(alone, axis=0) - vector).max() < 1e-5
        logits = np.vstack([bert.predict_logits(model, [row]) for row in rows])
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        assert share == pytest.approx(p.mean(axis=0), abs=1e-5)


def test_notes_that_differ_only_where_nothing_is_read_are_refused(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = "fever cough " * 20
    ends = some_texts(9, longest=8)
    notes = write_notes(
        tmp_path / "notes.csv", [head + end for end in dict.fromkeys(ends)]
    )
    out = tmp_path / "out.npy"
    words = ["embed", f"--input={notes}", f"--output={out}", f"--model={encoder}"]
    assert cli.main(words) == 1
    said = line_of(capsys)
    assert "reads the same in all" in said and "--long mean reads all" in said
    assert not list(tmp_path.glob("out*"))
    assert cli.main([*words, "--long=mean"]) == 0


def test_a_language_outside_the_vocabulary_is_told_or_refused(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thai = ["มีไข้และไอ", "ปวดหัวมาก", "ไม่มีผื่น", "เจ็บหน้าอก"]
    out = tmp_path / "out.npy"
    notes = tmp_path / "notes.csv"
    words = ["embed", f"--input={notes}", f"--output={out}", f"--model={encoder}"]
    write_notes(notes, [*thai, "fever"])
    assert cli.main(words) == 1
    said = line_of(capsys)
    assert "cannot read these notes" in said and "xlm-roberta-base" in said
    assert "in 4 of 5 notes, is [UNK]" in said and thai[0] not in said
    assert not out.exists()
    write_notes(notes, [thai[0], *some_texts(9, longest=5)])
    assert cli.main(words) == 0
    assert "Warning: " in (said := capsys.readouterr().err)
    assert "in 1 of 10 notes, is [UNK]" in said and "multilingual" in said


def test_equal_notes_of_the_vocabulary_are_no_fault_of_the_reading(
    model: bert.Classifier,
) -> None:
    read = Reading(model)
    read.encode(["Fever.", "fever .", "fever."])
    read.refuse_alike()
    assert read.facts()["distinct"] == 1 and not read.warnings()


# Precision, seed, names ---------------------------------------------------------------


@pytest.mark.parametrize("lacks", ["", "amx_tile", "avx512_bf16"])
def test_bfloat16_is_fast_where_there_are_matrix_units(
    lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    for name in ("amx_tile", "avx512_bf16"):
        has = name != lacks
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda has=has: has)
    expected = "float32" if lacks else "bfloat16"
    assert runtime.fast_precision(runtime.PROFILES["cpu"]) == expected


def test_the_fast_precision_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLM_PROFILE", "cpu")
    team = processes.Team()
    for fast in ("bfloat16", "float32"):
        monkeypatch.setattr(runtime, "fast_precision", lambda _, fast=fast: fast)
        assert team.precision() == fast
        assert team.precision("float16") == "float16"
    assert set(processes.PRECISIONS) == {"auto", *training._DTYPES}


def test_the_precision_is_named_in_the_report_and_kept_by_a_resume(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {
        f"--{part}": write_notes(tmp_path / f"{part}.csv", some_texts(12, 40, seed))
        for seed, part in enumerate(("train", "val"))
    }
    out = tmp_path / "out"
    words = ["finetune", *(f"{n}={p}" for n, p in parts.items()), "--epochs=1"]
    words += [f"--model={encoder}", f"--out={out}", "--tokens=20"]
    assert cli.main([*words, "--precision=bfloat16"]) == 0
    content = json.loads((out / "report.json").read_text())
    assert content["settings"]["precision"] == "bfloat16"
    assert "precision bfloat16" in (out / "report.html").read_text()
    assert content["data"]["training"]["cut"] > 0
    cut = [line for line in content["warnings"] if "are longer than 20 tokens" in line]
    assert len(cut) == 2 and all("--tokens N reads more" in line for line in cut)
    capsys.readouterr()
    assert cli.main([*words, "--precision=float32", "--resume"]) == 1
    assert "precision bfloat16 (now float32)" in line_of(capsys)
    vectors = []
    for precision in ("bfloat16", "float32"):
        given = [f"--input={parts['--val']}", f"--output={out}.npy", "--force"]
        more = [f"--model={encoder}", f"--precision={precision}"]
        assert cli.main(["embed", *given, *more]) == 0
        vectors.append(np.load(f"{out}.npy"))
    assert 1e-5 < np.abs(vectors[0] - vectors[1]).max() < 0.1


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes(
    seed: int, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MedlmError, match=f"^seed is {seed}; expected a whole number"):
        runtime.seed_everything(seed)
    one = write_notes(tmp_path / "one.csv", some_texts(8))
    two = write_notes(tmp_path / "two.csv", some_texts(8, seed=1))
    words = [f"--train={one}", f"--val={two}", f"--model={encoder}", f"--seed={seed}"]
    assert cli.main(["finetune", *words, f"--out={tmp_path / 'out'}"]) == 1
    assert f"--seed is {seed}; expected a whole number from 0 to 4294" in line_of(
        capsys
    )


def test_errors_name_the_options_that_were_set() -> None:
    with (
        pytest.raises(MedlmError, match=r"^--rate is -1; expected above 0\.$"),
        processes.options_named(encoder_rate="--rate"),
    ):
        bert.FineTuning(encoder_rate=-1)
    with (
        pytest.raises(MedlmError, match=r"^head_rate is -1"),
        processes.options_named(encoder_rate="--rate"),
    ):
        bert.FineTuning(head_rate=-1)
