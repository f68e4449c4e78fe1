"""Harm to a language model: other tokens, or a higher perplexity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hoplon.criteria.base import Criterion, Labels, integer_labels
from hoplon.errors import BelowOne, DataError, HoplonError, checked
from hoplon.registry import register


@register("criterion", "tokens")
@final
@checked
@dataclass(frozen=True)
class TokenMatch(Criterion):
    """Decoders: harm when a greedy token differs from the golden one.

    The greedy token of a position is that of its largest logit, the lowest index among equals. With labels, positions
    whose label is negative (padding, -100 by custom) do not count.

    Args:
        share: harm only where more than this share of the counted tokens differs; 0 for any token.
        outputs: the output that holds the logits, shape ``(runs, length, vocabulary)``.
    Raises:
        HoplonError: a share outside of [0, 1), or several outputs.
    Example:
        >>> golden = torch.eye(4).unsqueeze(0)
        >>> faulty = golden.roll(1, dims=1).where(torch.arange(4).view(4, 1) == 0, golden)
        >>> TokenMatch().harmed(golden, faulty, None), TokenMatch(0.25).harmed(golden, faulty, None)
        (tensor([[True]]), tensor([[False]]))
    """

    share: BelowOne = 0.0

    masks = True

    def __post_init__(self) -> None:
        self._need_one_output()

    @property
    def names(self) -> tuple[str, ...]:
        """("token-match",), or with a share ("token-match>5%",)."""
        return ("token-match" + (f">{100 * self.share:g}%" if self.share else "") + self._at,)

    def harmed(self, golden: Tensor, faulty: Tensor, labels: Tensor | None) -> Tensor:
        """Return True where tokens differ: bool, shape ``(runs, 1)``; outputs ``(runs, length, vocabulary)``."""
        counted = _counted(golden, labels)
        changed = (golden.argmax(2) != faulty.argmax(2)) & counted
        return (changed.sum(1) > self.share * counted.sum(1)).unsqueeze(1)

    def check(self, golden: Tensor, labels: Labels) -> None:
        """Refuse what cannot be judged.

        Raises:
            DataError: outputs that are not ``(inputs, length, vocabulary)`` or not finite; labels of another shape
                than ``(inputs, length)``, or none of them counted in some input.
        """
        _check_logits(golden)
        super().check(golden, labels)
        if (labels := integer_labels(labels, self.names[0])) is not None:
            _check_tokens(golden, labels)


@register("criterion", "perplexity")
@final
@checked
@dataclass(frozen=True)
class PerplexityChange(Criterion):
    """Language models: harm when the perplexity of a sample grows by more than a factor.

    The perplexity of a sample is exp of the mean of -log p(label) over its positions; p is the softmax of the logits
    at the same position, so labels are the *next* tokens, already shifted. Positions with a negative label (padding,
    -100 by custom) do not count. A perplexity that falls is no harm.

    Args:
        factor: above 1; 1.1 asks for more than 10 % growth.
        outputs: the output that holds the logits, shape ``(runs, length, vocabulary)``.
    Raises:
        HoplonError: a factor of 1 or less, or not finite; several outputs.
    Example:
        >>> golden, labels = torch.tensor([[[2.0, 0.0], [2.0, 0.0]]]), torch.tensor([[0, -100]])
        >>> PerplexityChange(1.5).harmed(golden, torch.tensor([[[0.0, 0.0], [2.0, 0.0]]]), labels)
        tensor([[True]])
    """

    factor: float

    masks = True

    def __post_init__(self) -> None:
        self._need_one_output()
        if not (self.factor > 1 and math.isfinite(self.factor)):
            raise HoplonError(f"expected a finite factor above 1, got {self.factor}")

    @property
    def names(self) -> tuple[str, ...]:
        """One, e.g. "perplexity>1.1x"."""
        return (f"perplexity>{self.factor:g}x" + self._at,)

    def harmed(self, golden: Tensor, faulty: Tensor, labels: Tensor | None) -> Tensor:
        """Return True where labels became less likely: bool, shape ``(runs, 1)``; labels ``(runs, length)``."""
        labels = self._needed(labels).to(faulty.device)
        growth = _log_perplexity(faulty, labels) - _log_perplexity(golden, labels)
        return (growth > math.log(self.factor)).unsqueeze(1)

    def check(self, golden: Tensor, labels: Labels) -> None:
        """Refuse what cannot be judged.

        Raises:
            DataError: outputs that are not ``(inputs, length, vocabulary)`` or not finite; labels missing, of another
                shape than ``(inputs, length)``, no token of the vocabulary, or none of them counted in some input.
        """
        _check_logits(golden)
        super().check(golden, labels)
        labels = self._needed(integer_labels(labels, self.names[0]))
        _check_tokens(golden, labels)
        if (labels >= golden.shape[2]).any():
            first = (labels >= golden.shape[2]).nonzero()[0].tolist()
            raise DataError(
                f"expected labels below {golden.shape[2]}, the vocabulary of the model, "
                f"got {int(labels[tuple(first)])} for input {first[0]}, position {first[1]}"
            )

    def _needed(self, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise DataError("expected labels for the perplexity, got None; give y with the token ids")
        return labels


def _log_perplexity(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of -log p(label) over the counted positions: float64, shape ``(runs,)``."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    counted = labels >= 0
    own = wide.gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)
    surprise = (wide.logsumexp(2).double() - own.double()).where(counted, 0.0)
    return surprise.sum(1) / counted.sum(1)


def _counted(golden: Tensor, labels: Tensor | None) -> Tensor:
    """The positions that count: bool, shape ``(runs, length)``."""
    if labels is None:
        return torch.ones(golden.shape[:2], dtype=torch.bool, device=golden.device)
    return labels.to(golden.device) >= 0


def _check_logits(golden: Tensor) -> None:
    if golden.ndim != 3 or 0 in golden.shape[1:]:
        raise DataError(f"expected outputs of shape (inputs, length, vocabulary), got {tuple(golden.shape)}")


def _check_tokens(golden: Tensor, labels: Tensor) -> None:
    if labels.shape != golden.shape[:2]:
        raise DataError(
            f"expected labels of shape {tuple(golden.shape[:2])}, one token per position, got {tuple(labels.shape)}"
        )
    empty = ~(labels >= 0).any(1)
    if empty.any():
        raise DataError(
            f"expected a token of at least 0 in the labels of every input, got none for input {int(empty.nonzero()[0])}"
        )
