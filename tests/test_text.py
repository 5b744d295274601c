"""text.py against brute force, and properties that must hold."""

import collections
import itertools
import math
import zlib

import numpy as np
import pytest
import torch

from medlm_utils import clinic, text
from medlm_utils.runtime import MedlmError


@pytest.fixture(scope="module")
def notes():
    return clinic.Clinic().draw(300, 1).text.tolist()


@pytest.fixture(scope="module")
def tokenizer(notes):
    return text.WordTokenizer.train(notes)


def some_rows(seed, vocabulary=9, count=12):
    """Random rows with a start and an end, some tokens never used."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, size=count)
    shares = rng.dirichlet(np.ones(vocabulary - 5) / 2)
    words = [4 + rng.choice(vocabulary - 5, size=n, p=shares) for n in lengths]
    return [torch.tensor([text.START, *w, text.END]) for w in words]


class TestWords:
    def test_numbers_percentages_hyphens_and_punctuation(self):
        words = text.split_words(
            "A 22-year-old, temp 38.4; 97% (one-sided). Isn’t 1_2."
        )
        expected = "a 22 -year-old , temp 38.4 ; 97% ( one-sided ) . isn’t 1 _ 2 ."
        assert " ".join(words) == expected

    @pytest.mark.parametrize(
        "given", ["Fièvre à 38,4°", "−5 °C ½ tablet", "a\n\tb--c", "发烧 38.5", "İ _x_"]
    )
    def test_only_white_space_is_lost(self, given):
        assert "".join(text.split_words(given)) == "".join(given.lower().split())

    def test_a_note_of_the_clinic_comes_back_letter_by_letter(self, notes, tokenizer):
        for note in notes:
            assert tokenizer.decode(tokenizer.encode(note)) == note

    def test_training_shows_every_word_that_other_notes_use(self):
        world = clinic.Clinic()
        trained = text.WordTokenizer.train(world.draw(3000, 1).text)
        assert not trained.unknown(world.draw(1000, 2).text)
        held_out = clinic.Clinic(phrasing="held out").draw(5, 3).text
        assert trained.unknown(held_out)

    def test_the_vocabulary_is_the_most_frequent_words_in_order(self):
        trained = text.WordTokenizer.train(["b a. a c", "c d"], size=7)
        assert trained.words == [*text.SPECIALS, "a", "c", "."]
        assert trained.encode("a b d") == [4, text.UNKNOWN, text.UNKNOWN]
        assert trained.unknown(["a b d", "b"]) == {"b": 2, "d": 1}

    def test_a_text_cannot_name_a_special_token_but_unknown(self):
        trained = text.WordTokenizer.train(["<end> <pad> <unk> x"], split=str.split)
        assert trained.words == [*text.SPECIALS, "x"]
        assert trained.encode("<end> <pad> <unk> x") == [1, 1, 1, 4]
        assert trained.unknown(["<end> <unk>"]) == {"<end>": 1}

    def test_decoding_stops_at_the_end_and_skips_padding(self, tokenizer):
        words = tokenizer.encode("No wheeze.")
        given = torch.tensor([text.START, *words, text.PAD, text.END, 7, 8])
        assert tokenizer.decode(given) == "No wheeze."


@pytest.fixture(scope="module")
def trained(notes):
    return text.BytePairTokenizer.train(notes, 400)


class TestBytePairs:
    @pytest.mark.parametrize(
        "given", ["Fièvre", "发烧  38.5\n", "<end> <pad>", "\x00 x"]
    )
    def test_any_text_comes_back_and_nothing_is_special(self, trained, given):
        numbers = trained.encode(given)
        assert trained.decode(numbers) == given
        assert min(numbers) >= len(text.SPECIALS)

    def test_the_size_is_kept_and_merges_shorten(self, notes, trained):
        small = text.BytePairTokenizer.train(notes, 260)
        assert (len(small), len(trained)) == (260, 400)
        for note in notes[:5]:
            assert len(small.encode(note)) == len(note.encode())
            assert len(trained.encode(note)) < len(note) / 2

    def test_training_twice_gives_the_same_pieces(self, notes, trained):
        again = text.BytePairTokenizer.train(notes, 400)
        assert again.model.to_str() == trained.model.to_str()

    def test_rows_begin_and_end_like_those_of_words(self, trained, notes):
        row = text.documents(trained, notes[:1])[0].tolist()
        assert (row[0], row[-1]) == (text.START, text.END)
        assert trained.decode(row) == notes[0]


class TestBadInput:
    @pytest.mark.parametrize("empty", ["", " \n"])
    def test_an_empty_text(self, tokenizer, empty):
        with pytest.raises(MedlmError, match=r"The text is empty; expected"):
            tokenizer.encode(empty)
        with pytest.raises(MedlmError, match=r"Text 1 .* is empty"):
            text.documents(tokenizer, ["fever", empty])

    @pytest.mark.parametrize(
        "train",
        [text.WordTokenizer.train, lambda t: text.BytePairTokenizer.train(t, 300)],
    )
    def test_no_texts_or_one_string(self, train):
        with pytest.raises(MedlmError, match="no texts; expected at least one"):
            train([])
        with pytest.raises(MedlmError, match="expected a list of texts"):
            train("fever")

    @pytest.mark.parametrize("number", [-1, 5000])
    def test_an_unknown_token(self, tokenizer, number):
        with pytest.raises(MedlmError, match=f"Token {number} is not in this"):
            tokenizer.decode([5, number])

    def test_a_vocabulary_that_is_too_small(self):
        with pytest.raises(MedlmError, match="size is 4; expected at least 5"):
            text.WordTokenizer.train(["fever"], size=4)
        with pytest.raises(MedlmError, match="size is 259; expected at least 260"):
            text.BytePairTokenizer.train(["fever"], 259)

    def test_a_vocabulary_without_specials_or_with_a_word_twice(self):
        with pytest.raises(MedlmError, match="begins with fever; expected <pad>"):
            text.WordTokenizer(["fever"])
        with pytest.raises(MedlmError, match="'fever' stands in the vocabulary twice"):
            text.WordTokenizer([*text.SPECIALS, "fever", "fever"])

    @pytest.mark.parametrize(
        "batch", [torch.ones(3, dtype=int), torch.ones(2, 1).long()]
    )
    def test_no_rectangle(self, batch):
        with pytest.raises(
            MedlmError, match=r"expected whole numbers, \(batch, tokens"
        ):
            text.inputs_and_targets(batch)
        with pytest.raises(MedlmError, match="expected whole numbers"):
            text.inputs_and_targets(torch.ones(2, 3))

    def test_batches_of_nothing(self):
        with pytest.raises(MedlmError, match="no documents"):
            text.DocumentBatches([], 4)
        with pytest.raises(MedlmError, match="batch size is 0"):
            text.DocumentBatches(some_rows(0), 0)
        with pytest.raises(MedlmError, match="too few for windows of 10"):
            text.StreamBatches(torch.arange(20), 10, 2)
        with pytest.raises(MedlmError, match="with 3 of context"):
            text.windows(torch.arange(20), 3, 3)

    def test_rows_of_another_vocabulary(self):
        for baseline in (text.Unigram, text.KneserNeyBigram):
            with pytest.raises(
                MedlmError, match="tokens from 2 to 20; expected 0 to 8"
            ):
                baseline([torch.tensor([2, 20, 3])], 9)
        with pytest.raises(MedlmError, match="no rows"):
            text.Unigram([], 9)
        with pytest.raises(MedlmError, match="no pair of tokens"):
            text.Unigram([torch.tensor([2])], 9)
        with pytest.raises(MedlmError, match=r"discount is 1\.5"):
            text.KneserNeyBigram(some_rows(0), 9, discount=1.5)


class TestBatches:
    def test_the_one_shift(self):
        inputs, targets = text.inputs_and_targets(
            torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
        )
        assert inputs.tolist() == [[2, 5, 6], [2, 7, 3]]
        assert targets.tolist() == [[5, 6, 3], [7, 3, text.IGNORED]]

    @pytest.mark.parametrize("size", [1, 5, 12, 50])
    def test_an_epoch_holds_every_document_once(self, size):
        rows = some_rows(0, count=53)
        batches = text.DocumentBatches(rows, size, seed=3)
        for number in (0, 1):
            seen = [r[r != 0].tolist() for b in batches.epoch(number) for r in b]
            assert sorted(seen) == sorted(r.tolist() for r in rows)
        assert len(list(batches.epoch(0))) == len(batches) == math.ceil(53 / size)

    def test_steps_walk_through_epochs_and_depend_on_the_seed_alone(self):
        rows = some_rows(0, count=53)
        batches = text.DocumentBatches(rows, 4, seed=3)
        walked = [batches.at(step) for step in range(2 * len(batches))]
        expected = [*batches.epoch(0), *batches.epoch(1)]
        assert all(map(torch.equal, walked, expected))
        fresh = text.DocumentBatches(rows, 4, seed=3)
        assert torch.equal(fresh.at(20), walked[20])
        other = text.DocumentBatches(rows, 4, seed=4)
        assert not all(
            a.shape == b.shape and torch.equal(a, b)
            for a, b in zip(walked, other.epoch(0), strict=False)
        )
        firsts, seconds = walked[: len(batches)], walked[len(batches) :]
        assert [b.tolist() for b in firsts] != [b.tolist() for b in seconds]

    def test_grouping_by_length_leaves_little_padding(self, notes, tokenizer):
        rows = text.documents(tokenizer, notes)
        batches = text.DocumentBatches(rows, 16)
        padding = torch.cat([(b == 0).flatten() for b in batches.epoch(0)])
        assert padding.float().mean() < 0.06
        lengths = [b.shape[1] for b in batches.epoch(0)]
        assert lengths != sorted(lengths)

    def test_a_stream_ends_its_lines(self):
        tokenizer = text.WordTokenizer.train(["a b"], split=str.split)
        stream = text.stream(tokenizer, " a b \n \n b <unk> x\n")
        assert stream.tolist() == [4, 5, 3, 3, 5, 1, 1, 3]

    @pytest.mark.parametrize(
        ("tokens", "context"), [(1, 0), (4, 0), (4, 3), (7, 2), (40, 5)]
    )
    def test_windows_make_every_token_but_the_first_a_target_once(
        self, tokens, context
    ):
        running = torch.arange(23)
        rows = text.windows(running, tokens, context)
        targets = [r[1:] if not n else r[1 + context :] for n, r in enumerate(rows)]
        assert torch.cat(targets).tolist() == list(range(1, 23))
        assert all(len(target) for target in targets)
        assert max(map(len, rows)) <= tokens + 1

    @pytest.mark.parametrize("length", [9, 10, 23, 24, 25])
    def test_stream_batches_cut_anew_and_never_overlap(self, length):
        running = torch.arange(length)
        batches = text.StreamBatches(running, 4, 2, seed=1)
        cuts = set()
        for number in range(30):
            rows = torch.cat(list(batches.epoch(number)))
            targets = rows[:, 1:].flatten().tolist()
            assert len(set(targets)) == len(targets) >= length - 8
            assert (rows[:, 1:] - rows[:, :-1] == 1).all()
            cuts.add(int(rows.min()))
        assert cuts == {0, 1, 2, 3}
        assert torch.equal(batches.at(len(batches)), next(batches.epoch(1)))


def brute_kneser_ney(rows, vocabulary, d):
    """P(after | before) with dictionaries, from the definition."""
    pairs = collections.Counter(
        pair for row in rows for pair in itertools.pairwise(row.tolist())
    )
    table = np.zeros((vocabulary, vocabulary))
    kinds = len(pairs)
    words = {w for _, w in pairs}
    for v, w in itertools.product(range(vocabulary), repeat=2):
        followed = len({x for x, y in pairs if y == w})
        low = max(followed - d, 0) / kinds + d * len(words) / kinds / vocabulary
        total = sum(count for (x, _), count in pairs.items() if x == v)
        if not total:
            table[v, w] = low
            continue
        followers = len({y for x, y in pairs if x == v})
        high = max(pairs[v, w] - d, 0) / total
        table[v, w] = high + d * followers / total * low
    return table


class TestBaselines:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("discount", [None, 0.3, 1.0])
    def test_kneser_ney_equals_brute_force(self, seed, discount):
        rows = some_rows(seed)
        model = text.KneserNeyBigram(rows, 9, discount)
        every = np.arange(9)
        table = model.probability(every[:, None], every[None])
        expected = brute_kneser_ney(rows, 9, model.discount)
        np.testing.assert_allclose(table, expected, rtol=1e-12)

    def test_the_usual_discount(self):
        rows = [torch.tensor([4, 5, 4, 5, 6, 7, 8, 4])]  # 5 pairs once, 1 twice
        assert text.KneserNeyBigram(rows, 9).discount == pytest.approx(5 / 7)
        twice = [torch.tensor([4, 5])] * 2
        assert text.KneserNeyBigram(twice, 9).discount == 0.5

    @pytest.mark.parametrize("seed", range(5))
    def test_every_baseline_sums_to_one_in_every_context_and_excludes_nothing(
        self, seed
    ):
        rows, every = some_rows(seed, 30, 40), np.arange(30)
        baselines = [text.Uniform(30), text.Unigram(rows, 30)]
        for model in [*baselines, text.KneserNeyBigram(rows, 30)]:
            for before in every:
                chances = model.probability(np.full(30, before), every)
                assert chances.sum() == pytest.approx(1, abs=1e-12)
                assert (chances > 0).all()

    def test_unigram_adds_one_to_what_follows_the_first_token(self):
        model = text.Unigram([torch.tensor([2, 4, 4, 3])], 5)
        assert model.shares.tolist() == [1 / 8, 1 / 8, 1 / 8, 2 / 8, 3 / 8]

    def test_nats_are_minus_log_p_of_all_but_the_first(self):
        rows = some_rows(0)
        nats = text.Uniform(9).nats(rows)
        assert nats.tokens == sum(len(r) - 1 for r in rows)
        assert nats.nats_per_token == pytest.approx(math.log(9))
        assert nats.perplexity == pytest.approx(9)
        model = text.KneserNeyBigram(rows, 9)
        by_hand = [
            -sum(math.log(model.probability(*map(np.array, p))) for p in pairs)
            for pairs in (list(itertools.pairwise(r.tolist())) for r in rows)
        ]
        np.testing.assert_allclose(model.nats(rows).of_row, by_hand)

    def test_the_mean_is_over_tokens_not_over_rows(self):
        nats = text.Nats((np.array([1.0]), np.array([2.0, 3.0, 6.0])))
        assert (nats.total, nats.tokens, nats.nats_per_token) == (12, 4, 3)
        assert nats.of_row.tolist() == [1, 11]
        assert nats.tokens_of_row.tolist() == [1, 3]

    def test_each_baseline_beats_the_one_before_and_none_the_floor(self):
        world = clinic.Clinic()
        tokenizer = text.WordTokenizer.train(world.draw(2000, 1).text)
        test = world.draw(200, 2)
        training, rows = (
            text.documents(tokenizer, t) for t in (world.draw(2000, 1).text, test.text)
        )
        size = len(tokenizer)
        models = [
            text.Uniform(size),
            text.Unigram(training, size),
            text.KneserNeyBigram(training, size),
        ]
        scores = [model.nats(rows).nats_per_token for model in models]
        floor = -world.log_likelihood(test).sum() / models[0].nats(rows).tokens
        assert scores[0] > scores[1] > scores[2] > 1.2 * floor > 0


class TestGzip:
    def test_equals_a_stream_that_its_dictionary_unpacks(self, notes):
        nats = text.gzip_nats(notes[:200], notes[200:])
        known = ("\n".join(notes[:200]) + "\n").encode()[-32768:]
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=known)
        packed = (
            packer.compress(("\n".join(notes[200:]) + "\n").encode()) + packer.flush()
        )
        opener = zlib.decompressobj(-15, zdict=known)
        assert opener.decompress(packed).decode().splitlines() == notes[200:]
        assert nats == pytest.approx(len(packed) * math.log(256))

    def test_knowing_the_training_texts_helps(self, notes):
        new = notes[200:210]
        known = text.gzip_nats(notes[:200], new)
        assert text.gzip_nats(new, new) < known < text.gzip_nats(["x"], new)

    def test_no_texts(self, notes):
        with pytest.raises(MedlmError, match="no texts"):
            text.gzip_nats([], notes)
