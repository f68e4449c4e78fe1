"""Results against plain Python over the same rows: groups, shares per fault, distribution, critical share."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
import torch

from hoplon import BitFlip, Campaign, HoplonError, Inputs, Memory, Values
from hoplon.campaign.results import Results
from hoplon.comparison.comparison import compare
from hoplon.criteria import OUTCOME_NAMES
from hoplon.faults import FaultTable, Target
from hoplon.stats.intervals import clustered, wilson
from tests.support.networks import NETWORKS, captured

ONES = {"float32": 2**32 - 1, "bfloat16": 2**16 - 1}
KINDS = {"a": "conv", "b": "linear", "c": "conv"}


def made_up(target: Target, *, faults: int = 60, inputs: int = 20, seed: int = 0) -> Results:
    """Faults of one or two words with one or two flipped bits, outcomes by chance, some faults much worse."""
    chance = random.Random(seed)
    words, runs = [], []
    for fault in range(faults):
        met = [chance.randrange(inputs)] if target == "values" else range(inputs)
        for element in range(chance.choice([1, 1, 1, 2])):
            name = chance.choice(["float32", "float32", "bfloat16"])
            bits = chance.sample(range(16 if name == "bfloat16" else 32), chance.choice([1, 1, 2]))
            before, flip = chance.randrange(ONES[name]), sum(1 << bit for bit in bits)
            word = {"fault": fault, "site": chance.choice("abc"), "element": element, "format": name}
            word |= {"keep": ONES[name], "flip": flip, "before": before, "after": before ^ flip, "probability": 0.5}
            words.append(word | ({"input": met[0]} if target == "values" else {}))
        harm = chance.choice([0.0, 0.0, 0.05, 0.5, 1.0])
        for index in met:
            failed = chance.choice(["sdc", "sdc", "nonfinite"])
            fine = chance.choice(["identical", "benign", "crash"])
            first, second = (failed if chance.random() < share else fine for share in (harm, 0.3))
            runs.append({"fault": fault, "input": index, "top-1": first, "other": second})
    outcomes = pl.Enum(OUTCOME_NAMES)
    return Results(
        target=target,
        criteria=("top-1", "other"),
        confidence=0.9,
        level=0.9,
        lazy_runs=pl.DataFrame(runs, schema_overrides={"top-1": outcomes, "other": outcomes}).lazy(),
        lazy_faults=FaultTable(target, pl.DataFrame(words, schema_overrides={"flip": pl.UInt64})).frame.lazy(),
        manifest={"kinds": KINDS},
    )


def field_of(name: str, bit: int) -> str:
    """The part of an IEEE 754 word in which a bit lies."""
    width, mantissa = (32, 23) if name == "float32" else (16, 7)
    return "sign" if bit == width - 1 else "exponent" if bit >= mantissa else "mantissa"


def ways(word: dict[str, Any]) -> set[str]:
    """Bit by bit, as text."""
    texts = [f"{word[column]:032b}" for column in ("before", "after")]
    return {f"{a}->{b}" for a, b in zip(*texts, strict=True) if a != b}


def keys_of(words: list[dict[str, Any]]) -> dict[str, Any]:
    """What a fault is grouped on, from its words."""
    bits = [[bit for bit in range(32) if word["flip"] >> bit & 1] for word in words]
    fields = {field_of(word["format"], bit) for word, places in zip(words, bits, strict=True) for bit in places}
    turned = set.union(*map(ways, words))
    positions = {places[0] if len(places) == 1 else None for places in bits}
    return {
        "layer": words[0]["site"],
        "kind": KINDS[words[0]["site"]],
        "bit": positions.pop() if len(positions) == 1 else None,
        "field": fields.pop() if len(fields) == 1 else "several",
        "direction": turned.pop() if len(turned) == 1 else "several",
    }


def by_hand(results: Results, keys: tuple[str, ...], criterion: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of `by`, run by run."""
    words = defaultdict(list)
    for word in results.faults.frame.iter_rows(named=True):
        words[word["fault"]].append(word)
    groups = defaultdict(lambda: defaultdict(list))
    for run in results.runs.iter_rows(named=True):
        found = keys_of(words[run["fault"]]) | {"input": run["input"]}
        groups[tuple(found[key] for key in keys)][run["fault"]].append((run["input"], run[criterion]))
    rows = {}
    for group, faults in groups.items():
        runs = [run for met in faults.values() for run in met]
        bad = [[outcome in ("sdc", "nonfinite") for _, outcome in met] for met in faults.values()]
        if results.target == "values":
            interval = wilson(sum(map(sum, bad)), len(runs), confidence=0.9)
        else:
            shares, sizes = [sum(b) / len(b) for b in bad], [len(b) for b in bad]
            interval = clustered(torch.tensor(shares).double().numpy(), torch.tensor(sizes).numpy(), confidence=0.9)
        rows[group] = {
            "failure": interval.estimate,
            "failure_low": interval.low,
            "failure_high": interval.high,
            "n_faults": len(faults),
            "n_inputs": len({index for index, _ in runs}),
            "n_runs": len(runs),
        }
    return rows


