from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon.program.capturing import capture
from hoplon.protections.ranges import Bound, Ranges, profile_ranges
from hoplon.protections.runtime.hardened_module import HardenedModule
from hoplon.protections.runtime.lowering import Form, harden
from hoplon.protections.runtime.passes import added_passes
from hoplon.protections.values.ranger import Ranger
from tests.support.networks import GRAPHS, NETWORKS, captured


def hardened(name: str, form: Form) -> HardenedModule:
    net = NETWORKS[name]
    program = captured(name)
    return harden(program, [Ranger(profile_ranges(program, net.batch(4)))], form=form)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_fused_form_adds_no_pass_over_any_relu(name: str) -> None:
    separate, fused = added_passes(hardened(name, "separate")), added_passes(hardened(name, "fused"))
    assert separate.keys() == fused.keys() == hardened(name, "fused").overlay.values.keys()
    relus = {site for site in separate if ":relu" in site}
    assert {site: separate[site] for site in relus} == dict.fromkeys(relus, 1)
    assert {site: fused[site] for site in relus} == dict.fromkeys(relus, 0)
    others = separate.keys() - relus
    assert {site: separate[site] for site in others} == {site: fused[site] for site in others}
    assert all(separate[site] >= 1 for site in others)


class Kinds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool1d(F.relu_(x * 2.0), 2) + F.silu(x)[:, :, ::2]


def test_passes_over_other_operators_are_counted() -> None:
    program = capture(Kinds().eval(), torch.zeros(2, 3, 8))
    ranger = Ranger(Ranges({":relu": Bound(0.0, 1.0), ":silu": Bound(-0.5, 1.0)}))
    assert added_passes(harden(program, [ranger], form="fused")) == {":relu": 0, ":max_pool": 1, ":silu": 2}
    assert added_passes(harden(program, [])) == {}
