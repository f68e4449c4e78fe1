"""Faulty outputs from the golden run, without redoing what the fault cannot touch."""

from __future__ import annotations

from hoplon.injection.replay.eager import EagerReplay
from hoplon.injection.replay.golden import Golden, Hits, Placement, Struck
from hoplon.injection.replay.packed import Changed, PackedReplay
from hoplon.injection.replay.regions import RegionReplay, fits
from hoplon.injection.replay.replay import Replay

__all__ = [
    "Changed",
    "EagerReplay",
    "Golden",
    "Hits",
    "PackedReplay",
    "Placement",
    "RegionReplay",
    "Replay",
    "Struck",
    "fits",
]
