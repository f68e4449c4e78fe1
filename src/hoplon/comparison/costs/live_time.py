"""How long a value lives: from the operator that computes it to its last reader, as a share of a forward pass."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hoplon.comparison.costs.flops import flops_by_step
from hoplon.errors import Count, HoplonError, checked
from hoplon.program.operators import is_passive
from hoplon.program.program import Program, Ref


@checked
def live_shares(program: Program, *, step_times: Mapping[int, float] | None = None) -> dict[str, float]:
    """By value site, the share of a forward pass during which its value can be hit and still be read.

    Operators run one after the other, as in the graph. A value lives from the start of the operator that computes it to
    the end of the last one that reads it, or a view of it; outputs to the end of the pass, inputs from its start.

    Args:
        step_times: by step, the time of its operator, in any unit, such as `measured_step_seconds` gives; by default
            its floating-point operations in the fused convention, by which an operator bound by memory seems too fast.
    Returns:
        Shares in [0, 1]. All 1, the most there can be, for a program without a graph, whose order is not known.
    Raises:
        HoplonError: times that are negative, not finite or all zero.
    """
    sites = (*program.value_sites, *program.input_sites)
    if not program.has_graph:
        return dict.fromkeys((site.name for site in sites), 1.0)
    times = flops_by_step(program) if step_times is None else step_times
    spent = [float(times.get(step.index, 0.0)) for step in program.steps]
    total = sum(spent)
    if not (math.isfinite(total) and total > 0 and min(spent) >= 0):
        raise HoplonError(f"expected times of at least 0 that sum to more, got a sum of {total}; give step_times")
    begins = [sum(spent[: step.index]) for step in program.steps]
    outputs = {leaf.step for leaf in program.output_steps if isinstance(leaf, Ref)}
    shares = {}
    for site in sites:
        step = program.site_steps[site.name] if site.name in program.site_steps else _input_step(program, site.name)
        last = _last_reader(program, step, outputs)
        end = total if last is None else begins[last] + spent[last]
        begun = 0.0 if program.steps[step].op is None else begins[_computes(program, step)]
        shares[site.name] = min(1.0, (end - begun) / total)
    return shares


def _input_step(program: Program, name: str) -> int:
    """The step of an input site: they are in the order of the inputs."""
    place = [site.name for site in program.input_sites].index(name)
    return program.input_steps[place]


def _computes(program: Program, step: int) -> int:
    """The step that computes a value: of one of several outputs, its operator's."""
    while is_passive(program.steps[step].op) and program.steps[step].reads:
        step = program.steps[step].reads[0]
    return step


def _last_reader(program: Program, step: int, outputs: set[int]) -> int | None:
    """The last step that reads a value or a view of it; None where it is an output."""
    waiting, last = [step], step
    while waiting:
        seen = waiting.pop()
        if seen in outputs:
            return None
        for reader in program.readers[seen]:
            last = max(last, reader)
            if is_passive(program.steps[reader].op):
                waiting.append(reader)
    return last


@checked
def measured_step_seconds(program: Program, leaves: Sequence[Any], *, repeats: Count = 5) -> dict[int, float]:
    """By step, the seconds of its operator on these flat inputs: the median of some passes on this machine.

    Args:
        leaves: flat inputs, as `Program.leaves` gives.
        repeats: passes that are timed, after one that is not.
    """
    seconds: dict[int, list[float]] = {step.index: [] for step in program.compute_steps()}
    with torch.inference_mode():
        for number in range(repeats + 1):
            values = program.initial_values(leaves, program.memory())
            for step in program.compute_steps():
                begun = time.perf_counter()
                values[step.index] = step.run(values)
                if number:
                    seconds[step.index].append(time.perf_counter() - begun)
    return {step: statistics.median(times) for step, times in seconds.items()}
