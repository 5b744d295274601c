"""How fast our training step is, beside torch's own layer and the HF Trainer.

Three language models of one size train on the same batches, side by side and in turns:
ours in `training.fit`; the model that one finds in tutorials, of
`nn.TransformerEncoderLayer`, with a causal mask and in the same loop; GPT-2 of
`transformers` in its Trainer. Each peer runs as fast as its library lets it: without
dropout, with the fused kernels for attention and AdamW, on a GPU compiled.

Source: chapter 2; `python -m medlm_utils.studies.lm_speed`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medlm_utils import clinic, runtime, text, training
from medlm_utils.studies import core, peers
from medlm_utils.studies.peers import Watch
from medlm_utils.transformer import TransformerLM, sinusoidal_positions


@dataclasses.dataclass(frozen=True)
class Size:
    """A model, its batches and how long it is timed."""

    d_model: int
    heads: int
    d_ff: int
    blocks: int
    batch: int  # rows
    tokens: int  # inputs in a row; 0: notes of the clinic, which differ in length
    vocabulary: int  # of random tokens; of the clinic it is counted
    warm_up: int  # steps that are not timed
    steps: int  # steps that are
    repeats: int


def of_chapter(profile: str, tokens: int, vocabulary: int, *timing: int) -> Size:
    """The model and the batches of chapter 2 on such a machine."""
    chosen = runtime.PROFILES[profile]
    d_model = chosen.lm_d_model
    return Size(
        d_model,
        4,
        3 * d_model,
        chosen.lm_blocks,
        chosen.lm_batch,
        tokens,
        vocabulary,
        *timing,
    )


# The first row of a machine is the one whose numbers are recorded as metrics.
SIZES = {
    "tiny": {"tiny": Size(32, 2, 64, 1, 4, 0, 0, 2, 3, 2)},
    "cpu": {"chapter 2": of_chapter("cpu", 0, 0, 10, 100, 9)},
    "gpu": {
        "GPT-2 large": Size(1280, 20, 5120, 36, 16, 1024, 50_304, 5, 10, 6),
        "GPT-2 small": Size(768, 12, 3072, 12, 32, 1024, 50_304, 10, 20, 6),
        "chapter 2": of_chapter("gpu", 128, 320, 20, 100, 6),
    },
}

# Dense bfloat16 operations a second that the makers state, by a part of the name.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "L4": 121e12,
}

OURS, TORCH_LAYER, HF_TRAINER = "ours", "torch_layer", "hf_trainer"
RATE = 1e-3  # learning rate of all three


# The three models ---------------------------------------------------------------------


class TorchLayerLM(nn.Module):
    """The tutorial's model, of torch's own layers with their defaults, made causal.

    Post-LN, ReLU, sines as positions, an output layer of its own; no dropout.

    Parameters
    ----------
    vocabulary, longest, d_model, heads, d_ff, blocks
        As of `TransformerLM`.

    Source: chapter 2.
    """

    positions: Tensor

    def __init__(
        self,
        vocabulary: int,
        longest: int,
        d_model: int,
        heads: int,
        d_ff: int,
        blocks: int,
    ):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            d_model, heads, d_ff, dropout=0.0, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False)
        self.embedding = nn.Embedding(vocabulary, d_model)
        self.output = nn.Linear(d_model, vocabulary)
        self.register_buffer("positions", sinusoidal_positions(longest, d_model))

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens) token numbers to logits (batch, tokens, vocabulary)."""
        count, d_model = tokens.shape[1], self.embedding.embedding_dim
        x = self.embedding(tokens) * math.sqrt(d_model) + self.positions[:count]
        mask = nn.Transformer.generate_square_subsequent_mask(count, x.device)
        # is_causal lets torch choose its fused kernel, which is fastest.
        return self.output(self.encoder(x, mask=mask, is_causal=True))


