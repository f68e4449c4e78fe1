from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoplon.errors import HoplonError, SiteError
from hoplon.program.capturing import capture
from hoplon.program.program import Program
from hoplon.program.sites import Values
from hoplon.protections.base import overlay
from hoplon.protections.ranges import Bound, Ranges, inherent_ranges, profile_ranges
from hoplon.protections.values.ranger import Ranger
from tests.support.networks import NETWORKS, WIRINGS, captured, seeded


def bounds(program: Program, ranges: dict[str, Bound]) -> dict[str, Bound]:
    effects = Ranger(Ranges(ranges), unprofiled="leave").values(program)
    return {site: Bound(effect.low, effect.high) for site, effect in effects.items()}


def roomy(bound: Bound) -> Bound:
    return Bound(bound.low * (1 + 2**-16), bound.high * (1 + 2**-16))


class Equation1(nn.Module):
    """y = ReLU2(Conv(MaxPool(ReLU1(x)))), the paper's equation (1)."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool1d(2)
        self.conv = nn.Conv1d(1, 4, 1, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(self.pool(F.relu(x))))


def struck(program: Program, site: str, fault: float, effects: dict[str, object]) -> Tensor:
    """The output with a fault added at a site, before the site's own protection."""
    names = {step: name for name, step in program.site_steps.items()}

    def hook(step: int, value: Tensor) -> Tensor:
        name = names.get(step)
        if name == site:
            value = value + fault
        effect = effects.get(name or "")
        return effect(value) if callable(effect) else value

    with torch.inference_mode():
        return program.run([torch.tensor([[[1.0, 2.0]]] * 2)], hook=hook)[0]


def test_the_papers_worked_example() -> None:
    program = capture(Equation1().eval(), torch.tensor([[[1.0, 2.0]]] * 2))
    first, second = (site.name for site in program.value_sites if site.kind == "relu")
    pool = next(site.name for site in program.value_sites if site.kind == "max_pool")
    ranges = {first: Bound(0.0, 10.0), second: Bound(0.0, 1000.0)}
    assert bounds(program, ranges) == {first: Bound(0, 10), pool: Bound(0, 10), second: Bound(0, 1000)}
    effects = dict(Ranger(Ranges(ranges)).values(program))
    on_activations = {first: effects[first], second: effects[second]}
    assert struck(program, pool, 0.0, effects).unique().tolist() == [2.0]
    assert struck(program, pool, 1024.0, {}).unique().tolist() == [1026.0]
    assert struck(program, pool, 1024.0, dict(on_activations)).unique().tolist() == [1000.0]
    assert struck(program, pool, 1024.0, dict(effects)).unique().tolist() == [10.0]


def test_the_bound_ends_at_a_residual_addition_and_reaches_the_adaptive_pool() -> None:
    program = captured("in-place-sum", 5)
    found = bounds(program, {"relu:relu": Bound(0.0, 3.0), "relu:relu.1": Bound(0.0, 5.0)})
    assert found == {
        "relu:relu": Bound(0.0, 3.0),
        "relu:relu.1": Bound(0.0, 5.0),
        ":adaptive_avg_pool": roomy(Bound(0.0, 5.0)),
    }


def test_a_concatenation_takes_the_hull_of_its_own_inputs_and_hands_it_on() -> None:
    program = captured("branches", 5)
    found = bounds(program, {":relu": Bound(0.0, 7.0), ":relu.1": Bound(0.0, 2.0)})
    assert found == {
        ":relu": Bound(0.0, 7.0),
        ":relu.1": Bound(0.0, 2.0),
        ":cat": Bound(0.0, 7.0),
        "pool:max_pool": Bound(0.0, 7.0),
        ":avg_pool": roomy(Bound(0.0, 7.0)),
    }


def test_a_concatenation_with_an_unbounded_input_is_not_bounded() -> None:
    program = captured("branches", 5)
    listing = {entry.site: entry for entry in Ranger(Ranges({":relu": Bound(0.0, 7.0)})).coverage(program)}
    assert listing[":cat"].bound is None
    assert listing[":cat"].why == "cat reads :relu.1, which is not bounded"
    assert listing[":relu.1"].why == "relu was not profiled"
    assert listing["left:conv"].why == "conv is not known to keep the range of what it reads"
    assert listing[":relu"].why == "profiled"


def test_the_values_of_a_max_pool_are_bounded_and_its_indices_are_not() -> None:
    program = captured("pooled", 5)
    kinds = {site.name: site.kind for site in program.value_sites}
    found = bounds(program, {"act:hardtanh": Bound(0.0, 6.0)})
    assert {kinds[name] for name in found} == {"hardtanh", "adaptive_max_pool", "cat", "mean"}
    assert not any("#1" in name for name in found)
    assert all(program.value_site(name).dtype.is_floating_point for name in found)
    assert any(site.kind == "cat" and not site.dtype.is_floating_point for site in program.value_sites)


