"""One sweep over the steps with many runs, each as a small window of every feature map that its fault has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from hoplon.injection.replay.golden import ReplayStatistics
from hoplon.injection.replay.kernel_forms import KernelForm, KernelForms, cut_under, protected
from hoplon.injection.replay.plan import Plan
from hoplon.injection.replay.rules import Rule
from hoplon.injection.replay.values import StepValues
from hoplon.injection.replay.windows import Ints, Pixels, Places, StackedPixels, Wholes, Windows, homes, joined

# Numbers of windows that an operator runs on at a time: few, so that few shapes have to be tried.
_COUNTS = (256, 64, 32, 16, 8, 4, 2)
_MOST_BYTES = 8 * 2**20
# Fixed cost of a call, counted in products.
_CALL = 20_000_000
# Fewer windows than this join those of the next larger size.
_FEW = 16
# A difference in a window larger than this hardly ever ends: looking for its end would cost more than it saves.
_LARGEST_COMPARED = 4
# A window that covers more of a map than this costs as much as the map.
_LARGEST_SHARE = 0.5
_SIDES = np.array([*range(1, 13), 14, 16, 18, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256])


@dataclass
class Divergent:
    """Runs that need whole values from some step on, and what their faults have changed before it.

    ``start``: shape ``(runs,)``, int64, the first step that needs whole values; -1 for runs that became bit-identical
    to golden; ``pieces``: by step, what runs have there; ``bytes``: of all pieces.
    """

    start: Ints
    pieces: dict[int, list[Windows | Wholes]] = field(default_factory=dict)
    bytes: int = 0
    _homes: dict[int, tuple[Ints, Ints]] = field(default_factory=dict, repr=False)

    def add(self, step: int, piece: Windows | Wholes) -> None:
        """Record what some runs have at a step."""
        if len(piece):
            self.pieces.setdefault(step, []).append(piece)
            self._homes.pop(step, None)
            self.bytes += piece.data.nbytes

    def homes(self, step: int) -> tuple[Ints, Ints]:
        """Return for each run the piece of a step that it lies in, and its position there; -1 for none."""
        if step not in self._homes:
            self._homes[step] = homes(self.pieces[step], len(self.start))
        return self._homes[step]


@dataclass
class Sweep:
    """A sweep in progress.

    ``maps``: golden feature maps by step; ``tried``: those of one batch, to try kernel forms on; ``operands``: golden
    values of one batch by step, for whatever else operators read;
    ``divergent``: receives the runs that need whole values; ``values``: by step, the windows of runs still in the sweep
    that a later step reads.
    """

    plan: Plan
    kernel_forms: KernelForms
    maps: Callable[[int], StackedPixels]
    tried: Callable[[int], Pixels]
    operands: StepValues
    divergent: Divergent
    values: dict[int, list[Windows]] = field(default_factory=dict)
    statistics: ReplayStatistics = field(default=ReplayStatistics(), init=False)

    def run(self, injected: Mapping[int, Windows]) -> None:
        """Take all runs from their injected pixels to where they end or need whole values."""
        program = self.plan.program
        for index in range(min(injected, default=len(program.steps)), len(program.steps)):
            step = program.steps[index]
            live = [read for read in dict.fromkeys(step.reads) if self.values.get(read)]
            if live and index in self.plan.useful and any(index in program.readers[read] for read in live):
                self._advance(index, live)
            if index in injected and len(injected[index]):
                self.values.setdefault(index, []).append(injected[index])
            for dead in program.last_reads[index]:
                self.values.pop(dead, None)
            carried = sum(piece.data.nbytes for pieces in self.values.values() for piece in pieces)
            self.statistics += ReplayStatistics(carried_bytes=self.divergent.bytes + carried)
        for index, pieces in self.values.items():  # an output that is a feature map
            self._diverge(np.concatenate([piece.runs for piece in pieces]), len(program.steps), {index})
        self.statistics += ReplayStatistics(left=int(np.count_nonzero(self.divergent.start >= 0)))

    def _advance(self, index: int, live: Sequence[int]) -> None:
        """Take the windows of the operands ``live`` through a step."""
        # Invariant: after it, each run that is still in the sweep and whose value of this step can differ from golden
        # has exactly one window of it, which covers all that can differ (`box`) and has the bits of a whole forward;
        # the same holds for every earlier value that is read later. A run without windows has ended, or has diverged,
        # with whatever it had at earlier steps.
        rule = self.plan.rules.get(index)
        if rule is None or not set(live) <= set(rule.operands):
            runs = [piece.runs for read in live for piece in self.values[read]]
            self._diverge(np.concatenate(runs), index)
            return
        if rule.grows:
            results = self._new_windows(index, rule, live, *self._boxes(index, rule, live))
        elif rule.pointwise:
            results = self._in_filled_maps(index, rule, self.values[live[0]])
        elif len(rule.operands) == 1:
            results = [self._same_windows(index, rule, piece) for piece in self.values[live[0]]]
        else:
            results = self._combined(index, rule, live)
        if results := [piece for piece in results if len(piece)]:
            self.values[index] = results

    def _diverge(self, runs: Ints, step: int, only: set[int] | None = None) -> None:
        """Let these runs leave the sweep: from this step on they need whole values."""
        if not len(runs):
            return
        self.divergent.start[runs] = step
        gone = np.zeros(len(self.divergent.start), dtype=bool)
        gone[runs] = True
        for read, pieces in self.values.items():
            if only is not None and read not in only:
                continue
            kept = []
            for piece in pieces:
                leaving = gone[piece.runs]
                self.divergent.add(read, piece.pick(leaving) if leaving.any() else _nothing(piece))
                if not leaving.all():
                    kept.append(piece.pick(~leaving))
            self.values[read] = kept

    def _same_windows(self, index: int, rule: Rule, piece: Windows) -> Windows:
        """Return the same windows after an operator that moves no pixel."""
        data = self._run(index, rule, [piece.data], piece.data.shape[1:3])
        if data is None:
            self._diverge(piece.runs, index)
            return _nothing(piece)
        return self._compared(index, piece.holding(data))

    def _in_filled_maps(self, index: int, rule: Rule, pieces: Sequence[Windows]) -> list[Windows]:
        """Return the same windows after a 1 x 1 convolution, computed in whole maps that are filled with pixels."""
        pixels = torch.cat([piece.data.reshape(-1, piece.data.shape[3]) for piece in pieces])
        parts: list[Tensor] = []
        done = 0
        while done < len(pixels):
            shape = self._map_shape(index, rule, len(pixels) - done)
            if shape is None:
                for piece in pieces:
                    self._diverge(piece.runs, index)
                return []
            held = shape[0] * shape[1] * shape[2]
            part = pixels[done : done + held]
            if len(part) < held:
                part = torch.cat([part, part[-1:].expand(held - len(part), -1)])
            data = self._run(index, rule, [part.view(*shape, -1)], shape[1:])
            assert data is not None, "this shape agrees"
            parts.append(data.view(held, -1)[: len(pixels) - done])
            done += held
        sizes = [piece.data.shape[0] * piece.data.shape[1] * piece.data.shape[2] for piece in pieces]
        results = torch.cat(parts).split(sizes)
        return [
            self._compared(index, piece.holding(data.view(*piece.data.shape[:3], -1)))
            for piece, data in zip(pieces, results, strict=True)
        ]

    def _map_shape(self, index: int, rule: Rule, pixels: int) -> tuple[int, int, int] | None:
        """Return the smallest maps that hold so many pixels, or else the largest, out of those whose bits agree."""
        batch, _, height, width = self.plan.shapes[index]
        lines = {-(-height // part) for part in (4, 2)}
        shapes = [(1, line, width) for line in sorted(lines)]
        shapes += [(count, height, width) for count in sorted({1, 2, 4, 8, 16, 32, 64, batch}) if count <= batch]
        agreeing = (shape for shape in shapes if shape[0] * shape[1] * width >= pixels or shape[0] == batch)
        return next((shape for shape in agreeing if self._form(index, rule, shape) is not None), None)

    def _compared(self, index: int, piece: Windows) -> Windows:
        """Drop the runs that became golden, at steps where a comparison pays."""
        worth = index in self.plan.compared and piece.data.shape[1] <= _LARGEST_COMPARED
        return piece.differing(self.maps(index)) if worth and len(piece) else piece

    def _combined(self, index: int, rule: Rule, live: Sequence[int]) -> list[Windows]:
        """Combine several maps pixel by pixel, in the windows of one of them where these hold all that can differ."""
        runs, rows, box = self._boxes(index, rule, live)
        slot = np.full(len(self.divergent.start), -1)
        results = []
        pieces = [(read, piece) for read in live for piece in self.values[read]]
        for read, piece in sorted(pieces, key=lambda pair: -pair[1].data.shape[1]):
            if not len(runs):
                break
            slot[runs] = np.arange(len(runs))
            position = slot[piece.runs]
            slot[runs] = -1
            whole = box[position]
            height, width = piece.data.shape[1:3]
            inside = (whole[:, 0] >= piece.top) & (whole[:, 1] < piece.top + height)
            inside &= (whole[:, 2] >= piece.left) & (whole[:, 3] < piece.left + width)
            inside &= position >= 0
            if inside.any():
                base = replace(piece.pick(inside), box=whole[inside])
                results.append(self._in_windows_of(index, rule, live, read, base))
                rest = ~np.isin(runs, base.runs)
                runs, rows, box = runs[rest], rows[rest], box[rest]
        return results + (self._new_windows(index, rule, live, runs, rows, box) if len(runs) else [])

    def _in_windows_of(self, index: int, rule: Rule, live: Sequence[int], read: int, base: Windows) -> Windows:
        """Return the result in the windows of one operand; windows of the others are cut out to match."""
        others = [operand for operand in rule.operands if operand != read]
        cut = self._inputs(rule, others, live, base, base.data.shape[1:3])
        windows = [base.data if operand == read else cut[others.index(operand)] for operand in rule.operands]
        data = self._run(index, rule, windows, base.data.shape[1:3])
        assert data is not None, "an operator on single pixels agrees in every shape"
        return self._compared(index, base.holding(data))

    def _new_windows(
        self, index: int, rule: Rule, live: Sequence[int], runs: Ints, rows: Ints, box: Ints
    ) -> list[Windows]:
        """Return windows around all that can differ, one piece for each size."""
        height, width = self.plan.shapes[index][2:]
        extent = np.maximum(box[:, 1] - box[:, 0], box[:, 3] - box[:, 2]) + 1
        side = _SIDES[np.minimum(np.searchsorted(_SIDES, extent), len(_SIDES) - 1)]
        large = (side < extent) | (side > min(height, width)) | (side**2 > _LARGEST_SHARE * height * width)
        self._diverge(runs[large], index)
        sizes, members = np.unique(side[~large], return_counts=True)
        for size, larger, few in zip(sizes, sizes[1:], members < _FEW, strict=False):
            if few:
                side[(side == size) & ~large] = larger
        results = []
        for size in np.unique(side[~large]):
            chosen = np.flatnonzero((side == size) & ~large)
            corner = [np.minimum(box[chosen, 2 * axis], (height, width)[axis] - size) for axis in (0, 1)]
            places = Places(runs[chosen], rows[chosen], corner[0], corner[1], box[chosen])
            results += self._of_size(index, rule, live, places, int(size))
        return results

    def _boxes(self, index: int, rule: Rule, live: Sequence[int]) -> tuple[Ints, Ints, Ints]:
        """Return the runs that reach the step, their rows, and the boxes of the result that can differ."""
        parts = []
        sizes = self.plan.shapes[index][2:]
        for piece in (piece for read in live for piece in self.values[read]):
            ends = [
                rule.axes[axis].reached(piece.box[:, 2 * axis], piece.box[:, 2 * axis + 1], sizes[axis])
                for axis in (0, 1)
            ]
            parts.append(np.stack([piece.runs, piece.rows, *ends[0], *ends[1]], axis=1))
        table = np.concatenate(parts)
        table = table[(table[:, 2] <= table[:, 3]) & (table[:, 4] <= table[:, 5])]
        table = table[np.argsort(table[:, 0], kind="stable")]
        if not len(table):
            return table[:, 0], table[:, 1], table[:, 2:]
        first = np.flatnonzero(np.diff(table[:, 0], prepend=-1))
        low, high = (np.minimum.reduceat(table, first), np.maximum.reduceat(table, first))
        box = np.stack([low[:, 2], high[:, 3], low[:, 4], high[:, 5]], axis=1)
        return low[:, 0], low[:, 1], box

    def _of_size(self, index: int, rule: Rule, live: Sequence[int], places: Places, side: int) -> list[Windows]:
        """Return the step's result in windows of one size; runs for which no form agrees leave the sweep."""
        results = []
        begin = 0
        for count in self._counts(index, rule, len(places), side):
            part = np.arange(begin, min(begin + count, len(places)))
            begin += count
            filled = places.at(np.minimum(np.arange(part[0], part[0] + count), part[-1]))
            inputs = self._inputs(rule, rule.operands, live, filled, (side, side))
            data = self._run(index, rule, inputs, (side, side))
            assert data is not None, "this shape agrees"
            results.append(self._compared(index, places.at(part).holding(data[: len(part)])))
        self._diverge(places.runs[begin:], index)
        results = [piece for piece in results if len(piece)]
        return [joined(results)] if results else []

    def _counts(self, index: int, rule: Rule, total: int, side: int) -> list[int]:
        """Return numbers of windows to run at a time; their sum is below ``total`` where too few shapes agree."""
        lines, columns = rule.axes
        channels = self.plan.shapes[rule.operands[0]][1]
        fitting = max(_COUNTS[-1], _MOST_BYTES // (4 * channels * lines.size(side) * columns.size(side)))
        allowed = [count for count in _COUNTS if count <= fitting]
        if rule.rounds != "by shape":
            return [min(allowed[0], total - begin) for begin in range(0, total, allowed[0])]
        products = rule.products * side**2
        failed: set[int] = set()
        while usable := [count for count in allowed if count not in failed]:

            def price(count: int) -> float:
                trials = 0 if self.kernel_forms.knows(rule, (count, side, side)) else 1
                return (1 + trials) * (_CALL + count * products)

            chosen = cheapest(total, usable, price)
            unfit = {count for count in chosen if self._form(index, rule, (count, side, side)) is None}
            if not unfit:
                return chosen
            failed |= unfit
        return []

    def _inputs(
        self, rule: Rule, operands: Sequence[int], live: Sequence[int], places: Places, size: Sequence[int]
    ) -> list[Tensor]:
        """Return the windows of operands: golden ones, with the values that faults have changed put in."""
        maps = [self.maps(operand) for operand in operands]
        windows = cut_under(rule, maps, places.rows, places.top, places.left, size[0], size[1])
        top, left = rule.axes[0].first(places.top), rule.axes[1].first(places.left)
        for operand, window in zip(operands, windows, strict=True):
            if operand in live:
                piece_of_run, slot = homes(self.values[operand], len(self.divergent.start))
                numbers = piece_of_run[places.runs]
                for number in np.unique(numbers[numbers >= 0]):
                    position = np.where(numbers == number, slot[places.runs], -1)
                    self.values[operand][number].paste(position, window, top, left)
        return windows

    def _form(self, index: int, rule: Rule, size: tuple[int, int, int]) -> KernelForm | None:
        protection = self.plan.protections.get(index)
        return self.kernel_forms.form(index, rule, size, self.tried, self.operands, protection)

    def _run(self, index: int, rule: Rule, windows: list[Tensor], size: Sequence[int]) -> Tensor | None:
        """Run the step on windows, its protection included; return None if no form agrees with golden."""
        form = self._form(index, rule, (len(windows[0]), int(size[0]), int(size[1])))
        self.statistics += ReplayStatistics(windows=len(windows[0]))
        return None if form is None else protected(form(rule, windows, self.operands), self.plan.protections.get(index))


def _nothing(piece: Windows) -> Windows:
    return piece.pick(np.zeros(len(piece), dtype=bool))


def cheapest(total: int, counts: Sequence[int], price: Callable[[int], float]) -> list[int]:
    """Return numbers out of ``counts`` (falling) that add up to at least ``total``, at about the least total price."""
    prices = {count: price(count) for count in counts}

    def best(left: int, first: int) -> tuple[float, list[int]]:
        if not left:
            return 0.0, []
        plans = []
        for position, count in enumerate(counts[first:], first):
            whole, over = divmod(left, count)
            filled = whole + bool(over)
            plans.append((filled * prices[count], [count] * filled))
            if whole and over and position + 1 < len(counts):
                cost, chosen = best(over, position + 1)
                plans.append((whole * prices[count] + cost, [count] * whole + chosen))
        return min(plans, key=lambda plan: plan[0])

    return best(total, 0)[1]
