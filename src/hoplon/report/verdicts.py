"""The verdict: what the numbers say in plain sentences, and nothing that they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hoplon.errors import checked
from hoplon.report.document import Document, require_assessment
from hoplon.report.text import STRUCK, TARGETS, amount, at_most, factor, interval, listed, only_crashes, percent

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Paragraph:
    """What the run says about one table of faults; ``sentences`` in the order of importance."""

    faults: str
    title: str
    sentences: tuple[str, ...]


@checked
def verdict(document: Document) -> tuple[Paragraph, ...]:
    """One paragraph per table of faults; an arm that does harm comes first.

    Raises:
        DataError: it is the document of something else than an assessment.
    """
    require_assessment(document)
    return paragraphs_of(document)


def paragraphs_of(document: Document) -> tuple[Paragraph, ...]:
    """The verdict of a document that is known to be one of an assessment.

    A factor is named only where the intervals of the two arms do not overlap and failures were seen in both. Where an
    arm showed no failure, its upper limit is named instead. "Helps" means that the interval of the paired difference to
    the unprotected arm lies below zero.
    """
    tables = tables_of(document)
    return tuple(Paragraph(faults, title_of(document, faults), _sentences(document, faults)) for faults in tables)


def tables_of(document: Document) -> list[str]:
    """The names of the fault tables, in their order."""
    return list(dict.fromkeys(map(_faults, document["arms"])))


def rows_of(document: Document, faults: str) -> list[Row]:
    """The arms under one table of faults, in their order."""
    return [arm for arm in document["arms"] if _faults(arm) == faults]


def title_of(document: Document, faults: str) -> str:
    """What the faults of a table strike, and its name where it is not just that."""
    target = rows_of(document, faults)[0]["target"]
    return TARGETS[target] if faults == target else f"{TARGETS[target]}: {faults}"


def _faults(arm: Row) -> str:
    """The name of an arm's table; documents of before tables had names have one of each target."""
    return str(arm.get("faults", arm["target"]))


def baseline(rows: Sequence[Row]) -> Row | None:
    """The arm that differences refer to; None where there is none."""
    return next((row for row in rows if row["difference"] is None), None)


def improvement(row: Row, base: Row) -> str:
    """How much less often an arm fails, as far as the numbers allow.

    Example:
        >>> base = {"failure": 0.02, "failure_low": 0.018, "failure_high": 0.022}
        >>> seen = {"failure": 0.002, "failure_low": 0.001, "failure_high": 0.003, "difference_high": -0.015}
        >>> improvement(seen, base)
        '10 times fewer failures (at least 6.0)'
        >>> improvement({**seen, "failure_high": 0.019}, base)
        'fewer failures'
    """
    if not row["failure"] or base["failure_low"] <= row["failure_high"]:
        return "fewer failures"
    ratio, least = base["failure"] / row["failure"], base["failure_low"] / row["failure_high"]
    return f"{factor(ratio)} times fewer failures (at least {factor(least)})"


def helps(row: Row) -> bool:
    """Whether the paired difference to the unprotected arm lies below zero, interval and all."""
    return row["difference"] is not None and bool(row["difference_high"] < 0)


def _sentences(document: Document, faults: str) -> tuple[str, ...]:
    rows = rows_of(document, faults)
    target, base = rows[0]["target"], baseline(rows)
    if base is None:
        return (f"There is no unprotected arm to compare {listed([row['name'] for row in rows])} with.",)
    helpful = sorted((row for row in rows if helps(row)), key=lambda row: row["failure"])
    outdone = {row["name"]: other for row in helpful if (other := _outdone(row, helpful, document))}
    acting = [row for row in rows if row is not base and row["acts_on_target"]]
    worse = [row for row in acting if row["difference_low"] > 0]
    found = [_worse(row, base) for row in worse]
    found += [*_crashes(document, rows), _unprotected(document, base)]
    found += [_helped(row, base, document) for row in helpful if row["name"] not in outdone]
    for name, other in outdone.items():
        found.append(f"{name}: no gain over {other} alone was detected in this run.")
    found += _where(document, base)
    idle = [row["name"] for row in rows if row is not base and not row["acts_on_target"]]
    unclear = [row["name"] for row in acting if row not in helpful and row not in worse]
    reason = "guards of stored weights, not meant for these faults" if target == "values" else "do not act here"
    notes = (
        (unclear, "no difference to the unprotected network was detected in this run"),
        (idle, reason),
    )
    return (*found, *(f"{listed(names)}: {note}." for names, note in notes if names))


