"""Guards with what each promises, and faults that change bits of live tensors through numpy, unseen by torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import hoplon as hp
from hoplon.cli.options.components import guard_components
from hoplon.formats import equal_bits
from hoplon.protections.guards.voting import distinct
from tests.support.examples import example

Bytes = NDArray[np.uint8]


def bytes_of(tensor: Tensor) -> Bytes:
    """Live bytes of a dense tensor, in memory order: shape ``(bytes,)``."""
    if not tensor.numel():
        return np.zeros(0, dtype=np.uint8)
    flat = tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    return np.asarray(flat.numpy())


def flip(tensor: Tensor, bit: int) -> None:
    """Invert one bit of a dense tensor, counted from the lowest of its first byte in memory."""
    bytes_of(tensor)[bit // 8] ^= np.uint8(1 << bit % 8)


Memory = Mapping[str, Tensor]
Promise = Literal["repaired", "mitigated", "uncorrectable", "reported"]


@dataclass(frozen=True)
class Guarded:
    """A guard and what becomes of a changed word: ``flip`` of one high bit, ``burst`` of two in eight neighbours.

    "reported": what its report says. None: outside of its class.
    """

    name: str
    protection: Callable[[Memory], hp.Protection]
    flip: Promise = "reported"
    burst: Promise | None = None


def scores(memory: Memory) -> hp.Scores:
    return hp.Scores({name: torch.ones(tensor.shape) for name, tensor in distinct(memory).items()})


def reloaded(memory: Memory) -> hp.Protection:
    saved = {name: tensor.clone() for name, tensor in memory.items()}
    return hp.guards.Checksum("reload", source=saved.__getitem__)


ROWS = (
    Guarded("tmr", lambda _: hp.TMR(), "repaired", "repaired"),
    Guarded("tmr-tensor", lambda _: hp.TMR(vote="tensor"), "repaired", "repaired"),
    Guarded("aspis", lambda memory: hp.Aspis(scores(memory), 1.0), "repaired", "repaired"),
    Guarded("block-aspis", lambda memory: hp.guards.BlockAspis(scores(memory), 1.0), "repaired", "repaired"),
    Guarded("parity", lambda _: hp.Parity(), "repaired", "repaired"),
    Guarded("known-bits", lambda _: hp.KnownBits(), "repaired", "repaired"),
    Guarded("tmr-sparse", lambda memory: hp.guards.TMRSparse(scores(memory)), "mitigated", "mitigated"),
    Guarded("checksum-flag", lambda _: hp.guards.Checksum("flag"), "uncorrectable", "uncorrectable"),
    Guarded("checksum-zero", lambda _: hp.guards.Checksum("zero"), "mitigated", "mitigated"),
    Guarded("checksum-reload", reloaded, "repaired", "repaired"),
    Guarded("structural-coding", lambda _: hp.guards.StructuralCoding(), "repaired", "repaired"),
    Guarded("radar", lambda _: hp.guards.Radar(group=64, bits=3), "mitigated", "mitigated"),
    Guarded("sec-ded-memory", lambda _: hp.guards.SecDedMemory(), "repaired"),
)
OF_ROWS = {type(row.protection({"w": torch.ones(24, 40)})) for row in ROWS}
GUARDS = ROWS + tuple(
    Guarded(name, lambda memory, guard=guard: example(guard, scores=scores(memory), fraction=1.0))
    for name, guard in guard_components().items()
    if guard.defined not in OF_ROWS
)


def same(left: Memory, right: Memory) -> bool:
    return all(equal_bits(left[name], tensor) for name, tensor in right.items())
