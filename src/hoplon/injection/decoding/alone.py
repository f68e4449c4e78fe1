"""One faulty generation at a time, with the kernels of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from hoplon.formats.base import same_bits
from hoplon.injection.decoding.golden import DecodingGolden, layer_of
from hoplon.injection.replay.golden import InjectedWords, Injections
from hoplon.program.decoding.loop import Loop
from hoplon.program.decoding.program import NO_TOKEN, DecodingProgram
from hoplon.program.decoding.sites import DecodingSite
from hoplon.program.eager_watch import OperatorCall


def struck_alone(
    program: DecodingProgram, golden: DecodingGolden, row: int, injections: Mapping[str, Injections]
) -> tuple[tuple[Tensor, Tensor], dict[str, InjectedWords]]:
    """Generate for one prompt with words changed, from the first step that meets one on.

    Args:
        row: of the prompt in ``golden``.
        injections: by site; their rows are not looked at.
    Returns:
        Tokens and whether logits are finite, each of shape ``(1, new_tokens)``, and the words by site; these are equal
        and not reached where the golden generation has ended before.
    """
    sites = {name: program.value_site(name) for name in injections}
    first = min(site.step for site in sites.values())
    tokens, finite = golden.outputs[0][row : row + 1].clone(), program.blank(1)[1]
    words = {name: _unreached(injection) for name, injection in injections.items()}
    if first >= int(golden.lengths[row]):
        return (tokens, finite), words
    tokens[:, first:] = NO_TOKEN
    loop = program.loop(golden.leaves[0][row : row + 1])
    if first:
        loop.step, loop.tokens = first, tokens[:, first - 1 : first]
        loop.cache = golden.cache_before(row, program.prompt_length + first - 1)
    values = {(site.operator, site.step): name for name, site in sites.items() if not site.is_cache}

    def see(step: int, call: OperatorCall) -> None:
        for identity, output in call.outputs():
            name = values.get((identity.name, step))
            if name is not None:
                words[name] = _strike(sites[name], output, injections[name])

    def meet(loop: Loop) -> None:
        for name, site in sites.items():
            if site.is_cache and site.step == loop.step:
                layer, kind = layer_of(site)
                words[name] = _strike(site, loop.cache[layer][kind], injections[name])

    last = max(site.step for site in sites.values())
    with torch.inference_mode():
        with loop.watched(see) if values else nullcontext():  # which takes time, so not behind the last fault
            program.alone(loop, (tokens, finite), meet, until=last + 1)
        program.alone(loop, (tokens, finite))
    return (tokens, finite), words


def _strike(site: DecodingSite, value: Tensor, injections: Injections) -> InjectedWords:
    """Change words of a value for one prompt in place; those that an earlier fault has left out are not reached."""
    if int(injections.elements.max()) >= value.numel():
        return _unreached(injections)
    where = torch.unravel_index(injections.elements, value.shape)
    old, before, after = injections.strike(value, where, site.shape)
    return InjectedWords(before, after, ~same_bits(value[where], old))


def _unreached(injections: Injections) -> InjectedWords:
    nothing = torch.zeros_like(injections.elements)
    return InjectedWords(nothing, nothing, nothing.bool())
