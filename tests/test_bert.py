"""bert.py: our modules, classifier and loop against those of transformers."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from test_training import launch

from medlm_utils import bert, data, transformer
from medlm_utils.pretraining import SmallClassifier, SmallEncoder
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


# The classifier -----------------------------------------------------------------------

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
WORDS = ["fever", "cough", "pain", "rash", "no", "severe", "mild", "today", ".", *"abc"]
LABELS = ["flu", "cold", "none"]


@pytest.fixture(scope="module")
def words():
    """A tokenizer of transformers that knows a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    numbers = {word: number for number, word in enumerate([*specials, *WORDS])}
    model = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        model_max_length=20,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def classifier(tokenizer=None, seed=0, labels=LABELS, **settings):
    """A random one whose layer normalisations are not all ones and zeros."""
    from transformers import BertConfig

    torch.manual_seed(seed)
    config = BertConfig(**SIZES, initializer_range=0.3)
    model = bert.Classifier.from_config(config, labels, tokenizer, **settings)
    for norm in model.modules():
        if isinstance(norm, torch.nn.LayerNorm):
            torch.nn.init.normal_(norm.weight, 1.0, 0.3)
            torch.nn.init.normal_(norm.bias, 0.0, 0.3)
    return model.eval()


def some_rows(count=23, seed=0):
    rng = np.random.default_rng(seed)
    return [
        torch.tensor([2, *rng.integers(5, 20, size=n), 3])
        for n in rng.integers(1, 16, size=count)
    ]


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


class TestClassifier:
    def test_the_mean_is_that_of_the_tokens(self):
        model, rows = classifier(), some_rows(5)
        with torch.no_grad():
            logits = model(*bert.rectangle(rows))
            for row, got in zip(rows, logits, strict=True):
                states = model.encoder(row[None]).last_hidden_state[0]
                torch.testing.assert_close(got, model.head(states.mean(dim=0)))

    @pytest.mark.parametrize("pooling", bert.POOLINGS)
    def test_only_without_the_mask_padding_changes_the_answer(self, pooling):
        model, row = classifier(pooling=pooling), some_rows(1)[0]
        alone = model(row[None], torch.ones(1, len(row), dtype=torch.long))
        padded, mask = bert.rectangle([row, torch.arange(20)])
        torch.testing.assert_close(model(padded, mask)[0], alone[0])
        unmasked = model(padded, torch.ones_like(padded))
        assert (unmasked[0] - alone[0]).abs().max() > 1e-2

    def test_the_pooler_gives_the_logits_of_transformers(self):
        from transformers import BertForSequenceClassification

        model = classifier(pooling="pooler")
        torch.nn.init.normal_(model.encoder.pooler.dense.bias)
        torch.nn.init.normal_(model.head.bias)
        config = model.encoder.config
        config.num_labels = len(LABELS)
        theirs = BertForSequenceClassification(config).eval()
        theirs.bert.load_state_dict(model.encoder.state_dict())
        theirs.classifier.load_state_dict(model.head.state_dict())
        ids, mask = bert.rectangle(some_rows())
        segments = (torch.arange(ids.shape[1]) > 3).long().expand_as(ids)
        for given in ({}, {"token_type_ids": segments}):
            with torch.no_grad():
                expected = theirs(ids, mask, **given).logits
                torch.testing.assert_close(model(ids, mask, **given), expected)

    def test_the_segment_is_the_first_unless_told(self):
        model = classifier()
        ids, mask = bert.rectangle(some_rows(3))
        first = model(ids, mask, torch.zeros_like(ids))
        assert torch.equal(model(ids, mask), first)
        assert not torch.allclose(model(ids, mask, torch.ones_like(ids)), first)

    def test_dropout_is_the_same_everywhere(self):
        model = classifier(dropout=0.25)
        shares = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
        assert shares == {0.25}
        ids, mask = bert.rectangle(some_rows(3))
        assert torch.equal(model(ids, mask), model(ids, mask))
        model.train()
        assert not torch.equal(model(ids, mask), model(ids, mask))
        bert.set_dropout(model, 0.0)
        assert torch.equal(model(ids, mask), model(ids, mask))

    @pytest.mark.parametrize(
        ("blocks", "words", "frozen"),
        [
            (0, False, "-"),
            (0, True, "encoder.embeddings.word_embeddings"),
            (1, False, ("encoder.embeddings", "encoder.encoder.layer.0")),
        ],
    )
    def test_freezing(self, blocks, words, frozen):
        model = classifier()
        model.freeze(2, True)  # what was frozen before is not when it is chosen anew
        model.freeze(blocks, words)
        batch = (*bert.rectangle(some_rows(3)), torch.tensor([0, 1, 2]))
        bert.classification_loss(model, batch)[0].backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == name.startswith(frozen), name

    def test_nothing_is_computed_for_what_is_frozen(self):
        model = classifier()
        model.freeze(1)
        needs = []
        for block in model.encoder.encoder.layer:
            block.register_forward_hook(
                lambda *given: needs.append(given[2].requires_grad)
            )
        model(*bert.rectangle(some_rows(3)))
        assert needs == [False, True]

    def test_names_to_numbers(self):
        model = classifier()
        assert model.numbers(["none", "flu"]).tolist() == [2, 0]
        with pytest.raises(MedlmError, match=r"row 1 .* is 'Flu'; expected one of flu"):
            model.numbers(["flu", "Flu"])

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"labels": ["flu"]}, "labels are flu; expected at least two"),
            ({"labels": ["flu", "flu"]}, "labels are flu, flu; expected"),
            ({"labels": [1, 2]}, "expected a list of strings"),
            ({"pooling": "max"}, "pooling is 'max'; expected one of mean, pooler"),
            ({"longest": 21}, "longest is 21; expected 3 tokens.*up to the 20"),
            ({"longest": 2}, "longest is 2; expected 3 tokens"),
            ({"dropout": 1.0}, "dropout is 1.0"),
        ],
    )
    def test_bad_input(self, wrong, message):
        with pytest.raises(MedlmError, match=message):
            classifier(**wrong)

    def test_bad_calls(self):
        model = classifier()
        with pytest.raises(MedlmError, match="3 blocks to freeze; this encoder has 2"):
            model.freeze(3)
        with pytest.raises(MedlmError, match=r"21 tokens; .* 20 positions.*encode"):
            model(*bert.rectangle([torch.arange(21)]))

    def test_an_encoder_without_a_pooler(self):
        with pytest.raises(MedlmError, match="no pooler; expected pooling='mean'"):
            bert.Classifier(classifier().encoder, LABELS, pooling="pooler")


