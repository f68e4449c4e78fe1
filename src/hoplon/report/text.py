"""Numbers as readers want them: percent with the interval's precision, factors, bytes, names of protections."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hoplon.registry import components
from hoplon.stats.intervals import Interval

_ALL = 1 - 1e-9
_FEW_RUNS = 5
_LAYERS_NAMED = 5

TARGETS = {"values": "Faults in values", "memory": "Faults in weights"}
STRUCK = {
    "values": "the output of a convolution or linear layer",
    "memory": "a weight of a convolution or linear layer",
}


ELEMENT_UNIFORM = "Every element is equally likely to be struck, and every bit of it."
"""What documents mean that do not say how faults were drawn."""


def interval(row: Mapping[str, Any], key: str = "failure") -> str:
    """The estimate in percent with its interval: "2.04 % [1.97, 2.12]".

    Example:
        >>> interval({"failure": 0.0204, "failure_low": 0.0197, "failure_high": 0.0212})
        '2.04 % [1.97, 2.12]'
    """
    if row[key] is None:
        return "not measured"
    return str(Interval(row[key], row[f"{key}_low"], row[f"{key}_high"], 0.95, ""))


def crashed(row: Mapping[str, Any]) -> str:
    """The share of runs that crashed, with its interval where there were any.

    Example:
        >>> crashed({"crash": 0.9733, "crash_low": 0.9483, "crash_high": 0.9864}), crashed({"crash": 0.0})
        ('97.33 % [94.83, 98.64]', '0.00 %')
    """
    return interval(row, "crash") if row.get("crash") else percent(row.get("crash"))


def percent(share: float | None, *, decimals: int = 2) -> str:
    """A share in percent.

    Example:
        >>> percent(0.96987), percent(None)
        ('96.99 %', 'not measured')
    """
    return "not measured" if share is None else f"{100 * share:.{decimals}f} %"


def at_most(high: float) -> str:
    """An upper limit, rounded up so that it stays one.

    Example:
        >>> at_most(0.0074412)
        '0.75 %'
    """
    decimals = max(2, 1 - math.floor(math.log10(100 * high))) if high > 0 else 2
    scale: int = 10**decimals
    return f"{math.ceil(100 * high * scale) / scale:.{decimals}f} %"


def factor(value: float) -> str:
    """A ratio with two digits, and no more than the number can carry.

    Example:
        >>> factor(12.34), factor(1.26), factor(344.0), factor(0.1234)
        ('12', '1.3', '340', '0.12')
    """
    if value < 0.995:
        return f"{value:.2g}"
    return f"{value:.1f}" if value < 9.95 else f"{float(f'{value:.2g}'):,.0f}"


def signed_points(estimate: float, low: float, high: float) -> str:
    """A difference of two probabilities in percentage points, with its interval.

    Example:
        >>> signed_points(-0.0235, -0.0258, -0.0), signed_points(0.0, -1e-6, 1e-6)
        ('-2.35 [-2.58, +0.00]', '+0.00 [+0.00, +0.00]')
    """
    middle, lower, upper = (f"{round(100 * value, 2) + 0.0:+.2f}" for value in (estimate, low, high))
    return f"{middle} [{lower}, {upper}]"


def points(row: Mapping[str, Any]) -> str:
    """The difference to the unprotected arm in percentage points; nothing was estimated where the runs are the same."""
    if row["difference"] is None:
        return ""
    if not row["acts_on_target"]:
        return "same runs"
    return signed_points(row["difference"], row["difference_low"], row["difference_high"])


def latency(row: Mapping[str, Any]) -> str:
    """The latency ratio with its interval."""
    if row["latency_ratio"] is None:
        return "not measured"
    return f"× {row['latency_ratio']:.2f} [{row['latency_low']:.2f}, {row['latency_high']:.2f}]"


def amount(count: int) -> str:
    """Bytes in a unit that keeps the number short.

    Example:
        >>> amount(0), amount(352), amount(158032), amount(2169088)
        ('0 B', '352 B', '158 kB', '2.17 MB')
    """
    if count < 1000:
        return f"{count} B"
    exponent = min(3, int(math.log10(count) // 3))
    scaled = count / 1000**exponent
    return f"{scaled:.{max(0, 2 - int(math.log10(scaled)))}f} {('', 'kB', 'MB', 'GB')[exponent]}"


def failing_bits(row: Mapping[str, Any]) -> str:
    """Bits that fail the model when they flip, with limits, of all bits at risk.

    Example:
        >>> failing_bits({"failing_bits": 12.4, "failing_bits_low": 9, "failing_bits_high": 16, "bits_at_risk": 9900})
        '12 [9, 16] of 9,900'
    """
    found = [row.get(key) for key in ("failing_bits", "failing_bits_low", "failing_bits_high", "bits_at_risk")]
    if None in found:
        return "not measured"
    middle, low, high, bits = (f"{number:,.0f}" for number in found)
    return f"{middle} [{low}, {high}] of {bits}"


def only_crashes(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Say loudly of which layers nothing is known, since every run crashed; None where there are none.

    Args:
        rows: by layer; those with few runs are passed over.
    Example:
        >>> print(only_crashes([{"layer": ":topk#1", "crash": 1.0, "n_runs": 292}, {"layer": "fc", "crash": 0.5}]))
        ALL 292 RUNS CRASHED that struck :topk#1; nothing is known there about wrong outputs.
    """
    found = [row for row in rows if (row.get("crash") or 0.0) > _ALL and row["n_runs"] >= _FEW_RUNS]
    if not found:
        return None
    names = [str(row["layer"]) for row in found[:_LAYERS_NAMED]]
    names += [f"{len(found) - _LAYERS_NAMED} more layers"] if len(found) > _LAYERS_NAMED else []
    runs = sum(row["n_runs"] for row in found)
    return f"ALL {runs:,} RUNS CRASHED that struck {listed(names)}; nothing is known there about wrong outputs."


