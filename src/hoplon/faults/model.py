"""Fault models: which words a fault strikes, from the place where it was drawn, and how they change."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hoplon.errors import HoplonError, checked
from hoplon.formats.base import NumberFormat
from hoplon.formats.dtypes import native
from hoplon.program.sites import MemorySite, ValueSite

# Far above any count of bits or words, so that a remainder is uniform to within 2**-20 of any of them.
RANDOM_HIGH = 2**62

# Site number, element, input (None: memory), each of shape (n,) -> fault-free words of the values' own dtype.
Observe = Callable[[Tensor, Tensor, Tensor | None], Tensor]


Site = ValueSite | MemorySite


@checked
@dataclass(frozen=True, eq=False)
class Places:
    """Words that faults strike, one per row.

    Args:
        sites: what the rows refer to.
        number: which site, int64, shape ``(n,)``.
        element: row-major index in the site, int64, shape ``(n,)``.
        input: which input the fault meets, int64, shape ``(n,)``; None: memory, which meets all.
        observe: the fault-free words, for models that need them.
    """

    sites: Sequence[Site]
    number: Tensor
    element: Tensor
    input: Tensor | None = None
    observe: Observe | None = None

    def __len__(self) -> int:
        return len(self.number)

    def take(self, rows: Tensor) -> Places:
        """Take some of the rows, in this order (int64, shape ``(k,)``)."""
        of_input = None if self.input is None else self.input[rows]
        return dataclasses.replace(self, number=self.number[rows], element=self.element[rows], input=of_input)

    def words(self) -> Tensor:
        """Return the fault-free word of each row: int64, shape ``(n,)``, in the dtype of its site.

        Raises:
            HoplonError: nobody observes.
        """
        if self.observe is None:
            raise HoplonError("expected to see the values that the faults meet, got none; draw in a Campaign")
        return self.observe(self.number, self.element, self.input)


@checked
@dataclass(frozen=True, eq=False)
class SampledFaults:
    """Words that n faults change: ``after = (before & keep) ^ flip``.

    Args:
        fault: which fault, int64, shape ``(rows,)``, ascending from 0; the first row of a fault is its anchor, the
            place that was drawn.
        places: of the rows.
        formats: those that occur.
        format: which of them, int64, shape ``(rows,)``.
        keep: int64 words, shape ``(rows,)``.
        flip: likewise.
        probability: float64, shape ``(faults,)``: of this change at this anchor from a fault model, of place, input and
            change from a sampling; NaN where it has a density.
    """

    fault: Tensor
    places: Places
    formats: Sequence[NumberFormat]
    format: Tensor
    keep: Tensor
    flip: Tensor
    probability: Tensor

    def take(self, rows: Tensor) -> SampledFaults:
        """Take some of the rows, in this order (int64, shape ``(k,)``)."""
        places, parts = self.places.take(rows), (self.format[rows], self.keep[rows], self.flip[rows])
        return SampledFaults(self.fault[rows], places, self.formats, *parts, self.probability)

    @classmethod
    def joined(cls, parts: Sequence[tuple[SampledFaults, Tensor]], sites: Places) -> SampledFaults:
        """Join the faults of several models, ordered by fault.

        Args:
            parts: faults, and the number that each of them has in the whole.
            sites: places whose sites, observer and kind of input the parts share.
        """
        formats = {form.name: form for part, _ in parts for form in part.formats}
        number_of = {name: index for index, name in enumerate(formats)}
        probability = torch.ones(sum(len(faults) for _, faults in parts), dtype=torch.float64)
        rows = [(torch.zeros(0, dtype=torch.int64),) * 7]
        for part, faults in parts:
            places = part.places
            inputs = places.number if places.input is None else places.input
            form = torch.tensor([number_of[form.name] for form in part.formats], dtype=torch.int64)[part.format]
            rows.append((faults[part.fault], places.number, places.element, inputs, form, part.keep, part.flip))
            probability[faults] = part.probability
        fault, number, element, inputs, form, keep, flip = map(torch.cat, zip(*rows, strict=True))
        places = dataclasses.replace(
            sites, number=number, element=element, input=None if sites.input is None else inputs
        )
        whole = cls(fault, places, list(formats.values()), form, keep, flip, probability)
        return whole.take(torch.argsort(fault, stable=True))


@checked
@dataclass(frozen=True)
class FaultModel(ABC):
    """A change of words, once a place (site, element, input) is drawn: its anchor.

    A new model of one word is a `WordModel`; one of several words implements `sample`.

    Args:
        format: the bits that are struck: one format for all sites, or one per name of a site, as quantised models
            need; None: those of the value's own dtype.
    """

    format: NumberFormat | Mapping[str, NumberFormat] | None = field(default=None, kw_only=True)

    @property
    def name(self) -> str:
        """The model with the options that differ from their defaults, e.g. "BitFlip(count=2)"."""
        chosen = [
            f"{option.name}={_printed(getattr(self, option.name))}"
            for option in dataclasses.fields(self)
            if getattr(self, option.name) != option.default
        ]
        return f"{type(self).__name__}({', '.join(chosen)})"

    @property
    def anchored(self) -> bool:
        """True if the place that was drawn decides where the fault is; otherwise it spans all sites."""
        return True

    def format_for(self, site: Site) -> NumberFormat:
        """Return the format whose bits a fault changes at a site.

        Raises:
            HoplonError: formats by name that leave the site out, or a dtype whose bits cannot be struck.
        """
        if not isinstance(self.format, Mapping):
            return self.format or native(site.dtype)
        if site.name not in self.format:
            raise HoplonError(f"expected a format for every site, got none for {site.name}")
        return self.format[site.name]

    @abstractmethod
    def sample(self, anchors: Places, *, generator: torch.Generator) -> SampledFaults:
        """Sample one independent fault per anchor.

        Raises:
            HoplonError: the model does not fit a site or its format.
        """


@checked
@dataclass(frozen=True)
class WordModel(FaultModel):
    """A change of one word, whatever the site."""

    @abstractmethod
    def draw(self, count: int, *, format: NumberFormat, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`count` independent changes of a word of `format`.

        Returns:
            ``keep`` and ``flip`` (int64, shape ``(count,)``, ``after = (before & keep) ^ flip``) and the
            probability of each draw (float64, shape ``(count,)``), on the device of the generator.
        Raises:
            HoplonError: the model does not fit the format.
        """

    def patterns(self, format: NumberFormat) -> tuple[Tensor, Tensor, Tensor]:
        """Every change of a word of `format`, in a fixed order: ``keep``, ``flip``, probability, as `draw` gives them.

        Raises:
            HoplonError: they cannot be listed.
        """
        raise HoplonError(f"expected a fault model whose changes can be listed, such as BitFlip, got {self.name}")

    def sample(self, anchors: Places, *, generator: torch.Generator) -> SampledFaults:
        """Sample a change of one word at each anchor."""
        count = len(anchors)
        keep, flip, number = (torch.zeros(count, dtype=torch.int64) for _ in range(3))
        probability = torch.ones(count, dtype=torch.float64)
        formats: list[NumberFormat] = []
        for form, rows in self._by_format(anchors):
            drawn = self._draw_at(anchors.take(rows), form, generator)
            keep[rows], flip[rows], probability[rows] = (part.to(keep.device) for part in drawn)
            number[rows] = len(formats)
            formats.append(form)
        return SampledFaults(torch.arange(count), anchors, formats, number, keep, flip, probability)

    def _draw_at(
        self, anchors: Places, format: NumberFormat, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a change, as `draw` does, at each of some anchors of one format (of one site, where that varies)."""
        shape = anchors.sites[int(anchors.number[0])].shape
        placed = format.at(anchors.element, shape) if format.varies else format
        return self.draw(len(anchors), format=placed, generator=generator)

    def _by_format(self, anchors: Places) -> Iterator[tuple[NumberFormat, Tensor]]:
        """The formats of the sites with the rows they hold; site by site where a format varies within a site."""
        forms = [self.format_for(site) for site in anchors.sites]
        keys = [(form.name, site if form.varies else 0) for site, form in enumerate(forms)]
        order = {key: index for index, key in enumerate(dict.fromkeys(keys))}
        group = torch.tensor([order[key] for key in keys])[anchors.number]
        for key, index in order.items():
            rows = group == index
            if rows.any():
                yield forms[keys.index(key)], rows


def _printed(option: object) -> str:
    if isinstance(option, FaultModel):
        return option.name
    if isinstance(option, Mapping):
        return "{" + ", ".join(f"{name}: {value}" for name, value in option.items()) + "}"
    if isinstance(option, tuple) and any(isinstance(part, FaultModel) for part in option):
        return "(" + ", ".join(map(_printed, option)) + ")"
    return str(option)


def sizes_of(sites: Sequence[Site]) -> Tensor:
    """Number of elements of each site: int64, shape ``(sites,)``."""
    return torch.tensor([site.numel for site in sites], dtype=torch.int64)


def located(position: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Find positions in a row of parts.

    Args:
        position: counted over all parts, int64, shape ``(n,)``.
        sizes: of the parts, int64, shape ``(parts,)``.
    Returns:
        The part and the position in it: int64, shape ``(n,)`` each.
    """
    ends = sizes.cumsum(0)
    part = torch.searchsorted(ends, position, right=True)
    return part, position - (ends - sizes)[part]


def distinct(sizes: Tensor | int, rows: int, count: int, *, generator: torch.Generator) -> Tensor:
    """In each row `count` different numbers below the row's size, every set equally likely.

    The first n rows of a longer draw are the draw of n rows.

    Args:
        sizes: at least `count`; int64, shape ``(rows,)``, or one for all rows.
    Returns:
        int64, shape ``(rows, count)``, on the device of the generator.
    Source:
        Floyd's method: Bentley and Floyd, Communications of the ACM 30(9), 1987.
    """
    random = torch.randint(RANDOM_HIGH, (rows, count), generator=generator, device=generator.device)
    chosen = torch.empty_like(random)
    for column in range(count):
        last = sizes - count + column
        number = random[:, column] % (last + 1)
        taken = (chosen[:, :column] == number[:, None]).any(1)
        chosen[:, column] = torch.where(taken, last, number)
    return chosen