def test_another_kind_of_encoder_can_be_used():
    from transformers import DistilBertConfig

    config = DistilBertConfig(
        vocab_size=60, dim=16, n_layers=2, n_heads=4, hidden_dim=24
    )
    model = bert.Classifier.from_config(config, LABELS)
    model.freeze(1, True)
    assert bert.predict_logits(model, some_rows()).shape == (23, 3)
    with pytest.raises(MedlmError, match="no pooler"):
        bert.Classifier.from_config(config, LABELS, pooling="pooler")


class TestFolders:
    @pytest.fixture
    def model(self, words):
        model = classifier(words, pooling="mean", dropout=0.2, longest=15)
        model.temperature = 1.7
        return model

    @pytest.fixture
    def folder(self, model, tmp_path):
        model.save(tmp_path / "deep" / "model")
        return tmp_path / "deep" / "model"

    @pytest.mark.parametrize("pooling", bert.POOLINGS)
    def test_what_is_saved_comes_back(self, words, tmp_path, pooling, capfd):
        model = classifier(words, pooling=pooling, dropout=0.2, longest=15)
        model.temperature = 1.7
        model.save(str(tmp_path / "model"))
        before = torch.get_rng_state()
        loaded = bert.load_classifier(str(tmp_path / "model"))
        assert torch.equal(torch.get_rng_state(), before)
        assert_same(weights_of(loaded), weights_of(model))
        assert not loaded.training and loaded.dropout.p == 0.2
        for name in ("labels", "pooling", "temperature", "longest"):
            assert getattr(loaded, name) == getattr(model, name)
        texts = ["severe fever today", "no cough ."]
        rows = bert.encode(loaded.tokenizer, texts, loaded.longest)
        expected = bert.encode(model.tokenizer, texts, model.longest)
        assert [r.tolist() for r in rows] == [r.tolist() for r in expected]
        np.testing.assert_array_equal(
            bert.predict_logits(loaded, rows), bert.predict_logits(model, rows)
        )
        assert [f.name for f in tmp_path.iterdir()] == ["model"]
        assert capfd.readouterr() == ("", "")

    def test_transformers_can_read_it(self, words, tmp_path):
        from transformers import AutoModelForSequenceClassification

        model = classifier(words, pooling="pooler")
        model.save(tmp_path / "model")
        theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
        assert list(theirs.config.id2label.values()) == LABELS
        ids, mask = bert.rectangle(some_rows())
        with torch.no_grad():
            torch.testing.assert_close(
                theirs.eval()(ids, mask).logits, model(ids, mask)
            )

    def test_its_encoder_can_start_another_one(self, model, folder):
        other = bert.Classifier.pretrained(["x", "y"], folder, longest=9)
        assert_same(weights_of(other.encoder), weights_of(model.encoder))
        assert other.labels == ("x", "y") and other.longest == 9
        assert other.tokenizer.mask_token == "[MASK]"

    def test_an_older_one_is_replaced_and_no_other_folder(self, model, folder):
        (folder / "extra").write_text("x")
        model.save(folder)
        assert not (folder / "extra").exists()
        (folder / "medlm.json").unlink()
        with pytest.raises(MedlmError, match="and no model that Classifier"):
            model.save(folder)
        assert (folder / "config.json").exists()
        file = folder / "config.json"
        with pytest.raises(MedlmError, match="and no model that Classifier"):
            model.save(file)
        (folder / "new").mkdir()
        model.save(folder / "new")
        assert bert.load_classifier(folder / "new")

    @pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
    def test_it_may_be_read_by_whom_the_umask_says(self, model, tmp_path, umask):
        before = os.umask(umask)
        try:
            model.save(tmp_path / "saved")
        finally:
            os.umask(before)
        modes = {
            f.name: f.stat().st_mode & 0o777 for f in (tmp_path / "saved").iterdir()
        }
        assert "model.safetensors" in modes
        assert set(modes.values()) == {0o666 & ~umask}

    def test_writing_that_fails_leaves_the_old_one(self, model, folder, monkeypatch):
        before = {f.name: f.read_bytes() for f in folder.iterdir()}

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(bert, "write_json", full)
        with pytest.raises(MedlmError, match=r"Cannot write the model .*No space"):
            model.save(folder)
        assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
        assert list(folder.parent.iterdir()) == [folder]

    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("medlm.json", None, "there is no medlm.json in it"),
            ("medlm.json", b"{", "is damaged, or another version"),
            ("medlm.json", b'{"format": 0}', "is damaged, or another version"),
            ("medlm.json", b"[1]", "is damaged, or another version"),
            ("model.safetensors", None, "has no model.safetensors; expected"),
            ("model.safetensors", b"xyz", "cannot be read; expected a file of safe"),
            ("config.json", None, "no configuration that transformers knows"),
            ("config.json", b"{}", "no configuration that transformers knows"),
            ("tokenizer.json", None, "has no tokenizer; expected one of tokenizer"),
        ],
    )
    def test_a_folder_that_is_not_whole(self, folder, file, content, message):
        (folder / file).unlink()
        if content is not None:
            (folder / file).write_bytes(content)
        with pytest.raises(MedlmError, match=message):
            bert.load_classifier(folder)

    def test_weights_that_were_cut_short(self, folder):
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[:-10])
        with pytest.raises(MedlmError, match="cannot be read; expected a file of saf"):
            bert.load_classifier(folder)
        with pytest.raises(MedlmError, match="cannot be read; expected a file of saf"):
            bert.Classifier.pretrained(LABELS, folder)

    def test_no_folder(self, tmp_path):
        with pytest.raises(MedlmError, match="there is no such folder"):
            bert.load_classifier(tmp_path / "nowhere")

    def test_labels_that_are_not_those_of_the_head(self, folder):
        about = json.loads((folder / "medlm.json").read_text())
        about["labels"].append("more")
        (folder / "medlm.json").write_text(json.dumps(about))
        with pytest.raises(MedlmError, match="names 4 labels, but its head has 3 outp"):
            bert.load_classifier(folder)

    def test_weights_of_another_size(self, folder):
        config = json.loads((folder / "config.json").read_text())
        config["hidden_size"] = 32
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(MedlmError, match=r"weights in .* do not fit"):
            bert.load_classifier(folder)
        with pytest.raises(MedlmError, match=r"weights in .* do not fit"):
            bert.Classifier.pretrained(LABELS, folder)

    def test_a_pickle_is_never_read(self, folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(MedlmError, match=r"only pytorch_model\.bin, a pickle"):
            bert.load_classifier(folder)
        with pytest.raises(MedlmError, match=r"only pytorch_model\.bin, a pickle"):
            bert.Classifier.pretrained(LABELS, folder)

    def test_weights_without_what_is_needed(self, folder):
        with pytest.raises(MedlmError, match=r"pooler\.dense\.bias is missing"):
            bert.Classifier.pretrained(LABELS, folder, pooling="pooler")

    def test_a_name_that_is_none(self, tmp_path):
        with pytest.raises(MedlmError, match="no model 'bret'; expected one of m"):
            bert.Classifier.pretrained(LABELS, "bret")
        with pytest.raises(MedlmError, match="a folder with config"):
            bert.Classifier.pretrained(LABELS, tmp_path)

    def test_weights_that_are_no_encoder(self, folder):
        (folder / "config.json").write_text('{"model_type": "vit"}')
        with pytest.raises(
            MedlmError, match="type 'vit': it does not read tokens; expected"
        ):
            bert.Classifier.pretrained(LABELS, folder)


@pytest.mark.parametrize("pooling", bert.POOLINGS)
def test_the_published_encoder_is_loaded_in_silence(pooling, capfd):
    model = bert.Classifier.pretrained(LABELS, pooling=pooling)
    expected = bert.reference().state_dict()
    for name, weight in model.encoder.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    assert model.longest == 256 and model.tokenizer.sep_token == "[SEP]"
    assert model.encoder.config._attn_implementation == "sdpa"
    assert capfd.readouterr() == ("", "")


class TestRows:
    def test_encode(self, words):
        rows = bert.encode(words, ["severe fever", "no zzz ."], 10)
        assert [r.tolist() for r in rows] == [[2, 10, 5, 3], [2, 9, 1, 13, 3]]
        (cut,) = bert.encode(words, ["fever " * 30], 6)
        assert cut.tolist() == [2, 5, 5, 5, 5, 3]

    @pytest.mark.parametrize(
        ("texts", "longest", "message"),
        [
            (["a", " \n"], 10, r"row 1 \(counted from 0\) is empty"),
            (["a", float("nan")], 10, r"row 1 .* is nan; expected a string"),
            ([None], 10, r"row 0 .* is None; expected a string"),
            ("a b", 10, r"Got one string.*Write \[text\]"),
            ([], 10, "There are no texts"),
            (["a"], 21, "longest is 21; expected 3 .* up to the 20"),
        ],
    )
    def test_texts_that_cannot_be_encoded(self, words, texts, longest, message):
        with pytest.raises(MedlmError, match=message):
            bert.encode(words, texts, longest)

    def test_a_batch_is_as_long_as_its_longest_row(self):
        ids, mask = bert.rectangle([torch.tensor([2, 0, 3]), torch.tensor([2, 3])])
        assert ids.tolist() == [[2, 0, 3], [2, 3, 0]]
        assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]  # a token 0 is no padding

    def test_labels_stay_with_their_rows(self):
        rows = some_rows(50)
        labels = [int(row[1]) for row in rows]  # the label is the first word
        batches = bert.LabelledBatches(rows, np.array(labels), 8, seed=3)
        seen = []
        for ids, mask, truth in batches.epoch(1):
            assert torch.equal(ids[:, 1], truth)
            assert mask.shape == ids.shape and mask[:, -1].max() == 1
            lengths = mask.sum(dim=1)
            seen += [tuple(i[:n].tolist()) for i, n in zip(ids, lengths, strict=True)]
        assert sorted(seen) == sorted(tuple(row.tolist()) for row in rows)

    def test_rows_of_similar_length_share_a_batch(self):
        batches = bert.LabelledBatches(some_rows(200), [0] * 200, 8)
        filled = [mask.float().mean() for _, mask, _ in batches.epoch(0)]
        assert np.mean(filled) > 0.9

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([0] * 4, r"shape \(4,\) .* for 5 rows"),
            ([0.0] * 5, "type torch.float64"),
            ([0, 1, -1, 0, 0], "go from -1 to 1"),
        ],
    )
    def test_labels_that_cannot_be(self, labels, message):
        with pytest.raises(MedlmError, match=message):
            bert.LabelledBatches(some_rows(5), labels, 2)


