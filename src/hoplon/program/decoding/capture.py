"""From a language model and prompts to a program: prefill and step watched once each, and a longer pass beside them."""

from __future__ import annotations

import copyreg
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hoplon.errors import CaptureError, Count, HoplonWarning, checked
from hoplon.program.call_forms import require_eval, slow_attention, unwrapped
from hoplon.program.decoding.choosing import Draws
from hoplon.program.decoding.loop import Loop, watched
from hoplon.program.decoding.models import Cache, CausalModel, causal_model
from hoplon.program.decoding.program import DecodingProgram
from hoplon.program.decoding.sites import CACHES, OF_TOKENS, DecodingSite, Extent, Roles, indices_in, roles_of, site_at
from hoplon.program.eager import Trace
from hoplon.program.eager_watch import OperatorCall
from hoplon.program.memory import unchanged
from hoplon.program.signature import Signature
from hoplon.program.sites import Identity, holds_numbers

_PROMPTS = 3  # of the longer pass that is compared: a number that no length below has
_LENGTHS = (11, 13, 7, 5, 2)  # of it, the first that fits
_STEPS = 8  # of generation that it covers
_CLOSE = 1e-3  # relative to the largest value: far above rounding, far below other elements


@checked
def capture_decoder(
    model: nn.Module,
    prompts: Tensor,
    *,
    new_tokens: Count,
    stops: Sequence[int] | Tensor | None = None,
    draws: Draws | None = None,
    name: str | None = None,
) -> DecodingProgram:
    """Watch a language model generate, and make a program of it whose outputs are the tokens of a generation.

    Its value sites are the operators of the prefill and of every step, ``layers.0.attention.query:linear@prefill``,
    ``...@step7``; its caches, ``cache.0:keys@step7``, are sites where a selection asks for them by kind, and its memory
    sites are the model's. Generation is that of the user, prompt by prompt: greedy, or drawn with a recorded generator.

    Args:
        model: in eval mode; a causal model of Hugging Face transformers, or a module that takes ``(tokens, cache)``,
            cache None at first, and gives logits and a cache of one pair of keys and values per layer, each ``(batch,
            heads, length, width)``. Its memory is shared, neither copied nor changed.
        prompts: int64, shape ``(n, length)``: an example; all prompts of a campaign have this length.
        new_tokens: of a generation, at most.
        stops: tokens after which a generation ends; those of the model's own settings by default.
        draws: None for the likeliest token.
        name: what reports call the model; the class name by default.
    Raises:
        CaptureError: train mode, another kind of model, or a model whose own ``generate`` gives other tokens.
    """
    model = unwrapped(model)
    require_eval(model)
    if prompts.dim() != 2 or prompts.dtype != torch.int64 or not prompts.numel():
        raise CaptureError(f"expected prompts int64 (n, length), got {prompts.dtype} {tuple(prompts.shape)}")
    with torch.inference_mode(), slow_attention(), unchanged(model):
        causal = causal_model(model, prompts[:1])
        ends = causal.stops if stops is None else tuple(map(int, stops))
        _require_own(causal, prompts[:1], new_tokens, ends, draws)
        trace, prefill = _traced(causal, prompts[:1], [])
        _, cache = causal(prompts[:1], [])
        _, step = _traced(causal, prompts[:1, -1:], cache)
        _, later = _traced(causal, prompts[:1, -1:], causal(prompts[:1, -1:], cache)[1])
        roles = _roles(causal, prompts, new_tokens, prefill, step)
    label = name or type(model).__name__
    memory_sites, unread = trace.memory_sites()
    sites = _sites(prefill, step, later, cache, new_tokens)
    program = DecodingProgram(
        name=label,
        steps=tuple(trace.steps),
        input_steps=(0,),
        memory_steps=trace.memory_steps,
        tensors=trace.stored.tensors,
        output_steps=(),
        signature=Signature.of(label, (prompts,), {}, axes=(0,)),
        out_spec=torch.utils._pytree.tree_structure((0, 0)),
        memory_sites=memory_sites,
        unread=unread,
        unstruck=dict(trace.stored.unstruck),
        value_sites=tuple(site for site in sites if not site.is_cache),
        input_sites=tuple(site for site in sites if site.is_cache),
        site_steps={site.name: site.step for site in sites},
        causal=causal,
        prompts=prompts,
        new_tokens=new_tokens,
        stops=ends,
        draws=draws,
        roles=roles,
    )
    of_numbers = [site for site in sites if holds_numbers(site)]
    if alone := sorted({site.operator for site in of_numbers if not program.goes_together(site)}):
        text = f"faults in {', '.join(alone[:3])} ({len(alone)} operators) of {label} run one at a time, which is slow"
        warnings.warn(text, HoplonWarning, stacklevel=3)
    return program


