"""Models and calls as people bring them: captured as the plain model is, or refused with a way out that works."""

from __future__ import annotations

import collections
import copyreg
import dataclasses
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hoplon as hp
from hoplon.errors import CaptureError, HoplonError, HoplonWarning
from hoplon.program import EagerProgram, Program

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())  # type: ignore[no-any-return]


class Holder(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * 2  # type: ignore[no-any-return]


def names(program: Program) -> list[str]:
    return [site.name for site in (*program.value_sites, *program.memory_sites)]


def captured(model: Any, *args: Any, **kwargs: Any) -> Program:
    """The program, captured without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", HoplonWarning)
        program = hp.capture(model, args if args or kwargs else X, kwargs=kwargs)
    assert not isinstance(program, EagerProgram)
    return program


def in_place() -> nn.Module:
    body = Body()
    body.compile(backend="eager")
    return body


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda: nn.DataParallel(torch.compile(Holder(Body()).eval(), backend="eager")),  # type: ignore[type-var]
        lambda: Holder(torch.compile(in_place(), backend="eager")).eval(),  # type: ignore[arg-type]
    ],
    ids=["outside", "inside"],
)
def test_wrappers_are_taken_off(wrapped: Callable[[], nn.Module]) -> None:
    model = wrapped()
    state = list(model.state_dict())
    program = captured(model)
    assert names(program) == names(captured(Holder(Body()).eval()))
    assert list(model.state_dict()) == state
    memory = {site.name: program.memory()[site.name] for site in program.memory_sites}
    assert {t.data_ptr() for t in memory.values()} == {p.data_ptr() for p in model.parameters()}


def test_exported_programs_are_captured(tmp_path: Path) -> None:
    program = captured(Body().eval())
    hp.export_pt2(hp.harden(program, []), tmp_path / "own.pt2")
    exported = torch.export.load(tmp_path / "own.pt2")
    for model in (exported, exported.module()):
        again = captured(model)
        assert names(again) == names(program)
        assert again(X).equal(program(X))


def test_of_exported_modules_the_operators_tell_the_mode() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    with pytest.raises(
        CaptureError, match=r"exported in train mode \(batch_norm in its graph\); export model.eval\(\)"
    ):
        hp.capture(torch.export.export(model, (X,)).module(), X)
    exported = Holder(torch.export.export(model.eval(), (X,)).module())
    with pytest.raises(CaptureError, match="train mode in Holder; set training = False on each of model.modules"):
        hp.capture(exported, X)
    for module in exported.modules():
        module.training = False
    with pytest.warns(HoplonWarning, match="takes batches of 4 only"):
        assert not isinstance(hp.capture(exported, X), EagerProgram)


class Wrapper(nn.Module):
    """A wrapper whose ``train`` trains, as those of detection packages do."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Body()

    def train(self, trainer: Any = None, **settings: Any) -> Any:
        raise AssertionError("started to train")

    def forward(self, x: Tensor) -> list[object]:
        return [object()]


class Cache:
    """Keys and values, in no form that torch can take apart."""


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
@pytest.mark.parametrize(
    ("model", "kwargs", "reason"),
    [
        (lambda: torch.jit.script(Body().eval()), {}, r"TorchScript \(Body\), whose .* capture the model that was"),
        (lambda: Holder(torch.jit.script(Body())).eval(), {}, r"TorchScript \(Body\) as body"),
        (
            lambda: torch.relu,
            {},
            "expected model of capture to be a Module .*, got the function relu; .*wrap a function",
        ),
        (Wrapper, {}, r"train\(\) trains instead of setting a mode: capture the network in it, model.model"),
        (lambda: Body().eval(), {"past": Cache()}, r"got Cache as input .'past'.; call it without a cache"),
    ],
    ids=["script", "script inside", "function", "wrapper", "cache"],
)
def test_what_cannot_be_captured_is_refused_with_a_way_out(
    model: Callable[[], Any], kwargs: dict[str, Any], reason: str
) -> None:
    with pytest.raises(HoplonError, match=reason):
        hp.capture(model(), X, kwargs=kwargs)


def test_an_output_without_a_tensor_is_refused() -> None:
    model = Wrapper()
    for module in model.modules():
        module.training = False
    with pytest.raises(CaptureError, match="expected tensors in the output of Wrapper"):
        hp.capture(model, X)


class Inputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 5)

    def forward(self, *rows: Tensor, double: bool = False, **named: Tensor) -> Tensor:
        total: Tensor = sum(self.layer(value) for value in (*rows, *named.values()))  # type: ignore[assignment]
        return total * 2 if double else total


