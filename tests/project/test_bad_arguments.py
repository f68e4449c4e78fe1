"""Wrong arguments of every public function and class end in one HoplonError that says what was expected and got."""

from __future__ import annotations

import importlib
import inspect
import math
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt

import hoplon as hp
from hoplon.errors import HoplonError, checked
from tests.project.test_house import script
from tests.support.networks import NETWORKS

# made by hoplon, read by users: their constructors hold what they are given
HANDED_OUT = """
Activations AnyFailure Assessment Baseline BitBoundary Change Claim Coverage Exceedances FailureRate FaultSpace Flops
Forecast Golden GoldenStack GuardEvent GuardReport HoplonError InjectedWords Injections Inspection Interval Judgement
MemorySite Outcome Paragraph Rate Ratio Ref ReplayStatistics Rerun SiteProfile StaleGuardError Step TrivialErrors
TwoStagePlan UncorrectableMemory Upsets ValueSite VarianceComponents
"""
NET = NETWORKS["mlp"]


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """All functions and all classes that users make, with their names, once each."""
    index = script("api_index")
    found: dict[int, tuple[str, Any]] = {}
    for stub in index.faces():
        room = ".".join(stub.parent.relative_to(index.ROOT / "src").parts)
        for name in index.exported(stub):
            value = getattr(importlib.import_module(room), name)
            callable_ = inspect.isclass(value) or inspect.isroutine(value)
            if callable_ and name not in HANDED_OUT.split() and not isinstance(value, ModuleType):
                found.setdefault(id(value), (f"{room}.{name}", value))
    yield from (entry for entry in found.values() if not inspect.isabstract(entry[1]))


def parameters(value: Any) -> dict[str, Any]:
    """Annotations by name of the parameters that are checked."""
    hints = typing.get_type_hints(value, include_extras=True)
    if inspect.isclass(value) and not hasattr(value, "__dataclass_fields__"):
        hints = typing.get_type_hints(value.__init__, include_extras=True)
    named = inspect.signature(value).parameters.values()
    return {one.name: hints[one.name] for one in named if one.name in hints and one.kind is not one.VAR_KEYWORD}


def wrong(annotation: Any) -> list[Any]:
    """Values that no annotation but Any takes, and some that this one does not."""
    leaves = set(_leaves(annotation))
    found: list[Any] = [object(), 3 + 4j]
    if bool not in leaves:
        found.append(True)
    if float in leaves:
        found.append(math.nan)
    if leaves <= {int, float, bool, type(None)}:
        found += ["1%", "2", b"2", [], int, torch.ones(1)]
    if leaves <= {int, type(None)}:
        found += [2.5, 2**70, np.float64(2)]
    if {Ge, Gt} & {type(note) for note in _notes(annotation)}:
        found += [-1, -0.5]
    return found


def _leaves(annotation: Any) -> Iterator[Any]:
    whole = typing.get_origin(annotation) in (typing.Literal, Callable)
    parts = () if whole else typing.get_args(annotation)
    if not parts or typing.get_origin(annotation) is typing.Annotated:
        yield parts[0] if parts else annotation
    else:
        for part in parts:
            yield from _leaves(part)


