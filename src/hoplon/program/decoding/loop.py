"""A decoding loop, step by step: the calls that generation makes, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hoplon.program.decoding.choosing import Choice, Draws, choose
from hoplon.program.decoding.models import Cache, CausalModel
from hoplon.program.eager_watch import OperatorCall, OperatorWatch

See = Callable[[int, OperatorCall], None]


@dataclass
class Loop:
    """Generations side by side, all at the same step; to be used under ``torch.inference_mode``.

    ``tokens``: what the next step is called with, int64, shape ``(rows, length)``; ``cache``: of the tokens before;
    ``step``: the number of the next step; ``noise``: as :func:`choose` takes it, by step.
    """

    causal: CausalModel
    tokens: Tensor
    draws: Draws | None = None
    noise: Tensor | None = None
    cache: Cache = field(default_factory=list)
    step: int = 0

    def advance(self) -> Choice:
        """Run one step and choose the next token of each row."""
        logits, self.cache = self.causal(self.tokens, self.cache)
        choice = choose(logits[:, -1], self.draws, None if self.noise is None else self.noise[self.step])
        self.tokens = choice.token.unsqueeze(1)
        self.step += 1
        return choice

    @contextmanager
    def watched(self, see: See) -> Iterator[None]:
        """Show every operator call with the number of its step; ``see`` may overwrite its outputs in place."""
        with watched(self.causal.module, lambda call: see(self.step, call)):
            yield

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, int64, in their order."""
        self.tokens = self.tokens[rows]
        self.cache = [(keys[rows], values[rows]) for keys, values in self.cache]


@contextmanager
def watched(module: nn.Module, see: Callable[[OperatorCall], None]) -> Iterator[None]:
    """Show every operator call of a running model, numbered from the first in every forward.

    What is called in between, to make a cache or to choose a token, belongs to no forward.
    """
    running = False

    def begin(*_: Any) -> None:
        nonlocal running
        running = True
        watch.restart()

    def end(*_: Any) -> None:
        nonlocal running
        running = False

    def see_inside(call: OperatorCall) -> None:
        if running:
            see(call)

    watch = OperatorWatch(module, see_inside)
    handles = [module.register_forward_pre_hook(begin), module.register_forward_hook(end, always_call=True)]
    try:
        with watch.watching():
            yield
    finally:
        for handle in handles:
            handle.remove()
