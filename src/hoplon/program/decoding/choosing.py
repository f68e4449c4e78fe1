"""How the next token is chosen from logits, and how near another one was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hoplon.errors import HoplonError, Natural, checked


@final
@checked
@dataclass(frozen=True)
class Draws:
    """Tokens drawn from the softmax of the logits over a temperature, as ``torch.multinomial`` draws them.

    The random numbers are those of a generator with this seed at the beginning of every generation, one row of the
    vocabulary per token, so a faulty run meets the same ones as the golden run.

    Raises:
        HoplonError: a temperature that is not above 0.
    """

    temperature: float
    seed: Natural = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise HoplonError(f"expected a temperature above 0, got {self.temperature}; leave draws out for greedy")

    def noise(self, tokens: int, vocabulary: int) -> Tensor:
        """Exponential random numbers, float32, shape ``(tokens, vocabulary)``: the largest share over its own wins."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.cat([torch.empty(1, vocabulary).exponential_(1, generator=generator) for _ in range(tokens)])


@dataclass(frozen=True)
class Choice:
    """The next tokens, by row of logits.

    ``token``: int64; ``margin``: how far the second best one was behind, relative to the larger of both logits or to
    1; infinite where a logit is not finite, and where all are 0, as after a norm that has overflowed; ``finite``:
    bool, all logits are finite.
    """

    token: Tensor
    margin: Tensor
    finite: Tensor


def choose(logits: Tensor, draws: Draws | None, noise: Tensor | None) -> Choice:
    """Choose the next token.

    Args:
        logits: shape ``(..., vocabulary)``.
        noise: of the token of each row, broadcast with ``logits``; None for the likeliest token.
    """
    finite = logits.isfinite().all(-1)
    scores = shares = logits
    if draws is not None and noise is not None:
        shares = (logits / draws.temperature).softmax(-1) / noise
        scores = shares.log()
    first, second = scores.topk(2, -1).values.unbind(-1)
    scale = torch.maximum(first.abs(), second.abs()).clamp(min=1.0)
    margin = ((first - second) / scale).where(finite & logits.any(-1), torch.inf)
    return Choice(shares.argmax(-1), margin, finite)
