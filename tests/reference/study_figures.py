"""Figures of the studies derived anew from their run directories: shards in, shares with Wilson limits out.

Shares no code with hoplon: ``python tests/reference/study_figures.py docs/results`` compares a page with its runs.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

Figure = tuple[float, float, float, int]

Z = 1.959963984540054  # of the normal distribution, for 95 %
FAILURES = {"sdc", "nonfinite"}
WEIGHTS = {
    "random": "random weights",
    "largest": "weights of the 100 largest magnitudes",
    "smallest": "weights of the 100 smallest magnitudes",
    "important": "most important weights (Taylor)",
}
CHANGES = {"2-bits": "2 bits of 32", "3-bits": "3 bits of 32", "bit-30": "bit 30"}
RANGER_PARTS = {"classifiers": "Fig. 6", "steering": "Fig. 7", "sixteen-bits": "Fig. 9"}
RANGER_ARMS = {"none": "without Ranger", "ranger": "with Ranger"}
NETWORKS = {
    "lenet": "LeNet",
    "lenet-quick": "LeNet",
    "alexnet": "AlexNet",
    "vgg11": "VGG11",
    "vgg16": "VGG16, half as wide",
    "resnet18": "ResNet-18",
    "squeezenet": "SqueezeNet",
    "resnet20": "ResNet-20",
    "resnet56": "ResNet-56",
    "dave-radians": "Dave (radians)",
    "dave-degrees": "Dave (degrees)",
    "comma": "Comma",
}
DRIVEN = {
    "none": "no faults",
    "random": "random faults",
    "important": "important weights",
    "ranger": "important weights + Ranger",
    "aspis": "important weights + Aspis-1 %",
}
SETTINGS = {"main": "20 weights, 2 bits each", "one": "one weight, bit 30"}
ARMS = {"none": "none", "ranger": "ranger", "aspis-1": "aspis-1%", "aspis-10": "aspis-10%", "aspis-100": "aspis-100%"}


def misclassified(run: Path) -> list[float]:
    """Of each fault the share of inputs that fail."""
    column = json.loads((run / "manifest.json").read_text())["criteria"][0]
    outcomes: dict[int, list[bool]] = defaultdict(list)
    for shard in sorted((run / "runs").glob("*.parquet")):
        table = pl.read_parquet(shard, columns=["fault", column])
        for fault, outcome in zip(table["fault"], table[column], strict=True):
            outcomes[fault].append(str(outcome) in FAILURES)
    return [sum(failed) / len(failed) for failed in outcomes.values()]


def failed_runs(run: Path, column: str) -> list[bool]:
    """Of each run whether it failed by one criterion."""
    shards = [pl.read_parquet(shard, columns=[column]) for shard in sorted((run / "runs").glob("*.parquet"))]
    return [str(outcome) in FAILURES for shard in shards for outcome in shard[column]]


def share_above(shares: Sequence[float], threshold: float) -> Figure:
    """Per cent of the faults above a threshold, Wilson's limits, and how many faults there are."""
    n = len(shares)
    p = sum(share > threshold for share in shares) / n
    middle = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return 100 * p, 100 * max(0.0, middle - half), 100 * min(1.0, middle + half), n


def derived(study: Path) -> dict[tuple[str, str], list[Figure]]:
    """Figures by (the beginning of a row's note, the folder of its network)."""
    found: dict[tuple[str, str], list[Figure]] = defaultdict(list)
    for manifest in sorted(study.glob("runs/critical/*/*/*/manifest.json")):
        network, change, which = manifest.parts[-4:-1]
        note = f"{WEIGHTS[which]}, {CHANGES[change]}: faults that misclassify > 50 % of images"
        found[note, network].append(share_above(misclassified(manifest.parent), 0.5))
    for manifest in sorted(study.glob("runs/same-faults/*/random/*/memory/*/manifest.json")):
        network, _, change, _, arm = manifest.parts[-6:-1]
        if arm in ARMS:
            note = f"random weights, {CHANGES[change]}, {ARMS[arm]}: faults that misclassify any image"
            found[note, network].append(share_above(misclassified(manifest.parent), 0.0))
    return found


def compared(results: Path) -> int:
    """How many rows of ``aspis.json`` agree with what the runs beside it give.

    Raises:
        AssertionError: one does not, or is not there.
    """
    rows = json.loads((results / "aspis.json").read_text())["rows"]
    folders = {"resnet20-cifar10": "ResNet-20", "resnet56-cifar10": "ResNet-56", "vgg11-cifar10": "VGG11"}
    count = 0
    for (note, network), figures in derived(results / "study-runs" / "aspis").items():
        mine = [row for row in rows if row["note"].startswith(note)]
        mine = [row for row in mine if network == "own" or row["model"] == folders[network]]
        assert mine, (note, network)
        count += sum(agrees(row, figures[0]) for row in mine)
    return count


def compared_ranger(results: Path) -> int:
    """The same of the failure rates of ``ranger.json`` in figures 6, 7 and 9."""
    rows = json.loads((results / "ranger.json").read_text())["rows"]
    count = 0
    for part, where in RANGER_PARTS.items():
        for manifest in sorted((results / "study-runs" / "ranger" / "runs" / part).glob("*/*/*/manifest.json")):
            network, _, arm = manifest.parts[-4:-1]
            for column in json.loads(manifest.read_text())["criteria"]:
                figure = share_above(failed_runs(manifest.parent, column), 0.5)
                place = (where, NETWORKS[network])
                mine = [row for row in rows if (row["where"], row["model"]) == place and row["here"] is not None]
                mine = [row for row in mine if row["note"].startswith(f"{RANGER_ARMS[arm]}, one bit of ")]
                (row,) = [row for row in mine if f": {column}, %" in row["note"]]
                count += agrees(row, figure)
    return count


def compared_driving(results: Path) -> int:
    """The same of the crash rates of ``driving.json``, from the records of episodes."""
    rows = json.loads((results / "driving.json").read_text())["rows"]
    count = 0
    for setting, title in SETTINGS.items():
        records = list(_records(results / "study-runs" / "driving" / "runs" / setting))
        for arm, words in DRIVEN.items() if records else ():
            crashed = [record["ending"] == "crash" for record in records if record["arm"] == arm]
            start = words if arm == "none" else f"{words} ({title})"
            mine = [row for row in rows if row["note"].startswith(f"{start}: episodes that end in a crash")]
            assert mine, start
            found = [row for row in mine if row["n"] == len(crashed)] if arm == "none" else mine
            count += agrees(found[0], share_above(crashed, 0.5))
    return count


def _records(folder: Path) -> Iterator[dict[str, str]]:
    for file in sorted(folder.glob("student-*.json")):
        yield from json.loads(file.read_text())


def agrees(row: dict[str, float], expected: Figure) -> bool:
    """True.

    Raises:
        AssertionError: another figure, limit or count than expected.
    """
    given = (row["here"], row["low"], row["high"], row["n"])
    assert all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(given, expected, strict=True)), (row, expected)
    return True


COMPARED = {"aspis": compared, "ranger": compared_ranger, "driving": compared_driving}


if __name__ == "__main__":
    for study, compare in COMPARED.items():
        if (Path(sys.argv[1]) / "study-runs" / study).is_dir():
            sys.stdout.write(f"{study}: {compare(Path(sys.argv[1]))} rows agree with the runs\n")
