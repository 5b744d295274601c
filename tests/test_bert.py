"""bert.py: the real weights in our modules give transformers' hidden states."""

import json
import shutil

import pytest
import torch

from medlm_utils import bert, data, transformer
from medlm_utils.runtime import MedlmError

TEXTS = ["The patient has a fever and cough.", "No pain.", "", "Fever " * 60]


@pytest.fixture(scope="module")
def batch():
    return bert.tokenizer()(TEXTS, padding=True, return_tensors="pt")


@pytest.fixture(scope="module")
def expected(batch):
    with torch.no_grad():
        out = bert.reference()(**batch, output_hidden_states=True, return_dict=True)
    return out.hidden_states


@pytest.mark.slow
@pytest.mark.parametrize("attend", [transformer.attention, transformer.fused_attention])
def test_hidden_states_equal_those_of_transformers(batch, expected, attend):
    encoder = bert.load_encoder(attend=attend)
    with torch.no_grad():
        ours = encoder(batch["input_ids"], batch["attention_mask"])
    assert len(ours) == len(expected) == 7
    for mine, theirs in zip(ours, expected, strict=True):
        assert (mine - theirs).abs().max() < 1e-4


@pytest.mark.slow
def test_weights_equal_those_of_transformers():
    from transformers import AutoModel

    folder = data.weights("minilm")
    eager = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    given = bert.tokenizer()(TEXTS[:2], padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = torch.stack(eager(**given, output_attentions=True).attentions)
        ours = bert.load_encoder().weights(given["input_ids"], given["attention_mask"])
    assert (ours - theirs).abs().max() < 1e-4


def test_every_weight_of_the_encoder_is_loaded():
    encoder = bert.load_encoder()
    published = json.loads((data.weights("minilm") / "config.json").read_text())
    assert len(encoder.blocks) == published["num_hidden_layers"]
    # A gain of exactly 1 everywhere would mean that it was never loaded.
    assert not any((b.attention_norm.gain == 1).all() for b in encoder.blocks)
    assert not encoder.training


def test_a_text_longer_than_the_positions_is_refused():
    encoder = bert.BertEncoder(10, 8, 2, 4, 2, 8, 1, 1e-12)
    ids = torch.zeros(1, 9, dtype=torch.long)
    with pytest.raises(MedlmError, match=r"9 tokens.*8 positions.*truncation=True"):
        encoder(ids, torch.ones_like(ids))


def test_weights_of_another_kind_of_model_are_refused(tmp_path, monkeypatch):
    shutil.copy(data.weights("minilm") / "config.json", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "gpt2"
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(data, "weights", lambda name: tmp_path)
    with pytest.raises(MedlmError, match=r"'gpt2'.*expected 'bert'"):
        bert.load_encoder()


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        (
            "encoder.layer.3.attention.self.query.weight",
            "blocks.3.attention.query.weight",
        ),
        ("encoder.layer.0.output.LayerNorm.gamma", "blocks.0.feed_forward_norm.gain"),
        ("encoder.layer.0.output.LayerNorm.beta", "blocks.0.feed_forward_norm.bias"),
        ("encoder.layer.1.output.dense.bias", "blocks.1.feed_forward.down.bias"),
        ("embeddings.LayerNorm.weight", "norm.gain"),
        ("embeddings.position_ids", None),
        ("pooler.dense.weight", None),
    ],
)
def test_names(published, ours):
    assert bert._our_name(published) == ours
