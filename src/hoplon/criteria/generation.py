"""Harm to generated text: another answer, or text that is broken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import polars as pl
import torch
from torch import Tensor

from hoplon.criteria.base import Criterion
from hoplon.errors import Count, DataError, HoplonError, checked
from hoplon.registry import register

Text = list[float]

KINDS = ("identical", "same answer", "changed", "degenerate", "nonfinite", "crash", "uncorrectable")
"""Outcomes of a generation; see :func:`generation_kinds`."""


@register("criterion", "generation")
@final
@checked
@dataclass(frozen=True)
class Generation(Criterion):
    """Language models that generate: harm where the answer is another one; a second column says where it is broken.

    It judges tokens as floating-point numbers, shape ``(runs, tokens)``, NaN where the logits that one was chosen from
    are not finite, negative behind an end. The column "answer": identical where all tokens are the golden ones, benign
    where others follow behind the answer, or in front of it, sdc where the answer is another one. The column
    "degenerate": sdc where, beside that, the text ends in one piece again and again, or early, and the golden text does
    not. Both are nonfinite where logits are not.

    Args:
        begins: the answer begins behind the last of these tokens; at the beginning by default.
        ends: the answer ends in front of the first of these tokens behind its beginning; at the end by default.
        piece: the longest piece that counts as repeated, in tokens.
        repeats: of one piece at the end of the text, from which on it is degenerate.
        early: a text shorter than this share of the golden one ends early.
    Raises:
        HoplonError: fewer than two repeats, a share outside [0, 1].
    Example:
        >>> golden, faulty = torch.tensor([[5, 6, 7, 8, 9, 3, 4, 2.0], [5, 6, 7, 7, 7, 7, 7, 7]]).split(1)
        >>> Generation().harmed(golden, faulty, None), Generation(ends=(7,)).harmed(golden, faulty, None)
        (tensor([[True, True]]), tensor([[False, False]]))
    """

    begins: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    piece: Count = 8
    repeats: Count = 4
    early: float = 0.5

    def __post_init__(self) -> None:
        self._need_one_output()
        if self.repeats < 2:
            raise HoplonError(f"expected at least 2 repeats, got {self.repeats}")
        if not 0 <= self.early <= 1:
            raise HoplonError(f"expected a share in [0, 1] below which a text ends early, got {self.early}")

    @property
    def names(self) -> tuple[str, ...]:
        """("answer", "degenerate")."""
        return ("answer" + self._at, "degenerate" + self._at)

    @property
    def measure_names(self) -> tuple[str, ...]:
        """("changed_tokens", "changed_tail")."""
        return ("changed_tokens", "changed_tail")

    def harmed(self, golden: Tensor, faulty: Tensor, labels: Tensor | None) -> Tensor:
        """Return True for other answers, and for those of them that are broken: bool, shape ``(runs, 2)``."""
        pairs = list(zip(golden.tolist(), faulty.tolist(), strict=True))
        answer = [one != other and self._answer(one) != self._answer(other) for one, other in pairs]
        broken = [
            changed and (self._short(one, other) or (self._loops(other) and not self._loops(one)))
            for changed, (one, other) in zip(answer, pairs, strict=True)
        ]
        return torch.tensor([answer, broken], dtype=torch.bool, device=faulty.device).T

    def measures(self, golden: Tensor, faulty: Tensor) -> dict[str, Tensor]:
        """Shares of the tokens: of those that are others, and from the first such one on."""
        other = (golden != faulty).double()
        return {"changed_tokens": other.mean(1), "changed_tail": other.cummax(1).values.mean(1)}

    def check(self, golden: Tensor, labels: Tensor | None) -> None:
        """Refuse what cannot be judged.

        Raises:
            DataError: outputs that are not whole numbers of shape ``(inputs, tokens)``.
        """
        whole = golden.dim() == 2 and not (golden.frac() != 0).logical_and(golden.isfinite()).any()
        if not whole:
            raise DataError(
                "expected the tokens of generations (inputs, tokens), got other outputs; capture the model with "
                "hoplon.program.capture_decoder, or judge its logits with TokenMatch"
            )
        super().check(golden, labels)

    def _answer(self, tokens: Text) -> Text:
        """The tokens that count."""
        text = _text(tokens)
        begin = max((place + 1 for place, token in enumerate(text) if token in self.begins), default=0)
        end = next((place for place in range(begin, len(text)) if text[place] in self.ends), len(text))
        return text[begin:end]

    def _loops(self, tokens: Text) -> bool:
        """Tell whether the text ends in one piece again and again."""
        text = _text(tokens)
        return any(
            len(text) >= size * self.repeats and text[-size * self.repeats :] == text[-size:] * self.repeats
            for size in range(1, self.piece + 1)
        )

    def _short(self, golden: Text, faulty: Text) -> bool:
        return len(_text(faulty)) < self.early * len(_text(golden))


def _text(tokens: Text) -> Text:
    """The tokens in front of the first negative one, which stands behind an end."""
    return tokens[: next((place for place, token in enumerate(tokens) if token < 0), len(tokens))]


@checked
def generation_kinds(runs: pl.DataFrame) -> pl.Series:
    """One of `KINDS` per run of a campaign with the criterion `Generation`, in the order of the runs.

    Example:
        >>> outcomes = {"answer": ["benign", "sdc", "sdc"], "degenerate": ["benign", "benign", "sdc"]}
        >>> generation_kinds(pl.DataFrame(outcomes))
        shape: (3,)
        Series: 'kind' [str]
        [
            "same answer"
            "changed"
            "degenerate"
        ]
    """
    answer, broken = (pl.col(name).cast(pl.String) for name in ("answer", "degenerate"))
    changed = pl.when(broken == "sdc").then(pl.lit("degenerate")).otherwise(pl.lit("changed"))
    found = pl.when(answer == "sdc").then(changed).when(answer == "benign").then(pl.lit("same answer"))
    return runs.select(kind=found.otherwise(answer)).to_series()
