from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from hoplon.campaign.rates import Rate
from hoplon.errors import DataError
from hoplon.program.inputs import Inputs
from hoplon.stats.intervals import wilson
from hoplon.zoo import ZooData
from hoplon.zoo.cache import save_tensors
from hoplon.zoo.resolve import resolve_data
from hoplon.zoo.seeding import seeded
from hoplon_studies import PROFILES, Profile, StudyResult, run_study, write_pages
from hoplon_studies.framework.rows import DIFFERENCE, Row
from hoplon_studies.framework.study import Context, Published
from hoplon_studies.ranger import angles, costs, networks, runs
from hoplon_studies.ranger.study import STUDY
from hoplon_studies.training import weights
from hoplon_studies.training.recipes import RECIPES
from hoplon_studies.training.weights import weights_path
from tests.reference.study_figures import compared_ranger, verdicts
from tests.support.pages import default_reasons, repeated

Data = Callable[[str], ZooData]
ANGLES = 100 * torch.rand(50, generator=torch.Generator().manual_seed(1)) - 40  # networks with random weights say 0
COUNTS = replace(
    PROFILES["quick"].ranger,
    faults=60,
    float_faults=60,
    accuracy_inputs=40,
    convergence_inputs=32,
    converging=("lenet",),
    models=("lenet",),
    architectures=("lenet",),
)


def small(**options: object) -> Profile:
    return replace(PROFILES["quick"], ranger=replace(COUNTS, **options))  # type: ignore[arg-type]


def random_images(shape: tuple[int, ...], count: int = 60) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def nothing(data: str) -> tuple[torch.Tensor, torch.Tensor]:
    raise DataError(f"no {data} here")


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Data:
    """Networks with random weights in a cache of their own; random images that they get right, and random frames."""
    monkeypatch.setenv("HOPLON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HOPLON_DATA", raising=False)
    monkeypatch.setattr(weights, "training_set", nothing)  # these weights were trained on nothing
    nets = {}
    for name in ("lenet-mnist", "lenet-mnist-tanh", "dave-degrees", "dave-degrees-racing"):
        with seeded(0):
            nets[name] = RECIPES[name].build().eval()
        save_tensors(weights_path(RECIPES[name]), nets[name].state_dict(), {})

    def data(name: str) -> ZooData:
        if name in ("driving", "racing"):
            x = random_images((3, 66, 200), 50)
            return ZooData(name, Inputs(x), Inputs(x), targets=(ANGLES, ANGLES))
        x = random_images((1, 28, 28))
        with torch.no_grad():
            y = nets["lenet-mnist"](x).argmax(1)
        return ZooData("mnist", Inputs(x, y), Inputs(x, y))

    return data


def run(out: Path, *parts: str, load_data: Data = resolve_data, **options: object) -> StudyResult:
    return run_study(STUDY, out=out, profile=small(**options), only=parts, load_data=load_data)


def rows(result: StudyResult, part: str, what: str = "", **wanted: object) -> list[Row]:
    found = [row for row in result.findings[part].rows if what in row.what]
    return [row for row in found if all(getattr(row, name) == value for name, value in wanted.items())]


