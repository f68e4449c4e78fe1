"""Samplings that decide more than the element: lists of faults, every fault there is, and strata."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from hoplon.errors import Count, HoplonError, Natural, SiteError, checked, no_match
from hoplon.faults.model import RANDOM_HIGH, Places, SampledFaults, WordModel, located, sizes_of
from hoplon.faults.sampling.base import Population, Sampling
from hoplon.faults.sampling.measures import TopScore
from hoplon.faults.single_word import BitFlip, single_bits
from hoplon.formats.base import NumberFormat
from hoplon.registry import Reader, register

Stratum = Literal["site", "layer", "bit"]


@dataclass(frozen=True, eq=False)
class _Patterns:
    """The changes that a word model can make, site by site.

    ``formats``: one per site; ``counts``: changes per site, int64; ``keep``, ``flip``, ``probability``: those of all
    sites in a row, a site's from ``starts`` on.
    """

    formats: Sequence[NumberFormat]
    counts: Tensor
    starts: Tensor
    keep: Tensor
    flip: Tensor
    probability: Tensor

    @classmethod
    def of(cls, population: Population) -> _Patterns:
        """All changes of all sites.

        Raises:
            HoplonError: the fault model does not list its changes.
        """
        model = population.fault_model
        if not isinstance(model, WordModel):
            raise HoplonError(f"expected a fault model of one word, whose changes can be listed, got {model.name}")
        formats = [model.format_for(site) for site in population.sites]
        by_name = {form.name: model.patterns(form) for form in {form.name: form for form in formats}.values()}
        counts = torch.tensor([len(by_name[form.name][0]) for form in formats])
        keep, flip, probability = (torch.cat([by_name[form.name][i] for form in formats]) for i in range(3))
        return cls(formats, counts, counts.cumsum(0) - counts, keep, flip, probability)

    def cells(self, site: int) -> slice:
        """The changes of a site."""
        return slice(int(self.starts[site]), int(self.starts[site] + self.counts[site]))

    def faults_at(self, places: Places, pattern: Tensor) -> SampledFaults:
        """One word per place, changed by this pattern of its site."""
        row = self.starts[places.number] + pattern
        count = torch.arange(len(places))
        keep, flip, probability = self.keep[row], self.flip[row], self.probability[row]
        return SampledFaults(count, places, self.formats, places.number, keep, flip, probability)


@register("sampling", "exhaustive")
@final
@dataclass(frozen=True)
class Exhaustive(Sampling):
    """Every element x every change of the fault model x every input, once each.

    In the order of input, site, element, change. The probability is that of drawing the fault element-uniformly.
    """

    @override
    def size(self, population: Population) -> int:
        per_input = int((sizes_of(population.sites) * _Patterns.of(population).counts).sum())
        return per_input * population.inputs_each

    @override
    def draw(self, population: Population, count: int, *, first: int, generator: torch.Generator) -> SampledFaults:
        patterns = _Patterns.of(population)
        sizes = sizes_of(population.sites) * patterns.counts
        index, each_input = torch.arange(first, first + count), sizes.sum()
        which = index // each_input
        number, offset = located(index % each_input, sizes)
        each = patterns.counts[number]
        places = population.places(number, offset // each, which)
        faults = patterns.faults_at(places, offset % each)
        probability = faults.probability / population.elements / population.inputs_each
        return dataclasses.replace(faults, probability=probability)

    @override
    def density(self, population: Population, anchors: Places, keep: Tensor, flip: Tensor) -> Tensor:
        return torch.full((len(anchors),), 1 / population.elements, dtype=torch.float64)


@register("sampling", "explicit")
@final
@checked
@dataclass(frozen=True)
class Explicit(Sampling):
    """These places, each with every input: ``(site, element)`` or ``(site, element, bits)``.

    Without bits the fault model draws the change; with bits they are flipped, and the format is the fault model's.
    The faults are chosen, so their probability is NaN. In the order of the inputs, then of the list.

    Args:
        faults: the list.
    Raises:
        HoplonError: an empty list; SiteError, when drawn: a site that is not selected, or an element it does not have.
    Example:
        >>> Explicit([("conv1:conv", 5), ("fc:linear", 0, (30, 31))]).faults
        (('conv1:conv', 5, None), ('fc:linear', 0, (30, 31)))
    """

    faults: Annotated[
        Sequence[tuple[str, int] | tuple[str, int, Sequence[int] | None]],
        Reader("a list of [site, element] or [site, element, [bits]]"),
    ]

    def __post_init__(self) -> None:
        listed = []
        for site, element, *bits in self.faults:
            chosen = bits[0] if bits else None
            listed.append((site, int(element), None if chosen is None else tuple(chosen)))
        if not listed:
            raise HoplonError("expected at least one fault, got an empty list")
        object.__setattr__(self, "faults", tuple(listed))

    @override
    def size(self, population: Population) -> int:
        return len(self.faults) * population.inputs_each

    @override
    def draw(self, population: Population, count: int, *, first: int, generator: torch.Generator) -> SampledFaults:
        if not population.fault_model.anchored:
            raise HoplonError(f"{population.fault_model.name} spans all sites: expected a model that strikes one place")
        number = {site.name: index for index, site in enumerate(population.sites)}
        for name, element, *_ in self.faults:
            if name not in number:
                raise no_match("selected site", name, list(number))
            numel = population.sites[number[name]].numel
            if not 0 <= element < numel:
                raise SiteError(f"expected elements in [0, {numel}) of {name}, got {element}")
        index = torch.arange(first, first + count)
        entry = index % len(self.faults)
        places = population.places(
            torch.tensor([number[name] for name, *_ in self.faults])[entry],
            torch.tensor([element for _, element, *_ in self.faults])[entry],
            index // len(self.faults),
        )
        parts = []
        bits = [fault[2] if len(fault) > 2 else None for fault in self.faults]
        for chosen in dict.fromkeys(bits):
            rows = torch.tensor([b == chosen for b in bits])[entry].nonzero()[:, 0]
            model = population.fault_model
            if chosen is not None:
                model = BitFlip(len(chosen), bits=tuple(chosen), format=model.format)
            if len(rows):
                parts.append((model.sample(places.take(rows), generator=generator), rows))
        faults = SampledFaults.joined(parts, places)
        return dataclasses.replace(faults, probability=torch.full_like(faults.probability, math.nan))

    def density(self, population: Population, anchors: Places, keep: Tensor, flip: Tensor) -> Tensor:
        """Refuse: nothing was drawn."""
        raise HoplonError("expected faults that were drawn, got an explicit list; it stands for no other faults")


@register("sampling", "each-top-score")
@final
@checked
@dataclass(frozen=True, eq=False)
class EachTopScore(Sampling):
    """The elements with the highest scores, once each, in an order drawn by a seed.

    Args:
        scores: by name of a site, a tensor of the shape of the site, e.g. ``Scores.values``.
        count: how many elements.
        seed: of their order.
    Raises:
        HoplonError: a count out of range.
    Source:
        Schmedding et al. (Aspis), section IV-A: faults in the most important weights.
    """

    scores: Mapping[str, Tensor] = field(repr=False)
    count: Count
    seed: Natural = 0

    def __post_init__(self) -> None:
        TopScore(self.scores, count=self.count)

    @cached_property
    def listed(self) -> Explicit:
        """The elements in their order."""
        top = TopScore(self.scores, count=self.count).chosen
        places = [(site, element) for site, elements in top.items() for element in elements.tolist()]
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(self.seed))
        return Explicit([places[number] for number in order.tolist()])

    def __repr__(self) -> str:
        digest = hashlib.sha256(repr(self.listed).encode()).hexdigest()[:16]
        return f"{type(self).__name__}(count={self.count}, seed={self.seed}, {digest})"

    @override
    def size(self, population: Population) -> int:
        return self.listed.size(population)

    @override
    def draw(self, population: Population, count: int, *, first: int, generator: torch.Generator) -> SampledFaults:
        return self.listed.draw(population, count, first=first, generator=generator)

    @override
    def density(self, population: Population, anchors: Places, keep: Tensor, flip: Tensor) -> Tensor:
        return self.listed.density(population, anchors, keep, flip)


@register("sampling", "stratified")
@final
@checked
@dataclass(frozen=True)
class Stratified(Sampling):
    """Element-uniform faults, but with chosen shares of them per site, layer or flipped bit.

    A unit of n faults gives a stratum of share s either the integer below or the one above n s, on average n s.

    Args:
        by: "site", "layer", or "bit" (of fault models that touch one bit).
        allocation: the share of faults by name of the site or layer, or by bit; positive, for every stratum there is;
            scaled to a sum of 1. None: proportional, the strata's own probabilities under `ElementUniform`.
    Raises:
        HoplonError: another `by`, shares that do not fit the strata, or a fault model that does not list its changes.
    """

    by: Stratum
    allocation: Mapping[str | int, float] | None = field(default=None)

    def __post_init__(self) -> None:
        if self.by == "bit" and self.allocation is not None:  # keys of a table in a file are texts
            shares = {int(bit) if str(bit).isdecimal() else bit: share for bit, share in self.allocation.items()}
            object.__setattr__(self, "allocation", shares)
        for stratum, share in (self.allocation or {}).items():
            if not 0 < share < math.inf:
                raise HoplonError(f"expected a share above 0 for {self.by} {stratum}, got {share}")

    def draw(self, population: Population, count: int, *, first: int, generator: torch.Generator) -> SampledFaults:
        """Strata by systematic sampling of their shares; within one, element and change as element-uniform."""
        patterns = _Patterns.of(population)
        cells = self._cells(population, patterns)
        start = torch.rand(1, dtype=torch.float64, generator=generator)
        unit = (torch.arange(count) + start) / max(count, 1)
        within = torch.rand(count, dtype=torch.float64, generator=generator)
        cell = cells.pick(unit, within)
        number = cells.site[cell]
        element = torch.randint(RANDOM_HIGH, (count,), generator=generator) % sizes_of(population.sites)[number]
        which = torch.randint(population.inputs_each, (count,), generator=generator)
        faults = patterns.faults_at(population.places(number, element, which), cell - patterns.starts[number])
        place = cells.ratio[cell] / population.elements / population.inputs_each
        return dataclasses.replace(faults, probability=faults.probability * place)

    def density(self, population: Population, anchors: Places, keep: Tensor, flip: Tensor) -> Tensor:
        """Element-uniform, times the share of the fault's stratum over its probability."""
        patterns = _Patterns.of(population)
        ratio = self._cells(population, patterns).ratio / population.elements
        found = torch.zeros(len(anchors), dtype=torch.float64)
        for site in anchors.number.unique().tolist():
            rows = (anchors.number == site).nonzero()[:, 0]
            cells = patterns.cells(site)
            same = (patterns.keep[cells] == keep[rows, None]) & (patterns.flip[cells] == flip[rows, None])
            found[rows] = torch.where(same, ratio[cells], 0.0).amax(1)
        return found

    def _cells(self, population: Population, patterns: _Patterns) -> _Cells:
        site = torch.arange(len(population.sites)).repeat_interleave(patterns.counts)
        mass = (sizes_of(population.sites).double() / population.elements)[site] * patterns.probability
        keys = self._keys(population, patterns, site)
        known = list(dict.fromkeys(key for key, weight in zip(keys, mass.tolist(), strict=True) if weight))
        number = {key: index for index, key in enumerate(known)}
        # Cells of sites without elements have no mass; any stratum will do.
        stratum = torch.tensor([number.get(key, 0) for key in keys])
        masses = torch.zeros(len(known), dtype=torch.float64).index_add_(0, stratum, mass)
        if self.allocation is None:
            return _Cells(site, stratum, mass, masses, masses)
        if set(self.allocation) != set(known):
            listed = ", ".join(map(str, self.allocation))
            raise HoplonError(f"expected a share for every {self.by}: {', '.join(map(str, known))}; got {listed}")
        shares = torch.tensor([self.allocation[key] for key in known], dtype=torch.float64)
        return _Cells(site, stratum, mass, masses, shares / shares.sum())

    def _keys(self, population: Population, patterns: _Patterns, site: Tensor) -> list[str | int]:
        """Return the stratum of each cell."""
        if self.by != "bit":
            names = [s.name if self.by == "site" else s.layer for s in population.sites]
            return [names[number] for number in site.tolist()]
        keys: list[str | int] = []
        for number, form in enumerate(patterns.formats):
            cells = patterns.cells(number)
            for bit in single_bits(patterns.keep[cells].tolist(), patterns.flip[cells].tolist(), form.all_ones):
                if bit is None:
                    raise HoplonError(f"expected a fault model that touches one bit, got {population.fault_model.name}")
                keys.append(bit)
        return keys


