"""What every policy promises: a finite value inside of the bound, whatever the word, in every format."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon.errors import HoplonError
from hoplon.formats import equal_bits
from hoplon.program.capturing import capture
from hoplon.program.program import Program
from hoplon.protections.base import ValueProtection
from hoplon.protections.export.formats import export_onnx, export_pt2
from hoplon.protections.ranges import Bound, ChannelBounds, Ranges, profile_ranges
from hoplon.protections.runtime.lowering import harden
from hoplon.protections.runtime.passes import added_passes
from hoplon.protections.values.policy import Clamp, Detect, Policy, RandomInRange, ToMedian, ToZero
from hoplon.protections.values.ranger import Ranger
from tests.support.examples import name_of, others
from tests.support.networks import NETWORKS, captured, seeded
from tests.support.oracles import DTYPES, awkward, outwards

ROWS: list[Policy] = [Clamp(), ToZero(), RandomInRange(seed=3)]
BOUNDS = [Bound(0.0, 6.0), Bound(0.25, 4.0), Bound(-0.5, 3.0), Bound(-2.0, -1.0), Bound(0.0, 0.0), Bound(0.1, 0.7)]
POLICIES = [*ROWS, *others("policy", [*ROWS, Detect()]).values()]


def effect(policy: Policy, bound: Bound | ChannelBounds) -> ValueProtection:
    return policy.effect(bound, site="a:relu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bound", BOUNDS, ids=str)
@pytest.mark.parametrize("policy", POLICIES, ids=partial(name_of, "policy"))
def test_every_word_ends_finite_inside_the_bound_and_inner_values_stay(
    policy: Policy, bound: Bound, dtype: torch.dtype
) -> None:
    values, protection = awkward(dtype), effect(policy, bound)
    low, high = outwards((bound.low, bound.high), dtype)
    wrong = protection.outside(values)
    assert wrong is not None
    assert wrong.equal(~((values >= low) & (values <= high)))
    assert wrong.any()
    before, out = values.clone(), protection(values)
    assert equal_bits(values, before)
    assert ((out >= low) & (out <= high)).all()
    inner = ~wrong & (values != 0)
    assert equal_bits(out[inner], values[inner])
    assert protection.apply_(values) is values
    assert equal_bits(values, out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("policy", POLICIES, ids=partial(name_of, "policy"))
def test_channels_are_treated_as_if_each_stood_alone(policy: Policy, dtype: torch.dtype) -> None:
    bounds = BOUNDS[:4]
    values = awkward(dtype).view(-1, 4, 8, 8)
    out = effect(policy, ChannelBounds(1, tuple(bounds)))(values)
    for channel, bound in enumerate(bounds):
        assert out[:, channel].equal(effect(policy, bound)(values[:, channel].contiguous()))
    one = effect(policy, ChannelBounds(0, tuple(bounds)))(values.movedim(1, 0).contiguous())
    assert one.equal(out.movedim(1, 0))


@pytest.mark.parametrize("policy", POLICIES, ids=partial(name_of, "policy"))
@pytest.mark.parametrize(
    "bound", [Bound(-0.5, 0.5), ChannelBounds(1, (Bound(0, 1), Bound(-1, 1), Bound(0, 2)))], ids=str
)
def test_strides_are_kept(policy: Policy, bound: Bound | ChannelBounds) -> None:
    value = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert effect(policy, bound)(value).stride() == value.stride()


def test_zero_is_the_nearest_end_where_the_bound_leaves_it_out() -> None:
    wrong = torch.tensor([math.nan, math.inf, -9.0])
    assert effect(ToZero(), Bound(-1.0, 1.0))(wrong).tolist() == [0.0, 0.0, 0.0]
    assert effect(ToZero(), Bound(0.5, 1.0))(wrong).tolist() == [0.5, 0.5, 0.5]
    assert effect(ToZero(), Bound(-2.0, -1.0))(wrong).tolist() == [-1.0, -1.0, -1.0]


def test_a_random_replacement_depends_on_seed_site_and_word_alone() -> None:
    wrong: Tensor = 7.0 + torch.arange(20_000.0)
    bound = Bound(2.0, 6.0)
    drawn = effect(RandomInRange(), bound)(wrong)
    assert drawn.equal(effect(RandomInRange(), bound)(wrong.flip(0)).flip(0))
    assert drawn[:5].equal(effect(RandomInRange(), bound)(wrong[:5]))
    assert (drawn != effect(RandomInRange(seed=1), bound)(wrong)).double().mean() > 0.99
    assert (drawn != RandomInRange().effect(bound, site="b:relu")(wrong)).double().mean() > 0.99
    # uniform on [2, 6]: the mean of 20,000 has a standard deviation of 0.0082, a decile's share one of 0.0021
    assert abs(float(drawn.mean()) - 4) < 5 * 0.0082
    assert ((drawn < 2.4).double().mean() - 0.1).abs() < 5 * 0.0021
    assert ((drawn > 5.6).double().mean() - 0.1).abs() < 5 * 0.0021


def test_tracing_leaves_nothing_behind_that_a_run_would_trip_over() -> None:
    net = NETWORKS["concat"]
    program = captured("concat")
    ranges = profile_ranges(program, net.batch(8), per_channel=True)
    module = harden(program, [Ranger(ranges)])
    added_passes(module)  # runs the protections on tensors without values
    torch.export.export(module.graph_module, (net.batch(2),), strict=False)
    with torch.inference_mode():
        assert equal_bits(module(net.batch(8)), program(net.batch(8)))


def test_a_detector_is_not_exported_in_silence(tmp_path: Path) -> None:
    net = NETWORKS["concat"]
    program = captured("concat")
    module = harden(program, [Ranger(profile_ranges(program, net.batch(8)), policy=Detect())])
    with pytest.raises(HoplonError, match="expected a module whose bounds act by themselves, got ranger-detect"):
        export_pt2(module, tmp_path / "detector.pt2")


class Channels(nn.Module):
    """Values per channel behind a function below zero, then pooled, then mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.leaky_relu(self.conv(x), 0.5), 2).amax((2, 3)).flatten(1)


