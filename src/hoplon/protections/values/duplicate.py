"""Duplication of operators: run twice, compared, a third run where they differ."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor, fx, nn
from typing_extensions import override

from hoplon.errors import HoplonError, checked
from hoplon.formats.base import integer_view
from hoplon.program.program import Program
from hoplon.protections.base import Protection, Unchanged, ValueProtection
from hoplon.protections.values.counter import Count
from hoplon.protections.values.ranger import last_linear
from hoplon.registry import register


@register("protection", "duplicate")
@final
@checked
@dataclass(frozen=True)
class Duplicate(Protection):
    """Runs operators twice and compares their results word by word; where they differ, a third run decides.

    A fault in the result of one run is found for certain and outvoted: readers get what the operator computes from
    what it reads. What both runs read wrongly, a fault before the operator or in its weights, passes unseen, and so
    does a fault in the stored result after the comparison (``placement="after"``). In a campaign such a run is
    detected and corrected; the second and third run are taken for sound.

    A hardened module really computes twice. It can be compiled: the two runs then stay outside of what the compiler
    sees, since it would merge two equal computations into one and the protection would be gone. For the same reason it
    cannot be exported.

    Args:
        sites: names of operator outputs; the last linear layers by default. The operator must have one output and
            leave its inputs alone.
    Raises:
        HoplonError: no site, or one that cannot be computed twice.
    Source:
        Chen et al., DSN 2021 (Ranger), section IV-C, names duplication of the last linear layer, whose values no bound
        can help, as cheap; Mahmoud et al., as cited in its section VI, duplicate the vulnerable parts of a network.
    """

    sites: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.sites == ():
            raise HoplonError("expected the names of sites to duplicate, got none; None is the last linear layer")

    @property
    @override
    def label(self) -> str:
        return "duplicate" if self.sites is None else f"duplicate({','.join(self.sites)})"

    def values(self, program: Program) -> Mapping[str, ValueProtection]:
        """The operators that run twice, by the name of their site.

        Raises:
            HoplonError: a site that the program lacks or that cannot be computed twice, or no linear layer.
        """
        names = last_linear(program) if self.sites is None else self.sites
        if not names:
            raise HoplonError(f"expected a linear layer in {program.name} to duplicate, got none; name sites")
        for name in names:
            _require_repeatable(program, name)
        return {name: Repeated() for name in names}


@final
@dataclass(frozen=True)
class Repeated(Unchanged):
    """Stands for a second run of the operator; leaves every value as it is."""

    repeats = True

    local = True


def agreed(first: Tensor, run: Callable[[], Tensor], count: Count | None = None) -> Tensor:
    """The result that two runs of an operator agree on, bit for bit; where they differ, that of the majority of three.

    Where all three differ there is no majority, and the first result stays.

    Args:
        first: the result of the first run.
        run: runs the operator once more.
        count: gets the words that differ between the first two.
    """
    second = run()
    differs = integer_view(first) != integer_view(second)
    if count is not None:
        count.add(differs)
    if not differs.any():
        return first
    outvoted = differs & (integer_view(second) == integer_view(run()))
    return torch.where(outvoted, second, first)


@final
class RepeatedOperator(nn.Module):
    """An operator of a graph that runs at least twice."""

    def __init__(self, site: str, operator: Callable[..., Tensor], count: Count | None) -> None:
        super().__init__()
        self.site = site
        self.operator = operator
        self.count = count

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the operator twice and return its result, after the comparison."""
        return _run_apart(lambda: self.operator(*args, **kwargs), self.count)


def _run_twice(run: Callable[[], Tensor], count: Count | None) -> Tensor:
    return agreed(run(), run, count)


# a compiler would merge equal computations, and the second would be gone
_run_apart = cast("Callable[[Callable[[], Tensor], Count | None], Tensor]", torch.compiler.disable(_run_twice))


def repeat_node(graph_module: fx.GraphModule, node: fx.Node, site: str, count: Count | None) -> fx.Node:
    """Put an operator that runs twice in the place of a node, under its name; the new node."""
    target: Any = node.target
    if target._schema.is_mutable:
        raise _refused(site, f"{target}, which writes over its input")
    place = f"_repeated_{sum(child.startswith('_repeated_') for child in graph_module._modules)}"
    graph_module.add_module(place, RepeatedOperator(site, target, count))
    with graph_module.graph.inserting_before(node):
        repeated = graph_module.graph.call_module(place, node.args, node.kwargs)
    repeated.meta = dict(node.meta)
    node.replace_all_uses_with(repeated)
    graph_module.graph.erase_node(node)
    return repeated


def _require_repeatable(program: Program, name: str) -> None:
    site, step = program.value_site(name), program.steps[program.site_steps[name]]
    if step.op is None:
        raise _refused(name, "an input")
    siblings = [s for s in program.value_sites if (s.owner, s.kind, s.call) == (site.owner, site.kind, site.call)]
    if step.op is operator.getitem or len(siblings) > 1:
        raise _refused(name, f"{site.kind}, which has several outputs")
    if not site.dtype.is_floating_point:
        raise _refused(name, f"values of {site.dtype}")
    schema = getattr(step.op, "_schema", None)
    if schema is not None and schema.is_mutable:
        raise _refused(name, f"{step.op}, which writes over its input")


def _refused(site: str, what: str) -> HoplonError:
    return HoplonError(
        f"expected an operator that can run twice at {site}, got {what}; duplicate another, such as a linear layer"
    )