class TestAnswers:
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_the_loss_is_a_sum(self, smoothing):
        model, rows = classifier(), some_rows(6)
        batch = (*bert.rectangle(rows), torch.tensor([0, 1, 2, 0, 1, 2]))
        nats, count = bert.classification_loss(model, batch, smoothing)
        p = model(*batch[:2]).log_softmax(dim=1)
        spread = torch.full((6, 3), smoothing / 3)
        spread[torch.arange(6), batch[2]] += 1 - smoothing
        assert count == 6
        torch.testing.assert_close(nats, -(spread * p).sum())

    def test_the_batch_size_does_not_matter(self):
        model, rows = classifier().train(), some_rows()
        alone = torch.cat([model.eval()(*bert.rectangle([row])) for row in rows])
        model.train()
        for size in (1, 5, 64):
            logits = bert.predict_logits(model, rows, size)
            np.testing.assert_allclose(logits, alone.detach(), atol=1e-5)
        assert model.training

    def test_half_precision(self):
        model, rows = classifier(), some_rows()
        half = bert.predict_logits(model, rows, precision="bfloat16")
        whole = bert.predict_logits(model, rows)
        assert half.dtype == np.float32
        assert 0 < np.abs(half - whole).max() < 0.2

    @pytest.mark.parametrize(
        ("rows", "size"), [([], 4), ([torch.tensor([], dtype=int)], 4), (None, 0)]
    )
    def test_rows_that_cannot_be(self, rows, size):
        rows = some_rows(2) if rows is None else rows
        with pytest.raises(MedlmError, match="expected at least one row, no empty one"):
            bert.predict_logits(classifier(), rows, size)

    @pytest.mark.parametrize("processes", [2, 3, 25])
    def test_shares_of_the_rows_make_up_all(self, processes):
        shares = bert._equal_shares(list(range(10)), processes)
        assert len({len(share) for share in shares}) == 1
        assert {row for share in shares for row in share} == set(range(10))

    def test_embeddings(self):
        model, rows = classifier(pooling="pooler"), some_rows()
        expected = {"mean": [], "cls": [], "pooler": []}
        with torch.no_grad():
            for row in rows:
                out = model.encoder(row[None])
                expected["mean"].append(out.last_hidden_state[0].mean(dim=0))
                expected["cls"].append(out.last_hidden_state[0, 0])
                expected["pooler"].append(out.pooler_output[0])
        for pooling, vectors in expected.items():
            for either in (model, model.encoder):
                got = bert.embed(either, rows, pooling, batch_size=4)
                np.testing.assert_allclose(got, torch.stack(vectors), atol=1e-5)

    def test_embeddings_of_our_own_encoders(self):
        rows = some_rows()
        encoder = bert.BertEncoder(60, 20, 2, 16, 4, 24, 2, 1e-12)
        ids, mask = bert.rectangle(rows[:1])
        with torch.no_grad():
            expected = encoder(ids, mask)[-1][0].mean(dim=0)
        np.testing.assert_allclose(bert.embed(encoder, rows)[0], expected, atol=1e-5)
        small = SmallEncoder(60, 20, 16, 4, 24, 2)
        model = SmallClassifier(small, LABELS)
        with torch.no_grad():
            expected = small(ids, mask)[0].mean(dim=0)
        for either in (small, model):
            got = bert.embed(either, rows)[0]
            np.testing.assert_allclose(got, expected, atol=1e-5)

    def test_embeddings_that_cannot_be(self):
        with pytest.raises(MedlmError, match="pooling is 'max'; expected mean, cls"):
            bert.embed(classifier(), some_rows(), "max")
        with pytest.raises(MedlmError, match="This encoder has no pooler"):
            bert.embed(classifier(), some_rows(), "pooler")

    def test_looking_gives_the_weights_of_attention(self):
        model = classifier(dropout=0.5).train()
        ids, mask = bert.rectangle(some_rows(4))
        looks = bert.look(model, ids, mask)
        assert looks.shape == (2, 4, 4, ids.shape[1], ids.shape[1])
        torch.testing.assert_close(looks.sum(dim=-1), torch.ones(looks.shape[:-1]))
        hidden = (mask == 0)[None, :, None, None, :].expand_as(looks)
        assert looks[hidden].max() == 0
        assert model.encoder.config._attn_implementation == "sdpa" and model.training


