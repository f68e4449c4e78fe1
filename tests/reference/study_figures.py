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
from typing import Any

import polars as pl

Figure = tuple[float, float, float, int]

Z = 1.959963984540054  # of the normal distribution, for 95 %
FAILURES = {"sdc", "nonfinite"}
WORST, MILD = "bit 30 and one more", "2 bits, never bit 30"
CHANGES = {"2-bits": "2 bits of 32", "3-bits": "3 bits of 32"}
CHANGES |= {"bit-30-and-one-more": WORST, "2-bits-never-bit-30": MILD}
BITS = CHANGES | {"2-bits": "2 bits", "3-bits": "3 bits"}
ATTACKS = {
    "random": "random weights",
    "important": "most important weights",
    "wider": "top 5 % by half of the data",
    "largest": "weights of the largest magnitudes",
    "damage": "weights of the largest expected damage",
}
THRESHOLDS = (0.0, 0.05, 0.5)
FIXED32 = "21.10 fixed point"
RANGER_PARTS = {
    "classifiers": ("Fig. 6", FIXED32),
    "steering": ("Fig. 7", FIXED32),
    "script": ("Fig. 7", f"{FIXED32}, last layer struck too"),
    "sixteen-bits": ("Fig. 9", "14.2 fixed point"),
    "policies": ("section V-B", FIXED32),
    "coverage": ("section III-C", FIXED32),
    "float32": ("not in the paper", "float32"),
}
LAST_LAYER = ("section IV-C", f"{FIXED32}, last layer alone struck")
NETWORKS = {
    "lenet": "LeNet",
    "lenet-quick": "LeNet",
    "alexnet": "AlexNet",
    "vgg11": "VGG11",
    "vgg16": "half-wide VGG16",
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
    "ranger+aspis": "important weights + Ranger + Aspis-1 %",
    "known-bits": "important weights + KnownBits",
    "parity": "important weights + Parity",
    "zero": "important weights + Ranger zero",
    "previous": "important weights + previous frame",
    "none-previous": "no faults + previous frame",
    "aside": "one decision aside",
    "aside-ranger": "one decision aside + Ranger",
    "aside-zero": "one decision aside + Ranger zero",
    "aside-channel": "one decision aside + Ranger per channel",
    "aside-previous": "one decision aside + previous frame",
    "aside-direction": "one decision aside in direction",
    "aside-4": "4 decisions in a row",
    "aside-4-ranger": "4 decisions in a row + Ranger",
    "aside-4-previous": "4 decisions in a row + previous frame",
    "inside-aspis": "top 1 % struck + Aspis-1 %",
    **{
        f"{name}{arm}": f"{title}{bounds}"
        for name, title in (("inside", "top 1 % struck"), ("bit-30", "a weight's bit 30"), ("value", "values struck"))
        for arm, bounds in {
            "": "",
            "-ranger": " + Ranger",
            "-zero": " + Ranger zero",
            "-median": " + Ranger median",
            "-random": " + Ranger random",
            "-channel": " + Ranger per channel",
        }.items()
    },
}
SETTINGS = {
    "main": "20 weights, 2 bits each",
    "inside": "20 weights of the protected 1 %, 2 bits each",
    "policies": "one weight, bit 30: what a value outside of its bound becomes",
    "values": "one value of each decision, bit 30",
    "one": "one weight, bit 30",
    "stress": "100 weights, 2 bits each",
    "control": "20 weights, 2 bits each, never bit 30",
    "late": "20 weights, 2 bits each, too late for the first check",
    "previous": "20 weights, 2 bits each, held by the frame before",
    "straight": "a straight road with an obstacle, 20 weights, 2 bits each",
    "single": "one value of one decision, any bit",
}
ARMS = {
    "none": "none",
    "ranger": "ranger",
    "ranger-zero": "ranger zero",
    "ranger-per-channel": "ranger per channel",
    "aspis-1": "aspis-1%",
    "aspis-10": "aspis-10%",
    "aspis-100": "aspis-100%",
    "known-bits": "known-bits",
    "parity": "parity",
}


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


