"""Results that take the memory of an operand: which may, and with which bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hoplon import capture
from hoplon.injection.replay.in_place import overwritten, run_in_place
from hoplon.program.program import Program


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.relu(self.norm(self.one(x)))  # the norm's value has no other reader
        second = self.two(first)
        joined = torch.relu(torch.add(second, first))  # `first` is read twice, `second` once
        flat = joined.flatten(1)
        seen = torch.relu(flat)  # of a view
        twice = seen + seen
        weighed = torch.add(self.two(joined), self.one(joined), alpha=2)
        return torch.relu(weighed), twice + 1.0


def _named(program: Program) -> list[tuple[str, str]]:
    def name(step: int) -> str:
        return str(program.steps[step].op).split("'")[-1].removeprefix("aten.").split(".")[0]

    return [(name(step), name(operand)) for step, operand in sorted(overwritten(program).items())]


def test_only_values_of_one_reader_and_memory_of_their_own_are_overwritten() -> None:
    program = capture(_Block().eval(), torch.randn(2, 2, 4, 4))
    assert _named(program) == [
        ("relu", "<built-in function getitem>"),
        ("add", "conv2d"),
        ("relu", "add"),
        ("relu", "add"),
        ("add", "add"),
    ]


def test_in_place_has_the_bits_of_elsewhere() -> None:
    program = capture(_Block().eval(), torch.randn(2, 2, 4, 4))
    step = next(step for step in program.steps if str(step.op) == "aten.add.Tensor")
    values = {read: torch.randn(2, 2, 4, 4) for read in step.reads}
    values[step.reads[0]][0, 0, 0] = torch.tensor([torch.nan, torch.inf, -0.0, 1e-45])
    expected = step.run(values)  # type: ignore[arg-type]
    target = values[step.reads[0]]
    found = run_in_place(step, values, target)  # type: ignore[arg-type]
    assert found.data_ptr() == target.data_ptr()
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


def test_what_is_laid_out_otherwise_is_left_alone() -> None:
    program = capture(_Block().eval(), torch.randn(2, 2, 4, 4))
    step = next(step for step in program.steps if str(step.op) == "aten.add.Tensor")
    target, other = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 4).transpose(2, 3)
    before = target.clone()
    found = run_in_place(step, dict(zip(step.reads, (target, other), strict=True)), target)  # type: ignore[arg-type]
    assert torch.equal(target, before)
    assert torch.equal(found, before + other)
