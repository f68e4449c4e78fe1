"""What the paper on Ranger claims of its choices: percentiles, replacements, what is bounded, which bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from hoplon_studies.framework.claims import (
    BESIDE,
    CONFIRMED,
    REFUTED,
    Claim,
    Evidence,
    Question,
    compared,
    from_to,
    joined,
    listed,
    spans,
    verdict_of,
)
from hoplon_studies.framework.digits import here
from hoplon_studies.framework.rows import DIFFERENCE, Row
from hoplon_studies.ranger.alternatives import LAST
from hoplon_studies.ranger.angles import MORE
from hoplon_studies.ranger.bits import BOUNDED, BY_BIT, HIGH, LOW, UNBOUNDED
from hoplon_studies.ranger.bounds import SLOWEST
from hoplon_studies.ranger.replacements import MISREAD
from hoplon_studies.ranger.runs import FIXED32, MEAN, WEIGHTS

_OTHERS = ("ResNet-20", "ResNet-56")  # not in the paper


def choices(evidence: Evidence) -> Iterator[Claim]:
    """Claims of sections III and V, in the order of the page."""
    yield from _percentiles(evidence)
    yield from _replacements(evidence)
    yield from _coverage(evidence)
    yield from _intuition(evidence)


def _percentiles(evidence: Evidence) -> Iterator[Claim]:
    arms = ("none", "100 %", "99.9 % of values", "99 % of values", "98 % of values")
    rates = {row.arm: row for row in evidence.found(where="Fig. 10", what=MEAN, arm=arms)}
    errors = [row for row in evidence.found(where="Table IV", what="RMSE", arm=arms) if row.arm != arms[0]]
    fewer = evidence.found(where="Fig. 10", what=MEAN, arm=DIFFERENCE)[:1]
    more = evidence.found(where="Table IV", what=MORE, arm=DIFFERENCE)
    yield evidence.judge(
        Question(
            "percentiles", "Tighter bounds leave fewer failures", "V-A, Fig. 10", "4.49 % → 2.9 %", "above", [0.0]
        ),
        fewer,
        because=lambda: (
            "bounds at the extremes, then at the percentile of 99.9 %, of values, on the same faults; "
            + ", ".join(f"{arm}: {here(rates[arm])}" for arm in (arms[0], arms[3]) if arm in rates)
        ),
        lacks="Dave in degrees has not been struck",
        shown=lambda rows: f"{from_to([rates[arm] for arm in arms[1:3]])}: {here(rows[0], unit=False)} points fewer",
    )
    yield evidence.judge(
        Question(
            "percentiles-cost",
            "Tighter bounds cost accuracy",
            "V-A, Table IV",
            "RMSE 6.069 → 8.5719 → 12.37 → 13.94",
            "above",
            [0.0],
        ),
        more,
        because=lambda: f"each more than the one before, on the same frames: by {joined(more)}",
        lacks="Dave in degrees is not here",
        shown=lambda _: " → ".join(here(row) for row in errors),
    )


def _replacements(evidence: Evidence) -> Iterator[Claim]:
    for name, model, text, place in (
        ("zero", FIXED32, "Faults fail less if what exceeds its bound becomes the bound, not 0", f"{BESIDE}; V-B"),
        ("zero-weights", WEIGHTS, "... and where a weight is wrong, which the paper leaves out", BESIDE),
    ):
        pairs = evidence.arms("zero", "clamp", where="section V-B", what=("top-1", MEAN), setting=model.setting)
        yield evidence.judge(
            Question(name, text, place, "0 rejected, for accuracy", "lower", ()),
            pairs,
            because=_also(pairs),
            lacks=f"no policy was struck ({model.key})",
            shown=compared,
        )
    targeted = evidence.found(where="section V-B", what=MISREAD, arm="zero")
    yield evidence.judge(
        Question(
            "zero-misreads", "Reset to 0 misreads images that exceed a bound", "V-B", "3 of 5 images", "holds", [60.0]
        ),
        targeted,
        because=(
            "held-out images that exceed a bound without any fault, which the paper's 5 are taken to be: "
            + ", ".join(str(row.n) for row in targeted)
        ),
        lacks="no image that exceeds a bound was looked at",
        shown=listed,
    )


def _also(pairs: Sequence[Row]) -> str:
    """On how many networks 0 is better, on how many the bound, as far as limits tell."""
    both = list(zip(pairs[::2], pairs[1::2], strict=True))
    apart = [verdict_of("lower", (), pair, comparable=True) for pair in both]
    less, more = apart.count(REFUTED), apart.count(CONFIRMED)
    said = "failures with 0, then with the bound"
    return said + (f"; of {len(both)} networks 0 is better on {less}, the bound on {more}" if both else "")


def _coverage(evidence: Evidence) -> Iterator[Claim]:
    pairs = evidence.arms("activations", "algorithm1", where="section III-C", what="top-1")
    yield evidence.judge(
        Question("activations", "Bounds on activations alone are not enough", "III-C", "stated", "lower", ()),
        [row for row in pairs if row.model not in _OTHERS],
        because="activations alone, then the rest of Algorithm 1 as well, in the classifiers of the paper",
        lacks="not struck",
        shown=compared,
    )
    setting = f"{FIXED32.setting}, {LAST}"
    steering = evidence.arms("none", "bounded", where="section IV-C", what=MEAN, setting=setting)
    pairs = evidence.arms("none", "bounded", where="section IV-C", what="top-1", setting=setting)
    yield evidence.judge(
        Question("last-bounded", "Bounds do not help in the last layer", "IV-C", "stated", "unchanged", ()),
        [*pairs, *steering],
        because="without and with a bound on its product" + (f"; steering: {compared(steering)}" if steering else ""),
        lacks="the last layer was not struck",
        shown=spans,
    )


def _intuition(evidence: Evidence) -> Iterator[Claim]:
    yield evidence.judge(
        Question(
            "convergence", "Ranges converge quickly with the sampled data", "IV-B, Fig. 5", "drawn", "at least", [95.0]
        ),
        evidence.found(where="Fig. 5", what=SLOWEST),
        because="criterion: the slowest activation has 95 % of its final range after an eighth of the images",
        lacks="no ranges were followed",
        shown=listed,
    )
    bits = partial(evidence.arms, where="section III-B", what=BY_BIT)
    text = "Critical faults cluster around high-order bits"
    yield evidence.judge(
        Question("high-bits", text, "III-B", "stated", "lower", ()),
        bits(HIGH, LOW, setting=UNBOUNDED),
        because="failures of faults in high bits, then in low ones, without Ranger",
        lacks="no fault was sorted by its bit",
        shown=compared,
    )
    text = "... Ranger makes them fail less"
    rows = evidence.found(where="section III-B", what=BY_BIT, arm=HIGH)
    by_model: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_model.setdefault(row.model, {})[row.setting] = row
    yield evidence.judge(
        Question("transfer", text, "III-B", "stated", "lower", ()),
        [found[setting] for found in by_model.values() if len(found) == 2 for setting in (UNBOUNDED, BOUNDED)],
        because="failures of faults in high bits, without Ranger, then with it",
        lacks="no fault was sorted by its bit, with Ranger",
        shown=compared,
    )
    low = {row.model: row for row in evidence.found(where="section III-B", what=BY_BIT, arm=LOW, setting=UNBOUNDED)}
    yield evidence.judge(
        Question("like-low-bits", "... and like those of low-order bits", "III-B", "stated", "unchanged", ()),
        [
            row
            for name, found in by_model.items()
            if name in low and BOUNDED in found
            for row in (low[name], found[BOUNDED])
        ],
        because="failures of faults in low bits without Ranger, then of those in high bits with it",
        lacks="no fault was sorted by its bit, with Ranger",
        shown=compared,
    )
