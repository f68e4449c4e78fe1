"""Strata: groups of faults told apart by what can be seen of a fault before it propagates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from hoplon.errors import Count, HoplonError, checked
from hoplon.program.sites import MemorySite, ValueSite

_LAST = 2**15  # four of them fit in an int64
_MOST_PARTS = 4


@dataclass(frozen=True, eq=False)
class CandidateFeatures:
    """Candidate faults before they propagate, one row each; of a fault of several words its first.

    ``sites``: what ``number`` refers to. ``number``, ``element``: int64, shape ``(n,)``. ``input``: int64, shape
    ``(n,)``; None for memory. ``before``, ``after``: the value, float64, shape ``(n,)``: of a value fault of one word,
    where it leaves its place (see `masking`); else as it is struck. ``masked``: bool, shape ``(n,)``, proven
    to change nothing. ``bit``: the one bit that the change can touch, int64, shape ``(n,)``, -1 for others. ``scale``:
    the root mean square of fault-free values there, float64, shape ``(n,)``. ``slope``: how the gap between the two
    largest outputs changes with the value, over the gap itself, float64, shape ``(n,)``; None unless asked for.
    ``sensitivity``: how much these two outputs change, the length of their gradient over the gap, likewise.
    ``answer``: the largest of the golden outputs, its index, int64, shape ``(n,)``, likewise.
    """

    sites: Sequence[ValueSite | MemorySite]
    number: Tensor
    element: Tensor
    input: Tensor | None
    before: Tensor
    after: Tensor
    masked: Tensor
    bit: Tensor
    scale: Tensor
    slope: Tensor | None = None
    sensitivity: Tensor | None = None
    answer: Tensor | None = None

    @property
    def deviation(self) -> Tensor:
        """After minus before; infinite or NaN where the faulty value is."""
        return self.after - self.before


@dataclass(frozen=True)
class Strata(ABC):
    """Rule that tells candidates apart. A good rule saves runs; none can make the interval dishonest.

    ``needs_slope``: it reads `CandidateFeatures.slope`, `CandidateFeatures.sensitivity` or `CandidateFeatures.answer`.
    """

    needs_slope: ClassVar[bool] = False

    @abstractmethod
    def keys(self, seen: CandidateFeatures) -> Tensor:
        """The stratum of each candidate: int64 of at least 0, shape ``(n,)``."""

    @abstractmethod
    def label(self, key: int, seen: CandidateFeatures) -> str:
        """Name the stratum of a key."""


@final
@checked
@dataclass(frozen=True)
class ByDeviation(Strata):
    """The decade of \\|faulty - fault-free value\\| over the scale of values there, and its sign.

    Values that are not finite are a stratum of their own.

    Args:
        decades: powers of ten that part the strata, ascending.
        signs: part by the sign of the deviation too.
    Source:
        Ranger and Aspis find that large deviations do the harm; here that saves runs.
    """

    decades: tuple[float, ...] = (-1.0, 0.0, 1.0, 2.0, 3.0)
    signs: bool = True

    def __post_init__(self) -> None:
        _require_ascending("decades", self.decades)

    def keys(self, seen: CandidateFeatures) -> Tensor:
        """Decade, then sign; the last for what is not finite."""
        relative = seen.deviation.abs() / seen.scale
        edges = 10.0 ** torch.tensor(self.decades, dtype=torch.float64)
        decade = torch.bucketize(relative, edges)
        key = decade * 2 + (seen.deviation > 0).long() if self.signs else decade
        return torch.where(seen.after.isfinite(), key, self._count)

    def label(self, key: int, seen: CandidateFeatures) -> str:
        """Such as "deviation 1e+00 to 1e+01, positive"."""
        if key == self._count:
            return "not finite"
        decade = key // 2 if self.signs else key
        ends = [f"{10.0**power:.0e}" for power in self.decades]
        if decade == 0:
            size = f"up to {ends[0]}"
        elif decade == len(ends):
            size = f"above {ends[-1]}"
        else:
            size = f"{ends[decade - 1]} to {ends[decade]}"
        return f"deviation {size}" + (f", {'positive' if key % 2 else 'negative'}" if self.signs else "")

    @property
    def _count(self) -> int:
        return (len(self.decades) + 1) * (2 if self.signs else 1)


@final
@dataclass(frozen=True)
class ByLayer(Strata):
    """The module that owns the site."""

    def keys(self, seen: CandidateFeatures) -> Tensor:
        """Numbered in the order of the sites."""
        layers = self._layers(seen)
        return torch.tensor([layers.index(site.layer) for site in seen.sites])[seen.number]

    def label(self, key: int, seen: CandidateFeatures) -> str:
        """Such as "layer1.0.conv1"."""
        return self._layers(seen)[key]

    def _layers(self, seen: CandidateFeatures) -> list[str]:
        return list(dict.fromkeys(site.layer for site in seen.sites))


@final
@dataclass(frozen=True)
class ByBit(Strata):
    """The bit that can change; changes of several bits are one stratum."""

    def keys(self, seen: CandidateFeatures) -> Tensor:
        """The position plus one; 0 for several bits."""
        return seen.bit + 1

    def label(self, key: int, seen: CandidateFeatures) -> str:
        """Such as "bit 30"."""
        return f"bit {key - 1}" if key else "several bits"


@final
@checked
@dataclass(frozen=True)
class ByFirstOrder(Strata):
    """The first-order change of the gap between the two largest outputs, over the gap: slope x deviation.

    -1 predicts that the classes change places. It costs one backward pass per input, and it is blind where an
    activation is dead, so it is no substitute for the deviation: give it beside `ByDeviation`. For one judged output of
    shape ``(runs, classes)``.

    Args:
        edges: sizes that part the strata, ascending.
    """

    needs_slope: ClassVar[bool] = True
    edges: tuple[float, ...] = (0.01, 0.05, 0.1, 0.3, 0.5, 1.0, 2.0)

    def __post_init__(self) -> None:
        _require_ascending("edges", self.edges)

    def keys(self, seen: CandidateFeatures) -> Tensor:
        """Falling gaps by size, after those that do not fall."""
        assert seen.slope is not None
        change = -(seen.slope * seen.deviation)
        key = torch.bucketize(change, torch.tensor(self.edges, dtype=torch.float64))
        return torch.where(change.isnan() | seen.after.isfinite().logical_not(), len(self.edges) + 1, key)

    def label(self, key: int, seen: CandidateFeatures) -> str:
        """Such as "gap falls by 0.1 to 0.5"."""
        if key > len(self.edges):
            return "gap not predicted"
        if key == 0:
            return f"gap falls by less than {self.edges[0]:g}"
        upper = f" to {self.edges[key]:g}" if key < len(self.edges) else " or more"
        return f"gap falls by {self.edges[key - 1]:g}{upper}"


@final
@checked
@dataclass(frozen=True)
class BySensitivity(Strata):
    """Distance that the two largest outputs move, to first order, in any direction: \\|deviation\\| x sensitivity.

    Around 1 the fault moves them as far as they are apart. Large deviations leave the range of a first order, so
    the direction that it predicts says little (`ByFirstOrder` reads it); the size of the move tells nearly all that can
    be told. Values that are not finite are a stratum of their own. For one judged output of shape ``(runs, classes)``.

    Args:
        edges: sizes that part the strata, ascending.
    """

    needs_slope: ClassVar[bool] = True
    edges: tuple[float, ...] = (0.03, 0.1, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 10.0, 100.0)

    def __post_init__(self) -> None:
        _require_ascending("edges", self.edges)

    def keys(self, seen: CandidateFeatures) -> Tensor:
        """By size; the last for what is not finite."""
        assert seen.sensitivity is not None
        move = (seen.deviation.abs() * seen.sensitivity).nan_to_num(nan=0.0)
        key = torch.bucketize(move, torch.tensor(self.edges, dtype=torch.float64))
        return torch.where(seen.after.isfinite(), key, len(self.edges) + 1)

    def label(self, key: int, seen: CandidateFeatures) -> str:
        """Such as "outputs move by 0.1 to 0.3 gaps"."""
        if key > len(self.edges):
            return "not finite"
        if key == len(self.edges):
            return f"outputs move by {self.edges[-1]:g} gaps or more"
        lower = f"{self.edges[key - 1]:g} to " if key else "less than "
        return f"outputs move by {lower}{self.edges[key]:g} gaps"


@final
@checked
@dataclass(frozen=True)
class ByAnswer(Strata):
    """The golden class, where a fault moves the two largest outputs by many gaps; all other faults are one stratum.

    Such a value drowns the input: what comes out hangs on where it struck, and few classes come out often. The fault
    fails unless the input is of that class. For one judged output of shape ``(runs, classes)``.

    Args:
        least: the move from which on faults are parted, in gaps, as in `BySensitivity`.
        most: so many classes are told apart, the first ones; the others are one.
    """

    needs_slope: ClassVar[bool] = True
    least: float = 100.0
    most: Count = 16

    def keys(self, seen: CandidateFeatures) -> Tensor:
        """The class plus one; 0 for small moves and for what is not finite."""
        assert seen.sensitivity is not None
        assert seen.answer is not None
        drowned = (seen.deviation.abs() * seen.sensitivity >= self.least) & seen.after.isfinite()
        return torch.where(drowned, seen.answer.clamp(max=self.most) + 1, 0)

    def label(self, key: int, seen: CandidateFeatures) -> str:
        """Such as "golden class 3"; empty for small moves."""
        if key == 0:
            return ""
        return f"golden class {key - 1}" + (" or above" if key > self.most else "")


@final
@checked
@dataclass(frozen=True)
class ByFunction(Strata):
    """A rule of one's own.

    Args:
        rule: from `CandidateFeatures` to int64 keys of at least 0, shape ``(n,)``.
        name: what a manifest calls it.
    """

    rule: Callable[[CandidateFeatures], Tensor] = field(repr=False)
    name: str = "own"

    def keys(self, seen: CandidateFeatures) -> Tensor:
        """Apply the rule.

        Raises:
            HoplonError: not one integer of at least 0 per candidate.
        """
        keys = torch.as_tensor(self.rule(seen))
        fits = keys.shape == seen.number.shape and not keys.is_floating_point() and not bool((keys < 0).any())
        if not fits:
            raise HoplonError(
                f"expected one integer of at least 0 per candidate from {self.name!r}, got {keys.dtype} of shape "
                f"{tuple(keys.shape)}"
            )
        return keys.to("cpu", torch.int64)

    def label(self, key: int, seen: CandidateFeatures) -> str:
        """Name and key."""
        return f"{self.name} {key}"


def joint_keys(parts: Sequence[Strata], seen: CandidateFeatures) -> Tensor:
    """One key per combination of the parts' strata: int64, shape ``(n,)``.

    Raises:
        HoplonError: no part or too many, or keys too large to combine.
    """
    if not 1 <= len(parts) <= _MOST_PARTS:
        raise HoplonError(f"expected 1 to {_MOST_PARTS} kinds of strata, got {len(parts)}")
    joint = torch.zeros_like(seen.number)
    for part in parts:
        keys = part.keys(seen)
        if len(keys) and int(keys.max()) >= _LAST:
            raise HoplonError(f"expected keys below {_LAST}, got {int(keys.max())} from {part}")
        joint = joint * _LAST + keys
    return joint


def joint_label(parts: Sequence[Strata], key: int, seen: CandidateFeatures) -> str:
    """Name the stratum of a joint key."""
    labels = []
    for part in reversed(parts):
        labels.append(part.label(key % _LAST, seen))
        key //= _LAST
    return "; ".join(filter(None, reversed(labels)))


def _require_ascending(what: str, edges: tuple[float, ...]) -> None:
    if not edges or list(edges) != sorted(set(edges)):
        raise HoplonError(f"expected {what} in ascending order, at least one, got {edges}")