def test_classifiers_fail_less_with_ranger_and_every_row_rests_on_runs(tmp_path: Path, little: Data) -> None:
    result = run(tmp_path, "classifiers", "pictures", load_data=little)
    without, bounded, difference = (rows(result, "classifiers", arm=arm)[0] for arm in ("none", "ranger", DIFFERENCE))
    assert (without.where, without.model, without.data, without.paper) == ("Fig. 6", "LeNet", "MNIST-10k", "around 20")
    assert without.here > 10 > bounded.here
    assert difference.here == pytest.approx(without.here - bounded.here)
    page = write_pages(tmp_path, result).markdown.read_text()
    assert "| LeNet, MNIST-10k | around 20 |" in page  # one line, both arms
    assert compared_ranger(tmp_path) == 2
    assert verdicts(tmp_path, "ranger") > 20
    assert repeated(page) == {}
    assert default_reasons(json.loads((tmp_path / "ranger.json").read_text())) == []
    halves = {(row.setting.split(", ")[1], row.arm): row for row in rows(result, "classifiers", where="section III-B")}
    assert halves["none", "high bits"].here > 20 > halves["none", "low bits"].here
    assert halves["none", "high bits"].here > halves["ranger", "high bits"].here
    assert halves["none", "high bits"].n + halves["none", "low bits"].n == 60
    for row in rows(result, "classifiers", where="Fig. 6"):
        assert row.low <= row.here <= row.high
        assert (row.n, row.seed) == (60, 0)
        assert row.setting == "21.10 fixed point"
    assert [figure.name for figure in result.findings["classifiers"].figures] == ["fig6", "fig6-bits"]
    (table,) = result.findings["pictures"].tables
    assert 1 <= len(table.rows) <= 4
    assert all(golden == true != faulty for *_, golden, faulty, true in table.rows)
    assert [figure.suffix for figure in result.findings["pictures"].figures] == ["png"]


def test_a_stopped_study_goes_on_to_the_same_findings(tmp_path: Path, little: Data) -> None:
    def stop(stage: str, done: int, total: int | None) -> None:
        if stage.endswith("ranger") and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(STUDY, out=tmp_path / "a", profile=small(), only=("classifiers",), tell=stop, load_data=little)
    resumed, whole = (run(tmp_path / name, "classifiers", load_data=little) for name in ("a", "b"))
    assert resumed.findings["classifiers"].stored() == whole.findings["classifiers"].stored()


def test_what_else_could_be_done(tmp_path: Path, little: Data) -> None:
    result = run(tmp_path, "tanh", "coverage", load_data=little)
    reductions = {row.arm: row for row in rows(result, "tanh", "relative")}
    assert reductions.keys() == {"tanh", "ranger"}
    assert reductions["ranger"].here > 50
    failing = {row.arm: row.here for row in rows(result, "tanh", failure=True)}
    assert failing.keys() == {"none", "ranger", "tanh", "tanh+ranger"}
    assert failing["tanh+ranger"] < failing["tanh"]
    rate = {row.arm: row.here for row in rows(result, "coverage", where="section III-C")}
    assert rate["none"] > rate["activations"] >= rate["algorithm1"]
    last = [row.here for row in rows(result, "coverage", where="section IV-C")]
    assert last[0] == last[1] > last[3] == 0  # no bound reaches these operators; running them twice does


def test_every_policy_meets_the_same_faults_in_values_and_in_weights(tmp_path: Path, little: Data) -> None:
    result = run(tmp_path, "policies", "weights", "two-bits", load_data=little, faults=40, weight_faults=8)
    arms = {"none", "clamp", "zero", "random", "median", "channel", "channel+zero"}
    for part in ("policies", "weights"):
        rate = {row.arm: row.here for row in rows(result, part, "top-1")}
        assert rate.keys() == arms
        assert all(rate["none"] > rate[arm] for arm in arms - {"none"})
        assert any("Section V-B rejects 0" in text for text in result.findings[part].text)
    accuracies = {row.arm: row.here for row in rows(result, "policies", "accuracy")}
    assert accuracies.keys() == arms
    assert accuracies["none"] == accuracies["clamp"] == 100
    two = {row.arm: row.here for row in rows(result, "two-bits")}
    assert two["none"] > two["ranger"]


