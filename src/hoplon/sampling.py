"""Sampling measures: which faults a campaign draws, and with which probability."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import polars as pl
import torch
from torch import Tensor

from hoplon.errors import HoplonError
from hoplon.faults import FaultModel, FaultTable, words_to_series
from hoplon.sites import MemorySite, ValueSite

Sites = Sequence[ValueSite] | Sequence[MemorySite]


@dataclass(frozen=True)
class Sampling(ABC):
    """A probability measure over the elements of the selected sites."""

    @abstractmethod
    def draw(self, sites: Sites, count: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Independent draws: site number, element, probability of the element; each of shape ``(count,)``.

        Site number and element are int64, the probability is float64.
        """


@final
@dataclass(frozen=True)
class ElementUniform(Sampling):
    """Every element of every selected site is equally likely, the last of the last site included."""

    def draw(self, sites: Sites, count: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a position in the concatenation of all sites."""
        ends = torch.tensor([site.numel for site in sites]).cumsum(0)
        total = int(ends[-1])
        position = torch.randint(total, (count,), generator=generator)
        number = torch.searchsorted(ends, position, right=True)
        first = ends - torch.tensor([site.numel for site in sites])
        return number, position - first[number], torch.full((count,), 1 / total, dtype=torch.float64)


def unit_generator(seed: int, unit: int) -> torch.Generator:
    """The generator of one work unit: a function of seed and unit number alone.

    Example:
        >>> unit_generator(0, 1).initial_seed() == unit_generator(0, 1).initial_seed()
        True
    """
    state = np.random.SeedSequence([seed, unit]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def draw_faults(
    sites: Sites,
    fault_model: FaultModel,
    count: int,
    *,
    sampling: Sampling,
    generator: torch.Generator,
    inputs: Sequence[int] | None = None,
) -> FaultTable:
    """Draw independent faults.

    Args:
        sites: value sites (then ``inputs`` lists the eligible inputs, drawn uniformly), or memory sites.
        generator: decides everything; the same state gives the same table.
    Returns:
        A table of ``count`` faults numbered from 0, words before and after not yet observed. Its probability is that
        of one draw giving this very fault: element, input and pattern together.
    Raises:
        HoplonError: no inputs, or a fault model that does not fit a site's number format.
    """
    if inputs is not None and not len(inputs):
        raise HoplonError("expected at least one eligible input, got 0; the model is wrong on all of them")
    number, element, probability = sampling.draw(sites, count, generator=generator)
    columns: dict[str, pl.Series] = {}
    if inputs is not None:
        drawn = torch.randint(len(inputs), (count,), generator=generator)
        columns["input"] = pl.Series(torch.as_tensor(inputs)[drawn].numpy())
        probability = probability / len(inputs)
    keep, flip = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
    formats = [fault_model.format_for(site.dtype) for site in sites]
    names = list(dict.fromkeys(form.name for form in formats))
    by_site = torch.tensor([names.index(form.name) for form in formats])[number]
    for index, name in enumerate(names):
        mine = by_site == index
        form = next(form for form in formats if form.name == name)
        keep[mine], flip[mine], share = fault_model.draw(int(mine.sum()), format=form, generator=generator)
        probability[mine] *= share
    frame = pl.DataFrame(
        {
            "fault": np.arange(count),
            "site": _named([site.name for site in sites], number),
            "element": element.numpy(),
            **columns,
            "format": _named(names, by_site),
            "keep": words_to_series(keep),
            "flip": words_to_series(flip),
            "probability": probability.numpy(),
        }
    )
    return FaultTable("memory" if inputs is None else "values", frame)


def _named(names: Sequence[str], number: Tensor) -> pl.Series:
    """The numbered names as an Enum column."""
    return pl.Series(names, dtype=pl.Enum(names)).gather(number.numpy())
