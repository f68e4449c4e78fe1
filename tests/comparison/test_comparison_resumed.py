"""Comparisons that go on: finished arms are read, not run; other arms, data or protections are refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from hoplon import (
    TMR,
    Campaign,
    Comparison,
    FaultTable,
    Inputs,
    Memory,
    Program,
    Ranger,
    Ranges,
    Values,
    compare,
    load_results,
    profile_ranges,
)
from hoplon.errors import StoreError
from hoplon.protections.base import Protection
from hoplon.protections.ranges import Bound
from tests.support.networks import NETWORKS, captured


class Setting:
    """A small network under a guard and under bounds, with value and memory faults."""

    def __init__(self) -> None:
        net = NETWORKS["mlp"]
        self.program: Program = captured("mlp")
        self.data = Inputs(net.batch(6), name="random")
        self.ranges = profile_ranges(self.program, Inputs(net.batch(20, seed=2)))
        self.tables = [Campaign(self.program, self.data, sites=s).draw(count=40, seed=0) for s in (Values(), Memory())]

    def arms(self, ranges: Ranges | None = None) -> dict[str, list[Protection]]:
        return {"none": [], "ranger": [Ranger(ranges or self.ranges)], "tmr": [TMR()]}

    def compare(self, store: Path | None, **options: Any) -> Comparison:
        chosen: dict[str, Any] = {"arms": self.arms(), "faults": self.tables, "latency": False, **options}
        return compare(self.program, chosen.pop("data", self.data), store=store, **chosen)


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


def _plain(found: Comparison) -> Mapping[str, Any]:
    return json.loads(json.dumps(found.to_dict()))  # type: ignore[no-any-return]


def _written(store: Path) -> dict[str, int]:
    """When each finished arm was written, by target and arm."""
    shards = store.rglob("runs/unit-00000000.parquet")
    return {str(file.parents[1].relative_to(store)): file.stat().st_mtime_ns for file in shards}


def test_an_interrupted_comparison_goes_on_with_what_is_missing(setting: Setting, tmp_path: Path) -> None:
    def stop(arm: str, done: int, total: int) -> None:
        if done > 4 * 40:  # in the fifth of six arms
            raise KeyboardInterrupt

    whole = setting.compare(None)
    with pytest.raises(KeyboardInterrupt):
        setting.compare(tmp_path, progress=stop)
    first = _written(tmp_path)
    assert sorted(first) == ["memory/none", "values/none", "values/ranger", "values/tmr"]
    with pytest.raises(StoreError, match="expected a new run directory, got .*values/none with a run in it; resume it"):
        setting.compare(tmp_path)
    told: list[int] = []
    again = setting.compare(tmp_path, resume=True, progress=lambda arm, done, total: told.append(done))
    second = _written(tmp_path)
    assert second.items() > first.items()
    assert second.keys() - first.keys() == {"memory/ranger", "memory/tmr"}
    assert told[-1] == 2 * 3 * 40
    assert _plain(again) == _plain(whole)
    for arm in again.arms:
        assert load_results(tmp_path / arm.target / arm.name).digest() == arm.results.digest()
    assert _plain(setting.compare(tmp_path, resume=True)) == _plain(whole)
    assert _written(tmp_path) == second


def test_manifests_say_what_the_figures_rest_on(setting: Setting, tmp_path: Path) -> None:
    setting.compare(tmp_path)
    manifest = json.loads((tmp_path / "memory" / "tmr" / "manifest.json").read_text())
    assert manifest["program"]["fingerprint"] == setting.program.fingerprint()
    assert manifest["data"] == {"name": "random", "digest": setting.data.digest(), "inputs": 6}
    assert manifest["faults"] == {"count": 40, "digest": setting.tables[1].plan().digest()}
    assert manifest["threads"] == torch.get_num_threads()
    assert {"batch", "placement", "criterion", "versions", "eligible_inputs", "device"} <= manifest.keys()


def test_another_comparison_is_refused_with_the_difference(setting: Setting, tmp_path: Path) -> None:
    setting.compare(tmp_path)
    wider = {name: Bound(bound.low, 2 * bound.high) for name, bound in setting.ranges.bounds.items()}
    for change, message in (
        ({"data": Inputs(NETWORKS["mlp"].batch(6), name="other")}, "data.name: random there, other here"),
        ({"placement": "after"}, "placement: before there, after here"),
        ({"faults": [setting.tables[0].plan(), FaultTable.concat([setting.tables[1]] * 2)]}, "faults.count: 40 there"),
        ({"arms": setting.arms(dataclasses.replace(setting.ranges, bounds=wider))}, "protections_digest: .* there"),
    ):
        with pytest.raises(StoreError, match=message):
            setting.compare(tmp_path, resume=True, **change)
