"""The manifest of a run: what decides its records, and what computed them.

Manifests are stored, and a run is resumed only where all entries are equal: keys and values stay as they are.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from hoplon.formats.digest import content_digest
from hoplon.injection.golden_run import GoldenRun
from hoplon.injection.replay.golden import Placement
from hoplon.protections.base import Protection

FORMAT = 1


def provenance(reference: GoldenRun, *, placement: Placement, confidence: float) -> dict[str, Any]:
    """Collect what all runs against one golden run have in common, as plain values."""
    program, data, criterion = reference.program, reference.data, reference.criterion
    return {
        "criteria": list(criterion.names),
        "criterion": repr(criterion),
        "placement": placement,
        "program": {"name": program.name, "fingerprint": program.fingerprint()},
        "data": {"name": data.name, "digest": data.digest(), "inputs": len(data)},
        "eligible_inputs": len(reference.eligible),
        "batch": reference.batch,
        "threads": torch.get_num_threads(),
        "device": str(program.device),
        "confidence": confidence,
        "versions": versions(),
    }


def protected_by(protections: Sequence[Protection]) -> dict[str, Any]:
    """Collect what tells one arm from another."""
    return {
        "protections": [protection.label for protection in protections],
        "protections_digest": content_digest(tuple(protections)),
    }


def versions() -> dict[str, str]:
    """Versions of what a figure depends on: hoplon, Python, torch, numpy, scipy, polars."""
    found = {"python": platform.python_version()}
    for package in ("hoplon", "torch", "numpy", "scipy", "polars"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "unknown"
    return found
