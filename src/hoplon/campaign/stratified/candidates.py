"""The first phase: very many candidate faults, drawn and looked at, none of them run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from hoplon.campaign.stratified.bit_bands import bands_of, highest_bit
from hoplon.campaign.stratified.first_phase import FirstPhase
from hoplon.campaign.stratified.masking import LocalPropagation
from hoplon.campaign.stratified.strata import CandidateFeatures, Strata, joint_keys, joint_label
from hoplon.faults.model import Places, SampledFaults
from hoplon.faults.sampling.base import Population, Sampling, table_of, unit_generator
from hoplon.faults.table import FaultTable, series_to_words
from hoplon.formats.base import NumberFormat
from hoplon.formats.dtypes import native
from hoplon.formats.named import format_named
from hoplon.stats.intervals import Ints

Slope = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

BLOCK = 2**12
_SMALLEST = 1e-4  # a stratum with a smaller share is joined with the others of its kind
_REST, _MASKED, _SPOILT = "rare kinds", "masked, proven", "masked, wrong without a fault"
_SPOILT_KEY = 2**60 - 1
_MOST_BANDS = 4
_OF_BAND = 2**60  # keys of a band come after those of the bands below it


class Candidates:
    """Draws candidates block by block and tells their strata; a block is a function of seed, band and number alone.

    Args:
        population: what faults are drawn from; it observes the fault-free words.
        strata: how candidates are told apart.
        arrive: follows value faults of one word; None, as for memory: what is struck is all that is seen.
        slope: gives `CandidateFeatures.slope`, `CandidateFeatures.sensitivity` and `CandidateFeatures.answer` by step,
            element and input; needed by strata that read one of them.
        wrong: inputs that fail without a fault, int64; there a masked fault is a failure all the same.
        block: candidates that are drawn together; decides which ones there are.
        most_at_once: candidates looked at together after the first ones, at some 400 bytes each; changes no stratum.
    """

    def __init__(
        self,
        population: Population,
        sampling: Sampling,
        strata: Sequence[Strata],
        *,
        seed: int,
        arrive: LocalPropagation | None = None,
        slope: Slope | None = None,
        wrong: Tensor | None = None,
        block: int = BLOCK,
        most_at_once: int = 2**22,
    ) -> None:
        self._block, self._most_at_once = block, most_at_once
        self._population, self._sampling, self._strata, self._seed = population, sampling, tuple(strata), seed
        self._arrive, self._slope = arrive, slope
        self._wrong = torch.zeros(0, dtype=torch.int64) if wrong is None else wrong
        self._scale = torch.ones(0, dtype=torch.float64)
        self._keys: Tensor = torch.zeros(0, dtype=torch.int64)
        self._blocks: list[tuple[int, int]] = []
        self._formats: list[str] = []
        self.bands = bands_of(population, sampling)
        self.labels: tuple[str, ...] = ()
        self.stratum: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._band_of: Ints = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.stratum)

    @property
    def first_phase(self) -> FirstPhase:
        """The candidates so far, counted."""
        strata, bands = len(self.labels), len(self.bands)
        known = np.full(strata, np.nan)
        known[strata - bands :] = 0.0
        weights = np.array([band.weight for band in self.bands])
        counts = np.bincount(self.stratum, minlength=strata)
        return FirstPhase(counts, known, self._band_of, weights / weights.sum(), self._block * self._drawn)

    @property
    def _drawn(self) -> Ints:
        """Blocks of each band so far."""
        return np.bincount([band for band, _ in self._blocks], minlength=len(self.bands))

    def extend(self, wanted: Ints) -> None:
        """Draw and look at candidates until each band has so many; the first ones decide what strata there are."""
        have = self._drawn.tolist()
        goal = [-(-count // self._block) for count in wanted.tolist()]
        short = [(band, number) for band, blocks in enumerate(goal) for number in range(have[band], blocks)]
        size = max(len(short), 1) if not self._blocks else self._most_at_once // self._block
        for start in range(0, len(short), size):
            self._add(short[start : start + size])

    def _add(self, blocks: list[tuple[int, int]]) -> None:
        """Draw and look at some blocks."""
        parts, bands = [self._draw(*block) for block in blocks], torch.tensor([band for band, _ in blocks])
        first = not self._blocks
        self._blocks += blocks
        seen = self._look(SampledFaults.joined(_numbered(parts, self._block), parts[0].places), fix_scale=first)
        keys, band = joint_keys(self._strata, seen), bands.repeat_interleave(self._block)
        spoilt = self._spoilt(seen)
        keys = torch.where(seen.masked & spoilt, _SPOILT_KEY, keys) + band * _OF_BAND
        proven = seen.masked & ~spoilt
        found_formats = (form.name for part in parts for form in part.formats)
        self._formats = list(dict.fromkeys([*self._formats, *found_formats]))
        if first:
            self._keys = self._common(keys[~proven], band[~proven])
            self._name(seen)
        found = torch.where(proven, len(self._keys) + len(self.bands) + band, self._nearest(keys, band))
        self.stratum = np.concatenate([self.stratum, found.to(torch.int32).numpy()])

    def _common(self, keys: Tensor, band: Tensor) -> Tensor:
        """The keys, ascending, whose share is not too small for a stratum of their own; of each band the largest."""
        drawn = (self._block * self._drawn).tolist()
        each = torch.tensor([one.weight / count for one, count in zip(self.bands, drawn, strict=True)])
        found, which = keys.unique(return_inverse=True)
        shares = torch.zeros(len(found), dtype=torch.float64).index_add_(0, which, each[band].double())
        kept = shares >= _SMALLEST
        for number in (found // _OF_BAND).unique().tolist():
            kept[torch.where(found // _OF_BAND == number, shares, -1.0).argmax()] = True
        common: Tensor = found[kept]
        return common

    def _nearest(self, keys: Tensor, band: Tensor) -> Tensor:
        """The stratum of each key; rare ones go with the next below them in their band, or else above."""
        if not len(self._keys):
            return band
        below = torch.searchsorted(self._keys, keys, right=True) - 1
        sides = [(below + step).clamp(0, len(self._keys) - 1) for step in (0, 1)]
        in_band = [self._keys[side] // _OF_BAND == band for side in sides]
        chosen = torch.where(in_band[0], sides[0], sides[1])
        return torch.where(in_band[0] | in_band[1], chosen, len(self._keys) + band)

    def _name(self, seen: CandidateFeatures) -> None:
        """Labels and bands of the strata: those of their own, the rare kinds of each band, what is proven of each."""
        own = [divmod(key, _OF_BAND) for key in self._keys.tolist()]
        labels = [(band, _SPOILT if key == _SPOILT_KEY else joint_label(self._strata, key, seen)) for band, key in own]
        labels += [(band, rest) for rest in (_REST, _MASKED) for band in range(len(self.bands))]
        self.labels = tuple("; ".join(filter(None, (self.bands[band].label, label))) for band, label in labels)
        self._band_of = np.array([band for band, _ in labels], dtype=np.int64)

    def table(self, chosen: Ints) -> FaultTable:
        """The faults of these candidates, in this order, numbered from 0."""
        parts = []
        order = chosen.argsort(kind="stable")
        numbers, first = np.unique(chosen[order] // self._block, return_index=True)
        for block, mine in zip(numbers.tolist(), np.split(order, first[1:]), strict=True):
            faults, wanted = self._draw(*self._blocks[block]), torch.from_numpy(chosen[mine] - block * self._block)
            rank = torch.full((self._block,), -1).index_copy_(0, wanted, torch.arange(len(wanted)))
            kept = faults.take((rank[faults.fault] >= 0).nonzero()[:, 0])
            kept = dataclasses.replace(kept, fault=rank[kept.fault], probability=faults.probability[wanted])
            parts.append((kept, torch.from_numpy(mine)))
        table = table_of(SampledFaults.joined(parts, self._population.places(*[torch.zeros(0).long()] * 3)))
        formats = pl.col("format").cast(pl.String).cast(pl.Enum(self._formats))
        return FaultTable(table.target, table.frame.with_columns(formats))

    def observed(self, table: FaultTable) -> FaultTable:
        """The table with the words that its faults meet and leave, as a run would find them."""
        names = {site.name: index for index, site in enumerate(self._population.sites)}
        frame = table.frame
        number = frame["site"].cast(pl.String).replace_strict(names, return_dtype=pl.Int64).to_numpy()
        given = None if table.target == "memory" else torch.from_numpy(frame["input"].to_numpy().copy())
        element = torch.from_numpy(frame["element"].to_numpy().copy())
        places = self._population.places(torch.from_numpy(number.copy()), element, torch.zeros_like(element))
        places = dataclasses.replace(places, input=given)
        kinds = list(frame["format"].cast(pl.String).unique())
        form = frame["format"].cast(pl.String).replace_strict(kinds, list(range(len(kinds))), return_dtype=pl.Int64)
        words, keep, flip = places.words(), series_to_words(frame["keep"]), series_to_words(frame["flip"])
        before, after = torch.zeros_like(words), torch.zeros_like(words)
        for mine, number_format in _alike(
            places, torch.from_numpy(form.to_numpy().copy()), [format_named(kind) for kind in kinds]
        ):
            values = _values(words[mine], places.sites[int(places.number[mine[0]])].dtype)
            before[mine] = number_format.words(values)
            after[mine] = number_format.words(number_format.apply(values, keep[mine], flip[mine]))
        return table.observed(before=before, after=after)

    def _spoilt(self, seen: CandidateFeatures) -> Tensor:
        """Where the fault meets an input that fails anyway."""
        if seen.input is None:
            return torch.full_like(seen.masked, bool(len(self._wrong)))
        return torch.isin(seen.input, self._wrong)

    def _generator(self, band: int, number: int) -> torch.Generator:
        return unit_generator(self._seed, number * _MOST_BANDS + band)

    def _draw(self, band: int, number: int) -> SampledFaults:
        generator = self._generator(band, number)
        return self._sampling.draw(self.bands[band].population, self._block, first=0, generator=generator)

    def _look(self, strikes: SampledFaults, *, fix_scale: bool) -> CandidateFeatures:
        """Features of each fault at its anchor, the first of its words."""
        fault = strikes.fault
        anchor = torch.cat([torch.ones(1, dtype=torch.bool), fault[1:] != fault[:-1]]).nonzero()[:, 0]
        places = strikes.places.take(anchor)
        form, keep, flip = strikes.format[anchor], strikes.keep[anchor], strikes.flip[anchor]
        words = places.words()
        struck = torch.zeros_like(words)
        before, after = (torch.zeros(len(anchor), dtype=torch.float64) for _ in range(2))
        bit = torch.full_like(words, -1)
        several = torch.bincount(fault, minlength=len(anchor)) > 1
        for mine, number_format in _alike(places, form, strikes.formats):
            dtype = places.sites[int(places.number[mine[0]])].dtype
            values = _values(words[mine], dtype)
            hit = number_format.apply(values, keep[mine], flip[mine])
            struck[mine] = native(dtype).words(hit)
            before[mine], after[mine] = values.double(), hit.double()
            bit[mine] = _single(keep[mine], flip[mine], number_format)
        bit[several] = -1
        masked = (struck == words) & ~several
        step = places.number if self._arrive is None else self._arrive.steps[places.number]
        if self._arrive is not None and places.input is not None and not several.any():
            arrived = self._arrive(places.number, places.element, places.input, struck)
            before, after, step, masked = arrived.before, arrived.after, arrived.step, arrived.masked
        if fix_scale:
            self._scale = _scale(before, step)
        slopes: tuple[Tensor, Tensor, Tensor] | tuple[()] = ()
        if self._slope is not None:
            assert places.input is not None
            slopes = self._slope(step, places.element, places.input)
        scale = torch.ones(max(int(step.max()) + 1, len(self._scale)), dtype=torch.float64)
        scale[: len(self._scale)] = self._scale
        given = places.number, places.element, places.input
        return CandidateFeatures(places.sites, *given, before, after, masked, bit, scale[step], *slopes)


def _numbered(parts: Sequence[SampledFaults], block: int) -> list[tuple[SampledFaults, Tensor]]:
    """The parts with the numbers of their faults in the whole."""
    return [(part, torch.arange(block) + index * block) for index, part in enumerate(parts)]


def _alike(places: Places, form: Tensor, formats: Sequence[NumberFormat]) -> list[tuple[Tensor, NumberFormat]]:
    """Rows of one dtype and one format; of one site where a format varies within it."""
    dtypes = [site.dtype for site in places.sites]
    known = list(dict.fromkeys(dtypes))
    if len(known) == len(formats) == 1 and not formats[0].varies:
        return [(torch.arange(len(form)), formats[0])]
    dtype = torch.tensor([known.index(d) for d in dtypes])[places.number]
    found = []
    for index, number_format in enumerate(formats):
        key = torch.where(form == index, places.number if number_format.varies else dtype, -1)
        for value in torch.bincount(key + 1)[1:].nonzero()[:, 0].tolist():
            mine = (key == value).nonzero()[:, 0]
            placed = number_format
            if number_format.varies:
                placed = number_format.at(places.element[mine], places.sites[value].shape)
            found.append((mine, placed))
    return found


def _values(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Words of a dtype as its values: undoes ``native(dtype).words``."""
    zero = torch.zeros(len(words), dtype=dtype)
    return native(dtype).apply(zero, torch.zeros_like(words), words) if len(words) else zero


def _single(keep: Tensor, flip: Tensor, number_format: NumberFormat) -> Tensor:
    """The one bit that each change can touch; -1 for none or several."""
    touched = (~keep | flip) & number_format.all_ones
    single = (touched != 0) & ((touched & (touched - 1)) == 0)
    return torch.where(single, highest_bit(touched, number_format.bits), -1)


def _scale(before: Tensor, step: Tensor) -> Tensor:
    """Root mean square of finite values by step; 1 where that is 0 or unknown."""
    good = before.isfinite()
    size = int(step.max()) + 1
    squares = torch.zeros(size, dtype=torch.float64).index_add_(0, step[good], before[good] ** 2)
    scale = (squares / torch.bincount(step[good], minlength=size).clamp(min=1)).sqrt()
    return torch.where((scale > 0) & scale.isfinite(), scale, 1.0)