@pytest.mark.slow
def test_looking_equals_our_own_encoder():
    model = bert.Classifier.pretrained(LABELS)
    given = model.tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    ids, mask = given["input_ids"], given["attention_mask"]
    with torch.no_grad():
        expected = bert.load_encoder().weights(ids, mask)
    assert (bert.look(model, ids, mask) - expected).abs().max() < 1e-4


# Fine-tuning --------------------------------------------------------------------------


def labelled(count, seed):
    """Texts whose label is which of the words 5 and 6 they hold, or neither."""
    rows = some_rows(count, seed)
    return rows, [0 if 5 in row else 1 if 6 in row else 2 for row in rows]


FAST = {"encoder_rate": 3e-3, "head_rate": 1e-2, "frozen_words": False, "batch": 8}
RUN = {"checkpoint", "checkpoint_every", "resume", "accelerator"}


def tune(model=None, seed=1, val_seed=2, **changes):
    """The model after a short fine-tuning, and what happened."""
    model = model or classifier()
    given = {n: changes.pop(n) for n in list(changes) if n in RUN}
    settings = bert.FineTuning(**FAST | {"epochs": 4} | changes)
    texts = (*labelled(160, seed), *labelled(30, val_seed))
    return model, bert.finetune(model, *texts, settings, **given)