def _notes(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for part in typing.get_args(annotation):
        yield from _notes(part)


@pytest.mark.parametrize(("name", "value"), [pytest.param(*entry, id=entry[0]) for entry in public()])
def test_every_public_callable_refuses_what_its_annotations_do(name: str, value: Any) -> None:
    asked = {key: annotation for key, annotation in parameters(value).items() if Any not in _leaves(annotation)}
    for key, annotation in asked.items():
        for given in wrong(annotation):
            with pytest.raises(HoplonError, match=rf"^expected {key} of .+ to be .+, got ") as refusal:
                value(**{key: given})
            assert "\n" not in str(refusal.value)


def test_numbers_of_numpy_become_those_of_python() -> None:
    model = hp.BitFlip(np.int64(2), bits=np.array([3, 7]))  # type: ignore[arg-type]
    assert (type(model.count), type(model.bits), model) == (int, tuple, hp.BitFlip(2, bits=(3, 7)))
    assert hp.BitFlip(bits=[3]) == hp.BitFlip(bits=(3,))  # type: ignore[arg-type]
    assert type(hp.ranges.Bound(np.float32(0), np.int8(1)).low) is float


def test_a_checked_function_still_is_what_it_was() -> None:
    @checked
    def scaled(value: float, *more: int, factor: float = 2, **others: str) -> float:
        """Scale."""
        return value * factor + sum(more) + len(others)

    assert scaled(1, 2, factor=3, name="x") == 6
    assert (scaled.__name__, scaled.__doc__, [*inspect.signature(scaled).parameters][1]) == ("scaled", "Scale.", "more")
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'value'"):
        scaled()  # type: ignore[call-arg]
    assert hp.capture.__globals__ is vars(importlib.import_module("hoplon.program.capturing"))


@cache
def world() -> Mapping[str, Any]:
    """One of everything, small."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = NET.model(seed=0)
        x, y = NET.batch(8), torch.arange(8) % 3
        program, data = hp.capture(model, x), hp.Inputs(x, y)
        scores = hp.importance.taylor(program, data, loss=F.cross_entropy)
        campaign = hp.Campaign(program, data, sites=hp.Values())
        return {
            "model": model,
            "x": x,
            "y": y,
            "program": program,
            "data": data,
            "scores": scores,
            "campaign": campaign,
            "table": campaign.draw(count=2),
            "ranges": hp.profile_ranges(program, data),
        }


ONE = "put it in a list"
CAPTURE = r"capture the model first: hoplon.capture\(model, example\)"
CALLS: tuple[tuple[str, str], ...] = (
    ("hp.BitFlip(True)", "count of BitFlip to be an integer of at least 1, got True"),
    ("hp.BitFlip(bits=['a'])", r"bits of BitFlip .*, got \['a'\]"),
    ("hp.BitFlip(bits=3)", ONE),
    ("hp.Campaign(program, data, sites=hp.Values(), fault_model=hp.BitFlip)", r"instance: BitFlip\(\.\.\.\)"),
    (
        "hp.Campaign(program, data, sites='conv1')",
        "Values or a Memory or a GuardMemory, got 'conv1'; select sites",
    ),
    ("hp.Campaign(program, data, sites=hp.Values)", r"the class Values; give an instance"),
    ("hp.Campaign(program, data, sites=hp.Values(), criterion='top-1')", "to be a Criterion .*, got 'top-1'"),
    ("hp.Campaign(program, data, sites=hp.Values(), criterion=[])", "expected at least one criterion, got none"),
    ("hp.Campaign(program, data, sites=hp.Values(), protections=hp.TMR())", ONE),
    ("hp.Campaign(program, data, sites=hp.Values(), protections='tmr')", "got 'tmr'; such as hoplon.TMR"),
    ("hp.Campaign(model, data, sites=hp.Values())", CAPTURE),
    ("hp.Campaign(program, 'data.npz', sites=hp.Values())", "expected Inputs, a map-style data set, .*, got str"),
    ("hp.Campaign(program, data, sites=hp.Values(kind=3))", "kind of Values to be .*, got 3"),
    (
        "hp.Campaign(program, data, sites=hp.Values(), fault_model=hp.BitFlip(bits=(99,))).run(count=2)",
        r"bits in \[0, ",
    ),
    ("campaign.run(count=2.5)", "count of Campaign.run to be an integer of at least 1 or None, got 2.5"),
    ("campaign.run(count='2')", "got '2'"),
    ("campaign.run(count=0)", "got 0"),
    ("campaign.run(half_width='5%')", "got '5%'; 0.01 is one percent"),
    ("campaign.run(half_width=float('nan'))", "got nan"),
    ("campaign.run(count=2, confidence=95)", "got 95; 0.01 is one percent"),
    ("campaign.run(count=2, seed=None)", "seed of Campaign.run to be an integer .*, got None"),
    ("campaign.run(count=2, seed=-1)", "got -1"),
    ("campaign.run(count=2, seed=2**80)", "got 1208925819614629174706176"),
    ("campaign.run(count=2, workers='2')", "workers of Campaign.run to be an integer of at least 1, got '2'"),
    ("campaign.run(count=2, threads=10**9)", "expected at most 1024 threads, got 1000000000"),
    ("campaign.run(count=2, store=3)", "store of Campaign.run to be a path or None, got 3"),
    ("campaign.run(count=2, store='a\\0b')", "to be a path or None"),
    ("campaign.run(count=2, progress=3)", "progress of Campaign.run to be a function or None, got 3"),
    ("campaign.run(count=2).by('colour')", "expected keys out of"),
    ("hp.capture(program, x)", "model of capture to be .*, got a value of type Program; give the torch.nn.Module"),
    ("hp.capture(model.__class__, x)", "got the class Mlp; give an instance"),
    ("hp.capture(model, data)", "expected an example with at least one tensor, got none"),
    ("hp.capture(model, [1, 2])", "expected an example with at least one tensor"),
    ("hp.capture(model, x, batch_axis='first')", "batch_axis of capture to be an integer or a mapping .*, got 'first'"),
    ("hp.capture(model, x, decompose='attention')", ONE),
    ("hp.inspect(model)", CAPTURE),
    ("hp.profile_ranges(model, data)", CAPTURE),
    ("hp.profile_ranges(program, 3)", r"hoplon.Inputs\(x, y\) makes them"),
    ("hp.profile_ranges(program, {'z': x})", "expected inputs named .*, got z"),
    ("hp.profile_ranges(program, data, batch=0)", "batch of profile_ranges to be an integer of at least 1, got 0"),
    ("hp.profile_ranges(program, data, quantile=99)", "got 99; 0.01 is one percent"),
    ("hp.Inputs(x.numpy())", "torch.as_tensor makes one from an array"),
    ("hp.Inputs(x, [0, 1])", "y of Inputs to be a Tensor or Annotations or None"),
    ("ranges.save(3)", "path of Ranges.save to be a path, got 3"),
    ("ranges.save('')", "path of Ranges.save to be a path, got ''"),
    ("hp.Ranges.load(None)", "path of Ranges.load to be a path, got None"),
    ("hp.Ranges({'conv1': (0, 1)})", "bounds of Ranges to be a mapping from a text to a Bound"),
    ("hp.Ranger('ranges.json')", r"hoplon.profile_ranges\(program, data\) makes them"),
    ("hp.Aspis(scores, fraction='1%')", "fraction of Aspis .*, got '1%'; 0.01 is one percent"),
    ("hp.Aspis(scores, float('nan'))", "got nan"),
    ("hp.Aspis({'w': 1}, 0.1)", "make scores with hoplon.importance"),
    ("scores.top(5)", "got 5; 0.01 is one percent"),
    ("hp.importance.taylor(model, data, loss=F.cross_entropy)", CAPTURE),
    ("hp.importance.taylor(program, data, loss='cross entropy')", "to be a function, got 'cross entropy'"),
    ("hp.harden(model, [])", CAPTURE),
    ("hp.harden(program, hp.TMR())", ONE),
    ("hp.harden(program, [hp.TMR])", r"\(each a Protection\), got \[the class TMR\]"),
    ("hp.harden(program, [None])", r"got \[None\]"),
    ("hp.guard(program, [hp.TMR()])", "model of guard to be a Module"),
    ("hp.compare(program, data, arms=[hp.TMR()], faults=table)", "arms of compare to be a mapping"),
    ("hp.compare(program, data, arms={'tmr': hp.TMR()}, faults=table)", "arms of compare to be a mapping"),
    ("hp.compare(program, data, arms={3: []}, faults=table)", "arms of compare to be a mapping"),
    ("hp.compare(program, data, arms={}, faults=table)", "expected at least one arm and one fault, got 0 arms"),
    ("hp.compare(program, data, arms={'none': []}, faults=[])", "expected at least one arm and one fault"),
    ("hp.compare(program, data, arms={'none': []}, faults='run')", r"draw one with Campaign\(\.\.\.\).draw"),
    ("hp.compare(program, data, arms={'none': []}, faults=table, criterion=[])", "expected at least one criterion"),
    ("hp.compare(model, data, arms={'none': []}, faults=table)", CAPTURE),
    ("hp.costs.count_flops(model)", CAPTURE),
    ("hp.save_bundle(model, 'folder')", r"hoplon.harden\(program, protections\) makes one"),
    ("hp.report.render({'arms': [3]})", "expected the document of an assessment"),
    ("hp.Values().select(model)", "program of Values.select to be HasSites"),
    ("hp.StuckAt(True)", "value of StuckAt to be 0 or 1, got True"),
    ("hp.zoo.resolve_model(3)", "text of resolve_model to be a text, got 3"),
)


@pytest.mark.parametrize(("call", "said"), CALLS)
def test_a_wrong_call_is_one_line_with_a_way_out(call: str, said: str) -> None:
    with pytest.raises(HoplonError, match=said) as refusal:
        eval(call, {"hp": hp, "F": F, **world()})  # noqa: S307 -- our own table
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith("expected ")


def test_faults_of_another_model_are_refused() -> None:
    other = NETWORKS["pooled"]
    program = hp.capture(other.model(seed=0), other.batch(4))
    data = hp.Inputs(other.batch(4), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(HoplonError, match="expected|no value site"):
        hp.compare(program, data, arms={"none": []}, faults=world()["table"])


def test_a_wrong_example_teaches_torch_nothing() -> None:
    known = set(torch.utils._pytree.SUPPORTED_NODES)
    with pytest.raises(HoplonError, match="expected an example with at least one tensor"):
        hp.capture(world()["model"], world()["data"])
    assert set(torch.utils._pytree.SUPPORTED_NODES) == known


def test_ranges_are_saved_into_a_folder_that_is_missing(tmp_path: Path) -> None:
    saved: tuple[Any, ...] = (world()["ranges"], world()["scores"], world()["table"])
    for number, one in enumerate(saved):
        path = tmp_path / f"missing{number}" / "deeper" / "file"
        one.save(path)
        assert path.is_file()