def _require_own(
    causal: CausalModel, prompt: Tensor, new_tokens: int, stops: tuple[int, ...], draws: Draws | None
) -> None:
    """Refuse a model whose own generation, where it has one, gives other tokens than the steps here."""
    own = None if draws is not None else causal.generate(prompt, new_tokens, stops)
    if own is None:
        return
    loop, found = Loop(causal, prompt), list[int]()
    while len(found) < new_tokens and not (found and found[-1] in stops):
        found.append(int(loop.advance().token))
    if own.flatten().tolist() != found:
        raise CaptureError(
            f"expected greedy generation, got other tokens from generate of {type(causal.module).__name__}; remove "
            "what changes logits (repetition penalty, beams, suppressed tokens) from its generation settings, and "
            "padding from prompts"
        )


def _traced(causal: CausalModel, tokens: Tensor, cache: Cache) -> tuple[Trace, dict[Identity, Tensor]]:
    """One call, watched: its trace, and the values that depend on what it is called with, by operator.

    What an operator gives that only appends to a cache is that cache, a site of its own.
    """
    trace = Trace(causal.module, [tokens, *(held for pair in cache for held in pair)])
    values: dict[Identity, Tensor] = {}

    def see(call: OperatorCall) -> None:
        values.update(call.outputs())
        trace.see(call)

    with watched(causal.module, see):
        _, grown = causal(tokens, cache)
    stored = {held.untyped_storage().data_ptr() for pair in grown for held in pair}
    depend = {trace.sites[number].name for number in trace.dependent() & trace.sites.keys()}
    return trace, {
        identity: value
        for identity, value in values.items()
        if identity.name in depend and not (identity.kind == "cat" and value.untyped_storage().data_ptr() in stored)
    }


def _sites(
    prefill: Mapping[Identity, Tensor],
    step: Mapping[Identity, Tensor],
    later: Mapping[Identity, Tensor],
    cache: Cache,
    new_tokens: int,
) -> list[DecodingSite]:
    """All sites of a generation, step by step, the caches in front of the operators of their step.

    Args:
        prefill, step, later: values of operators in the prefill and in steps 1 and 2.
        cache: after the prefill.
    """
    found = [site_at(identity, value.shape, value.dtype, 0) for identity, value in prefill.items()]
    for number in range(1, new_tokens):
        for layer, pair in enumerate(cache):
            for kind, held in zip(CACHES, pair, strict=True):
                shape = (*held.shape[:2], held.shape[2] + number - 1, held.shape[3])
                found.append(site_at(Identity(f"cache.{layer}", kind), shape, held.dtype, number))
        for identity, value in step.items():
            grown = later[identity].shape if identity in later else value.shape
            pairs = zip(value.shape, grown, strict=True)
            shape = tuple(small + (large - small) * (number - 1) for small, large in pairs)
            found.append(site_at(identity, shape, value.dtype, number))
    return found


