"""Values by step: those that a pass reads, and golden ones, which are held or computed again from held ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, final

from torch import Tensor
from typing_extensions import override

from hoplon.injection.replay.windows import Pixels
from hoplon.program.layout import Layout
from hoplon.program.program import Program

Protections = Mapping[int, Any]
"""Protections of values by step."""


def delivered(protections: Protections, step: int, value: Any) -> Any:
    """Return a value of a step as its readers get it."""
    return protections[step](value) if step in protections else value


def in_rows(layout: Layout | None, value: Any, rows: Tensor) -> Any:
    """Return these samples of a value, shape ``(n,)``, int64; a value without samples as it is."""
    if layout is None or not isinstance(value, Tensor):
        return value
    return layout.take(value, rows.to(value.device))


class _Source(Protocol):
    def __getitem__(self, step: int, /) -> Any: ...


class StepValues(Sequence[Any]):
    """Values by step, as operators read them.

    The value of a step is the first of these that exists: one of the pass's own (``own``), a tensor of memory, a
    constant of the program, the value of ``source``. A source is asked once for a step until that is forgotten.

    Args:
        memory: all tensors by name; the program's by default.
    """

    def __init__(
        self,
        program: Program,
        source: _Source,
        memory: Mapping[str, Tensor] | None = None,
        own: Mapping[int, Any] | None = None,
    ) -> None:
        self.program, self.source = program, source
        self.memory = program.memory() if memory is None else memory
        self.own: dict[int, Any] = dict(own or {})
        self._resolved: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.program.steps)

    def __getitem__(self, step: Any) -> Any:
        if step in self.own:
            return self.own[step]
        if (name := self.program.memory_steps.get(step)) is not None:
            return self.memory[name]
        if step in self.program.constants:
            return self.program.constants[step]
        if step not in self._resolved:
            self._resolved[step] = self.resolve(step)
        return self._resolved[step]

    def resolve(self, step: int) -> Any:
        """Return the value of a step that is neither the pass's own, nor memory, nor a constant."""
        return self.source[step]

    def replaced(self, own: Mapping[int, Any]) -> StepValues:
        """Return a view of these values with some of them replaced."""
        return StepValues(self.program, self, self.memory, own)

    def forget(self, steps: Iterable[int]) -> None:
        """Free the values of steps that nothing reads any more."""
        for step in steps:
            self.own.pop(step, None)
            self._resolved.pop(step, None)


@final
@dataclass(frozen=True, eq=False)
class GoldenValues:
    """Golden values by step, as readers get them.

    A value that is not held is computed by the operator that made it, from the same operands in the same shapes, and
    so has the same bits.

    Attributes:
        held: by step, values as they are.
        pixels: by step, feature maps kept pixel by pixel.
    """

    program: Program
    protections: Protections
    held: Mapping[int, Any]
    pixels: Mapping[int, Pixels] = field(default_factory=dict)

    def __getitem__(self, step: int) -> Any:
        return self.held[step] if step in self.held else self.computed()[step]

    def computed(self) -> StepValues:
        """Return a view that computes each value at most once until it is forgotten."""
        return _Computed(self.program, self)

    def map(self, step: int) -> Pixels:
        """Return a golden feature map as pixels, also where it is not kept so."""
        if step in self.pixels:
            return self.pixels[step]
        value = self[step]
        return Pixels.of(value[0] if isinstance(value, tuple) else value)


class _Computed(StepValues):
    """Golden values; the operands of those that are not held are computed the same way."""

    source: GoldenValues

    @override
    def resolve(self, step: int) -> Any:
        golden = self.source
        if step in golden.held:
            return golden.held[step]
        if step in golden.pixels:
            return golden.pixels[step].value()
        return delivered(golden.protections, step, self.program.steps[step].run(self))