class Padded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(x)
        counted = F.avg_pool2d(y, 2, padding=1)
        left_out = F.avg_pool2d(y, 2, padding=1, count_include_pad=False)
        divided = F.avg_pool2d(y, 2, divisor_override=1)
        constant = F.pad(y, (0, 1), value=3.0)
        reflected = F.pad(y, (1, 1, 0, 0), mode="reflect")
        cast = F.max_pool2d(y.double(), 2)
        return (
            (counted + left_out).sum((1, 2, 3))
            + divided.sum((1, 2, 3))
            + constant.sum((1, 2, 3))
            + (reflected.sum((1, 2, 3)) + cast.sum((1, 2, 3)))
        )


def test_padding_enters_the_bound_and_what_rescales_ends_it() -> None:
    program = capture(Padded().eval(), torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    found = bounds(program, {":sigmoid": Bound(0.25, 0.5)})
    assert found.pop(":avg_pool") == Bound(0.0, 0.5 * (1 + 2**-16))
    assert found.pop(":avg_pool.1") == Bound(0.25 * (1 - 2**-16), 0.5 * (1 + 2**-16))
    assert ":avg_pool.2" not in found
    assert found.pop(":pad") == Bound(0.25, 3.0)
    assert found.pop(":max_pool") == Bound(0.25, 0.5)  # rounding to another float format keeps the order
    assert set(found) == {":sigmoid", ":pad.1"}


def test_a_relu_is_bounded_from_zero_whatever_was_seen() -> None:
    program = captured("in-place-sum", 5)
    assert bounds(program, {"relu:relu": Bound(0.5, 3.0)})["relu:relu"] == Bound(0.0, 3.0)


@pytest.mark.parametrize("case", WIRINGS)
def test_calibration_inputs_come_out_unchanged(case: str) -> None:
    program = captured(case, 5)
    x = NETWORKS[case].batch(16)
    effects = overlay(program, [Ranger(profile_ranges(program, x, batch=16))]).values
    assert effects
    steps = {program.site_steps[name]: effect for name, effect in effects.items()}
    hit = []

    def hook(step: int, value: Tensor) -> Tensor:
        if step in steps:
            hit.append(step)
            bounded = steps[step](value)
            assert bounded.equal(value)
            return bounded
        return value

    with torch.inference_mode():
        outputs = program.run([x], hook=hook)
    assert len(hit) == len(steps)
    assert outputs[0].equal(program(x))


def test_ranges_of_another_model_are_refused() -> None:
    program = captured("in-place-sum", 5)
    ranges = profile_ranges(program, NETWORKS["in-place-sum"].batch(5), sites=Values(kind="relu"))
    other = captured("shared", 5)
    with pytest.raises(HoplonError, match="outputs of Shared, got site 'relu:relu' profiled on InPlaceSum"):
        Ranger(ranges).values(other)
    trained_further = capture(NETWORKS["in-place-sum"].model(1), NETWORKS["in-place-sum"].batch(5))
    with pytest.raises(HoplonError, match=r"made for InPlaceSum with these weights.*for_any_weights\(\)"):
        overlay(trained_further, [Ranger(ranges)])
    assert overlay(trained_further, [Ranger(ranges.for_any_weights())]).values == Ranger(ranges).values(program)


class Functions(nn.Module):
    """Activations with a range of their own, one without, and nothing profiled."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = torch.tanh(y) + F.leaky_relu(y) + F.hardtanh(y, -2.0, 3.0)
        return self.last(torch.cat([y, F.relu6(y)], 1)[:, :6]).softmax(1)


@pytest.fixture(scope="module")
def functions() -> Program:
    return capture(seeded(Functions()), torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))


def test_without_a_profile_functions_keep_to_their_own_range(functions: Program) -> None:
    found = {entry.site: entry for entry in Ranger(inherent_ranges(functions)).coverage(functions)}
    assert {name: (entry.bound, entry.why) for name, entry in found.items() if entry.bound} == {
        ":tanh": (Bound(-1, 1), "known"),
        ":hardtanh": (Bound(-2, 3), "known"),
        ":hardtanh.1": (Bound(0, 6), "known"),
        ":softmax": (Bound(0, 1), "known"),
    }
    assert found[":leaky_relu"].why == "leaky_relu was not profiled"
    assert found["last:linear"].why == "the last linear layer, whose values are the output"


def test_the_lower_end_of_a_one_sided_function_is_its_own() -> None:
    class Elu(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(F.elu(x, 1.5).amax(1))

    program = capture(Elu().eval(), torch.randn(3, 4))
    found = bounds(program, {":elu": Bound(-0.2, 2.0), ":gelu": Bound(0.0, 3.0)})
    assert found == {
        ":elu": Bound(-1.5 * (1 + 2**-16), 2.0),
        ":amax": Bound(-1.5 * (1 + 2**-16), 2.0),
        ":gelu": Bound(-0.1701, 3.0),
    }


def test_the_upper_end_of_a_one_sided_function_is_its_own_too() -> None:
    class Logs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.log_softmax(F.logsigmoid(x).amax(2), 1)

    x = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0))
    program = capture(Logs().eval(), x)
    found = bounds(program, {":log_sigmoid": Bound(-3.0, -0.5), ":log_softmax": Bound(-5.0, -0.25)})
    assert found == {":log_sigmoid": Bound(-3.0, 0.0), ":amax": Bound(-3.0, 0.0), ":log_softmax": Bound(-5.0, 0.0)}
    ranger = Ranger(replace(profile_ranges(program, x, per_channel=True), slack=0.0))
    effect = ranger.values(program)[":log_softmax"]
    lows = program(x).amin(0)
    with torch.inference_mode():
        assert effect(torch.full((1, 3), -1e9)).equal(lows[None])
        assert effect(torch.full((1, 3), 1e9)).tolist() == [[0.0] * 3]


def test_functions_that_end_on_both_sides_keep_to_their_own_ends_as_in_the_paper(functions: Program) -> None:
    two_sided = {":tanh": (-1, 1), ":hardtanh": (-2, 3), ":hardtanh.1": (0, 6), ":softmax": (0, 1)}
    observed = Ranges({name: Bound(0.25, 0.5) for name in [*two_sided, ":leaky_relu"]})
    for ranges in (observed, Ranges({":leaky_relu": Bound(0.25, 0.5)})):  # with calibration data of them, and without
        ranger = Ranger(ranges, inherent="both-ends")
        found = {name: (effect.low, effect.high) for name, effect in ranger.values(functions).items()}
        assert found == {**two_sided, ":leaky_relu": (0.25, 0.5)}
    assert {(e.low, e.high) for e in Ranger(observed).values(functions).values()} == {(0.25, 0.5)}
    assert set(Ranger(Ranges({}), inherent="both-ends", unprofiled="leave").values(functions)) == set(two_sided)
    assert ranger.label == "ranger-both-ends"
    x = 100 * torch.randn(64, 6, generator=torch.Generator().manual_seed(2))  # far beyond what was observed
    names, effects = {step: name for name, step in functions.site_steps.items()}, ranger.values(functions)
    met = []

    def clips(step: int, value: Tensor) -> Tensor:
        if (name := names.get(step)) in two_sided:
            met.append(name)
            assert not effects[name].outside(value).any()
        return value

    functions.run([x], hook=clips)
    assert set(met) == set(two_sided)


def test_the_variants_bound_more_and_more(functions: Program) -> None:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    ranges = profile_ranges(functions, x, sites=Values())
    activations = {":tanh", ":leaky_relu", ":hardtanh", ":hardtanh.1", ":softmax"}
    rest = {site.name for site in functions.value_sites} - activations - {"last:linear"}
    assert set(Ranger(ranges, where="activations").values(functions)) == activations
    assert set(Ranger(ranges).values(functions)) == activations
    assert set(Ranger(ranges, where="all").values(functions)) == activations | rest
    assert set(Ranger(ranges, last_linear=True).values(functions)) == activations | {"last:linear"}
    assert [Ranger(ranges, where="all", last_linear=True).label, Ranger(ranges).label] == ["ranger-all+last", "ranger"]


def test_activations_only_leaves_the_pool_alone_where_algorithm_1_does_not() -> None:
    program = captured("branches", 5)
    ranges = Ranges({":relu": Bound(0.0, 7.0), ":relu.1": Bound(0.0, 2.0)})
    found = {entry.site: entry for entry in Ranger(ranges, where="activations").coverage(program)}
    assert {name for name, entry in found.items() if entry.bound} == {":relu", ":relu.1"}
    assert found["pool:max_pool"].why == "max_pool is no activation"


class Chained(nn.Module):
    """Pools and concatenations right behind activations, and one step further."""

    def forward(self, x: Tensor) -> Tensor:
        one, other = F.relu(x), F.dropout(F.relu(-x), training=self.training)
        both = torch.cat([one, other], 1)
        pooled = F.avg_pool2d(one, 2)
        mixed = torch.cat([F.max_pool2d(other, 2), pooled], 1)
        viewed = F.max_pool2d(other.flatten(2).unflatten(2, (4, 16)), 2)
        far = F.max_pool2d(both, 2)
        values, _ = F.max_pool2d(one, 2, return_indices=True)
        return (mixed * far).sum((1, 2, 3)) + viewed.sum((1, 2, 3)) + values.sum((1, 2, 3)) + one.mean((1, 2, 3))


@pytest.mark.parametrize("form", ["export", "eager"])
def test_the_printed_algorithm_bounds_the_next_operator_alone(form: str) -> None:
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    program = capture(Chained().eval(), x, form=form)
    ranges = Ranges({name: Bound(0.0, 7.0) for name in (":relu", ":relu.1")})
    found = {
        where: {name for name in Ranger(ranges, where=where).values(program) if "relu" not in name}
        for where in ("algorithm1-literal", "algorithm1")
    }
    kinds = {where: sorted(program.value_site(name).kind for name in names) for where, names in found.items()}
    assert kinds["algorithm1-literal"] == ["avg_pool", "cat", "max_pool", "max_pool"]
    assert kinds["algorithm1"] == ["avg_pool", "cat", "cat", "max_pool", "max_pool", "max_pool", "max_pool", "mean"]
    assert found["algorithm1-literal"] < found["algorithm1"]
    why = {one.site: one.why for one in Ranger(ranges, where="algorithm1-literal").coverage(program)}
    assert why[":mean"] == "mean is no pool or concatenation right after an activation"
    assert Ranger(ranges, where="algorithm1-literal").label == "ranger-algorithm1-literal"


def test_channels_keep_their_bounds_through_pooling_and_lose_them_where_channels_mix() -> None:
    class Pools(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = F.max_pool2d(F.relu(x), 2)
            again = F.avg_pool2d(y - 0, 2)
            return (
                F.avg_pool2d(y, 2).amax((2, 3))
                + again.amax((2, 3))
                + F.pad(y, (1, 1), value=-1.0).amax((1, 2, 3))[:, None]
            )

    x = torch.randn(8, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 30.0]).view(2, 1, 1)
    program = capture(Pools().eval(), x)
    ranger = Ranger(replace(profile_ranges(program, x, per_channel=True), slack=0.0))
    found = {entry.site: (entry.per_channel, entry.bound) for entry in ranger.coverage(program) if entry.bound}
    high = float(x.max())
    assert found == {
        ":relu": (True, Bound(0.0, high)),
        ":max_pool": (True, Bound(0.0, high)),
        ":avg_pool.1": (True, roomy(Bound(0.0, high))),
        ":amax": (False, roomy(Bound(0.0, high))),
        ":pad": (False, Bound(-1.0, high)),
        ":amax.2": (False, Bound(-1.0, high)),
    }
    effect = ranger.values(program)[":relu"]
    with torch.inference_mode():
        assert effect(torch.full_like(x, 1e9)).amax((0, 2, 3)).tolist() == x.amax((0, 2, 3)).tolist()


def test_an_activation_whose_bound_is_unknown_is_refused_unless_its_function_has_one(functions: Program) -> None:
    known = {":tanh": Bound(-0.5, 0.5)}
    with pytest.raises(
        HoplonError, match=r"every activation of Functions, got none of :leaky_relu \(1 in all\); .*unprofiled='leave'"
    ):
        Ranger(Ranges(known)).values(functions)
    found = Ranger(Ranges({**known, ":leaky_relu": Bound(-1.0, 1.0)})).values(functions)
    assert {name: (effect.low, effect.high) for name, effect in found.items()} == {
        ":tanh": (-0.5, 0.5),
        ":leaky_relu": (-1.0, 1.0),
        ":hardtanh": (-2.0, 3.0),
        ":hardtanh.1": (0.0, 6.0),
        ":softmax": (0.0, 1.0),
    }
    assert set(Ranger(Ranges(known), unprofiled="leave").values(functions)) == {":tanh"}


def test_nothing_to_bound_and_unknown_variants_are_refused(functions: Program) -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.leaky_relu(x * 2) - 1

    program = capture(Plain().eval(), torch.randn(3, 4))
    with pytest.raises(HoplonError, match=r"operator of Plain to bound, got none of 3: .*leaky_relu was not profiled"):
        Ranger(Ranges({})).values(program)
    with pytest.raises(HoplonError, match="expected unprofiled of Ranger to be 'refuse' or 'leave', got 'guess'"):
        Ranger(Ranges({}), unprofiled="guess")  # type: ignore[arg-type]
    with pytest.raises(HoplonError, match="expected inherent of Ranger to be 'one-sided' or 'both-ends', got 'all'"):
        Ranger(Ranges({}), inherent="all")  # type: ignore[arg-type]
    with pytest.raises(SiteError, match="activation with a range of its own in Plain, got kinds leaky_relu, mul, sub"):
        inherent_ranges(program)
    with pytest.raises(HoplonError, match="expected where of Ranger to be .*, got 'some'"):
        Ranger(Ranges({}), where="some")  # type: ignore[arg-type]
    with pytest.raises(HoplonError, match=r"range of the last linear layer \(last:linear\), got none"):
        Ranger(inherent_ranges(functions), last_linear=True).values(functions)
