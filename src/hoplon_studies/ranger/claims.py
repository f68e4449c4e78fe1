"""What the paper on Ranger claims, judged by the rows of the study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import mean

from hoplon_studies.framework.claims import Claim, Evidence, Question, compared, from_to, listed, span
from hoplon_studies.framework.digits import here
from hoplon_studies.framework.grids import times_fewer
from hoplon_studies.framework.rows import Row
from hoplon_studies.ranger.alternatives import FEWER, SCRIPT
from hoplon_studies.ranger.claims_of_choices import choices
from hoplon_studies.ranger.costs import ADDED, BEYOND, LAST_SHARE
from hoplon_studies.ranger.rates import OVER_ALL
from hoplon_studies.ranger.runs import FARTHEST, FIXED32, MEAN

_FIXED = FIXED32.setting
_VEHICLES = ("Dave (radians)", "Comma")


def headlines(evidence: Evidence) -> Iterator[Claim]:
    """Every headline claim of the paper, in its order."""
    yield from _classifiers(evidence)
    yield from _steering(evidence)
    yield from _dave(evidence)
    yield from _costs(evidence)
    yield from _sixteen_bits(evidence)
    yield from _hong(evidence)
    yield from choices(evidence)


def _fewer(rows: Sequence[Row]) -> str:
    """A pair of rates, and how many times fewer."""
    return f"{from_to(rows)}: {times_fewer(rows[0], rows[1])} times fewer"


def _classifiers(evidence: Evidence) -> Iterator[Claim]:
    published = evidence.published
    rows = evidence.arms("none", "ranger", where="Fig. 6", what=OVER_ALL)
    left = evidence.found(where="Fig. 6", arm="ranger", failure=True, what="top-1")
    lacks = "not all six classifiers have been struck"

    def most() -> str:
        worst = max(left, key=lambda row: float(row.here))  # type: ignore[arg-type]
        return f"{len(others)} of the six stand in for the paper's; most is left by {worst.model}: {here(worst)}"

    text = "Ranger makes faults in classifiers fail less (the direction alone)"
    others = {row.model for row in left if row.stands_for}
    because = (
        f"the mean over top-1 and top-5 of the paper's six architectures, of which {len(others)} have other data here"
    )
    yield evidence.judge(
        Question("classifiers", text, "IV-C", "14.92 % → 0.44 %", "lower", (14.92, 0.44)),
        rows,
        because=because,
        lacks=lacks,
        shown=from_to,
    )
    wanted, text = [published["fig6/times-fewer"]], "At least 34 times fewer, 97 % of critical faults mitigated"
    yield evidence.judge(
        Question("classifiers-size", text, "IV-C, VI", "34 times", "fewer", wanted),
        rows,
        because=most,
        lacks=lacks,
        shown=_fewer,
    )
    lenet = [row for row in left if row.model == "LeNet"]
    yield evidence.judge(
        Question("lenet", "LeNet fails no more", "IV-C", "around 20 % → 0 %", "holds", [0.0]),
        lenet,
        because=lambda: f"of {lenet[0].n:,} faults",
        lacks="LeNet has not been struck",
    )


def _steering(evidence: Evidence) -> Iterator[Claim]:
    published, lacks = evidence.published, "steering networks not struck"
    rows = evidence.arms("none", "ranger", where="section V-C", what=OVER_ALL)
    for rule, wanted, name, text in (
        ("lower", (37.24, 2.49), "vehicles", "Ranger makes faults in steering networks fail less"),
        ("at most", (2.49,), "vehicles-left", "... and leaves at most so many"),
    ):
        used = rows if rule == "lower" else rows[1:]
        yield evidence.judge(
            Question(name, text, "I, VII", "37.24 % → 2.49 %", rule, wanted),
            used,
            because="the mean of Comma and Dave in degrees, as the paper's figures are"
            if rule == "lower"
            else "the same mean, held against 2.49 %",
            lacks=lacks,
            shown=from_to if rule == "lower" else None,
        )
    weak = "; IV-C explains so small a factor by the arc tangent"
    for model, key, paper, rule, factor, more in (
        ("Comma", "comma", "24.98 % → 0.49 %", "fewer", "at least 50", ""),
        ("Dave (radians)", "dave-radians", "20.42 % → 7.35 %", "times", "2.77", weak),
    ):
        pair = evidence.arms("none", "ranger", where="Fig. 7", what=MEAN, model=model, setting=_FIXED)
        yield evidence.judge(
            Question(
                key, f"{model}: {factor} times fewer", "IV-C", paper, rule, [published[f"fig7/{key}/times-fewer"]]
            ),
            pair,
            because=f"opposite limits of both rates of {model}{more}",
            lacks=lacks,
            shown=_fewer,
        )


def _dave(evidence: Evidence) -> Iterator[Claim]:
    """What is left of Dave: the last layer's share."""
    known = {"where": "Fig. 7", "what": FARTHEST, "model": "Dave (radians)", "arm": "ranger"}
    script = evidence.found(setting=SCRIPT, **known)
    text = "Ranger leaves Dave's deviations beyond 120 degrees, for its arc tangent; the last layer is not struck"
    with_last = f"with the last layer struck, as the published script does, {listed(script)}: most of what the paper"
    yield evidence.judge(
        Question("dave-farthest", text, "IV-C, V-A", "4.01 %", "holds", [4.01]),
        evidence.found(setting=_FIXED, **known),
        because=f"{with_last} blames on the function comes from there in this network"
        if script
        else "the last layer has no row yet",
        lacks="Dave has not been struck",
    )


