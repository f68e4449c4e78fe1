"""The symptom detector, counting, and false alarms."""

from __future__ import annotations

import copy

import polars as pl
import pytest
import torch
from torch import Tensor

from hoplon import BitFlip, Campaign, Inputs, Program, Values, capture, compare
from hoplon.errors import HoplonError
from hoplon.formats import equal_bits
from hoplon.protections.ranges import Bound, Ranges, profile_ranges
from hoplon.protections.runtime.effect import Effect
from hoplon.protections.runtime.hardened_module import HardenedModule
from hoplon.protections.runtime.lowering import harden
from hoplon.protections.runtime.passes import added_passes
from hoplon.protections.values.exceedance import exceedances
from hoplon.protections.values.policy import Detect
from hoplon.protections.values.ranger import Ranger
from tests.support.networks import NETWORKS, captured

FORMS = ("export", "eager")


@pytest.fixture(scope="module", params=FORMS)
def program(request: pytest.FixtureRequest) -> Program:
    net = NETWORKS["concat"]
    return capture(net.model(), net.batch(2), form=request.param)


def data(count: int = 8) -> Tensor:
    return NETWORKS["concat"].batch(count, seed=11)


def test_what_is_flagged_is_run_again_and_what_is_not_goes_on_as_unprotected(program: Program) -> None:
    x, ranger = data(), Ranger(profile_ranges(program, data()), policy=Detect())
    plain = Campaign(program, Inputs(x), sites=Values(kind="conv"), fault_model=BitFlip(bits=(30,)))
    table = plain.draw(count=60, seed=0)
    found = compare(program, Inputs(x), arms={"none": [], "detect": [ranger]}, faults=table, latency=False)
    none, detect = found["none", "values"].results.runs, found["detect", "values"].results.runs
    flagged = detect["detected"]
    assert 5 < flagged.sum() < 60
    assert set(detect.filter(flagged)["top-1"].unique()) == {"identical"}
    assert detect.filter(~flagged)["top-1"].equals(none.filter(~flagged)["top-1"])
    assert none.filter(flagged)["top-1"].is_in(["sdc", "nonfinite"]).any()
    assert not none["detected"].any()
    assert detect["corrected"].equals(flagged)
    assert found["detect", "values"].detected == pytest.approx(flagged.cast(pl.Float64).mean())


def hardened(program: Program, policy: Detect) -> HardenedModule:
    ranger = Ranger(profile_ranges(program, data()), policy=policy)
    if program.exported is None:
        with pytest.warns(UserWarning, match="every operator passes through Python"):
            return harden(program, [ranger])
    return harden(program, [ranger])


def test_a_module_repeats_a_flagged_pass_and_counts_it(program: Program) -> None:
    module, x = hardened(program, Detect()), data(1)
    wanted = module(x)
    assert module.alarms == module.persistent_alarms == 0
    assert equal_bits(wanted, program(x))
    strikes = iter([True, False])

    def strike(conv: object, args: object, output: Tensor) -> Tensor | None:
        return output.fill_(1e30) if next(strikes, False) else None

    if program.exported is None:
        handle = module._modules["left"].register_forward_hook(strike)
        assert equal_bits(module(x), wanted)
        assert (module.alarms, module.persistent_alarms) == (1, 0)
        assert sum(module.outside_counts.values()) > 0
        handle.remove()
    with torch.no_grad():
        module.get_parameter("left.weight").fill_(1e30)
    module(x)
    assert module.persistent_alarms == 1
    module.reset_counts()
    assert module.alarms == sum(module.outside_counts.values()) == 0


@pytest.mark.parametrize("form", ["separate", "fused"])
def test_telemetry_counts_what_is_corrected_and_is_off_by_default(form: str) -> None:
    net = NETWORKS["concat"]
    program = captured("concat")
    ranges = profile_ranges(program, data())
    module = harden(program, [Ranger(ranges)], telemetry=True, form=form)
    assert set(module.outside_counts) == set(Ranger(ranges).values(program))
    module(data())
    assert set(module.outside_counts.values()) == {0}
    tight = Ranges({**ranges.bounds, ":gelu": Bound(-0.01, 0.02)})
    counting = harden(program, [Ranger(tight)], telemetry=True, form=form)
    gelu = torch.nn.functional.gelu(net.model().right(data()))
    counting(data())
    counting(data())
    assert counting.outside_counts[":gelu"] == 2 * int((gelu > torch.tensor(0.02)).sum())
    assert copy.deepcopy(counting).outside_counts == counting.outside_counts
    plain = harden(program, [Ranger(ranges)], form=form)
    with pytest.raises(HoplonError, match="got one without telemetry; lower with telemetry=True"):
        _ = plain.outside_counts
    assert all(effect.count is None for effect in plain.graph_module.children() if isinstance(effect, Effect))
    assert added_passes(plain).keys() == set(module.outside_counts)
    assert sum(added_passes(plain).values()) < sum(added_passes(module).values())


def test_false_alarms_are_counted_on_held_out_data(program: Program) -> None:
    x = data(40)
    ranges = profile_ranges(program, x[:4])
    found = exceedances(program, [Ranger(ranges, policy=Detect(margin=0))], Inputs(x), batch=7)
    gelu = torch.nn.functional.gelu(NETWORKS["concat"].model().right(x))
    beyond = gelu > ranges[":gelu"].high * (1 + 1e-6)
    assert found.sites[":gelu"].values == int(beyond.sum()) > 0
    assert found.sites[":gelu"].images == int(beyond.flatten(1).any(1).sum())
    assert found.sites[":gelu"].n_values == gelu.numel()
    assert found.sites[":gelu"].images <= found.images <= 36
    assert found.n_images == 40
    assert len(found.exceeding) == found.images
    inside = [number for number in range(40) if number not in found.exceeding]
    assert exceedances(program, [Ranger(ranges, policy=Detect(margin=0))], Inputs(x[inside])).images == 0
    one = exceedances(program, [Ranger(ranges, policy=Detect(margin=0))], Inputs(x[[found.exceeding[-1]]]))
    assert one.exceeding == (0,)
    counts = [site.images for site in found.exceeding_sites.values()]
    assert counts == sorted(counts, reverse=True)
    assert found.exceeding_sites.keys() == {name for name, site in found.sites.items() if site.values}
    assert found.image_rate.estimate == found.images / 40
    assert exceedances(program, [Ranger(ranges)], Inputs(x[:4])).images == 0
    wide = exceedances(program, [Ranger(ranges, policy=Detect(margin=10.0))], Inputs(x))
    assert wide.images == 0
    assert "in 0 of 40 images" in str(wide)
    with pytest.raises(HoplonError, match="expected a protection that bounds values, got none"):
        exceedances(program, [], Inputs(x))


def test_margins_that_make_no_sense_are_refused() -> None:
    with pytest.raises(HoplonError, match="expected a finite margin of at least 0, got -0.1"):
        Detect(margin=-0.1)
