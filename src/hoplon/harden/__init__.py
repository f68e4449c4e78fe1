"""Protections, one file each, and the way from an overlay to a module that runs."""

from __future__ import annotations

from hoplon.harden.aspis import Aspis
from hoplon.harden.block_aspis import BlockAspis
from hoplon.harden.bound import BoundValue
from hoplon.harden.bundle import load_bundle, save_bundle
from hoplon.harden.checksum import Checksum
from hoplon.harden.duplicate import Duplicate
from hoplon.harden.exceedance import Exceedances, exceedances
from hoplon.harden.export import export_aoti, export_onnx, export_pt2, exported_program
from hoplon.harden.guarding import Guarded, guard
from hoplon.harden.known_bits import KnownBits
from hoplon.harden.lower import harden, lower
from hoplon.harden.module import HardenedModule
from hoplon.harden.parity import Parity
from hoplon.harden.passes import added_passes
from hoplon.harden.policy import Clamp, Detect, Policy, RandomInRange, ToZero
from hoplon.harden.ranger import Coverage, Ranger
from hoplon.harden.saturating import with_tanh
from hoplon.harden.schedule import EveryForward, OnDemand, Rotating, When
from hoplon.harden.secded import SecDedMemory
from hoplon.harden.tmr import TMR
from hoplon.harden.tmr_sparse import TMRSparse
from hoplon.harden.watch import GuardEvent, UncorrectableMemory
from hoplon.harden.zero_space import Decoded, zero_space_decode, zero_space_encode

__all__ = [
    "BlockAspis",
    "BoundValue",
    "Checksum",
    "Decoded",
    "Clamp",
    "Coverage",
    "Detect",
    "Duplicate",
    "Exceedances",
    "Parity",
    "Policy",
    "RandomInRange",
    "Ranger",
    "SecDedMemory",
    "ToZero",
    "TMR",
    "TMRSparse",
    "Aspis",
    "EveryForward",
    "GuardEvent",
    "Guarded",
    "HardenedModule",
    "KnownBits",
    "OnDemand",
    "Rotating",
    "When",
    "UncorrectableMemory",
    "added_passes",
    "exceedances",
    "export_aoti",
    "export_onnx",
    "export_pt2",
    "exported_program",
    "guard",
    "harden",
    "load_bundle",
    "lower",
    "save_bundle",
    "with_tanh",
    "zero_space_decode",
    "zero_space_encode",
]