@pytest.mark.parametrize(
    ("args", "kwargs"), [((X,), {}), ((X, X + 1), {}), ((), {"a": X, "b": X + 1}), ((X,), {"b": X, "double": True})]
)
def test_every_form_of_a_call_has_a_graph(args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
    model = Inputs().eval()
    program = captured(model, *args, **kwargs)
    with torch.inference_mode():
        assert program(*args, **kwargs).equal(model(*args, **kwargs))


@dataclasses.dataclass(frozen=True)
class Part:
    logits: Tensor
    cache: object = None


@dataclasses.dataclass
class Whole:
    part: Part
    rest: list[Any]


class Mapped(collections.OrderedDict):  # type: ignore[type-arg]
    """As the outputs of transformers."""


STRUCTURES: dict[str, Callable[[Tensor], Any]] = {
    "dataclass": Part,
    "nested": lambda y: Whole(Part(y), [y + 1, {"more": Part(y - 1)}]),
    "subclass of dict": lambda y: Mapped(logits=y, hidden=y * 2),
}


class Structured(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(8, 5), how

    def forward(self, x: Tensor) -> Any:
        return STRUCTURES[self.how](self.layer(x))


@pytest.mark.parametrize("form", ["export", "eager"])
@pytest.mark.parametrize("how", STRUCTURES)
def test_outputs_are_taken_apart_and_put_together(how: str, form: str) -> None:
    model = Structured(how).eval()
    program = hp.capture(model, X, form=form)  # type: ignore[arg-type]
    found, wanted = program(X[:1]), model(X[:1])
    assert type(found) is type(wanted)
    assert repr(found).replace(", grad_fn=<AddmmBackward0>", "")[:40] == repr(wanted)[:40]
    campaign = hp.Campaign(program, hp.Inputs(X), sites=hp.Values(), criterion=hp.TopK(1))
    assert campaign.run(count=10, seed=0).summary()[0].n_runs == 10


def test_structures_travel_to_workers() -> None:
    """Another process is told the classes before it reads the graph."""
    program = captured(Structured("nested").eval())
    _, (kinds, *_) = copyreg.dispatch_table[Program](program)  # type: ignore[misc]
    assert set(kinds) == {Whole, Part}
    copy = pickle.loads(pickle.dumps(program))
    assert copy(X).part.logits.equal(program(X).part.logits)


class Cast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Body(), Body()
        self.b.first = nn.Linear(5, 16)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.a(x)
        with torch.autocast("cpu", enabled=False):
            return self.b(x.float())  # type: ignore[no-any-return]


def test_regions_of_autocast_keep_the_names_of_their_modules() -> None:
    model = Cast().eval()
    wanted = [f"{owner}{site}" for owner in "ab" for site in (".first:linear", ":relu", ".last:linear")]
    for form in ("export", "eager"):
        program = hp.capture(model, X, form=form)  # type: ignore[arg-type]
        assert [site.name for site in program.value_sites] == wanted
    program = captured(model)
    bounded = hp.harden(program, [hp.Ranger(hp.profile_ranges(program, X))])
    assert not bounded(100 * X).equal(model(100 * X))


def test_attention_is_captured_without_its_fused_kernel_and_says_so() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Unflatten(1, (1, 8)), nn.TransformerEncoder(layer, 1)).eval()
    wide = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", HoplonWarning)
        program = hp.capture(model, wide)
        eager = hp.capture(model, wide, form="eager")
    assert torch.backends.mha.get_fastpath_enabled()
    assert [site.name for site in program.value_sites] == [site.name for site in eager.value_sites]
    assert len(program.value_sites) == 10
    with torch.inference_mode():
        assert eager.run([wide[:1]], hook=lambda step, value: value)[0].equal(eager(wide[:1]))
    campaign = hp.Campaign(eager, wide, sites=hp.Values("*linear1*"), criterion=hp.Deviation((0.0,)))
    assert campaign.run(count=5, seed=0).runs["reached"].all()
    said = [str(w.message) for w in caught if issubclass(w.category, HoplonWarning)]
    assert len(said) in (0, 2)  # where the kernel gives the same bits there is nothing to say
    assert all("fused kernel for eval mode" in message for message in said)


def test_words_of_numbers_read_as_integers_keep_their_samples() -> None:
    """Where a kernel gives another row other last bits, the words of a number differ by far."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return (y.view(torch.int32) & -65536).view(torch.float32) + y

    model = Words().eval()
    assert not isinstance(captured(model, torch.randn(10, 6)), EagerProgram)


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(nn.functional.dropout(x, training=True))  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", ["export", "eager"])
def test_a_random_operator_is_named(form: str) -> None:
    with pytest.raises(CaptureError, match="two different outputs 0 for one input; remove .*dropout in the model"):
        hp.capture(Random().eval(), X, form=form)  # type: ignore[arg-type]


def test_a_program_prints_as_one_line() -> None:
    shown = repr(captured(Body().eval()))
    assert shown == "<Program Body: inputs (batch, 8); 3 value sites, 4 memory sites>"
