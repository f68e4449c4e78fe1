"""How often the protections of a hardened module walk over a value, counted from its graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hoplon.harden.lower import HardenedModule
from hoplon.sites import is_passive


def added_passes(module: HardenedModule) -> dict[str, int]:
    """By protected site, the operators that walk over its whole value and that the unprotected graph does not run.

    A view walks over nothing. A bound that took the place of its ReLU adds what it runs less that ReLU: 0 for the
    integer clamp. Nothing is computed; shapes alone go through the protections.
    """
    graph = module.graph_module
    passes: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op != "call_module" or not str(node.target).startswith("_protection_"):
            continue
        site = node.meta.get("protects")
        replaced = site is None
        runs = _walks(graph.get_submodule(str(node.target)), node)
        passes[str(node.meta["site"] if replaced else site)] = runs - int(replaced)
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


def _walks(effect: Callable[[Tensor], object], node: fx.Node) -> int:
    """Operators of one effect on a value shaped like the node's, with a batch of 2 where it is free."""
    like = node.meta["val"]
    shape = [size if isinstance(size, int) else 2 for size in like.shape]
    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True):
        value = torch.empty(shape, dtype=like.dtype, device=like.device)
        with _Walks(value.numel()) as walks:
            effect(value)
    return int(walks.count)
