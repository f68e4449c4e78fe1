"""Faults of several words: bursts, several elements, a rate per bit; and several models in one campaign."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import scipy
import torch
from torch import Tensor
from typing_extensions import override

from hoplon.errors import Count, HoplonError, Share, checked
from hoplon.faults.function import Function
from hoplon.faults.model import FaultModel, Places, SampledFaults, WordModel, distinct, located, sizes_of
from hoplon.faults.single_word import BitFlip
from hoplon.program.sites import Site
from hoplon.registry import register


@dataclass(frozen=True)
class _Spread(FaultModel):
    """From an anchor to several words, each changed by a word model."""

    def __post_init__(self) -> None:
        if self.format is not None:
            raise HoplonError(f"expected the format in the model of the words, got {self.format} in {self.name}")

    def _sampled(
        self, model: WordModel, anchors: Places, fault: Tensor, element: Tensor, *, generator: torch.Generator
    ) -> SampledFaults:
        """Independent changes at these elements of the anchors' sites; the probability is that of all of a fault."""
        rows = dataclasses.replace(anchors.take(fault), element=element)
        words = model.sample(rows, generator=generator)
        probability = torch.ones(len(anchors), dtype=torch.float64)
        probability.scatter_reduce_(0, fault, words.probability, "prod")
        return dataclasses.replace(words, fault=fault, probability=probability)


@final
@checked
@dataclass(frozen=True)
class Elements(_Spread):
    """Strikes `count` different elements of one tensor, each independently.

    The anchor is one, the others are uniform over the rest of the tensor.

    Args:
        count: elements struck.
        model: how each word changes.
    Raises:
        HoplonError: a count below 1 or (when drawn) above the elements of a site.
    Source:
        The multi-bit mode of Ranger's published injector: independent draws of element and bit in the output of one
        operator. It may draw an element twice, which here is excluded.
    """

    count: Count
    model: WordModel = dataclasses.field(default_factory=BitFlip)

    def sample(self, anchors: Places, *, generator: torch.Generator) -> SampledFaults:
        """Sample changes of the anchors and count - 1 other elements of their tensors."""
        for site in anchors.sites:
            if site.numel < self.count:
                raise HoplonError(
                    f"expected at least {self.count} elements in every site, got {site.numel} in {site.name}"
                )
        sizes = sizes_of(anchors.sites)[anchors.number]
        others = distinct(sizes - 1, len(anchors), self.count - 1, generator=generator)
        anchor = anchors.element[:, None]
        element = torch.cat([anchor, others + (others >= anchor).long()], 1).flatten()
        fault = torch.arange(len(anchors)).repeat_interleave(self.count)
        return self._sampled(self.model, anchors, fault, element, generator=generator)


