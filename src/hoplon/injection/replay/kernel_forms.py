"""Search for a form of an operator on windows that reproduces the bits of the operator on whole maps."""

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
from hoplon.injection.replay.windows import Ints, Pixels, StackedPixels

KernelForm = Callable[[Rule, list[Tensor], StepValues], Tensor]
"""Computes a step on windows ``(n, height, width, channels)`` of its operands, in the same layout."""
Golden = Callable[[int], Pixels]

_ENOUGH_VALUES = 4096
_MOST_TRIALS = 600
_MOST_PROBES = 32


class KernelForms:
    """Finds, once for each kind of step and shape of windows, a form that reproduces the bits of whole maps.

    The order in which a kernel sums is decided by shapes and places, not by values. So a kernel that reproduces the
    result of whole maps in all bits, at their corners and at places all over them, sums in the same order. Chance could
    hide another order where few values are compared: trials go on until they have compared ``_ENOUGH_VALUES`` that are
    not zero, and maps of few values are joined by random ones of the same shape.
    """

    def __init__(self) -> None:
        self._forms: dict[tuple[Any, ...], KernelForm | None] = {}
        self._candidates: dict[tuple[Any, ...], tuple[KernelForm, ...]] = {}

    def form(
        self,
        step: int,
        rule: Rule,
        size: tuple[int, int, int],
        golden: Golden,
        values: StepValues,
        after: Any = None,
    ) -> KernelForm | None:
        """Return the form for ``size`` = (windows, height, width) of a step's result; None if there is none.

        Args:
            golden: golden maps by step.
            values: golden values by step, for whatever else the step reads.
            after: the protection of its value, None for none.
        """
        if rule.rounds == "never":
            return by_pixel
        key = _key(rule, size)
        if key not in self._forms:
            trials = _Trials(rule, size, _sources(rule, golden(rule.operands[0]), golden(step), values, after))
            candidates = self._candidates.get(rule.likeness, (by_pixel, by_map))
            agreeing = next((form for form in candidates if trials.agree(form, values, after)), None)
            self._forms[key] = agreeing
            if agreeing is by_map:  # what failed for one shape of windows is tried last for the next
                self._candidates[rule.likeness] = (by_map, by_pixel)
        return self._forms[key]

    def knows(self, rule: Rule, size: tuple[int, int, int]) -> bool:
        """True if a form for these windows is known, so that using it costs no trial."""
        return self._forms.get(_key(rule, size)) is not None


def _key(rule: Rule, size: tuple[int, int, int]) -> tuple[Any, ...]:
    return (*rule.likeness, *(size if rule.rounds == "by shape" else ()))


def _sources(
    rule: Rule, operand: Pixels, result: Pixels, values: StepValues, after: Any
) -> list[tuple[Pixels, Pixels]]:
    """Return operands and results of a step: golden ones, and random ones where golden values are few."""
    sources = [(operand, result)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(min(_ENOUGH_VALUES // result.value_count, _MOST_PROBES)):
        shape = (operand.batch, operand.channels, operand.height, operand.width)
        probe = torch.randn(shape, generator=generator) * 2.0 ** torch.randint(-4, 5, shape, generator=generator)
        probe = probe.to(operand.data)
        output = rule.whole([probe], values)
        sources.append((Pixels.of(probe), Pixels.of(output if after is None else after(output))))
    return sources


@dataclass(frozen=True)
class _Trials:
    """Sets of windows of one shape, out of known operands and results, to try a form on."""

    rule: Rule
    size: tuple[int, int, int]
    sources: Sequence[tuple[Pixels, Pixels]]

    def agree(self, form: KernelForm, values: StepValues, after: Any) -> bool:
        """True if a form gives the known bits in every trial, and the trials compared enough values."""
        compared = 0
        for turn in range(_MOST_TRIALS):
            operand, result = self.sources[turn % len(self.sources)]
            cut = self._single_pixels if self.rule.pointwise else self._windows
            window, expected = cut(turn, operand, result)
            if not equal_bits(protected(form(self.rule, [window], values), after), expected):
                return False
            compared += int(expected.count_nonzero())
            if compared >= _ENOUGH_VALUES and turn + 1 >= len(self.sources):
                return True
        return False

    def _windows(self, turn: int, operand: Pixels, result: Pixels) -> tuple[Tensor, Tensor]:
        count, height, width = self.size
        numbers = np.arange(count) + turn * count
        top, left = _places(numbers, result.height - height + 1, result.width - width + 1)
        rows = numbers // 3 % result.batch
        (window,) = cut_under(self.rule, [operand], rows, top, left, height, width)
        return window, result.cut(rows, top, left, height, width)

    def _single_pixels(self, turn: int, operand: Pixels, result: Pixels) -> tuple[Tensor, Tensor]:
        """Return pixels from all over the maps as if they were one map, since they are computed so."""
        count, height, width = self.size
        numbers = np.arange(count * height * width) + turn * 97
        top, left = _places(numbers, result.height, result.width)
        rows = numbers * 13 // 7 % result.batch
        window, expected = (maps.cut(rows, top, left, 1, 1).view(*self.size, -1) for maps in (operand, result))
        return window, expected


def _places(numbers: Ints, lines: int, columns: int) -> tuple[Ints, Ints]:
    """Return lines and columns of places in a map: numbers 0 to 3 are its corners, the others lie all over it."""
    mixed = numbers * 2654435761 % 2**32 >> 7
    top, left = mixed % lines, mixed // lines % columns
    corners = numbers < 4
    top[corners] = numbers[corners] % 2 * (lines - 1)
    left[corners] = numbers[corners] // 2 * (columns - 1)
    return top, left


def cut_under(
    rule: Rule, maps: Sequence[Pixels | StackedPixels], rows: Ints, top: Ints, left: Ints, height: int, width: int
) -> list[Tensor]:
    """Cut out the windows of the operands that windows of a result are computed from."""
    lines, columns = rule.axes
    first = lines.first(top), columns.first(left)
    size = lines.size(height), columns.size(width)
    return [pixels.cut(rows, *first, *size, fill=rule.fill) for pixels in maps]


def protected(data: Tensor, protection: Any) -> Tensor:
    """Return windows ``(n, height, width, channels)`` as readers get them."""
    if protection is None:
        return data
    result: Tensor = protection(data.permute(0, 3, 1, 2))
    return result.permute(0, 2, 3, 1).contiguous()


def by_pixel(rule: Rule, windows: list[Tensor], values: StepValues) -> Tensor:
    """Run the operator on windows as they lie in memory, pixel by pixel."""
    result = rule.run([window.permute(0, 3, 1, 2) for window in windows], values)
    return result.permute(0, 2, 3, 1).contiguous()


def by_map(rule: Rule, windows: list[Tensor], values: StepValues) -> Tensor:
    """Run the operator on windows that lie in memory channel by channel, as whole maps do."""
    result = rule.run([window.permute(0, 3, 1, 2).contiguous() for window in windows], values)
    return result.permute(0, 2, 3, 1).contiguous()
