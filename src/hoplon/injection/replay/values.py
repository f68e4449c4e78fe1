"""Golden values by step: held as they are, held as pixels, or computed once more from what is held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hoplon.injection.replay.windows import Pixels
from hoplon.program.program import Program

_Protections = Mapping[int, Any]


class GoldenValues(Mapping[int, Any]):
    """Golden values as readers get them; iterating gives the steps whose plain values are held.

    A value that is not held is computed by the operator that made it, from the same operands in the same shapes.
    """

    def __init__(
        self, program: Program, protections: _Protections, held: Mapping[int, Any], pixels: Mapping[int, Pixels]
    ) -> None:
        self._program, self._protections = program, protections
        self._held, self._pixels = held, pixels
        self._memory = program.memory()

    def __getitem__(self, step: int) -> Any:
        if step in self._held:
            return self._held[step]
        if step in self._pixels:
            return self._pixels[step].value()
        value = self._program.steps[step].run(_Operands(self))
        protection = self._protections.get(step)
        return value if protection is None else protection(value)

    def __iter__(self) -> Iterator[int]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def operand(self, step: int) -> Any:
        """The same, also for memory and constants."""
        if (name := self._program.memory_steps.get(step)) is not None:
            return self._memory[name]
        if step in self._program.constants:
            return self._program.constants[step]
        return self[step]


class _Operands(Sequence[Any]):
    def __init__(self, values: GoldenValues) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, step: Any) -> Any:
        return self._values.operand(step)
