"""What protections and samplings learn from calibration data: ranges of activations and scores of weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from hoplon.errors import DataError, Fraction, no_match
from hoplon.importance.scores import Scores
from hoplon.program.inputs import Inputs
from hoplon.program.program import Program
from hoplon.program.sites import Memory, Values
from hoplon.protections.ranges.profile import Profile, QuantileOf
from hoplon.protections.ranges.profiling import profile_activations
from hoplon.protections.ranges.ranges import Ranges
from hoplon.protections.ranges.saturation import Saturating
from hoplon.protections.values.policy import Policy
from hoplon.protections.values.ranger import Where
from hoplon.registry import components

Progress = Callable[[str, int, int], None]


class Learned:
    """Ranges and scores of a program from calibration data; each is computed once, when it is first asked for.

    Args:
        program: fault-free.
        data: calibration samples; labelled, for scores that need a loss. Cross entropy is the loss.
        weights: those that are scored; of convolutions and linear layers by default.
        seed: of scores that draw something.
        progress: told stage, samples done and samples in all.
    """

    def __init__(
        self,
        program: Program,
        data: Inputs,
        *,
        weights: Memory | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.program, self.data = program, data
        self._given: dict[str, Any] = {"seed": seed} | (
            {} if weights is None else {"sites": replace(weights, buffers=False)}
        )
        self._progress: Progress = progress or (lambda stage, done, total: None)
        self._profiles: dict[tuple[bool | str, ...], Profile] = {}
        self._scores: dict[str, Scores] = {}

    def ranges(
        self,
        *,
        quantile: Fraction = 1.0,
        quantile_of: QuantileOf = "values",
        per_channel: bool = False,
        where: Where = "algorithm1",
        last_linear: bool = False,
        saturating: Saturating = "output",
        policy: Policy | None = None,
    ) -> Ranges:
        """Return bounds as :meth:`hoplon.ranges.Profile.ranges`, of what a :class:`Ranger` of these options bounds."""
        medians = policy is not None and policy.takes_medians
        quantiles, every, per_channel = quantile != 1 or medians, where == "all" or last_linear, per_channel or medians
        key = (quantiles, per_channel, every, saturating)
        if key not in self._profiles:
            self._profiles[key] = profile_activations(
                self.program,
                self.data,
                sites=Values() if every else None,
                saturating=saturating,
                quantiles=quantiles,
                per_channel=per_channel,
                progress=partial(self._progress, "activation ranges"),
            )
        return self._profiles[key].ranges(
            quantile=quantile, quantile_of=quantile_of, per_channel=per_channel, medians=medians
        )

    def scores(self, *, score: str = "taylor", **options: Any) -> Scores:
        """Return the scores of this name, see ``hoplon ls scores``.

        Args:
            options: of the score, such as ``sites`` or ``batch``; those that it does not have are left out.
        Raises:
            HoplonError: no such score; DataError: it needs labels, and there are none.
        """
        known = components("score")
        if score not in known:
            raise no_match("score", score, [*known])
        fields = known[score].fields
        if fields.get("loss", (None, None))[1] is inspect.Parameter.empty and self.data.y is None:
            raise DataError(
                f"expected labels in the calibration data {self.data.name!r} for {score}, got none; scores need a "
                "loss: take one that needs none, such as magnitude"
            )
        if score in self._scores and not options:
            return self._scores[score]
        progress = partial(self._progress, "scores of weights")
        given = {"loss": cross_entropy, "progress": progress, **self._given, **options}
        taken = {name: value for name, value in given.items() if name in fields}
        found: Scores = known[score].build(self.program, self.data, **taken)
        if not options:
            self._scores[score] = found
        return found

    @property
    def all_ranges(self) -> list[Ranges]:
        """The extremes of every profile that was made."""
        return [profile.ranges() for profile in self._profiles.values()]

    @property
    def all_scores(self) -> list[Scores]:
        """All scores that were computed."""
        return list(self._scores.values())


def cross_entropy(output: Any, labels: Tensor) -> Tensor:
    """The mean cross entropy of the first floating-point output, in whatever structure the model returns it."""
    logits = next(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return F.cross_entropy(logits, labels)
