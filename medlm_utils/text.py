"""Strings to rectangles of integers: tokenizers, vocabularies, batches.

Knows nothing about models or diseases. A text becomes words or pieces of words, these
become numbers, and rows of numbers become padded rectangles. What a model of the
language must beat stands here too: it is counted, not trained.

Axes: ``batch``, ``tokens``. A row is one document, or one window of running text; a
document is ``<start> w1 ... wn <end>``. Everything is scored in nats, and what is
scored are the tokens of a row after its first.

Source: chapter 2.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from medlm_utils.runtime import MedlmError

if TYPE_CHECKING:
    import tokenizers

SPECIALS = ("<pad>", "<unk>", "<start>", "<end>")
PAD, UNKNOWN, START, END = range(4)
IGNORED = -100  # the target that torch's cross-entropy leaves out

# 38.4 and 97% are one token, so is one-sided; 22-year-old is 22 and -year-old.
_WORDS = re.compile(r"\d+(?:\.\d+)?%?|-?[^\W\d_]+(?:['’-][^\W\d_]+)*|[^\w\s]|_")
_BYTES = 256  # how many pieces a byte-pair vocabulary starts from
_WINDOW = 32_768  # bytes that the compressor of gzip can look back
_POOL = 32  # batches that share a pool, in which rows are sorted by length


# Tokenizers ---------------------------------------------------------------------------


def split_words(text: str) -> list[str]:
    """A note as words in small letters; numbers and punctuation are words too.

    Parameters
    ----------
    text
        Any text. White space is dropped, every other character is kept.

    Examples
    --------
    >>> split_words("22-year-old man. Temp 38.4, saturation 97%.")
    ['22', '-year-old', 'man', '.', 'temp', '38.4', ',', 'saturation', '97%', '.']

    Source: chapter 2.
    """
    return _WORDS.findall(text.lower())


def join_words(words: Sequence[str]) -> str:
    """Words to a text: the way back from `split_words` for a note of the clinic.

    Punctuation joins the word before it, and a sentence begins with a capital letter.
    Quotation marks, brackets and capitals inside a sentence do not come back as they
    were. Source: chapter 2.
    """
    text, begins = "", True
    for word in words:
        joins = not text or word[0] == "-" or word in {".", ",", ";", ":", "!", "?"}
        shown = word[0].upper() + word[1:] if begins else word
        text += shown if joins else f" {shown}"
        begins = word in {".", "!", "?"}
    return text


class Tokenizer(Protocol):
    """What batches need of a tokenizer: numbers from a text and back."""

    def __len__(self) -> int:
        """Size of the vocabulary, the special tokens included."""

    def encode(self, text: str) -> list[int]:
        """Text to token numbers, without start and end."""

    def decode(self, numbers: Iterable[int]) -> str:
        """Token numbers to text, up to the first end."""


class WordTokenizer:
    """One number a word; words that training did not show become ``<unk>``.

    Parameters
    ----------
    words
        The vocabulary: a word's place is its number. The first four are `SPECIALS`.
    split
        Text to words: `split_words`, or ``str.split`` for a text that is already split
        by spaces, such as WikiText-2.

    Raises
    ------
    MedlmError
        If the special tokens are not the first ones, or a word occurs twice.

    Source: chapter 2.
    """

    def __init__(
        self, words: Sequence[str], split: Callable[[str], list[str]] = split_words
    ):
        if tuple(words[: len(SPECIALS)]) != SPECIALS:
            raise MedlmError(
                f"The vocabulary begins with {', '.join(words[:4]) or 'nothing'}; "
                f"expected {', '.join(SPECIALS)}. `WordTokenizer.train` adds them."
            )
        if len(set(words)) < len(words):
            twice = collections.Counter(words).most_common(1)[0][0]
            raise MedlmError(
                f"The word {twice!r} stands in the vocabulary twice; expected once."
            )
        self.words = list(words)
        self.split = split
        self._number = {word: number for number, word in enumerate(self.words)}
        # A text that reads "<end>" must not be able to end a document.
        for special in set(SPECIALS) - {"<unk>"}:
            del self._number[special]

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        size: int | None = None,
        split: Callable[[str], list[str]] = split_words,
    ) -> WordTokenizer:
        """The words of `texts`, the most frequent first.

        Parameters
        ----------
        texts
            Training texts, and no others.
        size
            The largest vocabulary, special tokens included; None keeps every word.
        split
            As for the class.

        Raises
        ------
        MedlmError
            If there are no texts, one is empty, or `size` leaves no room for a word.
        """
        texts = _checked(texts)
        _check_size(size, len(SPECIALS) + 1, "the four special tokens and one word")
        counts = collections.Counter(word for text in texts for word in split(text))
        for special in SPECIALS:
            counts.pop(special, None)
        words = sorted(counts, key=lambda word: (-counts[word], word))
        return cls([*SPECIALS, *words][:size], split)

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """Text to token numbers, without start and end.

        Raises
        ------
        MedlmError
            If the text is empty.
        """
        _check_text(text)
        return [self._number.get(word, UNKNOWN) for word in self.split(text)]

    def decode(self, numbers: Iterable[int]) -> str:
        """Token numbers to text; padding and start are left out, end ends it.

        Raises
        ------
        MedlmError
            If a number is not in the vocabulary.
        """
        words = [self.words[number] for number in _until_end(numbers, len(self))]
        return join_words(words) if self.split is split_words else " ".join(words)

    def unknown(self, texts: Iterable[str]) -> collections.Counter[str]:
        """The words of `texts` that become ``<unk>``, each with its count.

        Raises
        ------
        MedlmError
            If there are no texts, or one is empty.
        """
        words = (word for text in _checked(texts) for word in self.split(text))
        return collections.Counter(
            word
            for word in words
            if self._number.get(word, UNKNOWN) == UNKNOWN and word != "<unk>"
        )


class BytePairTokenizer:
    """Pieces of words: bytes, and the pairs of pieces that training saw most often.

    Nothing is unknown to it, and case and spaces are kept.

    Parameters
    ----------
    model
        As `BytePairTokenizer.train` makes it.

    Source: Sennrich et al. 2016; chapter 2.
    """

    def __init__(self, model: tokenizers.Tokenizer):
        self.model = model
        # Otherwise a text that reads "<end>" would end a document.
        self.model.encode_special_tokens = True

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> BytePairTokenizer:
        """Merge the most frequent pair of neighbours until `size` pieces are there.

        Parameters
        ----------
        texts
            Training texts, and no others.
        size
            The largest vocabulary, special tokens included; a short text gives fewer.

        Raises
        ------
        MedlmError
            If there are no texts, one is empty, or `size` is below the 260 pieces that
            every vocabulary has.
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        texts = _checked(texts)
        _check_size(size, len(SPECIALS) + _BYTES, "four special tokens and 256 bytes")
        model = Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(SPECIALS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        model.train_from_iterator(texts, trainer)
        return cls(model)

    def __len__(self) -> int:
        return self.model.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Text to token numbers, without start and end.

        Raises
        ------
        MedlmError
            If the text is empty.
        """
        _check_text(text)
        return self.model.encode(text).ids

    def decode(self, numbers: Iterable[int]) -> str:
        """Token numbers to text; padding and start are left out, end ends it.

        Raises
        ------
        MedlmError
            If a number is not in the vocabulary.
        """
        return self.model.decode(list(_until_end(numbers, len(self))))


def _check_text(text: str, which: str = "The text") -> None:
    if not text.strip():
        raise MedlmError(f"{which} is empty; expected at least one word.")


def _checked(texts: Iterable[str]) -> list[str]:
    """The texts as a list, refused when there is none or one is empty."""
    if isinstance(texts, str):
        raise MedlmError("Got one string; expected a list of texts. Write [text].")
    texts = list(texts)
    if not texts:
        raise MedlmError("There are no texts; expected at least one.")
    for place, text in enumerate(texts):
        _check_text(text, f"Text {place} (counted from 0)")
    return texts


def _check_size(size: int | None, least: int, why: str) -> None:
    if size is not None and size < least:
        raise MedlmError(
            f"The vocabulary size is {size}; expected at least {least}: {why}."
        )


def _until_end(numbers: Iterable[int], size: int) -> Iterator[int]:
    """The numbers before the first end, without padding and start, checked."""
    for number in map(int, numbers):
        if not 0 <= number < size:
            raise MedlmError(
                f"Token {number} is not in this vocabulary; expected 0 to {size - 1}. "
                "Was the text encoded with another tokenizer?"
            )
        if number == END:
            return
        if number not in (PAD, START):
            yield number


# Rows and batches ---------------------------------------------------------------------


def documents(tokenizer: Tokenizer, texts: Iterable[str]) -> list[Tensor]:
    """Each text as one row: start, its tokens, end.

    Returns
    -------
    list of Tensor
        (tokens,) token numbers each, in the order of `texts`.

    Raises
    ------
    MedlmError
        If there are no texts, or one is empty.

    Source: chapter 2.
    """
    return [
        torch.tensor([START, *tokenizer.encode(text), END]) for text in _checked(texts)
    ]


def stream(tokenizer: Tokenizer, text: str) -> Tensor:
    """Running text as one long row: the tokens of each line, then end.

    A blank line is an end alone, as the word-level counts of WikiText-2 have it.

    Returns
    -------
    Tensor
        (tokens,) token numbers.

    Raises
    ------
    MedlmError
        If the text is empty.

    Source: Merity et al. 2017; chapter 2.
    """
    _check_text(text)
    numbers: list[int] = []
    for line in text.removesuffix("\n").split("\n"):
        numbers += [*(tokenizer.encode(line) if line.strip() else ()), END]
    return torch.tensor(numbers)


def windows(running: Tensor, tokens: int, context: int = 0) -> list[Tensor]:
    """Cut running text into rows, so that every token but the first is a target once.

    Neighbours share a token: the last target of one row opens the next. With `context`
    they share more, which a model may read but which is not scored again: give
    `training.evaluate` the same number.

    Parameters
    ----------
    running
        (all tokens,), as `stream` makes it.
    tokens
        Inputs in a row, so a row has one number more; the last row may be shorter.
    context
        Inputs of a row that earlier rows have already scored.

    Raises
    ------
    MedlmError
        If there is less than one input and one target, or `context` leaves no target.

    Source: chapter 2.
    """
    if len(running) < 2 or not 0 <= context < tokens:
        raise MedlmError(
            f"Cannot cut {len(running)} tokens into rows of {tokens} with {context} "
            "of context; expected at least 2 tokens and less context than a row has."
        )
    new = tokens - context
    count = 1 + max(0, -(-(len(running) - 1 - tokens) // new))
    return [running[row * new : row * new + tokens + 1] for row in range(count)]


def pad(rows: Sequence[Tensor]) -> Tensor:
    """Rows of any lengths as one rectangle, (batch, tokens), filled up with 0."""
    return torch.nn.utils.rnn.pad_sequence(
        list(rows), batch_first=True, padding_value=PAD
    )


def inputs_and_targets(batch: Tensor) -> tuple[Tensor, Tensor]:
    """The one shift of the course: what the model reads, and what comes next.

    Parameters
    ----------
    batch
        (batch, tokens) token numbers, padded with 0.

    Returns
    -------
    tuple of Tensor
        Inputs and targets, (batch, tokens - 1) each; a target is `IGNORED` where it
        would be padding.

    Raises
    ------
    MedlmError
        If `batch` is no rectangle of whole numbers with at least two columns.

    Source: chapter 2.
    """
    if batch.dim() != 2 or batch.shape[1] < 2 or batch.is_floating_point():
        raise MedlmError(
            f"A batch has shape {tuple(batch.shape)} and type {batch.dtype}; expected "
            "whole numbers, (batch, tokens), with at least two tokens."
        )
    return batch[:, :-1], batch[:, 1:].masked_fill(batch[:, 1:] == PAD, IGNORED)


class _Batches:
    """Batches in an order that depends on the seed and the step alone."""

    def __init__(self, size: int, seed: int):
        if size < 1:
            raise MedlmError(f"The batch size is {size}; expected at least 1.")
        self.size, self.seed = size, seed
        # Steps come one after the other, so the latest epoch is all that is needed.
        self._order = functools.lru_cache(maxsize=1)(self._epoch_of)

    def _epoch_of(self, number: int) -> list[Any]:
        raise NotImplementedError

    def _batch_of(self, chosen: Any) -> Tensor:
        raise NotImplementedError

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._order(0))

    def at(self, step: int) -> Tensor:
        """The batch of a training step, (batch, tokens); steps count from 0."""
        epoch, place = divmod(step, len(self))
        return self._batch_of(self._order(epoch)[place])

    def epoch(self, number: int) -> Iterator[Tensor]:
        """All batches of one epoch; epochs count from 0, and each has its own order."""
        return map(self._batch_of, self._order(number))


class DocumentBatches(_Batches):
    """Batches of whole documents of similar lengths, so that little is padding.

    Parameters
    ----------
    rows
        As `documents` makes them.
    size
        Documents in a batch; the last of an epoch may have fewer.
    seed
        Of the order. The batch of a step depends on `seed` and the step alone.

    Raises
    ------
    MedlmError
        If there are no documents, or `size` is below 1.

    Source: chapter 2.
    """

    def __init__(self, rows: Sequence[Tensor], size: int, seed: int = 0):
        super().__init__(size, seed)
        if not rows:
            raise MedlmError("There are no documents; expected at least one.")
        self.rows = list(rows)
        self._lengths = np.array([len(row) for row in self.rows])

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.rows) // self.size)

    def _epoch_of(self, number: int) -> list[np.ndarray]:
        """Row numbers of each batch: shuffle, sort within pools, cut, shuffle again."""
        rng = np.random.default_rng([self.seed, number])
        order = rng.permutation(len(self.rows))
        cut: list[np.ndarray] = []
        for pool in _pieces(order, self.size * _POOL):
            by_length = pool[np.argsort(self._lengths[pool], kind="stable")]
            cut += _pieces(by_length, self.size)
        return [cut[place] for place in rng.permutation(len(cut))]

    def _batch_of(self, chosen: np.ndarray) -> Tensor:
        return pad([self.rows[row] for row in chosen])


class StreamBatches(_Batches):
    """Batches of windows of running text, cut anew in every epoch.

    Parameters
    ----------
    running
        (all tokens,), as `stream` makes it.
    tokens
        Inputs in a window, so a row has one number more.
    size
        Windows in a batch; the last of an epoch may have fewer.
    seed
        Of the cuts and the order.

    Raises
    ------
    MedlmError
        If the text is shorter than two windows, or `size` is below 1.

    Source: chapter 2.
    """

    def __init__(self, running: Tensor, tokens: int, size: int, seed: int = 0):
        super().__init__(size, seed)
        if tokens < 1 or len(running) < 2 * tokens + 1:
            raise MedlmError(
                f"The text has {len(running)} tokens, too few for windows of {tokens}; "
                f"expected a window of at least 1 and a text of {2 * tokens + 1}."
            )
        self.running, self.tokens = running, tokens

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self._windows // self.size)

    @property
    def _windows(self) -> int:
        """Windows in an epoch: so many fit wherever the first one begins."""
        return (len(self.running) - self.tokens) // self.tokens

    def _epoch_of(self, number: int) -> list[np.ndarray]:
        """The first token of each window of each batch."""
        rng = np.random.default_rng([self.seed, number])
        starts = rng.integers(self.tokens) + self.tokens * np.arange(self._windows)
        return _pieces(rng.permutation(starts), self.size)

    def _batch_of(self, chosen: np.ndarray) -> Tensor:
        return torch.stack([self.running[s : s + self.tokens + 1] for s in chosen])


def _pieces(order: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut into pieces of `size`; the last may be shorter."""
    return [order[place : place + size] for place in range(0, len(order), size)]


# What a model must beat ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Nats:
    """How surprised a model was, token by token: -log p of each target.

    Parameters
    ----------
    by_row
        One array for each row, (targets of the row,), in nats.

    Source: chapter 2.
    """

    by_row: tuple[np.ndarray, ...]

    @property
    def total(self) -> float:
        """Nats of all targets together."""
        return float(self.of_row.sum())

    @property
    def tokens(self) -> int:
        """How many targets there are."""
        return int(self.tokens_of_row.sum())

    @property
    def nats_per_token(self) -> float:
        """Total nats over total targets: never a mean of means."""
        return self.total / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats per token), for this tokenizer and no other."""
        return float(np.exp(self.nats_per_token))

    @property
    def of_row(self) -> np.ndarray:
        """Nats of each row, (rows,): -log p of a document."""
        return np.array([row.sum() for row in self.by_row])

    @property
    def tokens_of_row(self) -> np.ndarray:
        """Targets of each row, (rows,)."""
        return np.array([len(row) for row in self.by_row])


class _Baseline:
    """A distribution of the next token that only looks at the one before."""

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary

    def probability(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """P(after | before), token numbers in, the same shape out."""
        raise NotImplementedError

    def nats(self, rows: Sequence[Tensor]) -> Nats:
        """-log P of the tokens of each row after its first."""
        _check_numbers(rows, self.vocabulary)
        arrays = [row.numpy() for row in rows]
        return Nats(
            tuple(-np.log(self.probability(row[:-1], row[1:])) for row in arrays)
        )


class Uniform(_Baseline):
    """Every token is equally likely: it knows the vocabulary and nothing else.

    Parameters
    ----------
    vocabulary
        Number of tokens.

    Source: chapter 2.
    """

    def probability(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """1 / vocabulary, in the shape of `after`."""
        return np.full(np.shape(after), 1 / self.vocabulary)


class Unigram(_Baseline):
    """How often a token occurs, whatever stands before it; one is added to each count.

    Parameters
    ----------
    rows
        Training rows; the first token of each is not counted.
    vocabulary
        Number of tokens.

    Raises
    ------
    MedlmError
        If there are no rows, or a token is not in the vocabulary.

    Source: Laplace's rule; chapter 2.
    """

    def __init__(self, rows: Sequence[Tensor], vocabulary: int):
        super().__init__(vocabulary)
        _, after = _neighbours(rows, vocabulary)
        counts = np.bincount(after, minlength=vocabulary) + 1
        self.shares = counts / counts.sum()

    def probability(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """P(after), in the shape of `after`."""
        return self.shares[after]


class KneserNeyBigram(_Baseline):
    """Which token follows which, with mass put aside for what was never seen.

    From every count of a pair the same `discount` is taken. What this frees goes to all
    tokens in proportion to how many different tokens they follow, and a part of that,
    by the same rule, to all tokens alike.

    Parameters
    ----------
    rows
        Training rows.
    vocabulary
        Number of tokens.
    discount
        Between 0 and 1; by default n1 / (n1 + 2 n2), where n1 pairs occur once and n2
        twice, or 0.5 where none occurs once.

    Raises
    ------
    MedlmError
        If there are no rows, a token is not in the vocabulary, or the discount is not
        above 0 and at most 1.

    Source: Kneser & Ney 1995, interpolated as in Chen & Goodman 1999; chapter 2.
    """

    def __init__(
        self, rows: Sequence[Tensor], vocabulary: int, discount: float | None = None
    ):
        super().__init__(vocabulary)
        before, after = _neighbours(rows, vocabulary)
        # A pair is one number, so that a large vocabulary needs no square table.
        self._pairs, self._counts = np.unique(
            before * vocabulary + after, return_counts=True
        )
        self.discount = _usual_discount(self._counts) if discount is None else discount
        if not 0 < self.discount <= 1:
            raise MedlmError(
                f"The discount is {self.discount}; expected above 0 and at most 1."
            )
        self._total = np.bincount(before, minlength=vocabulary)
        self._followers = np.bincount(self._pairs // vocabulary, minlength=vocabulary)
        followed = np.bincount(self._pairs % vocabulary, minlength=vocabulary)
        freed = self.discount * np.count_nonzero(followed) / vocabulary
        kept = np.maximum(followed - self.discount, 0)
        self.continuation = (kept + freed) / len(self._pairs)

    def probability(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """P(after | before), in the shape that the two broadcast to."""
        before, after = np.broadcast_arrays(before, after)
        pair = before.astype(np.int64) * self.vocabulary + after
        place = np.searchsorted(self._pairs, pair).clip(max=len(self._pairs) - 1)
        count = np.where(self._pairs[place] == pair, self._counts[place], 0)
        total, backed = self._total[before], self.continuation[after]
        freed = self.discount * self._followers[before] * backed
        known = (np.maximum(count - self.discount, 0) + freed) / total.clip(min=1)
        return np.where(total > 0, known, backed)


def _usual_discount(counts: np.ndarray) -> float:
    """n1 / (n1 + 2 n2): Ney et al. 1994."""
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    return float(once / (once + 2 * twice)) if once else 0.5


def _neighbours(
    rows: Sequence[Tensor], vocabulary: int
) -> tuple[np.ndarray, np.ndarray]:
    """Each token that is scored, and the one before it, as two long arrays."""
    _check_numbers(rows, vocabulary)
    before = torch.cat([row[:-1] for row in rows])
    after = torch.cat([row[1:] for row in rows])
    if not len(after):
        raise MedlmError("The rows hold no pair of tokens; expected at least one.")
    return before.numpy().astype(np.int64), after.numpy().astype(np.int64)


def _check_numbers(rows: Sequence[Tensor], vocabulary: int) -> None:
    if not len(rows):
        raise MedlmError("There are no rows; expected at least one.")
    low = min(int(row.min()) for row in rows)
    high = max(int(row.max()) for row in rows)
    if low < 0 or high >= vocabulary:
        raise MedlmError(
            f"The rows hold tokens from {low} to {high}; expected 0 to "
            f"{vocabulary - 1}. Was the text encoded with another tokenizer?"
        )


def gzip_nats(training: Iterable[str], texts: Iterable[str]) -> float:
    """What gzip's compressor needs for all `texts` together, in nats.

    The texts, one a line, are compressed as one raw deflate stream at level 9, and the
    compressor may refer back to the last 32,768 bytes of the training texts, as far as
    its window reaches. One byte is 8 ln 2 nats. Divide by the number of words or tokens
    of `texts` to compare with a model.

    Parameters
    ----------
    training, texts
        Texts in UTF-8, the second to be compressed.

    Raises
    ------
    MedlmError
        If there are no texts, or one is empty.

    Source: RFC 1951; chapter 2.
    """
    known = "\n".join(_checked(training)).encode() + b"\n"
    new = "\n".join(_checked(texts)).encode() + b"\n"
    compressor = zlib.compressobj(
        level=9, wbits=-zlib.MAX_WBITS, zdict=known[-_WINDOW:]
    )
    compressed = compressor.compress(new) + compressor.flush()
    return len(compressed) * 8 * float(np.log(2))