@pytest.mark.parametrize("target", ["values", "memory"])
@pytest.mark.parametrize(
    "keys",
    [
        ("layer",),
        ("kind",),
        ("bit",),
        ("field",),
        ("direction",),
        ("input",),
        ("layer", "field"),
        ("input", "direction"),
        ("kind", "bit", "direction"),
    ],
)
def test_groups_are_those_counted_by_hand(target: Target, keys: tuple[str, ...]) -> None:
    results = made_up(target)
    for criterion in ("top-1", "other"):
        table = results.by(*keys, criterion=criterion)
        expected = by_hand(results, keys, criterion)
        assert table.height == len(expected) > 1
        for row in table.iter_rows(named=True):
            wanted = expected[tuple(row[key] for key in keys)]
            assert {key: row[key] for key in wanted} == pytest.approx(wanted)
            assert row["sdc"] + row["nonfinite"] == pytest.approx(row["failure"])
        if keys[0] != "layer":  # layers come in the order of the table
            assert table[keys[0]].to_list() == table[keys[0]].sort(nulls_last=True).to_list()


@pytest.mark.parametrize("target", ["values", "memory"])
def test_the_summary_is_one_group_of_all(target: Target) -> None:
    results = made_up(target)
    for rate in results.summary():
        wanted = by_hand(results, (), rate.criterion)[()]
        assert {key: rate.as_row()[key] for key in wanted} == pytest.approx(wanted)
        assert sum(rate.counts.values()) == rate.n_runs


def test_per_fault_is_the_share_of_inputs() -> None:
    results = made_up("memory")
    table = results.per_fault(criterion="other")
    shares = ["failure", "sdc", "nonfinite", "crash"]
    assert table.columns == ["fault", "site", "element", "words", "bit", *shares, "n_inputs"]
    assert table["fault"].to_list() == list(range(60))
    for row in table.iter_rows(named=True):
        outcomes = results.runs.filter(pl.col("fault") == row["fault"])["other"].to_list()
        words = results.faults.frame.filter(pl.col("fault") == row["fault"]).to_dicts()
        assert row["sdc"] == outcomes.count("sdc") / 20
        assert row["nonfinite"] == outcomes.count("nonfinite") / 20
        assert row["failure"] == (outcomes.count("sdc") + outcomes.count("nonfinite")) / 20
        assert (row["site"], row["element"], row["words"]) == (words[0]["site"], words[0]["element"], len(words))
        assert row["bit"] == keys_of(words)["bit"]
        assert row["n_inputs"] == 20


THRESHOLDS = (0.0, 0.01, 0.05, 0.5, 0.9)


def test_the_critical_share_is_of_faults_beyond_a_threshold() -> None:
    results = made_up("memory")
    shares = results.per_fault()["failure"].to_list()
    table = results.critical_share()
    assert table["threshold"].to_list() == list(THRESHOLDS)
    for row in table.iter_rows(named=True):
        count = sum(share > row["threshold"] for share in shares)
        interval = wilson(count, 60, confidence=0.9)
        assert (row["count"], row["n_faults"], row["share"]) == (count, 60, count / 60)
        assert (row["share_low"], row["share_high"]) == (interval.low, interval.high)
    assert 60 > table["count"][0] > table["count"][-1] > 0
    assert 0.05 in shares  # a fault on the threshold is not beyond it


