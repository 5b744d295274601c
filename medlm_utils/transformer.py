"""Attention -> heads -> block -> encoder, decoder, encoder-decoder, language model.

Knows nothing about text, files or training. Everything here is derived in chapter 1,
`01_attention.ipynb`, the language model in chapter 2, and tested against torch's own
functions and GPT-2's code.

Axes, everywhere: ``batch``, ``heads``, ``tokens`` (or ``queries`` and ``keys`` where
the two differ), ``d_model`` (width of a token), ``d_head`` (width of a head). A mask is
boolean and True means "may attend", as in `F.scaled_dot_product_attention`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(query key^T / sqrt(d_head)): whom each query listens to, rows sum to 1.

    Parameters
    ----------
    query
        (..., queries, d_head).
    key
        (..., keys, d_head).
    mask
        Boolean, broadcast to (..., queries, keys); True = may attend. A query that may
        attend to nothing gets a row of zeros.

    Returns
    -------
    Tensor
        (..., queries, keys).

    Raises
    ------
    TypeError
        If `mask` is not boolean: 0 and 1 in other types mean different things in
        different libraries.

    Source: Vaswani et al. 2017, equation 1; chapter 1.
    """
    d_head = query.shape[-1]
    scores = query @ key.transpose(-2, -1) / math.sqrt(d_head)
    if mask is None:
        return torch.softmax(scores, dim=-1)
    if mask.dtype != torch.bool:
        raise TypeError(
            f"The mask has type {mask.dtype}; expected torch.bool with True = may "
            "attend. Compare it with something, for example mask == 1."
        )
    weights = torch.softmax(scores.masked_fill(~mask, -math.inf), dim=-1)
    # A row without any allowed key is 0/0 in the softmax; we define it as "nothing".
    return weights.masked_fill(~mask.any(dim=-1, keepdim=True), 0.0)


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Scaled dot-product attention by hand: for each query a weighted sum of values.

    Parameters
    ----------
    query, key, value
        (..., queries, d_head), (..., keys, d_head), (..., keys, d_value).
    mask
        As in `attention_weights`.

    Returns
    -------
    Tensor
        (..., queries, d_value).

    Raises
    ------
    TypeError
        If `mask` is not boolean.

    Source: Vaswani et al. 2017, equation 1; chapter 1.
    """
    return attention_weights(query, key, mask) @ value


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The same as `attention` in one kernel of torch, which never stores the weights.

    Shapes as in `attention`. Source: Dao et al. 2022; chapter 1.
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The same as `fused_attention` with a causal mask, which is never stored either.

    Shapes as in `attention`, with as many queries as keys.

    Raises
    ------
    ValueError
        If a mask is given, or queries and keys differ in number: torch would then count
        the queries from the first key on, not from the last.

    Source: Dao et al. 2022; chapter 2.
    """
    if mask is not None or query.shape[-2] != key.shape[-2]:
        raise ValueError(
            "causal_attention brings its own mask, for as many queries as keys; use "
            "fused_attention with causal_mask(queries, keys)."
        )
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def causal_mask(
    queries: int, keys: int | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Token t may attend to tokens up to t: True on and below the diagonal.

    Parameters
    ----------
    queries
        How many tokens ask.
    keys
        How many tokens can be asked, by default as many. With more keys than queries
        the queries are the LAST tokens, as in decoding with a cache.
    device
        Where the mask is to lie.

    Returns
    -------
    Tensor
        Boolean, (queries, keys).

    Raises
    ------
    ValueError
        If there are fewer keys than queries.

    Source: Vaswani et al. 2017, section 3.2.3; chapter 1.
    """
    keys = queries if keys is None else keys
    if keys < queries:
        raise ValueError(
            f"{queries} queries but {keys} keys; expected at least as many."
        )
    full = torch.ones(queries, keys, dtype=torch.bool, device=device)
    return full.tril(diagonal=keys - queries)


def padding_mask(real: Tensor) -> Tensor:
    """Every token may attend to real tokens only.

    Parameters
    ----------
    real
        (batch, tokens), 1 or True for a token, 0 or False for padding: the
        ``attention_mask`` of a tokenizer.

    Returns
    -------
    Tensor
        Boolean, (batch, 1, 1, keys), ready to broadcast over heads and queries.

    Source: chapter 1.
    """
    return real.bool()[:, None, None, :]


def sinusoidal_positions(tokens: int, d_model: int) -> Tensor:
    """The position vectors of the original Transformer: interleaved sines and cosines.

    Parameters
    ----------
    tokens
        How many positions, counted from 0.
    d_model
        Width, even.

    Returns
    -------
    Tensor
        (tokens, d_model).

    Raises
    ------
    ValueError
        If `d_model` is odd: each frequency needs a sine and a cosine.

    Source: Vaswani et al. 2017, section 3.5; chapter 1.
    """
    if d_model % 2:
        raise ValueError(f"d_model is {d_model}; expected an even number.")
    position = torch.arange(tokens, dtype=torch.float32)[:, None]
    even = torch.arange(0, d_model, 2, dtype=torch.float32)
    angle = position / 10_000 ** (even / d_model)  # (tokens, d_model / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


class LayerNorm(nn.Module):
    """Each token to mean 0 and variance 1 over its width, then a learned gain and bias.

    Shapes: (..., d_model) to (..., d_model). Source: Ba et al. 2016; chapter 1.
    """

    def __init__(self, d_model: int, eps: float = 1e-5):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))
        self.eps = eps  # keeps a constant token from dividing by zero

    def forward(self, x: Tensor) -> Tensor:
        # gain * (x - mean) / sqrt(variance + eps) + bias, in one kernel of torch
        return F.layer_norm(x, x.shape[-1:], self.gain, self.bias, self.eps)


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each in its own slice of the width.

    Parameters
    ----------
    d_model
        Width of a token.
    heads
        How many heads; they share the width, so `d_head` = `d_model` / `heads`.
    attend
        `attention`, or its twin `fused_attention`.

    Raises
    ------
    ValueError
        If `heads` does not divide `d_model`.

    Source: Vaswani et al. 2017, section 3.2.2; chapter 1.
    """

    def __init__(self, d_model: int, heads: int, attend: Attend = attention):
        super().__init__()
        if d_model % heads:
            raise ValueError(
                f"d_model {d_model} cannot be shared by {heads} heads; expected a "
                "number of heads that divides it."
            )
        self.heads = heads
        self.attend = attend
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.output = nn.Linear(d_model, d_model)

    def forward(
        self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """(batch, queries, d_model) to the same shape.

        `memory`, (batch, keys, d_model), is what is attended to: `x` itself by default,
        the encoder's output in cross-attention. `mask` broadcasts to (batch, heads,
        queries, keys).
        """
        memory = x if memory is None else memory
        query, key, value = self.project(x, memory)
        return self.output(self.merge(self.attend(query, key, value, mask)))

    def weights(
        self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The attention weights of every head, (batch, heads, queries, keys)."""
        query, key, _ = self.project(x, x if memory is None else memory)
        return attention_weights(query, key, mask)

    def project(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries from `x`, keys and values from `memory`, split into heads."""
        return (
            self.split(self.query(x)),
            self.split(self.key(memory)),
            self.split(self.value(memory)),
        )

    def split(self, x: Tensor) -> Tensor:
        """(batch, tokens, d_model) to (batch, heads, tokens, d_head)."""
        batch, tokens, d_model = x.shape
        return x.view(batch, tokens, self.heads, d_model // self.heads).transpose(1, 2)

    def merge(self, x: Tensor) -> Tensor:
        """(batch, heads, tokens, d_head) to (batch, tokens, d_model)."""
        batch, heads, tokens, d_head = x.shape
        return x.transpose(1, 2).reshape(batch, tokens, heads * d_head)


class FeedForward(nn.Module):
    """Two linear maps with a bend between, for each token alone.

    Shapes: (..., d_model) to (..., d_model). Source: Vaswani et al. 2017, section 3.3.
    """

    def __init__(
        self, d_model: int, d_ff: int, activation: Callable[[Tensor], Tensor] = F.relu
    ):
        super().__init__()
        self.up = nn.Linear(d_model, d_ff)
        self.down = nn.Linear(d_ff, d_model)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class EncoderBlock(nn.Module):
    """Self-attention, then a feed-forward network, each added to what came in.

    Parameters
    ----------
    d_model, heads, d_ff
        Width of a token, number of heads, inner width of the feed-forward network.
    pre_norm
        True: normalise before each part (most models today, Xiong et al. 2020).
        False: after each sum (the 2017 model and BERT).
    activation, eps, attend
        Passed to `FeedForward`, `LayerNorm` and `MultiHeadAttention`.

    Source: Vaswani et al. 2017, section 3.1; chapter 1.
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        d_ff: int,
        pre_norm: bool = True,
        activation: Callable[[Tensor], Tensor] = F.relu,
        eps: float = 1e-5,
        attend: Attend = attention,
    ):
        super().__init__()
        self.attention = MultiHeadAttention(d_model, heads, attend)
        self.feed_forward = FeedForward(d_model, d_ff, activation)
        self.attention_norm = LayerNorm(d_model, eps)
        self.feed_forward_norm = LayerNorm(d_model, eps)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, tokens, d_model) to the same shape; `mask` as in `attention`."""
        if self.pre_norm:
            x = x + self.attention(self.attention_norm(x), mask=mask)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.attention_norm(x + self.attention(x, mask=mask))
        return self.feed_forward_norm(x + self.feed_forward(x))


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the encoder, feed-forward network; pre-LN.

    Source: Vaswani et al. 2017, section 3.1; chapter 1.
    """

    def __init__(self, d_model: int, heads: int, d_ff: int):
        super().__init__()
        self.self_attention = MultiHeadAttention(d_model, heads)
        self.cross_attention = MultiHeadAttention(d_model, heads)
        self.feed_forward = FeedForward(d_model, d_ff)
        self.self_norm = LayerNorm(d_model)
        self.cross_norm = LayerNorm(d_model)
        self.feed_forward_norm = LayerNorm(d_model)

    def forward(
        self, x: Tensor, memory: Tensor, memory_mask: Tensor | None = None
    ) -> Tensor:
        """(batch, tokens, d_model) to the same shape.

        `memory` (batch, keys, d_model) is the encoder's output, `memory_mask` hides its
        padding, (batch, 1, 1, keys).
        """
        mask = causal_mask(x.shape[1], device=x.device)
        x = x + self.self_attention(self.self_norm(x), mask=mask)
        x = x + self.cross_attention(self.cross_norm(x), memory, memory_mask)
        return x + self.feed_forward(self.feed_forward_norm(x))


class EncoderDecoder(nn.Module):
    """The whole Transformer of 2017 (with pre-LN): reads a source, writes a target.

    Parameters
    ----------
    vocabulary
        Number of tokens that source and target share; token 0 is padding.
    d_model, heads, d_ff, blocks
        Width, heads and inner width of a block; blocks in the encoder and as many in
        the decoder.

    Source: Vaswani et al. 2017, figure 1; chapter 1.
    """

    def __init__(
        self, vocabulary: int, d_model: int, heads: int, d_ff: int, blocks: int
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, d_model)
        # Smaller than the positions' 0.7, so that a word does not drown its place.
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.encoder = nn.ModuleList(
            EncoderBlock(d_model, heads, d_ff) for _ in range(blocks)
        )
        self.decoder = nn.ModuleList(
            DecoderBlock(d_model, heads, d_ff) for _ in range(blocks)
        )
        self.encoder_norm = LayerNorm(d_model)
        self.decoder_norm = LayerNorm(d_model)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits of the token AFTER each target token.

        `source` (batch, keys) and `target` (batch, tokens) hold token numbers; the
        result is (batch, tokens, vocabulary).
        """
        memory = self.encode(source)
        return self.decode(target, memory, padding_mask(source != 0))

    def encode(self, source: Tensor) -> Tensor:
        """(batch, keys) token numbers to (batch, keys, d_model)."""
        mask = padding_mask(source != 0)
        x = self.embed(source)
        for block in self.encoder:
            x = block(x, mask)
        return self.encoder_norm(x)

    def decode(self, target: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """Logits (batch, tokens, vocabulary) for what has been written so far."""
        x = self.embed(target)
        for block in self.decoder:
            x = block(x, memory, memory_mask)
        return self.decoder_norm(x) @ self.embedding.weight.T

    def embed(self, tokens: Tensor) -> Tensor:
        """Token numbers to vectors, with their positions added."""
        d_model = self.embedding.embedding_dim
        positions = sinusoidal_positions(tokens.shape[1], d_model).to(tokens.device)
        return self.embedding(tokens) + positions

    @torch.no_grad()
    def greedy(self, source: Tensor, start: int, end: int, longest: int) -> Tensor:
        """Write the most probable next token again and again.

        Parameters
        ----------
        source
            (batch, keys) token numbers.
        start, end
            The tokens that open and close a target.
        longest
            Stop after so many tokens.

        Returns
        -------
        Tensor
            (batch, tokens) token numbers without `start`; 0 after `end`.
        """
        memory, mask = self.encode(source), padding_mask(source != 0)
        written = torch.full((len(source), 1), start, device=source.device)
        done = torch.zeros(len(source), dtype=torch.bool, device=source.device)
        for _ in range(longest):
            following = self.decode(written, memory, mask)[:, -1].argmax(dim=-1)
            following = following.masked_fill(done, 0)
            written = torch.cat([written, following[:, None]], dim=1)
            done |= following == end
            if done.all():
                break
        return written[:, 1:]


def draw_weights(model: nn.Module, positions: nn.Embedding, blocks: int) -> None:
    """Draw the weights as GPT-2 does: small, and smaller on the way to the sum.

    Their standard deviation is GPT-2's 0.02 at its width, 768, and scaled to ours: what
    a map puts out then has the same size at every width. Every block adds twice to what
    flows through, so what it adds is divided by sqrt(2 blocks): the sum then keeps its
    size however many blocks there are. Positions begin as the sines and cosines of
    chapter 1, as large as the words, and are learned from there: neighbours are alike
    from the first step.

    Parameters
    ----------
    model
        Its biases become 0, its matrices are drawn; gains stay as they are.
    positions
        The model's table of positions, as wide as a token.
    blocks
        How many `EncoderBlock` it has.

    Source: Radford et al. 2019; chapter 2.
    """
    std = 0.02 * math.sqrt(768 / positions.embedding_dim)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() == 2:
            adds = name.endswith(("attention.output.weight", "down.weight"))
            scale = math.sqrt(2 * blocks) if adds else 1.0
            nn.init.normal_(parameter, std=std / scale)
    waves = sinusoidal_positions(positions.num_embeddings, positions.embedding_dim)
    with torch.no_grad():  # a sine has a mean square of 1/2
        positions.weight.copy_(math.sqrt(2) * std * waves)


class TransformerLM(nn.Module):
    """A language model: what comes next, for every token, from what stands before it.

    GPT-2's shape out of chapter 1's blocks: pre-LN, GELU, learned positions, and one
    matrix that is both the table of input vectors and, transposed, the output layer.

    With v tokens in the vocabulary, n positions, width d, inner width f and b blocks it
    has ``d (v + n) + b (4 d^2 + 2 d f + 9 d + f) + 2 d`` parameters: two tables; in
    each block four square maps, two maps of the feed-forward network, their biases (4 d
    and f + d) and two normalisations (4 d); the last normalisation.

    Parameters
    ----------
    vocabulary
        Number of tokens.
    longest
        How many tokens it can read.
    d_model, heads, d_ff, blocks
        Width of a token, heads, inner width and number of blocks.
    attend
        `causal_attention`, or its slow twins `attention` and `fused_attention`, which
        are given the causal mask.

    Source: Radford et al. 2019; chapter 2.
    """

    def __init__(
        self,
        vocabulary: int,
        longest: int,
        d_model: int,
        heads: int,
        d_ff: int,
        blocks: int,
        attend: Attend = causal_attention,
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(longest, d_model)
        self.blocks = nn.ModuleList(
            EncoderBlock(d_model, heads, d_ff, True, F.gelu, attend=attend)
            for _ in range(blocks)
        )
        self.norm = LayerNorm(d_model)
        self.heads, self.attend = heads, attend
        self.initialise()

    def initialise(self) -> None:
        """Draw the weights, as `draw_weights` does."""
        draw_weights(self, self.positions, len(self.blocks))

    @property
    def longest(self) -> int:
        """How many tokens it can read."""
        return self.positions.num_embeddings

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the token AFTER each token.

        Padding has to stand at the end: no token sees what comes after it, so none
        sees padding, and no other mask is needed.

        Parameters
        ----------
        tokens
            (batch, tokens) token numbers.

        Returns
        -------
        Tensor
            (batch, tokens, vocabulary).

        Raises
        ------
        ValueError
            If there are more tokens than positions.
        """
        return self.logits(self.states(tokens)[-1])

    def states(self, tokens: Tensor) -> list[Tensor]:
        """What flows through the model: the embeddings and the output of each block.

        (batch, tokens) token numbers to blocks + 1 tensors, (batch, tokens, d_model);
        the last one is normalised, ready for `logits`.

        Raises
        ------
        ValueError
            If there are more tokens than positions.
        """
        x = self.embed(tokens)
        own = self.attend is causal_attention
        mask = None if own else causal_mask(tokens.shape[1], device=tokens.device)
        states = [x]
        for block in self.blocks:
            x = block(x, mask)
            states.append(x)
        return [*states[:-1], self.norm(x)]

    def embed(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Token numbers to vectors plus their positions, counted from `first`.

        Raises
        ------
        ValueError
            If there are more tokens than positions.
        """
        last = first + tokens.shape[1]
        if last > self.longest:
            raise ValueError(
                f"{last} tokens, but this model has {self.longest} positions; give it "
                "shorter texts, or build it with a larger `longest`."
            )
        return self.embedding(tokens) + self.positions.weight[first:last]

    def logits(self, state: Tensor) -> Tensor:
        """(..., d_model) to (..., vocabulary), by the matrix of the input vectors."""
        return F.linear(state, self.embedding.weight)

    def extend(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Logits after the last of some new tokens, without reading the old ones again.

        Parameters
        ----------
        tokens
            (batch, new tokens) that follow the ones that `cache` has seen.
        cache
            ``Cache(model, batch, longest)`` at first; the new tokens are added to it.

        Returns
        -------
        Tensor
            (batch, vocabulary).

        Raises
        ------
        ValueError
            If there are more tokens than positions.

        Source: chapter 2.
        """
        seen, new = cache.seen, tokens.shape[1]
        x = self.embed(tokens, seen)
        mask = causal_mask(new, seen + new, device=tokens.device)
        block: Any  # a ModuleList does not say of which modules
        for number, block in enumerate(self.blocks):
            part, normed = block.attention, block.attention_norm(x)
            query, key, value = part.project(normed, normed)
            key, value = cache.add(number, key, value)
            x = x + part.output(part.merge(fused_attention(query, key, value, mask)))
            x = x + block.feed_forward(block.feed_forward_norm(x))
        cache.seen += new
        return self.logits(self.norm(x[:, -1]))


class Cache:
    """Keys and values of the tokens that a language model has read so far.

    Parameters
    ----------
    model
        Whose cache it is.
    batch
        How many texts.
    longest
        Tokens it has room for.

    Source: chapter 2.
    """

    def __init__(self, model: TransformerLM, batch: int, longest: int):
        like = model.embedding.weight
        d_head = like.shape[1] // model.heads
        shape = (len(model.blocks), 2, batch, model.heads, longest, d_head)
        self._kept = like.new_zeros(shape)
        self.seen = 0

    def add(self, block: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep (batch, heads, new, d_head) keys and values; returns all so far."""
        last = self.seen + key.shape[2]
        kept = self._kept[block, :, :, :, :last]
        kept[0, :, :, self.seen :], kept[1, :, :, self.seen :] = key, value
        return kept[0], kept[1]


@torch.no_grad()
def generate(
    model: TransformerLM,
    start: int | Sequence[int],
    end: int,
    longest: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    count: int = 1,
) -> Tensor:
    """Draw texts: the next token again and again, from what the model expects.

    Parameters
    ----------
    model
        It is read in the mode in which it is.
    start
        The token that opens a text, or several tokens with which every text begins.
    end
        The token that closes a text.
    longest
        Stop after so many new tokens.
    temperature
        Divides the logits: below 1 the likely gets likelier, above 1 less so.
    top_k
        Draw from the `top_k` most likely tokens only; 1 always takes the most likely
        one, None takes all.
    generator
        Of the random numbers, on the model's device; by default torch's own.
    count
        How many texts, all at once.

    Returns
    -------
    Tensor
        (count, tokens) token numbers without `start`; 0 after `end`.

    Raises
    ------
    ValueError
        If the temperature is not above 0, `top_k` or `count` is out of range, there is
        no start, or start and new tokens are more than the model has positions.

    Source: chapter 2.
    """
    opening = [start] if isinstance(start, int) else list(start)
    vocabulary, device = model.embedding.num_embeddings, model.embedding.weight.device
    top_k = vocabulary if top_k is None else top_k
    _check_generation(model, opening, longest, temperature, top_k, count)
    following = torch.tensor(opening, device=device).expand(count, -1)
    done = torch.zeros(count, dtype=torch.bool, device=device)
    written: list[Tensor] = []
    cache = Cache(model, count, len(opening) + longest - 1)
    while len(written) < longest and not done.all():
        best, tokens = model.extend(following, cache).topk(top_k)
        chances = torch.softmax(best.float() / temperature, dim=-1)
        drawn = tokens.gather(1, torch.multinomial(chances, 1, generator=generator))
        following = drawn.masked_fill(done[:, None], 0)
        written.append(following)
        done |= following[:, 0] == end
    return torch.cat(written, dim=1)


def _check_generation(
    model: TransformerLM,
    opening: list[int],
    longest: int,
    temperature: float,
    top_k: int,
    count: int,
) -> None:
    """One clear error for what cannot be drawn."""
    vocabulary = model.embedding.num_embeddings
    if not temperature > 0:
        raise ValueError(
            f"The temperature is {temperature}; expected above 0. For the most likely "
            "token every time use top_k=1."
        )
    if not 1 <= top_k <= vocabulary:
        raise ValueError(f"top_k is {top_k}; expected 1 to {vocabulary}.")
    if count < 1 or longest < 1 or not opening:
        raise ValueError(
            f"{count} texts of {longest} tokens after {len(opening)} tokens; expected "
            "at least one of each."
        )
    # The last token that is drawn is never read.
    if len(opening) + longest - 1 > model.longest:
        raise ValueError(
            f"{len(opening)} + {longest} tokens, but this model has {model.longest} "
            "positions; ask for fewer."
        )
