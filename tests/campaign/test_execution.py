"""How a campaign is executed: said before it runs, recorded with it, and decisive for nothing."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from hoplon import Campaign, Inputs, Memory, Ranger, Values, forecast, profile_ranges
from hoplon.campaign import load_results
from hoplon.campaign.manifest import EXECUTION
from hoplon.errors import StoreError
from tests.support.networks import NETWORKS, captured

NAME, SAMPLES = "residual", 10


def _campaign(**options: object) -> Campaign:
    settings = {"sites": Values(), "batch": 4, **options}
    return Campaign(captured(NAME), Inputs(NETWORKS[NAME].batch(SAMPLES)), **settings)  # type: ignore[arg-type]


def test_what_is_kept_follows_from_the_faults() -> None:
    few, many = (_campaign().run(count=count).manifest[EXECUTION] for count in (1, 500))
    assert {key: few[key] for key in ("batch", "kernels", "replay", "input_batches", "input_batches_held")} == {
        "batch": 4,
        "kernels": "exact",
        "replay": "by region",
        "input_batches": 3,
        "input_batches_held": 3,
    }
    assert few["maps_computed_again"] > 0 == many["maps_computed_again"]
    assert few["maps_kept"] + few["maps_computed_again"] >= many["maps_kept"] > few["maps_kept"]
    assert _campaign(kernels="packed").run(count=1).manifest[EXECUTION]["kernels"] == "packed"
    memory = _campaign(sites=Memory()).run(count=2).manifest[EXECUTION]
    assert memory == {**{key: few[key] for key in ("batch", "kernels", "input_batches")}, **ONE_BY_ONE}


ONE_BY_ONE = {"replay": "by row", "input_batches_held": 1}


def test_a_budget_is_seen_in_what_is_held() -> None:
    usual, tight = (_campaign(memory_budget=budget).run(count=500) for budget in (None, 20_000))
    held = [results.manifest[EXECUTION]["input_batches_held"] for results in (usual, tight)]
    runs = [results.manifest[EXECUTION]["runs_in_windows"] for results in (usual, tight)]
    assert held == [3, 1]
    assert runs[0] == 8192 > runs[1] >= 1
    assert usual.digest() == tight.digest()


@pytest.mark.parametrize("count", [1, 60])
@pytest.mark.parametrize("protected", [False, True])
def test_a_forecast_says_what_a_run_records(*, count: int, protected: bool) -> None:
    """The sites that the pilot strikes are not all."""
    over = (Ranger(profile_ranges(captured(NAME), NETWORKS[NAME].batch(40))),) if protected else ()
    campaign = _campaign(protections=over)
    found = forecast(campaign, count=count, seconds=0)
    assert found.pilot.execution == campaign.run(count=count).manifest[EXECUTION]
    assert json.loads(json.dumps(found.to_dict()))["pilot"][EXECUTION] == found.pilot.execution


def test_a_run_goes_on_in_another_way_and_keeps_its_record(tmp_path: Path) -> None:
    """With little memory; and where an earlier version recorded nothing."""
    whole = _campaign().run(count=1100, seed=4, store=tmp_path / "run")
    (tmp_path / "run" / "digests" / "unit-00000001.sha256").unlink()
    again = _campaign(memory_budget=20_000).run(count=1100, seed=4, store=tmp_path / "run", resume=True)
    assert again.digest() == whole.digest()
    assert again.manifest == whole.manifest == load_results(tmp_path / "run").manifest
    assert whole.manifest[EXECUTION] == _campaign().run(count=1100, seed=4).manifest[EXECUTION]
    with pytest.raises(StoreError, match="seed: 4 there, 5 here"):
        _campaign().run(count=1100, seed=5, store=tmp_path / "run", resume=True)


def test_workers_keep_what_the_first_process_chose() -> None:
    runner, _ = _campaign().prepare(count=1)
    other = pickle.loads(pickle.dumps(runner))
    other.injector.rehearse(other.sites)  # as far as nothing is kept: through all sites, as the golden run went
    assert runner.injector.execution(runner.sites)["maps_computed_again"] > 0
    assert other.injector.execution(other.sites) == runner.injector.execution(runner.sites)
