"""Where replay by regions is possible in a program, and which golden values it reads."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hoplon.program import Program, Ref
from hoplon.replay.rules import Rule, rules_of
from hoplon.replay.survey import survey


@dataclass(frozen=True)
class Plan:
    """What a survey says about replay by regions.

    ``shapes``: of feature maps by step; ``rules``: by step; ``kept``: the maps that windows are cut out of, or compared
    with; ``compared``: steps whose result is; ``tied``: steps at which a sample has to be in its own row; ``useful``:
    steps that an output is made of.
    """

    program: Program
    protections: Mapping[int, Any]
    shapes: Mapping[int, tuple[int, ...]]
    rules: Mapping[int, Rule]
    kept: frozenset[int]
    compared: frozenset[int]
    tied: frozenset[int]
    useful: frozenset[int]

    @classmethod
    def of(cls, program: Program, protections: Mapping[int, Any], leaves: Sequence[Any], starts: Iterable[int]) -> Plan:
        """Survey one batch."""
        found = survey(program, protections, leaves)
        rules = rules_of(program, found.maps)
        begun = [start for start in starts if start in found.maps]
        reach = 0
        for start in begun:
            reach |= program.descendants[start] | 1 << start
        kept, compared = set(begun), set()
        for index, rule in rules.items():
            if reach >> index & 1 and any(reach >> operand & 1 for operand in rule.operands):
                if rule.settles and not _passes_on(program, rules, index):
                    compared.add(index)
                if rule.grows or len(rule.operands) > 1:
                    kept.update(rule.operands)
        kept = (kept | compared) & found.maps.keys()
        sets = (frozenset(kept), frozenset(compared), found.tied, _useful(program))
        return cls(program, protections, found.maps, rules, *sets)

    def next_tied(self, step: int) -> int:
        """The first step from this one on at which a sample has to be in its own row; the number of steps if none.

        Where an operator gives several results, they are taken apart in the same rows in which it ran.
        """
        found = min((tied for tied in self.tied if tied >= step), default=len(self.program.steps))
        while (source := self._parted(step, found)) is not None:
            found = source
        return found

    def _parted(self, first: int, step: int) -> int | None:
        """An operator with several results, from ``first`` on, that runs before a step but is read there or later."""
        program = self.program
        return next(
            (
                index
                for index in range(first, min(step, len(program.steps)))
                if index not in program.layouts and program.steps[index].op is not None
                if any(program.steps[reader].op is operator.getitem for reader in program.readers[index])
                if program.readers[index][-1] >= step
            ),
            None,
        )


def _passes_on(program: Program, rules: Mapping[int, Rule], step: int) -> bool:
    """Whether what a step makes goes through one cheap step after the other to one where it is compared anyway."""
    while len(program.readers[step]) == 1:
        (step,) = program.readers[step]
        rule = rules.get(step)
        if rule is None or rule.grows or rule.rounds == "by shape":
            return False
        if rule.settles:
            return True
    return False


def _useful(program: Program) -> frozenset[int]:
    outputs = {leaf.step for leaf in program.output_steps if isinstance(leaf, Ref)}
    wanted = sum(1 << step for step in outputs)
    return frozenset(s.index for s in program.steps if s.index in outputs or program.descendants[s.index] & wanted)
