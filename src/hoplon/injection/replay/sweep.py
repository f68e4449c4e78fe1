"""One sweep over the steps: the windows of many runs, from the struck pixels on, for as long as they are small."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from hoplon.injection.replay.kernel_forms import KernelForm, KernelForms, cut_under, protected
from hoplon.injection.replay.plan import Plan
from hoplon.injection.replay.rules import Rule
from hoplon.injection.replay.values import StepValues
from hoplon.injection.replay.windows import Ints, Pixels, Places, Wholes, Windows, joined

# Windows of one shape are run so many at a time, so that few shapes have to agree and their values stay in the cache.
_COUNTS = (256, 64, 32, 16, 8, 4, 2)
_MOST_BYTES = 8 * 2**20
# What a call costs on top of its products, counted in products.
_CALL = 20_000_000
# Fewer windows than this are no reason for a size of their own.
_FEW = 16
# A difference in a window larger than this hardly ever ends: looking for its end would cost more than it saves.
_LARGEST_COMPARED = 4
# A window that covers more of a map than this costs as much as the map.
_LARGEST_SHARE = 0.5
_SIDES = np.array([*range(1, 13), 14, 16, 18, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256])


@dataclass
class Divergent:
    """Runs that go on with whole values: from which step on, and what the fault has made of values before it.

    ``start``: shape ``(runs,)``, -1 for runs that became bit-identical to golden; ``pieces``: by step.
    """

    start: Ints
    pieces: dict[int, list[Windows | Wholes]] = field(default_factory=dict)
    _homes: dict[int, tuple[Ints, Ints]] = field(default_factory=dict, repr=False)

    def add(self, step: int, piece: Windows | Wholes) -> None:
        """What some runs have at a step."""
        if len(piece):
            self.pieces.setdefault(step, []).append(piece)
            self._homes.pop(step, None)

    def homes(self, step: int) -> tuple[Ints, Ints]:
        """For each run, the piece of a step that it lies in, and where in it; -1 for none."""
        if step not in self._homes:
            home, slot = np.full((2, len(self.start)), -1)
            for number, piece in enumerate(self.pieces[step]):
                home[piece.runs], slot[piece.runs] = number, np.arange(len(piece))
            self._homes[step] = home, slot
        return self._homes[step]


@dataclass
class Sweep:
    """A sweep in progress; ``values``: by step, what is live of it."""

    plan: Plan
    agreement: KernelForms
    maps: Callable[[int], Pixels]
    operands: StepValues
    left: Divergent
    values: dict[int, list[Windows]] = field(default_factory=dict)

    def run(self, strikes: Mapping[int, Windows]) -> None:
        """Take all runs from their struck pixels to where they end or need whole values."""
        program = self.plan.program
        for index in range(min(strikes, default=len(program.steps)), len(program.steps)):
            step = program.steps[index]
            live = [read for read in dict.fromkeys(step.reads) if self.values.get(read)]
            if live and index in self.plan.useful and any(index in program.readers[read] for read in live):
                self._advance(index, live)
            if index in strikes and len(strikes[index]):
                self.values.setdefault(index, []).append(strikes[index])
            for dead in program.last_reads[index]:
                self.values.pop(dead, None)
        for index, pieces in self.values.items():  # an output that is a feature map
            self._leave(np.concatenate([piece.runs for piece in pieces]), len(program.steps), {index})

    def _advance(self, index: int, live: Sequence[int]) -> None:
        rule = self.plan.rules.get(index)
        if rule is None or not set(live) <= set(rule.operands):
            runs = [piece.runs for read in live for piece in self.values[read]]
            self._leave(np.concatenate(runs), index)
            return
        if rule.grows:
            made = self._rebuilt(index, rule, live, *self._reached(index, rule, live))
        elif rule.pointwise:
            made = self._packed(index, rule, self.values[live[0]])
        elif len(rule.operands) == 1:
            made = [self._alike(index, rule, piece) for piece in self.values[live[0]]]
        else:
            made = self._together(index, rule, live)
        if made := [piece for piece in made if len(piece)]:
            self.values[index] = made

    def _leave(self, runs: Ints, step: int, only: set[int] | None = None) -> None:
        """From this step on, these runs need whole values."""
        if not len(runs):
            return
        self.left.start[runs] = step
        gone = np.zeros(len(self.left.start), dtype=bool)
        gone[runs] = True
        for read, pieces in self.values.items():
            if only is not None and read not in only:
                continue
            kept = []
            for piece in pieces:
                leaving = gone[piece.runs]
                self.left.add(read, piece.pick(leaving) if leaving.any() else _nothing(piece))
                if not leaving.all():
                    kept.append(piece.pick(~leaving))
            self.values[read] = kept

    def _alike(self, index: int, rule: Rule, piece: Windows) -> Windows:
        """The same windows after an operator that moves no pixel."""
        data = self._run(index, rule, [piece.data], piece.data.shape[1:3])
        if data is None:
            self._leave(piece.runs, index)
            return _nothing(piece)
        return self._settled(index, piece.holding(data))

    def _packed(self, index: int, rule: Rule, pieces: Sequence[Windows]) -> list[Windows]:
        """The same windows after products of each pixel with weights: all pixels side by side, in maps full of them."""
        pixels = torch.cat([piece.data.reshape(-1, piece.data.shape[3]) for piece in pieces])
        parts: list[Tensor] = []
        done = 0
        while done < len(pixels):
            shape = self._map_shape(index, rule, len(pixels) - done)
            if shape is None:
                for piece in pieces:
                    self._leave(piece.runs, index)
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
        made = torch.cat(parts).split(sizes)
        return [
            self._settled(index, piece.holding(data.view(*piece.data.shape[:3], -1)))
            for piece, data in zip(pieces, made, strict=True)
        ]

    def _map_shape(self, index: int, rule: Rule, pixels: int) -> tuple[int, int, int] | None:
        """The smallest maps that hold so many pixels, or the largest there are, out of those whose bits agree."""
        batch, _, height, width = self.plan.shapes[index]
        lines = {-(-height // part) for part in (4, 2)}
        shapes = [(1, line, width) for line in sorted(lines)]
        shapes += [(count, height, width) for count in sorted({1, 2, 4, 8, 16, 32, 64, batch}) if count <= batch]
        agreeing = (shape for shape in shapes if shape[0] * shape[1] * width >= pixels or shape[0] == batch)
        return next((shape for shape in agreeing if self._form(index, rule, shape) is not None), None)

    def _settled(self, index: int, piece: Windows) -> Windows:
        worth = index in self.plan.compared and piece.data.shape[1] <= _LARGEST_COMPARED
        return piece.differing(self.maps(index)) if worth and len(piece) else piece

    def _together(self, index: int, rule: Rule, live: Sequence[int]) -> list[Windows]:
        """Several maps pixel by pixel: in the windows of one of them, where these hold all that can differ."""
        runs, rows, box = self._reached(index, rule, live)
        slot = np.full(len(self.left.start), -1)
        made = []
        pieces = [(read, piece) for read in live for piece in self.values[read]]
        for read, piece in sorted(pieces, key=lambda pair: -pair[1].data.shape[1]):
            if not len(runs):
                break
            slot[runs] = np.arange(len(runs))
            mine = slot[piece.runs]
            slot[runs] = -1
            whole = box[mine]
            height, width = piece.data.shape[1:3]
            inside = (whole[:, 0] >= piece.top) & (whole[:, 1] < piece.top + height)
            inside &= (whole[:, 2] >= piece.left) & (whole[:, 3] < piece.left + width)
            inside &= mine >= 0
            if inside.any():
                base = replace(piece.pick(inside), box=whole[inside])
                made.append(self._beside(index, rule, live, read, base))
                rest = ~np.isin(runs, base.runs)
                runs, rows, box = runs[rest], rows[rest], box[rest]
        return made + (self._rebuilt(index, rule, live, runs, rows, box) if len(runs) else [])

    def _beside(self, index: int, rule: Rule, live: Sequence[int], read: int, base: Windows) -> Windows:
        """The result in the windows that one operand has; those of the others are cut out to match."""
        others = [operand for operand in rule.operands if operand != read]
        found = self._inputs(rule, others, live, base, base.data.shape[1:3])
        windows = [base.data if operand == read else found[others.index(operand)] for operand in rule.operands]
        data = self._run(index, rule, windows, base.data.shape[1:3])
        assert data is not None, "an operator on single pixels agrees in every shape"
        return self._settled(index, base.holding(data))

    def _rebuilt(self, index: int, rule: Rule, live: Sequence[int], runs: Ints, rows: Ints, box: Ints) -> list[Windows]:
        """Windows around all that can differ, one piece for each size."""
        height, width = self.plan.shapes[index][2:]
        extent = np.maximum(box[:, 1] - box[:, 0], box[:, 3] - box[:, 2]) + 1
        side = _SIDES[np.minimum(np.searchsorted(_SIDES, extent), len(_SIDES) - 1)]
        large = (side < extent) | (side > min(height, width)) | (side**2 > _LARGEST_SHARE * height * width)
        self._leave(runs[large], index)
        sizes, members = np.unique(side[~large], return_counts=True)
        for size, larger, few in zip(sizes, sizes[1:], members < _FEW, strict=False):
            if few:
                side[(side == size) & ~large] = larger
        made = []
        for size in np.unique(side[~large]):
            chosen = np.flatnonzero((side == size) & ~large)
            corner = [np.minimum(box[chosen, 2 * axis], (height, width)[axis] - size) for axis in (0, 1)]
            places = Places(runs[chosen], rows[chosen], corner[0], corner[1], box[chosen])
            made += self._windows(index, rule, live, places, int(size))
        return made

    def _reached(self, index: int, rule: Rule, live: Sequence[int]) -> tuple[Ints, Ints, Ints]:
        """For each run that reaches the step: the run, its row, the box of the result that can differ."""
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

    def _windows(self, index: int, rule: Rule, live: Sequence[int], places: Places, side: int) -> list[Windows]:
        """The step's result in windows of one size; runs of a size for which no form agrees leave."""
        made = []
        begin = 0
        for count in self._counts(index, rule, len(places), side):
            part = np.arange(begin, min(begin + count, len(places)))
            begin += count
            filled = places.at(np.minimum(np.arange(part[0], part[0] + count), part[-1]))
            inputs = self._inputs(rule, rule.operands, live, filled, (side, side))
            data = self._run(index, rule, inputs, (side, side))
            assert data is not None, "this shape agrees"
            made.append(self._settled(index, places.at(part).holding(data[: len(part)])))
        self._leave(places.runs[begin:], index)
        made = [piece for piece in made if len(piece)]
        return [joined(made)] if made else []

    def _counts(self, index: int, rule: Rule, total: int, side: int) -> list[int]:
        """How many windows to run at a time; fewer in all than asked for where too few shapes agree."""
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
                looks = 0 if self.agreement.knows(rule, (count, side, side)) else 1
                return (1 + looks) * (_CALL + count * products)

            chosen = cheapest(total, usable, price)
            unfit = {count for count in chosen if self._form(index, rule, (count, side, side)) is None}
            if not unfit:
                return chosen
            failed |= unfit
        return []

    def _inputs(
        self, rule: Rule, operands: Sequence[int], live: Sequence[int], places: Places, size: Sequence[int]
    ) -> list[Tensor]:
        """The operands' windows: golden, with what the fault has made of them put in."""
        maps = [self.maps(operand) for operand in operands]
        windows = cut_under(rule, maps, places.rows, places.top, places.left, size[0], size[1])
        top, left = rule.axes[0].first(places.top), rule.axes[1].first(places.left)
        for operand, window in zip(operands, windows, strict=True):
            if operand in live:
                home, slot = self._homes(operand)
                mine = home[places.runs]
                for number in np.unique(mine[mine >= 0]):
                    position = np.where(mine == number, slot[places.runs], -1)
                    self.values[operand][number].paste(position, window, top, left)
        return windows

    def _homes(self, operand: int) -> tuple[Ints, Ints]:
        """For each run, the piece of an operand that it lies in, and where in it; -1 for none."""
        home, slot = np.full((2, len(self.left.start)), -1)
        for number, piece in enumerate(self.values[operand]):
            home[piece.runs], slot[piece.runs] = number, np.arange(len(piece))
        return home, slot

    def _form(self, index: int, rule: Rule, size: tuple[int, int, int]) -> KernelForm | None:
        protection = self.plan.protections.get(index)
        return self.agreement.form(index, rule, size, self.maps, self.operands, protection)

    def _run(self, index: int, rule: Rule, windows: list[Tensor], size: Sequence[int]) -> Tensor | None:
        """The step on windows, its protection included; None if no form agrees with golden."""
        form = self._form(index, rule, (len(windows[0]), int(size[0]), int(size[1])))
        return None if form is None else protected(form(rule, windows, self.operands), self.plan.protections.get(index))


def _nothing(piece: Windows) -> Windows:
    return piece.pick(np.zeros(len(piece), dtype=bool))


def cheapest(total: int, counts: Sequence[int], price: Callable[[int], float]) -> list[int]:
    """Numbers out of ``counts`` (falling) that add up to at least ``total``, at about the least price in all."""
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
