"""What a model reads of texts: their rows of tokens, and a count of what is lost.

Knows nothing about files and commands but the names of two options. Every command that
reads notes reads them here, so that all of them count alike.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medlm_utils.runtime import MedlmError

if TYPE_CHECKING:
    from torch import Tensor

    from medlm_utils import bert

LONG = ("cut", "mean")  # what is done with a note that is longer than what is read
MULTILINGUAL = (  # what to name where a language is outside the vocabulary
    "FacebookAI/xlm-roberta-base",
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
)
_UNKNOWN = 0.05  # of all pieces: English notes with many signs stay below 0.01
_UNREAD = 0.01  # of the notes, if at least half of their pieces are unknown
_COMPARED = 200_000  # different rows that are kept to tell which notes read alike


def add_options(command: argparse.ArgumentParser) -> None:
    """Add ``--tokens`` and ``--long`` to a command that reads notes."""
    text = (
        "of a note that are read; default: what the model of a run learned with, else "
        "256, or what the encoder has places for"
    )
    command.add_argument("--tokens", metavar="N", type=int, help=text)
    text = (
        "of a note that is longer: cut its end, or read all in pieces and take the "
        "mean over them; default: %(default)s"
    )
    command.add_argument("--long", choices=LONG, default="cut", help=text)


def usable_precision(model: bert.Classifier, precision: str, wanted: str) -> str:
    """What a model is computed in: some, such as the first DeBERTa, need float32.

    Parameters
    ----------
    model
        Tried with three tokens.
    precision
        What is meant to be taken.
    wanted
        What the option says; ``"auto"``: float32 will do too.

    Raises
    ------
    MedlmError
        If somebody wants a precision that the model cannot be computed in.
    """
    import torch

    from medlm_utils import bert

    try:
        bert.embed(model, [torch.ones(3, dtype=torch.long)], precision=precision)
    except RuntimeError as error:
        if isinstance(error, MedlmError) or precision == "float32":
            raise
        if wanted != "auto":
            raise MedlmError(
                f"--precision is {wanted}, in which this model cannot be computed "
                f"({str(error).splitlines()[0]}); expected float32."
            ) from error
        return "float32"
    return precision


class Reading:
    """Texts become rows of tokens, and what is lost on the way is counted.

    Parameters
    ----------
    model
        With its tokenizer.
    tokens
        Of a text, or of a piece of it, special tokens included; None: the model's own
        ``longest``.
    long
        ``"cut"``: a longer text loses its end. ``"mean"``: it is read in as few pieces
        as can be, of equal lengths up to a token, and counts as their mean.

    Raises
    ------
    MedlmError
        If the model has no tokenizer, or no places for so many tokens.
    """

    def __init__(
        self, model: bert.Classifier, tokens: int | None = None, long: str = "cut"
    ):
        from medlm_utils import bert

        if model.tokenizer is None:
            raise MedlmError(
                "The model was saved without a tokenizer; expected one, to read text."
            )
        if tokens is not None:
            bert.check_longest(tokens, model.positions, "--tokens")
        self.model, self.tokenizer, self.most = model, model.tokenizer, model.positions
        self.longest = model.longest if tokens is None else tokens
        self.long = long
        self.notes = self.cut = self.unread = self.alike = self.rows = 0
        self.tokens = self.lost = self.unknown = 0  # special tokens are left out
        self._before, self._after = _frame(self.tokenizer)
        self._seen: dict[int, int] = {}  # a row to the text that it was made of

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """The one row of each text, (tokens,), cut where it is too long."""
        return [self._count(*found)[0] for found in self._read(texts, "cut")]

    def pieces(self, texts: Sequence[str]) -> list[list[Tensor]]:
        """The rows of each text: one, or with ``long="mean"`` as many as it needs."""
        return [self._count(*found) for found in self._read(texts, self.long)]

    def answers(
        self, texts: Sequence[str], compute: Callable[[list[Tensor]], np.ndarray]
    ) -> np.ndarray:
        """What `compute` makes of each text: the mean of what it makes of its pieces.

        Parameters
        ----------
        texts
            At least one.
        compute
            Rows to (rows, features), such as vectors or probabilities.

        Returns
        -------
        ndarray
            (texts, features).
        """
        pieces = self.pieces(texts)
        counts = np.array([len(of_one) for of_one in pieces])
        values = compute([row for of_one in pieces for row in of_one])
        starts = np.cumsum(counts) - counts
        return np.add.reduceat(values, starts, axis=0) / counts[:, None].astype(
            values.dtype
        )

    # What was read --------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What was read so far, as JSON can hold it.

        Returns
        -------
        dict
            ``notes``; ``longest`` tokens of a row; ``long``; ``rows`` that were made;
            ``tokens`` of all notes without special ones, and of these ``tokens_lost``
            and ``unknown``; how many notes were ``cut``, how many are ``unread``, at
            least half of what is read being unknown, and how many read ``alike``
            another one, though their texts differ; ``distinct`` rows, counted up to
            200,000.
        """
        return {
            "notes": self.notes,
            "longest": self.longest,
            "long": self.long,
            "rows": self.rows,
            "tokens": self.tokens,
            "tokens_lost": self.lost,
            "unknown": self.unknown,
            "cut": self.cut,
            "unread": self.unread,
            "alike": self.alike,
            "distinct": len(self._seen),
        }

    def warnings(self, can_read_pieces: bool = True) -> list[str]:
        """What a reader of the results must know, one sentence or two each.

        Parameters
        ----------
        can_read_pieces
            Whether the command has the option ``--long``.
        """
        found = []
        if self.cut:
            found.append(f"{self._cut_in_words()} {self._way(can_read_pieces)}".strip())
        if self._is_foreign:
            found.append(f"{self._unknown_in_words()} {_other_model()}")
        if self.alike:
            found.append(
                f"{_many(self.alike, 'note reads', 'notes read')} exactly as another "
                "one whose text differs: what tells them apart is lost."
            )
        return found

    def refuse_alike(self, can_read_pieces: bool = True) -> None:
        """Refuse texts that differ, but not in what the model reads of them.

        Raises
        ------
        MedlmError
            If all rows are equal because ends were cut or pieces are unknown, or if
            most notes are ``unread``.
        """
        is_same = self.notes > 1 and self.alike and len(self._seen) == 1
        if is_same and not self._is_foreign:
            raise MedlmError(
                f"The model reads the same in all {self.notes:,} notes, whose texts "
                "differ; expected notes that it can tell apart. "
                f"{self._cut_in_words()} {self._way(can_read_pieces)}".strip()
            )
        if is_same or 2 * self.unread > self.notes:
            raise MedlmError(
                "The model cannot read these notes; expected a language that it knows. "
                f"{self._unknown_in_words()} {_other_model()}"
            )

    @property
    def _is_foreign(self) -> bool:
        read = max(self.tokens - self.lost, 1)
        return self.unknown > _UNKNOWN * read or self.unread > _UNREAD * max(
            self.notes, 1
        )

    def _cut_in_words(self) -> str:
        are = "is" if self.cut == 1 else "are"
        return (
            f"{self.cut:,} of {_many(self.notes, 'note', 'notes')} {are} longer than "
            f"{self.longest:,} tokens; what follows was not read, {self.lost:,} of "
            f"{self.tokens:,} tokens in all."
        )

    def _way(self, can_read_pieces: bool) -> str:
        ways = []
        if self.longest < self.most:
            ways.append(f"--tokens N reads more, up to {self.most:,}")
        if can_read_pieces and self.long == "cut":
            ways.append("--long mean reads all, in pieces")
        return f"{'; '.join(ways)}." if ways else ""

    def _unknown_in_words(self) -> str:
        read = max(self.tokens - self.lost, 1)
        return (
            f"{self.unknown / read:.1%} of what is read, and half or more of it in "
            f"{self.unread:,} of {_many(self.notes, 'note', 'notes')}, is "
            f"{self.tokenizer.unk_token}: not in the vocabulary of this model."
        )

    # From texts to rows ---------------------------------------------------------------

    def _read(
        self, texts: Sequence[str], long: str
    ) -> list[tuple[str, Tensor, list[Tensor]]]:
        """Each text, all of its tokens, and the rows that are read of it."""
        from medlm_utils import bert

        whole = bert.encode(self.tokenizer, texts, None)
        highest = max(int(row.max()) for row in whole)
        bert.check_vocabulary(highest + 1, self.model.encoder, "this encoder")
        return [
            (text, row, self._split(row, long))
            for text, row in zip(texts, whole, strict=True)
        ]

    def _split(self, row: Tensor, long: str) -> list[Tensor]:
        """One row if it is short enough, else its beginning, or pieces of it."""
        import torch

        if len(row) <= self.longest:
            return [row]
        end = len(row) - self._after
        before, body, after = row[: self._before], row[self._before : end], row[end:]
        room = self.longest - self._before - self._after
        if long == "cut":
            is_left = getattr(self.tokenizer, "truncation_side", "right") == "left"
            parts = [body[-room:] if is_left else body[:room]]
        else:
            parts = list(torch.tensor_split(body, -(-len(body) // room)))
        return [torch.cat([before, part, after]) for part in parts]

    def _count(self, text: str, whole: Tensor, rows: list[Tensor]) -> list[Tensor]:
        """The rows, counted."""
        special = self._before + self._after
        tokens, read = len(whole) - special, sum(len(row) - special for row in rows)
        unknown = self._unknown_in(rows)
        self.notes += 1
        self.rows += len(rows)
        self.tokens += tokens
        self.lost += tokens - read
        self.cut += read < tokens
        self.unknown += unknown
        self.unread += unknown > 0 and 2 * unknown >= read
        self._compare(text, rows, read < tokens or unknown > 0)
        return rows

    def _unknown_in(self, rows: list[Tensor]) -> int:
        number = self.tokenizer.unk_token_id
        if number is None:
            return 0
        return sum(int((row == number).sum()) for row in rows)

    def _compare(self, text: str, rows: list[Tensor], lost: bool) -> None:
        """Note whether something was lost that told this text from another."""
        read = hash(tuple(row.numpy().tobytes() for row in rows))
        known = self._seen.get(read)
        if known is not None:
            self.alike += lost and known != hash(text)
        elif len(self._seen) < _COMPARED:
            self._seen[read] = hash(text)


def _frame(tokenizer: Any) -> tuple[int, int]:
    """How many special tokens stand before and after the tokens of a text."""
    mask = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    before = mask.index(0) if 0 in mask else 0
    after = mask[::-1].index(0) if 0 in mask else 0
    return before, after


def _many(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"


def _other_model() -> str:
    return (
        "A multilingual encoder can read other languages, such as "
        f"{' or '.join(f'--model {name}' for name in MULTILINGUAL)} from the Hub."
    )
