"""Several criteria in one campaign: their outcome columns side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from hoplon.criteria.base import Criterion, Judged, Labels
from hoplon.errors import HoplonError, checked


@final
@checked
@dataclass(frozen=True)
class Several(Criterion):
    """Several criteria judged on the same runs; an input counts only where all of them count it.

    Each judges its own outputs, non-finite ones included. A measure that two criteria of one kind share is taken once.

    Args:
        criteria: at least one; their names, which become columns, must differ.
    Raises:
        HoplonError: no criterion, something else than one, or a name given twice.
    Example:
        >>> from hoplon.criteria import TopK
        >>> Several((TopK(1), TopK(5))).names
        ('top-1', 'top-5')
    """

    criteria: tuple[Criterion, ...]
    outputs: None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "criteria", tuple(self.criteria))
        if not self.criteria:
            raise HoplonError("expected at least one criterion, got none")
        owners = {(name, type(part), part.outputs) for part in self.parts for name in part.measure_names}
        counts = Counter([*self.names, *(name for name, _, _ in owners)])
        if repeated := [name for name, count in counts.items() if count > 1]:
            raise HoplonError(f"expected criteria whose columns have different names, got {repeated[0]!r} twice")

    @property
    def parts(self) -> tuple[Criterion, ...]:
        """The criteria, joined ones taken apart."""
        return tuple(part for criterion in self.criteria for part in criterion.parts)

    @property
    def names(self) -> tuple[str, ...]:
        """Those of all criteria, in order."""
        return tuple(name for part in self.parts for name in part.names)

    @property
    def measure_names(self) -> tuple[str, ...]:
        """Those of all criteria, in order, each once."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.measure_names))

    def positions(self, outputs: Sequence[Any]) -> tuple[int, ...]:
        """Positions of the outputs that any of the criteria judges, in rising order."""
        return tuple(sorted({position for part in self.parts for position in part.positions(outputs)}))

    def judged(self, outputs: Sequence[Any]) -> Judged:
        """All flat outputs: each criterion picks its own."""
        return tuple(outputs)

    def harmed(self, golden: Judged, faulty: Judged, labels: Labels) -> Tensor:
        """The columns of all criteria side by side: bool, shape ``(runs, len(names))``."""
        columns = [part.harmed(part.judged(golden), part.judged(faulty), labels) for part in self.parts]
        return torch.cat(columns, 1)

    def measures(self, golden: Judged, faulty: Judged) -> dict[str, Tensor]:
        """The measures of all criteria."""
        found: dict[str, Tensor] = {}
        for part in self.parts:
            found |= part.measures(part.judged(golden), part.judged(faulty))
        return found

    def correct(self, golden: Judged, labels: Labels) -> Tensor | None:
        """Return the answer of the first criterion that knows right from wrong."""
        answers = (part.correct(part.judged(golden), labels) for part in self.parts)
        return next((answer for answer in answers if answer is not None), None)

    def eligible(self, golden: Judged, labels: Labels) -> Tensor:
        """The inputs that are eligible under every criterion: bool, shape ``(inputs,)``."""
        return torch.stack([part.eligible(part.judged(golden), labels) for part in self.parts]).all(0)

    def check(self, golden: Judged, labels: Labels) -> None:
        """Refuse what one of the criteria cannot judge: its DataError."""
        for part in self.parts:
            part.check(part.judged(golden), labels)


@checked
def as_criterion(criteria: Criterion | Sequence[Criterion]) -> Criterion:
    """One criterion: the given one, or `Several` of a sequence."""
    return criteria if isinstance(criteria, Criterion) else Several(tuple(criteria))
