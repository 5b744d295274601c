"""Pre-training in small: masked words and next sentences, on chapter 1's blocks.

Knows nothing about diseases or published weights. A text without any label teaches an
encoder to fill in words that were hidden from it, and to tell whether two halves belong
together; a classifier can start from what it learned.

Rows are those of `text.documents`: ``<start>`` stands for BERT's [CLS], ``<end>`` for
its [SEP], and [MASK] is the first number behind the vocabulary.

Source: Devlin et al. 2019; chapter 3.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medlm_utils import text, training
from medlm_utils.runtime import MedlmError
from medlm_utils.text import END, IGNORED, PAD, SPECIALS, START
from medlm_utils.transformer import (
    Attend,
    EncoderBlock,
    LayerNorm,
    draw_weights,
    fused_attention,
    padding_mask,
)

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


# What is hidden, and what follows what ------------------------------------------------


def mask_tokens(
    input_ids: Tensor,
    mask: int,
    vocabulary: int,
    special: Sequence[int],
    generator: torch.Generator,
    share: float = 0.15,
) -> tuple[Tensor, Tensor]:
    """Hide some tokens, to be guessed from the others.

    Of those that are chosen 80% become the mask, 10% another token and 10% stay as they
    are: later, where nothing is masked, the encoder must not rely on the mask to know
    which tokens matter. At least one is chosen.

    Parameters
    ----------
    input_ids
        (batch, tokens) token numbers.
    mask
        The number of [MASK].
    vocabulary
        Other tokens are drawn from the numbers below this one.
    special
        Numbers that are neither chosen nor drawn, padding among them.
    generator
        What is drawn depends on it alone.
    share
        Of the tokens that are not special, each with the same chance.

    Returns
    -------
    tuple of Tensor
        What the model reads and what it has to guess, (batch, tokens) each; a target is
        `IGNORED` where the token was not chosen.

    Raises
    ------
    MedlmError
        If there is nothing to choose from, or `share` is no share.

    Source: Devlin et al. 2019, section 3.1; chapter 3.
    """
    never = torch.tensor([*special, mask])
    ordinary = torch.arange(vocabulary)
    ordinary = ordinary[~torch.isin(ordinary, never)]
    may = ~torch.isin(input_ids, never)
    if not (may.any() and len(ordinary) and 0 < share <= 1):
        raise MedlmError(
            f"{int(may.sum())} tokens to choose from, {len(ordinary)} to draw, and a "
            f"share of {share}; expected at least one each, and a share up to 1."
        )
    chance = torch.rand(input_ids.shape, generator=generator).masked_fill(~may, 2.0)
    chosen = (chance < share) | (chance == chance.min())
    fate = torch.rand(input_ids.shape, generator=generator)
    drawn = torch.randint(len(ordinary), input_ids.shape, generator=generator)
    inputs = input_ids.masked_fill(chosen & (fate < 0.8), mask)
    inputs = torch.where(chosen & (fate >= 0.9), ordinary[drawn], inputs)
    return inputs, input_ids.masked_fill(~chosen, IGNORED)


def sentence_pairs(
    tokenizer: text.Tokenizer, texts: Sequence[str], seed: int, mixed: bool = True
) -> tuple[list[Tensor], Tensor]:
    """Two halves a row: of one text, or for every second text of two different ones.

    Parameters
    ----------
    tokenizer
        As in `text.documents`.
    texts
        Each is cut between the two sentences nearest to its middle, or if it has one
        sentence between two words.
    seed
        Of the choice.
    mixed
        False: every text keeps its own second half.

    Returns
    -------
    tuple
        Rows ``<start> first <end> second <end>``, (tokens,) each, and for each 1 where
        the second half follows the first, 0 where it is another text's.

    Raises
    ------
    MedlmError
        If there are not two texts, or one has a single word.

    Source: Devlin et al. 2019, section 3.1; chapter 3.
    """
    halves = [_halves(row, one) for row, one in enumerate(texts)]
    if len(halves) < 2:
        raise MedlmError(f"There are {len(halves)} texts; expected at least two.")
    rng = np.random.default_rng(seed)
    is_next = rng.integers(2, size=len(halves))
    others = rng.integers(1, len(halves), size=len(halves))  # so far away, in a circle
    if not mixed:
        is_next[:] = 1
    rows = []
    for row, (first, second) in enumerate(halves):
        if not is_next[row]:
            second = halves[(row + others[row]) % len(halves)][1]
        numbers = [*tokenizer.encode(first), END, *tokenizer.encode(second)]
        rows.append(torch.tensor([START, *numbers, END]))
    return rows, torch.from_numpy(is_next)


def _halves(row: int, one: str) -> tuple[str, str]:
    """The two halves of a text, cut between sentences or else between words."""
    parts = _SENTENCE_END.split(one.strip())
    if len(parts) < 2:
        parts = one.split()
    if len(parts) < 2:
        raise MedlmError(
            f"The text of row {row} (counted from 0) is {one!r}; expected at least two "
            "words, one for each half."
        )
    ends = np.cumsum([len(part) for part in parts])
    cut = 1 + int(np.abs(ends[:-1] - ends[-1] / 2).argmin())
    return " ".join(parts[:cut]), " ".join(parts[cut:])


def segments_of(input_ids: Tensor) -> Tensor:
    """0 up to the first ``<end>``, 1 behind it, 0 again at padding; (batch, tokens)."""
    ends = input_ids == END
    behind = ends.cumsum(dim=1) - ends.long() > 0
    return (behind & (input_ids != PAD)).long()


class MaskedBatches(text.DocumentBatches):
    """Batches with hidden tokens, hidden anew in every step.

    Parameters
    ----------
    rows
        As `text.documents` or `sentence_pairs` makes them.
    vocabulary
        Size of the tokenizer's vocabulary; the same number stands for [MASK].
    size
        Rows in a batch; the last of an epoch may have fewer.
    seed
        Of the order and of what is hidden. The batch of a step depends on `seed` and
        the step alone. It is a tuple: inputs, attention mask, segments and targets,
        (batch, tokens) each, and with `is_next` that of its rows, (batch,).
    is_next
        As `sentence_pairs` makes it.
    share
        As in `mask_tokens`.

    Raises
    ------
    MedlmError
        If there are no rows, `is_next` has another length, or `size` is below 1.

    Source: Devlin et al. 2019; Liu et al. 2019 on hiding anew; chapter 3.
    """

    def __init__(
        self,
        rows: Sequence[Tensor],
        vocabulary: int,
        size: int,
        seed: int = 0,
        is_next: Tensor | None = None,
        share: float = 0.15,
    ):
        super().__init__(rows, size, seed)
        if is_next is not None and len(is_next) != len(self.rows):
            raise MedlmError(
                f"{len(is_next)} answers for {len(self.rows)} rows; expected as many."
            )
        self.vocabulary, self.is_next, self.share = vocabulary, is_next, share

    def at(self, step: int) -> Any:
        """The batch of a training step; steps count from 0."""
        epoch, place = divmod(step, len(self))
        chosen = self._order(epoch)[place]
        # Another stream than that of the order, which is (seed, epoch).
        rng = np.random.default_rng([self.seed, step, 1])
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        input_ids = text.pad([self.rows[row] for row in chosen])
        specials = range(len(SPECIALS))
        inputs, targets = mask_tokens(
            input_ids, self.vocabulary, self.vocabulary, specials, generator, self.share
        )
        real = (input_ids != PAD).long()
        batch = (inputs, real, segments_of(input_ids), targets)
        if self.is_next is None:
            return batch
        return *batch, self.is_next[torch.from_numpy(chosen)]

    def epoch(self, number: int) -> Iterator[Any]:
        """All batches of one epoch; epochs count from 0."""
        first = number * len(self)
        return map(self.at, range(first, first + len(self)))


# The model ----------------------------------------------------------------------------


class SmallEncoder(nn.Module):
    """BERT's shape in small, out of chapter 1's blocks; pre-LN, which needs less care.

    Parameters
    ----------
    vocabulary
        Number of tokens, [MASK] included.
    longest
        How many tokens it can read.
    d_model, heads, d_ff, blocks
        Width of a token, heads, inner width and number of blocks.
    attend
        `transformer.fused_attention`, or its slow twin `transformer.attention`.

    Source: Devlin et al. 2019; chapter 3.
    """

    def __init__(
        self,
        vocabulary: int,
        longest: int,
        d_model: int,
        heads: int,
        d_ff: int,
        blocks: int,
        attend: Attend = fused_attention,
    ):
        super().__init__()
        self.words = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(longest, d_model)
        self.segments = nn.Embedding(2, d_model)
        self.blocks = nn.ModuleList(
            EncoderBlock(d_model, heads, d_ff, True, F.gelu, attend=attend)
            for _ in range(blocks)
        )
        self.norm = LayerNorm(d_model)
        self.initialise()

    def initialise(self) -> None:
        """As in chapter 2: small weights, and waves for the positions."""
        draw_weights(self, self.positions, len(self.blocks))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, segments: Tensor | None = None
    ) -> Tensor:
        """Token numbers to their last hidden states.

        Parameters
        ----------
        input_ids, attention_mask
            (batch, tokens); the mask is 1 for a token and 0 for padding.
        segments
            (batch, tokens), 0 or 1; by default those of `segments_of`.

        Returns
        -------
        Tensor
            (batch, tokens, d_model).

        Raises
        ------
        MedlmError
            If there are more tokens than positions.
        """
        tokens, most = input_ids.shape[1], self.positions.num_embeddings
        if tokens > most:
            raise MedlmError(
                f"A text of {tokens} tokens; this encoder has {most} positions. Cut "
                "the text, or make an encoder with a larger `longest`."
            )
        segments = segments_of(input_ids) if segments is None else segments
        place = torch.arange(tokens, device=input_ids.device)
        x = self.words(input_ids) + self.positions(place) + self.segments(segments)
        mask = padding_mask(attention_mask)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


class MaskedLM(nn.Module):
    """An encoder that guesses hidden tokens, and whether two halves belong together.

    Parameters
    ----------
    encoder
        Trained with it. Its table of words is the output layer too.
    pairs
        True: with a head for next sentences on the first token.

    Source: Devlin et al. 2019; chapter 3.
    """

    def __init__(self, encoder: SmallEncoder, pairs: bool = False):
        super().__init__()
        vocabulary, d_model = encoder.words.weight.shape
        self.encoder = encoder
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.pair_head = nn.Linear(d_model, 2) if pairs else None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        segments: Tensor | None = None,
        where: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of the tokens, and of "another" and "next".

        Parameters
        ----------
        input_ids, attention_mask, segments
            As for the encoder.
        where
            Boolean, (batch, tokens): only these n tokens are guessed, which saves the
            largest product of all. By default every one.

        Returns
        -------
        tuple
            (batch, tokens, vocabulary), or (n, vocabulary) with `where`; and
            (batch, 2), or None without the head.
        """
        states = self.encoder(input_ids, attention_mask, segments)
        follows = self.pair_head(states[:, 0]) if self.pair_head is not None else None
        chosen = states if where is None else states[where]
        return F.linear(chosen, self.encoder.words.weight, self.bias), follows


