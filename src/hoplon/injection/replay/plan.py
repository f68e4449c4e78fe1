"""Plan of replay by regions: the steps that can run on windows, and the golden values that are kept for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, prod

from hoplon.injection.replay.rules import Rule, rules_of
from hoplon.injection.replay.values import Protections
from hoplon.program.program import Program, Ref


@dataclass(frozen=True)
class Plan:
    """Plan of replay by regions for batches with feature maps of certain shapes.

    ``shapes``: of feature maps by step; ``rules``: by step; ``kept``: steps whose golden maps are kept, since windows
    are cut out of them or compared with them; ``computed``: steps that faults strike, whose golden maps are computed
    again where they do; ``compared``: steps whose result is compared with golden; ``useful``:
    steps that an output depends on.
    """

    program: Program
    protections: Protections
    shapes: Mapping[int, tuple[int, ...]]
    rules: Mapping[int, Rule]
    kept: frozenset[int]
    computed: frozenset[int]
    compared: frozenset[int]
    useful: frozenset[int]

    @classmethod
    def of(
        cls,
        program: Program,
        protections: Protections,
        maps: Mapping[int, tuple[int, ...]],
        starts: Iterable[int],
        *,
        room: float = inf,
    ) -> Plan:
        """Return the plan for feature maps of these shapes, by step, and faults at the steps ``starts``.

        Args:
            room: bytes for all maps that are kept; where it does not suffice, only those are kept, and compared with,
                that windows are cut out of.
        """
        rules = rules_of(program, maps)
        map_starts = [start for start in starts if start in maps]
        reach = program.reach(map_starts) | sum(1 << start for start in map_starts)
        kept, compared = set[int](), set[int]()
        for index, rule in rules.items():
            if reach >> index & 1 and any(reach >> operand & 1 for operand in rule.operands):
                if rule.settles and not _passes_on(program, rules, index):
                    compared.add(index)
                if rule.grows or len(rule.operands) > 1:
                    kept.update(rule.operands)
        wanted = kept.union(compared, map_starts) & maps.keys()
        if sum(4 * prod(maps[step]) for step in wanted) <= room:
            kept = wanted
        kept &= maps.keys()
        compared &= kept
        computed = frozenset(map_starts) - kept
        return cls(program, protections, maps, rules, frozenset(kept), computed, frozenset(compared), _useful(program))


def _passes_on(program: Program, rules: Mapping[int, Rule], step: int) -> bool:
    """True if the step's value is only read through a chain of cheap pointwise steps that ends at a compared step.

    A comparison at ``step`` as well would gain nothing.
    """
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
