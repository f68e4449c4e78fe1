"""Figures of a study of Aspis derived anew from its run directories: shards in, shares with Wilson limits out.

Shares no code with hoplon: ``python tests/reference/study_figures.py docs/results`` compares a page with its runs.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from pathlib import Path

import polars as pl

Z = 1.959963984540054  # of the normal distribution, for 95 %
FAILURES = {"sdc", "nonfinite"}
WEIGHTS = {
    "random": "random weights",
    "largest": "weights of the 100 largest magnitudes",
    "smallest": "weights of the 100 smallest magnitudes",
    "important": "most important weights (Taylor)",
}
CHANGES = {"2-bits": "2 bits of 32", "3-bits": "3 bits of 32", "bit-30": "bit 30"}
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


def share_above(shares: list[float], threshold: float) -> tuple[float, float, float, int]:
    """Per cent of the faults above a threshold, Wilson's limits, and how many faults there are."""
    n = len(shares)
    p = sum(share > threshold for share in shares) / n
    middle = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return 100 * p, 100 * max(0.0, middle - half), 100 * min(1.0, middle + half), n


def derived(study: Path) -> dict[tuple[str, str], list[tuple[float, float, float, int]]]:
    """Figures by (the beginning of a row's note, the folder of its network)."""
    found: dict[tuple[str, str], list[tuple[float, float, float, int]]] = defaultdict(list)
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
        for row in mine:
            expected = figures[0]
            given = (row["here"], row["low"], row["high"], row["n"])
            assert all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(given, expected, strict=True)), (row, expected)
            count += 1
    return count


if __name__ == "__main__":
    sys.stdout.write(f"{compared(Path(sys.argv[1]))} rows agree with the runs\n")
