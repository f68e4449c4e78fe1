"""An example call: the inputs of a model, and where each holds its samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hoplon.errors import CaptureError, checked
from hoplon.program.given.samples import Sample
from hoplon.program.signature import Axes, Call, by_axis

Axis: TypeAlias = int | Mapping[str | int, int | None] | None
"""An axis of all inputs, or by keyword or position; None: an input has none."""


@final
@checked
@dataclass(frozen=True, eq=False)
class Example:
    """A call of a model, as :func:`hoplon.capture` takes it.

    Args:
        args: positional inputs; a single one without a tuple.
        kwargs: keyword inputs.
        batch_axis: where the inputs hold their samples. An axis for all; or by keyword or position, ``{"mask": None}``:
            0 for those that are not named, None for an input that all samples share. None alone: the example is one
            sample.
        length_axis: where the inputs hold a length that may differ from call to call, such as that of a sequence; in
            the same form, an input that is not named has none.
    Example:
        >>> example = Example(kwargs={"input_ids": torch.ones(2, 5), "mask": torch.ones(5)}, batch_axis={"mask": None})
        >>> example.axes
        (0, None)
    """

    args: Any = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    batch_axis: Axis = 0
    length_axis: Axis = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", self.args if isinstance(self.args, tuple) else (self.args,))

    @classmethod
    def of(cls, given: Any) -> Example:
        """The example itself, or a tensor or a tuple of positional inputs as one."""
        return given if isinstance(given, Example) else cls(given)

    @property
    def call(self) -> Call:
        """Positional and keyword inputs."""
        return self.args, dict(self.kwargs)

    @property
    def axes(self) -> Axes:
        """The batch axis of each flat input, None for those without one; None alone if the example is one sample.

        Raises:
            CaptureError: inputs that are not there, or none with samples.
        """
        if self.batch_axis is None:
            return None
        found = self._of_leaves("batch_axis", self.batch_axis, 0)
        if all(axis is None for axis in found):
            raise CaptureError(
                "expected a batch axis in at least one input, got None for all; batch_axis=None for one sample"
            )
        return found

    @property
    def lengths(self) -> tuple[int | None, ...]:
        """The axis of each flat input that has a free length, None for those without one.

        Raises:
            CaptureError: inputs that are not there.
        """
        return self._of_leaves("length_axis", self.length_axis, None)

    def _of_leaves(self, what: str, given: Axis, default: int | None) -> tuple[int | None, ...]:
        by_name = given if isinstance(given, Mapping) else {}
        known = {*range(len(self.args)), *self.kwargs}
        if unknown := [name for name in by_name if name not in known]:
            raise CaptureError(
                f"expected {what} for inputs of the example, got {unknown[0]!r}; they are {', '.join(map(str, known))}"
            )
        axes = []
        for path, leaf in pytree.tree_flatten_with_path(self.call)[0]:
            name: Any = getattr(path[1], "idx", getattr(path[1], "key", None))
            axis = by_name.get(name, default) if isinstance(given, Mapping) else given
            inside = isinstance(leaf, Tensor) and axis is not None and -leaf.dim() <= axis < 0
            axes.append(axis + leaf.dim() if inside else axis)
        return tuple(axes)

    @property
    def x(self) -> Sample:
        """The samples as `Inputs` holds them, without inputs that all of them share.

        Positional inputs beside keywords come first in a tuple of all, as a program takes them.

        Raises:
            CaptureError: nested inputs, which data has not.
        """
        axes = self.axes or (None,) * len(pytree.tree_leaves(self.call))
        named = bool(self.kwargs) and not self.args
        parts: list[tuple[str | int, Any]] = [*enumerate(self.args), *self.kwargs.items()]
        if any(isinstance(part, tuple | list | Mapping) for _, part in parts):
            raise CaptureError("expected an example of tensors side by side, got some in tuples, lists or mappings")
        rows = {
            name: part.movedim(axis, 0) if axis is not None else part.unsqueeze(0)
            for (name, part), axis in zip(parts, axes, strict=True)
            if isinstance(part, Tensor) and (axis is not None or self.batch_axis is None)
        }
        if named:
            return {str(name): row for name, row in rows.items()}
        return tuple(rows.values()) if len(rows) > 1 else next(iter(rows.values()))


def one_sample(call: Call, axes: Axes, row: int = 0) -> Call:
    """One sample of a call, as a batch of one."""
    return by_axis(lambda leaf, axis: leaf.narrow(axis, row, 1).contiguous(), call, axes)  # type: ignore[no-any-return]


def tensors_in(call: Any) -> list[Tensor]:
    """The tensors of a call or an output, in order."""
    return [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor)]


def shapes_of(call: Any) -> str:
    """The shapes of the tensors of a call, for messages."""
    return ", ".join(str(tuple(leaf.shape)) for leaf in tensors_in(call))


def batch_sizes(call: Call, axes: Axes) -> list[int]:
    """The sizes of the batch axes; -1 for an input that has no such axis."""
    pairs = zip(pytree.tree_leaves(call), axes or (), strict=False)
    held = [(leaf, axis) for leaf, axis in pairs if isinstance(leaf, Tensor) and axis is not None]
    return [leaf.shape[axis] if 0 <= axis < leaf.dim() else -1 for leaf, axis in held]


def require_batch(call: Call, axes: Axes) -> None:
    """Refuse inputs that do not have the same number of samples, at least one.

    Raises:
        CaptureError: says the shapes and the ways out.
    """
    sizes = {*batch_sizes(call, axes)}
    if len(sizes) > 1 or -1 in sizes:
        named = " and ".join(str(axis) for axis in dict.fromkeys(axes or ()) if axis is not None)
        raise CaptureError(
            f"expected inputs that share a batch axis {named}, got shapes {shapes_of(call)}; name another batch_axis, "
            "by input where they differ and None for what all samples share, or batch_axis=None for an example that "
            "is one sample"
        )
    if sizes == {0}:
        raise CaptureError("expected an example of at least one sample, got an empty batch")


def at_least_two(call: Call, axes: Axes) -> Call:
    """Repeat a batch of one: an export specialises on sizes 0 and 1, so the batch axis would not stay free."""

    def repeated(leaf: Tensor, axis: int) -> Tensor:
        return torch.cat([leaf, leaf], axis) if leaf.shape[axis] == 1 else leaf

    return by_axis(repeated, call, axes)  # type: ignore[no-any-return]
