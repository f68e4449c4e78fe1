"""Ranges that the values of an activation function cannot leave, whatever goes in."""

from __future__ import annotations

import math

from hoplon.errors import SiteError, checked
from hoplon.program.program import Program
from hoplon.protections.ranges.activation_sites import activations
from hoplon.protections.ranges.bound import Bound
from hoplon.protections.ranges.function_ends import inherent_range
from hoplon.protections.ranges.ranges import Ranges

INHERENT = "range of the function"
"""The ``choice`` of :func:`inherent_ranges`."""


@checked
def inherent_ranges(program: Program) -> Ranges:
    """The range of each activation whose function is bounded on both sides: ``tanh``, ``sigmoid``, ``relu6``, ...

    No data is needed, no fault-free value can exceed such a bound, and it holds for any weights. A profiled range
    is tighter where the values do not fill the function's.

    Raises:
        SiteError: the program has no such activation.
    """
    found, inner = {}, activations(program).inner
    for site in program.value_sites:
        if site.name in inner:
            continue
        low, high = inherent_range(program.steps[program.site_steps[site.name]])
        if math.isfinite(low) and math.isfinite(high):
            found[site.name] = Bound(low, high)
    if not found:
        kinds = ", ".join(sorted({site.kind for site in program.value_sites}))
        raise SiteError(
            f"expected an activation with a range of its own in {program.name}, got kinds {kinds}; "
            "profile_ranges observes the range of any"
        )
    return Ranges(found, program=program.name, choice=INHERENT)
