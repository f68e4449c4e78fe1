"""The manifest of a run: what decides its records, and what computed them.

Manifests are stored, and a run is resumed only where all entries but that of `EXECUTION` are equal: keys and values
stay as they are.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal, NotRequired

import torch
from annotated_types import Ge, Gt, Lt, MinLen
from pydantic import ConfigDict
from typing_extensions import TypedDict

from hoplon.formats.digest import content_digest
from hoplon.injection.golden_run import GoldenRun
from hoplon.injection.injector import Execution
from hoplon.injection.replay.golden import Placement
from hoplon.protections.base import Protection

FORMAT = 1
EXECUTION = "execution"
"""The entry that says how runs were executed by the process that began them: a record, which nothing depends on."""


class _Program(TypedDict):
    name: str
    fingerprint: str


class _Data(TypedDict):
    name: str
    digest: str
    inputs: int


class _Kernels(TypedDict):
    form: Literal["packed"]
    samples: int
    difference: float
    tolerance: float


class Manifest(TypedDict):
    """What every manifest of results says; a campaign's says more."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]

    format: Literal[1]
    target: Literal["values", "memory"]
    criteria: Annotated[list[str], MinLen(1)]
    criterion: str
    placement: Literal["before", "after"]
    program: _Program
    data: _Data
    batch: Annotated[int, Ge(1)]
    threads: Annotated[int, Ge(1)]
    confidence: Annotated[float, Gt(0), Lt(1)]
    versions: dict[str, str]
    kinds: NotRequired[dict[str, str]]
    population: NotRequired[int | None]
    count: NotRequired[int | None]
    arrival: NotRequired[Literal["before", "after"]]
    kernels: NotRequired[_Kernels]
    execution: NotRequired[Execution]


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
    packages = ("hoplon", "torch", "numpy", "scipy", "polars")
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"
