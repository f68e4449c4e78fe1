"""Sites of a decoding loop: an operator's output or a cache at one decoding step, and its place in a longer pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, final

import torch
from torch import Tensor

from hoplon.program.sites import Identity, ValueSite

CACHES = ("keys", "values")
PREFILL = "@prefill"
MOMENT = r"@(?:prefill|step(\d+))$"
"""Pattern of the end of a site's name, with the number of the step."""


@final
@dataclass(frozen=True)
class DecodingSite(ValueSite):
    """A value of one decoding step; step 0 is the prefill, step ``t`` computes token ``t`` from token ``t - 1``.

    A site of kind "keys" or "values" is the cache of a layer as step ``t`` meets it: a fault there stays.
    """

    step: int = 0

    @cached_property
    def name(self) -> str:  # kept, since it is asked for very often
        """The name of the operator, and the step.

        Example:
            >>> DecodingSite("layers.0.attention.query", "linear", step=3).name, DecodingSite("norm", "mul").name
            ('layers.0.attention.query:linear@step3', 'norm:mul@prefill')
        """
        return self.operator + (f"@step{self.step}" if self.step else PREFILL)

    @cached_property
    def operator(self) -> str:
        """The name without the step."""
        return Identity(self.owner, self.kind, self.call, self.output).name

    @property
    def is_cache(self) -> bool:
        """Tell whether it is stored between steps."""
        return self.owner.startswith("cache.") and self.kind in CACHES


def site_at(identity: Identity, shape: Sequence[int], dtype: torch.dtype, step: int) -> DecodingSite:
    """The output of an operator, of this whole shape for one prompt, as a site of a step.

    A first axis of size 1 is left out, as that of the prompts is: indices stay the same.
    """
    own = tuple(shape[1:]) if len(shape) > 1 and shape[0] == 1 else tuple(shape)
    return DecodingSite(identity.owner, identity.kind, identity.call, identity.output, own, dtype, step)


Role = Literal["same", "batch", "query", "last", "key", "batch x query"]
Roles = tuple[Role, ...]
"""What each axis of a value holds in a pass over several prompts: the same as for one, prompts, the tokens that are
computed, the last of them where a step has no more, all tokens, prompts and tokens folded."""

OF_TOKENS = frozenset(["query", "last", "batch x query"])


@final
@dataclass(frozen=True)
class Extent:
    """Sizes of a pass: prompts, tokens it computes, tokens there are in all."""

    prompts: int
    tokens: int
    total: int

    @property
    def begin(self) -> int:
        """Position of the first token it computes."""
        return self.total - self.tokens


def roles_of(one: Sequence[int], many: Sequence[int], alone: Extent, together: Extent) -> Roles | None:
    """The roles of axes, from the shapes of a value in a pass over one prompt and over several; None if there are none.

    ``together`` has other sizes than ``alone`` in each respect, and one axis has to hold the prompts.
    """
    if len(one) != len(many):
        return None
    roles = [_role(small, large, alone, together) for small, large in zip(one, many, strict=True)]
    known = [role for role in roles if role is not None]
    of_prompts = sum(role in ("batch", "batch x query") for role in known)
    return tuple(known) if len(known) == len(roles) and of_prompts == 1 else None


def _role(small: int, large: int, alone: Extent, together: Extent) -> Role | None:
    fits: dict[Role, bool] = {
        "query": small == alone.tokens and large == together.tokens,
        "batch x query": small == alone.tokens and large == together.tokens * together.prompts,
        "last": small == 1 and large == together.tokens,
        "key": small == alone.total and large == together.total,
        "batch": large == small * together.prompts,
        "same": small == large,
    }
    return next((role for role, fit in fits.items() if fit), None)


def indices_in(
    roles: Roles, shape: Sequence[int], elements: Tensor, rows: Tensor, *, step: Extent, together: Extent
) -> tuple[Tensor, ...]:
    """Indices in the value of a longer pass; negative or too large along tokens that are not in it.

    Args:
        shape: of the value for one prompt, all axes or without the first of size 1.
        elements: row-major in ``shape``, int64, shape ``(n,)``.
        rows: prompts of the longer pass, int64, shape ``(n,)``.
        step: the pass over one prompt.
    """
    whole = (1, *shape) if len(shape) < len(roles) else tuple(shape)
    found = []
    for role, size, coordinate in zip(roles, whole, torch.unravel_index(elements, whole), strict=True):
        token = coordinate + (step.total - 1 if role == "last" else step.begin) - together.begin
        if role == "batch":
            found.append(coordinate + rows * size)
        elif role in ("query", "last"):
            found.append(token)
        elif role == "batch x query":
            found.append(token + rows * together.tokens)
        else:
            found.append(coordinate)
    return tuple(found)
