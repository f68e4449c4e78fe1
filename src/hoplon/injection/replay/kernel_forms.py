"""Which forms of an operator on windows give the bits of the operator on whole maps, found by looking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hoplon.formats.base import equal_bits
from hoplon.injection.replay.rules import Rule
from hoplon.injection.replay.values import StepValues
from hoplon.injection.replay.windows import Ints, Pixels

KernelForm = Callable[[Rule, list[Tensor], StepValues], Tensor]
Golden = Callable[[int], Pixels]

_ENOUGH_VALUES = 4096
_MOST_LOOKS = 600
_MOST_PROBES = 32


class KernelForms:
    """Finds, once for each kind of step and shape of windows, a form that gives the bits of the step on whole maps.

    The order in which a kernel sums is decided by shapes and places, not by values. So a kernel that reproduces the
    result of whole maps in all bits, at their corners and at places all over them, sums in the same order. Chance could
    hide another order where few values are looked at: looks go on until they have shown ``_ENOUGH_VALUES`` that are
    not zero, and maps of few values are joined by random ones of the same shape.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], KernelForm | None] = {}
        self._first: dict[tuple[Any, ...], tuple[KernelForm, ...]] = {}

    def form(
        self,
        step: int,
        rule: Rule,
        size: tuple[int, int, int],
        golden: Golden,
        values: StepValues,
        after: Any = None,
    ) -> KernelForm | None:
        """The form to use for ``size`` = (windows, height, width) of a step's result; None if there is none.

        Args:
            golden: the golden maps of steps; ``values``: what else the step reads; ``after``: its protection.
        """
        if rule.rounds == "never":
            return by_pixel
        key = _key(rule, size)
        if key not in self._found:
            looks = _Looks(rule, size, _sources(rule, golden(rule.operands[0]), golden(step), values, after))
            candidates = self._first.get(rule.likeness, (by_pixel, by_map))
            found = next((form for form in candidates if looks.agree(form, values, after)), None)
            self._found[key] = found
            if found is by_map:  # what failed for one shape of windows is tried last for the next
                self._first[rule.likeness] = (by_map, by_pixel)
        return self._found[key]

    def knows(self, rule: Rule, size: tuple[int, int, int]) -> bool:
        """Whether a form was found for these windows before, so that using it costs no look."""
        return self._found.get(_key(rule, size)) is not None


def _key(rule: Rule, size: tuple[int, int, int]) -> tuple[Any, ...]:
    return (*rule.likeness, *(size if rule.rounds == "by shape" else ()))


def _sources(rule: Rule, given: Pixels, result: Pixels, values: StepValues, after: Any) -> list[tuple[Pixels, Pixels]]:
    """What a step is given and what comes out: golden, and random values where golden ones are few."""
    sources = [(given, result)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(min(_ENOUGH_VALUES // result.flat.numel(), _MOST_PROBES)):
        shape = (given.batch, given.channels, given.height, given.width)
        probe = torch.randn(shape, generator=generator) * 2.0 ** torch.randint(-4, 5, shape, generator=generator)
        probe = probe.to(given.flat)
        found = rule.whole([probe], values)
        sources.append((Pixels.of(probe), Pixels.of(found if after is None else after(found))))
    return sources


@dataclass(frozen=True)
class _Looks:
    """Windows of one shape out of known maps, one set after another."""

    rule: Rule
    size: tuple[int, int, int]
    sources: Sequence[tuple[Pixels, Pixels]]

    def agree(self, form: KernelForm, values: StepValues, after: Any) -> bool:
        """Whether a form gives the known bits at every look, and looks showed enough."""
        seen = 0
        for turn in range(_MOST_LOOKS):
            given, result = self.sources[turn % len(self.sources)]
            look = self._packed if self.rule.pointwise else self._windows
            window, wanted = look(turn, given, result)
            if not equal_bits(protected(form(self.rule, [window], values), after), wanted):
                return False
            seen += int(wanted.count_nonzero())
            if seen >= _ENOUGH_VALUES and turn + 1 >= len(self.sources):
                return True
        return False

    def _windows(self, turn: int, given: Pixels, result: Pixels) -> tuple[Tensor, Tensor]:
        count, height, width = self.size
        numbers = np.arange(count) + turn * count
        top, left = _places(numbers, result.height - height + 1, result.width - width + 1)
        rows = numbers // 3 % result.batch
        (window,) = cut_under(self.rule, [given], rows, top, left, height, width)
        return window, result.cut(rows, top, left, height, width)

    def _packed(self, turn: int, given: Pixels, result: Pixels) -> tuple[Tensor, Tensor]:
        """Pixels from anywhere side by side, since they are run so."""
        count, height, width = self.size
        numbers = np.arange(count * height * width) + turn * 97
        top, left = _places(numbers, result.height, result.width)
        rows = numbers * 13 // 7 % result.batch
        window, wanted = (maps.cut(rows, top, left, 1, 1).view(*self.size, -1) for maps in (given, result))
        return window, wanted


def _places(numbers: Ints, lines: int, columns: int) -> tuple[Ints, Ints]:
    """Places in a map by number: 0 to 3 are its corners, the others lie all over it."""
    mixed = numbers * 2654435761 % 2**32 >> 7
    top, left = mixed % lines, mixed // lines % columns
    corners = numbers < 4
    top[corners] = numbers[corners] % 2 * (lines - 1)
    left[corners] = numbers[corners] // 2 * (columns - 1)
    return top, left


def cut_under(
    rule: Rule, maps: Sequence[Pixels], rows: Ints, top: Ints, left: Ints, height: int, width: int
) -> list[Tensor]:
    """The windows of the operands that windows of a result are made of."""
    lines, columns = rule.axes
    first = lines.first(top), columns.first(left)
    size = lines.size(height), columns.size(width)
    return [pixels.cut(rows, *first, *size, fill=rule.fill) for pixels in maps]


def protected(data: Tensor, protection: Any) -> Tensor:
    """Windows as readers get them."""
    if protection is None:
        return data
    result: Tensor = protection(data.permute(0, 3, 1, 2))
    return result.permute(0, 2, 3, 1).contiguous()


def by_pixel(rule: Rule, windows: list[Tensor], values: StepValues) -> Tensor:
    """The operator on windows as they lie, pixel by pixel."""
    found = rule.run([window.permute(0, 3, 1, 2) for window in windows], values)
    return found.permute(0, 2, 3, 1).contiguous()


def by_map(rule: Rule, windows: list[Tensor], values: StepValues) -> Tensor:
    """The operator on windows that lie channel by channel, as whole maps do."""
    found = rule.run([window.permute(0, 3, 1, 2).contiguous() for window in windows], values)
    return found.permute(0, 2, 3, 1).contiguous()
