"""What enters activations that saturate: there a deviation still shows which their outputs hide."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from hoplon.program.operators import canonical_kind
from hoplon.program.program import Program
from hoplon.protections.ranges.activation_sites import Activations, activations
from hoplon.protections.ranges.function_ends import written_range

Saturating = Literal["output", "input"]
"""Where an activation that saturates is bounded: at its output alone, or at what enters it as well."""


def saturating_inputs(program: Program) -> dict[str, str]:
    """By name, the sites whose values enter an activation that ends on both sides; each with that activation.

    ``relu6``, ``hardtanh``, ``sigmoid``, ``tanh`` and the like, written out or not: whatever goes in, their value is
    one that occurs without faults, so no bound of it sees a huge input. Left out are a softmax, of which each value
    depends on many, and inputs that are activations, which have bounds themselves.
    """
    found = activations(program)
    names = {program.site_steps[site.name]: site.name for site in program.value_sites}
    entering: dict[str, str] = {}
    for name in found.sites:
        step = program.site_steps[name]
        if canonical_kind(program.steps[step].op) == "softmax":
            continue
        if all(map(math.isfinite, written_range(program, step))):
            for read in _read_by(program, step, names, found):
                if read not in found.sites and program.value_site(read).dtype.is_floating_point:
                    entering.setdefault(read, name)
    return {site.name: entering[site.name] for site in program.value_sites if site.name in entering}


def _read_by(program: Program, step: int, names: dict[int, str], found: Activations) -> Iterator[str]:
    """The sites that an activation reads, through views and through what is inside of it."""
    waiting, seen = [step], {step}
    while waiting:
        for read in program.steps[waiting.pop()].reads:
            part = program.steps[read]
            if read in seen or part.op is None or not part.carries:
                continue
            seen.add(read)
            if read in names and found.inner.get(names[read]) != names[step]:
                yield names[read]
            else:
                waiting.append(read)
