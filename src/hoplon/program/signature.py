"""What a captured model is called with: structure, shapes, dtypes, and where each input holds its batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hoplon.errors import DataError
from hoplon.formats.base import equal_bits

Call = tuple[tuple[Any, ...], dict[str, Any]]
Axes = tuple[int | None, ...] | None
"""The batch axis of each flat input, None for an input without one; None alone: the inputs are one sample."""


def copied(call: Call) -> Call:
    """The same inputs in memory of their own: a model may overwrite what it is called with."""
    return pytree.tree_map_only(Tensor, torch.clone, call)  # type: ignore[no-any-return]


def by_axis(function: Callable[[Tensor, int], Any], tree: Any, axes: Axes) -> Any:
    """The same structure with a function of tensor and batch axis applied where an input has one."""
    leaves, spec = pytree.tree_flatten(tree)
    pairs = zip(leaves, axes or (None,) * len(leaves), strict=True)
    changed = [leaf if axis is None or not isinstance(leaf, Tensor) else function(leaf, axis) for leaf, axis in pairs]
    return pytree.tree_unflatten(changed, spec)


@dataclass(frozen=True)
class TensorForm:
    """One tensor input: shape and dtype of the example, its keyword, the axes of the batch and of a free length.

    ``axis`` None: an input is one sample.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    axis: int | None
    keyword: str | None = None
    length_axis: int | None = None

    def __str__(self) -> str:
        free = {self.length_axis: "length", self.axis: "batch"}
        return f"({', '.join(free.get(axis, str(size)) for axis, size in enumerate(self.shape))})"

    def batched(self, samples: Tensor) -> Tensor:
        """Samples that lie along the first axis as this input."""
        return samples.squeeze(0) if self.axis is None else samples.movedim(0, self.axis).contiguous()

    def fits(self, shape: Sequence[int], fixed_batch: int | None) -> bool:
        """Whether a tensor of this shape can be this input."""
        wanted = list(self.shape)
        free = [self.axis if fixed_batch is None else None, self.length_axis]
        for axis in (axis for axis in free if axis is not None and len(shape) == len(wanted)):
            wanted[axis] = shape[axis]
        return list(shape) == wanted


