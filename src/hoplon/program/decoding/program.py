"""A decoding loop as a program: its outputs are the tokens of a generation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from hoplon.errors import HoplonError, checked
from hoplon.program.decoding.choosing import Draws
from hoplon.program.decoding.loop import Loop
from hoplon.program.decoding.models import CausalModel
from hoplon.program.decoding.sites import OF_TOKENS, DecodingSite, Extent, Roles
from hoplon.program.eager import holding
from hoplon.program.program import Hook, Program

NO_TOKEN = -1
"""What stands behind the end of a generation."""


@final
@checked
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class DecodingProgram(Program):
    """A language model that generates, from :func:`hoplon.program.capture_decoder`.

    Its flat outputs are tokens, int64, shape ``(prompts, new_tokens)``, `NO_TOKEN` behind an end; and the same as
    float32, NaN where a logit that the token was chosen from is not finite: nothing behind it was run.

    ``roles``: by operator and whether it is the prefill's, where values lie in a pass over several prompts and tokens;
    ``site_steps`` are decoding steps, of which a site's name ends in. ``steps`` are the operator calls of the prefill.
    """

    causal: CausalModel
    prompts: Tensor
    new_tokens: int
    stops: tuple[int, ...] = ()
    draws: Draws | None = None
    roles: Mapping[tuple[str, bool], Roles]

    def __repr__(self) -> str:
        """One line."""
        return (
            f"<DecodingProgram {self.name}: {self.new_tokens} tokens after {self.prompt_length}; "
            f"{len(self.value_sites)} value sites, {len(self.input_sites)} cache sites, "
            f"{len(self.memory_sites)} memory sites>"
        )

    @property
    def prompt_length(self) -> int:
        """Tokens of every prompt."""
        return int(self.prompts.shape[1])

    @cached_property
    def noise(self) -> Tensor | None:
        """The random numbers of a generation, by token; None where the likeliest one is taken."""
        if self.draws is None:
            return None
        with torch.inference_mode():
            logits, _ = self.causal(self.prompts[:1], [])
        return self.draws.noise(self.new_tokens, logits.shape[-1]).to(logits.device)

    def loop(self, prompts: Tensor) -> Loop:
        """Generations of some prompts, ``(n, length)``, before their first step."""
        return Loop(self.causal, prompts, self.draws, self.noise)

    def extent(self, step: int) -> Extent:
        """The sizes of a step for one prompt."""
        length = self.prompt_length
        return Extent(1, 1 if step else length, length + step)

    @cached_property
    def _by_name(self) -> dict[str, DecodingSite]:
        sites = (*self.value_sites, *self.input_sites)  # thousands, and as many are looked for
        return {site.name: site for site in sites if isinstance(site, DecodingSite)}

    def value_site(self, name: str) -> DecodingSite:
        """The value site or cache of this name."""
        if name not in self._by_name:
            super().value_site(name)  # which refuses it
        return self._by_name[name]

    def roles_at(self, site: DecodingSite) -> Roles | None:
        """Roles of the axes of an operator's output; None where it is not known how they go together."""
        return self.roles.get((site.operator, not site.step))

    def goes_together(self, site: DecodingSite) -> bool:
        """Tell whether faults at a site can be run side by side: in a cache, or in a value of tokens computed."""
        roles = self.roles_at(site)
        return site.is_cache or (roles is not None and not OF_TOKENS.isdisjoint(roles))

    def run(
        self, leaves: Sequence[Any], memory: Mapping[str, Tensor] | None = None, *, hook: Hook | None = None
    ) -> list[Any]:
        """Generate for each prompt alone, as the user's model does; without a hook, since operators have no one value.

        Raises:
            HoplonError: a hook.
        """
        if hook is not None:
            raise HoplonError(f"expected no look at the values of {self.name}, a decoding loop, by step of a program")
        (prompts,) = leaves
        with torch.inference_mode(), holding(self.tensors, memory or {}):
            rows = [self.alone(self.loop(prompt.unsqueeze(0)), self.blank(1)) for prompt in prompts]
        tokens, finite = (torch.cat(column) for column in zip(*rows, strict=True))
        return self.outputs(tokens, finite)

    def blank(self, rows: int) -> tuple[Tensor, Tensor]:
        """Tokens of generations before their first one, and that all logits have been finite."""
        shape = rows, self.new_tokens
        tokens = torch.full(shape, NO_TOKEN, dtype=torch.int64, device=self.device)
        return tokens, torch.ones(shape, dtype=torch.bool, device=self.device)

    def outputs(self, tokens: Tensor, finite: Tensor) -> list[Any]:
        """The flat outputs, from tokens and whether the logits of each were finite, shape ``(rows, new_tokens)``."""
        return [tokens, tokens.float().where(finite, torch.nan)]

    def alone(
        self,
        loop: Loop,
        outputs: tuple[Tensor, Tensor],
        meet: Callable[[Loop], None] | None = None,
        *,
        until: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run one generation to its end, and write its tokens and whether logits are finite, see `blank`, in place.

        Args:
            meet: called before every step; may write to the cache.
            until: stop in front of this step; one that has ended is not gone on with.
        """
        tokens, finite = outputs
        while loop.step < (self.new_tokens if until is None else min(until, self.new_tokens)):
            at = loop.step
            if meet is not None:
                meet(loop)
            choice = loop.advance()
            tokens[0, at] = choice.token
            finite[0, at] = choice.finite
            if not choice.finite or int(choice.token) in self.stops:
                loop.step = self.new_tokens
        return outputs

    def fingerprint(self) -> str:
        """A hash of structure, state and how tokens are chosen."""
        settings = f"{self.prompt_length} {self.new_tokens} {self.stops} {self.draws}"
        return hashlib.sha256(f"{super().fingerprint()} {settings}".encode()).hexdigest()