def derived(study: Path) -> Iterator[tuple[dict[str, str], str, Figure]]:
    """Figures of the study of Aspis: fields of their row, the folder of their network, the figure."""
    for manifest in sorted(study.glob("runs/critical/*/*/*/manifest.json")):
        network, change, which = manifest.parts[-4:-1]
        setting = "faults that misclassify > 50 % of images"
        fields = {"where": "Fig. 13", "what": CHANGES[change], "arm": which, "setting": setting}
        fields["where"] = "Fig. 6" if which == "smallest" else "Fig. 13"
        yield fields, network, share_above(misclassified(manifest.parent), 0.5)
        if which != "smallest":
            beyond = fields | {"setting": "faults that misclassify > 90 % of images"}
            yield beyond, network, share_above(misclassified(manifest.parent), 0.9)
    for manifest in sorted(study.glob("runs/same-faults/*/*/*/memory/*/manifest.json")):
        network, attack, change, _, arm = manifest.parts[-6:-1]
        for threshold in THRESHOLDS if arm in ARMS else ():
            what = f"{BITS[change]}, faults above {100 * threshold:g} %"
            setting = f"{ATTACKS[attack]}, images misclassified"
            fields = {"what": what, "arm": ARMS[arm], "setting": setting}
            yield fields, network, share_above(misclassified(manifest.parent), threshold)


def compared(results: Path) -> int:
    """How many rows of ``aspis.json`` agree with what the runs beside it give.

    Raises:
        AssertionError: one does not, or is not there.
    """
    rows = json.loads((results / "aspis.json").read_text())["rows"]
    folders = {"resnet20-cifar10": "ResNet-20", "resnet56-cifar10": "ResNet-56", "vgg11-cifar10": "VGG11"}
    count = 0
    for fields, network, figure in derived(results / "study-runs" / "aspis"):
        mine = [row for row in rows if all(row[name] == value for name, value in fields.items())]
        mine = [row for row in mine if network == "own" or row["model"] == folders[network]]
        found = [row for row in mine if row["here"] is not None]
        assert len(found) == 1, (fields, network)
        count += agrees(found[0], figure)
    return count


def compared_ranger(results: Path) -> int:
    """The same of the failure rates of ``ranger.json``."""
    rows = json.loads((results / "ranger.json").read_text())["rows"]
    count = 0
    for part, place in RANGER_PARTS.items():
        for manifest in sorted((results / "study-runs" / "ranger" / "runs" / part).glob("*/*/*/manifest.json")):
            folder, _, arm = manifest.parts[-4:-1]
            network = folder.removesuffix("-script").removesuffix("-last")
            where, setting = LAST_LAYER if folder.endswith("-last") else place
            for column in json.loads(manifest.read_text())["criteria"]:
                fields = {"where": where, "setting": setting, "model": NETWORKS[network], "arm": arm, "what": column}
                (row,) = [row for row in rows if all(row[name] == value for name, value in fields.items())]
                count += agrees(row, share_above(failed_runs(manifest.parent, column), 0.5))
    return count


def compared_driving(results: Path) -> int:
    """The same of the crash rates of ``driving.json``, from the records of episodes."""
    rows = json.loads((results / "driving.json").read_text())["rows"]
    count = 0
    for setting, title in SETTINGS.items():
        records = list(_records(results / "study-runs" / "driving" / "runs" / setting))
        for arm in dict.fromkeys(record["arm"] for record in records):
            crashed = [record["ending"] == "crash" for record in records if record["arm"] == arm]
            (row,) = [row for row in rows if (row["arm"], row["setting"]) == (DRIVEN[arm], title)]
            count += agrees(row, share_above(crashed, 0.5))
    return count


