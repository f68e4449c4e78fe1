"""One case per criterion: outputs that it judges, and changes of them that do harm or do none.

Registered criteria without a case, such as those of other packages, take the first outputs and changes that fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hoplon.criteria import (
    Criterion,
    Custom,
    Detection,
    Deviation,
    EmbeddingDistance,
    Generation,
    PerplexityChange,
    Several,
    TokenMatch,
    TopK,
)
from hoplon.errors import HoplonError
from tests.support.examples import name_of, others

Outputs = tuple[Tensor, ...]


def _numbers(runs: int, *shape: int) -> Tensor:
    """Sixteenths, so that every dtype holds them, and different in every run."""
    generator = torch.Generator().manual_seed(runs + sum(shape))
    return torch.randint(-32, 32, (runs, *shape), generator=generator) / 16


def _logits(runs: int) -> Outputs:
    """Three classes, led by class 0 by 1 to 3."""
    order = torch.tensor([3.0, 2.0, 0.0])
    return (order + _numbers(runs, 1).abs() * torch.tensor([0.5, 0.0, 0.0]),)


def _tokens(runs: int) -> Outputs:
    """Two positions, six tokens; the first leads by 1."""
    logits = _numbers(runs, 2, 6).clamp(-1, 1)
    logits[:, :, 0] = 2
    return (logits,)


def _detections(runs: int) -> Outputs:
    """Five candidates, three of them above the score, none overlapping another."""
    corners = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0], [8.0, 8.0], [4.0, 16.0]])
    boxes = torch.cat([corners, corners + 4], 1) + _numbers(runs, 1, 1).abs()
    scores = torch.tensor([0.25, 0.875, 0.75, 0.625, 0.125])
    return boxes, scores.expand(runs, 5).clone(), (torch.arange(runs * 5).view(runs, 5) % 3)


def _texts(runs: int) -> Outputs:
    """Twelve tokens, the answer in front of token 12, which is the tenth."""
    numbers = torch.arange(12).repeat(runs, 1)
    numbers[:, 0], numbers[:, 9] = 20 + torch.arange(runs), 12
    return (numbers.float(),)


@dataclass(frozen=True)
class Case:
    """`harm` adds to the first output what every column calls harm, `touch` what none does."""

    criterion: Criterion
    golden: Callable[[int], Outputs]
    harm: Callable[[Tensor], Tensor]
    touch: Callable[[Tensor], Tensor] = lambda output: _at(output, 2**-6)
    label: int | tuple[int, ...] | None = None

    def labels(self, runs: int) -> Tensor | None:
        """The same for every run."""
        return None if self.label is None else torch.tensor([self.label] * max(runs, 1))[:runs]

    def __str__(self) -> str:
        return f"{name_of('criterion', self.criterion)}: {'+'.join(self.criterion.names)}"


def _at(output: Tensor, amount: float) -> Tensor:
    """The amount added to the last element of each run."""
    change = torch.zeros_like(output)
    change.view(len(output), -1)[:, -1] = amount
    return output + change


def _second_first(logits: Tensor) -> Tensor:
    return logits + torch.tensor([0.0, 8.0, 16.0], dtype=logits.dtype)


def _other_tokens(logits: Tensor) -> Tensor:
    return logits.roll(1, dims=2) * 2


def _moved(boxes: Tensor) -> Tensor:
    return boxes + torch.tensor([3.0, 0.0, 3.0, 0.0], dtype=boxes.dtype)


def _fell(golden: Tensor, faulty: Tensor, labels: Tensor | None) -> Tensor:
    return (faulty < golden - 1).flatten(1).any(1)


def _fits(case: Case) -> bool:
    """Whether a criterion calls harm what the case calls harm, and judges its outputs at all."""
    golden, criterion, labels = case.golden(3), case.criterion, case.labels(3)
    faulty = [(change(golden[0]), *golden[1:]) for change in (case.harm, case.touch)]
    try:
        judged = criterion.judged(golden)
        criterion.check(judged, labels)
        harmed, touched = (criterion.harmed(judged, criterion.judged(outputs), labels) for outputs in faulty)
    except (HoplonError, RuntimeError, LookupError, TypeError, AttributeError):
        return False
    return bool(harmed.all()) and not bool(touched.any())


def _case_of(criterion: Criterion) -> Case:
    found = next(filter(_fits, (replace(case, criterion=criterion) for case in ROWS)), None)
    assert found is not None, f"expected a case of {criterion}, got none that fits; write one"
    return found


ROWS = [
    Case(TopK(1), _logits, _second_first),
    Case(TopK(2), _logits, _second_first),
    Case(TopK(1, reference="label"), _logits, _second_first, label=0),
    Case(Deviation((0.5,)), _logits, lambda x: _at(x, 1.0)),
    Case(Deviation((0.5, 1.0), unit="deg", scale=2.0), _logits, lambda x: _at(x, -1.0)),
    Case(TokenMatch(), _tokens, _other_tokens),
    Case(TokenMatch(0.4), _tokens, _other_tokens),
    Case(PerplexityChange(1.5), _tokens, _other_tokens, label=(0, 0)),
    Case(EmbeddingDistance(0.5), _logits, lambda x: -x),
    Case(EmbeddingDistance(0.5, metric="euclidean"), _logits, lambda x: _at(x, 1.0)),
    Case(Detection(), _detections, _moved, touch=lambda x: _at(x, 0.125)),
    Case(Detection(0.3, boxes="cxcywh"), _detections, lambda x: x * 2, touch=lambda x: _at(x, 0.125)),
    Case(Generation(ends=(12,)), _texts, torch.zeros_like, touch=lambda x: _at(x, 1.0)),
    Case(Custom(_fell, "fell"), _logits, lambda x: _at(x, -2.0)),
    Case(Several((TopK(1), TopK(2), Deviation((0.5,)))), _logits, _second_first),
]
CASES = ROWS + [_case_of(criterion) for criterion in others("criterion", (row.criterion for row in ROWS)).values()]
