from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hoplon.errors import DataError, HoplonError, HoplonWarning
from hoplon.program.capturing import capture
from hoplon.program.inputs import Inputs
from hoplon.program.program import Program
from hoplon.program.sites import Values
from hoplon.protections.ranges import Bound, Profile, profile_activations, profile_ranges
from hoplon.protections.ranges.histogram import RELATIVE_ERROR


class Net(nn.Module):
    """A relu of a picture of three channels, and a tanh of a row."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).mean((2, 3)) + torch.tanh(x.mean((2, 3)))


def data(count: int = 96, seed: int = 1) -> Tensor:
    x = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return x * torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1)


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(Net().eval(), data(4))


@pytest.fixture(scope="module")
def profile(program: Program) -> Profile:
    return profile_activations(program, Inputs(data(), name="train"), per_channel=True, batch=16)


def test_quantiles_of_values_and_of_image_maxima_are_different_things(profile: Profile) -> None:
    relu, maxima = data().relu(), data().relu().flatten(1).amax(1)
    of_values = profile.ranges(quantile=0.9)[":relu"].high
    of_images = profile.ranges(quantile=0.9, quantile_of="image-maxima")[":relu"].high
    assert (relu <= of_values).double().mean() >= 0.9
    assert (relu <= of_values * (1 - RELATIVE_ERROR)).double().mean() < 0.9
    assert (maxima <= of_images).double().mean() >= 0.9
    assert (maxima <= of_images * (1 - RELATIVE_ERROR)).double().mean() < 0.9
    assert of_images > 2 * of_values
    assert profile.ranges(quantile=0.9, quantile_of="image-maxima").choice == "quantile 0.9 of image-maxima"


def test_each_channel_has_its_own_extremes(profile: Profile) -> None:
    ranges = profile.ranges(per_channel=True)
    found = ranges.channels[":relu"]
    assert found.axis == 0
    assert [bound.high for bound in found.channels] == data().relu().amax((0, 2, 3)).tolist()
    assert found.hull == ranges[":relu"]
    assert ranges.channels[":tanh"].axis == 0
    assert len(profile.ranges(quantile=0.5, per_channel=True).channels[":relu"].channels) == 3


def test_what_was_not_observed_is_refused(program: Program, profile: Profile) -> None:
    plain = profile_activations(program, data(), quantiles=False)
    with pytest.raises(HoplonError, match="profile with per_channel=True"):
        plain.ranges(per_channel=True)
    with pytest.raises(DataError, match="profile with quantiles=True"):
        plain.ranges(quantile=0.9)
    with pytest.raises(
        HoplonError, match=r"expected quantile of Profile\.ranges to be a number above 0 and of at most 1, got 1\.5"
    ):
        profile.ranges(quantile=1.5)


def test_the_batch_size_does_not_matter(program: Program, profile: Profile) -> None:
    other = profile_activations(program, Inputs(data(), name="train"), per_channel=True, batch=7)
    assert other.ranges(quantile=0.99, per_channel=True) == profile.ranges(quantile=0.99, per_channel=True)
    assert other.history == profile.history
    assert [count for count, _ in profile.history] == [1, 2, 4, 8, 16, 32, 64, 96]


def test_profiles_of_two_machines_merge_into_that_of_all_data(program: Program, profile: Profile) -> None:
    first, second = (
        profile_activations(program, Inputs(part, name="train"), per_channel=True) for part in data().split([32, 64])
    )
    both = first.merge(second)
    assert both.sites == profile.sites
    assert both.ranges(quantile=0.9) == profile.ranges(quantile=0.9)
    assert (both.n_samples, both.history[-1]) == (96, profile.history[-1])
    assert both.seconds == first.seconds + second.seconds > 0


def test_profiles_that_do_not_belong_together_are_refused(program: Program, profile: Profile) -> None:
    with pytest.raises(HoplonError, match="expected profiles of the same sites of one program"):
        profile.merge(replace(profile, fingerprint="another"))
    with pytest.raises(HoplonError, match="with the same channels to merge, got 3 and 0"):
        profile.merge(profile_activations(program, data()))
    with pytest.raises(HoplonError, match="both profiles with quantiles or both without"):
        profile.merge(profile_activations(program, data(), per_channel=True, quantiles=False))


def test_any_iterable_of_batches_and_a_map_style_data_set_give_the_same(program: Program) -> None:
    dataset = TensorDataset(data(), torch.zeros(96, dtype=torch.int64))
    wanted = profile_ranges(program, data())
    assert profile_ranges(program, dataset) == wanted
    assert profile_ranges(program, DataLoader(dataset, batch_size=10)) == wanted
    assert profile_ranges(program, (part for part in data().split(5))) == wanted
    with pytest.raises(DataError, match="expected at least one batch to profile, got none"):
        profile_ranges(program, [])
    with pytest.raises(
        DataError,
        match="expected .* to be Inputs or a Dataset or a Tensor or a mapping .* or an iterable, got 3",
    ):
        profile_ranges(program, 3)  # type: ignore[arg-type]


def test_a_file_gives_the_same_profile_back(profile: Profile, tmp_path: Path) -> None:
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == profile
    (tmp_path / "profile.json").write_text("[]")
    with pytest.raises(DataError, match=r"expected a file of a profile in .*profile\.json"):
        Profile.load(tmp_path / "profile.json")


def test_memory_does_not_grow_with_the_data(program: Program) -> None:
    repeated = profile_activations(program, [data()] * 12)
    once = profile_activations(program, data())
    assert repeated.n_samples == 12 * once.n_samples
    for name, site in once.sites.items():
        assert len(repeated.sites[name].whole.values.bins) == len(site.whole.values.bins)


def test_convergence_is_the_share_of_the_final_range_by_number_of_samples(program: Program) -> None:
    x = torch.ones(8, 3, 4, 4) * torch.tensor([1.0, 2, 2, 2, 4, 4, 4, 4]).view(8, 1, 1, 1)
    profile = profile_activations(program, x, tolerance=1)
    assert [(count, shares[":relu"]) for count, shares in profile.convergence()] == [
        (1, 0.25),
        (2, 0.5),
        (4, 0.5),
        (8, 1),
    ]
    assert profile.unconverged()[":relu"] == 0.5
    assert profile.unconverged(tolerance=0.5) == {}


def test_a_range_that_still_grows_is_warned_of_and_one_that_does_not_is_not(program: Program) -> None:
    x = data(16)
    with pytest.warns(HoplonWarning, match=r"last half of 17 samples widened 2 of 2 ranges .*\(:relu by \d+ %\)"):
        profile_activations(program, torch.cat([x / 1e6, x[:1]]))
    with pytest.warns(HoplonWarning, match="by 100 %"):
        profile_activations(program, x[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        profile_activations(program, torch.cat([x, x]))


def test_a_site_that_is_named_is_profiled_whatever_it_is(program: Program) -> None:
    found = profile_ranges(program, data(), sites=Values(kind="mean"))
    assert list(found.bounds) == [":mean", ":mean.1"]
    assert found[":mean.1"] == Bound(*(float(end) for end in torch.aminmax(data().mean((2, 3)))))