def masked_loss(model: nn.Module, batch: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Cross-entropy of the hidden tokens, summed over a batch: for `training.fit`.

    Parameters
    ----------
    model
        A `MaskedLM`.
    batch
        As `MaskedBatches` makes it.

    Returns
    -------
    tuple
        Nats, a scalar with gradient, and the number of hidden tokens.

    Source: chapter 3.
    """
    nats, count, _, _ = _guesses(model, batch)
    return nats, count


def pair_loss(model: nn.Module, batch: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Hidden tokens and next sentences: the sum of their two mean cross-entropies.

    Parameters
    ----------
    model
        A `MaskedLM` with ``pairs=True``.
    batch
        As `MaskedBatches` makes it with `is_next`.

    Returns
    -------
    tuple
        That sum times the number of hidden tokens, and this number, as `training.fit`
        divides the one by the other.

    Source: Devlin et al. 2019, section A.2; chapter 3.
    """
    nats, count, _, follows = _guesses(model, batch)
    assert follows is not None, "MaskedLM(..., pairs=True) is needed"
    is_next = batch[4].to(follows.device)
    return nats + count * F.cross_entropy(follows.float(), is_next), count


def _guesses(
    model: nn.Module, batch: Sequence[Tensor]
) -> tuple[Tensor, int, Tensor, Tensor | None]:
    """Nats of the hidden tokens, how many, which are right, and logits of the pairs."""
    device = training.device_of(model)
    inputs, real, segments, targets = (part.to(device) for part in batch[:4])
    hidden = targets != IGNORED
    logits, follows = model(inputs, real, segments, hidden)
    truth = targets[hidden]
    nats = F.cross_entropy(logits.float(), truth, reduction="sum")
    right = logits.argmax(dim=-1) == truth
    return nats, len(truth), right, follows


@torch.no_grad()
def evaluate(model: nn.Module, batches: MaskedBatches) -> dict[str, float]:
    """How well hidden tokens and next sentences are guessed, over one epoch.

    Parameters
    ----------
    model
        A `MaskedLM`; in evaluation mode while this runs.
    batches
        What is hidden is always the same: that of epoch 0.

    Returns
    -------
    dict
        ``"loss"``: nats a hidden token. ``"accuracy"``: share of those that are guessed
        right. With pairs ``"next_accuracy"``: share of the pairs.

    Source: chapter 3.
    """
    nats, right, pairs = 0.0, [], []
    with training.evaluating(model):
        for batch in batches.epoch(0):
            loss, _, guessed, follows = _guesses(model, batch)
            nats += float(loss)
            right += guessed.tolist()
            if follows is not None and len(batch) == 5:
                pairs += (follows.argmax(dim=1).cpu() == batch[4]).tolist()
    found = {"loss": nats / len(right), "accuracy": sum(right) / len(right)}
    return found | ({"next_accuracy": sum(pairs) / len(pairs)} if pairs else {})


# From an encoder to a classifier ------------------------------------------------------


def mean_over_tokens(states: Tensor, attention_mask: Tensor) -> Tensor:
    """One vector a text: the mean of its tokens' vectors, padding left out.

    Parameters
    ----------
    states
        (batch, tokens, d_model).
    attention_mask
        (batch, tokens), 1 for a token and 0 for padding.

    Returns
    -------
    Tensor
        (batch, d_model).

    Source: Reimers & Gurevych 2019; chapter 3.
    """
    real = attention_mask[:, :, None].to(states.dtype)
    return (states * real).sum(dim=1) / real.sum(dim=1)


class SmallClassifier(nn.Module):
    """A small encoder, the mean of its states, dropout, and a linear head.

    `bert.finetune` trains it as it trains a `bert.Classifier`.

    Parameters
    ----------
    encoder
        New, or the one of a `MaskedLM`: then what it learned. A copy is used, so that
        many classifiers can start from one encoder.
    labels
        What the classes are called, in the order of the logits.
    dropout
        Before the head.

    Raises
    ------
    MedlmError
        If there are not two different labels.

    Source: chapter 3.
    """

    def __init__(
        self, encoder: SmallEncoder, labels: Sequence[str], dropout: float = 0.1
    ):
        super().__init__()
        self.labels, self.temperature = checked_labels(labels), 1.0
        self.encoder = copy.deepcopy(encoder)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.words.embedding_dim, len(self.labels))
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @property
    def longest(self) -> int:
        """How many tokens it can read."""
        return self.encoder.positions.num_embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, tokens) token numbers to logits, (batch, classes)."""
        states = self.encoder(input_ids, attention_mask)
        return self.head(self.dropout(mean_over_tokens(states, attention_mask)))

    def freeze(self, blocks: int = 0, words: bool = False) -> None:
        """Choose which weights training leaves as they are; all others are trained.

        Parameters
        ----------
        blocks
            The first so many blocks, and below them all embeddings.
        words
            True: the table of words.

        Raises
        ------
        MedlmError
            If there are fewer blocks.
        """
        encoder = self.encoder
        check_blocks(blocks, len(encoder.blocks))
        self.requires_grad_(True)
        encoder.words.requires_grad_(not (words or blocks))
        encoder.positions.requires_grad_(not blocks)
        encoder.segments.requires_grad_(not blocks)
        encoder.blocks[:blocks].requires_grad_(False)


def checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The names of at least two classes, each of them once."""
    names = tuple(labels)
    if isinstance(labels, str) or not all(isinstance(name, str) for name in names):
        raise MedlmError(f"The labels are {labels!r}; expected a list of strings.")
    if len(names) < 2 or len(set(names)) < len(names):
        raise MedlmError(
            f"The labels are {', '.join(names) or 'none'}; expected at least two, each "
            "of them once."
        )
    return names


def check_blocks(blocks: int, most: int) -> None:
    """Refuse to freeze more blocks than an encoder has."""
    if not 0 <= blocks <= most:
        raise MedlmError(
            f"{blocks} blocks to freeze; this encoder has {most}: expected 0 to {most}."
        )
