"""Faults that stay: the probability that at least one of the inferences which a fault meets goes wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, final

import numpy as np
import scipy
from annotated_types import Ge, Le

from hoplon.errors import HoplonError, checked
from hoplon.stats.intervals import Floats, Ints

Exposure = Annotated[int, Ge(1), Le(10**15)]
InputsAre = Literal["drawn", "given"]


@final
@dataclass(frozen=True, eq=False)
class AnyFailure:
    """By fault, what stands for the probability of at least one failing inference.

    ``estimate``: float64, shape ``(faults,)``, in [0, 1], whose mean is the estimate; ``above``: likewise, in [0,
    ``reach``], whose expectation is at least the probability. ``exact``: both are the same, and nothing is left open
    beyond chance in the faults.
    """

    estimate: Floats
    above: Floats
    reach: float
    exact: bool


@checked
def any_failure(failing: np.ndarray, inputs: np.ndarray, *, exposure: Exposure, inputs_are: InputsAre) -> AnyFailure:
    """Estimate the probability that a fault makes at least one inference fail before the memory is written again.

    Memory is written every ``n = exposure`` inferences; a fault comes at any time between, so it meets 1, 2, ... or n
    of them, all equally likely. With the share s of inputs that fail it is the mean over j of ``1 - (1 - s)^j``.

    - ``"given"``: the device meets the inputs of the run again and again, each equally likely and independent of those
      before. Then s = x/m is known, x of m inputs, and so is the probability.
    - ``"drawn"``: the inputs of the run are m independent draws of what the device meets. ``1 - (1 - x/m)^j`` would be
      too low on average (Jensen), for rare faults by far. The probability that j inputs drawn from the m without
      replacement hold a failing one, ``1 - C(m - x, j) / C(m, j)``, is unbiased, and nothing else is; it exists for j
      up to m. Beyond, m inputs tell two things: it is at least what m inferences show, and, since
      ``1 - (1 - s)^j`` is concave in j, at most j/m times that. The first is the estimate, the second its upper bound.

    Args:
        failing: shape ``(faults,)``, x: how many of its inputs a fault makes fail, integers.
        inputs: shape ``(faults,)``, m: how many it met, at least 1.
        exposure: n, inferences from one writing of the memory to the next.
        inputs_are: "drawn" or "given".
    Raises:
        HoplonError: counts that do not fit.
    Source:
        The unbiased estimator is Hurlbert's rarefaction, Ecology 52 (1971) 577-586, with inputs as individuals; that
        none exists beyond m: Halmos, Annals of Mathematical Statistics 17 (1946) 34-43. Sums over j by the identity
        ``sum over j of C(m - j, x) = C(m + 1, x + 1)``.
    Example:
        >>> found = any_failure(np.array([0, 1, 4]), np.array([4, 4, 4]), exposure=2, inputs_are="drawn")
        >>> found.estimate.tolist()  # means of 1/4 and 1/2, of 1 and 1
        [0.0, 0.375, 1.0]
    """
    x, m = np.asarray(failing, dtype=np.int64), np.asarray(inputs, dtype=np.int64)
    if x.ndim != 1 or x.shape != m.shape or (m < 1).any() or (x < 0).any() or (x > m).any():
        raise HoplonError("expected for each fault its failing inputs, in [0, inputs], and at least one input")
    if inputs_are == "given":
        known = 1 - _mean_survival(x / m, exposure)
        return AnyFailure(known, known, 1.0, exact=True)
    within = np.minimum(exposure, m)
    inside = within - _survivals(x, m, within)  # sum over j of the probability, as far as it is known
    beyond, seen = exposure - within, (x > 0).astype(np.float64)
    steps = beyond * (within + 1 + exposure) / 2 / m  # sum over j > m of j/m
    estimate, above = (inside + beyond * seen) / exposure, (inside + steps * seen) / exposure
    reach = float(((within + steps) / exposure).max(initial=1.0))
    return AnyFailure(estimate.clip(0, 1), above.clip(0, reach), reach, exact=not beyond.any())


def _mean_survival(share: Floats, exposure: int) -> Floats:
    """The mean over j from 1 to the exposure of ``(1 - share)^j``."""
    log = np.log1p(-share, out=np.full_like(share, -np.inf), where=share < 1)
    gone = -np.expm1(exposure * log)  # 1 - q^n
    some = share > 0
    return np.where(some, (1 - share) * gone / (exposure * np.where(some, share, 1.0)), 1.0)


def _survivals(x: Ints, m: Ints, up_to: Ints) -> Floats:
    """The sum over j from 1 to ``up_to`` of the probability that j inputs out of m hold none of x failing ones."""
    left = m - up_to
    rest = np.where(left >= x + 1, np.exp(_log_choose(left, x + 1) - _log_choose(m, x)), 0.0)
    found: Floats = (m + 1) / (x + 1) - rest - 1
    return found


def _log_choose(n: Ints, k: Ints) -> Floats:
    """The logarithm of n over k, where k is at most n; anything elsewhere."""
    gammaln = scipy.special.gammaln
    found: Floats = gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(np.maximum(n - k, 0) + 1.0)
    return found