def _costs(evidence: Evidence) -> Iterator[Claim]:
    pairs = evidence.arms("none", "ranger", where="Table II")

    def largest() -> str:
        both = zip(pairs[::2], pairs[1::2], strict=True)
        changes = {abs(float(after.here) - float(before.here)): after for before, after in both}  # type: ignore[arg-type]
        most = max(changes)
        unit = changes[most].unit.replace("%", "points")
        return f"largest change {most:.2g} {unit} ({changes[most].model})"

    yield evidence.judge(
        Question("accuracy", "Bounds cost no accuracy", "IV-C, Table II", "equal but for SqueezeNet", "unchanged", ()),
        pairs,
        because=f"of {len(pairs) // 2} pairs each figure within the limits of the other",
        lacks="accuracy has no row",
        shown=lambda _: largest(),
    )
    rows = evidence.found(where="Table III", arm=ADDED)
    means = [row for row in rows if row.model.startswith("mean of")]
    gaps = {row.model: abs(float(row.here) - float(row.paper)) for row in rows if row.paper and row not in means}  # type: ignore[arg-type]
    most = sorted(gaps, key=gaps.__getitem__)[:-3:-1]
    yield evidence.judge(
        Question("operations", "Bounds add 0.518 % of operations", "IV-C, Table III", "0.518 %", "equal", [0.518]),
        means,
        because=f"negligible either way; most of the gap is of {' and '.join(most)}, whose whole graphs are counted "
        "here, and less than these in the paper, see their remarks",
        lacks="not all networks have been counted in this profile",
        comparable=False,
    )
    beyond = [row for row in evidence.found(what=BEYOND) if row.unit == "%" and "frames" not in row.data]
    yield evidence.judge(
        Question(
            "exceedance", "Sound values hardly ever exceed a bound (VGG16)", "III-B", "5 of 50,000", "at most", [0.01]
        ),
        [row for row in beyond if row.paper is not None],
        because=lambda: (
            "the share depends on how many images were profiled: extremes of n are exceeded by 1 in n + 1; "
            f"all classifiers here: {span(beyond)}"
        ),
        lacks="no row of images beyond a bound yet",
        shown=listed,
        comparable=False,
    )
    yield evidence.judge(
        Question(
            "last-layer", "VGG16's last layer makes 0.0047 % of its values", "IV-C", "0.0047 %", "equal", [0.0047]
        ),
        evidence.found(what=LAST_SHARE),
        because="product and bias, of the values of all operators that TensorFlow lists",
        lacks="no row of the last layer's share yet",
    )


