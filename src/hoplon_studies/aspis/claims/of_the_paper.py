"""What the paper on Aspis claims, judged by the rows of the study."""

from __future__ import annotations

from collections.abc import Iterator

from hoplon_studies.aspis.claims.of_drift import drift_claims
from hoplon_studies.aspis.claims.of_protection import protection_claims
from hoplon_studies.aspis.claims.of_weights import critical_claims, importance_claims
from hoplon_studies.aspis.overheads import ADDED, CODING, DERIVED, MEMORY, OF_PROCESS, OF_WEIGHTS, ONE_REPAIR, REPAIR
from hoplon_studies.aspis.subjects import LABELS
from hoplon_studies.aspis.whole import PER_DATA_SET
from hoplon_studies.framework.claims import Claim, Evidence, Question, from_to, joined, listed, span
from hoplon_studies.framework.digits import here

_SPARSE = ("published-1%", "published-10%", "tmr-sparse")
"""Guards as the paper has them: Aspis-1 %, Aspis-10 % and Aspis-100 %."""


def headlines(evidence: Evidence) -> Iterator[Claim]:
    """Every headline claim of the paper, in its order."""
    yield from _fault_space(evidence)
    yield from critical_claims(evidence)
    yield from importance_claims(evidence)
    yield from drift_claims(evidence)
    yield from protection_claims(evidence)
    yield from _redundancy(evidence)
    yield from _times(evidence)
    yield from _table_five(evidence)


def _fault_space(evidence: Evidence) -> Iterator[Claim]:
    rows = [row for row in evidence.found(where="Table II") if isinstance(row.paper, int)]
    yield evidence.judge(
        Question(
            "fault-space",
            "Weights, layers and fault sites of three networks",
            "II",
            "Table II",
            "equal",
            [float(row.paper or 0) for row in rows],
        ),
        rows,
        because="two bits are counted in both orders and the third anew: true sets are 1/2 and 1/6.4 of these",
        lacks="not counted",
        shown=lambda found: f"{len(found)} counts",
    )


def _redundancy(evidence: Evidence) -> Iterator[Claim]:
    yield evidence.judge(
        Question(
            "tmr-time", "TMR takes 121 to 299 % more time", "III-A, V-C", "121 to 299 %", "between", (121.0, 299.0)
        ),
        evidence.found(where="Fig. 17", what=DERIVED, arm="tmr"),
        because="another machine and implementation, a vote over whole tensors; the paper's hours come to 10 to 20 "
        "microseconds per weight and check",
        lacks="TMR has not been timed",
        shown=listed,
        comparable=False,
    )
    yield evidence.judge(
        Question("tmr-memory", "TMR takes about 240 MB more", "III-A", "about 240 MB", "about", [240.0]),
        evidence.found(where="Fig. 5", what=MEMORY, arm="tmr"),
        because="two more copies of the convolution weights; 240 MB are three copies of VGG19's",
        lacks="TMR has not been measured",
        shown=listed,
    )
    yield evidence.judge(
        Question(
            "sparse-memory",
            "Aspis-100 % (TMR-sparse) takes more than 2 GB",
            "III-B, V-D",
            "2.2 GB, > 2 GB",
            "at least",
            [2000.0],
        ),
        evidence.found(where="Fig. 19", what=MEMORY, arm="tmr-sparse"),
        because="108 bytes per weight: three sparse tensors of four indices and a value",
        lacks="TMR-sparse has not been measured",
        shown=listed,
    )


def _times(evidence: Evidence) -> Iterator[Claim]:
    few = evidence.found(where="Fig. 17", what=DERIVED, arm=_SPARSE)
    small = evidence.found(where="Fig. 17", what=PER_DATA_SET, arm=_SPARSE)
    yield evidence.judge(
        Question("aspis-time", "Aspis adds at most 4 % of time", "V-C", "1.1 to 4 %", "at most", [4.0]),
        [*few, *small],
        because="another machine and implementation; 1, 10 and 100 % of the weights, on ImageNet derived from measured "
        "checks, on CIFAR-10 measured with small networks, whose passes are short beside a check",
        lacks="sparse guards have not been timed",
        shown=lambda _: "; ".join(
            f"{data}: {span(rows)}" for data, rows in (("ImageNet", few), ("CIFAR-10", small)) if rows
        ),
        comparable=False,
    )
    yield evidence.judge(
        Question("ranger-time", "Ranger adds at most 4 %", "V-C", "1.1 to 4 %", "at most", [4.0]),
        [row for row in evidence.found(where="Fig. 17", arm="ranger") if row.what.startswith((ADDED, PER_DATA_SET))],
        because="another machine and implementation; of one forward pass, of small networks of a whole data set",
        lacks="bounds have not been timed",
        shown=listed,
        comparable=False,
    )
    one, all_ = (evidence.found(where="Fig. 18", what=what, arm=("tmr", *_SPARSE)) for what in (ONE_REPAIR, REPAIR))
    short = [row for row in one if float(row.here) <= 0.8]  # type: ignore[arg-type]
    yield evidence.judge(
        Question("correction", "A correction takes less than 0.8 ms", "V-C, Fig. 18c", "< 0.8 ms", "at most", [0.8]),
        one or all_,
        because=f"another machine and implementation; one tensor of the median size: {len(short)} of {len(one)} "
        "take less; the paper does not say how large its is"
        if one
        else "another machine and implementation; here a check of all layers is timed with the repair",
        lacks="no repair has been timed",
        shown=span,
        comparable=False,
    )


def _table_five(evidence: Evidence) -> Iterator[Claim]:
    published = evidence.published
    for kind, what, unit in (("memory", OF_PROCESS, "0.15 / 1.6 / 15.6 %"), ("time", DERIVED, "1.4 / 1.6 / 4 %")):
        rows = [row for arm in _SPARSE for row in evidence.found(where="Table V", what=what, arm=arm)]
        wanted = [published[f"table5/aspis-{share}%/{kind}"] for share in (1, 10, 100)]
        yield evidence.judge(
            Question(f"table5-{kind}", f"Aspis-1 / 10 / 100 % on ResNet50: {kind}", "Table V", unit, "about", wanted),
            rows if len(rows) == len(wanted) else [],
            because="criterion: within a tenth of each, of about 16 GB, as V-E implies"
            if kind == "memory"
            else "another machine and implementation; shares depend on both, the order of the three does not",
            lacks="ResNet50 has not been measured with all three",
            shown=lambda found: " / ".join(here(row, unit=False) for row in found) + " %",
            comparable=kind == "memory",
        )
    shares = [evidence.arms(CODING, arm, where="Table V", what=OF_PROCESS) for arm in _SPARSE[:2]]
    flat = evidence.found(where="Table V", what=OF_PROCESS, arm=("aspis-1%", "aspis-10%"))
    weights = evidence.found(where="Table V", what=OF_WEIGHTS, arm=CODING, model=LABELS["resnet50"])
    yield evidence.judge(
        Question(
            "structural-coding",
            "Aspis costs less memory than Structural Coding at 1 and 10 %",
            "V-E",
            "14.1 % against 0.15 and 1.6 %",
            "lower",
        ),
        [row for pair in shares for row in pair],
        because="Structural Coding (in hoplon's exact form), then Aspis as published, both of one process; the paper's "
        f"14.1 % fits the weights, of which it takes {joined(weights)} here, and its shares of Aspis the process; with "
        f"a flat index Aspis takes {' and '.join(here(row) for row in reversed(flat))} of it",
        lacks=f"Structural Coding is {evidence.lacking(where='Table V', arm=CODING) or 'not measured'}",
        shown=from_to,
    )
