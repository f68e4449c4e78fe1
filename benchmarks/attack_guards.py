"""Very many faults against guards: repaired, mitigated, reported, missed or mis-repaired, class by class.

A guard is armed once on the memory of a trained model. Each fault changes bits behind torch's back, in memory or in
what the guard holds itself; after one check every byte is compared with what it was, then put back.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))  # statistics.py beside this file is no module of the standard library

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import hoplon as hp
from hoplon.protections.guards.memory.arena import arena_around, end_to_end
from hoplon.protections.guards.parity.parity import ParityGuard
from hoplon.zoo import resolve_model

OUTCOMES = ("repaired", "mitigated", "reported", "latent", "missed", "mis-repaired")
Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]
_BLOCK = 4096  # bytes, for guards that have no blocks


@dataclass(frozen=True)
class Fault:
    """Bits to invert: bytes of memory with a mask each, and bytes of a guard's own memory."""

    memory: tuple[Places, Bytes] = field(default_factory=lambda: (np.zeros(0, np.int64), np.zeros(0, np.uint8)))
    own: tuple[Places, Bytes] = field(default_factory=lambda: (np.zeros(0, np.int64), np.zeros(0, np.uint8)))


class Target:
    """A copy of a model's memory, a guard over it, and what both were.

    Attributes:
        flat: all memory, laid out end to end.
        places: of the bytes that the guard protects, in ``flat``.
        groups: blocks of which the guard can repair one per group, as places; stand-ins where a guard has none.
    """

    def __init__(self, memory: Mapping[str, Tensor], protection: hp.protections.Protection) -> None:
        self.tensors = dict(zip(memory, end_to_end(list(memory.values())), strict=True))
        arena = arena_around(next(iter(self.tensors.values())))
        assert arena is not None
        self.offsets = {name: tensor.data_ptr() - arena.data_ptr() for name, tensor in self.tensors.items()}
        self.flat: Bytes = arena.numpy()
        self.label = protection.label
        armed = protection.arm(self.tensors)
        assert armed is not None
        self.guard: hp.protections.Guard = armed
        self.own = [_bytes_of(copy) for copy in armed.copies.values()]
        self.own_starts = np.cumsum([0, *(len(own) for own in self.own)])
        self.saved, self.own_saved = self.flat.copy(), [own.copy() for own in self.own]
        self.places = self._protected(protection)
        self.is_protected = np.zeros(len(self.flat), dtype=bool)
        self.is_protected[self.places] = True
        self.groups = self._groups()

    def _protected(self, protection: hp.protections.Protection) -> Places:
        chosen = []
        if isinstance(protection, hp.Aspis):
            for name, indices in protection.scores.top(protection.fraction).items():
                first = self.offsets[name] + 4 * np.sort(indices.numpy())
                chosen.append((first[:, None] + np.arange(4)).reshape(-1))
        else:
            chosen = [self.offsets[name] + np.arange(tensor.nbytes) for name, tensor in self.tensors.items()]
        return np.concatenate(chosen).astype(np.int64)

    def _groups(self) -> list[list[Places]]:
        if not isinstance(self.guard, ParityGuard):
            blocks = np.array_split(self.places, -(-len(self.places) // _BLOCK))
            return [blocks[first : first + 8] for first in range(0, len(blocks) - 1, 8)]
        base = self.flat.ctypes.data
        found = []
        for part in self.guard.parts:
            for group in part.groups:
                blocks = []
                for row in range(group.matrix.rows):
                    covered = group.matrix.covered(group.number, row)
                    pieces = [run.tensor.data_ptr() - base + np.arange(start, stop) for run, start, stop, _ in covered]
                    blocks += [np.concatenate(pieces)] if pieces else []
                found.append([block for block in blocks if len(block) >= 16])
        return [blocks for blocks in found if len(blocks) > 1]

    def strike(self, fault: Fault) -> None:
        """Invert the bits."""
        places, masks = fault.memory
        np.bitwise_xor.at(self.flat, places, masks)
        for place, mask in zip(*fault.own, strict=True):
            number = int(np.searchsorted(self.own_starts, place, side="right")) - 1
            self.own[number][place - self.own_starts[number]] ^= mask

    def attack(self, fault: Fault) -> str:
        """What becomes of a fault; everything is put back.

        Mitigated: the guard says so, and what was struck is right or zero; what was right may have become zero with it.
        Where it says so and something struck is left, that is missed.
        """
        self.strike(fault)
        struck, mitigated = self.flat.copy(), False
        own_struck = [own.copy() for own in self.own] if len(fault.own[0]) else self.own_saved
        try:
            report = self.guard.check()
            reported, mitigated = report.uncorrectable > 0, report.mitigated > 0 and len(fault.memory[0]) > 0
        except hp.protections.StaleGuardError:
            reported = True
        right = np.array_equal(self.flat, self.saved)
        own_right = all(map(np.array_equal, self.own, self.own_saved))
        spoilt = not right and not np.all((self.flat == self.saved) | (self.flat == struck))
        for now, saved, hit in zip(self.own, self.own_saved, own_struck, strict=True):
            spoilt |= not np.array_equal(now, saved) and not np.all((now == saved) | (now == hit))
        at = fault.memory[0]
        left = not np.all((self.flat[at] == self.saved[at]) | (self.flat[at] == 0))
        if not right:
            self.flat[:] = self.saved
        if not own_right:
            for now, saved in zip(self.own, self.own_saved, strict=True):
                now[:] = saved
        if mitigated and not right and not reported:
            return "missed" if left else "mitigated"
        if spoilt:
            return "mis-repaired"
        if right and own_right:
            return "repaired"
        return "reported" if reported else "latent" if right else "missed"


def _bytes_of(tensor: Tensor) -> Bytes:
    return np.asarray(tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy())


Draw = Callable[[Target, np.random.Generator], Fault]


def _bits(pool: Places, count: int, rng: np.random.Generator) -> tuple[Places, Bytes]:
    """Distinct bits of the bytes at these places."""
    bits = rng.choice(8 * len(pool), count, replace=False, shuffle=False) if len(pool) < 64 else _few(pool, count, rng)
    return pool[bits // 8], (1 << bits % 8).astype(np.uint8)


def _few(pool: Places, count: int, rng: np.random.Generator) -> Places:
    """Distinct numbers of bits, without a list of all."""
    while len(set((bits := rng.integers(8 * len(pool), size=count)).tolist())) < count:
        pass
    return bits


def random_bits(count: int) -> Draw:
    return lambda target, rng: Fault(_bits(target.places, count, rng))


def _block(target: Target, rng: np.random.Generator) -> Places:
    group = target.groups[rng.integers(len(target.groups))]
    return group[rng.integers(len(group))]


def burst(target: Target, rng: np.random.Generator) -> Fault:
    """Up to as many neighbouring bytes as a block has, anywhere, each changed."""
    length = rng.integers(1, len(_block(target, rng)) + 1)
    first = rng.integers(len(target.places) - length + 1)
    return Fault((target.places[first : first + length], rng.integers(1, 256, length, dtype=np.uint8)))


def word_bits(count: int) -> Draw:
    """Bits of one aligned word of 32 bits."""

    def draw(target: Target, rng: np.random.Generator) -> Fault:
        first = target.places[rng.integers(len(target.places))] // 4 * 4
        return Fault(_bits(first + np.arange(4), count, rng))

    return draw


def line(target: Target, rng: np.random.Generator) -> Fault:
    """All bytes of an aligned line of 64, as far as they are protected, each changed."""
    places = target.places[rng.integers(len(target.places))] // 64 * 64 + np.arange(64)
    return _garbled(target, places[places < len(target.flat)], rng)


def whole_filter(target: Target, rng: np.random.Generator) -> Fault:
    """All bytes of the weights of one output channel or neuron, as far as they are protected, each changed."""
    names = [name for name, tensor in target.tensors.items() if tensor.dim() > 1]
    places = np.zeros(0, np.int64)
    while not target.is_protected[places].any():
        name = names[rng.integers(len(names))]
        rows = np.arange(target.tensors[name].nbytes).reshape(len(target.tensors[name]), -1)
        places = target.offsets[name] + rows[rng.integers(len(rows))]
    return _garbled(target, places, rng)


def _garbled(target: Target, places: Places, rng: np.random.Generator) -> Fault:
    places = places[target.is_protected[places]]
    return Fault((places, rng.integers(1, 256, len(places), dtype=np.uint8)))


def two_in_block(target: Target, rng: np.random.Generator) -> Fault:
    return Fault(_bits(_block(target, rng), 2, rng))


def lane_pair(target: Target, rng: np.random.Generator) -> Fault:
    """The same bit of two 64-bit words of a block."""
    block = _block(target, rng)
    words = rng.choice(len(block) // 8, 2, replace=False)
    byte, bit = rng.integers(8, size=2)
    return Fault((block[8 * words + byte], np.full(2, 1 << bit, np.uint8)))


def _line(target: Target, rng: np.random.Generator, *, column: bool) -> Fault:
    """The same bit of all elements of a row, or of a column, of a weight matrix: as far as they are protected."""
    names = [name for name, tensor in target.tensors.items() if tensor.dim() > 1 and tensor.dtype == torch.float32]
    while True:
        name = names[rng.integers(len(names))]
        tensor = target.tensors[name]
        places = target.offsets[name] + 4 * np.arange(tensor.numel()).reshape(len(tensor), -1)
        line = places[:, rng.integers(places.shape[1])] if column else places[rng.integers(places.shape[0])]
        byte, bit = rng.integers(4), rng.integers(8)
        line = line[target.is_protected[line]] + byte
        if len(line):
            return Fault((line, np.full(len(line), 1 << bit, np.uint8)))


def column_fault(target: Target, rng: np.random.Generator) -> Fault:
    return _line(target, rng, column=True)


def row_fault(target: Target, rng: np.random.Generator) -> Fault:
    return _line(target, rng, column=False)


def _two_blocks(target: Target, rng: np.random.Generator) -> tuple[Places, Places]:
    group = target.groups[rng.integers(len(target.groups))]
    one, other = rng.choice(len(group), 2, replace=False)
    return group[one], group[other]


def two_blocks(target: Target, rng: np.random.Generator) -> Fault:
    """A random bit in each of two blocks of one group."""
    parts = [_bits(block, 1, rng) for block in _two_blocks(target, rng)]
    return Fault((np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])))


def same_column(target: Target, rng: np.random.Generator) -> Fault:
    """The same bit of the same place in two blocks of one group: what parity misses if the flips cancel."""
    one, other = _two_blocks(target, rng)
    byte, bit = rng.integers(min(len(one), len(other))), rng.integers(8)
    return Fault((np.array([one[byte], other[byte]]), np.full(2, 1 << bit, np.uint8)))


def own_bits(count: int) -> Draw:
    """Bits of the guard's own memory."""
    return lambda target, rng: Fault(own=_bits(np.arange(target.own_starts[-1]), count, rng))


def own_and_memory(target: Target, rng: np.random.Generator) -> Fault:
    return Fault(random_bits(1)(target, rng).memory, own_bits(1)(target, rng).own)


CLASSES: Mapping[str, tuple[int, Draw]] = {
    "1 random bit": (100_000, random_bits(1)),
    "2 random bits": (100_000, random_bits(2)),
    "3 random bits": (100_000, random_bits(3)),
    "burst up to a block": (10_000, burst),
    "2 bits in a block": (10_000, two_in_block),
    "a bit lane of a block": (10_000, lane_pair),
    "column of a weight": (10_000, column_fault),
    "row of a weight": (10_000, row_fault),
    "2 blocks of a group": (10_000, two_blocks),
    "1 bit of the guard": (10_000, own_bits(1)),
    "2 bits of the guard": (10_000, own_bits(2)),
    "guard and memory": (10_000, own_and_memory),
    "same bit of a column": (10_000, same_column),
    "2 bits of a word": (10_000, word_bits(2)),
    "3 bits of a word": (10_000, word_bits(3)),
    "line of 64 bytes": (10_000, line),
    "whole filter": (10_000, whole_filter),
}
_OWN = ("1 bit of the guard", "2 bits of the guard", "guard and memory")


def stated_miss(target: Target, name: str) -> float | None:
    """How probably at most, by the class that the guard states; None where it states nothing for this kind of fault."""
    if not isinstance(target.guard, ParityGuard):
        return None
    cancels = 65 / 128  # opposite directions, or bit 63 in any
    if name.endswith("random bits"):
        return {"2": 1, "3": 3}[name[0]] * target.guard.miss_probability
    if name == "2 blocks of a group":
        columns = [group.matrix.columns for part in target.guard.parts for group in part.groups]
        return float(np.mean([cancels / (64 * count) for count in columns]))
    if name in ("column of a weight", "whole filter"):
        return None
    return cancels if name == "same bit of a column" else 0.0


def attack(target: Target, name: str, count: int, *, seed: int) -> dict[str, Any]:
    """Counts of outcomes of one class of faults; the same faults for the same seed."""
    rng = np.random.default_rng([seed, list(CLASSES).index(name)])
    draw = CLASSES[name][1]
    outcomes = Counter(target.attack(draw(target, rng)) for _ in range(count))
    found = {outcome: outcomes[outcome] for outcome in OUTCOMES}
    return {"guard": target.label, "faults": name, "count": count, **found, "stated_miss": stated_miss(target, name)}


def protections(memory: Mapping[str, Tensor]) -> dict[str, hp.protections.Protection]:
    """Parity, element-wise TMR, Aspis by magnitude (outcomes do not depend on the score), and the baselines."""
    weights = {name: tensor.detach().abs() for name, tensor in memory.items() if tensor.dim() > 1}
    scores = hp.Scores(weights)
    chosen: list[hp.protections.Protection] = [hp.Parity(), hp.TMR(), hp.Aspis(scores, 1.0), hp.Aspis(scores, 0.1)]
    chosen += [hp.guards.StructuralCoding(), hp.guards.Radar(), hp.guards.SecDedMemory()]
    return {protection.label: protection for protection in chosen}


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    found = Table(
        "guard", "faults", *("count", *OUTCOMES, "missed, stated at most"), title="One check after each fault"
    )
    for row in rows:
        counts = [f"{row[key]:,}" for key in ("count", *OUTCOMES)]
        stated = row["stated_miss"]
        found.add_row(row["guard"], row["faults"], *counts, "" if stated is None else f"{stated * row['count']:.3g}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet20-cifar10")
    parser.add_argument("--guards", nargs="+", help="labels, such as parity, tmr, aspis-100%%, aspis-10%%")
    parser.add_argument("--classes", nargs="+", choices=list(CLASSES), default=list(CLASSES))
    parser.add_argument("--share", type=float, default=1.0, help="of the full counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="LeNet, which needs no files, and few faults")
    given = parser.parse_args(arguments)
    if given.quick:
        given.model, given.share = "lenet-digits", 0.001
    torch.set_num_threads(1)
    module = resolve_model(given.model).module
    memory = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    known = protections(memory)
    rows = []
    for label in given.guards or known:
        target = Target(memory, known[label])
        rows += [
            attack(target, name, max(1, round(CLASSES[name][0] * given.share)), seed=given.seed)
            for name in track(given.classes, label, console=Console(stderr=True))
            if name not in _OWN or target.own_starts[-1]
        ]
    Console(width=140).print(table(rows))
    if given.json:
        content = {"model": given.model, "seed": given.seed, "torch": torch.__version__, "cases": rows}
        given.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