def _gpt2(
    vocabulary: int, longest: int, d_model: int, heads: int, d_ff: int, blocks: int
) -> Any:
    """GPT-2 with our sizes and our activation, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=longest,
        n_embd=d_model,
        n_head=heads,
        n_inner=d_ff,
        n_layer=blocks,
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # what it takes anyway, without a warning
    return model


MAKERS: dict[str, Callable[..., Any]] = {
    OURS: TransformerLM,
    TORCH_LAYER: TorchLayerLM,
    HF_TRAINER: _gpt2,
}


# Batches ------------------------------------------------------------------------------


def _batches(size: Size) -> tuple[list[Tensor], int]:
    """The batches of one repeat, and the vocabulary."""
    count = size.warm_up + size.steps
    if size.tokens:
        generator = torch.Generator().manual_seed(runtime.SEED)
        shape = (count, size.batch, size.tokens + 1)
        drawn = torch.randint(4, size.vocabulary, shape, generator=generator)
        return list(drawn), size.vocabulary
    notes = clinic.Clinic().draw(count * size.batch, runtime.SEED).text
    tokenizer = text.WordTokenizer.train(notes)
    rows = text.documents(tokenizer, notes)
    at = text.DocumentBatches(rows, size.batch, runtime.SEED).at
    return [at(step) for step in range(count)], len(tokenizer)


def _timed_targets(size: Size, batches: Sequence[Tensor]) -> int:
    """Tokens that are predicted in the steps that are timed: padding does not count."""
    return sum(int((b[:, 1:] != text.PAD).sum()) for b in batches[size.warm_up :])


# The two loops ------------------------------------------------------------------------


def _nats(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    logits = model(inputs).flatten(0, 1).float()
    return F.cross_entropy(
        logits, targets.flatten(), ignore_index=text.IGNORED, reduction="sum"
    )


def _compiled_loss() -> training.Loss:
    """`training.language_loss` with the logits' way to the loss compiled as well."""
    compiled = torch.compile(_nats)

    def loss(model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
        inputs, targets = text.inputs_and_targets(batch)
        device = training.device_of(model)
        nats = compiled(
            model,
            inputs.to(device, non_blocking=True),
            targets.to(device, non_blocking=True),
        )
        return nats, int((targets != text.IGNORED).sum())

    return loss


def _seconds_in_our_loop(
    model: nn.Module,
    size: Size,
    batches: Sequence[Tensor],
    profile: runtime.Profile,
    loss: training.Loss,
) -> float:
    """The timed steps of a repeat in `training.fit`."""
    watch = Watch(profile.device)

    def at(step: int) -> Tensor:
        if step == size.warm_up:
            watch.start()
        return batches[step]

    training.fit(
        model,
        at,
        steps=len(batches),
        learning_rate=RATE,
        warm_up=size.warm_up,
        precision=profile.precision,
        loss=loss,
    )
    return watch.stop()


def _seconds_in_trainer(
    model: Any,
    size: Size,
    batches: Sequence[Tensor],
    profile: runtime.Profile,
) -> float:
    """The timed steps of a repeat in the Trainer of `transformers`."""
    from torch.utils.data import DataLoader
    from transformers import PrinterCallback, Trainer

    timing, seconds = peers.timing(profile.device, size.warm_up, len(batches))

    class SameBatches(Trainer):
        """Reads our batches in our order."""

        def get_train_dataloader(self) -> Any:
            return DataLoader(rows, batch_size=None)  # type: ignore[arg-type]

    rows = [_for_trainer(batch) for batch in batches]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SameBatches(
            model,
            _arguments(Path(folder), size, len(batches), profile),
            train_dataset=rows,
            callbacks=[timing],
        )
        trainer.remove_callback(PrinterCallback)  # standard output is for results
        trainer.train()
    return seconds[0]


def _for_trainer(batch: Tensor) -> dict[str, Tensor]:
    """Inputs and targets already shifted, so that GPT-2 computes no token more."""
    inputs, targets = text.inputs_and_targets(batch)
    inputs, targets = inputs.contiguous(), targets.contiguous()
    return {"input_ids": inputs, "labels": targets, "shift_labels": targets}


def _arguments(folder: Path, size: Size, steps: int, profile: runtime.Profile) -> Any:
    """Optimiser and schedule of our loop; nothing is written, logged or evaluated."""
    return peers.arguments(
        folder,
        profile.precision,
        profile.device,
        max_steps=steps,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=size.warm_up,
        optim="adamw_torch_fused",
        weight_decay=0.1,
        adam_beta2=0.95,
        remove_unused_columns=False,
        save_strategy="no",
        logging_nan_inf_filter=False,  # it would look at every loss, and wait for it
    )


# The study ----------------------------------------------------------------------------


class Table:
    """The three contestants of one size, built once and timed again and again.

    Parameters
    ----------
    size
        Of models and batches.
    profile
        Where they run; on a GPU everything is compiled.
    """

    def __init__(self, size: Size, profile: runtime.Profile):
        self.size, self.profile = size, profile
        self.batches, self.vocabulary = _batches(size)
        self.longest = max(batch.shape[1] for batch in self.batches)
        self.targets = _timed_targets(size, self.batches)
        self.is_compiled = profile.device == "cuda"
        self.loss = _compiled_loss() if self.is_compiled else training.language_loss
        self.models = {name: self._model(name) for name in MAKERS}

    def tokens_per_second(self, name: str) -> float:
        """Of one repeat of one contestant; its optimiser starts anew, it goes on."""
        model = self.models[name]
        arguments = (model, self.size, self.batches, self.profile)
        if name == HF_TRAINER:
            seconds = _seconds_in_trainer(*arguments)
        else:
            seconds = _seconds_in_our_loop(*arguments, self.loss)
        model.zero_grad()  # gives the memory of the gradients back
        return self.targets / seconds

    def parameters(self, name: str) -> int:
        """How many numbers a contestant learns."""
        return sum(p.numel() for p in self.models[name].parameters())

    def _model(self, name: str) -> nn.Module:
        torch.manual_seed(runtime.SEED)
        size = self.size
        model = MAKERS[name](
            self.vocabulary,
            self.longest,
            size.d_model,
            size.heads,
            size.d_ff,
            size.blocks,
        ).to(self.profile.device)
        if self.is_compiled and name == HF_TRAINER:
            model.compile()  # in our loop, the loss brings the model along
        return model


def flops_per_token(size: Size, vocabulary: int, tokens: int) -> float:
    """Multiplications and additions that a step needs for a token, forward and back.

    2 for each number of a matrix forward, 4 backward; the same for the two products of
    attention, of whose square half is masked and not counted. Reading a row of the
    table of embeddings costs nothing, the output layer does.

    Source: Kaplan et al. 2020, table 1; chapter 2.
    """
    d = size.d_model
    matrices = size.blocks * (4 * d * d + 2 * d * size.d_ff) + vocabulary * d
    attention = size.blocks * d * tokens  # 2 products of d * tokens, half masked
    return 6.0 * (matrices + attention)


def peak_flops(device: str) -> float | None:
    """Operations a second that the maker of this GPU states; None where unknown."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)


def run(study: core.Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time every contestant of every size, in turns; compare.

    Raises
    ------
    MedlmError
        If the Trainer lacks a package.
    """
    peers.check_accelerate()
    sizes = SIZES[study.size]
    table = functools.lru_cache(maxsize=1)(Table)
    parts = [
        _part(study, table, label, size, repeat)
        for label, size in sizes.items()
        for repeat in range(size.repeats)
    ]
    results = iter(study.run(parts))
    rows = []
    for label, size in sizes.items():
        repeats = [next(results) for _ in range(size.repeats)]
        rows.append(_row(study, label, size, repeats))
    return _metrics(rows[0]), {"rows": rows}


def _part(
    study: core.Study,
    table: Callable[[Size, runtime.Profile], Table],
    label: str,
    size: Size,
    repeat: int,
) -> core.Part:
    def make() -> dict[str, Any]:
        contestants = table(size, study.profile)
        # Each repeat begins with another one: none always runs on a rested machine.
        order = [list(MAKERS)[(repeat + n) % len(MAKERS)] for n in range(len(MAKERS))]
        speeds = {name: contestants.tokens_per_second(name) for name in order}
        return {
            "tokens_per_second": {name: speeds[name] for name in MAKERS},
            "parameters": {name: contestants.parameters(name) for name in MAKERS},
            "vocabulary": contestants.vocabulary,
            "tokens": contestants.longest - 1,
        }

    cost = size.steps * size.batch * (size.tokens or 100) * size.blocks * size.d_model
    settings = {"precision": study.profile.precision, **dataclasses.asdict(size)}
    name = f"{label.replace(' ', '-')}-{repeat}"
    return core.Part(name, settings, cost * size.d_model, make)


def _row(
    study: core.Study, label: str, size: Size, repeats: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What the repeats of one size say."""
    speeds = {
        name: [repeat["tokens_per_second"][name] for repeat in repeats]
        for name in MAKERS
    }
    medians = {name: core.over_repeats(values) for name, values in speeds.items()}
    peers = [name for name in MAKERS if name != OURS]
    fastest = max(peers, key=lambda name: medians[name]["value"])
    pairs = zip(speeds[OURS], speeds[fastest], strict=True)
    first = repeats[0]
    row = {
        "size": label,
        **dataclasses.asdict(size),
        "vocabulary": first["vocabulary"],
        "longest": first["tokens"],
        "parameters": first["parameters"],
        "precision": study.profile.precision,
        "tokens_per_second": speeds,
        "median": medians,
        "fastest_peer": fastest,
        "ratio_vs_fastest": core.over_repeats([a / b for a, b in pairs]),
    }
    peak = peak_flops(study.profile.device)
    if peak and study.profile.precision != "float32":
        flops = flops_per_token(size, first["vocabulary"], first["tokens"])
        row["flop_utilisation"] = {
            name: {
                field: value if field == "n" else 100 * value * flops / peak
                for field, value in median.items()
            }
            for name, median in medians.items()
        }
    return row


def _metrics(row: dict[str, Any]) -> dict[str, Any]:
    """The metrics of the record, from the first size."""
    metrics = {
        f"tokens_per_second_{name}": {**median, "unit": "tokens/s"}
        for name, median in row["median"].items()
    }
    metrics["ratio_vs_fastest"] = row["ratio_vs_fastest"]
    if "flop_utilisation" in row:
        ours = row["flop_utilisation"][OURS]
        metrics["model_flop_utilisation"] = {**ours, "unit": "%"}
    return metrics


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see `core.main`."""
    about = "Training speed of our language model beside torch's layer and HF Trainer."
    return core.main("lm_speed", about, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
