"""pretraining.py: what is hidden, what follows what, and what is learned from it."""

import collections

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from medlm_utils import pretraining, text, training
from medlm_utils.pretraining import MaskedBatches, MaskedLM, SmallClassifier
from medlm_utils.runtime import MedlmError
from medlm_utils.transformer import TransformerLM, attention

WORDS = 30  # of the vocabulary, four specials included
TEXTS = [
    "Fever for two days. He has a cough. No rash.",
    "She has no pain. A headache began today. Nausea. Temp 38.4.",
    "No cough at all",
    "A rash on both arms. No fever.",
]


def encoder(seed=0, **sizes):
    torch.manual_seed(seed)
    usual = {"longest": 20, "d_model": 16, "heads": 2, "d_ff": 32, "blocks": 2}
    return pretraining.SmallEncoder(WORDS + 1, **usual | sizes)


def rows_of(count=40, seed=0):
    """Texts in which each word is the one before it plus one, so it can be guessed."""
    rng = np.random.default_rng(seed)
    starts, lengths = rng.integers(4, WORDS, count), rng.integers(4, 16, count)
    return [
        torch.tensor([2, *(4 + (s + np.arange(n)) % (WORDS - 4)), 3])
        for s, n in zip(starts, lengths, strict=True)
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return text.WordTokenizer.train(TEXTS)


@pytest.fixture(scope="module")
def large():
    """20,000 tokens with specials among them, and what became of them."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, WORDS, (200, 100), generator=generator)
    return ids, *pretraining.mask_tokens(ids, WORDS, WORDS, range(4), generator)


class TestMasking:
    def test_every_share_is_the_one_of_the_paper(self, large):
        ids, inputs, targets = large
        chosen = targets != text.IGNORED
        masked, same = inputs == WORDS, inputs == ids
        # Of the tokens that are drawn one in 26 is the one that was there.
        drawn_same = 0.1 / (WORDS - 4)
        of_chosen = int(chosen.sum())
        for count, total, share in [
            (of_chosen, int((ids >= 4).sum()), 0.15),
            (int((chosen & masked).sum()), of_chosen, 0.8),
            (int((chosen & same).sum()), of_chosen, 0.1 + drawn_same),
            (int((chosen & ~masked & ~same).sum()), of_chosen, 0.1 - drawn_same),
        ]:
            assert stats.binomtest(count, total, share).pvalue > 1e-3

    def test_targets_are_what_was_there_and_all_else_stays(self, large):
        ids, inputs, targets = large
        chosen = targets != text.IGNORED
        assert torch.equal(targets[chosen], ids[chosen])
        assert torch.equal(inputs[~chosen], ids[~chosen])

    def test_specials_are_neither_chosen_nor_drawn(self, large):
        ids, inputs, targets = large
        assert (targets[ids < 4] == text.IGNORED).all()
        changed = inputs[inputs != ids]
        assert changed.min() == 4 and changed.max() == WORDS

    def test_drawn_tokens_are_all_alike(self, large):
        ids, inputs, _ = large
        drawn = inputs[(inputs != ids) & (inputs != WORDS)]
        counts = np.bincount(drawn, minlength=WORDS)[4:]
        assert stats.chisquare(counts).pvalue > 1e-3

    def test_at_least_one_is_chosen(self):
        ids = torch.tensor([[2, 7, 3, 0]])
        for seed in range(30):
            generator = torch.Generator().manual_seed(seed)
            _, targets = pretraining.mask_tokens(ids, 30, 30, range(4), generator)
            assert targets.tolist() == [[-100, 7, -100, -100]]

    def test_bad_input(self):
        generator = torch.Generator()
        with pytest.raises(MedlmError, match="0 tokens to choose from"):
            pretraining.mask_tokens(torch.tensor([[2, 3]]), 30, 30, range(4), generator)
        with pytest.raises(MedlmError, match=r"share of 1\.5"):
            pretraining.mask_tokens(
                torch.tensor([[2, 7]]), 30, 30, range(4), generator, 1.5
            )


class TestPairs:
    def test_halves_are_whole_sentences_near_the_middle(self):
        assert pretraining._halves(0, TEXTS[0]) == (
            "Fever for two days.",
            "He has a cough. No rash.",
        )
        assert pretraining._halves(0, TEXTS[1]) == (
            "She has no pain. A headache began today.",
            "Nausea. Temp 38.4.",
        )
        assert pretraining._halves(0, TEXTS[2]) == ("No cough", "at all")
        assert pretraining._halves(0, "Short. A very much longer one.") == (
            "Short.",
            "A very much longer one.",
        )

    def test_the_second_half_is_its_own_or_another_texts(self, tokenizer):
        halves = [pretraining._halves(0, one) for one in TEXTS]
        seconds = [tokenizer.encode(second) for _, second in halves]
        seen = collections.Counter()
        for seed in range(1000, 1400):
            rows, is_next = pretraining.sentence_pairs(tokenizer, TEXTS, seed)
            for place, (row, follows) in enumerate(zip(rows, is_next, strict=True)):
                first = tokenizer.encode(halves[place][0])
                assert row.tolist()[: len(first) + 2] == [2, *first, 3]
                assert row[-1] == 3
                whose = seconds.index(row.tolist()[len(first) + 2 : -1])
                assert (whose == place) == bool(follows)
                seen[place, whose] += 1
        own = sum(seen[place, place] for place in range(4))
        assert stats.binomtest(own, 1600, 0.5).pvalue > 1e-3
        others = [n for (place, whose), n in seen.items() if place != whose]
        assert len(others) == 12 and stats.chisquare(others).pvalue > 1e-3

    def test_not_mixed_every_text_keeps_its_own(self, tokenizer):
        rows, is_next = pretraining.sentence_pairs(tokenizer, TEXTS, 3, mixed=False)
        for row, one in zip(rows, TEXTS, strict=True):
            first, second = map(tokenizer.encode, pretraining._halves(0, one))
            assert row.tolist() == [2, *first, 3, *second, 3]
        assert is_next.tolist() == [1, 1, 1, 1]

    def test_the_seed_decides(self, tokenizer):
        def pairs(seed):
            rows, is_next = pretraining.sentence_pairs(tokenizer, TEXTS, seed)
            return [row.tolist() for row in rows], is_next.tolist()

        assert pairs(3) == pairs(3)
        assert len({str(pairs(seed)) for seed in range(5)}) > 1

    def test_segments(self):
        ids = torch.tensor([[2, 7, 3, 8, 9, 3], [2, 7, 8, 3, 0, 0]])
        expected = [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]]
        assert pretraining.segments_of(ids).tolist() == expected

    def test_bad_input(self, tokenizer):
        with pytest.raises(MedlmError, match=r"row 1 .* is 'Fever'; expected at least"):
            pretraining.sentence_pairs(tokenizer, ["No pain.", "Fever"], 0)
        with pytest.raises(MedlmError, match="1 texts; expected at least two"):
            pretraining.sentence_pairs(tokenizer, TEXTS[:1], 0)


class TestBatches:
    def test_a_batch_depends_on_seed_and_step_alone(self):
        def parts(batches, step):
            return [part.tolist() for part in batches.at(step)]

        a, b = (MaskedBatches(rows_of(), WORDS, 8, seed=1) for _ in range(2))
        b.at(3)
        assert parts(a, 7) == parts(b, 7)
        other = MaskedBatches(rows_of(), WORDS, 8, seed=2)
        assert parts(a, 7) != parts(other, 7)

    def test_each_epoch_hides_anew_and_shows_every_row_once(self):
        rows, is_next = rows_of(), torch.arange(40)
        batches = MaskedBatches(rows, WORDS, 8, seed=1, is_next=is_next)
        hidden = []
        for number in range(2):
            seen = {}
            for inputs, real, _, targets, which in batches.epoch(number):
                whole = torch.where(targets == text.IGNORED, inputs, targets)
                for place, row in enumerate(which.tolist()):
                    tokens = whole[place][real[place].bool()]
                    # What was drawn or kept stands in the targets.
                    assert torch.equal(tokens, rows[row])
                    seen[row] = (targets[place] != text.IGNORED).nonzero().tolist()
            assert sorted(seen) == list(range(40))
            hidden.append(seen)
        assert hidden[0] != hidden[1]

    def test_one_text_is_hidden_in_many_ways(self):
        batches = MaskedBatches(rows_of(1), WORDS, 1)
        assert len({str(batches.at(step)[3].tolist()) for step in range(9)}) > 3

    def test_bad_input(self):
        with pytest.raises(MedlmError, match="3 answers for 40 rows"):
            MaskedBatches(rows_of(), WORDS, 8, is_next=torch.ones(3))


class TestModel:
    def test_its_weights_begin_as_those_of_the_language_model(self):
        sizes = {"longest": 20, "d_model": 48, "heads": 2, "d_ff": 96, "blocks": 8}
        ours, other = encoder(**sizes), TransformerLM(vocabulary=WORDS, **sizes)
        assert torch.equal(ours.positions.weight, other.positions.weight)
        for (name, weight), of_other in zip(
            ours.blocks.named_parameters(), other.blocks.parameters(), strict=True
        ):
            expected = float(of_other.detach().std()) if of_other.dim() == 2 else 0.0
            assert float(weight.detach().std()) == pytest.approx(expected, rel=0.15)
            assert name.endswith("gain") == bool(weight.dim() == 1 and weight.all())

    def test_padding_changes_nothing(self):
        model = MaskedLM(encoder(), pairs=True).eval()
        rows = rows_of(6)
        ids = text.pad(rows)
        logits, follows = model(ids, (ids != 0).long())
        for place, row in enumerate(rows):
            alone, pair = model(row[None], torch.ones(1, len(row), dtype=torch.long))
            torch.testing.assert_close(logits[place, : len(row)], alone[0])
            torch.testing.assert_close(follows[place], pair[0])

    def test_both_kinds_of_attention_agree(self):
        ids = rows_of(1)[0][None]
        fused, by_hand = encoder(), encoder(attend=attention)
        mask = torch.ones_like(ids)
        torch.testing.assert_close(fused(ids, mask), by_hand(ids, mask))

    def test_it_looks_in_both_directions(self):
        model, ids = encoder(), rows_of(1)[0][None]
        vectors = model.words(ids).detach().requires_grad_()
        model.words.forward = lambda _: vectors
        model(ids, torch.ones_like(ids))[0, 2].sum().backward()
        assert (vectors.grad[0].abs().sum(dim=1) > 0).all()

    def test_where_only_saves_work(self):
        model = MaskedLM(encoder())
        ids = text.pad(rows_of(5))
        where = torch.rand(ids.shape) < 0.3
        every, none = model(ids, (ids != 0).long())
        some, _ = model(ids, (ids != 0).long(), where=where)
        assert none is None
        torch.testing.assert_close(some, every[where])

    def test_the_losses_are_cross_entropies(self):
        model = MaskedLM(encoder(), pairs=True)
        is_next = torch.arange(40) % 2
        batch = MaskedBatches(rows_of(), WORDS, 8, is_next=is_next).at(0)
        logits, follows = model(*batch[:3])
        masked = F.cross_entropy(logits.flatten(0, 1), batch[3].flatten())
        nats, count = pretraining.masked_loss(model, batch)
        assert count == (batch[3] != text.IGNORED).sum()
        torch.testing.assert_close(nats / count, masked)
        nats, same = pretraining.pair_loss(model, batch)
        assert same == count
        both = masked + F.cross_entropy(follows, batch[4])
        torch.testing.assert_close(nats / count, both)

    def test_too_long_a_text(self):
        ids = torch.full((1, 21), 7)
        with pytest.raises(MedlmError, match="21 tokens; this encoder has 20 pos"):
            encoder()(ids, torch.ones_like(ids))

    def test_evaluation_is_over_all_hidden_tokens(self):
        model = MaskedLM(encoder(), pairs=True)
        batches = MaskedBatches(rows_of(), WORDS, 8, is_next=torch.ones(40).long())
        found = pretraining.evaluate(model, batches)
        losses = [pretraining.masked_loss(model, batch) for batch in batches.epoch(0)]
        nats = sum(loss.item() for loss, _ in losses)
        hidden = sum(count for _, count in losses)
        assert found["loss"] == pytest.approx(nats / hidden, rel=1e-5)
        assert found == pretraining.evaluate(model, batches)
        assert 0 <= found["accuracy"] < 0.5 and 0 <= found["next_accuracy"] <= 1
        plain = pretraining.evaluate(MaskedLM(encoder()), batches)
        assert plain.keys() == {"loss", "accuracy"}


@pytest.fixture(scope="module")
def learned():
    """A model that has seen 300 batches of the language in which words count up."""
    model = MaskedLM(encoder(d_model=32), pairs=True)
    rows = rows_of(400)
    is_next = torch.tensor([int(row[1] % 2) for row in rows])  # the first word tells
    batches = MaskedBatches(rows, WORDS, 16, is_next=is_next)
    training.fit(
        model,
        batches.at,
        steps=400,
        learning_rate=5e-3,
        warm_up=20,
        loss=pretraining.pair_loss,
    )
    return model


def test_it_learns_to_fill_in_and_to_tell_pairs(learned):
    rows = rows_of(80, seed=5)
    is_next = torch.tensor([int(row[1] % 2) for row in rows])
    test = MaskedBatches(rows, WORDS, 16, seed=9, is_next=is_next)
    found = pretraining.evaluate(learned, test)
    assert found["accuracy"] > 0.8  # of 26 words; now and then the first one is hidden
    assert found["next_accuracy"] > 0.8


class TestSmallClassifier:
    def test_it_starts_from_a_copy_of_what_was_learned(self, learned):
        model = SmallClassifier(learned.encoder, ["a", "b"])
        assert torch.equal(model.encoder.words.weight, learned.encoder.words.weight)
        model.encoder.words.weight.data.zero_()
        assert learned.encoder.words.weight.abs().sum() > 0
        assert model.labels == ("a", "b") and model.longest == 20

    def test_padding_changes_nothing(self):
        model = SmallClassifier(encoder(), ["a", "b", "c"]).eval()
        rows = rows_of(5)
        ids = text.pad(rows)
        logits = model(ids, (ids != 0).long())
        assert logits.shape == (5, 3)
        for place, row in enumerate(rows):
            alone = model(row[None], torch.ones(1, len(row), dtype=torch.long))
            torch.testing.assert_close(logits[place], alone[0])

    @pytest.mark.parametrize(
        ("blocks", "words", "frozen"),
        [
            (0, False, ()),
            (0, True, ("encoder.words",)),
            (1, False, ("encoder.words", "encoder.positions", "encoder.segments",
                        "encoder.blocks.0")),
        ],
    )  # fmt: skip
    def test_freezing(self, blocks, words, frozen):
        model = SmallClassifier(encoder(), ["a", "b"])
        model.freeze(2, True)  # what was frozen before is not when it is chosen anew
        model.freeze(blocks, words)
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (not name.startswith(frozen or ("-",)))

    def test_bad_input(self):
        with pytest.raises(MedlmError, match="The labels are a, a; expected at least"):
            SmallClassifier(encoder(), ["a", "a"])
        with pytest.raises(MedlmError, match=r"labels are 'ab'; expected a list"):
            SmallClassifier(encoder(), "ab")
        with pytest.raises(MedlmError, match="3 blocks to freeze; this encoder has 2"):
            SmallClassifier(encoder(), ["a", "b"]).freeze(3)


def test_mean_over_tokens_leaves_padding_out():
    states = torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    mean = pretraining.mean_over_tokens(states, mask)
    torch.testing.assert_close(mean[0], states[0].mean(dim=0))
    torch.testing.assert_close(mean[1], (states[1, 0] + states[1, 1]) / 2)