def regression(model, rows, labels, c=3.0):
    """scikit-learn's own answers on the vectors of the encoder: (rows, labels seen)."""
    from sklearn.linear_model import LogisticRegression

    vectors = bert.embed(model, rows, model.pooling)
    fitted = LogisticRegression(C=c, max_iter=2000).fit(vectors, labels)
    return fitted.predict_proba(vectors)


def answers(model, rows):
    logits = torch.tensor(bert.predict_logits(model, rows))
    return logits.double().softmax(1).numpy()


class TestFitHead:
    @pytest.mark.parametrize("pooling", bert.POOLINGS)
    @pytest.mark.parametrize("names", [LABELS, LABELS[:2]])
    def test_its_answers_are_those_of_the_regression(self, pooling, names):
        rows, labels = labelled(60, 1)
        labels = [min(label, len(names) - 1) for label in labels]
        model = classifier(labels=names, pooling=pooling)
        before = weights_of(model)
        bert.fit_head(model, rows, labels)
        expected = regression(model, rows, labels)
        assert answers(model, rows) == pytest.approx(expected, abs=1e-4)
        for name, weight in weights_of(model).items():
            of_head = name.startswith("head.")
            assert torch.equal(weight, before[name]) != of_head, name

    def test_dropout_does_not_disturb_it(self):
        rows, labels = labelled(40, 1)
        model = classifier()
        bert.set_dropout(model, 0.5)
        bert.fit_head(model.train(), rows, labels)
        expected = regression(model, rows, labels)
        assert answers(model, rows) == pytest.approx(expected, abs=1e-4)

    def test_the_penalty_is_the_callers(self):
        rows, labels = labelled(40, 1)
        model = classifier()
        bert.fit_head(model, rows, labels, c=0.01)
        expected = regression(model, rows, labels, c=0.01)
        assert answers(model, rows) == pytest.approx(expected, abs=1e-4)

    @pytest.mark.parametrize("seen", [(0, 2), (3, 1), (0, 1, 3)])
    def test_a_label_without_a_row_is_never_the_answer(self, seen):
        rows, numbers = labelled(60, 1)
        labels = [seen[number % len(seen)] for number in numbers]
        model = classifier(labels=["a", "b", "c", "d"])
        bert.fit_head(model, rows, labels)
        missing = sorted({0, 1, 2, 3} - set(seen))
        assert (model.head.weight[missing] == 0).all()
        assert model.head.bias[missing].tolist() == pytest.approx(
            len(missing) * [-np.log(60)]
        )
        found = answers(model, rows)
        assert not np.isin(found.argmax(1), missing).any()
        among = found[:, sorted(seen)]
        among /= among.sum(axis=1, keepdims=True)
        assert among == pytest.approx(regression(model, rows, labels), abs=1e-4)

    def test_one_label_alone_is_refused(self):
        rows, _ = labelled(9, 1)
        model = classifier()
        before = weights_of(model)
        with pytest.raises(MedlmError, match=r"All 9 rows have the label 'cold'; exp"):
            bert.fit_head(model, rows, [1] * 9)
        assert_same(weights_of(model), before)

    def test_labels_that_do_not_fit(self):
        rows, labels = labelled(9, 1)
        with pytest.raises(MedlmError, match="from 0 to 3; expected numbers 0 to 2"):
            bert.fit_head(classifier(), rows, [0, 3, *labels[2:]])
        with pytest.raises(MedlmError, match="for 9 rows; expected one whole number"):
            bert.fit_head(classifier(), rows, labels[1:])

    def test_fine_tuning_goes_on_from_it(self):
        rows, labels = labelled(160, 1)
        model = classifier()
        bert.fit_head(model, rows, labels)
        fitted = weights_of(model)
        start = answers(model, rows)[np.arange(160), labels]
        _, tuned = tune(model, epochs=2, dropout=0.0)
        assert tuned.history.loss[0] == pytest.approx(
            -np.log(start[first_batch(rows, labels)]).mean(), rel=1e-4
        )
        assert not torch.equal(model.head.weight, fitted["head.weight"])
        assert model.head.weight.requires_grad


