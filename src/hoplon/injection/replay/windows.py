"""Windows of feature maps, cut out of golden ones: containers of what faults have changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hoplon.formats.base import integer_view
from hoplon.program.layout import channels_last

Ints = NDArray[np.int64]


@dataclass(eq=False)
class Pixels:
    """A golden feature map that windows are cut out of.

    It is held as it is, ``(batch, channels, height, width)``, and once many windows have been cut out of it, pixel by
    pixel: ``(batch * height * width + 1, channels)``, the last pixel of zeros standing for whatever lies outside. Maps
    of several batches can share one ``sheet`` of pixels; ``data`` is then the rest of it from this map's on. Where its
    memory has the channels last, it is held pixel by pixel from the beginning, as it is, without the one of zeros.
    """

    data: Tensor
    batch: int
    channels: int
    height: int
    width: int
    _channels_last: bool = field(default=False, init=False)
    _by_pixel: bool = field(default=False, init=False)
    _cut: int = field(default=0, init=False)
    sheet: Tensor | None = field(default=None, init=False)

    @classmethod
    def of(cls, value: Tensor) -> Pixels:
        """Hold a feature map ``(batch, channels, height, width)``."""
        if not channels_last(value):
            return cls(value.contiguous(), *value.shape)
        result = cls(value.permute(0, 2, 3, 1).contiguous().view(-1, value.shape[1]), *value.shape)
        result._channels_last = result._by_pixel = True
        return result

    @property
    def value_count(self) -> int:
        """Number of values of the map."""
        return self.batch * self.channels * self.height * self.width

    def value(self) -> Tensor:
        """Return the feature map ``(batch, channels, height, width)``, its memory in the order that it had."""
        if not self._by_pixel:
            return self.data
        pixels = self.data if self._channels_last else self.data[: self.batch * self.height * self.width]
        whole = pixels.view(self.batch, self.height, self.width, -1).permute(0, 3, 1, 2)
        if self._channels_last:
            return whole
        return whole.new_empty(whole.shape).copy_(whole)  # a map of one pixel counts as contiguous with any strides

    def cut(self, rows: Ints, top: Ints, left: Ints, height: int, width: int, *, fill: float = 0.0) -> Tensor:
        """Return windows of shape ``(n, height, width, channels)``, ``fill`` outside of the map.

        Args:
            rows, top, left: shape ``(n,)``, int64, samples and first lines and columns; may lie outside of the map.
        """
        index, outside = self.places(rows, top, left, height, width)
        return filled(self.taken(index, outside), outside, fill)

    def places(
        self, rows: Ints, top: Ints, left: Ints, height: int, width: int
    ) -> tuple[Ints, NDArray[np.bool_] | None]:
        """Return the numbers of the pixels of windows, shape ``(n, height, width)``, and which lie outside, if any."""
        ys, xs = top[:, None] + np.arange(height), left[:, None] + np.arange(width)
        within = top.min() >= 0 and left.min() >= 0 and ys.max() < self.height and xs.max() < self.width
        outside = None
        if not within:
            outside = ((ys < 0) | (ys >= self.height))[:, :, None] | ((xs < 0) | (xs >= self.width))[:, None, :]
            ys, xs = ys.clip(0, self.height - 1), xs.clip(0, self.width - 1)
        return rows[:, None, None] * (self.height * self.width) + (ys * self.width)[:, :, None] + xs[
            :, None, :
        ], outside

    def taken(self, index: Ints, outside: NDArray[np.bool_] | None) -> Tensor:
        """Return the pixels of these numbers, zeros for those outside."""
        size = self.batch * self.height * self.width
        self._cut += index.size
        if not self._by_pixel and pays_by_pixel(self._cut, size):
            pixels = self.data.new_empty(size + 1, self.channels)
            pixels[:-1].view(self.batch, self.height, self.width, -1).copy_(self.data.permute(0, 2, 3, 1))
            pixels[-1] = 0
            self.data, self._by_pixel = pixels, True
        if self._by_pixel:
            chosen = index if outside is None or self._channels_last else np.where(outside, len(self.data) - 1, index)
            windows = self.data.index_select(0, _index(chosen.reshape(-1), self.data)).view(*index.shape, -1)
            return filled(windows, outside, 0.0) if self._channels_last else windows
        plane = self.height * self.width
        sample, place = (_index(part, self.data) for part in np.divmod(index, plane))
        return filled(self.data.view(self.batch, self.channels, plane)[sample, :, place], outside, 0.0)


def on_one_sheet(maps: Sequence[Pixels]) -> Tensor | None:
    """Return the sheet that these maps share, all their pixels and one of zeros; None where they are not turned yet."""
    sheet = maps[0].sheet
    if all(pixels.sheet is sheet for pixels in maps) and sheet is not None:
        return sheet
    if len(maps) == 1 or not all(pixels._by_pixel and not pixels._channels_last for pixels in maps):
        return None
    sizes = [pixels.batch * pixels.height * pixels.width for pixels in maps]
    parts = [pixels.data[:size] for pixels, size in zip(maps, sizes, strict=True)]
    sheet = torch.cat([*parts, parts[0].new_zeros(1, maps[0].channels)])
    for pixels, begin in zip(maps, itertools.accumulate(sizes[:-1], initial=0), strict=True):
        pixels.data, pixels.sheet = sheet[begin:], sheet
    return sheet


def filled(windows: Tensor, outside: NDArray[np.bool_] | None, fill: float) -> Tensor:
    """Write ``fill`` to the pixels outside of the map, in place."""
    if outside is not None:
        windows.view(-1, windows.shape[-1]).index_fill_(0, _index(np.flatnonzero(outside), windows), fill)
    return windows


@dataclass(frozen=True)
class StackedPixels:
    """One golden feature map of several batches, by their numbers; sample ``row`` is one of batch ``row // batch``."""

    batch: int
    parts: Mapping[int, Pixels]

    @property
    def one(self) -> Pixels:
        """The map of one batch."""
        return next(iter(self.parts.values()))

    def cut(self, rows: Ints, top: Ints, left: Ints, height: int, width: int, *, fill: float = 0.0) -> Tensor:
        """Return windows as `Pixels.cut` does."""
        index, outside = self.one.places(rows % self.batch, top, left, height, width)
        if (sheet := on_one_sheet(list(self.parts.values()))) is not None:
            begins = np.zeros(max(self.parts) + 1, dtype=np.int64)
            begins[list(self.parts)] = [len(sheet) - len(pixels.data) for pixels in self.parts.values()]
            index = index + begins[rows // self.batch][:, None, None]
            chosen = index if outside is None else np.where(outside, len(sheet) - 1, index)
            windows = sheet.index_select(0, _index(chosen.reshape(-1), sheet)).view(*index.shape, -1)
            return filled(windows, outside if fill else None, fill)
        pieces = [
            self.parts[number].taken(index[where], None if outside is None else outside[where])
            for number, where in by_batch(rows, self.batch)
        ]
        if len(pieces) == 1:
            return filled(pieces[0], outside, fill)
        windows, order = torch.cat(pieces), np.argsort(rows // self.batch, kind="stable")
        if (order[1:] < order[:-1]).any():
            windows = windows.index_select(0, _index(np.argsort(order), windows))
        return filled(windows, outside if fill else None, fill)


def by_batch(rows: Ints, batch: int) -> Iterator[tuple[int, Ints]]:
    """Yield the numbers of the batches that rows lie in, rising, and where in ``rows`` theirs are."""
    numbers = rows // batch
    order = np.argsort(numbers, kind="stable")
    begins = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    for begin, end in itertools.pairwise([*begins, len(rows)]):
        yield int(numbers[order[begin]]), order[begin:end]


def pays_by_pixel(cut: int, pixels: int) -> bool:
    """True if a map of so many pixels is worth turning once so many have been cut out of it one by one."""
    return 4 * cut > pixels


@dataclass(frozen=True)
class Places:
    """Runs and positions of windows; see :class:`Windows`."""

    runs: Ints
    rows: Ints
    top: Ints
    left: Ints
    box: Ints

    def __len__(self) -> int:
        return len(self.runs)

    def at(self, where: Ints) -> Places:
        """Return those at some positions of the arrays."""
        return Places(self.runs[where], self.rows[where], self.top[where], self.left[where], self.box[where])

    def holding(self, data: Tensor) -> Windows:
        """Return windows at these places with ``data``, shape ``(n, height, width, channels)``."""
        return Windows(self.runs, self.rows, self.top, self.left, self.box, data)


@dataclass(frozen=True)
class Windows(Places):
    """Windows of one step's feature map, one per run, and in each the box that can differ from golden.

    ``runs``, ``rows``, ``top``, ``left``: shape ``(n,)``; ``box``: shape ``(n, 4)``, first and last line, first and
    last column that can differ from golden, counted in the map; ``data``: shape ``(n, height, width, channels)``, as
    readers get it.
    """

    data: Tensor

    def pick(self, chosen: NDArray[np.bool_]) -> Windows:
        """Return the chosen runs; ``chosen`` has shape ``(n,)``."""
        if chosen.all():
            return self
        where = np.flatnonzero(chosen)
        return self.at(where).holding(self.data.index_select(0, _index(where, self.data)))

    def paste(self, position: Ints, target: Tensor, top: Ints, left: Ints) -> None:
        """Copy the windows of some runs into larger or smaller ones of the same map.

        Args:
            position: shape ``(m,)``, int64, for each target the position of its window, -1 for none.
            target: shape ``(m, height, width, channels)``, contiguous, written to; ``top``, ``left``: where it lies.
        """
        targets = np.flatnonzero(position >= 0)
        if not len(targets):
            return
        source = position[targets]
        height, width = target.shape[1:3]
        ys = top[targets, None] + np.arange(height) - self.top[source, None]
        xs = left[targets, None] + np.arange(width) - self.left[source, None]
        size = self.data.shape[1:3]
        inside = ((ys >= 0) & (ys < size[0]))[:, :, None] & ((xs >= 0) & (xs < size[1]))[:, None, :]
        takes = ((source * size[0])[:, None] + ys)[:, :, None] * size[1] + xs[:, None, :]
        puts = ((targets * height)[:, None] + np.arange(height))[:, :, None] * width + np.arange(width)
        pixels = self.data.reshape(-1, target.shape[3]).index_select(0, _index(takes[inside], target))
        target.view(-1, target.shape[3]).index_copy_(0, _index(puts[inside], target), pixels)

    def into(self, value: Tensor, rows: Ints, chosen: Ints) -> None:
        """Copy the windows of some runs into rows of a whole value ``(n, channels, height, width)``, in place."""
        ys = self.top[chosen, None] + np.arange(self.data.shape[1])
        xs = self.left[chosen, None] + np.arange(self.data.shape[2])
        where = (rows[:, None, None], ys[:, :, None], xs[:, None, :])
        data = self.data.index_select(0, _index(chosen, self.data))
        value.permute(0, 2, 3, 1)[tuple(_index(part, value) for part in where)] = data

    def differing(self, golden: StackedPixels) -> Windows:
        """Drop the runs whose window equals golden bit for bit.

        For the others, ``box`` becomes the bounding box of the differing pixels: (top, bottom, left, right), int64,
        shape ``(runs, 4)``; ``data`` keeps its size.
        """
        fault_free = golden.cut(self.rows, self.top, self.left, *self.data.shape[1:3])
        differs: NDArray[np.bool_] = (integer_view(self.data) != integer_view(fault_free)).any(-1).cpu().numpy()
        lines, columns = np.any(differs, axis=2), np.any(differs, axis=1)
        box = np.stack(
            [
                self.top + lines.argmax(1),
                self.top + lines.shape[1] - 1 - lines[:, ::-1].argmax(1),
                self.left + columns.argmax(1),
                self.left + columns.shape[1] - 1 - columns[:, ::-1].argmax(1),
            ],
            axis=1,
        )
        return replace(self, box=box).pick(np.any(lines, axis=1))


@dataclass(frozen=True)
class Wholes:
    """Whole values of runs: ``data`` of shape ``(n, *sample shape)``, samples first."""

    runs: Ints
    rows: Ints
    data: Tensor

    def __len__(self) -> int:
        return len(self.runs)

    def pick(self, chosen: NDArray[np.bool_]) -> Wholes:
        """Return the chosen runs; ``chosen`` has shape ``(n,)``."""
        where = np.flatnonzero(chosen)
        return Wholes(self.runs[where], self.rows[where], self.data.index_select(0, _index(where, self.data)))

    def into(self, value: Tensor, rows: Ints, chosen: Ints) -> None:
        """Copy the values of some runs into rows of a value with its samples first, in place."""
        value[_index(rows, value)] = self.data.index_select(0, _index(chosen, self.data))


def _index(places: Ints, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(places)).to(like.device)


def joined(parts: Sequence[Windows]) -> Windows:
    """Join windows of one size."""
    if len(parts) == 1:
        return parts[0]
    names = (entry.name for entry in fields(Places))
    places = Places(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
    return places.holding(torch.cat([part.data for part in parts]))


def one_per_row(runs: Ints, rows: Ints) -> list[Ints]:
    """Split runs into groups without two of one row; the runs of a row go into the groups in their order.

    Args:
        rows: shape ``(runs,)``, int64.
    """
    order = np.argsort(rows, kind="stable")
    turn = np.empty_like(rows)
    turn[order] = np.arange(len(rows)) - np.searchsorted(rows[order], rows[order])
    return [runs[turn == number] for number in range(turn.max(initial=-1) + 1)]


def homes(pieces: Sequence[Windows | Wholes], count: int) -> tuple[Ints, Ints]:
    """Return for each of ``count`` runs the piece that it lies in, and its position there; -1 for none."""
    home, slot = np.full((2, count), -1)
    for number, piece in enumerate(pieces):
        home[piece.runs], slot[piece.runs] = number, np.arange(len(piece))
    return home, slot
