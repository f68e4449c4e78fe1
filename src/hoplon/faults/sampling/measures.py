"""Measures: how likely each element is to be the place of a fault."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from hoplon.errors import Count, Fraction, HoplonError, Natural, SiteError, checked, no_match
from hoplon.faults.model import RANDOM_HIGH, FaultModel, located, sizes_of
from hoplon.faults.sampling.base import Measure, Sites
from hoplon.registry import register


@register("sampling", "element")
@final
@dataclass(frozen=True)
class ElementUniform(Measure):
    """Every element of every selected site is equally likely, the last of the last site included."""

    def check(self, fault_model: FaultModel) -> None:
        """Accept any: a fault that spans all sites prefers none."""

    def elements(self, sites: Sites, count: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a position in the concatenation of all sites."""
        sizes = sizes_of(sites)
        return located(torch.randint(int(sizes.sum()), (count,), generator=generator), sizes)

    @override
    def probability(self, sites: Sites, number: Tensor, element: Tensor) -> Tensor:
        return torch.full(number.shape, 1 / sum(site.numel for site in sites), dtype=torch.float64)


@dataclass(frozen=True)
class _SiteFirst(Measure):
    """A site first, then an element uniformly within it."""

    @abstractmethod
    def shares(self, sites: Sites) -> Tensor:
        """Return the probability of each site: float64, shape ``(sites,)``; sums to 1."""

    def elements(self, sites: Sites, count: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw sites by their shares, then elements."""
        shares = self.shares(sites)
        possible = shares.nonzero()[:, 0]
        unit = torch.rand(count, dtype=torch.float64, generator=generator)
        slot = torch.searchsorted(shares[possible].cumsum(0), unit, right=True).clamp(max=len(possible) - 1)
        number = possible[slot]
        return number, torch.randint(RANDOM_HIGH, (count,), generator=generator) % sizes_of(sites)[number]

    @override
    def probability(self, sites: Sites, number: Tensor, element: Tensor) -> Tensor:
        return (self.shares(sites) / sizes_of(sites).clamp(min=1))[number]


@register("sampling", "op")
@final
@checked
@dataclass(frozen=True)
class OpUniform(_SiteFirst):
    """Every operator call (site) is equally likely, then every element of its output.

    An element of a small output is far more likely than one of a large output.

    Args:
        kinds: operators that count, e.g. ("conv", "relu", "max_pool", "linear"); None: all selected.
        drop_last: how many calls at the end of what is left are never struck.
    Raises:
        SiteError: a kind that no site has, or nothing left.
    Source:
        TensorFI's mode ``oneFaultPerRun``. Ranger's injector lists its operators per model and leaves out the last two
        (product and bias of the last layer, here one site: ``drop_last=1``). Its operators are those of TensorFlow; a
        bias is a site of its own there.
    Example:
        >>> OpUniform(kinds=("conv", "relu"), drop_last=1)
        OpUniform(kinds=('conv', 'relu'), drop_last=1)
    """

    kinds: tuple[str, ...] | None = None
    drop_last: Natural = 0

    def __post_init__(self) -> None:
        if self.kinds is not None:
            object.__setattr__(self, "kinds", tuple(self.kinds))

    @override
    def shares(self, sites: Sites) -> Tensor:
        of_site = [site.kinds for site in sites]
        for kind in self.kinds or ():
            if not any(kind in kinds for kinds in of_site):
                raise no_match("operator kind of the selected sites", kind, sorted(frozenset().union(*of_site)))
        listed = [
            number
            for number, kinds in enumerate(of_site)
            if sites[number].numel and (self.kinds is None or kinds & set(self.kinds))
        ]
        kept = listed[: len(listed) - self.drop_last]
        if not kept:
            raise SiteError(f"expected more than drop_last={self.drop_last} sites, got {len(listed)}")
        shares = torch.zeros(len(sites), dtype=torch.float64)
        shares[kept] = 1 / len(kept)
        return shares


@register("sampling", "bit")
@final
@dataclass(frozen=True)
class BitUniform(_SiteFirst):
    """Every bit that the selected sites hold in their own dtypes is equally likely to be in the struck word.

    What a particle does to a memory of words of several widths. The same as element-uniform where all have one width.
    """

    @override
    def shares(self, sites: Sites) -> Tensor:
        bits = torch.tensor([site.numel * site.dtype.itemsize for site in sites], dtype=torch.float64)
        return bits / bits.sum()


@register("sampling", "layer")
@final
@dataclass(frozen=True)
class LayerUniform(_SiteFirst):
    """Every layer (the module that owns the sites) is equally likely, then every element of its selected sites."""

    @override
    def shares(self, sites: Sites) -> Tensor:
        totals: dict[str, int] = {}
        for site in sites:
            totals[site.layer] = totals.get(site.layer, 0) + site.numel
        layers = sum(total > 0 for total in totals.values())
        return torch.tensor([site.numel / max(totals[site.layer], 1) / layers for site in sites], dtype=torch.float64)


@dataclass(frozen=True)
class _SomeElements(Measure):
    """Uniform over some elements only."""

    @property
    @abstractmethod
    def chosen(self) -> Mapping[str, Tensor]:
        """By name of a site the row-major indices of its elements, int64, ascending, none twice."""

    def elements(self, sites: Sites, count: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw from the concatenation of the chosen elements, in the order of the sites."""
        parts = self._parts(sites)
        number = torch.cat([torch.full_like(part, site) for site, part in parts])
        element = torch.cat([part for _, part in parts])
        position = torch.randint(len(element), (count,), generator=generator)
        return number[position], element[position]

    @override
    def probability(self, sites: Sites, number: Tensor, element: Tensor) -> Tensor:
        parts = self._parts(sites)
        found = torch.zeros(number.shape, dtype=torch.float64)
        total = sum(len(part) for _, part in parts)
        for site, part in parts:
            found[(number == site) & torch.isin(element, part)] = 1 / total
        return found

    def _parts(self, sites: Sites) -> list[tuple[int, Tensor]]:
        """Site number and elements, of every site that has some."""
        number = {name: index for index, site in enumerate(sites) for name in site.names}
        parts = []
        for name, elements in self.chosen.items():
            if not len(elements):
                continue
            if name not in number:
                raise no_match("selected site", name, list(number))
            site = sites[number[name]]
            if not 0 <= int(elements[0]) <= int(elements[-1]) < site.numel:
                outside = int(elements[0]) if int(elements[0]) < 0 else int(elements[-1])
                raise SiteError(f"expected elements in [0, {site.numel}) of {name}, got {outside}")
            parts.append((number[name], elements))
        if not parts:
            raise SiteError("expected at least one chosen element, got none")
        return sorted(parts, key=lambda part: part[0])

    def _digest(self) -> str:
        """Digest of the chosen elements in a manifest: 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for name, elements in self.chosen.items():
            digest.update(f"{name} {len(elements)}\n".encode() + elements.numpy().tobytes())
        return digest.hexdigest()[:16]


@final
@checked
@dataclass(frozen=True, eq=False)
class Among(_SomeElements):
    """Every one of these elements is equally likely.

    Args:
        indices: by name of a site, row-major indices of elements, as ``Scores.top`` gives them.
    Raises:
        SiteError: a site that is not selected, or an element that it does not have, when drawn.
    """

    indices: Mapping[str, Tensor] = field(repr=False)

    @cached_property
    @override
    def chosen(self) -> Mapping[str, Tensor]:
        return {name: torch.as_tensor(part).to("cpu", torch.int64).unique() for name, part in self.indices.items()}

    def __repr__(self) -> str:
        return f"Among({sum(map(len, self.chosen.values()))} elements, {self._digest()})"


@dataclass(frozen=True, eq=False)
class _Ranked(_SomeElements):
    """Uniform over the elements at one end of a ranking.

    Args:
        scores: by name of a site, a tensor of the shape of the site, e.g. ``Scores.values``.
        fraction: of all scored elements, in (0, 1]; at least one element; or
        count: how many.
    """

    scores: Mapping[str, Tensor] = field(repr=False)
    fraction: Fraction | None = field(default=None, kw_only=True)
    count: Count | None = field(default=None, kw_only=True)

    _sign = 1

    def __post_init__(self) -> None:
        total = sum(score.numel() for score in self.scores.values())
        if (self.fraction is None) == (self.count is None):
            raise HoplonError(f"expected a fraction or a count, got {self.fraction} and {self.count}")
        if self.count is not None and not 1 <= self.count <= total:
            raise HoplonError(f"expected a count in [1, {total}], got {self.count}")

    @cached_property
    @override
    def chosen(self) -> Mapping[str, Tensor]:
        scores = {name: self._sign * score.detach().cpu() for name, score in self.scores.items()}
        total = sum(score.numel() for score in scores.values())
        return highest(scores, self.count or max(1, round((self.fraction or 0) * total)))

    def __repr__(self) -> str:
        share = f"count={self.count}" if self.fraction is None else f"fraction={self.fraction}"
        return f"{type(self).__name__}({share}, {self._digest()})"


@register("sampling", "top-score")
@final
@checked
@dataclass(frozen=True, eq=False, repr=False)
class TopScore(_Ranked):
    """Uniform over the elements with the highest scores of all scored sites together.

    Args:
        scores: by name of a site, a tensor of the shape of the site, e.g. ``Scores.values``.
        fraction: of all scored elements, in (0, 1]; at least one element; or
        count: how many.
    Raises:
        HoplonError: a fraction or count out of range; SiteError: a chosen element of a site that is not selected.
    Example:
        >>> TopScore({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0])}, count=2).chosen
        {'a': tensor([0]), 'b': tensor([0])}
    """


@register("sampling", "bottom-score")
@final
@checked
@dataclass(frozen=True, eq=False, repr=False)
class BottomScore(_Ranked):
    """Uniform over the elements with the lowest scores; arguments as `TopScore`."""

    _sign = -1


def highest(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Find the elements with the highest scores of all tensors together; NaN ranks as infinity.

    Args:
        scores: real numbers, any shapes, on one device; not modified.
        count: how many, in [1, number of elements].
    Returns:
        For every name the row-major indices of its chosen elements, int64, ascending; ``count`` in all. Equal scores go
        by the order of the tensors, then by index.
    """
    flat = torch.cat([score.reshape(-1).double() for score in scores.values()])
    flat = flat.nan_to_num(math.inf, math.inf, -math.inf)
    threshold = flat.kthvalue(flat.numel() - count + 1).values
    chosen = flat > threshold
    missing = count - int(chosen.sum())
    chosen[(flat == threshold).nonzero()[:missing, 0]] = True
    parts = chosen.split([score.numel() for score in scores.values()])
    return {name: part.nonzero()[:, 0] for name, part in zip(scores, parts, strict=True)}
