"""Harm as a function of the user's says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hoplon.criteria.base import Criterion, Judged, Labels, tensors_of
from hoplon.errors import HoplonError, checked

_TAKEN = ("fault", "input", "detected", "corrected", "reached")


@final
@checked
@dataclass(frozen=True, repr=False)
class Custom(Criterion):
    """Harm where a function says so.

    Args:
        function: called with golden outputs, faulty outputs and labels, one row per run, as `Criterion.harmed`; gives
            bool of shape ``(runs,)``. The answer for a run must depend on its own rows only. It is called once on the
            golden outputs before anything runs.
        name: of the outcome column.
        outputs: a tuple has the function called with tuples of tensors.
    Raises:
        HoplonError: no name, or one of another column.
    Example:
        >>> sign = Custom(lambda golden, faulty, labels: (golden * faulty < 0).any(1), "sign")
        >>> sign.harmed(torch.ones(2, 3), torch.tensor([[1.0, 2.0, 3.0], [1.0, -1.0, 1.0]]), None)
        tensor([[False],
                [ True]])
    """

    function: Callable[[Any, Any, Tensor | None], Any]
    name: str

    masks = True

    def __post_init__(self) -> None:
        if not self.name or self.name in _TAKEN:
            raise HoplonError(f"expected a name other than {', '.join(_TAKEN)}, got {self.name!r}")

    def __repr__(self) -> str:
        """The same in every process: the function by its name, not its address."""
        module = getattr(self.function, "__module__", type(self.function).__module__)
        function = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return f"Custom({module}.{function}, name={self.name!r}, outputs={self.outputs!r})"

    @property
    def names(self) -> tuple[str, ...]:
        """The given name."""
        return (self.name,)

    def harmed(self, golden: Judged, faulty: Judged, labels: Labels) -> Tensor:
        """Return the result of the function: bool, shape ``(runs, 1)``.

        Raises:
            HoplonError: anything else than bool of shape ``(runs,)``.
        """
        runs = len(tensors_of(faulty)[0])
        answer = self.function(golden, faulty, labels)
        if not isinstance(answer, Tensor) or answer.dtype != torch.bool or answer.shape != (runs,):
            got = f"{answer.dtype} {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
            raise HoplonError(f"expected bool of shape ({runs},) from the function of {self.name!r}, got {got}")
        return answer.unsqueeze(1)

    def check(self, golden: Judged, labels: Labels) -> None:
        """Refuse what cannot be judged, and a function that does not answer as it should.

        Raises:
            DataError: golden outputs that are not finite, or labels of another length; HoplonError: see `harmed`.
        """
        super().check(golden, labels)
        self.harmed(golden, golden, labels)
