"""Entries of the zoo: a model with an example batch, and data with its two parts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from hoplon.errors import checked
from hoplon.program.given.example import Example
from hoplon.program.inputs import Inputs


@checked
@dataclass(frozen=True, eq=False)
class ZooModel:
    """A model ready to be captured.

    Attributes:
        name: what the model was asked for by.
        module: in eval mode; called with one batch it returns one row of outputs per sample.
        example: an input batch of at least two samples, batch first; or a whole call.
        task: what the outputs mean; ``"classification"`` is one logit per class, ``"degrees"`` and ``"radians"`` are
            one angle.
        any_size: the example is one of many that the module takes: that of the data may stand in its place.
    """

    name: str
    module: nn.Module
    example: Tensor | Example
    task: str = "classification"
    any_size: bool = False

    def for_data(self, data: Inputs) -> ZooModel:
        """The model with samples of the data as its example, where it takes inputs of any size and theirs differ."""
        own = Inputs(Example.of(self.example).x) if self.any_size else data
        if [tensor.shape[1:] for tensor in own.tensors] == [tensor.shape[1:] for tensor in data.tensors] and (
            own.names == data.names
        ):
            return self
        few = data.take(range(min(_SAMPLES, len(data))))
        kwargs = dict(zip(data.names, few.tensors, strict=True)) if data.names else {}
        return replace(self, example=Example(() if kwargs else few.tensors, kwargs))


_SAMPLES = 4  # of an example


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
