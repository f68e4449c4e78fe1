"""Figure 17 at the paper's batch: checks of its guards before forward passes of so many images, measured."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

import torch

from hoplon.comparison.costs.guard_latency import MIN_BLOCKS, armed
from hoplon.comparison.costs.latency import median_interval, timed
from hoplon.importance.scores import Scores
from hoplon_studies.aspis.overhead_charts import BATCHES
from hoplon_studies.aspis.overheads import ADDED, TIMES, protections, untrained
from hoplon_studies.aspis.subjects import LABELS
from hoplon_studies.framework.findings import Finding
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context

_NETWORK = "resnet50"
_GUARDS = ("tmr", "tmr-sparse", "published-10%", "published-1%")


def at_the_papers_batch(context: Context) -> Iterator[Finding]:
    """Checks beside forward passes of as many images as the paper has in a batch."""
    passes, batch = context.profile.aspis.full_passes, BATCHES[_NETWORK]
    known: dict[str, Any] = {"setting": "at the paper's batch"}
    what = f"{ADDED} by the check before a pass of {batch} images, measured"
    if not passes:
        why = f"not in the profile {context.profile.name}"
        yield Row("Fig. 17", LABELS[_NETWORK], "-", what, "%", why=why, **known)
        return
    make = partial(_measured, passes, context.seed)
    found = context.timed("paper-batch", make, stage=f"passes of {batch} images")
    known |= {"n": passes, "seed": context.seed}
    seconds = median(found["passes"])
    yield Row("Fig. 4", LABELS[_NETWORK], "-", f"a pass of {batch} images", "s", here=seconds, detail=True, **known)
    for name in _GUARDS:
        shares = [100 * check / one for check, one in zip(found["checks"][name], found["passes"], strict=True)]
        low, high = median_interval(shares) if passes >= MIN_BLOCKS else (None, None)
        paper, here = context.published[TIMES[name]], median(shares)
        yield Row("Fig. 17", LABELS[_NETWORK], "-", what, "%", paper, here, low, high, arm=name, **known)
    yield (
        f"At the paper's batch a pass of {LABELS[_NETWORK]} took {seconds:.3g} s, {1e3 * seconds / batch:.3g} ms per "
        "image. The more an image takes in a large batch than in a small one, the more the derived shares exceed those "
        "measured there, which leave initialisation out."
    )
    yield context.source(
        "checks at the paper's batch",
        fault_model=f"none; random weights; {passes} passes of {batch} images, before each of them every guard's check "
        "in an order drawn anew, all armed; initialisation left out",
        seed=context.seed,
    )


def _measured(passes: int, seed: int) -> dict[str, Any]:
    """Seconds of the passes, and by guard of its checks before them."""
    model, memory, layers = untrained(_NETWORK, seed)
    own = {name: memory[name] for name in layers}
    scores = Scores({name: one.abs() for name, one in own.items()})
    guards = {name: armed(one, own) for name, one in protections(scores).items() if name in _GUARDS}
    x = torch.randn(BATCHES[_NETWORK], 3, 224, 224, generator=torch.Generator().manual_seed(seed))
    forward, generator, order = torch.inference_mode()(model), random.Random(seed), list(guards)
    forward(x[:2])  # warm-up
    seconds: list[float] = []
    checks: dict[str, list[float]] = {name: [] for name in guards}
    for one in guards.values():
        one.check()
    for _ in range(passes):
        generator.shuffle(order)
        for name in order:
            checks[name].append(timed(guards[name].check, x.device))
        seconds.append(timed(partial(forward, x), x.device))
    return {"passes": seconds, "checks": checks}
