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


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A random BERT as files of 2018 hold it: prefix "bert.", gamma and beta."""
    from safetensors.torch import save_file
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=12,
    )
    model = BertForPreTraining(config).eval()
    for norm in model.modules():
        if isinstance(norm, torch.nn.LayerNorm):  # not all ones and zeros
            torch.nn.init.normal_(norm.weight)
            torch.nn.init.normal_(norm.bias)
    old = {}
    for name, weight in model.state_dict().items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        name = name.replace("LayerNorm.bias", "LayerNorm.beta")
        if name.startswith("bert."):
            old[name] = weight.clone()
    save_file(old, tmp_path / "model.safetensors")
    config.save_pretrained(tmp_path)
    monkeypatch.setattr(data, "weights", lambda name: tmp_path)
    return model.bert


def test_a_bert_with_the_names_of_2018_gives_the_same_hidden_states(tiny):
    ids = torch.randint(1, 50, (3, 7))
    mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
    with torch.no_grad():
        ours = bert.load_encoder("bert-base-uncased")(ids, mask.long())
        theirs = tiny(ids, mask.long(), output_hidden_states=True).hidden_states
    for mine, expected in zip(ours, theirs, strict=True):
        assert ((mine - expected) * mask[:, :, None]).abs().max() < 1e-5


def test_weights_of_a_tiny_bert_hide_padding_and_equal_the_eager_ones(tiny):
    ids = torch.randint(1, 50, (2, 6))
    mask = torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0]])
    tiny.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = torch.stack(tiny(ids, mask, output_attentions=True).attentions)
        ours = bert.load_encoder("x").weights(ids, mask)
    assert (ours - theirs).abs().max() < 1e-5


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


@pytest.mark.parametrize(
    ("field", "value"), [("model_type", "gpt2"), ("hidden_act", "relu")]
)
def test_weights_of_another_kind_of_model_are_refused(
    tmp_path, monkeypatch, field, value
):
    shutil.copy(data.weights("minilm") / "config.json", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config[field] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(data, "weights", lambda name: tmp_path)
    with pytest.raises(MedlmError, match=rf"'{value}'.*expected 'bert' with 'gelu'"):
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
