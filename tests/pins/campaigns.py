"""The twelve campaigns whose faults and outcomes are pinned."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import hoplon as hp
from tests.pins import networks
from tests.pins.networks import Convolutional, Residual

SEED = 7
BATCH = 4
# Lower bits of a float32 would make sums inexact: what is left of them depends on the order of summation.
UPPER = hp.BitFlip(bits=tuple(range(16, 32)))
VALUES, MEMORY = hp.Values(), hp.Memory()

Found = dict[str, hp.Results]

program = cache(networks.program)


@cache
def ranges() -> hp.Ranges:
    """Bounds of the convolutional network on other inputs than those that faults meet."""
    return hp.profile_ranges(program(Convolutional), networks.inputs(Convolutional, seed=2, count=8))


@cache
def scores() -> hp.Scores:
    """The magnitudes of the weights of the convolutional network."""
    return hp.importance.magnitude(program(Convolutional))


def campaign(sites: hp.Values | hp.Memory | hp.GuardMemory = VALUES, /, **options: object) -> hp.Campaign:
    """A campaign on the convolutional network, unless another one is given."""
    settings = {"fault_model": UPPER, "batch": BATCH, **options}
    net = settings.pop("program", None) or program(Convolutional)
    data = settings.pop("data", None) or networks.inputs(Convolutional)
    return hp.Campaign(net, data, sites=sites, **settings)


def _guarded() -> Found:
    """Faults of several words in memory, under sums across blocks and under copies of the most important weights."""
    model = hp.faults.Elements(16, hp.BitFlip(2, bits=UPPER.bits))
    arms = {"parity": hp.Parity(group=16), "aspis": hp.Aspis(scores(), fraction=0.5)}
    weights = hp.Memory("*.weight", kind=("conv", "linear"))
    plans = {name: campaign(weights, fault_model=model, protections=(guard,)) for name, guard in arms.items()}
    return {name: plan.run(count=60, seed=SEED) for name, plan in plans.items()}


def guards_memory() -> hp.Campaign:
    """Faults in the copies and indices that guards hold."""
    protections = (hp.TMR(), hp.Aspis(scores(), fraction=0.1))
    return campaign(hp.GuardMemory(), fault_model=hp.BitFlip(), protections=protections)


def values(*, store: Path | None = None) -> hp.Results:
    """A counted campaign of value faults."""
    return campaign().run(count=300, seed=SEED, store=store)


def half_width_values(*, store: Path | None = None) -> hp.Results:
    """Value faults until a half-width is reached."""
    return campaign().run(half_width=0.04, seed=SEED, store=store)


def _eager() -> hp.Results:
    """A network that has no graph."""
    net, data = program(networks.Branching), networks.inputs(networks.Branching)
    return campaign(program=net, data=data, batch=1).run(count=80, seed=SEED)


def _bfloat16() -> hp.Results:
    """A network in bfloat16, faults in its upper bits."""
    net, model = networks.narrow_program(), hp.BitFlip(bits=tuple(range(5, 16)))
    return campaign(program=net, data=networks.narrow_inputs(), fault_model=model).run(count=200, seed=SEED)


def _several_criteria() -> hp.Results:
    """Several criteria on the network with a sum, its layers equally likely."""
    net, data = program(Residual), networks.inputs(Residual)
    criteria = (hp.TopK(1), hp.TopK(2), hp.TopK(1, reference="label"), hp.Deviation((0.5, 8.0)))
    options = {"program": net, "data": data, "criterion": criteria, "sampling": hp.sampling.LayerUniform()}
    return campaign(**options).run(count=150, seed=SEED)


def _several_words() -> hp.Results:
    """Two bits in each of three elements, operators equally likely."""
    net, data = program(Residual), networks.inputs(Residual)
    model = hp.faults.Elements(3, hp.BitFlip(2, bits=UPPER.bits))
    return campaign(program=net, data=data, fault_model=model, sampling=hp.sampling.OpUniform()).run(
        count=150, seed=SEED
    )


def _compared() -> Found:
    """Arms that meet the same faults, in values and in memory."""
    tables = [campaign().draw(count=120, seed=SEED), campaign(MEMORY).draw(count=100, seed=SEED)]
    arms = {"none": [], "ranger": [hp.Ranger(ranges())], "tmr": [hp.TMR()], "both": [hp.Ranger(ranges()), hp.TMR()]}
    data = networks.inputs(Convolutional)
    found = hp.compare(program(Convolutional), data, arms=arms, faults=tables, batch=BATCH, latency=False)
    return {f"{arm.name}, {arm.target}": arm.results for arm in found.arms}


def _alone(run: Callable[[], hp.Results]) -> Callable[[], Found]:
    """A campaign that has one table of results."""
    return lambda: {"all": run()}


CAMPAIGNS: dict[str, Callable[[], Found]] = {
    "values": _alone(values),
    "memory": _alone(lambda: campaign(MEMORY).run(count=100, seed=SEED)),
    "half-width of values": _alone(half_width_values),
    "half-width of memory": _alone(lambda: campaign(MEMORY).run(half_width=0.04, seed=SEED)),
    "eager form": _alone(_eager),
    "fixed point": _alone(
        lambda: campaign(fault_model=hp.BitFlip(format=hp.formats.FixedPoint(8, 6))).run(count=200, seed=SEED)
    ),
    "bfloat16": _alone(_bfloat16),
    "guarded memory": _guarded,
    "ranger before the fault": _alone(
        lambda: campaign(protections=(hp.Ranger(ranges()),), placement="after").run(count=200, seed=SEED)
    ),
    "several criteria": _alone(_several_criteria),
    "several words": _alone(_several_words),
    "comparison": _compared,
}
