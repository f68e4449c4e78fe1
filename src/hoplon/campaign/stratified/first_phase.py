"""Outcome of the first of two phases: strata, the share of each, and how many draws it was counted from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from hoplon.stats.intervals import Floats, Ints


@final
@dataclass(frozen=True, eq=False)
class FirstPhase:
    """Candidates counted: every stratum is part of a band, and the probability of a band is known.

    Args:
        counts: candidates of each stratum, int64, shape ``(strata,)``.
        known: failure probability of strata that need no run; NaN for the others.
        band: of each stratum, int64, shape ``(strata,)``.
        weights: the probability of each band, shape ``(bands,)``; they sum to 1.
        drawn: candidates of each band, int64, shape ``(bands,)``.
    """

    counts: Ints
    known: Floats
    band: Ints
    weights: Floats
    drawn: Ints

    @property
    def shares(self) -> Floats:
        """Of all faults in each stratum: shape ``(strata,)``, sum 1."""
        found: Floats = self.counts * (self.weights / self.drawn)[self.band]
        return found

    @property
    def draws(self) -> Floats:
        """Draws of the whole population that each share counts as: see `hoplon.stats.strata_estimates.limits`."""
        return self.draws_of(self.drawn)

    @property
    def sure(self) -> NDArray[np.bool_]:
        """Strata that need no run."""
        found: NDArray[np.bool_] = ~np.isnan(self.known)
        return found

    def draws_of(self, drawn: Ints) -> Floats:
        """The same, were there so many candidates of each band."""
        found: Floats = (drawn / self.weights)[self.band]
        return found

    def members_of(self, drawn: Ints) -> Floats:
        """Candidates that each stratum is expected to have, were there so many of each band."""
        found: Floats = self.counts * (drawn / self.drawn)[self.band]
        return found

    def enough(self, halves: Ints, drawn: Ints) -> Ints:
        """At least so many candidates of each band, and as many as such halves of strata need."""
        short = np.divide(2.2 * halves.max(1), self.counts, out=np.zeros(len(self.counts)), where=self.counts > 0)
        factor = np.zeros(len(self.drawn))
        np.maximum.at(factor, self.band, short)
        return np.maximum(drawn, np.ceil(self.drawn * factor).astype(np.int64))

    def spread(self, guesses: Floats) -> Floats:
        """``weight x standard deviation`` between the strata of each band, what Neyman's rule wants: ``(bands,)``."""
        shares, whole = self.shares, self.weights
        sums = [np.bincount(self.band, shares * guesses**power, minlength=len(whole)) for power in (1, 2)]
        variance = np.clip(sums[1] / whole - (sums[0] / whole) ** 2, 0, None)
        found: Floats = whole * np.sqrt(variance)
        return found
