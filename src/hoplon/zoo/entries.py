"""Entries of the zoo: a model with an example batch, and data with its two parts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from hoplon.errors import checked
from hoplon.program.inputs import Inputs


@checked
@dataclass(frozen=True, eq=False)
class ZooModel:
    """A model ready to be captured.

    Attributes:
        name: what the model was asked for by.
        module: in eval mode; called with one batch it returns one row of outputs per sample.
        example: an input batch of at least two samples, batch first.
        task: what the outputs mean; ``"classification"`` is one logit per class, ``"degrees"`` and ``"radians"`` are
            one angle.
    """

    name: str
    module: nn.Module
    example: Tensor
    task: str = "classification"


@checked
@dataclass(frozen=True, eq=False)
class ZooData:
    """Data in two parts that share no sample.

    Attributes:
        name: what the data was asked for by.
        calibration: what a protection may learn from: activation ranges, importance scores.
        held_out: what faults are injected into and accuracy is measured on.
        classes: names of the classes, in the order of the logits; empty where unknown.
        targets: for a regression, the true values of both parts, float32 of shape ``(n,)``; in place of labels.
    """

    name: str
    calibration: Inputs
    held_out: Inputs
    classes: tuple[str, ...] = ()
    targets: tuple[Tensor, Tensor] | None = None
