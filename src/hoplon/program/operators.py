"""One table of the ATen operators: what each is called in all forms of a model, and what it does to values.

Whoever asks what an operator *is* asks here: names of sites, replay, masking, bounds, scores, FLOP counts. An operator
that the table does not name is of the kind of its own bare name, and nothing is assumed of it.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Literal

Trait = Literal["passive", "shape", "pointwise", "exact", "settles", "activation", "selects", "averages"]
"""Properties of an operator.

``passive``: copies, rearranges or selects values without changing any (true views are known by their schema);
``shape``: reads the shape of a tensor and none of its values; ``pointwise``: makes an element of the same elements of
its operands alone; ``exact``: pointwise, by operations that IEEE 754 rounds correctly, so that no shape of a tensor
changes a bit; ``settles``: exact, and different operands may give one result, so that a comparison with golden pays;
``activation``: an activation function; ``selects``: each output lies between the smallest and the largest value that
is read; ``averages``: the same, up to rounding.
"""

_DIMENSIONS = (1, 2, 3)


def _each(*patterns: str) -> str:
    """Names for one, two and three spatial dimensions."""
    return " ".join(pattern.format(n) for pattern in patterns for n in _DIMENSIONS)


# kind ("": that of the bare name), bare names, traits
_ROWS = (
    ("conv", _each("conv{}d") + " convolution _convolution mkldnn_convolution", ""),
    ("conv_transpose", _each("conv_transpose{}d"), ""),
    ("linear", "linear addmm", ""),
    ("matmul", "matmul mm bmm", ""),
    ("batch_norm", "_native_batch_norm_legit_no_training", "pointwise"),
    ("batch_norm", "batch_norm _native_batch_norm_legit native_batch_norm cudnn_batch_norm", ""),
    ("layer_norm", "layer_norm native_layer_norm", ""),
    ("group_norm", "group_norm native_group_norm", ""),
    ("attention", "scaled_dot_product_attention", ""),
    # activations; clamp is one since many a ReLU or ReLU6 is written so, though unlike them it lets NaN pass; the arc
    # tangent is one since a network for steering ends in it (Ranger, section IV-C)
    ("", "relu clamp_min clamp_max", "pointwise exact settles activation"),
    ("hardtanh", "hardtanh relu6", "pointwise exact settles activation"),
    ("clamp", "clamp clip", "pointwise exact settles activation"),
    ("", "leaky_relu", "pointwise exact activation"),
    ("elu", "elu selu celu", "pointwise activation"),
    ("prelu", "_prelu_kernel", "pointwise activation"),
    ("prelu", "prelu", "activation"),
    ("rrelu", "rrelu rrelu_with_noise rrelu_with_noise_functional", "activation"),
    ("", "sigmoid tanh silu gelu mish softplus hardswish hardsigmoid", "pointwise activation"),
    ("", "softsign glu log_sigmoid tanhshrink atan hardshrink softshrink threshold", "activation"),
    ("softmax", "softmax _softmax", "activation"),
    ("log_softmax", "log_softmax _log_softmax", "activation"),
    # arithmetic
    ("", "add neg abs", "pointwise exact"),
    ("sub", "sub subtract", "pointwise exact"),
    ("mul", "mul multiply", "pointwise exact"),
    ("div", "div true_divide divide", "pointwise"),
    ("", "exp sqrt rsqrt square", "pointwise"),
    ("", "maximum minimum", "pointwise exact settles selects"),
    # pooling, and what takes values from others
    ("max_pool", _each("max_pool{}d", "max_pool{}d_with_indices"), "selects"),
    ("adaptive_max_pool", _each("adaptive_max_pool{}d"), "selects"),
    ("avg_pool", _each("avg_pool{}d"), "averages"),
    ("adaptive_avg_pool", _each("adaptive_avg_pool{}d", "_adaptive_avg_pool{}d"), "averages"),
    ("", "mean upsample_linear1d upsample_bilinear2d upsample_trilinear3d", "averages"),
    ("", "upsample_nearest1d upsample_nearest2d upsample_nearest3d", "selects"),
    ("", _each("reflection_pad{}d", "replication_pad{}d"), "selects"),
    ("pad", "pad constant_pad_nd", "selects"),
    ("cat", "cat concat concatenate", "selects"),
    ("", "amax amin max min median sort topk stack hstack vstack dstack column_stack type_as where", "selects"),
    ("", "pixel_shuffle pixel_unshuffle channel_shuffle flip roll repeat repeat_interleave tile", "selects"),
    ("", "masked_fill index index_select gather take_along_dim", "selects"),
    # operators that change no value
    ("", "clone", "passive pointwise exact"),
    ("", "detach dropout", "passive pointwise"),
    ("", "_reshape_copy _to_copy _unsafe_view alias alpha_dropout as_strided_scatter contiguous copy", "passive"),
    ("", "diagonal_scatter expand_copy feature_alpha_dropout feature_dropout fill flatten getitem", "passive"),
    ("", "lift_fresh lift_fresh_copy permute_copy reshape select_scatter slice_scatter to unflatten", "passive"),
    ("", "view_copy zero _assert_async _assert_scalar _assert_tensor_metadata", "passive"),
    ("", "zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty", "shape"),
)


@dataclass(frozen=True)
class Operator:
    """What the table holds of one operator."""

    kind: str
    traits: frozenset[str] = frozenset()


_OPERATORS = {
    name: Operator(kind or name, frozenset(traits.split())) for kind, names, traits in _ROWS for name in names.split()
}

ACTIVATION_KINDS = frozenset(entry.kind for entry in _OPERATORS.values() if "activation" in entry.traits)
"""The operator kinds that count as activations; ``relu6`` is a ``hardtanh``, ``selu`` and ``celu`` are ``elu``."""


def operator_name(target: Any) -> str:
    """The bare name of an ATen operator: no namespace, no overload, no in-place underscore.

    Example:
        >>> import torch
        >>> operator_name(torch.ops.aten.relu_.default)
        'relu'
    """
    name = str(getattr(target, "_opname", None) or getattr(target, "__name__", target))
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def canonical_kind(target: Any) -> str:
    """The operator kind that is the same in the raw, functional and eager form of a model.

    Example:
        >>> import torch
        >>> canonical_kind(torch.ops.aten.addmm.default), canonical_kind(torch.ops.aten.conv2d.default)
        ('linear', 'conv')
    """
    name = operator_name(target)
    return _OPERATORS[name].kind if name in _OPERATORS else name


def has(target: Any, trait: Trait) -> bool:
    """Tell whether the table gives an operator this trait.

    Example:
        >>> import torch
        >>> has(torch.ops.aten.relu_.default, "settles"), has(torch.ops.aten.gelu.default, "exact")
        (True, False)
    """
    name = operator_name(target)
    return name in _OPERATORS and trait in _OPERATORS[name].traits


def carries_values(target: Any) -> bool:
    """Tell whether a change of an operator's inputs can change its output at all.

    Example:
        >>> import torch
        >>> carries_values(torch.ops.aten.zeros_like.default), carries_values(torch.ops.aten.relu.default)
        (False, True)
    """
    return not has(target, "shape")


def is_passive(target: Any) -> bool:
    """Tell whether an operator only views, copies or rearranges values, so that its output is no site of its own."""
    if target is operator.getitem or has(target, "passive"):
        return True
    schema = getattr(target, "_schema", None)
    if schema is None:
        return True
    return any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns)
