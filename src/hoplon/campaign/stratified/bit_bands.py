"""Bands: faults parted by the highest bit that they can change, each drawn by itself.

How likely a band is follows from the fault model, so nothing is left to chance; and where few bits do nearly all the
harm, nearly all candidates can be drawn from those. Within a band faults are drawn as the fault model draws them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hoplon.errors import HoplonError
from hoplon.faults.model import FaultModel, WordModel
from hoplon.faults.sampling.base import Measure, Population, Sampling
from hoplon.formats.base import NumberFormat


@final
@dataclass(frozen=True, eq=False)
class BitBand:
    """Some of a population's faults.

    ``label``: such as "bits 27 to 30"; empty where it is the whole population. ``weight``: their probability.
    ``population``: draws only these. ``part``: of the word, from 0, its lower bits, to 3, its highest.
    """

    label: str
    weight: float
    population: Population
    part: int


def bands_of(population: Population, sampling: Sampling) -> tuple[BitBand, ...]:
    """Bands from the lowest bits to the highest; one where changes cannot be listed or differ from site to site.

    The highest bit is a band (the sign of a float), so are the next eighth of all bits, the next, and the rest: of
    float32 the upper half of the exponent, its lower half, and the mantissa.
    """
    model, whole = population.fault_model, (BitBand("", 1.0, population, 0),)
    forms = {form.name: form for form in map(model.format_for, population.sites)}
    form = next(iter(forms.values()))
    if not isinstance(sampling, Measure) or not isinstance(model, WordModel) or len(forms) > 1 or form.varies:
        return whole
    try:
        keep, flip, probability = model.patterns(form)
    except HoplonError:  # changes that cannot be listed
        return whole
    top = highest_bit((~keep | flip) & form.all_ones, form.bits)
    found = []
    edges = _edges(form.bits)
    for part, (first, last) in enumerate(edges, start=4 - len(edges)):
        mine = (top >= first) & (top <= last)
        if mine.any():
            some = _SomePatterns(model, keep[mine], flip[mine], probability[mine], format=model.format)
            label = f"bit {last}" if first == last else f"bits {first} to {last}"
            chosen = dataclasses.replace(population, fault_model=some)
            found.append(BitBand(label, float(probability[mine].sum()), chosen, part))
    return tuple(found) if len(found) > 1 else whole


def _edges(bits: int) -> Sequence[tuple[int, int]]:
    """First and last bit of each band."""
    starts = sorted({0, max(0, bits - 1 - bits // 4), max(0, bits - 1 - bits // 8), bits - 1})
    return list(zip(starts, [*(start - 1 for start in starts[1:]), bits - 1], strict=True))


def highest_bit(words: Tensor, bits: int) -> Tensor:
    """The position of the highest bit set; 0 for none."""
    found = torch.zeros_like(words)
    for bit in range(bits):
        found = torch.where((words >> bit & 1) == 1, bit, found)
    return found


@dataclass(frozen=True, eq=False)
class _SomePatterns(WordModel):
    """Some changes of a model that lists them, as likely relative to each other as there."""

    model: FaultModel
    keep: Tensor
    flip: Tensor
    probability: Tensor

    def draw(self, count: int, *, format: NumberFormat, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Changes with the probabilities that they have in the whole model."""
        chosen = torch.multinomial(self.probability, count, replacement=True, generator=generator)
        return self.keep[chosen], self.flip[chosen], self.probability[chosen]