@pytest.fixture(scope="module")
def centred() -> tuple[Program, Tensor, Ranger]:
    x = torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    program = capture(seeded(Channels()), x[:4])
    return program, x, Ranger(profile_ranges(program, x, medians=True), policy=ToMedian())


def test_the_median_is_that_of_the_channel_and_follows_pools(
    centred: tuple[Program, Tensor, Ranger],
) -> None:
    program, x, ranger = centred
    with torch.inference_mode():
        seen = F.leaky_relu(F.conv2d(x, *(program.tensors[f"conv.{name}"] for name in ("weight", "bias"))), 0.5)
        wanted = seen.movedim(1, 0).flatten(1).median(1).values
        effects = ranger.values(program)
        struck = effects[":leaky_relu"](torch.full((1, 3, 2, 2), 1e30))
        assert torch.allclose(struck, wanted.view(1, 3, 1, 1).expand(1, 3, 2, 2), rtol=2**-7, atol=1e-3)
        assert len(set(wanted.tolist())) == 3
        assert effects[":max_pool"](torch.full((1, 3, 1, 1), torch.nan)).equal(struck[..., :1, :1])
        assert effects[":amax"](torch.full((1, 3), torch.inf)).tolist() == [[0.0] * 3]  # channels are one bound there
        assert equal_bits(harden(program, [ranger])(x), program(x))
    assert ranger.label == "ranger-median"
    assert effects[":leaky_relu"].extra_bytes == 3 * 24


def test_medians_act_alike_in_overlay_module_and_files(centred: tuple[Program, Tensor, Ranger], tmp_path: Path) -> None:
    program, x, ranger = centred
    far, module = 40 * x, harden(program, [ranger])
    effects = {program.site_steps[name]: effect for name, effect in ranger.values(program).items()}
    with torch.inference_mode():
        (wanted,) = program.run([far], hook=lambda step, value: effects[step](value) if step in effects else value)
        assert not wanted.equal(program(far))
        assert equal_bits(module(far), wanted)
        export_pt2(module, tmp_path / "medians.pt2")
        assert equal_bits(torch.export.load(tmp_path / "medians.pt2").module()(far), wanted)
    runtime = pytest.importorskip("onnxruntime")
    export_onnx(module, tmp_path / "medians.onnx")
    session = runtime.InferenceSession(str(tmp_path / "medians.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: far.numpy()})
    assert torch.isclose(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-4).float().mean() > 0.98  # near an end


def test_ranges_without_medians_are_refused_and_medians_cost_other_ranges_nothing(
    centred: tuple[Program, Tensor, Ranger], tmp_path: Path
) -> None:
    program, x, ranger = centred
    usual = profile_ranges(program, x, per_channel=True)
    with pytest.raises(HoplonError, match="expected medians of channels for the policy median, got ranges without"):
        Ranger(usual, policy=ToMedian()).values(program)
    assert not any(bounds.medians for bounds in usual.channels.values())
    ranger.ranges.save(tmp_path / "ranges.json")
    assert Ranges.load(tmp_path / "ranges.json") == ranger.ranges
    with pytest.raises(HoplonError, match="expected 2 medians, one per channel, got 1"):
        ChannelBounds(0, (Bound(0, 1), Bound(0, 1)), (0.5,))
