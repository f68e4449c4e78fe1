"""Bounds per channel wherever the channels are: batches in front, folded or absent, channels first or last."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon import Program, capture
from hoplon.errors import HoplonError
from hoplon.protections.ranges import Bound, ChannelBounds, Ranges, profile_activations, profile_ranges
from hoplon.protections.values.ranger import Ranger


class Pictures(nn.Module):
    """A ReLU over (channels, rows, columns), a pool, a GELU over a row of features."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.fc(F.max_pool2d(F.relu(x), 2).mean((2, 3))))


class Tokens(nn.Module):
    """Features of all tokens in one matrix, (batch x tokens, features); scores with heads folded into the batch."""

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, features = x.shape
        rows = F.gelu(x.reshape(batch * tokens, features)).view(batch, tokens, features)
        heads = rows.view(batch, tokens, 2, features // 2).transpose(1, 2).reshape(batch * 2, tokens, features // 2)
        scores = torch.softmax(heads @ heads.transpose(1, 2), 2)
        return scores.view(batch, 2 * tokens * tokens) * 2


def pictures(count: int = 8) -> Tensor:
    x = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return x * torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1)


def tokens(count: int = 6) -> Tensor:
    x = torch.randn(count, 5, 4, generator=torch.Generator().manual_seed(0))
    return x * torch.tensor([1.0, 10.0, 100.0, 1000.0])


@pytest.fixture(scope="module")
def folded() -> Program:
    return capture(Tokens().eval(), tokens())


@pytest.mark.parametrize("form", ["export", "eager"])
def test_each_channel_has_its_bound_in_both_forms(form: str) -> None:
    torch.manual_seed(0)
    model, x = Pictures().eval(), pictures()
    program = capture(model, x, form=form)
    ranges = replace(profile_ranges(program, x, per_channel=True), slack=0.0)
    found = ranges.channels[":relu"]
    assert found.axis == 0
    assert [bound.high for bound in found.channels] == x.relu().amax((0, 2, 3)).tolist()
    assert ranges.channels[":gelu"].axis == 0
    with torch.inference_mode():
        assert [bound.high for bound in ranges.channels[":gelu"].channels] == pytest.approx(model(x).amax(0).tolist())
    ranger = Ranger(ranges)
    listing = {entry.site: entry.per_channel for entry in ranger.coverage(program) if entry.bound}
    assert listing == {":relu": True, ":max_pool": True, ":mean": False, ":gelu": True}
    effects = ranger.values(program)
    for site, size in ((":relu", 6), (":max_pool", 3)):
        wrong = torch.full((1, 3, size, size), 1e9)
        assert effects[site](wrong).amax((0, 2, 3)).tolist() == x.relu().amax((0, 2, 3)).tolist()


def test_channels_beside_a_folded_batch(folded: Program) -> None:
    x = tokens()
    ranges = replace(profile_ranges(folded, x, per_channel=True, channel_axis={":softmax": 2}), slack=0.0)
    found = ranges.channels[":gelu"]
    assert (found.axis, [bound.high for bound in found.channels]) == (1, F.gelu(x).amax((0, 1)).tolist())
    effects = Ranger(ranges).values(folded)
    assert effects[":gelu"](torch.full((10, 4), 1e9))[0].tolist() == F.gelu(x).amax((0, 1)).tolist()
    scores = ranges.channels[":softmax"]
    assert (scores.axis, len(scores.channels)) == (2, 5)
    assert effects[":softmax"](torch.full((12, 5, 5), 2.0))[0, 0].tolist() == [bound.high for bound in scores.channels]


def test_channels_folded_with_the_batch_are_refused_with_the_way_out(folded: Program) -> None:
    with pytest.raises(
        HoplonError,
        match=r"channels of :softmax on an axis of their own, got axis 0 .*folds.*channel_axis=\{':softmax': -1\}",
    ):
        profile_activations(folded, tokens(), per_channel=True)


@pytest.mark.parametrize("form", ["export", "eager"])
def test_channels_last_are_named(form: str) -> None:
    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x).mean((1, 2))

    x = pictures().permute(0, 2, 3, 1).contiguous()
    program = capture(Last().eval(), x, form=form)
    by_default = profile_ranges(program, x, per_channel=True)
    assert len(by_default.channels[":relu"].channels) == 6  # the rows
    for wanted in (-1, 2, {":re*": -1}):
        ranges = replace(profile_ranges(program, x, per_channel=True, channel_axis=wanted), slack=0.0)  # type: ignore[arg-type]
        found = ranges.channels[":relu"]
        assert (found.axis, [bound.high for bound in found.channels]) == (2, x.relu().amax((0, 1, 2)).tolist())
        effect = Ranger(ranges).values(program)[":relu"]
        assert effect(torch.full((1, 6, 6, 3), 1e9))[0, 0, 0].tolist() == x.relu().amax((0, 1, 2)).tolist()


def test_axes_that_make_no_sense_are_refused() -> None:
    program, x = capture(Pictures().eval(), pictures()), pictures()
    with pytest.raises(
        HoplonError, match=r"a channel axis in \[-1, 1\) for :gelu, .*shape \(5,\), got 1; channel_axis"
    ):
        profile_ranges(program, x, per_channel=True, channel_axis=1)
    with pytest.raises(HoplonError, match="no profiled site matches 'nobody'"):
        profile_ranges(program, x, per_channel=True, channel_axis={"nobody": 0})
    with pytest.raises(HoplonError, match="expected per_channel=True beside channel_axis, got channel_axis=0 alone"):
        profile_ranges(program, x, channel_axis=0)
    two = Ranges({":relu": Bound(0.0, 1.0)}, {":relu": ChannelBounds(0, (Bound(0.0, 1.0),) * 2)})
    with pytest.raises(HoplonError, match="expected bounds of 3 channels for axis 0 of :relu, got 2; profile"):
        Ranger(two).values(program)
