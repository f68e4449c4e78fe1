from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon.comparison.costs.flops import CONVENTIONS, Convention, count_flops
from hoplon.errors import HoplonError
from hoplon.program._torch_warnings import quiet_torch
from hoplon.program.capturing import capture
from hoplon.program.memory import StoredWords
from hoplon.program.operators import ACTIVATION_KINDS
from hoplon.program.program import Program
from hoplon.program.signature import Signature
from hoplon.program.tracing import trace
from hoplon.protections.guards.tmr import TMR
from hoplon.protections.ranges import Bound, Ranges
from hoplon.protections.values.policy import Clamp, Detect, Policy, ToZero
from hoplon.protections.values.ranger import Ranger
from hoplon_studies.networks.ranger_classifiers import MnistLeNet, Vgg16
from hoplon_studies.networks.steering import Dave
from tests.support.networks import GRAPHS, captured


def bounded(program: Program, *, without: tuple[str, ...] = ("softmax",)) -> Ranger:
    sites = [site for site in program.value_sites if site.kind in ACTIVATION_KINDS and site.kind not in without]
    return Ranger(Ranges({site.name: Bound(0.0, 9.0) for site in sites}), unprofiled="leave")


def millions(flops: float) -> float:
    return round(flops / 1e6, 3)


def test_lenet_of_the_papers_table_iii_to_the_operation() -> None:
    program = capture(MnistLeNet(probabilities=True).eval(), torch.zeros(2, 1, 28, 28))
    found = count_flops(program, [bounded(program)])
    assert found.total == 24_622_140
    assert not found.uncounted
    # the published 24.722M (0.408 %) leaves out the bound of the last ReLU, 2 x 512 operations
    assert found.protection == 2 * (32 * 28**2 + 32 * 14**2 + 64 * 14**2 + 64 * 7**2 + 3136 + 512)
    last = next(entry for entry in found.operators if entry.name == "act3:relu")
    assert (last.flops, last.protection) == (0, 1024)
    assert millions(found.total + found.protection - last.protection) == 24.722
    assert round((found.protection - last.protection) / found.total, 5) == 0.00408


def test_dave_of_the_papers_table_iii() -> None:
    program = capture(Dave().eval(), torch.zeros(2, 3, 66, 200))
    found = count_flops(program, [bounded(program)])
    assert (millions(found.total), millions(found.total + found.protection)) == (56.545, 56.764)
    assert round(found.overhead, 5) == 0.00387


def without_weights(build: Callable[[], nn.Module], example: Tensor) -> Program:
    """A program whose memory was reserved and never written, so that 138 million weights cost nothing."""
    with torch.device("meta"):
        model = build()
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad(), quiet_torch():
        batch = torch.export.Dim("batch", min=2)
        exported = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    signature = Signature.of(type(model).__name__, (example,), {}, axes=(0,))
    return trace(exported, signature, StoredWords.of(model))


def test_vgg16_of_the_papers_table_iii_counts_a_batch_of_ten() -> None:
    program = without_weights(lambda: Vgg16(probabilities=True), torch.zeros(2, 3, 224, 224))
    found = count_flops(program, batch=10)
    assert round(found.total / 1e9, 3) == 309.604
    assert 10 * count_flops(program).total == found.total
    relus = sum(64 * s**2 * n * w for s, n, w in ((224, 2, 1), (112, 2, 2), (56, 3, 4), (28, 3, 8), (14, 3, 8)))
    pools = sum(64 * s**2 * w for s, w in ((112, 1), (56, 2), (28, 4), (14, 8), (7, 8)))
    with_ranger = found.total + 10 * 2 * (relus + pools + 2 * 4096)
    assert round(with_ranger / 1e9, 3) == 309.905


def test_bounds_after_views_are_counted_when_asked_for() -> None:
    program = capture(nn.Sequential(nn.ReLU(), nn.Flatten()).eval(), torch.zeros(2, 3, 5))
    counts = [count_flops(program, [bounded(program)], bound_reshapes=also).protection for also in (False, True)]
    assert counts == [2 * 15, 4 * 15]


