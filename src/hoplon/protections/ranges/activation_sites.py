"""Which value sites are activations: one operator, or several that write one out."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch.utils import _pytree as pytree

from hoplon.errors import checked
from hoplon.program.operators import ACTIVATION_KINDS, canonical_kind, has, is_passive, operator_name
from hoplon.program.program import Program, Ref, Step
from hoplon.program.sites import ValueSite
from hoplon.protections.ranges.function_ends import ARITHMETIC, COPIES, written_range

# What makes a product of functions of one value an activation. Powers and roots are left out: polynomials and norms.
_BENDING = ACTIVATION_KINDS | {
    "erf",
    "exp",
    "expm1",
    "abs",
    "log1p",
    "gt",
    "ge",
    "lt",
    "le",
    "sign",
    "maximum",
    "minimum",
}
_CURVED = _BENDING | {"pow", "square", "sqrt", "rsqrt", "log", "sin", "cos"}


@final
@dataclass(frozen=True)
class Activations:
    """The value sites of a program that are activations.

    ``sites``: by name, those whose value is an activation's; ``inner``: the sites inside of an activation that is
    written out in several operators, each with the site of its value.
    """

    sites: dict[str, ValueSite]
    inner: dict[str, str]


@checked
def activations(program: Program) -> Activations:
    """Find the activations of a program, those written out in Python included.

    Beside the operators that are one, an activation is

    - a product or quotient of two functions of one value, element by element, that bends it: ``x * sigmoid(a * x)``,
      ``0.5 * x * (1 + tanh(...))`` or ``(1 + erf(...))``, ``x * tanh(softplus(x))``, ``x * clamp(x + 3, 0, 6) / 6``;
      arithmetic on the same value that follows belongs to it;
    - a product of a gate and a value without a bound, as in a gated linear unit, squeeze and excite or the cell of an
      LSTM: a gate is a function with an end on both sides, and has no bound of its own there;
    - what a module without modules in it makes of one value, element by element, unless it is mere arithmetic.

    Bounding their parts would do harm: the end of a ``tanh`` that cancels a huge value is an end that no fault-free
    value reaches, so that a bound inside turns a masked fault into a failure.
    """
    return _Search(program).found()


def steps_of(template: Any) -> Iterator[int]:
    """The steps whose values are among these arguments."""
    return (leaf.step for leaf in pytree.tree_leaves(template) if isinstance(leaf, Ref))


class _Search:
    """The search for written-out activations in the steps of one program."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._steps = program.steps
        inputs = frozenset(program.input_steps)
        self._varying = program.reach(inputs) | sum(1 << step for step in inputs)
        self._sites = {program.site_steps[site.name]: site for site in program.value_sites}
        self._outputs = {leaf.step for leaf in program.output_steps if isinstance(leaf, Ref)}
        owners = {step.owner for step in program.compute_steps()}
        self._branches = {owner[:end] for owner in owners for end in _ends_of_parents(owner)}

    def found(self) -> Activations:
        """Products first, then modules; what lies inside another activation is part of it."""
        written: dict[int, set[int]] = {}
        for step in self._program.compute_steps():
            found = self._product(step) or self._module(step)
            if found is not None:
                value, inside = found
                written[value] = written.get(value, set()) | inside
        inner: dict[int, int] = {}
        for value, inside in written.items():
            for part in inside - {value}:
                if set(self._program.readers[part]) <= inside | {value} and part not in self._outputs:
                    inner[part] = value
        inner |= self._gates(set(self._activating(written, inner)), written)
        for part in sorted(inner, reverse=True):  # the value of a part lies behind it
            inner[part] = inner.get(inner[part], inner[part])
        chosen = {
            site.name: site
            for number, site in self._sites.items()
            if number in set(self._activating(written, inner)) and site.dtype.is_floating_point
        }
        names = {part: self._sites[part].name for part in inner if part in self._sites}
        return Activations(chosen, {name: self._named(inner[part]) for part, name in names.items()})

    def _activating(self, written: Collection[int], inner: Collection[int]) -> Iterator[int]:
        for number, site in self._sites.items():
            if number not in inner and (site.kind in ACTIVATION_KINDS or number in written):
                yield number

    def _gates(self, bounded: set[int], written: dict[int, set[int]]) -> dict[int, int]:
        """The gates of values without a bound, each with its product, which becomes an activation."""
        gates: dict[int, int] = {}
        for step in self._program.compute_steps():
            factors = [read for read in steps_of(step.args[:2]) if self._varies(read)]
            if canonical_kind(step.op) != "mul" or len(factors) != 2 or step.index not in self._sites:
                continue
            for one, other in (factors, factors[::-1]):
                gate = self._origin(one, bounded)
                ends = written_range(self._program, gate) if gate in bounded else (math.inf, math.inf)
                if all(map(math.isfinite, ends)) and self._origin(other, bounded) not in bounded:
                    gates[gate] = step.index
                    written[step.index] = {step.index}
                    bounded.add(step.index)
        return gates

    def _origin(self, step: int, bounded: Collection[int]) -> int:
        """The value with a bound that a step moves, or multiplies and adds constants to; itself if there is none."""
        start = step
        while step not in bounded:
            made = self._steps[step]
            reads = [read for read in made.reads if self._varies(read)]
            keeps = made.op is not None and (
                canonical_kind(made.op) in ARITHMETIC
                or is_passive(made.op)
                or has(made.op, "selects")
                or has(made.op, "averages")
            )
            if len(reads) != 1 or not keeps:
                return start
            step = reads[0]
        return step

    def _named(self, step: int) -> str:
        return self._sites[step].name if step in self._sites else self._steps[step].label

    def _product(self, step: Step) -> tuple[int, set[int]] | None:
        """The value of a written-out activation that this product is in, and its steps."""
        operands = [self._operand(read) for read in steps_of(step.args[:2])]
        if canonical_kind(step.op) not in ("mul", "div") or len(operands) != 2 or not all(map(self._varies, operands)):
            return None
        for one, other in (operands, operands[::-1]):
            for value, factors in self._scaled(one):
                cone = self._cone([other], stop=value)
                if cone is not None and any(canonical_kind(self._steps[part].op) in _BENDING for part in cone):
                    return self._continued(step.index, value, cone | factors | {step.index})
        return None

    def _continued(self, last: int, value: int, inside: set[int]) -> tuple[int, set[int]]:
        """The same with the arithmetic that follows in the same module and reads nothing else."""
        end = last
        while end not in self._outputs and len(readers := self._program.readers[end]) == 1:
            step = self._steps[readers[0]]
            kind = "" if step.op is None else canonical_kind(step.op)
            cone = self._cone([read for read in step.reads if read not in inside], stop=value)
            if step.owner != self._steps[last].owner or kind not in ARITHMETIC | COPIES or cone is None:
                break
            inside, end = inside | cone | {step.index}, step.index
            last = end if kind in ARITHMETIC else last
        return last, inside

    def _module(self, step: Step) -> tuple[int, set[int]] | None:
        """The steps of a module without modules in it that make this value of one other, element by element."""
        if not step.owner or step.owner in self._branches or step.index not in self._sites:
            return None
        readers = [self._steps[reader] for reader in self._program.readers[step.index]]
        if step.index not in self._outputs and any(reader.owner == step.owner for reader in readers):
            return None
        inside, sources, waiting = set[int](), set[int](), [step.index]
        while waiting:
            number = waiting.pop()
            part = self._steps[number]
            if not self._varies(number):
                continue
            if part.owner != step.owner or part.op is None:
                sources.add(number)
            elif not _elementwise(part):
                return None
            elif number not in inside:
                inside.add(number)
                waiting += part.reads
        curved = any(canonical_kind(self._steps[part].op) in _CURVED for part in inside)
        return (step.index, inside) if len(sources) == 1 and curved else None

    def _scaled(self, step: int) -> Iterator[tuple[int, set[int]]]:
        """A value and what it is a constant multiple of, step by step, with the steps between."""
        between: set[int] = set()
        while True:
            yield step, set(between)
            part = self._steps[step]
            reads = [read for read in map(self._operand, part.reads) if self._varies(read)]
            if part.op is None or canonical_kind(part.op) not in ("mul", "div", "neg") or len(reads) != 1:
                return
            between.add(step)
            step = reads[0]

    def _cone(self, steps: Iterable[int], *, stop: int) -> set[int] | None:
        """The steps through which these are functions of ``stop`` alone, element by element; None if they are not."""
        inside: set[int] = set()
        waiting = [step for step in steps if self._varies(step)]
        while waiting:
            number = waiting.pop()
            if number == stop or number in inside or not self._varies(number):
                continue
            if number < stop or not _elementwise(self._steps[number]):
                return None
            inside.add(number)
            waiting += self._steps[number].reads
        return inside

    def _operand(self, step: int) -> int:
        """The step whose values another only copies."""
        while (part := self._steps[step]).op is not None and operator_name(part.op) in COPIES and part.reads:
            step = part.reads[0]
        return step

    def _varies(self, step: int) -> bool:
        return bool(self._varying >> step & 1)


def _elementwise(step: Step) -> bool:
    if step.op is None:
        return False
    return (
        has(step.op, "pointwise")
        or operator_name(step.op) in COPIES
        or torch.Tag.pointwise in getattr(step.op, "tags", ())
    )


def _ends_of_parents(owner: str) -> list[int]:
    return [end for end, letter in enumerate(owner) if letter == "."]
