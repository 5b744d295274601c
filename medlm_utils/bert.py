"""A pretrained encoder: load its weights into our own modules.

Knows nothing about tasks. The only module that imports `transformers`, and only inside
functions, so that a notebook pays for it when it needs it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medlm_utils import data
from medlm_utils.runtime import MedlmError
from medlm_utils.transformer import (
    Attend,
    EncoderBlock,
    LayerNorm,
    attention,
    padding_mask,
)

# Where a weight of the published file goes in our modules.
BLOCK_NAMES = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
    "output.LayerNorm": "feed_forward_norm",
}


class BertEncoder(nn.Module):
    """BERT's encoder out of chapter 1's blocks: post-LN, GELU, learned positions.

    Parameters
    ----------
    vocabulary, positions, segments
        Rows of the three embeddings that are summed.
    d_model, heads, d_ff, blocks
        Width, heads, inner width and number of blocks.
    eps
        Of every layer normalisation.
    attend
        `transformer.attention`, or its twin `transformer.fused_attention`.

    Source: Devlin et al. 2019; chapter 1.
    """

    def __init__(
        self,
        vocabulary: int,
        positions: int,
        segments: int,
        d_model: int,
        heads: int,
        d_ff: int,
        blocks: int,
        eps: float,
        attend: Attend = attention,
    ):
        super().__init__()
        self.words = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(positions, d_model)
        self.segments = nn.Embedding(segments, d_model)
        self.norm = LayerNorm(d_model, eps)
        self.blocks = nn.ModuleList(
            EncoderBlock(d_model, heads, d_ff, False, F.gelu, eps, attend)
            for _ in range(blocks)
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """All hidden states: the embeddings and the output of each block.

        Parameters
        ----------
        input_ids
            (batch, tokens) token numbers.
        attention_mask
            (batch, tokens), 1 for a token and 0 for padding.

        Returns
        -------
        list of Tensor
            1 + blocks tensors (batch, tokens, d_model).

        Raises
        ------
        MedlmError
            If a text is longer than the model has positions.
        """
        mask = padding_mask(attention_mask)
        states = [self.embed(input_ids)]
        for block in self.blocks:
            states.append(block(states[-1], mask))
        return states

    def embed(self, input_ids: Tensor) -> Tensor:
        """Word + position + segment (always the first one), normalised."""
        tokens, most = input_ids.shape[1], self.positions.num_embeddings
        if tokens > most:
            raise MedlmError(
                f"A text of {tokens} tokens; this model has {most} positions. "
                f"Truncate it: tokenizer(..., truncation=True, max_length={most})."
            )
        place = torch.arange(tokens, device=input_ids.device)
        first = torch.zeros_like(input_ids)
        total = self.words(input_ids) + self.positions(place) + self.segments(first)
        return self.norm(total)

    def weights(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Attention weights, (blocks, batch, heads, queries, keys)."""
        mask = padding_mask(attention_mask)
        states = self.forward(input_ids, attention_mask)
        looks = []
        for block, x in zip(self.blocks, states[:-1], strict=True):
            assert isinstance(block, EncoderBlock)
            looks.append(block.attention.weights(x, mask=mask))
        return torch.stack(looks)


def load_encoder(name: str = "minilm", attend: Attend = attention) -> BertEncoder:
    """Our own encoder with the published weights in it, ready for evaluation.

    Parameters
    ----------
    name
        A name of `data.weights`: ``"minilm"`` is packaged, ``"bert-base-uncased"``
        comes from the Hub.
    attend
        `transformer.attention`, or its twin `transformer.fused_attention`.

    Raises
    ------
    MedlmError
        If the weights are not there, or are not those of a BERT encoder.

    Source: chapter 1.
    """
    folder = data.weights(name)
    encoder = BertEncoder(**_sizes(folder), attend=attend)
    encoder.load_state_dict(_translated(folder))
    return encoder.eval()


def tokenizer(name: str = "minilm") -> Any:
    """The published tokenizer that belongs to the weights."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(data.weights(name))


def reference(name: str = "minilm") -> Any:
    """The same weights in `transformers`' own model: the oracle of `load_encoder`."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # 0.1 s of loading needs none
    return AutoModel.from_pretrained(data.weights(name), dtype=torch.float32).eval()


def _sizes(folder: Path) -> dict[str, Any]:
    """The sizes of `BertEncoder` from a published configuration."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "bert" or config["hidden_act"] != "gelu":
        raise MedlmError(
            f"{folder.name} holds a {config.get('model_type')!r} model with activation "
            f"{config.get('hidden_act')!r}; expected 'bert' with 'gelu'."
        )
    return {
        "vocabulary": config["vocab_size"],
        "positions": config["max_position_embeddings"],
        "segments": config["type_vocab_size"],
        "d_model": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "d_ff": config["intermediate_size"],
        "blocks": config["num_hidden_layers"],
        "eps": config["layer_norm_eps"],
    }


def _translated(folder: Path) -> dict[str, Tensor]:
    """The published weights under our names; pooler and heads of tasks left out."""
    from safetensors.torch import load_file

    published = load_file(folder / "model.safetensors")
    ours = {}
    for name, tensor in published.items():
        translated = _our_name(name.removeprefix("bert."))
        if translated is not None:
            ours[translated] = tensor
    return ours


def _our_name(name: str) -> str | None:
    """One published name under ours, None for what is not of the encoder."""
    part, _, kind = name.rpartition(".")
    if part.endswith("LayerNorm"):  # files of 2018 call them gamma and beta
        kind = {"weight": "gain", "gamma": "gain", "beta": "bias"}.get(kind, kind)
    if part.startswith("encoder.layer."):
        _, _, number, inside = part.split(".", 3)
        return f"blocks.{number}.{BLOCK_NAMES[inside]}.{kind}"
    return {
        "embeddings.word_embeddings": f"words.{kind}",
        "embeddings.position_embeddings": f"positions.{kind}",
        "embeddings.token_type_embeddings": f"segments.{kind}",
        "embeddings.LayerNorm": f"norm.{kind}",
    }.get(part)
