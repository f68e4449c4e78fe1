"""The lowest bit of one value whose flip is critical, found with few runs, where harm grows with the bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

from hoplon.campaign.campaign import Campaign
from hoplon.errors import BelowOne, HoplonError, Natural, checked
from hoplon.faults.sampling.plans import Explicit
from hoplon.faults.single_word import BitFlip
from hoplon.formats.dtypes import native
from hoplon.injection.golden_run import GoldenRun
from hoplon.program.sites import GuardMemory, Memory, Values


@final
@dataclass(frozen=True)
class BitBoundary:
    """Result of a search for the lowest critical bit.

    ``lowest``: the lowest bit found critical; None: none was. ``critical``: by bit that was run, whether its flip was.
    ``monotone``: no bit that was run contradicts "from the lowest critical bit on, every one is critical". Where
    False, ``lowest`` is only the lowest one that was seen. ``runs``: bits run.
    """

    lowest: int | None
    critical: dict[int, bool]
    monotone: bool
    runs: int


def search(
    is_critical: Callable[[Sequence[int]], Sequence[bool]], bits: Sequence[int], *, checks: int = 2
) -> BitBoundary:
    """Find the lowest critical of some bits by bisection, then check that the order held.

    Args:
        is_critical: for some bits, whether the flip of each is critical.
        bits: ascending in the change that they make.
        checks: bits run on either side of the boundary beyond those of the bisection; the farthest from bits that are
            known. More find more violations; all bits are known once they suffice.
    Raises:
        HoplonError: no bits, one given twice, or a negative number of checks.
    Source:
        Chen, Li, Pattabiraman and DeBardeleben, BinFI, SC 2019: harm is approximately monotone in the size of the
        deviation, so a binary search finds the boundary. BinFI takes it for granted; here it is checked.
    Example:
        >>> search(lambda bits: [bit >= 27 for bit in bits], range(31)).lowest
        27
    """
    order = list(bits)
    if not order or len(set(order)) != len(order) or checks < 0:
        raise HoplonError(f"expected bits, each once, and at least 0 checks, got {order} and {checks}")
    known: dict[int, bool] = {}

    def run(positions: Sequence[int]) -> None:
        new = [p for p in positions if p not in known]
        if new:
            known.update(zip(new, map(bool, is_critical([order[p] for p in new])), strict=True))

    low, high = -1, len(order)  # low is harmless, high critical, both perhaps beyond the ends
    while high - low > 1:
        middle = (low + high) // 2
        run([middle])
        low, high = (low, middle) if known[middle] else (middle, high)
    for side in (range(high), range(high, len(order))):
        for _ in range(min(checks, len(order))):
            open_ = [p for p in side if p not in known]
            if open_:
                run([max(open_, key=lambda p: min((abs(p - q) for q in known), default=0))])
    critical = sorted(p for p, harm in known.items() if harm)
    lowest = critical[0] if critical else None
    monotone = lowest is None or all(harm == (p >= lowest) for p, harm in known.items())
    by_bit = {order[p]: known[p] for p in sorted(known)}
    return BitBoundary(None if lowest is None else order[lowest], by_bit, monotone, len(known))


@checked
def bit_boundary(
    campaign: Campaign,
    site: str,
    element: Natural,
    *,
    input: Natural | None = None,
    threshold: BelowOne = 0.0,
    checks: Natural = 2,
) -> BitBoundary:
    """The lowest critical bit of one value, exponent and mantissa searched from the lowest bit up.

    The sign bit is left out: its flip changes a value by twice its size, which has no place in the order.

    Args:
        campaign: program, data, criterion, protections; its own fault model and sampling are not used.
        site, element: the value, as a fault table names it.
        input: for a value site, the eligible input; the first by default.
        threshold: for a memory site, a bit is critical where more than this share of the inputs fails.
        checks: see `search`.
    Raises:
        HoplonError, SiteError: an element or input that is not there, or a dtype whose bits have no such order.
    """
    if isinstance(campaign.sites, GuardMemory):
        raise HoplonError("expected sites of the model, got a guard's memory; give Values or Memory")
    selected = {found.name: found for found in campaign.sites.select(campaign.program)}
    if site not in selected:
        raise HoplonError(f"expected a selected site, got {site!r}; among them are {', '.join(list(selected)[:5])}")
    dtype = selected[site].dtype
    if not dtype.is_floating_point:
        raise HoplonError(f"expected a floating-point value, got {dtype}")
    form = native(dtype)
    bits = sorted((*form.field("mantissa"), *form.field("exponent")))
    memory = campaign.target == "memory"
    data = campaign.data
    if not memory:
        data = data.take([_first_eligible(campaign) if input is None else input])

    def is_critical(wanted: Sequence[int]) -> list[bool]:
        one = replace(
            campaign,
            data=data,
            sites=Memory(site) if memory else Values(site),
            fault_model=BitFlip(),
            sampling=Explicit([(site, element, (bit,)) for bit in wanted]),
            arrival="before",
        )
        return [share > threshold for share in one.run().failing_shares().tolist()]

    return search(is_critical, bits, checks=checks)


def _first_eligible(campaign: Campaign) -> int:
    """The first input on which failures count."""
    reference = GoldenRun.run(campaign.program, campaign.data, campaign.criterion, batch=campaign.batch)
    return int(reference.eligible[0])