def test_images_that_exceed_a_bound_are_looked_at_one_by_one(
    tmp_path: Path, little: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def brighter(name: str) -> ZooData:
        made = little(name)
        x, y = made.held_out.tensors[0], made.held_out.y
        return replace(made, held_out=Inputs(4 * x, y))

    result = run(tmp_path, "policies", load_data=brighter, faults=5)
    (row,) = rows(result, "policies", "misread", arm="zero")
    accuracy = {row.arm: row.here for row in rows(result, "policies", "accuracy")}
    assert row.n == 40
    assert row.here >= accuracy["none"] - accuracy["zero"] > 0
    assert any("LeNet" in text and "of 40" in text for text in result.findings["policies"].text)


def with_bias(monkeypatch: pytest.MonkeyPatch, little: Data, name: str = "dave-degrees-racing") -> None:
    """Let a network say the mean of the angles for every frame, which is better than 0; it was taught that 3 is it."""
    with seeded(0):
        net = RECIPES[name].build().eval()
    with torch.no_grad():
        said = net(little("racing").held_out.x)
        net.output.bias += ANGLES.mean() - said.mean()
    save_tensors(weights_path(RECIPES[name]), net.state_dict(), {})
    monkeypatch.setattr(networks, "training_set", lambda data: (None, torch.tensor([3.0])))


def test_steering_networks_have_to_beat_those_that_do_not_look(
    tmp_path: Path, little: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "training_set", lambda data: (None, ANGLES))
    found = run(tmp_path / "a", "steering", models=("dave-degrees",), load_data=little)
    assert all(row.here is None for row in rows(found, "steering"))
    assert "refused: its RMSE of" in rows(found, "steering")[0].why
    with_bias(monkeypatch, little)
    parts = ("steering", "networks", "accuracy", "pictures")
    found = run(tmp_path / "b", *parts, models=("dave-degrees",), load_data=little)
    error = next(row.here for row in rows(found, "networks", "RMSE") if row.where == "Table I")
    trivial = [(ANGLES - said).double().square().mean().sqrt().item() for said in (0, 3)]
    less = rows(found, "networks", "RMSE less")
    assert [row.here for row in less] == pytest.approx([error - one for one in trivial], abs=1e-4)
    assert all(row.low <= row.here <= row.high and row.n == 50 for row in less)
    assert f"always 0 has an RMSE of {trivial[0]:.2f} degrees" in " ".join(found.findings["networks"].text)
    assert "resampled held-out tracks" in " ".join(found.findings["accuracy"].text)
    by_threshold = [row.here for row in rows(found, "steering", "deviation>", arm="none")]
    assert len(by_threshold) == 4
    assert by_threshold == sorted(by_threshold, reverse=True)
    assert {row.data for row in rows(found, "steering")} == {"CarRacing frames"}
    assert [figure.suffix for figure in found.findings["pictures"].figures] == ["png"]


def test_a_network_steers_if_its_limits_lie_below_both_trivial_errors(
    tmp_path: Path, little: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_bias(monkeypatch, little)
    context = Context(
        STUDY, small(models=("dave-degrees",)), 0, tmp_path, None, print, Published("ranger"), "", tmp_path, little
    )
    network = networks.network(context, "dave-degrees")
    assert isinstance(network, networks.Network)
    row = runs.row_of("-", network, angles.LESS, "degrees")
    below, around = ([replace(row, high=high) for high in ends] for ends in ((-1.0, -2.0), (-1.0, 0.5)))
    assert "Below both, limits and all: Dave (degrees)." in next(angles.told_of_steering([(network, below)]))
    assert "cannot be said to steer: Dave (degrees)." in next(angles.told_of_steering([(network, around)]))


def test_the_recorded_drive_stands_beside(tmp_path: Path, little: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    with_bias(monkeypatch, little, "dave-degrees")
    found = run(tmp_path, "recorded", models=("dave-degrees", "comma"), load_data=little, train=False)
    shown = [row for row in rows(found, "recorded") if not row.detail]
    assert {(row.data, row.where) for row in shown} == {("recorded frames", "beside Fig. 7")}
    rate = {row.arm: row.here for row in shown if row.here is not None}
    assert rate["none"] > rate["ranger"]
    assert [row.model for row in shown if row.here is None] == ["Comma"]
    assert len(rows(found, "recorded", "RMSE less")) == 2
    text = " ".join(found.findings["recorded"].text)
    assert "stretches of 70 frames" in text
    (table,) = found.findings["recorded"].tables
    epochs, shift, rate_, *_ = min(table.rows, key=lambda row: float(row[3] or 0))
    recipe = RECIPES["comma-driving"]
    assert (epochs, shift, rate_) == (recipe.epochs, recipe.shift, recipe.learning_rate)
    assert "trained on the others" in table.note


@pytest.mark.slow
def test_tighter_bounds_on_dave(tmp_path: Path, little: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    with_bias(monkeypatch, little)
    found = run(tmp_path, "percentiles", models=("dave-degrees",), load_data=little)
    errors = [row for row in rows(found, "percentiles", "RMSE") if row.where == "Table IV"]
    errors = [row for row in errors if row.what == "RMSE"]
    assert [row.paper for row in errors[:3]] == [6.069, 6.069, 8.5719]
    assert errors[0].here == pytest.approx(errors[1].here)
    for where, what in (("Table IV", angles.MORE), ("Fig. 10", runs.MEAN)):
        steps = rows(found, "percentiles", what, where=where, arm=DIFFERENCE)
        named = {
            row.arm: row.here
            for row in rows(found, "percentiles", what[:4], where=where)
            if not row.setting.count(" and ")
        }
        labels = [row.setting.split(" and ") for row in steps]
        sign = 1 if what == angles.MORE else -1
        assert [row.here for row in steps] == pytest.approx([sign * (named[b] - named[a]) for a, b in labels], abs=1e-6)
        assert [first for first, _ in labels] == ["100 %", "99.9 % of values", "99 % of values"]


def test_without_weights_the_rows_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPLON_CACHE", str(tmp_path / "cache"))
    result = run(tmp_path, "classifiers", "tanh", "script", models=("vgg11",))
    known = {(row.model, row.data, row.stands_for, row.here) for row in rows(result, "classifiers")}
    assert known == {("VGG11", "CIFAR-10", "VGG11 on GTSRB", None)}
    paper = run(tmp_path / "vgg16", "classifiers", models=("vgg16",)).findings["classifiers"].rows
    given = {row.arm: (row.paper, row.stands_for) for row in paper}
    assert given["ranger"] == (0, "VGG16 on ImageNet")  # section V-C
    assert rows(result, "classifiers")[0].why.startswith("no weights here")
    assert rows(result, "script")[0].here is None


def test_networks_that_train_at_length_wait_for_their_profile_and_are_struck_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOPLON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HOPLON_DATA", raising=False)
    models = ("alexnet", "vgg11", "resnet20")
    found = rows(run(tmp_path / "standard", "networks", models=models, train=True), "networks", where="Table I")
    waiting = {(row.model, row.data, row.stands_for) for row in found if row.why == networks.WAITS}
    assert waiting == {
        ("AlexNet", "CIFAR-10", ""),
        ("VGG11", "GTSRB", ""),
        ("EfficientNet-Lite0", "ImageNet", ""),
    }
    assert {(row.model, row.data) for row in found if row.why != networks.WAITS} >= {("VGG11", "CIFAR-10")}
    options = {"models": (*models, "lite0"), "train": True, "at_length": True}
    found = rows(run(tmp_path / "networks", "networks", "tanh", **options), "networks", where="Table I")
    assert {(row.model, row.data) for row in found if row.what == "accuracy"} == {
        *(("AlexNet", "CIFAR-10"), ("VGG11", "GTSRB"), ("ResNet-20", "CIFAR-10"), ("EfficientNet-Lite0", "ImageNet"))
    }
    assert networks.WAITS not in {row.why for row in found}


def test_networks_at_length_are_recipes_on_the_images_that_they_meet() -> None:
    for listing in networks.AT_LENGTH.values():
        if listing.key != "lite0":
            recipe = RECIPES[listing.weights]
            assert recipe.aside
            assert str(recipe.pixels or "") in listing.data
            assert ("plain" in recipe.data, "gtsrb" in recipe.data) == (
                "plain" in listing.data,
                "gtsrb" in listing.data,
            )
    assert {listing.key for listing in networks.AT_LENGTH.values() if listing.tanh} == {"alexnet", "vgg11"}


def test_table_ii_has_the_best_five_classes_where_the_paper_has_them(
    tmp_path: Path, little: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    lenet = replace(networks.LISTINGS["lenet"], paper=("LeNet", "ImageNet"))
    listings = {"lenet": lenet, "vgg16": networks.LISTINGS["vgg16"]}
    monkeypatch.setattr(networks, "LISTINGS", listings)
    found = rows(run(tmp_path, "accuracy", models=("lenet", "vgg16"), load_data=little), "accuracy")
    here = {(row.model, row.what, row.arm): row.here for row in found if row.here is not None and row.arm}
    assert here == {("LeNet", f"top-{best} accuracy", arm): 100 for best in (1, 5) for arm in ("none", "ranger")}
    paper = {(row.what, row.arm): row.paper for row in found if row.stands_for == "VGG16 on ImageNet"}
    assert paper["top-5 accuracy", "ranger"] == 85.736
    assert paper["top-1 accuracy", "none"] == 64.72
    beyond, changed = (next(row for row in found if row.what == what) for what in (costs.BEYOND, "changed predictions"))
    assert beyond.here >= changed.here == 0
    seconds, bytes_, share = (
        next(row for row in found if row.what == what) for what in (costs.PROFILING, costs.BOUNDS, costs.BOUNDS_SHARE)
    )
    assert seconds.here > 0
    assert seconds.n > 0
    assert bytes_.here == 6 * 16  # three activations, and what they bound: two poolings and a reshape
    assert 0 < share.here < 0.1


def test_how_far_ranges_have_come_has_no_limits(tmp_path: Path, little: Data) -> None:
    slowest, quickest = rows(run(tmp_path, "convergence", load_data=little), "convergence")
    assert 0 < slowest.here <= quickest.here <= 100
    assert (slowest.low, slowest.high) == (None, None)


def test_operations_are_those_of_the_paper_and_where_not_it_is_said(tmp_path: Path) -> None:
    result = run(tmp_path, "operations")
    without, bounded, _ = [row for row in rows(result, "operations") if row.model == "LeNet"]
    assert (without.paper, without.here, without.why) == (24.622, 24.622, "")
    assert (bounded.paper, bounded.here) == (24.722, 24.723)
    assert bounded.why == "the paper's count lacks the bound of the last ReLU, which Algorithm 1 has"
    assert all(row.here is None for row in rows(result, "operations") if row.model == "VGG16")


def rate(failures: int, runs: int) -> Rate:
    interval = wilson(failures, runs)
    return Rate("top-1", interval, interval, wilson(0, runs), wilson(0, runs), {}, runs, 10, runs)


def test_means_and_reductions_of_rates() -> None:
    low, high = rate(10, 100), rate(30, 100)
    together = runs.mean_of([low.failure, high.failure])
    apart, count = runs.mean_of_networks([[low], [high]])
    shared, _ = runs.mean_of_networks([[low, high]])
    assert (count, shared.low, shared.high) == (200, pytest.approx(together.low), pytest.approx(together.high))
    assert apart.estimate == together.estimate == pytest.approx(0.2)
    assert together.high - together.low == pytest.approx(
        (low.failure.high - low.failure.low + high.failure.high - high.failure.low) / 2
    )
    assert apart.high - apart.low < 0.8 * (together.high - together.low)
    gained = runs.relative_reduction(high.failure, low.failure)
    assert gained.estimate == pytest.approx(2 / 3)
    assert gained.low == pytest.approx(1 - low.failure.high / high.failure.low)
    nothing = runs.relative_reduction(rate(0, 100).failure, low.failure)
    assert nothing.estimate != nothing.estimate


def test_published_values_have_their_places() -> None:
    document = json.loads((files("hoplon_studies") / "published" / "ranger.json").read_text(encoding="utf-8"))
    keys = [entry["key"] for entry in document["values"]]
    assert len(set(keys)) == len(keys)
    assert all(set(entry) == {"key", "value", "unit", "place"} and entry["place"] for entry in document["values"])