class Operators(nn.Module):
    """One of each rule, at sizes whose counts can be checked by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2, bias=False)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(5, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(F.hardswish(self.norm(self.conv(x))))  # (n, 6, 8, 8), then (n, 5, 16, 16)
        x = F.adaptive_avg_pool2d(F.max_pool2d(x, 3, stride=2), 3)  # (n, 5, 7, 7), then (n, 5, 3, 3)
        return F.log_softmax(self.head(x.amax((2, 3))).clamp(-1.0, 1.0), 1)


CONV, UP = 2 * 6 * 64 * 18, 2 * 6 * 64 * 5 * 4
BY_HAND: dict[Convention, dict[str, int]] = {
    "tensorflow": {
        "conv:conv": CONV + 6 * 64,
        "norm:batch_norm": 2 * 6 * 64,
        ":hardswish": 0,
        "up:conv_transpose": UP,
        ":max_pool": 9 * 5 * 49,
        ":adaptive_avg_pool": 5 * 81,  # windows of 3, 3 and 3 along each axis of 7
        ":amax": 5 * 9 - 5,
        "head:linear": 2 * 7 * 5,
        ":clamp": 2 * 7,
        ":log_softmax": 5 * 7,
    },
    "fused": {
        "conv:conv": CONV,
        "norm:batch_norm": 2 * 6 * 64,
        ":hardswish": 6 * 64,
        "up:conv_transpose": UP,
        ":max_pool": 8 * 5 * 49,
        ":adaptive_avg_pool": 5 * 81,
        ":amax": 5 * 9 - 5,
        "head:linear": 2 * 7 * 5,
        ":clamp": 2 * 7,
        ":log_softmax": 5 * 7,
    },
}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_each_rule_against_a_count_by_hand(convention: Convention) -> None:
    program = capture(Operators().eval(), torch.zeros(2, 4, 8, 8))
    found = count_flops(program, convention=convention)
    assert {entry.name: entry.flops for entry in found.operators if not entry.name.endswith("#1")} == BY_HAND[
        convention
    ]
    assert not found.uncounted


def test_attention_is_two_products_and_a_softmax() -> None:
    class Attention(nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, q, q)

    program = capture(Attention().eval(), torch.zeros(2, 3, 5, 8))
    assert count_flops(program).total == 3 * (2 * 5 * 5 * 8 * 2 + 6 * 25)


@pytest.mark.parametrize("name", GRAPHS)
def test_bounds_cost_what_their_convention_says(name: str) -> None:
    program = captured(name)
    ranger = bounded(program, without=())
    sites = {site.name: site for site in program.value_sites}
    effects = ranger.values(program)
    from_zero = sum(sites[site].numel for site, effect in effects.items() if effect.low >= 0)
    below_zero = sum(sites[site].numel for site, effect in effects.items() if effect.low < 0)
    relus = sum(site.numel for site in sites.values() if site.kind == "relu")
    separate, fused = (count_flops(program, [ranger], convention="fused", form=form) for form in ("separate", "fused"))
    assert separate.total == fused.total > 0
    assert separate.protection == 2 * from_zero + 5 * below_zero > 0
    assert fused.protection == separate.protection - relus  # one comparison less at each
    for form in ("separate", "fused"):
        assert count_flops(program, [ranger], form=form).protection == 2 * (from_zero + below_zero)
    assert count_flops(program, [TMR()]).protection == 0


def test_some_nets_have_bounds_below_zero_and_some_have_none() -> None:
    lows = {
        name: min(effect.low for effect in bounded(program, without=()).values(program).values())
        for name, program in ((name, captured(name)) for name in GRAPHS)
    }
    assert min(lows.values()) < 0 <= max(lows.values())


# what each policy runs for one element of a bound below zero, beside selections, which compute nothing
POLICIES: dict[str, tuple[Policy, int]] = {
    "clamp": (Clamp(), 3 + 2),  # NaN, infinity, infinity; two ends
    "zero": (ToZero(), 2 + 2 + 2),  # two ends, and, not; zero between two ends
    "detect": (Detect(), 0 + 4),  # two ends, and, not
}


@pytest.mark.parametrize("name", POLICIES)
def test_other_policies_are_counted_by_what_they_run(name: str) -> None:
    class Gelu(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(x)

    program = capture(Gelu().eval(), torch.zeros(2, 3, 5))
    policy, per_element = POLICIES[name]
    ranger = Ranger(Ranges({":gelu": Bound(-0.25, 2.0)}), policy=policy)
    assert count_flops(program, [ranger], convention="fused").protection == 15 * per_element
    assert count_flops(program, [ranger]).protection == 15 * 2


def test_it_prints_convention_batch_and_what_it_left_out() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(torch.linalg.inv(x) * 2.0)

    program = capture(Turned().eval(), torch.eye(3).repeat(2, 1, 1))
    found = count_flops(program, [bounded(program)], batch=4)
    assert (found.total, found.protection) == (4 * 9, 4 * 18)
    assert found.overhead == 2.0
    assert found.uncounted
    printed = str(found)
    assert printed.startswith("Turned, batch of 4: 36 FLOPs + 72 (200.000%) for protection; at least, since ")
    assert printed.endswith(f" cannot be counted ({CONVENTIONS['tensorflow']})")


def test_a_model_without_operations_has_no_overhead() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flip(1).clone()

    found = count_flops(capture(Turned().eval(), torch.zeros(2, 3)))
    assert found.total == 0
    assert math.isnan(found.overhead)


def test_what_cannot_be_counted_is_refused() -> None:
    program = captured("mlp")
    with pytest.raises(
        HoplonError, match="expected convention of count_flops to be 'tensorflow' or 'fused', got 'caffe'"
    ):
        count_flops(program, convention="caffe")  # type: ignore[arg-type]
    with pytest.raises(HoplonError, match="expected form of count_flops to be 'separate' or 'fused', got 'melted'"):
        count_flops(program, form="melted")  # type: ignore[arg-type]
    with pytest.raises(HoplonError, match="expected batch of count_flops to be an integer of at least 1 .*, got 0"):
        count_flops(program, batch=0)
    eager = captured("mlp", 1, form="eager")
    with pytest.raises(HoplonError, match="expected an exported program to count, got Mlp in the eager form"):
        count_flops(eager)
