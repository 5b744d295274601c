"""A pretrained encoder: embed, fine-tune by hand, fine-tune with the HF Trainer.

Knows nothing about diseases, files of notes or how good an answer is. The only module
that imports `transformers`, and only inside functions, so that a notebook pays for it
when it needs it.

A row is one text: its token numbers, special tokens included, without padding. Labels
are numbers from 0 in rows, and names in `Classifier.labels`.

Source: chapters 1 and 3.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medlm_utils import data, metrics, text, training
from medlm_utils.pretraining import (
    SmallClassifier,
    check_blocks,
    checked_labels,
    mean_over_tokens,
)
from medlm_utils.runtime import MedlmError, write_json
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

POOLINGS = ("mean", "pooler")  # how a classifier makes one vector of many
_BETAS = (0.9, 0.999)  # of AdamW, as BERT was fine-tuned
_FORMAT = 1  # of a saved classifier
_FORWARD_SHARE = 3  # a step is a forward pass, and a backward one of twice its cost
_KEPT = {"labels", "pooling", "temperature", "longest", "dropout", "tokenizer"}
_TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "spm.model"),
    *("sentencepiece.bpe.model", "tokenizer.model"),
)
_HUB_FILES = (  # what is fetched of a repository: never code, never a pickle
    *("config.json", "model.safetensors", "model.safetensors.index.json"),
    *("model-*.safetensors", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "merges.txt", *_TOKENIZER_FILES),
)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")  # owner/name@revision
_NO_LIMIT = 1_000_000  # tokens, for positions that count only how far apart two are


# Chapter 1: the published weights in our own modules ----------------------------------


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


# A classifier -------------------------------------------------------------------------


class Classifier(nn.Module):
    """A pretrained encoder, one vector a text, and a linear head over the labels.

    The head is new: its weights are drawn from torch's generator, as BERT's were.

    Parameters
    ----------
    encoder
        A model of transformers that gives hidden states.
    labels
        What the classes are called, in the order of the logits.
    tokenizer
        The one that belongs to the encoder.
    pooling
        ``"mean"``: the mean of the last hidden states over the attention mask.
        ``"pooler"``: tanh(W h + b) of the first token, [CLS], as BERT does it.
    dropout
        Of every dropout in encoder and head.
    longest
        How many tokens of a text are read, special tokens included; by default 256, or
        what the encoder has positions for, or what its tokenizer is said to read.

    Raises
    ------
    MedlmError
        If there are not two different labels, `pooling` has another name or the encoder
        has no pooler, or `longest` is above the encoder's positions.

    Source: Devlin et al. 2019; Reimers & Gurevych 2019; chapter 3.
    """

    def __init__(
        self,
        encoder: Any,
        labels: Sequence[str],
        tokenizer: Any = None,
        pooling: str = "mean",
        dropout: float = 0.1,
        longest: int | None = None,
    ):
        super().__init__()
        config = encoder.config
        self.labels = checked_labels(labels)
        self.positions = positions_of(encoder)
        said = getattr(tokenizer, "model_max_length", self.positions)
        self.longest = min(256, self.positions, said) if longest is None else longest
        _check_pooling(pooling, encoder)
        check_longest(self.longest, self.positions)
        self.tokenizer, self.pooling, self.temperature = tokenizer, pooling, 1.0
        # Of a model that names several labels a text: all that reach their threshold.
        self.thresholds: tuple[float, ...] | None = None
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(config.hidden_size, len(self.labels))
        spread = getattr(config, "initializer_range", 0.02)
        nn.init.normal_(self.head.weight, std=spread)
        nn.init.zeros_(self.head.bias)
        set_dropout(self, dropout)

    @classmethod
    def pretrained(
        cls,
        labels: Sequence[str],
        name: str | Path = "minilm",
        pooling: str = "mean",
        dropout: float = 0.1,
        longest: int | None = None,
    ) -> Classifier:
        """With published weights, or with those of a folder.

        Parameters
        ----------
        labels, pooling, dropout, longest
            As for the class.
        name
            As in `weights_folder`.

        Raises
        ------
        MedlmError
            As for the class, and if there is no such folder, its weights are a pickle,
            damaged or not those of an encoder, or a tokenizer is missing or of another
            model.
        """
        folder = weights_folder(name)
        encoder = _pretrained_encoder(folder, pooling)
        tokenizer = _tokenizer_in(folder)
        check_vocabulary(tokenizer.vocab_size, encoder, folder)
        return cls(encoder, labels, tokenizer, pooling, dropout, longest)

    @classmethod
    def from_config(
        cls, config: Any, labels: Sequence[str], tokenizer: Any = None, **settings: Any
    ) -> Classifier:
        """With weights drawn from torch's generator: what has learned nothing yet.

        Parameters
        ----------
        config
            Of transformers, such as ``BertConfig(...)``.
        labels, tokenizer, settings
            As for the class.
        """
        from transformers import AutoModel

        kind = _kind_of(config, settings.get("pooling", "mean"))
        with quiet(), _any_fault(config):
            encoder = AutoModel.from_config(
                copy.deepcopy(config), dtype=torch.float32, **kind
            )
        _check_encoder(encoder)
        return cls(encoder, labels, tokenizer, **settings)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits of the labels, before the temperature.

        Parameters
        ----------
        input_ids
            (batch, tokens) token numbers.
        attention_mask
            (batch, tokens), 1 for a token and 0 for padding.
        token_type_ids
            (batch, tokens), 0 for the first segment, 1 for the second; by default all
            0.

        Returns
        -------
        Tensor
            (batch, classes).

        Raises
        ------
        MedlmError
            If a text is longer than the encoder has positions.
        """
        tokens = input_ids.shape[1]
        if tokens > self.positions:
            raise MedlmError(
                f"A text of {tokens} tokens; this encoder has {self.positions} "
                "positions. Use bert.encode, which cuts what is longer."
            )
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        out = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, **segments
        )
        if self.pooling == "pooler":
            vector = out.pooler_output
        else:
            vector = mean_over_tokens(out.last_hidden_state, attention_mask)
        return self.head(self.dropout(vector))

    def freeze(self, blocks: int = 0, words: bool = False) -> None:
        """Choose which weights training leaves as they are; all others are trained.

        No gradient is computed for what is frozen, nor for what only leads there.

        Parameters
        ----------
        blocks
            The first so many blocks, and below them all embeddings.
        words
            True: the table of words, the largest one of all.

        Raises
        ------
        MedlmError
            If there are fewer blocks.
        """
        every = next(m for m in self.encoder.modules() if isinstance(m, nn.ModuleList))
        check_blocks(blocks, len(every))
        self.requires_grad_(True)
        if words:
            self.encoder.get_input_embeddings().requires_grad_(False)
        if blocks:
            self.encoder.embeddings.requires_grad_(False)
            every[:blocks].requires_grad_(False)

    def numbers(self, names: Sequence[str]) -> Tensor:
        """Names of labels to their numbers, (texts,).

        Raises
        ------
        MedlmError
            If a name is not one of the labels.
        """
        place = {label: number for number, label in enumerate(self.labels)}
        for row, name in enumerate(names):
            if name not in place:
                raise MedlmError(
                    f"The label of row {row} (counted from 0) is {name!r}; expected "
                    f"one of {', '.join(self.labels)}."
                )
        return torch.tensor([place[name] for name in names])

    def save(self, folder: str | Path) -> None:
        """Write everything that `load_classifier` needs into a folder.

        The weights carry transformers' names: ``AutoModel`` can read the encoder from
        the folder, and with ``pooling="pooler"`` ``AutoModelForSequenceClassification``
        can read the whole. It is written beside and renamed, so that no half of it
        stays.

        Parameters
        ----------
        folder
            New, empty, or one that `save` wrote, which is replaced.

        Raises
        ------
        MedlmError
            If the folder holds something else, or cannot be written.
        """
        folder = Path(folder)
        _check_may_replace(folder)
        part = folder.with_name(folder.name + ".part")
        try:
            shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
            part.mkdir(parents=True)
            self._write(part)
            _replace(part, folder)
        except (OSError, safetensors.SafetensorError) as error:
            why = getattr(error, "strerror", None) or error
            raise MedlmError(
                f"Cannot write the model {folder}: {why}. Expected a place with free "
                "space that you may write."
            ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        config = copy.deepcopy(self.encoder.config)
        config.id2label = dict(enumerate(self.labels))
        config.label2id = {label: number for number, label in enumerate(self.labels)}
        if self.thresholds is not None:
            config.problem_type = "multi_label_classification"
        config.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        weights = folder / "model.safetensors"
        weights.touch()
        mode = weights.stat().st_mode  # as the umask says; safetensors makes it private
        safetensors.torch.save_file(_published_names(self), weights, {"format": "pt"})
        weights.chmod(mode)
        about = {
            "format": _FORMAT,
            "labels": list(self.labels),
            "pooling": self.pooling,
            "temperature": self.temperature,
            "longest": self.longest,
            "dropout": self.dropout.p,
            "tokenizer": self.tokenizer is not None,
        }
        if self.thresholds is not None:
            about["thresholds"] = list(self.thresholds)
        write_json(folder / "medlm.json", about)


def set_dropout(model: nn.Module, share: float) -> None:
    """Every dropout of a model to the same share.

    Raises
    ------
    MedlmError
        If it is not from 0 to below 1.
    """
    if not 0 <= share < 1:
        raise MedlmError(f"dropout is {share}; expected 0 up to less than 1.")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share


def _check_pooling(pooling: str, encoder: Any) -> None:
    if pooling not in POOLINGS:
        raise MedlmError(
            f"pooling is {pooling!r}; expected one of {', '.join(POOLINGS)}."
        )
    if pooling == "pooler" and getattr(encoder, "pooler", None) is None:
        raise MedlmError("This encoder has no pooler; expected pooling='mean'.")


def check_longest(longest: int, positions: int, name: str = "longest") -> None:
    """Refuse more tokens of a text than there are places for, or too few to read.

    Parameters
    ----------
    longest
        Tokens of a text, special tokens included.
    positions
        That the encoder has.
    name
        Of what the reader has set.

    Raises
    ------
    MedlmError
        If `longest` is not from 3 to `positions`.
    """
    if not 3 <= longest <= positions:
        raise MedlmError(
            f"{name} is {longest}; expected 3 tokens, of which two are special ones, "
            f"up to the {positions} that the encoder has positions for."
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars and no warnings of transformers: what matters we check ourselves."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


# Folders with weights -----------------------------------------------------------------


def load_classifier(folder: str | Path) -> Classifier:
    """What `Classifier.save` wrote, on the CPU and ready for evaluation.

    Parameters
    ----------
    folder
        With ``medlm.json``, ``config.json``, ``model.safetensors`` and the tokenizer's
        files.

    Raises
    ------
    MedlmError
        If there is no such folder, a file is missing or damaged, the weights are a
        pickle, or labels and weights do not belong together.

    Source: chapter 3.
    """
    folder = Path(folder)
    about = _read_about(folder)
    weights = _read_weights(folder)
    labels = len(about["labels"])
    head = weights.get("classifier.weight", torch.empty(0))
    if len(head) != labels:
        raise MedlmError(
            f"{folder} names {labels} labels, but its head has {len(head)} outputs; "
            "expected as many. Its files come from different models: save it again."
        )
    tokenizer = _tokenizer_in(folder) if about["tokenizer"] else None
    settings = {n: about[n] for n in ("pooling", "dropout", "longest")}
    with torch.random.fork_rng():  # weights are drawn, and then replaced
        config = _config_in(folder)
        model = Classifier.from_config(config, about["labels"], tokenizer, **settings)
    _load_published(model, weights, folder)
    model.temperature = about["temperature"]
    if "thresholds" in about:
        model.thresholds = tuple(about["thresholds"])
    return model.eval()


def _published_names(model: Classifier) -> dict[str, Tensor]:
    """The weights under the names of transformers' models with a head."""
    prefix = model.encoder.base_model_prefix
    named = {f"{prefix}.{n}": t for n, t in model.encoder.state_dict().items()}
    named |= {f"classifier.{n}": t for n, t in model.head.state_dict().items()}
    return {n: t.detach().cpu().clone().contiguous() for n, t in named.items()}


def _load_published(
    model: Classifier, weights: dict[str, Tensor], folder: Path
) -> None:
    """The way back from `_published_names`."""
    # Both list the encoder's weights first, then those of the head.
    names = dict(zip(_published_names(model), model.state_dict(), strict=True))
    try:
        ours = {names.get(n, n): t for n, t in weights.items()}
        model.load_state_dict(ours)
    except RuntimeError as error:
        raise MedlmError(
            f"The weights in {folder} do not fit its config.json; expected the files "
            "of one model. Save it again."
        ) from error


def _read_about(folder: Path) -> dict[str, Any]:
    """The content of ``medlm.json``, checked."""
    path = folder / "medlm.json"
    if not path.is_file():
        found = "no such folder" if not folder.is_dir() else "no medlm.json in it"
        raise MedlmError(
            f"{folder} is no model that can be loaded: there is {found}. Expected a "
            "folder that Classifier.save or `medlm finetune` wrote."
        )
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        complete = about["format"] == _FORMAT and about.keys() >= _KEPT
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise MedlmError(
            f"{path} is damaged, or another version wrote it; expected one that this "
            "version of Classifier.save wrote. Save the model again."
        )
    return about


def _read_weights(folder: Path) -> dict[str, Tensor]:
    _check_no_pickle(folder)
    path = folder / "model.safetensors"
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise _damaged(path) from error


def _check_no_pickle(folder: Path) -> None:
    """Weights have to be there, as safetensors: a pickle can run anything."""
    if not any(folder.glob("model*.safetensors")):
        raise _no_safetensors(folder, [file.name for file in folder.iterdir()])


def _no_safetensors(place: Path | str, files: Sequence[str]) -> MedlmError:
    pickles = [n for n in sorted(files) if n.endswith((".bin", ".pt", ".pth"))]
    found = f"only {pickles[0]}, a pickle, which could run any code" if pickles else ""
    return MedlmError(
        f"{place} has no model.safetensors{', ' * bool(found)}{found}; expected the "
        "weights as safetensors."
    )


def _damaged(path: Path) -> MedlmError:
    return MedlmError(
        f"{path} cannot be read; expected a file of safetensors. It is damaged or was "
        "cut short: copy or save the model again."
    )


def weights_folder(name: str | Path) -> Path:
    """Where the weights of this name lie.

    Parameters
    ----------
    name
        A folder with an encoder in transformers' format: ``config.json``,
        ``model.safetensors`` and the tokenizer's files; or a name of `data.weights`;
        or one of the Hugging Face Hub, ``owner/name``, perhaps with ``@revision``,
        whose files are fetched into the Hub's own cache.

    Raises
    ------
    MedlmError
        If there is no such folder, or the Hub cannot or must not be reached, has no
        such model, or only a pickle of it.

    Source: the book's page "The command line".
    """
    if name in data.names("weights"):
        return data.weights(str(name))
    if (Path(name) / "config.json").is_file():
        return Path(name)
    if is_hub_name(name):
        return _hub_folder(str(name))
    raise MedlmError(
        f"There is no model {str(name)!r}; expected one of "
        f"{', '.join(data.names('weights'))}, a folder with config.json and "
        "model.safetensors, or owner/name on the Hugging Face Hub."
    )


def is_hub_name(name: str | Path) -> bool:
    """Whether a name is one of the Hub: of that form, and nothing here has it."""
    owner = Path(str(name).split("/")[0])
    is_here = Path(name).exists() or owner.is_dir()
    return bool(_HUB_NAME.fullmatch(str(name))) and not is_here


def _hub_folder(name: str) -> Path:
    """The Hub's cached folder of a model, its files fetched if there is a network."""
    import huggingface_hub

    repository, _, revision = name.partition("@")
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=list(_HUB_FILES),
            local_files_only=_is_offline(),
        )
    except Exception as error:  # its errors differ from version to version
        raise _hub_refusal(name, error) from error
    if not any(Path(folder).glob("model*.safetensors")):
        _refuse_without_weights(name, repository, revision)
    return Path(folder)


def _is_offline() -> bool:
    said = os.environ.get("HF_HUB_OFFLINE", "").lower()
    return data.offline() or said in ("1", "true", "yes", "on")


def _hub_refusal(name: str, error: Exception) -> MedlmError:
    """What to do about a model that the Hub did not deliver."""
    from huggingface_hub import errors

    way = "Name a folder with the model's files, or minilm, which needs no network."
    if _is_offline() or isinstance(error, errors.LocalEntryNotFoundError):
        why = "downloads are forbidden" if _is_offline() else "there is no network"
        return MedlmError(
            f"There is no folder {name!r}, and no such model in the cache of the "
            f"Hugging Face Hub, and {why}. {way}"
        )
    if isinstance(error, errors.GatedRepoError):
        return MedlmError(
            f"The model {name!r} is gated: accept its terms on the Hugging Face Hub, "
            f"then log in with `hf auth login`. {way}"
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
        return MedlmError(
            f"There is no folder {name!r}, and no such model or revision on the "
            f"Hugging Face Hub that you may read. Correct its name. {way}"
        )
    said = (str(error).splitlines() or [type(error).__name__])[0].strip().rstrip(".")
    return MedlmError(f"The Hugging Face Hub did not deliver {name!r}: {said}. {way}")


def _refuse_without_weights(name: str, repository: str, revision: str) -> None:
    """Say what the repository has instead of safetensors."""
    import huggingface_hub

    try:
        every = huggingface_hub.list_repo_files(repository, revision=revision or None)
    except Exception:  # without a network nobody knows
        every = []
    raise _no_safetensors(name, [file for file in every if "/" not in file])


def _config_in(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever a file can hold
        raise MedlmError(
            f"{folder / 'config.json'} is no configuration that transformers knows; "
            "expected that of an encoder such as BERT, which needs no code of its own."
        ) from error


def _tokenizer_in(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise MedlmError(
            f"{folder} has no tokenizer; expected one of {', '.join(_TOKENIZER_FILES)} "
            "beside the weights."
        )
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # of a library for each kind of tokenizer
        raise MedlmError(
            f"The tokenizer in {folder} cannot be read: {_first_line(error)}. Expected "
            "one that transformers can load, best with its tokenizer.json."
        ) from error


def _kind_of(config: Any, pooling: str) -> dict[str, Any]:
    """How transformers is to make the model: which attention, and a pooler if needed.

    The fused attention where the architecture has it, else the plain one.
    """
    from transformers import MODEL_MAPPING

    kind: Any = MODEL_MAPPING.get(type(config), None)
    if kind is None or not hasattr(config, "vocab_size"):
        raise _no_encoder(config, "it does not read tokens")
    if config.is_encoder_decoder:
        raise _no_encoder(config, "it has a decoder beside its encoder")
    kind = kind[0] if isinstance(kind, tuple) else kind
    chosen: dict[str, Any] = {
        "attn_implementation": "sdpa" if kind._supports_sdpa else "eager"
    }
    if "add_pooling_layer" in inspect.signature(kind).parameters:
        chosen["add_pooling_layer"] = pooling == "pooler"
    return chosen


def _no_encoder(config: Any, why: str) -> MedlmError:
    return MedlmError(
        f"A model of type {config.model_type!r}: {why}; expected an encoder such as "
        "BERT."
    )


@contextlib.contextmanager
def _any_fault(config: Any) -> Iterator[None]:
    """What goes wrong inside an architecture of others is one error of ours."""
    try:
        yield
    except (MedlmError, OSError, safetensors.SafetensorError):
        raise
    except Exception as error:
        said = f"it cannot be used here ({_first_line(error)})"
        raise _no_encoder(config, said) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip().rstrip(".")


def positions_of(encoder: Any) -> int:
    """How many tokens a text may have.

    Those like RoBERTa number their tokens from behind the number of padding, and so
    have fewer positions than their table has rows. Some have no table, for only the
    distance of two tokens counts: there 1,000,000 stands for no limit.
    """
    most = getattr(encoder.config, "max_position_embeddings", None) or 0
    most = most if most > 0 else _NO_LIMIT
    for name, module in encoder.named_modules():
        is_table = name.endswith("position_embeddings")
        if is_table and isinstance(module, nn.Embedding):
            before = 0 if module.padding_idx is None else module.padding_idx + 1
            most = min(most, module.num_embeddings - before)
    return most


def check_vocabulary(tokens: int, encoder: Any, name: str | Path) -> None:
    """Refuse a tokenizer that has more tokens than the encoder has vectors for.

    Raises
    ------
    MedlmError
        If they are not files of one model.
    """
    rows = encoder.get_input_embeddings().num_embeddings
    if tokens > rows:
        raise MedlmError(
            f"The tokenizer of {name} has {tokens:,} tokens and its model {rows:,}; "
            "expected the files of one model, which knows every token."
        )


@torch.no_grad()
def _check_encoder(encoder: Any) -> None:
    """Try the encoder on a few tokens: what others have made may be of any kind.

    Each token must see all others, or the first one would be told of nothing, and what
    stands in the padding must not count.
    """
    config = encoder.config
    with quiet(), _any_fault(config), training.evaluating(encoder):
        last = encoder.get_input_embeddings().num_embeddings - 1
        rows = torch.tensor([[last, last - 1, last, last - n] for n in (1, 2)])
        mask = torch.ones_like(rows)
        mask[1, 3] = 0
        whole = encoder(input_ids=rows, attention_mask=torch.ones_like(rows))
        padded = encoder(input_ids=rows, attention_mask=mask).last_hidden_state[1, :3]
        alone = encoder(input_ids=rows[1:, :3], attention_mask=mask[1:, :3])
        states = whole.last_hidden_state
        if states.shape != (*rows.shape, config.hidden_size):
            raise _no_encoder(config, f"it gives {tuple(states.shape)} for a text")
    if torch.allclose(states[0, 0], states[1, 0], rtol=0, atol=1e-7):
        raise _no_encoder(
            config, "its first token is told nothing of the others, as in a decoder"
        )
    if not torch.allclose(padded, alone.last_hidden_state[0], rtol=1e-2, atol=1e-3):
        raise _no_encoder(config, "the padding beside a text changes what it says")


def _pretrained_encoder(folder: Path, pooling: str) -> Any:
    """The encoder of a folder in transformers, every one of its weights from there."""
    from transformers import AutoModel

    _check_no_pickle(folder)
    config = _config_in(folder)
    kind = _kind_of(config, pooling)
    try:
        with quiet(), _any_fault(config):
            try:
                encoder, report = AutoModel.from_pretrained(
                    folder,
                    config=config,
                    dtype=torch.float32,
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                    **kind,
                )
            except RuntimeError as error:
                raise _not_its_weights(folder, _first_line(error)) from error
    except (safetensors.SafetensorError, OSError) as error:
        raise _damaged(folder / "model.safetensors") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise _not_its_weights(folder, f"{missing[0]} is missing")
    _check_encoder(encoder)
    return encoder


def _not_its_weights(folder: Path, why: str) -> MedlmError:
    return MedlmError(
        f"The weights in {folder} do not fit its config.json: {why}. Expected those of "
        "an encoder, with its pooler for pooling='pooler'."
    )


def _check_may_replace(folder: Path) -> None:
    """A folder that holds something else is not ours to remove."""
    if not folder.exists() or (folder / "medlm.json").is_file():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise MedlmError(
            f"{folder} is there and no model that Classifier.save wrote; expected a "
            "new name, an empty folder, or a saved model to replace."
        )


def _replace(part: Path, folder: Path) -> None:
    """`part` takes the place of `folder`, and its name."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)


# Rows and batches ---------------------------------------------------------------------


def encode(
    tokenizer: Any, texts: Sequence[str], longest: int | None = 256
) -> list[Tensor]:
    """Each text as one row: [CLS], its pieces of words, [SEP].

    Parameters
    ----------
    tokenizer
        Of transformers.
    texts
        What is longer than `longest` loses its end.
    longest
        Tokens of a row, special tokens included; None: all, however many.

    Returns
    -------
    list of Tensor
        (tokens,) token numbers each, in the order of `texts`.

    Raises
    ------
    MedlmError
        If a text is empty or no string, there are none, or `longest` is above what the
        model reads.

    Source: chapter 3.
    """
    cut: dict[str, Any] = {}
    if longest is not None:
        check_longest(longest, tokenizer.model_max_length)
        cut = {"truncation": True, "max_length": longest}
    rows = tokenizer(_checked_texts(texts), verbose=False, **cut)
    return [torch.tensor(row) for row in rows["input_ids"]]


def _checked_texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise MedlmError("Got one string; expected a list of texts. Write [text].")
    texts = list(texts)
    if not texts:
        raise MedlmError("There are no texts; expected at least one.")
    for row, one in enumerate(texts):
        if not isinstance(one, str) or not one.strip():
            found = "empty" if isinstance(one, str) else repr(one)
            raise MedlmError(
                f"The text of row {row} (counted from 0) is {found}; expected a "
                "string with at least one word."
            )
    return texts


def rectangle(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of any lengths as one batch: dynamic padding, and the mask that tells it.

    Returns
    -------
    tuple of Tensor
        ``input_ids`` and ``attention_mask``, (batch, tokens) each, where ``tokens`` is
        the longest row of this batch.

    Source: chapter 3.
    """
    input_ids = text.pad(rows)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
    return input_ids, mask.long()


class LabelledBatches(text.DocumentBatches):
    """Batches of rows of similar lengths, with their labels.

    Parameters
    ----------
    rows
        As `encode` makes them.
    labels
        (rows,) numbers of classes; or (rows, classes), 1 for each label of a row that
        has several, and 0.
    size
        Rows in a batch; the last of an epoch may have fewer.
    seed
        Of the order. The batch of a step depends on `seed` and the step alone. It is a
        tuple: ``input_ids`` and ``attention_mask``, (batch, tokens), and labels
        (batch,) or (batch, classes).

    Raises
    ------
    MedlmError
        If there are no rows, not as many labels, one is no whole number from 0 on, or
        `size` is below 1.

    Source: chapter 3.
    """

    def __init__(
        self,
        rows: Sequence[Tensor],
        labels: Sequence[int] | np.ndarray | Tensor,
        size: int,
        seed: int = 0,
    ):
        super().__init__(rows, size, seed)
        self.labels = _checked_targets(labels, len(self.rows))

    def tokens(self, steps: int) -> np.ndarray:
        """(steps,) token numbers in each batch, padding included: its cost."""
        epochs = map(self._order, range(-(-steps // len(self))))
        batches = (chosen for epoch in epochs for chosen in epoch)
        return np.array([len(c) * self._lengths[c].max() for c in batches])[:steps]

    def _batch_of(self, chosen: np.ndarray) -> Any:
        rows = [self.rows[row] for row in chosen]
        return *rectangle(rows), self.labels[torch.from_numpy(chosen)]


def _checked_numbers(
    labels: Sequence[int] | np.ndarray | Tensor, rows: int, classes: int | None = None
) -> Tensor:
    numbers = torch.as_tensor(np.asarray(labels))
    if numbers.shape != (rows,) or not rows or numbers.is_floating_point():
        raise MedlmError(
            f"Labels of shape {tuple(numbers.shape)} and type {numbers.dtype} for "
            f"{rows} rows; expected one whole number a row, and at least one row."
        )
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or (classes is not None and high >= classes):
        most = "" if classes is None else f" to {classes - 1}"
        raise MedlmError(f"Labels go from {low} to {high}; expected numbers 0{most}.")
    return numbers.long()


def _checked_targets(
    labels: Sequence[int] | np.ndarray | Tensor, rows: int, classes: int | None = None
) -> Tensor:
    """One number a row, or for each row and class 0 or 1."""
    known = torch.as_tensor(np.asarray(labels))
    if known.ndim != 2:
        return _checked_numbers(labels, rows, classes)
    fits = len(known) == rows and (classes is None or known.shape[1] == classes)
    if not fits or not ((known == 0) | (known == 1)).all():
        raise MedlmError(
            f"Labels of shape {tuple(known.shape)} for {rows} rows; expected 0 or 1 "
            f"for each row and each of {classes or 'the'} classes."
        )
    return known.long()


# Answers ------------------------------------------------------------------------------


def classification_loss(
    model: nn.Module,
    batch: tuple[Tensor, Tensor, Tensor],
    smoothing: float = 0.0,
    weights: Tensor | None = None,
) -> tuple[Tensor, int]:
    """Cross-entropy of the labels, summed over a batch: for `training.fit`.

    Where a text has several labels, it is that of each label's yes or no.

    Parameters
    ----------
    model
        (input_ids, attention_mask) to logits (batch, classes).
    batch
        As `LabelledBatches` makes it.
    smoothing
        The share of a label that is spread over all classes.
    weights
        (classes,): what a text of each class counts; of several labels, a "yes".

    Returns
    -------
    tuple
        Nats, a scalar with gradient, and the number of labels, or of yes and no.

    Source: chapter 3.
    """
    device = training.device_of(model)
    input_ids, mask, labels = (part.to(device) for part in batch)
    logits = model(input_ids, mask).float()
    weights = None if weights is None else weights.to(device)
    if labels.ndim == 2:
        wanted = labels * (1 - smoothing) + smoothing / 2
        nats = F.binary_cross_entropy_with_logits(
            logits, wanted, pos_weight=weights, reduction="sum"
        )
    else:
        nats = F.cross_entropy(
            *(logits, labels, weights), reduction="sum", label_smoothing=smoothing
        )
    return nats, labels.numel()


def predict_logits(
    model: nn.Module,
    rows: Sequence[Tensor],
    batch_size: int = 64,
    precision: str = "float32",
    accelerator: Any = None,
) -> np.ndarray:
    """The logits of every row, before the temperature.

    Rows of similar lengths share a batch, so that little is padding; the result does
    not depend on `batch_size`, only time and memory do.

    Parameters
    ----------
    model
        (input_ids, attention_mask) to logits; in evaluation mode while this runs.
    rows
        As `encode` makes them, in any order.
    batch_size
        Rows in a batch.
    precision
        As in `training.autocast`.
    accelerator
        An `accelerate.Accelerator`: each process takes its share of the rows, and all
        get the whole result.

    Returns
    -------
    ndarray
        (rows, classes), in the order of `rows`.

    Raises
    ------
    MedlmError
        If there are no rows, one is empty, or `batch_size` is below 1.

    Source: chapter 3.
    """
    return _of_each_row(model, model, rows, batch_size, precision, accelerator)


def embed(
    model: nn.Module,
    rows: Sequence[Tensor],
    pooling: str = "mean",
    batch_size: int = 64,
    precision: str = "float32",
    accelerator: Any = None,
) -> np.ndarray:
    """One vector a text, from the last hidden states of an encoder.

    Parameters
    ----------
    model
        A classifier, whose encoder is used, or an encoder: ours, or of transformers.
    pooling
        ``"mean"`` over the attention mask; ``"cls"``: the first token's; ``"pooler"``:
        what the pooler of a model of transformers makes of that.
    rows, batch_size, precision, accelerator
        As in `predict_logits`.

    Returns
    -------
    ndarray
        (rows, d_model), in the order of `rows`.

    Raises
    ------
    MedlmError
        As in `predict_logits`, and if `pooling` has another name, or the encoder no
        pooler.

    Source: Reimers & Gurevych 2019; chapter 3.
    """
    has_head = isinstance(model, (Classifier, SmallClassifier))
    encoder: Any = model.encoder if has_head else model
    if pooling not in ("mean", "cls", "pooler"):
        raise MedlmError(f"pooling is {pooling!r}; expected mean, cls or pooler.")
    if pooling == "pooler":
        _check_pooling(pooling, encoder)

    def vectors(input_ids: Tensor, mask: Tensor) -> Tensor:
        out = encoder(input_ids=input_ids, attention_mask=mask)
        if pooling == "pooler":
            return out.pooler_output
        if isinstance(out, list):  # our own BERT gives all, the small one the last
            out = out[-1]
        states = out if isinstance(out, Tensor) else out.last_hidden_state
        return states[:, 0] if pooling == "cls" else mean_over_tokens(states, mask)

    return _of_each_row(vectors, encoder, rows, batch_size, precision, accelerator)


@torch.no_grad()
def _of_each_row(
    compute: Callable[[Tensor, Tensor], Tensor],
    model: nn.Module,
    rows: Sequence[Tensor],
    batch_size: int,
    precision: str,
    accelerator: Any,
) -> np.ndarray:
    """`compute` for each row, in batches by length, shared by all processes."""
    if not len(rows) or min(map(len, rows)) < 1 or batch_size < 1:
        raise MedlmError(
            f"{len(rows)} rows in batches of {batch_size}; expected at least one row, "
            "no empty one, and batches of at least one."
        )
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    shares = _equal_shares(order, accelerator.num_processes if accelerator else 1)
    mine = shares[accelerator.process_index if accelerator else 0]
    device = training.device_of(model)
    parts = []
    with training.evaluating(model), training.autocast(precision, device):
        # The longest first: later batches fit into the memory that earlier ones freed.
        for place in reversed(range(0, len(mine), batch_size)):
            chosen = [rows[row] for row in mine[place : place + batch_size]]
            input_ids, mask = (part.to(device) for part in rectangle(chosen))
            parts.append(compute(input_ids, mask).float().cpu())
    values = torch.cat(parts[::-1])
    if len(shares) > 1:
        values = accelerator.gather(values.to(accelerator.device)).cpu()
    found = np.empty((len(rows), values.shape[1]), np.float32)
    found[np.concatenate(shares)] = values.numpy()
    _give_memory_back()
    return found


def _give_memory_back() -> None:
    """Return to the system what was freed: batches of all lengths leave gaps behind.

    Where the C library is not glibc, it does so by itself, or not at all.

    Source: the manual of malloc_trim.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _equal_shares(order: list[int], processes: int) -> list[list[int]]:
    """Every so manieth row for each process; some rows twice, so that all are equal."""
    each = -(-len(order) // processes)
    filled = order + [order[0]] * (each * processes - len(order))
    return [filled[number::processes] for number in range(processes)]


@torch.no_grad()
def look(model: Classifier, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Whom each token listens to: the attention weights of a classifier's encoder.

    Parameters
    ----------
    model
        In evaluation mode while this runs.
    input_ids, attention_mask
        (batch, tokens).

    Returns
    -------
    Tensor
        (blocks, batch, heads, queries, keys); each row sums to 1.

    Source: chapters 1 and 3.
    """
    encoder: Any = model.encoder
    usual = encoder.config._attn_implementation
    encoder.set_attn_implementation("eager")  # the fused kernel never has the weights
    device = training.device_of(model)
    try:
        with training.evaluating(model):
            out = encoder(
                input_ids=input_ids.to(device),
                attention_mask=attention_mask.to(device),
                output_attentions=True,
            )
    finally:
        encoder.set_attn_implementation(usual)
    return torch.stack(out.attentions)


# Fine-tuning by hand ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """How a classifier is fine-tuned.

    Parameters
    ----------
    epochs
        Times that every text is seen.
    looks
        How often in an epoch, about, the validation texts are looked at, and after the
        last step in any case. With 1 a look ends every epoch; with more it may not.
    batch
        Texts a step.
    encoder_rate, head_rate
        Peak learning rates: the head is new and has more to learn.
    warm_up
        Share of the steps in which the rates rise; then they fall in a line.
    weight_decay
        Of matrices; not of biases, layer normalisations and embeddings.
    dropout
        Of every dropout in encoder and head.
    smoothing
        Share of a label that is spread over all classes.
    longest
        Tokens of a text, for `encode`.
    frozen_blocks
        So many first blocks are left as they are, and all embeddings with them.
    frozen_words
        True: the table of words is left as it is. It is half of a small encoder, and
        hardly moves.
    seed
        Of the order of the texts and of dropout.
    precision
        Of the forward pass, as in `training.autocast`.

    Raises
    ------
    MedlmError
        If a number is out of its range.

    Source: Devlin et al. 2019, section A.3; chapter 3.
    """

    epochs: int = 3
    looks: int = 1
    batch: int = 16
    encoder_rate: float = 1e-4
    head_rate: float = 2e-3
    warm_up: float = 0.1
    weight_decay: float = 0.01
    dropout: float = 0.1
    smoothing: float = 0.0
    longest: int = 256
    frozen_blocks: int = 0
    frozen_words: bool = True
    seed: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name, low in (
            ("epochs", 1),
            ("looks", 1),
            ("batch", 1),
            ("weight_decay", 0),
        ):
            if getattr(self, name) < low:
                raise _bad_setting(self, name, f"at least {low}")
        for name in ("encoder_rate", "head_rate"):
            if not getattr(self, name) > 0:
                raise _bad_setting(self, name, "above 0")
        for name in ("warm_up", "dropout", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise _bad_setting(self, name, "0 up to less than 1")


def _bad_setting(settings: FineTuning, name: str, expected: str) -> MedlmError:
    return MedlmError(f"{name} is {getattr(settings, name)}; expected {expected}.")


def fit_head(
    model: Classifier,
    rows: Sequence[Tensor],
    labels: Sequence[int] | np.ndarray | Tensor,
    c: float = 3.0,
    precision: str = "float32",
) -> None:
    """Give a new head the weights of a logistic regression on the encoder as it is.

    A random head would send its first, random gradients through the encoder.

    Parameters
    ----------
    model
        Its head is changed, its encoder is not.
    rows, labels
        As in `finetune`; a label without a row gets a small bias alone.
    c
        How freely the regression fits: the inverse of its L2 penalty.
    precision
        Of the encoder, as in `training.autocast`.

    Raises
    ------
    MedlmError
        If labels do not fit rows or model, or all rows have the same one.

    Source: Kumar et al. 2022; chapter 3.
    """
    from sklearn.linear_model import LogisticRegression

    known = _checked_numbers(labels, len(rows), len(model.labels)).numpy()
    if len(np.unique(known)) < 2:
        raise MedlmError(
            f"All {len(known)} rows have the label {model.labels[known[0]]!r}; "
            "expected at least two different ones."
        )
    vectors = embed(model, rows, model.pooling, precision=precision)
    found = LogisticRegression(C=c, max_iter=2000).fit(vectors, known)
    weight, bias = found.coef_, found.intercept_
    if len(found.classes_) == 2:  # scikit-learn gives the second against the first
        weight, bias = np.vstack([-weight, weight]) / 2, np.append(-bias, bias) / 2
    head = model.head
    with torch.no_grad():
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, -np.log(len(rows)))
        head.weight[found.classes_] = torch.as_tensor(weight).to(head.weight)
        head.bias[found.classes_] = torch.as_tensor(bias).to(head.bias)


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What happened in a fine-tuning, measured at each look at the validation texts.

    Parameters
    ----------
    history
        Of every step.
    loss
        Mean cross-entropy in nats a text, (looks,); where texts have several labels,
        in nats a label. Weighted, if the training was.
    accuracy, weighted_f1
        Of the most probable label, (looks,); of several, of all that are more probable
        than not.
    steps
        That were done before each look, (looks,).

    Source: chapter 3.
    """

    history: training.History
    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    weighted_f1: tuple[float, ...]
    steps: tuple[int, ...]

    @property
    def best(self) -> int:
        """The look with the smallest loss, counted from 1: usually, the epoch."""
        return 1 + int(np.argmin(self.loss))


def finetune(
    model: Any,
    train_rows: Sequence[Tensor],
    train_labels: Sequence[int] | np.ndarray | Tensor,
    val_rows: Sequence[Tensor],
    val_labels: Sequence[int] | np.ndarray | Tensor,
    settings: FineTuning | None = None,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 200,
    resume: bool = False,
    progress: bool = False,
    accelerator: Any = None,
) -> Tuned:
    """Fine-tune a classifier, and leave it with its best weights.

    They are those of the look with the smallest loss on the validation texts.

    Parameters
    ----------
    model
        A `Classifier`, or another model with ``labels``, ``head`` and ``freeze``, such
        as `pretraining.SmallClassifier`.
    train_rows, val_rows
        As `encode` makes them.
    train_labels, val_labels
        (rows,) numbers of classes; or (rows, classes) of 0 and 1, where a text may have
        several labels, or none.
    settings
        By default ``FineTuning()``.
    weights
        (classes,), as in `classification_loss`. The validation loss is weighted too.
    checkpoint, checkpoint_every, resume, progress, accelerator
        As in `training.fit`. A checkpoint of other texts or settings is refused.

    Raises
    ------
    MedlmError
        If labels do not fit the rows or the model, or as in `training.fit`.

    Source: Devlin et al. 2019; chapter 3.
    """
    settings = settings or FineTuning()
    classes = len(model.labels)
    truth = _checked_targets(val_labels, len(val_rows), classes)
    known = _checked_targets(train_labels, len(train_rows), classes)
    factors = None if weights is None else _checked_weights(weights, classes)
    batches = LabelledBatches(train_rows, known, settings.batch, settings.seed)
    steps = settings.epochs * len(batches)
    model.freeze(settings.frozen_blocks, settings.frozen_words)
    set_dropout(model, settings.dropout)
    _give_memory_back()
    torch.manual_seed(settings.seed)

    def validate() -> dict[str, float]:
        logits = predict_logits(
            model, val_rows, precision=settings.precision, accelerator=accelerator
        )
        return _measures(logits, truth.numpy(), factors)

    history = training.fit(
        model,
        batches.at,
        **loop_settings(settings, steps, factors),
        evaluation=validate,
        evaluate_every=-(-len(batches) // settings.looks),
        keep_best=True,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        resume=resume,
        identity={
            **dataclasses.asdict(settings),
            "texts": _digest(batches.rows, known, val_rows, truth),
            **({} if factors is None else {"weights": factors.tolist()}),
        },
        progress=progress,
        work=batches.tokens(steps),
        evaluation_work=sum(map(len, val_rows)) / _FORWARD_SHARE,
        accelerator=accelerator,
    )
    loss, right, f1 = (
        tuple(m[name] for m in history.measures)
        for name in ("loss", "accuracy", "weighted_f1")
    )
    steps_done = tuple(step for step, _ in history.evaluations)
    return Tuned(history, loss, right, f1, steps_done)


def loop_settings(
    settings: FineTuning, steps: int, weights: Tensor | None = None
) -> dict[str, Any]:
    """What `training.fit` is told, by name, to do what the settings say.

    Parameters
    ----------
    settings
        Of the fine-tuning.
    steps
        Of the whole run, over which the rates rise and fall.
    weights
        As in `classification_loss`.

    Source: Devlin et al. 2019; chapter 3.
    """
    return {
        "steps": steps,
        "learning_rate": settings.encoder_rate,
        "rates": {"head": settings.head_rate / settings.encoder_rate},
        "warm_up": round(settings.warm_up * steps),
        "floor": 0.0,
        "schedule": training.warm_up_linear,
        "weight_decay": settings.weight_decay,
        "betas": _BETAS,
        "precision": settings.precision,
        "loss": functools.partial(
            classification_loss, smoothing=settings.smoothing, weights=weights
        ),
    }


def _checked_weights(weights: Sequence[float] | np.ndarray, classes: int) -> Tensor:
    factors = torch.as_tensor(np.asarray(weights, np.float32))
    if factors.shape != (classes,) or not (factors > 0).all():
        raise MedlmError(
            f"Weights of shape {tuple(factors.shape)}, the smallest "
            f"{factors.min():g}; expected one above 0 for each of {classes} classes."
        )
    return factors


def _measures(
    logits: np.ndarray, labels: np.ndarray, weights: Tensor | None = None
) -> dict[str, float]:
    """Loss, accuracy and weighted F1 of logits."""
    each = np.ones(logits.shape[1]) if weights is None else weights.numpy()
    if labels.ndim == 2:
        return _measures_of_several(logits, labels, each)
    chosen = logits.argmax(axis=1)
    nats = metrics.surprisal(labels, metrics.softmax(logits))
    return {
        "loss": float(np.mean(nats * each[labels])),
        "accuracy": metrics.accuracy(labels, chosen),
        "weighted_f1": metrics.f1(labels, chosen, logits.shape[1], "weighted"),
    }


def _measures_of_several(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> dict[str, float]:
    """The same where a text has several labels: all more probable than not."""
    yes, no = np.logaddexp(0, -logits), np.logaddexp(0, logits)  # nats of each answer
    chosen = (logits > 0).astype(int)
    f1 = [metrics.f1(*of, 2, None)[1] for of in zip(labels.T, chosen.T, strict=True)]
    count = labels.sum(axis=0)
    return {
        "loss": float(np.mean(labels * weights * yes + (1 - labels) * no)),
        "accuracy": float(np.mean(chosen == labels)),
        "weighted_f1": float(np.nansum(f1 * count) / max(count.sum(), 1)),
    }


def _digest(
    rows: Sequence[Tensor], labels: Tensor, val_rows: Sequence[Tensor], truth: Tensor
) -> str:
    """One short name for all texts and labels of a fine-tuning."""
    digest = hashlib.sha256()
    for row in (*rows, labels, *val_rows, truth):
        digest.update(f"{len(row)}:".encode() + row.numpy().tobytes())
    return digest.hexdigest()[:16]


# Fine-tuning with the Trainer of transformers -----------------------------------------


class _ForTrainer(nn.Module):
    """A classifier that computes its own loss, as the Trainer expects it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        logits = self.model(input_ids, attention_mask)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits.float(), labels), "logits": logits}


def trainer_model(model: nn.Module) -> nn.Module:
    """A classifier as ``transformers.Trainer`` can train it: the same weights.

    Its forward takes ``input_ids``, ``attention_mask`` and ``labels``, and returns a
    dictionary with ``loss``, the mean cross-entropy, and ``logits``.

    Source: chapter 3.
    """
    return _ForTrainer(model)


def trainer_dataset(
    rows: Sequence[Tensor], labels: Sequence[int] | np.ndarray | Tensor
) -> list[dict[str, Any]]:
    """Rows and labels as the Trainer takes a data set, with `trainer_collate`.

    Raises
    ------
    MedlmError
        If there is not one whole number a row.

    Source: chapter 3.
    """
    numbers = _checked_numbers(labels, len(rows)).tolist()
    return [
        {"input_ids": row, "labels": number}
        for row, number in zip(rows, numbers, strict=True)
    ]


def trainer_collate(examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Examples of `trainer_dataset` as one batch, padded to its longest row."""
    input_ids, mask = rectangle([example["input_ids"] for example in examples])
    labels = torch.tensor([example["labels"] for example in examples])
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def trainer_optimisers(
    model: nn.Module, settings: FineTuning, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """What `finetune` optimises with, for ``Trainer(optimizers=...)``.

    Parameters
    ----------
    model
        A classifier; call its ``freeze`` first.
    settings
        Its rates, warm-up and weight decay are used.
    steps
        Of the whole run.

    Source: chapter 3.
    """
    loop = loop_settings(settings, steps)
    optimiser = training.adamw(
        model,
        loop["weight_decay"],
        loop["betas"],
        loop["learning_rate"],
        loop["rates"],
    )

    def share_of_peak(step: int) -> float:
        return loop["schedule"](step, steps, 1.0, loop["warm_up"], loop["floor"])

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, share_of_peak)
