"""Updates under every guard: never undone, never mixed; soft errors in the same runs are repaired or reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hoplon.formats import integer_view
from hoplon.protections import Guard, StaleGuardError
from tests.support.guarded_memory import GUARDS, Guarded, Memory, same

FAST = (1e-6, 1e-2)
RATES = tuple(float(f"1e-{decade}") for decade in range(1, 9))
DTYPES = (torch.float32, torch.bfloat16)
Update = Callable[["Net", float], Iterator[None]]


class Net(nn.Module):
    """A classifier that also keeps an exponential mean of its inputs."""

    def __init__(self, dtype: torch.dtype, rate: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(1, 8, 3, dtype=dtype)
        self.bn = nn.BatchNorm2d(8, momentum=rate, dtype=dtype)
        self.fc = nn.Linear(72, 20, dtype=dtype)
        self.register_buffer("mean", torch.full((5, 5), 0.1, dtype=dtype))
        self.rate, self.keeps = rate, False
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.03 + 0.1 * torch.rand(parameter.shape, generator=generator))
        self.x = torch.rand(6, 1, 5, 5, generator=generator).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.keeps:
            self.get_buffer("mean").lerp_(x.mean((0, 1)), self.rate)
        features: Tensor = torch.relu(self.bn(self.conv(x)))
        return self.fc(features.flatten(1))


def trained(build: Callable[..., torch.optim.Optimizer], **options: bool) -> Update:
    def update(net: Net, rate: float) -> Iterator[None]:
        optimizer = build(net.parameters(), lr=rate, **options)
        while True:
            optimizer.zero_grad()
            net(net.x).square().mean().backward()
            optimizer.step()
            yield

    return update


def pruned(net: Net, rate: float) -> Iterator[None]:
    weight, generator = net.fc.weight, torch.Generator().manual_seed(1)
    while True:
        with torch.no_grad():
            weight.mul_(torch.rand(weight.shape, generator=generator) > max(rate, 1e-3))
        yield


def recalibrated(net: Net, rate: float) -> Iterator[None]:
    while True:
        net.bn.train()
        with torch.no_grad():
            net(net.x)
        net.bn.eval()
        yield


def averaged(net: Net, rate: float) -> Iterator[None]:
    net.keeps = True
    while True:
        net(net.x)
        yield


UPDATES: dict[str, Update] = {
    "sgd": trained(torch.optim.SGD),
    "sgd-fused": trained(torch.optim.SGD, fused=True),
    "adamw": trained(torch.optim.AdamW),
    "adamw-fused": trained(torch.optim.AdamW, fused=True),
    "pruning": pruned,
    "recalibration": recalibrated,
    "mean": averaged,
}


def strike(net: Net, places: np.random.Generator) -> bool:
    """Invert the second highest bit of a word that is not zero, unseen by torch; return True if all words had it 0."""
    name = ("conv.weight", "fc.weight", "bn.running_var", "fc.bias")[places.integers(4)]
    words = integer_view(net.state_dict()[name]).view(-1).numpy()
    mask = words.dtype.type(1 << 8 * words.itemsize - 2)
    known = not (words & mask).any()
    words[places.choice(words.nonzero()[0])] ^= mask
    return known


def outcome(guard: Guard, memory: Memory, right: Memory) -> str:
    """What a check makes of memory as it is: "wrong" if it writes to it without saying that it cannot repair it."""
    struck = {name: tensor.clone() for name, tensor in memory.items()}
    try:
        report = guard.check()
    except StaleGuardError:
        return "refused" if same(memory, struck) else "wrong"
    if report.detected and report.detected == report.corrected:
        return "repaired" if same(memory, right) else "wrong"
    if report.detected:
        return "reported"
    return "unseen" if same(memory, struck) else "wrong"


def run(row: Guarded, update: str, dtype: torch.dtype, rate: float) -> Counter[str]:
    """Outcomes of three updates, of a fault after each, and of a fault that comes with the next one."""
    net = Net(dtype, rate).eval()
    memory = {name: tensor.detach() for name, tensor in net.state_dict(keep_vars=True).items()}
    guard = row.protection(memory).arm(memory)
    assert guard is not None
    places, found = np.random.default_rng(len(row.name)), Counter[str]()
    steps = UPDATES[update](net, rate)
    for _ in range(3):
        next(steps)
        right = {name: tensor.clone() for name, tensor in memory.items()}
        found[f"update {outcome(guard, memory, right)}"] += 1
        guard.refresh()
        for when in ("fault", "both"):
            if when == "both":
                next(steps)
                right = {name: tensor.clone() for name, tensor in memory.items()}
            looked_for = strike(net, places) or row.name != "known-bits"
            found[f"{when if looked_for else 'other bit'} {outcome(guard, memory, right)}"] += 1
            for name, tensor in right.items():
                integer_view(memory[name].data).copy_(integer_view(tensor))
            guard.refresh()
    return found


CASES = [
    pytest.param(update, dtype, rate, id=f"{update}-{dtype}-{rate:g}", marks=[] if rate in FAST else pytest.mark.slow)
    for update in UPDATES
    for dtype in DTYPES
    for rate in RATES
]


@pytest.mark.parametrize(("update", "dtype", "rate"), CASES)
def test_an_update_is_refused_or_left_and_a_fault_repaired_or_reported(
    update: str, dtype: torch.dtype, rate: float
) -> None:
    for row in GUARDS:
        found = run(row, update, dtype, rate)
        allowed = {f"{when} {end}" for when in ("fault", "both") for end in ("repaired", "reported", "refused")}
        allowed |= {"update refused", "update unseen", "other bit unseen", "other bit refused"}
        assert set(found) <= allowed, (row.name, found)
        assert found["fault refused"] == 0, (row.name, found)
