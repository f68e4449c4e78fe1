"""Which bits flip in a struck weight, and which weights are struck."""

from __future__ import annotations

import torch

from hoplon.faults.sampling.plans import EachTopScore, Explicit
from hoplon.faults.single_word import BitFlip
from hoplon.importance.scores import Scores

TOP_BIT = 30
"""Of the exponent of float32: weights below 2 become huge by it."""
_OTHERS = tuple(bit for bit in range(32) if bit != TOP_BIT)

TWO_BITS, THREE_BITS = "2 bits of 32", "3 bits of 32"
WORST, MILD = f"bit {TOP_BIT} and one more", f"2 bits, never bit {TOP_BIT}"
CHANGES = {TWO_BITS: BitFlip(2), THREE_BITS: BitFlip(3), WORST: BitFlip(2), MILD: BitFlip(2, bits=_OTHERS)}
"""Fault models by name; the places of :func:`struck` say themselves which bits the third flips."""


ATTACKED = 0.05
RANDOM_WEIGHTS, WIDER_WEIGHTS = "random weights", f"top {100 * ATTACKED:g} % by half of the data"
"""Struck weights that more than one part of the study strikes."""


def folder_of(change: str) -> str:
    """The name of a fault model in run directories."""
    return change.removesuffix(" of 32").replace(",", "").replace(" ", "-")


def ordered(scores: Scores, count: int, *, seed: int) -> list[tuple[str, int]]:
    """The weights with the ``count`` highest scores, in an order drawn by the seed."""
    listed = EachTopScore(scores.values, min(count, scores.total), seed).listed
    return [(site, element) for site, element, *_ in listed.faults]


def struck(change: str, places: list[tuple[str, int]], *, seed: int) -> Explicit:
    """Faults in these weights: the worst flip the top bit and another, drawn by the seed; others as modelled."""
    if change != WORST:
        return Explicit(places)
    generator = torch.Generator().manual_seed(seed)
    others = torch.randint(len(_OTHERS), (len(places),), generator=generator).tolist()
    pairs = zip(places, others, strict=True)
    return Explicit([(site, element, (TOP_BIT, _OTHERS[other])) for (site, element), other in pairs])
