"""Arms of stored runs as upsets: what ``hoplon inject`` and ``hoplon compare`` left, read again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from typing_extensions import TypedDict

from hoplon.assurance.upsets import Upsets, guard_upsets, upsets_of
from hoplon.campaign.results import Results, load_results
from hoplon.comparison.arms import slug
from hoplon.errors import HoplonError, StoreError, checked
from hoplon.files import read_json
from hoplon.report.document import read_document
from hoplon.report.schema import AtRisk


class _OfCampaign(TypedDict):
    """What is needed of ``results.json`` of a campaign."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]

    at_risk: AtRisk


@checked
def stored_upsets(
    runs: Sequence[Path], *, criterion: str | None = None, count_crashes: bool = True
) -> dict[str, list[Upsets]]:
    """By arm, the upsets of stored runs; runs of one arm add up (values, memory, larger upsets).

    Args:
        runs: run directories of ``hoplon inject``, folders of ``hoplon compare`` and ``hoplon demo``.
        criterion: the column that tells failures; the first by default.
        count_crashes: a run without an output fails.
    Raises:
        StoreError: no such run, a damaged one, or one of an early version, without bits at risk.
        HoplonError: faults that stand for no upsets; see `upsets_of`.
    """
    options = {"criterion": criterion, "count_crashes": count_crashes}
    found: dict[str, list[Upsets]] = {}
    for run in runs:
        of_run = _of_campaign if (run / "manifest.json").exists() else _of_comparison
        for arm, upsets in of_run(run, options):
            found.setdefault(arm, []).append(upsets)
    return found


def _of_campaign(run: Path, options: Mapping[str, Any]) -> Iterator[tuple[str, Upsets]]:
    results = load_results(run)
    try:
        document = read_json(run / "results.json", _OfCampaign)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"expected {run / 'results.json'} with the bits at risk, got {error}; give hoplon inject --resume once more"
        ) from error
    yield (
        "+".join(results.manifest.get("protections", ())) or "none",
        upsets_of(results, document["at_risk"], **options),
    )


def _of_comparison(run: Path, options: Mapping[str, Any]) -> Iterator[tuple[str, Upsets]]:
    document = read_document(run)
    folder = run if run.is_dir() else run.parent
    plain = next((name for name, labels in document["protections"].items() if not labels), None)
    for arm in document["arms"]:
        table = arm.get("faults", arm["target"])
        risk = document["population"][table].get("at_risk")
        if risk is None:
            raise StoreError(f"expected the bits at risk in {run}, got a run of an early version; run it again")
        results = _stored(folder, table, arm["name"])
        unguarded = plain is not None and results.target == "memory" and arm["name"] != plain
        late = _stored(folder, table, plain) if unguarded and plain is not None else None
        yield arm["name"], upsets_of(results, risk, name=table, late=late, **options)
        if arm.get("guard_faults") and "guard_harmful" in arm:
            inputs = int(results.lazy_runs.select("input").unique().collect().height)
            counts = {"harmful": arm["guard_harmful"], "present": arm["guard_present"], "inputs": inputs}
            yield arm["name"], guard_upsets(guard_bits=arm["guard_bits"], faults=arm["guard_faults"], **counts)
        elif arm.get("guard_bits"):
            raise HoplonError(
                f"expected flips in the memory of the guards of {arm['name']}, which hold {arm['guard_bits']:,} bits, "
                "got none; run hoplon compare with --guard-faults"
            )


def _stored(folder: Path, table: str, arm: str) -> Results:
    return load_results(folder / "runs" / slug(table) / slug(arm))