def verdicts(results: Path, study: str) -> int:
    """How many verdicts of a page follow from its rows by the rules as they are told here once more.

    Raises:
        AssertionError: one does not, or rests on rows without a figure.
    """
    document = json.loads((results / f"{study}.json").read_text())
    for claim in document["claims"]:
        used = [document["rows"][number] for number in claim["rows"]]
        assert all(row["here"] is not None for row in used), claim
        holds = _holds(claim["rule"], claim["wanted"], [_ends(row) for row in used]) if used else None
        papers_own = not claim["place"].startswith("beside")
        comparable = claim["comparable"] and not (papers_own and any(row["stands_for"] for row in used))
        expected = {None: "open", True: "confirmed", False: "refuted" if comparable else "not comparable"}[holds]
        assert claim["verdict"] == expected, (claim, expected)
        assert not used or claim["here"], claim
        line = f"**{claim['verdict']}**"
        page = (results / f"{study}.md").read_text()
        assert any(claim["text"] in row and line in row for row in page.splitlines()), claim
    return len(document["claims"])


def _ends(row: dict[str, Any]) -> tuple[float, float, float]:
    """Value, lower and upper limit; an exact value is its own limits."""
    value = row["here"]
    return value, value if row["low"] is None else row["low"], value if row["high"] is None else row["high"]


def _holds(rule: str, wanted: Sequence[float], rows: Sequence[tuple[float, float, float]]) -> bool | None:
    """Whether a rule holds, or None where it cannot be told."""
    pairs = list(zip(rows[::2], rows[1::2], strict=False))
    each = list(wanted) if len(wanted) == len(rows) else [wanted[0] if wanted else 0.0] * len(rows)
    if rule == "lower":
        if any(second[1] > first[2] for first, second in pairs):
            return False
        return True if all(first[1] > second[2] for first, second in pairs) else None
    if rule == "above":
        low, high = min(row[1] for row in rows), min(row[2] for row in rows)
        return False if high < wanted[0] else True if low > wanted[0] else None
    if rule == "unchanged":
        if any(first[1] > second[2] or second[1] > first[2] for first, second in pairs):
            return False
        return True if all(a[1] <= b[0] <= a[2] and b[1] <= a[0] <= b[2] for a, b in pairs) else None
    if rule in ("at most", "at least", "between"):
        low, high = {"at most": (-math.inf, wanted[0]), "at least": (wanted[0], math.inf)}.get(rule, tuple(wanted[:2]))
        if any(row[1] > high or row[2] < low for row in rows):
            return False
        return True if all(low <= row[1] and row[2] <= high for row in rows) else None
    if rule in ("fewer", "times"):
        factors = [
            (first[1] / second[2] if second[2] else math.inf, first[2] / second[1] if second[1] else math.inf)
            for first, second in pairs
        ]
        if any(high < wanted[0] or (rule == "times" and low > wanted[0]) for low, high in factors):
            return False
        return True if rule == "times" or all(low >= wanted[0] for low, _ in factors) else None
    told = {
        "holds": lambda: all(low <= goal <= high for (_, low, high), goal in zip(rows, each, strict=True)),
        "equal": lambda: all(
            f"{value:.{_places(goal)}f}" == f"{goal:.{_places(goal)}f}"
            for (value, _, _), goal in zip(rows, each, strict=True)
        ),
        "about": lambda: all(abs(value / goal - 1) <= 0.1 for (value, _, _), goal in zip(rows, each, strict=True)),
    }
    return told[rule]()


def _places(value: float) -> int:
    """Decimals that a figure is printed with."""
    return len(str(value).removesuffix(".0").partition(".")[2])


def _records(folder: Path) -> Iterator[dict[str, str]]:
    for file in sorted(folder.glob("student-*.json")):
        yield from json.loads(file.read_text())["kept"]


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
        place = Path(sys.argv[1])
        if (place / "study-runs" / study).is_dir():
            agreed = compare(place)
            sys.stdout.write(
                f"{study}: {agreed} rows agree with the runs, {verdicts(place, study)} verdicts with rows\n"
            )