@pytest.mark.parametrize("bins", [1, 10, 20, [0, 0.01, 0.05, 0.5, 0.9, 1]])
def test_the_distribution_holds_every_fault_once(bins: int | list[float]) -> None:
    results = made_up("memory")
    shares = results.per_fault()["failure"].to_list()
    table = results.distribution(bins)
    edges = [i / bins for i in range(bins + 1)] if isinstance(bins, int) else bins
    assert table["above"].to_list() == edges[:-1]
    assert table["up_to"].to_list() == edges[1:]
    assert table["count"].sum() == 60
    for row in table.iter_rows(named=True):
        inside = [s for s in shares if row["above"] < s <= row["up_to"] or (s == 0 and row["above"] == 0)]
        assert row["count"] == len(inside)
        assert row["share_low"] <= row["share"] == len(inside) / 60 <= row["share_high"]
    beyond = results.critical_share(edges[:-1])
    for edge, count in zip(beyond["threshold"], beyond["count"], strict=True):
        if edge:
            assert count == table.filter(pl.col("above") >= edge)["count"].sum()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda r: r.by("depth"),
            "each once, got 'depth'",
        ),
        (lambda r: r.by("bit", "bit"), "each once, got 'bit', 'bit'"),
        (lambda r: r.by(), "each once, got"),
        (lambda r: r.by("bit", criterion="top-5"), "expected a criterion of top-1, other, got 'top-5'"),
        (lambda r: r.per_fault(criterion=""), "expected a criterion of top-1, other, got ''"),
        (
            lambda r: r.distribution(0),
            "expected bins of Results.distribution to be .*, got 0",
        ),
        (lambda r: r.distribution([0, 0.5]), r"got \[0, 0.5\]"),
        (lambda r: r.distribution([0, 0.5, 0.5, 1]), "edges that rise"),
        (lambda r: r.critical_share((1.0,)), r"expected thresholds in \[0, 1\), as shares of the inputs, got 1.0"),
    ],
)
def test_what_cannot_be_answered_is_refused(call: Callable[[Results], object], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        call(made_up("memory"))


def test_value_faults_meet_one_input_each() -> None:
    with pytest.raises(HoplonError, match="expected memory faults, which meet many inputs, got value faults"):
        made_up("values").critical_share()


def test_campaigns_know_the_kinds_of_their_sites() -> None:
    net = NETWORKS["tied"]
    program, data = captured("tied", 3), Inputs(net.batch(8))
    for sites in (Values(), Memory()):
        campaign = Campaign(program, data, sites=sites, fault_model=BitFlip())
        results = campaign.run(count=200, seed=0)
        layers = results.by("layer", "kind")
        expected = {site.name: getattr(site, "kind", "linear") for site in sites.select(program)}
        assert dict(layers.select("layer", "kind").iter_rows()) == expected
        found = compare(program, data, arms={"none": []}, faults=results.faults, latency=False).arms[0].results
        assert found.by("layer", "kind").equals(layers)
        fields = results.by("field", "bit")
        assert {bit: field for field, bit in fields.select("field", "bit").iter_rows()} == {
            bit: field_of("float32", bit) for bit in results.by("bit")["bit"]
        }
        assert set(results.by("direction")["direction"]) == {"0->1", "1->0"}


def test_faults_that_changed_nothing_have_no_direction() -> None:
    words = {
        "fault": [0, 1],
        "site": ["a", "a"],
        "element": [0, 1],
        "format": ["float32"] * 2,
        "probability": [1.0, 1.0],
    }
    words |= {"keep": [ONES["float32"], 0], "flip": [0, 0], "before": [5, 5], "after": [5, 0]}
    runs = {"fault": [0, 1], "input": [0, 0], "top-1": ["benign", "sdc"]}
    results = Results(
        "memory", ("top-1",), 0.9, 0.9, pl.LazyFrame(runs), FaultTable("memory", pl.DataFrame(words)).frame.lazy()
    )
    assert results.by("direction")["direction"].to_list() == ["1->0", None]
    assert results.by("field")["field"].to_list() == ["several", None]
    assert results.by("kind")["kind"].to_list() == [None]