def first_batch(rows, labels):
    """Which rows the first step of `tune` sees."""
    batches = bert.LabelledBatches(rows, labels, FAST["batch"], seed=0)
    ids, mask, _ = batches.at(0)
    seen = [one[: int(n)].tolist() for one, n in zip(ids, mask.sum(1), strict=True)]
    return [next(i for i, r in enumerate(rows) if r.tolist() == one) for one in seen]


class TestFinetune:
    def test_it_learns(self):
        model, tuned = tune(epochs=12)
        assert len(tuned.history) == 12 * 20
        assert len(tuned.loss) == len(tuned.accuracy) == len(tuned.weighted_f1) == 12
        assert tuned.accuracy[tuned.best - 1] > 0.9
        rates = tuned.history.learning_rate
        assert max(rates) == pytest.approx(rates[24]) == pytest.approx(3e-3)
        assert not model.training

    def test_the_best_epoch_is_the_one_that_is_kept(self):
        """Labels that follow from nothing: what is learned by heart only harms."""
        rows, other = some_rows(60, 1), some_rows(30, 2)
        labels, truth = np.arange(60) % 3, np.arange(30) % 3
        settings = bert.FineTuning(**FAST, epochs=8, dropout=0.0)
        model = classifier()
        tuned = bert.finetune(model, rows, labels, other, truth, settings)
        assert tuned.best < 8 and tuned.loss[tuned.best - 1] == min(tuned.loss)
        found = bert._measures(bert.predict_logits(model, other), truth)
        assert found["loss"] == pytest.approx(min(tuned.loss), rel=1e-6)
        assert found["accuracy"] == tuned.accuracy[tuned.best - 1]

    @pytest.mark.parametrize(
        ("looks", "steps"),
        [
            (1, [20, 40]),
            (4, [5, 10, 15, 20, 25, 30, 35, 40]),
            (3, [7, 14, 21, 28, 35, 40]),
            (30, list(range(1, 41))),
        ],
    )
    def test_looks_come_at_equal_distances_and_at_the_end(self, looks, steps):
        model, tuned = tune(epochs=2, looks=looks, dropout=0.3)
        assert list(tuned.steps) == steps
        measured = (tuned.loss, tuned.accuracy, tuned.weighted_f1)
        assert {len(values) for values in measured} == {len(steps)}
        found = bert.predict_logits(model, labelled(30, 2)[0])
        best = bert._measures(found, np.array(labelled(30, 2)[1]))["loss"]
        assert best == pytest.approx(min(tuned.loss), rel=1e-6)
        # Looking changes nothing: at the same step the same is seen.
        usual = tune(epochs=2, dropout=0.3)[1]
        assert tuned.history.loss == usual.history.loss
        assert usual.steps == (20, 40)
        seen = dict(zip(tuned.steps, tuned.loss, strict=True))
        assert all(
            seen.get(step, loss) == loss
            for step, loss in zip(usual.steps, usual.loss, strict=True)
        )

    def test_measures_are_those_of_scikit_learn(self):
        from sklearn.metrics import f1_score, log_loss

        rng = np.random.default_rng(0)
        logits = rng.normal(size=(50, 3)).astype(np.float32)
        labels = rng.integers(3, size=50)
        found = bert._measures(logits, labels)
        p = torch.tensor(logits).double().softmax(1).numpy()
        f1 = f1_score(labels, logits.argmax(1), average="weighted")
        assert found["loss"] == pytest.approx(log_loss(labels, p))
        assert found["weighted_f1"] == pytest.approx(f1)

    def test_what_is_frozen_stays(self):
        model = classifier()
        before = weights_of(model)
        tune(model, frozen_words=True, epochs=1, dropout=0.3)
        shares = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
        assert shares == {0.3}
        for name, weight in weights_of(model).items():
            assert torch.equal(weight, before[name]) == ("word_emb" in name), name

    def test_it_depends_on_its_seed_alone(self):
        model, again = classifier(), classifier()
        tune(model, epochs=1, dropout=0.3)
        torch.manual_seed(77)
        tune(again, epochs=1, dropout=0.3)
        assert_same(weights_of(model), weights_of(again))

    def test_a_small_classifier_can_be_tuned_as_well(self):
        torch.manual_seed(0)
        model = SmallClassifier(SmallEncoder(60, 20, 16, 4, 24, 2), LABELS)
        _, tuned = tune(model, epochs=12)
        assert tuned.accuracy[tuned.best - 1] > 0.85

    def test_a_stopped_run_ends_with_the_same_best_epoch(self, tmp_path, monkeypatch):
        path = tmp_path / "run"
        whole, expected = tune(dropout=0.2, checkpoint=None)
        at = bert.LabelledBatches.at

        def stop(self, step):
            if step == 50:
                raise KeyboardInterrupt
            return at(self, step)

        monkeypatch.setattr(bert.LabelledBatches, "at", stop)
        with pytest.raises(KeyboardInterrupt):
            tune(dropout=0.2, checkpoint=path, checkpoint_every=7)
        monkeypatch.undo()
        resumed, tuned = tune(
            classifier(seed=5), dropout=0.2, checkpoint=path, resume=True
        )
        assert_same(weights_of(resumed), weights_of(whole))
        assert tuned.loss == expected.loss and tuned.best == expected.best
        assert tuned.history.loss == expected.history.loss

    def test_a_checkpoint_of_other_texts_or_settings_is_refused(self, tmp_path):
        path = tmp_path / "run"
        tune(epochs=1, checkpoint=path)
        for change, message in [
            ({"seed": 3}, "texts"),
            ({"val_seed": 3}, "texts"),
            ({"smoothing": 0.1}, "smoothing 0.0 .now 0.1"),
        ]:
            with pytest.raises(MedlmError, match=f"of another run: {message}"):
                tune(epochs=1, checkpoint=path, resume=True, **change)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"epochs": 0},
            {"looks": 0},
            {"batch": 0},
            {"encoder_rate": 0},
            {"head_rate": -1},
            {"warm_up": 1.0},
            {"smoothing": -0.1},
            {"dropout": 1.0},
            {"weight_decay": -1},
        ],
    )
    def test_settings_that_cannot_be(self, wrong):
        with pytest.raises(MedlmError, match=f"{next(iter(wrong))} is .*; expected"):
            bert.FineTuning(**wrong)

    def test_labels_that_the_model_does_not_have(self):
        rows, labels = labelled(9, 1)
        with pytest.raises(MedlmError, match="from 0 to 3; expected numbers 0 to 2"):
            bert.finetune(classifier(), rows, [0, 3, *labels[2:]], rows, labels)
        with pytest.raises(MedlmError, match="from 0 to 3; expected numbers 0 to 2"):
            bert.finetune(classifier(), rows, labels, rows, [0, 3, *labels[2:]])