@dataclass(frozen=True, eq=False)
class Signature:
    """The inputs of a captured model, as flat leaves: tensors in some form, anything else as in the example.

    A tensor that all samples share is as in the example too.

    ``fixed_batch``: the one batch size that the model takes; None where it is free.
    """

    model: str
    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]
    fixed_batch: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as the structure itself: torch warns of its own tree specs where they are read back."""
        tree = pytree.tree_unflatten(range(len(self.leaves)), self.spec)
        return _of_tree, (self.model, tree, self.leaves, self.fixed_batch)

    @classmethod
    def of(
        cls,
        model: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        axes: Axes,
        fixed_batch: int | None = None,
        lengths: Sequence[int | None] | None = None,
        positional: Sequence[str] = (),
    ) -> Signature:
        """The signature that an example call shows.

        Args:
            positional: names of positional inputs, by which data may hold them.
        """
        paths, spec = pytree.tree_flatten_with_path((args, dict(kwargs)))
        nothing = (None,) * len(paths)
        leaves: list[Any] = []
        for (path, leaf), axis, length in zip(paths, axes or nothing, lengths or nothing, strict=True):
            if isinstance(leaf, Tensor) and (axes is None or axis is not None):
                leaves.append(TensorForm(tuple(leaf.shape), leaf.dtype, axis, _keyword(path, positional), length))
            else:
                leaves.append(leaf.detach().clone() if isinstance(leaf, Tensor) else leaf)
        return cls(model, spec, tuple(leaves), fixed_batch)

    def at(self, call: Call, *, fixed_batch: int) -> Signature:
        """The signature at the sizes of another call, whose batch is fixed."""
        leaves = [
            replace(form, shape=tuple(leaf.shape)) if isinstance(form, TensorForm) else form
            for form, leaf in zip(self.leaves, pytree.tree_leaves(call), strict=True)
        ]
        return replace(self, leaves=tuple(leaves), fixed_batch=fixed_batch)

    @property
    def tensors(self) -> tuple[TensorForm, ...]:
        """The forms of the tensor inputs, in order."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, TensorForm))

    @property
    def axes(self) -> Axes:
        """Where the flat inputs hold their samples."""
        axes = tuple(leaf.axis if isinstance(leaf, TensorForm) else None for leaf in self.leaves)
        return None if all(axis is None for axis in axes) else axes

    @property
    def lengths(self) -> tuple[int | None, ...]:
        """Where the flat inputs hold a free length."""
        return tuple(leaf.length_axis if isinstance(leaf, TensorForm) else None for leaf in self.leaves)

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The flat inputs of a call, checked.

        Raises:
            DataError: another structure, shape or dtype; names the input and both shapes.
        """
        leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
        if spec != self.spec:
            leaves, spec = pytree.tree_flatten((tuple(args), self._in_order(kwargs)))
        if spec != self.spec:
            raise DataError(f"expected inputs of {self.model} structured like {self.spec}, got {spec}")
        return self._checked(leaves)

    def from_samples(self, samples: Sequence[Tensor], names: Sequence[str] | None = None) -> list[Any]:
        """The flat inputs of a pass over samples that lie along the first axis of each tensor.

        Args:
            samples: shape ``(batch, *sample shape)`` each, one per tensor input.
            names: keywords of the samples, in their order; by position where None.
        Raises:
            DataError: another number of tensors, unknown keywords, another shape or dtype, another length than that
                of the example, where lengths are free.
        """
        forms = self.tensors
        if names is not None:
            by_name = dict(zip(names, samples, strict=True))
            wanted = [form.keyword or "" for form in forms]
            if set(by_name) != set(wanted):
                raise DataError(
                    f"expected inputs named {', '.join(name or '(positional)' for name in wanted)}, got "
                    f"{', '.join(by_name)}; give a tuple in the order of the call where they have no name"
                )
            samples = [by_name[name] for name in wanted]
        if len(samples) != len(forms):
            raise DataError(f"expected {len(forms)} tensors per sample for {self.model}, got {len(samples)}")
        given = iter(samples)
        leaves = [form.batched(next(given)) if isinstance(form, TensorForm) else form for form in self.leaves]
        for leaf, form, axis in zip(self._checked(leaves), self.leaves, self.lengths, strict=True):
            if axis is not None and leaf.shape[axis] != form.shape[axis]:
                raise DataError(
                    f"expected samples of length {form.shape[axis]}, as in the example of {self.model}, got "
                    f"{leaf.shape[axis]}; pad them, or capture it with an example of their length"
                )
        return leaves

    def call(self, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments from flat inputs."""
        args, kwargs = pytree.tree_unflatten(list(leaves), self.spec)
        return tuple(args), dict(kwargs)

    def _in_order(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Keywords in the order of the example."""
        example = self.call([None] * len(self.leaves))[1]
        known = {key: kwargs[key] for key in example if key in kwargs}
        return {**known, **{key: value for key, value in kwargs.items() if key not in known}}

    def _checked(self, leaves: list[Any]) -> list[Any]:
        for number, (leaf, form) in enumerate(zip(leaves, self.leaves, strict=True)):
            if isinstance(form, TensorForm):
                self._check(number, leaf, form)
            elif isinstance(form, Tensor):
                if not isinstance(leaf, Tensor) or not equal_bits(form.to(leaf.device), leaf):
                    raise DataError(f"expected input {number} of {self.model}, which samples share, as in the example")
            elif leaf != form:
                raise DataError(
                    f"expected input {number} of {self.model} to be {form!r} as in the example, got {leaf!r}"
                )
        return leaves

    def _check(self, number: int, leaf: Any, form: TensorForm) -> None:
        if not isinstance(leaf, Tensor):
            raise DataError(f"expected input {number} of {self.model} to be a tensor, got {type(leaf).__name__}")
        if not form.fits(leaf.shape, self.fixed_batch):
            fixed = "" if self.fixed_batch is None else f" and a batch of {self.fixed_batch}"
            raise DataError(
                f"expected input {number} of {self.model} with shape {form}{fixed}, got {tuple(leaf.shape)}; "
                "reshape the data or capture the model with an example of this shape"
            )
        if leaf.dtype != form.dtype:
            raise DataError(f"expected input {number} of {self.model} as {form.dtype}, got {leaf.dtype}; cast the data")


def _keyword(path: Sequence[Any], positional: Sequence[str]) -> str | None:
    """The keyword of a leaf that is an argument itself: its path starts with 1, or with 0 for a positional one."""
    if len(path) != 2:
        return None
    if path[0].idx == 1:
        return str(path[1].key)
    return positional[path[1].idx] if path[1].idx < len(positional) else None


def _of_tree(model: str, tree: Any, leaves: tuple[Any, ...], fixed_batch: int | None) -> Signature:
    return Signature(model, pytree.tree_structure(tree), leaves, fixed_batch)
