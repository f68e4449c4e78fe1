"""What a captured model is called with: structure, shapes, dtypes, and where each input holds its batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hoplon.errors import DataError

Call = tuple[tuple[Any, ...], dict[str, Any]]


def copied(call: Call) -> Call:
    """The same inputs in memory of their own: a model may overwrite what it is called with."""
    return pytree.tree_map_only(Tensor, torch.clone, call)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class TensorForm:
    """One tensor input: shape and dtype of the example, the batch axis (None: an input is one sample), its keyword."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    axis: int | None
    keyword: str | None = None

    def __str__(self) -> str:
        sizes = ["batch" if axis == self.axis else str(size) for axis, size in enumerate(self.shape)]
        return f"({', '.join(sizes)})"

    def batched(self, samples: Tensor) -> Tensor:
        """Samples that lie along the first axis as this input."""
        return samples.squeeze(0) if self.axis is None else samples.movedim(0, self.axis).contiguous()

    def fits(self, shape: Sequence[int], fixed_batch: int | None) -> bool:
        """Whether a tensor of this shape can be this input."""
        wanted = list(self.shape)
        if fixed_batch is None and self.axis is not None and len(shape) == len(wanted):
            wanted[self.axis] = shape[self.axis]
        return list(shape) == wanted


@dataclass(frozen=True, eq=False)
class Signature:
    """The inputs of a captured model, as flat leaves: tensors in some form, anything else as in the example.

    ``fixed_batch``: the one batch size that the model takes; None where it is free.
    """

    model: str
    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]
    fixed_batch: int | None = None

    @classmethod
    def of(
        cls,
        model: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        axis: int | None,
        fixed_batch: int | None = None,
    ) -> Signature:
        """The signature that an example call shows."""
        paths, spec = pytree.tree_flatten_with_path((args, dict(kwargs)))
        leaves = tuple(
            TensorForm(tuple(leaf.shape), leaf.dtype, axis, _keyword(path)) if isinstance(leaf, Tensor) else leaf
            for path, leaf in paths
        )
        return cls(model, spec, leaves, fixed_batch)

    @property
    def tensors(self) -> tuple[TensorForm, ...]:
        """The forms of the tensor inputs, in order."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, TensorForm))

    @property
    def axis(self) -> int | None:
        """The batch axis of all tensor inputs; None: an input is one sample."""
        return next((form.axis for form in self.tensors), None)

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
            DataError: another number of tensors, unknown keywords, another shape or dtype.
        """
        forms = self.tensors
        if names is not None:
            by_name = dict(zip(names, samples, strict=True))
            wanted = [form.keyword or "" for form in forms]
            if set(by_name) != set(wanted):
                raise DataError(
                    f"expected inputs named {', '.join(name or '(positional)' for name in wanted)}, got "
                    f"{', '.join(by_name)}; positional inputs have no name: give a tuple in the order of the call"
                )
            samples = [by_name[name] for name in wanted]
        if len(samples) != len(forms):
            raise DataError(f"expected {len(forms)} tensors per sample for {self.model}, got {len(samples)}")
        given = iter(samples)
        return self._checked(
            [form.batched(next(given)) if isinstance(form, TensorForm) else form for form in self.leaves]
        )

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


def _keyword(path: Sequence[Any]) -> str | None:
    """The keyword of a leaf that is a keyword argument itself: its path starts with 1 (0: positional)."""
    if len(path) == 2 and getattr(path[0], "idx", None) == 1:
        return str(path[1].key)
    return None
