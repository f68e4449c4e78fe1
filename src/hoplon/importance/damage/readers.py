"""Convolutions and linear layers that read a storage."""

from __future__ import annotations

from collections.abc import Sequence

from hoplon.errors import HoplonError, SiteError
from hoplon.program.operators import canonical_kind
from hoplon.program.program import Program, Ref, Step
from hoplon.program.sites import MemorySite

_KINDS = ("conv", "linear")


def readers_of(program: Program, sites: Sequence[MemorySite], score: str) -> dict[str, list[Step]]:
    """The operators that read each storage as their weight or bias, by its name.

    Args:
        score: what asks, for the errors.
    Raises:
        HoplonError: a program without a graph; SiteError: a storage that another operator reads.
    """
    if not program.has_graph:
        raise HoplonError(
            f"expected a model with a graph for {score}, got {program.name} in eager form; use another score"
        )
    return {site.name: _readers(program, site) for site in sites}


def _readers(program: Program, site: MemorySite) -> list[Step]:
    held = {step for step, name in program.memory_steps.items() if name in (site.name, *site.aliases)}
    found = [program.steps[reader] for step in sorted(held) for reader in program.readers[step]]
    for step in found:
        places = [step.argument(name) for name in ("weight", "bias")]
        if canonical_kind(step.op) not in _KINDS or not any(isinstance(a, Ref) and a.step in held for a in places):
            raise SiteError(
                f"expected weights and biases of convolutions and linear layers, got {site.name}, which {step.label} "
                "reads; narrow the sites"
            )
    return found