@dataclass(frozen=True, eq=False)
class _Cells:
    """Every change of every site, and how likely it is: ``mass`` element-uniformly, ``masses`` of whole strata.

    ``site``, ``stratum``, ``mass``: shape ``(cells,)``; ``masses``, ``shares``: shape ``(strata,)``.
    """

    site: Tensor
    stratum: Tensor
    mass: Tensor
    masses: Tensor
    shares: Tensor

    @property
    def ratio(self) -> Tensor:
        """Likelihood of each cell over that under element-uniform sampling: float64, shape ``(cells,)``."""
        return (self.shares / self.masses)[self.stratum]

    def pick(self, unit: Tensor, within: Tensor) -> Tensor:
        """Cells from two numbers in [0, 1): one for the stratum, one for the cell within it."""
        stratum = torch.searchsorted(self.shares.cumsum(0), unit, right=True).clamp(max=len(self.shares) - 1)
        possible = self.mass.nonzero()[:, 0]
        order = possible[torch.argsort(self.stratum[possible], stable=True)]
        # A line on which stratum s has the stretch from s to s + 1, parted by the masses of its cells.
        stretch = self.stratum[order]
        line = (self.mass / self.masses[self.stratum])[order].cumsum(0)
        slot = torch.searchsorted(line, stratum + within, right=True)
        low, high = torch.searchsorted(stretch, stratum), torch.searchsorted(stretch, stratum, right=True) - 1
        return order[torch.minimum(torch.maximum(slot, low), high)]
