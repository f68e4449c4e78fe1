"""Each part of hoplon that can run on a GPU, there and on the CPU: outcomes compared, times side by side.

``benchmarks/gpu.sh`` runs all parts within eight minutes; one alone: ``python -P benchmarks/gpu.py --part values`` (-P,
since a file beside it is called like a module of the standard library). A part builds its own network with random
weights, needs no data, and prints one line of JSON. A GPU sums in another order than
a CPU, so last bits differ: faults are the same words at the same places, and outcomes may differ only for runs whose
golden decision is close (their number is printed, with the number of those that were compared).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hoplon as hp

CPU = "cpu"


class Residual(nn.Module):
    """Convolutions, batch norms, a residual sum, pooling and a linear layer: 32 x 32 pixels, ten classes."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)),
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape ``(n, 10)``."""
        x = self.stem(x)
        logits: Tensor = self.head(F.relu(self.body(x) + x).mean((2, 3)))
        return logits


def network(device: str) -> nn.Module:
    """The network with weights from one seed, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = Residual().eval()
    return net.to(device)


def samples(count: int, device: str) -> Tensor:
    """Images from one seed."""
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)


def program(device: str) -> hp.Program:
    """The captured network."""
    return hp.capture(network(device), samples(4, device))


def campaign(device: str, sites: hp.Values | hp.Memory, count: int, **options: Any) -> hp.Results:
    """So many single-bit faults on 64 images."""
    return hp.Campaign(program(device), hp.Inputs(samples(64, device)), sites=sites, **options).run(count=count, seed=0)


def outcomes_compared(run: Callable[[str], hp.Results], device: str) -> dict[str, Any]:
    """The same campaign on both devices: times, and how many outcomes differ."""
    seconds, outcomes = {}, {}
    for place in (CPU, device):
        start = time.perf_counter()
        results = run(place)
        seconds[place] = round(time.perf_counter() - start, 2)
        outcomes[place] = results.runs[results.criteria[0]].to_list()
    pairs = list(zip(outcomes[CPU], outcomes[device], strict=True))
    return {"seconds": seconds, "runs": len(pairs), "different": sum(a != b for a, b in pairs)}


def values(device: str) -> dict[str, Any]:
    """Value faults in convolutions."""
    return outcomes_compared(lambda place: campaign(place, hp.Values(kind="conv"), 4096), device)


def memory(device: str) -> dict[str, Any]:
    """Memory faults in convolutions and the linear layer."""
    return outcomes_compared(lambda place: campaign(place, hp.Memory(kind=("conv", "linear")), 128), device)


def bounded(device: str) -> dict[str, Any]:
    """Value faults with Ranger in place."""

    def run(place: str) -> hp.Results:
        ranges = hp.profile_ranges(program(place), hp.Inputs(samples(256, place)))
        return campaign(place, hp.Values(kind="conv"), 2048, protections=(hp.Ranger(ranges),))

    return outcomes_compared(run, device)


def half_width(device: str) -> dict[str, Any]:
    """A campaign to a precision: estimates of both devices, which have to agree within their intervals."""
    found = {}
    for place in (CPU, device):
        plan = hp.Campaign(program(place), hp.Inputs(samples(64, place)), sites=hp.Values(kind="conv"))
        start = time.perf_counter()
        (rate,) = plan.run(half_width=0.01, seed=0).summary()
        found[place] = {"failure": str(rate.failure), "seconds": round(time.perf_counter() - start, 2)}
    return found


def guards(device: str) -> dict[str, Any]:
    """Guards on live memory: a flip in every one of a hundred words is repaired, bit for bit, or reported."""
    found = {}
    for protection in (hp.TMR(), hp.Parity(), hp.KnownBits()):
        net = network(device)
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        guarded = hp.guard(net, [protection])
        weight = net.stem[0].weight.detach()
        repaired = reported = 0
        for element in range(100):
            word = weight.data.view(torch.int32).view(-1)
            word[element] ^= 1 << 30
            report = guarded.check()
            same = all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
            repaired, reported = repaired + same, reported + (not same and report.uncorrectable > 0)
            weight.data.copy_(before["stem.0.weight"])
        found[type(protection).__name__] = {"faults": 100, "repaired": repaired, "reported": reported}
    return found


def hardened(device: str) -> dict[str, Any]:
    """A hardened module gives the logits of the network, and finite ones under a fault."""
    net = network(device)
    captured = hp.capture(net, samples(4, device))
    ranges = hp.profile_ranges(captured, hp.Inputs(samples(256, device)))
    strong = hp.harden(captured, [hp.Ranger(ranges), hp.Parity()])
    x = samples(16, device)
    with torch.inference_mode():
        return {"largest_difference": float((strong(x) - net(x)).abs().max()), "outputs": 16}


def importance(device: str) -> dict[str, Any]:
    """Taylor scores on both devices: the largest relative difference of a score."""
    scores = []
    for place in (CPU, device):
        labels = torch.arange(64) % 10
        data = hp.Inputs(samples(64, place), labels.to(place))
        scores.append(hp.importance.taylor(program(place), data, loss=F.cross_entropy))
    first, second = ({name: tensor.cpu().double() for name, tensor in score.values.items()} for score in scores)
    worst = max(float(((first[name] - second[name]).abs() / first[name].abs().max()).max()) for name in first)
    return {"largest_relative_difference": worst, "tensors": len(first)}


PARTS = {part.__name__: part for part in (values, memory, bounded, half_width, guards, hardened, importance)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that are asked for; the exit code is 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=sorted(PARTS), help="only this part; may be repeated")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else CPU)
    options = parser.parse_args(arguments)
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device
    logging.getLogger("hoplon").setLevel(logging.ERROR)  # guards tell of every word that they repair
    failed = False
    for part in options.part or PARTS:
        start = time.perf_counter()
        try:
            content = PARTS[part](options.device)
        except (RuntimeError, ValueError, AttributeError, KeyError, TypeError) as error:
            content, failed = {"error": f"{type(error).__name__}: {error}"}, True
        took = round(time.perf_counter() - start, 1)
        print(
            json.dumps({"part": part, "device": name, "torch": torch.__version__, "took": took, **content}), flush=True
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()