@final
@checked
@dataclass(frozen=True)
class Burst(_Spread):
    """Strikes neighbouring words of one tensor: ``words`` from the anchor on, or the line of ``bytes`` around it.

    ``Burst(BitFlip(), words=4)`` hits four words in a row; ``Burst(RandomValue(), bytes=64)`` scrambles a cache line,
    ``Burst(bytes=8192)`` flips a bit in every word of a DRAM row; ``Burst(bytes=64, lane=True)`` hits one bit lane.
    Neighbouring bits of one word: `AdjacentBits`. Lines are aligned to the start of the tensor, in the order
    of its elements, each as wide as its format; a burst ends with the tensor.

    Args:
        model: how each word changes.
        words: how many, from the anchor on.
        bytes: of the line that holds the anchor.
        lane: the same change in all words, drawn once.
    Raises:
        HoplonError: neither or both of `words` and `bytes`, or (when drawn) a line narrower than a word.
    """

    model: WordModel = dataclasses.field(default_factory=BitFlip)
    words: Count | None = dataclasses.field(default=None, kw_only=True)
    bytes: Count | None = dataclasses.field(default=None, kw_only=True)
    lane: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.words is None) == (self.bytes is None) or (self.words or self.bytes or 0) < 1:
            raise HoplonError(f"expected words or bytes, at least 1, got words={self.words}, bytes={self.bytes}")

    def sample(self, anchors: Places, *, generator: torch.Generator) -> SampledFaults:
        """Sample changes of the anchors and their neighbours, the anchor first."""
        first, length = self._extent(anchors)
        fault = torch.arange(len(anchors)).repeat_interleave(length)
        offset = torch.arange(len(fault)) - (length.cumsum(0) - length)[fault]
        # Counted from the anchor, round the end of the line: the anchor is the first row of its fault.
        start = anchors.element - first
        element = first[fault] + (start[fault] + offset) % length[fault]
        if not self.lane:
            return self._sampled(self.model, anchors, fault, element, generator=generator)
        lanes = self.model.sample(anchors, generator=generator).take(fault)
        return dataclasses.replace(lanes, places=dataclasses.replace(lanes.places, element=element))

    def _extent(self, anchors: Places) -> tuple[Tensor, Tensor]:
        """Return the first element and the number of elements of each burst: int64, shape ``(n,)``."""
        sizes = sizes_of(anchors.sites)[anchors.number]
        if self.words is not None:
            return anchors.element, (sizes - anchors.element).clamp(max=self.words)
        line = self.bytes or 0
        widths = [(site.name, self.model.format_for(site).bytes) for site in anchors.sites]
        for name, width in widths:
            if width > line:
                raise HoplonError(f"expected bytes of at least one word, got {line} for words of {width} in {name}")
        per_line = torch.tensor([line // width for _, width in widths])[anchors.number]
        first = anchors.element // per_line * per_line
        return first, torch.minimum(per_line, sizes - first)


def spread(
    model: WordModel,
    *,
    elements: int | None = None,
    words: Count | None = None,
    bytes: Count | None = None,
    lane: bool | None = None,
) -> FaultModel:
    """Spread a fault of one word over several.

    Args:
        elements: how many of a tensor, anywhere; or
        words: how many in a row; or
        bytes: size of an aligned line.
        lane: the same bits in all words of the row or line.
    Raises:
        HoplonError: options that exclude each other.
    """
    if elements is not None:
        if words is not None or bytes is not None or lane is not None:
            raise HoplonError("expected elements, or words or bytes (with lane), got both")
        return Elements(elements, model)
    if words is None and bytes is None:
        raise HoplonError("expected words or bytes beside lane, got neither")
    return Burst(model, words=words, bytes=bytes, lane=bool(lane))


@register("fault", "bit-rate")
@final
@checked
@dataclass(frozen=True)
class BitRate(FaultModel):
    """Every bit of all selected sites flips with probability `rate`, independently: one fault is one exposure.

    For value faults the population is all selected values of one inference, for memory faults all selected storages;
    which site the sampling draws does not matter, so it has to be the default.

    Args:
        rate: per bit and exposure, in (0, 1).
        at_least_one: draw only exposures that flip a bit, so that results hold given at least one; multiply by
            `occurrence` for the probability per exposure. With False most exposures of a low rate flip nothing: such
            a fault strikes one word and leaves it as it was.
    Raises:
        HoplonError: a rate out of range.
    Source:
        The number of flips is binomial; drawn by inversion, truncated at one.
    """

    rate: Share
    at_least_one: bool = dataclasses.field(default=True, kw_only=True)

    anchored = False

    def occurrence(self, bits: int) -> float:
        """Return the probability that at least one of so many bits flips.

        Example:
            >>> round(BitRate(1e-9).occurrence(10**6), 9)
            0.0009995
        """
        return -math.expm1(bits * math.log1p(-self.rate))

    def sample(self, anchors: Places, *, generator: torch.Generator) -> SampledFaults:
        """Sample one exposure of all sites per anchor, of which only the input matters."""
        formats = [self.format_for(site) for site in anchors.sites]
        widths = torch.tensor([form.bits for form in formats])
        words = sizes_of(anchors.sites)
        first_word = words.cumsum(0) - words
        total = int((words * widths).sum())
        counts = self._counts(len(anchors), total, generator)
        parts = []
        for count in counts.tolist():
            site, offset = located(_scattered(total, count, generator), words * widths)
            # Flips of one word become one row, in the order of the memory.
            word, row = torch.unique(first_word[site] + offset // widths[site], return_inverse=True)
            flip = torch.zeros_like(word).index_add_(0, row, 1 << offset % widths[site])
            parts.append((word, flip) if count else (torch.zeros(1).long(), torch.zeros(1).long()))
        fault = torch.arange(len(anchors)).repeat_interleave(torch.tensor([len(word) for word, _ in parts]).long())
        word, flip = (torch.cat([part[i] for part in parts]) if parts else torch.zeros(0).long() for i in (0, 1))
        site, element = located(word, words)
        places = dataclasses.replace(anchors.take(fault), number=site, element=element)
        keep = torch.tensor([form.all_ones for form in formats])[site]
        return SampledFaults(fault, places, formats, site, keep, flip, self._probability(counts, total))

    def _counts(self, faults: int, total: int, generator: torch.Generator) -> Tensor:
        """Draw the flips per exposure, out of so many bits: int64, shape ``(faults,)``."""
        unit = 1 - torch.rand(faults, dtype=torch.float64, generator=generator)  # in (0, 1]
        if self.at_least_one:
            unit = unit * self.occurrence(total)
        # The most flips whose upper tail still holds the number: with unit at most P(one or more), at least one.
        counts = scipy.stats.binom.isf(unit.numpy(), total, self.rate) if faults else []
        return torch.as_tensor(counts, dtype=torch.int64).clamp(min=int(self.at_least_one))

    def _probability(self, counts: Tensor, total: int) -> Tensor:
        """Return the probability of flipping exactly these bits: float64, shape ``(faults,)``."""
        log = counts.double() * math.log(self.rate) + (total - counts).double() * math.log1p(-self.rate)
        if self.at_least_one:
            log = log - math.log(self.occurrence(total))
        return log.exp().clamp(max=1.0)


def _scattered(total: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` different numbers below `total`, every set equally likely; int64, shape ``(count,)``."""
    if 2 * count > total:
        return torch.randperm(total, generator=generator)[:count]
    found = torch.zeros(0, dtype=torch.int64)
    while len(found) < count:
        more = torch.randint(total, (count - len(found),), generator=generator)
        # A draw that was there before is drawn again: the set stays uniform, whatever the order.
        found = torch.unique(torch.cat([found, more]))
    return found


@final
@checked
@dataclass(frozen=True)
class Mixture(FaultModel):
    """Several fault models in one campaign: each fault follows one of them.

    Args:
        models: at least one.
        weights: how likely each is, positive, scaled to a sum of 1; None: equally.
    Raises:
        HoplonError: no model, weights that do not fit, or a format (the models have their own).
    Example:
        >>> from hoplon.faults import StuckAt
        >>> Mixture((BitFlip(), StuckAt(1)), (0.9, 0.1)).name
        'Mixture(models=(BitFlip(), StuckAt(value=1)), weights=(0.9, 0.1))'
    """

    models: tuple[FaultModel, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", tuple(self.models))
        if not self.models:
            raise HoplonError("expected at least one fault model, got none")
        if self.format is not None:
            raise HoplonError(f"expected the format in the models of a mixture, got {self.format}")
        if self.weights is None:
            return
        object.__setattr__(self, "weights", tuple(self.weights))
        if len(self.weights) != len(self.models) or not all(0 < weight < math.inf for weight in self.weights):
            raise HoplonError(f"expected a positive weight for each of {len(self.models)} models, got {self.weights}")

    @property
    @override
    def anchored(self) -> bool:
        return all(model.anchored for model in self.models)

    def sample(self, anchors: Places, *, generator: torch.Generator) -> SampledFaults:
        """Sample at each anchor from a model drawn for it."""
        weights = torch.tensor(self.weights or [1.0] * len(self.models), dtype=torch.float64)
        shares = weights / weights.sum()
        unit = torch.rand(len(anchors), dtype=torch.float64, generator=generator)
        chosen = torch.searchsorted(shares.cumsum(0), unit, right=True).clamp(max=len(self.models) - 1)
        parts = []
        for index, model in enumerate(self.models):
            rows = (chosen == index).nonzero()[:, 0]
            faults = model.sample(anchors.take(rows), generator=generator)
            parts.append((dataclasses.replace(faults, probability=faults.probability * shares[index]), rows))
        return SampledFaults.joined(parts, anchors)


def check_words(model: FaultModel, sites: Iterable[Site]) -> None:
    """Refuse a fault model that does not fit the words of some sites, before anything is run for it.

    Raises:
        HoplonError: bits outside of a word, or more of them than it has.
    """
    parts = model.models if isinstance(model, Mixture) else (getattr(model, "model", model),)
    for part in parts:
        if part is not model and isinstance(part, FaultModel):
            check_words(part, sites)
    if isinstance(model, WordModel) and not isinstance(model, Function):
        for site in {site.dtype: site for site in sites}.values():
            model.draw(1, format=model.format_for(site), generator=torch.Generator().manual_seed(0))