def _roles(
    causal: CausalModel,
    prompts: Tensor,
    new_tokens: int,
    prefill: Mapping[Identity, Tensor],
    step: Mapping[Identity, Tensor],
) -> dict[tuple[str, bool], Roles]:
    """Where values lie in a pass over several prompts and many tokens, by operator and whether it is the prefill's.

    Only what has been compared: a value that is not there, or another one, has no roles.
    """
    length, steps = prompts.shape[1], min(_STEPS, new_tokens - 1)
    total = length + steps
    size = next((n for n in _LENGTHS if n != length and n < total - 1), None)
    if size is None:
        return {}
    texts = torch.stack([prompts[row % len(prompts)].roll(row // len(prompts)) for row in range(_PROMPTS)])
    alone = [_generated(causal, text.unsqueeze(0), steps) for text in texts]
    together, begin = Extent(_PROMPTS, size, total), total - size
    layers = zip(*(cache for _, _, cache in alone), strict=True)
    cache = [tuple(torch.cat(part)[:, :, :begin] for part in zip(*pairs, strict=True)) for pairs in layers]
    many: dict[Identity, Tensor] = {}
    with watched(causal.module, lambda call: many.update(_copies(call))):
        causal(torch.cat([tokens for tokens, _, _ in alone])[:, begin:], cache, everywhere=True)  # type: ignore[arg-type]
    found = {}
    for values, numbers in ((prefill, range(1)), (step, range(1, steps + 1))):
        one = Extent(1, length, length) if numbers.start == 0 else Extent(1, 1, length + 1)
        for identity, value in values.items():
            wide = many.get(identity)
            roles = None if wide is None else roles_of(value.shape, wide.shape, one, together)
            if roles is None:
                continue
            held = [
                (row, number, seen[number].get(identity))
                for row, (_, seen, _) in enumerate(alone)
                for number in numbers
            ]
            if all(
                own is not None and _agree(own, roles, wide, row, number, length, together) for row, number, own in held
            ):
                found[identity.name, numbers.start == 0] = roles
    return found


def _generated(causal: CausalModel, prompt: Tensor, steps: int) -> tuple[Tensor, list[dict[Identity, Tensor]], Cache]:
    """Greedy generation: the tokens that the model read, the values of operators by step, the cache."""
    loop, read = Loop(causal, prompt), [prompt]
    values: list[dict[Identity, Tensor]] = [{} for _ in range(steps + 1)]
    with loop.watched(lambda step, call: values[step].update(_copies(call))):
        for step in range(steps + 1):
            loop.advance()
            if step < steps:
                read.append(loop.tokens)
    return torch.cat(read, 1), values, loop.cache


def _copies(call: OperatorCall) -> dict[Identity, Tensor]:
    return {identity: output.clone() for identity, output in call.outputs()}


def _agree(
    own: Tensor, roles: Roles, wide: Tensor | None, row: int, number: int, length: int, together: Extent
) -> bool:
    """Tell whether the longer pass has the values of a step of one prompt where they are said to be."""
    assert wide is not None, "roles come from it"
    step = Extent(1, length if not number else 1, length + number)
    elements = torch.arange(own.numel())
    first, where = (
        indices_in(roles, own.shape, elements, torch.full_like(elements, number), step=step, together=together)
        for number in (0, row)
    )
    inside = torch.ones_like(elements, dtype=torch.bool)  # of the tokens of the longer pass
    for role, index in zip(roles, first, strict=True):
        inside &= (index >= 0) & (index < together.tokens) if role in OF_TOKENS else True
    if number and not inside.all():
        return False
    there, here = wide[tuple(index[inside] for index in where)].double(), own.flatten()[inside].double()
    if not OF_TOKENS.isdisjoint(roles) and "key" in roles:  # masked positions may hold anything
        return True
    scale = here.abs().max().clamp(min=1e-6) if here.numel() else 1.0
    return bool(((there - here).abs() <= _CLOSE * scale).all())


def _packed(program: DecodingProgram) -> tuple[Any, ...]:
    """A program on its way to another process: model and prompts, to be watched there again."""
    settings = program.new_tokens, program.stops, program.draws, program.name
    return _again, (program.causal.module, program.prompts, *settings)


def _again(module: nn.Module, prompts: Tensor, *settings: Any) -> DecodingProgram:
    new_tokens, stops, draws, name = settings
    return capture_decoder(module, prompts, new_tokens=new_tokens, stops=stops, draws=draws, name=name)


copyreg.pickle(DecodingProgram, _packed)