def _worse(row: Row, base: Row) -> str:
    """An arm that does harm beyond chance, with the sites whose faults became failures."""
    sites = [f"{site} ({runs:,} {'run' if runs == 1 else 'runs'})" for site, runs in row.get("turned", {}).items()]
    return (
        f"{row['name']}: the network fails more often than unprotected, in {interval(row)} instead of {interval(base)}"
        + (f"; faults that turned into failures struck {listed(sites[:3])}." if sites else ".")
    )


def _unprotected(document: Document, base: Row) -> str:
    target = base["target"]
    verb, cases = ("fail in", "of cases") if target == "values" else ("fail on", "of inputs")
    start = f"{fault_in(document, _faults(base))} makes the unprotected {document['model']} {verb}"
    if base["failure"]:
        return f"{start} {interval(base)} {cases}."
    return (
        f"{start} at most {at_most(base['failure_high'])} {cases} "
        f"(none seen in {base['n_faults']:,} faults, {100 * document['confidence']:g} % limit)."
    )


def fault_in(document: Document, faults: str) -> str:
    """What one fault of a table is, as a sentence begins."""
    target = rows_of(document, faults)[0]["target"]
    population = document.get("population", {}).get(faults, {})
    one = population.get("fault", "One flipped bit")
    return f"{one} in {population.get('struck', STRUCK[target])}"


def _crashes(document: Document, rows: Sequence[Row]) -> list[str]:
    """Layers that nothing is known of, since every run crashed, by arm."""
    groups = document.get("by_layer", {}).get(_faults(rows[0]), {})
    return [f"{name}: {crashes}" for name, by_layer in groups.items() if (crashes := only_crashes(by_layer))]


def _where(document: Document, base: Row) -> list[str]:
    """The bit that does most of the harm, where one stands out: more than three times its even share."""
    bits = [row for row in document["by_bit"][_faults(base)][base["name"]] if row["bit"] is not None]
    harm = {row["bit"]: row["failure"] * row["n_faults"] for row in bits}
    total = sum(harm.values())
    if not total or max(harm.values()) < 3 * total / len(bits):
        return []
    worst = max(bits, key=lambda row: harm[row["bit"]])
    share = 100 * harm[worst["bit"]] / total
    return [
        f"{share:.0f} % of the unprotected network's failures come from flips of bit {worst['bit']}, "
        f"which make it fail in {interval(worst)} of runs."
    ]


def _helped(row: Row, base: Row, document: Document) -> str:
    if row["failure"]:
        result = f"brings that to {interval(row)}, {improvement(row, base)},"
    else:
        result = (
            f"leaves no failure in {row['n_faults']:,} faults (at most {at_most(row['failure_high'])} at "
            f"{100 * document['confidence']:g} %),"
        )
    return f"On the same faults {row['name']} {result} {_cost(row, base, document)}."


def _cost(row: Row, base: Row, document: Document) -> str:
    parts = []
    if row["latency_ratio"] is not None:
        unclear = row["latency_low"] <= 1 <= row["latency_high"]
        ratio = f"{row['latency_ratio']:.2f} times the latency"
        parts.append("a latency not measurably different" if unclear else ratio)
    share = f"{factor(100 * row['extra_bytes'] / document['model_bytes'])} % of the model"
    parts.append(f"{amount(row['extra_bytes'])} more memory ({share})" if row["extra_bytes"] else "no more memory")
    if row["accuracy"] is not None and base["accuracy"] is not None:
        same = row["accuracy"] == base["accuracy"]
        change = f"{percent(row['accuracy'])} accuracy instead of {percent(base['accuracy'])}"
        parts.append("unchanged accuracy" if same else change)
    return f"at {listed(parts)}"


def _outdone(row: Row, helpful: Sequence[Row], document: Document) -> str | None:
    """An arm with only some of this one's protections that does as well on the same faults, as far as was seen."""
    own = set(document["protections"][row["name"]])
    gains = {pair["over"]: pair for pair in document["pairs"][_faults(row)] if pair["name"] == row["name"]}
    for other in helpful:
        fewer = set(document["protections"][other["name"]]) < own
        if fewer and gains[other["name"]]["difference_high"] >= 0:
            return str(other["name"])
    return None
