"""Samplings of faults, and the table of the faults drawn by one."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor
from typing_extensions import override

from hoplon.errors import Count, HoplonError, Natural, checked
from hoplon.faults.model import FaultModel, Observe, Places, SampledFaults
from hoplon.faults.table import FaultTable, words_to_series
from hoplon.program.sites import MemorySite, ValueSite

Sites = Sequence[ValueSite | MemorySite]


@checked
@dataclass(frozen=True, eq=False)
class Population:
    """Sites, inputs and fault model that faults are drawn from.

    Args:
        sites: value sites, or memory sites.
        fault_model: how a fault changes words, once its place is drawn.
        inputs: those that value faults meet, int64, shape ``(inputs,)``; None: memory faults, which meet all.
        observe: the fault-free words, for models that need them.
    """

    sites: Sites
    fault_model: FaultModel
    inputs: Tensor | None = None
    observe: Observe | None = None

    @property
    def elements(self) -> int:
        """Number of elements of all sites."""
        return sum(site.numel for site in self.sites)

    @property
    def inputs_each(self) -> int:
        """Number of inputs that one fault may meet: it is drawn for one of them; 1 for memory."""
        return 1 if self.inputs is None else len(self.inputs)

    def places(self, number: Tensor, element: Tensor, which: Tensor) -> Places:
        """Places from site number, element and position in `inputs`, each int64 of shape ``(n,)``."""
        inputs = None if self.inputs is None else self.inputs[which]
        return Places(self.sites, number, element, inputs, self.observe)


@dataclass(frozen=True)
class Sampling(ABC):
    """A choice of the faults that a campaign meets.

    A probability over elements is a `Measure`; what also decides the pattern or lists the faults implements `draw`.
    """

    def size(self, population: Population) -> int | None:
        """Return the number of faults; None: faults are drawn, as many as asked for."""
        return None

    @abstractmethod
    def draw(self, population: Population, count: int, *, first: int, generator: torch.Generator) -> SampledFaults:
        """Draw `count` faults, from the one numbered `first` on where they are listed.

        Returns:
            Faults whose probability is that of the whole draw: place, input and change.
        """

    @abstractmethod
    def density(self, population: Population, anchors: Places, keep: Tensor, flip: Tensor) -> Tensor:
        """Return the probability of each anchor, given the change its fault makes: float64, shape ``(n,)``.

        The ratio of two samplings' densities is the weight that takes an estimate from one to the other.

        Raises:
            HoplonError: faults that are chosen, not drawn.
        """


@dataclass(frozen=True)
class Measure(Sampling):
    """A probability measure over the elements of the selected sites."""

    @abstractmethod
    def elements(self, sites: Sites, count: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw independently: site number and element, int64, each of shape ``(count,)``."""

    @abstractmethod
    def probability(self, sites: Sites, number: Tensor, element: Tensor) -> Tensor:
        """Return the probability of each element: float64, shape ``(n,)``; sums to 1 over all elements of all sites."""

    def draw(self, population: Population, count: int, *, first: int, generator: torch.Generator) -> SampledFaults:
        """Elements by the measure, changes by the fault model, inputs in shuffled rounds, independent of one another.

        Each input is equally likely for each fault; over the draws, all inputs are met equally often, up to one. So a
        plain interval, which takes the inputs for independent too, is at worst too wide.
        """
        self.check(population.fault_model)
        number, element = self.elements(population.sites, count, generator=generator)
        which = torch.zeros_like(number)
        if population.inputs is not None:
            which = _rounds(len(population.inputs), count, generator=generator)
        anchors = population.places(number, element, which)
        faults = population.fault_model.sample(anchors, generator=generator)
        probability = faults.probability / population.inputs_each
        if population.fault_model.anchored:
            probability = probability * self.probability(population.sites, number, element)
        return dataclasses.replace(faults, probability=probability)

    def check(self, fault_model: FaultModel) -> None:
        """Refuse a fault model to which this measure would mean nothing."""
        if not fault_model.anchored:
            raise HoplonError(f"{fault_model.name} spans all sites: expected sampling ElementUniform(), got {self}")

    @override
    def density(self, population: Population, anchors: Places, keep: Tensor, flip: Tensor) -> Tensor:
        return self.probability(population.sites, anchors.number, anchors.element)


def _rounds(size: int, count: int, *, generator: torch.Generator) -> Tensor:
    """Numbers below ``size``, every one once before any comes again: int64, shape ``(count,)``."""
    rounds = [torch.randperm(size, generator=generator) for _ in range(-(-count // size))]
    return torch.cat(rounds)[:count] if rounds else torch.zeros(0, dtype=torch.int64)


@checked
def unit_generator(seed: Natural, unit: Natural) -> torch.Generator:
    """The generator of one work unit: a function of seed and unit number alone.

    Example:
        >>> unit_generator(0, 1).initial_seed() == unit_generator(0, 1).initial_seed()
        True
    """
    state = np.random.SeedSequence([seed, unit]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


@checked
def draw_faults(
    population: Population, count: Count, *, sampling: Sampling, generator: torch.Generator, first: int = 0
) -> FaultTable:
    """The table of `count` faults, numbered from 0, words before and after not yet observed.

    Args:
        generator: decides everything that is drawn; the same state gives the same table.
        first: where to begin in a sampling that lists its faults.
    Returns:
        A table whose probability is that of one draw giving this very fault: place, input and change together.
    Raises:
        HoplonError: no inputs; a fault model that does not fit a site or its number format, or that spans all sites
            under a sampling that prefers some; fewer faults listed than asked for.
    """
    if population.inputs is not None and not len(population.inputs):
        raise HoplonError("expected at least one eligible input, got 0; the model is wrong on all of them")
    size = sampling.size(population)
    if size is not None and first + count > size:
        raise HoplonError(f"expected a count of at most {size}, all the faults there are, got {first + count}")
    return table_of(sampling.draw(population, count, first=first, generator=generator))


def table_of(faults: SampledFaults) -> FaultTable:
    """Faults as a table, words before and after not yet observed."""
    places = faults.places
    columns = {} if places.input is None else {"input": places.input.numpy()}
    formats = list(dict.fromkeys(form.name for form in faults.formats))
    known = torch.tensor([formats.index(form.name) for form in faults.formats], dtype=torch.int64)
    frame = pl.DataFrame(
        {
            "fault": faults.fault.numpy(),
            "site": _named([site.name for site in places.sites], places.number),
            "element": places.element.numpy(),
            **columns,
            "format": _named(formats, known[faults.format]),
            "keep": words_to_series(faults.keep),
            "flip": words_to_series(faults.flip),
            "probability": faults.probability[faults.fault].numpy(),
        }
    )
    return FaultTable("memory" if places.input is None else "values", frame)


def _named(names: Sequence[str], number: Tensor) -> pl.Series:
    """The numbered names as an Enum column."""
    return pl.Series(names, dtype=pl.Enum(names)).gather(number.numpy())