def packed_kernels(manifest: Mapping[str, Any]) -> str | None:
    """Say how far the outputs of packed kernels are from the model's own; None for a run with the model's own.

    Example:
        >>> print(packed_kernels({"kernels": {"samples": 8, "difference": 3.8e-07, "tolerance": 1e-4}}))
        Packed kernels: on 8 samples outputs within 3.8e-07 of the model's own (tolerance 0.0001), none harmed.
    """
    if (known := manifest.get("kernels")) is None:
        return None
    return (
        f"Packed kernels: on {known['samples']} samples outputs within {known['difference']:.1e} of the model's own "
        f"(tolerance {known['tolerance']:g}), none harmed."
    )


def executed(record: Mapping[str, Any]) -> str:
    """Say how the faults of a campaign are run, from the entry of its manifest.

    Example:
        >>> print(executed({"batch": 4, "kernels": "exact", "replay": "by row", "input_batches": 9}))
        runs go by row of a pass, batches of 4, exact kernels
        >>> found = {"replay": "by region", "input_batches_held": 8, "maps_kept": 2, "maps_computed_again": 20}
        >>> known = {"batch": 4, "kernels": "exact", "input_batches": 9, **found, "runs_in_windows": 8192}
        >>> print(executed(known))
        runs go by region, batches of 4, exact kernels, fault-free values of 8 of 9 batches at once (2 maps of each
        kept, 20 struck ones computed again), up to 8,192 runs in windows at once
    """
    how = {"by row": "by row of a pass", "whole forwards": "as whole forwards"}
    parts = [
        f"runs go {how.get(record['replay'], record['replay'])}",
        f"batches of {record['batch']:,}",
        f"{record['kernels']} kernels",
    ]
    if (held := record.get("input_batches_held")) is not None:
        parts.append(f"fault-free values of {held:,} of {record['input_batches']:,} batches at once")
    kept, computed = (record.get(key, 0) for key in ("maps_kept", "maps_computed_again"))
    if kept or computed:  # a model may have no maps
        parts[-1] += f" ({kept:,} maps of each kept, {computed:,} struck ones computed again)"
    for key, which in (("runs_in_windows", "in windows"), ("runs_of_whole_values", "with whole values")):
        if (runs := record.get(key)) is not None:
            parts.append(f"up to {runs:,} runs {which} at once")
    return ", ".join(parts)


def listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them.

    Example:
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def protection(label: str) -> tuple[str, str]:
    """Return the name of a protection and what it does, by the longest name that its label ("aspis-1%") begins with.

    Example:
        >>> protection("sec-ded-memory"), protection("own-guard")[1]
        (('SEC-DED memory', 'is memory ... in hardware, modelled. Meant for ...'), "a protection of the user's own.")
    """
    known = components("protection")
    name = max((name for name in known if label.startswith(name)), key=len, default=None)
    if name is None:
        return label, "a protection of the user's own."
    return known[name].label, known[name].sentence[:1].lower() + known[name].sentence[1:]
