"""Faulty outputs from the golden run, without redoing what the fault cannot touch."""

from __future__ import annotations

from hoplon.replay.eager import EagerReplay
from hoplon.replay.golden import Golden, Hits, Placement, Struck
from hoplon.replay.packed import Changed, PackedReplay
from hoplon.replay.passes import Replay
from hoplon.replay.regions import RegionReplay, fits

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
