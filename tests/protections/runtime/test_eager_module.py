"""Bounds of models that have no graph."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon import Inputs, Values, capture
from hoplon.errors import HoplonError, HoplonWarning
from hoplon.formats import equal_bits
from hoplon.protections.guards.tmr import TMR
from hoplon.protections.ranges import Bound, Ranges, inherent_ranges, profile_ranges
from hoplon.protections.runtime.lowering import harden
from hoplon.protections.values.ranger import Ranger
from tests.support.networks import GRAPHS, NETWORKS, WIRINGS, captured


@pytest.mark.parametrize("name", GRAPHS)
def test_both_forms_get_the_same_bounds_for_the_same_reasons(name: str) -> None:
    net = NETWORKS[name]
    found = {}
    for form in ("export", "eager"):
        program = captured(name, form=form)
        ranger = Ranger(profile_ranges(program, Inputs(net.batch(8, seed=11))))
        found[form] = {entry.site: entry.bound for entry in ranger.coverage(program) if entry.bound is not None}
    assert found["eager"].keys() == found["export"].keys()
    for site, bound in found["export"].items():
        assert found["eager"][site].high == pytest.approx(bound.high, rel=1e-5)
        assert found["eager"][site].low == pytest.approx(bound.low, rel=1e-5)


@pytest.mark.parametrize("case", WIRINGS)
def test_a_watched_model_gives_what_the_model_gives_on_calibration_inputs(case: str) -> None:
    model, x = NETWORKS[case].model(), NETWORKS[case].batch(8)
    program = capture(model, NETWORKS[case].batch(5), form="eager")
    with pytest.warns(HoplonWarning, match=r"every operator passes through Python .*: \d+\.\d times the model's own"):
        module = harden(program, [Ranger(profile_ranges(program, x)), TMR()])
    with torch.inference_mode():
        assert all(equal_bits(module(row[None]), model(row[None])) for row in x)
    assert module.state_dict().keys() == model.state_dict().keys()
    assert all(module.get_parameter(name) is not tensor for name, tensor in model.named_parameters())
    with pytest.raises(HoplonError, match="expected a module with a graph"):
        _ = module.graph_module


def test_a_watched_model_bounds_a_fault_and_repairs_its_memory() -> None:
    x = NETWORKS["branches"].batch(1)
    program = captured("branches", 1, form="eager")
    with pytest.warns(HoplonWarning, match="every operator"):
        module = harden(program, [Ranger(profile_ranges(program, NETWORKS["branches"].batch(8)))])
    module._modules["left"].register_forward_hook(lambda *call: call[2].fill_(float("nan")))
    assert module(x).isfinite().all()
    with pytest.warns(HoplonWarning, match="every operator"):
        guarded = harden(program, [Ranger(profile_ranges(program, NETWORKS["branches"].batch(8))), TMR()])
    wanted = guarded(x)
    with torch.no_grad():
        guarded.get_parameter("fc.weight").data[0, 0] = float("inf")
    assert equal_bits(guarded(x), wanted)


class Arguments(nn.Module):
    """Operators whose arguments decide about the bound."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.elu(x, 1.5)
        padded = F.pad(F.hardtanh(x, -2.0, 3.0), (0, 1, 0, 1), value=9.0)
        return F.avg_pool2d(y, 2, padding=1).sum((1, 2, 3)) + padded.sum((1, 2, 3))


class PartlyWritten(nn.Module):
    """A ReLU over half of a tensor, then a pool over all of it."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y[:, :1].relu_()
        return F.max_pool2d(y, 2)


def test_arguments_of_watched_operators_count() -> None:
    program = capture(Arguments().eval(), torch.randn(1, 2, 4, 4), form="eager")
    ranger = Ranger(Ranges({":elu": Bound(0.5, 2.0), **inherent_ranges(program).bounds}))
    found = {entry.site: entry.bound for entry in ranger.coverage(program) if entry.bound is not None}
    assert found[":elu"] == Bound(-1.5 * (1 + 2**-16), 2.0)
    assert found[":avg_pool"] == Bound(-1.5 * (1 + 2**-16), 2.0).widened(2**-16)
    assert found[":hardtanh"] == Bound(-2.0, 3.0)
    assert found[":pad"] == Bound(-2.0, 9.0)


def test_what_was_written_in_part_is_bounded_in_no_part() -> None:
    program = capture(PartlyWritten().eval(), torch.randn(1, 2, 4, 4), form="eager")
    found = {entry.site: entry for entry in Ranger(Ranges({":relu": Bound(0.0, 1.0)})).coverage(program)}
    assert found[":relu"].bound == Bound(0.0, 1.0)
    assert found[":max_pool"].bound is None
    assert "relu_.default of a part, which is not bounded" in found[":max_pool"].why


def test_all_outputs_can_be_bounded_there_too() -> None:
    net = NETWORKS["concat"]
    program = captured("concat", 1, form="eager")
    ranges = profile_ranges(program, net.batch(4), sites=Values())
    bounded = Ranger(ranges, where="all", last_linear=True).values(program)
    assert set(bounded) == {site.name for site in program.value_sites}