def _sixteen_bits(evidence: Evidence) -> Iterator[Claim]:
    rows = evidence.arms("none", "ranger", where="Fig. 9", what=OVER_ALL)
    lacks, paper = "not all eight networks have been struck in 16 bits", "15.11 % → 0.93 %"
    yield evidence.judge(
        Question("sixteen-bits", "Ranger works in 16 bits", "IV-C, RQ4", paper, "lower", (15.11, 0.93)),
        rows,
        because="the mean over all criteria of the paper's eight architectures",
        lacks=lacks,
        shown=from_to,
    )
    wanted = [evidence.published["fig9/times-fewer"]]
    yield evidence.judge(
        Question("sixteen-bits-size", "At least 16 times fewer in 16 bits", "IV-C, RQ4", "16 times", "fewer", wanted),
        rows,
        because="opposite limits of both means",
        lacks=lacks,
        shown=_fewer,
    )


def _on_average(pairs: Sequence[Row]) -> str:
    """By how much the second of each pair is lower, on average of those whose first is not 0."""
    both = [(float(one.here), float(two.here)) for one, two in zip(pairs[::2], pairs[1::2], strict=True) if one.here]  # type: ignore[arg-type]
    return f"; on average {100 * mean(1 - two / one for one, two in both):.0f} % fewer" if both else ""


def _hong(evidence: Evidence) -> Iterator[Claim]:
    published = evidence.published
    farthest = partial(evidence.found, what=FARTHEST, model=_VEHICLES)
    lacks = evidence.lacking(where="Fig. 8", arm="tanh") or "no steering network with hyperbolic tangents was struck"
    ends = [published["fig8/tanh/least"], published["fig8/tanh/most"]]
    yield evidence.judge(
        Question(
            "hong-steering",
            "Hong et al., tangents for ReLUs (of Comma: ELUs), leave so many beyond 120 degrees",
            "IV-C",
            "4.76 to 9.48 %",
            "between",
            ends,
        ),
        farthest(where="Fig. 8", arm="tanh"),
        because="the tangents' own networks, without protection",
        lacks=lacks,
        shown=listed,
    )
    ends = [published["fig8/ranger/least"], published["fig8/ranger/most"]]
    yield evidence.judge(
        Question("hong-ranger", "Ranger leaves few beyond 120 degrees", "IV-C", "0 to 0.27 %", "between", ends),
        farthest(where="Fig. 7", arm="ranger", setting=_FIXED),
        because=(
            "bounds at the extremes; V-A has 4.01 % of Dave in radians, outside of this span, and 0.27 % of Dave in "
            "degrees with bounds at the percentile of 99.9 %"
        ),
        lacks="no steering network was struck",
        shown=listed,
    )
    left = evidence.arms("tanh", "ranger", where="Fig. 8", what=("top-1", MEAN))
    yield evidence.judge(
        Question(
            "hong-classifiers",
            "Tangents reduce failures less than Ranger",
            "IV-C, Fig. 8",
            "Ranger > 90 % fewer than tangents, on average",
            "lower",
            (),
        ),
        evidence.arms("ranger", "tanh", where="Fig. 8", what=FEWER),
        because="the direction alone: relative reductions by Ranger, then by tangents"
        + (f"; failures with tangents, then with Ranger: {compared(left)}{_on_average(left)}" if left else ""),
        lacks="no network with hyperbolic tangents was struck",
        shown=compared,
    )
    yield evidence.judge(
        Question(
            "tanh-networks",
            "Ranger helps networks that use tangents already",
            "IV-C, Fig. 8",
            "0 % by tangents",
            "lower",
            (),
        ),
        evidence.arms("tanh", "tanh+ranger", where="Fig. 8", what=("top-1", MEAN)),
        because="the same networks, without and with bounds",
        lacks="Ranger was not put on networks with hyperbolic tangents",
        shown=compared,
    )
