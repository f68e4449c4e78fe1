"""Faults in generation the slow way: the user's own ``generate`` once per fault, hooks and strings of bits.

Shares no code with hoplon but the names of operator kinds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hoplon.program.operators import canonical_kind, is_passive

Generate = Callable[[Tensor], Tensor]


def flipped(value: float, keep: int, flip: int) -> float:
    """A float32 with its word changed."""
    word = np.float32(value).view(np.uint32)
    return float(np.uint32((int(word) & keep) ^ flip).view(np.float32))


@dataclass
class Forwards(TorchDispatchMode):
    """Numbers forwards of a model from 0, the operators in them by owner, kind and call; strikes one element once."""

    model: nn.Module
    operator: str
    step: int
    change: Callable[[Tensor], None]
    forward: int = -1
    owners: list[str] = field(default_factory=list)
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outside = not self.owners or self.forward != self.step
        if outside or is_passive(func) or not isinstance(result, Tensor):
            return result
        owner, kind = self.owners[-1], canonical_kind(func)
        number = self.calls[owner, kind]
        self.calls[owner, kind] += 1
        if f"{owner}:{kind}" + (f".{number}" if number else "") == self.operator:
            self.change(result)
        return result

    def enter(self, name: str) -> Callable[..., None]:
        """A hook in front of a module."""

        def hook(*_: Any) -> None:
            self.owners.append(name)
            if not name:
                self.forward += 1
                self.calls.clear()

        return hook

    def leave(self, *_: Any) -> None:
        """A hook behind a module."""
        self.owners.pop()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count while the model generates."""
        handles = []
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(self.enter(name)))
            handles.append(module.register_forward_hook(self.leave, always_call=True))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def watched_logits(model: nn.Module) -> Iterator[list[bool]]:
    """By forward, whether all logits of the last token are finite."""
    finite: list[bool] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        logits = output[0] if isinstance(output, tuple) else output.logits
        finite.append(bool(logits[:, -1].isfinite().all()))

    handle = model.register_forward_hook(hook)
    try:
        yield finite
    finally:
        handle.remove()


@contextmanager
def struck_cache(
    model: nn.Module, layer: int, kind: str, step: int, change: Callable[[Tensor], None]
) -> Iterator[None]:
    """Change an entry of the cache in front of a step."""
    count = [-1]

    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        count[0] += 1
        if count[0] == step:
            held = next(
                given for given in (*args[1:], kwargs.get("cache"), kwargs.get("past_key_values")) if given is not None
            )
            if hasattr(held, "layers"):
                change(getattr(held.layers[layer], kind))
            else:
                change(held[layer][kind == "values"])

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def naive_run(
    model: nn.Module, generate: Generate, prompt: Tensor, site: str, element: int, keep: int, flip: int
) -> tuple[list[int], bool]:
    """Tokens of one faulty generation, and whether all logits were finite."""

    def change(value: Tensor) -> None:
        where = tuple(int(index) for index in np.unravel_index(element, tuple(value.shape)))
        value[where] = flipped(float(value[where]), keep, flip)

    operator, _, moment = site.rpartition("@")
    step = 0 if moment == "prefill" else int(moment.removeprefix("step"))
    with torch.inference_mode(), watched_logits(model) as finite:
        if operator.startswith("cache."):
            owner, _, kind = operator.partition(":")
            with struck_cache(model, int(owner.removeprefix("cache.")), kind, step, change):
                tokens = generate(prompt)
        else:
            with Forwards(model, operator, step, change).watching():
                tokens = generate(prompt)
    return tokens.flatten().tolist(), all(finite)


def naive_memory_run(
    model: nn.Module, generate: Generate, prompt: Tensor, name: str, element: int, keep: int, flip: int
) -> tuple[list[int], bool]:
    """As `naive_run`, of a word of the model."""
    tensor = dict(model.named_parameters()).get(name)
    held = dict(model.named_buffers())[name] if tensor is None else tensor.data
    where = tuple(int(index) for index in np.unravel_index(element, tuple(held.shape)))
    before = float(held[where])
    with torch.inference_mode(), watched_logits(model) as finite:
        try:
            held[where] = flipped(before, keep, flip)
            tokens = generate(prompt)
        finally:
            held[where] = before
    return tokens.flatten().tolist(), all(finite)


def naive_kind(golden: list[int], tokens: list[int], *, finite: bool, piece: int = 8, repeats: int = 4) -> str:
    """The outcome of a generation."""
    if not finite:
        return "nonfinite"
    if tokens == golden:
        return "identical"

    def loops(text: list[int]) -> bool:
        for size in range(1, piece + 1):
            parts = [text[len(text) - size * (n + 1) : len(text) - size * n] for n in range(repeats)]
            if len(text) >= size * repeats and all(part == parts[0] for part in parts):
                return True
        return False

    broken = 2 * len(tokens) < len(golden) or (loops(tokens) and not loops(golden))
    return "degenerate" if broken else "changed"
