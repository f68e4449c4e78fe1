"""Protections, one file each, and the way from an overlay to a module that runs."""

from __future__ import annotations

from hoplon.protections.export.bundle import load_bundle, save_bundle
from hoplon.protections.export.formats import export_aoti, export_onnx, export_pt2, exported_program
from hoplon.protections.guards.aspis import Aspis
from hoplon.protections.guards.baselines.checksum import Checksum
from hoplon.protections.guards.baselines.secded import SecDedMemory
from hoplon.protections.guards.baselines.tmr_sparse import TMRSparse
from hoplon.protections.guards.baselines.zero_space import Decoded, zero_space_decode, zero_space_encode
from hoplon.protections.guards.block_aspis import BlockAspis
from hoplon.protections.guards.known_bits.known_bits import KnownBits
from hoplon.protections.guards.parity.parity import Parity
from hoplon.protections.guards.tmr import TMR
from hoplon.protections.runtime.guarded_model import Guarded, guard
from hoplon.protections.runtime.hardened_module import HardenedModule
from hoplon.protections.runtime.lowering import harden, lower
from hoplon.protections.runtime.monitor import GuardEvent, UncorrectableMemory
from hoplon.protections.runtime.passes import added_passes
from hoplon.protections.runtime.schedule import EveryForward, OnDemand, Rotating, When
from hoplon.protections.values.clamp import BoundValue
from hoplon.protections.values.duplicate import Duplicate
from hoplon.protections.values.exceedance import Exceedances, exceedances
from hoplon.protections.values.policy import Clamp, Detect, Policy, RandomInRange, ToZero
from hoplon.protections.values.ranger import Coverage, Ranger
from hoplon.protections.values.tanh_baseline import with_tanh

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
