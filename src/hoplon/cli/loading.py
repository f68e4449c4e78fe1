"""From a model's name on the command line to a captured program."""

from __future__ import annotations

from hoplon.cli.console import print_status, report_training
from hoplon.program.capturing import capture
from hoplon.program.decoding.capture import capture_decoder
from hoplon.program.given.example import Example, tensors_in
from hoplon.program.inputs import Inputs
from hoplon.program.program import Program
from hoplon.zoo.entries import ZooModel
from hoplon.zoo.resolve import resolve_model


def load_program(
    model: str,
    *,
    seed: int,
    status: str | None = None,
    data: Inputs | None = None,
    new_tokens: int | None = None,
    prompt_tokens: int | None = None,
) -> tuple[ZooModel, Program]:
    """Resolve a model, train it first where the zoo has to, and capture it.

    Args:
        data: what it will be called with, of which a model by name takes its example.
        status: printed once the model is there, since capturing a large one takes a while.
        new_tokens: of a language model, to generate after each prompt; None: its forward is captured.
        prompt_tokens: of each sample, the prompt; all by default.
    Raises:
        HoplonError: no such model, or one that cannot be captured.
    """
    chosen = resolve_model(model, seed=seed, progress=report_training)
    if status is not None:
        print_status(status)
    chosen = chosen if data is None else chosen.for_data(data)
    if new_tokens is not None:
        prompts = tensors_in(Example.of(chosen.example).call)[0][..., :prompt_tokens]
        return chosen, capture_decoder(chosen.module, prompts, new_tokens=new_tokens, name=chosen.name)
    return chosen, capture(chosen.module, chosen.example, name=chosen.name)
