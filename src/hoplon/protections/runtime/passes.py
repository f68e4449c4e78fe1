"""Passes over a value that the protections of a hardened module add, counted from its graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hoplon.program.operators import is_passive
from hoplon.protections.runtime.hardened_module import HardenedModule


def added_passes(module: HardenedModule) -> dict[str, int]:
    """By protected site, the operators that walk over its whole value and that the unprotected graph does not run.

    A view walks over nothing. A bound that took the place of its ReLU adds what it runs less that ReLU: 0 for the
    integer clamp. Operators that run twice (:class:`Duplicate`) are not listed; :func:`hoplon.costs.count_flops`
    counts them. Nothing is computed; shapes alone go through the protections.
    """
    passes: dict[str, int] = {}
    for node in module.graph_module.graph.nodes:
        if "effect" in node.meta:
            replaced = "protects" not in node.meta
            runs = _walks(module.graph_module, node)
            passes[str(node.meta["site" if replaced else "protects"])] = runs - int(replaced)
    return passes


class _Walks(TorchDispatchMode):
    """Counts the operators that make or change at least as many elements as the value has."""

    def __init__(self, elements: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = elements
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, (tuple, list)) else result
        self.count += isinstance(first, Tensor) and first.numel() >= self.elements and not is_passive(func)
        return result


def _walks(graph_module: fx.GraphModule, node: fx.Node) -> int:
    """Operators of one effect on a value shaped like the node's, with a batch of 2 where it is free."""
    like = node.meta["val"]
    shape = [size if isinstance(size, int) else 2 for size in like.shape]
    call = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else node.target
    assert callable(call), node
    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True):
        value = torch.empty(shape, dtype=like.dtype, device=like.device)
        with _Walks(value.numel()) as walks:
            call(value, *node.args[1:])
    return int(walks.count)