def train_with_trainer(model, rows, labels, folder, optimisers=(None, None), **more):
    """One epoch over rows in their order, in batches of 8, by transformers' Trainer."""
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainingArguments

    class InOrder(Trainer):
        def _get_train_sampler(self, *_):
            return SequentialSampler(self.train_dataset)

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        num_train_epochs=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **more,
    )
    trainer = InOrder(
        bert.trainer_model(model),
        arguments,
        train_dataset=bert.trainer_dataset(rows, labels),
        data_collator=bert.trainer_collate,
        optimizers=optimisers,
    )
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_the_trainer_ends_with_our_weights(tmp_path, whose):
    """The same batches: with our optimiser, and with the Trainer's own, set alike."""
    rows, labels = labelled(64, 1)
    settings = bert.FineTuning(
        epochs=2,
        batch=8,
        encoder_rate=1e-3,
        head_rate=1e-3 if whose == "theirs" else 1e-2,
        warm_up=0.0 if whose == "theirs" else 0.25,
        weight_decay=0.1,
        dropout=0.0,
        frozen_blocks=1,  # so that no embedding is trained: the Trainer decays these
    )
    ours, theirs = classifier(), classifier()
    # Training losses only fall, so that the last epoch is the best one.
    tuned = bert.finetune(ours, rows, labels, rows, labels, settings)
    assert tuned.best == 2
    batches = bert.LabelledBatches(rows, range(64), 8)
    order = torch.cat([batch[2] for n in range(2) for batch in batches.epoch(n)])
    theirs.freeze(1, True)
    bert.set_dropout(theirs, 0.0)
    given = {"learning_rate": 1e-3, "weight_decay": 0.1, "lr_scheduler_type": "linear"}
    if whose == "ours":
        given = {"optimisers": bert.trainer_optimisers(theirs, settings, 16)}
    trainer = train_with_trainer(
        theirs, [rows[n] for n in order], [labels[n] for n in order], tmp_path, **given
    )
    assert trainer.state.global_step == 16
    start = weights_of(classifier())
    expected, got = weights_of(ours), weights_of(theirs)
    assert not torch.allclose(start["head.weight"], got["head.weight"], atol=5e-3)
    for name in got:
        if not name.endswith("key.bias"):  # has no gradient but rounding
            torch.testing.assert_close(got[name], expected[name], atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(
        bert.predict_logits(theirs, rows), bert.predict_logits(ours, rows), atol=1e-4
    )


def run_of_a_team(folder, accelerator):
    """A fine-tuning, its predictions and embeddings; a file for each process."""
    size = accelerator.num_processes if accelerator else 1
    number = accelerator.process_index if accelerator else 0
    model, tuned = tune(classifier(seed=number), dropout=0.0, accelerator=accelerator)
    rows = some_rows(21, seed=7)
    found = {
        "steps": tuned.history.loss,
        "loss": tuned.loss,
        "logits": bert.predict_logits(model, rows, 4, accelerator=accelerator).tolist(),
        "vectors": bert.embed(model, rows, accelerator=accelerator).tolist(),
    }
    (folder / f"{size}{number}.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_two_processes_tune_as_one_does(tmp_path):
    run_of_a_team(tmp_path, None)
    launch(tmp_path, "test_bert")
    one, main, other = (
        json.loads((tmp_path / f"{name}.json").read_text())
        for name in ("10", "20", "21")
    )
    assert main == other
    for name, tolerance in [("steps", 1e-3), ("loss", 1e-3), ("logits", 1e-2)]:
        np.testing.assert_allclose(main[name], one[name], atol=tolerance)
    np.testing.assert_allclose(main["vectors"], one["vectors"], atol=1e-2)
