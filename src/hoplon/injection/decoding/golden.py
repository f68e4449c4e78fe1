"""Golden generations: tokens, caches, and the words that faults will meet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from hoplon.injection.replay.golden import Golden
from hoplon.injection.replay.values import GoldenValues
from hoplon.program.decoding.models import Cache
from hoplon.program.decoding.program import NO_TOKEN, DecodingProgram
from hoplon.program.decoding.sites import CACHES, DecodingSite
from hoplon.program.eager_watch import OperatorCall

Struck = tuple[str, int]
"""An operator, and a decoding step of it."""


@dataclass(frozen=True)
class DecodingGolden(Golden):
    """The fault-free generations of a batch of prompts, each run alone.

    ``read``: the tokens that the model read, int64, shape ``(prompts, length)``, 0 behind an end; ``lengths``: tokens
    generated, int64, shape ``(prompts,)``; ``cache``: of all tokens read; ``values``: by prompt, those of operators.
    """

    read: Tensor = field(kw_only=True)
    lengths: Tensor = field(kw_only=True)
    cache: Cache = field(kw_only=True)
    values: tuple[dict[Struck, Tensor], ...] = field(kw_only=True)

    @override
    def tensors(self) -> Iterator[Any]:
        yield from (held for pair in self.cache for held in pair)
        yield from (value for values in self.values for value in values.values())

    def cache_before(self, row: int, length: int) -> Cache:
        """The cache of one prompt with so many tokens, a copy."""
        return [
            (keys[row : row + 1, :, :length].clone(), words[row : row + 1, :, :length].clone())
            for keys, words in self.cache
        ]

    def words(self, site: DecodingSite, row: int, elements: Tensor) -> Tensor:
        """The values that faults at these elements of a site meet, shape ``(n,)``."""
        if site.is_cache:
            layer, kind = layer_of(site)
            heads, length, width = torch.unravel_index(elements, site.shape)
            return self.cache[layer][kind][row, heads, length, width]
        return self.values[row][site.operator, site.step].flatten()[elements]


def layer_of(site: DecodingSite) -> tuple[int, int]:
    """The layer of a cache, and 0 for keys, 1 for values."""
    return int(site.owner.rpartition(".")[2]), CACHES.index(site.kind)


def golden_generations(program: DecodingProgram, prompts: Tensor, sites: Iterable[DecodingSite]) -> DecodingGolden:
    """Generate fault-free, prompt by prompt, and keep the values of the operators among some sites.

    Args:
        prompts: int64, shape ``(n, length)``; equal ones are run once.
    """
    kept = {(site.operator, site.step) for site in sites if not site.is_cache}
    total = program.prompt_length + program.new_tokens - 1
    made: dict[tuple[int, ...], tuple[Tensor, Tensor, Cache, dict[Struck, Tensor]]] = {}
    rows = []
    with torch.inference_mode():
        for prompt in prompts:
            key = tuple(prompt.tolist())
            if key not in made:
                made[key] = _generation(program, prompt.unsqueeze(0), kept, total)
            rows.append(made[key])
        tokens, finite = torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])
        layers = zip(*(row[2] for row in rows), strict=True)
        cache = [(torch.cat([keys for keys, _ in layer]), torch.cat([words for _, words in layer])) for layer in layers]
        read = torch.cat([prompts, tokens[:, :-1].clamp(min=0)], 1)
    return DecodingGolden(
        (prompts,),
        GoldenValues(program, {}, {}),
        {},
        program.outputs(tokens, finite),
        read=read,
        lengths=(tokens != NO_TOKEN).sum(1),
        cache=cache,
        values=tuple(row[3] for row in rows),
    )


def _generation(
    program: DecodingProgram, prompt: Tensor, kept: set[Struck], total: int
) -> tuple[Tensor, Tensor, Cache, dict[Struck, Tensor]]:
    values: dict[Struck, Tensor] = {}

    def see(step: int, call: OperatorCall) -> None:
        for identity, output in call.outputs():
            if (identity.name, step) in kept:
                values[identity.name, step] = output.clone()

    loop = program.loop(prompt)
    with loop.watched(see):
        outputs = program.alone(loop, program.blank(1))
    missing = total - loop.cache[0][0].shape[2]
    pad = (0, 0, 0, missing)
    cache = [tuple(torch.nn.functional.pad(held, pad) for held in pair) for pair in loop.cache]
    return *outputs, cache, values  # type: ignore[return-value]
