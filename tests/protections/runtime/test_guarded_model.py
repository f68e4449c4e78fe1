"""Guards on models as they are: two lines, a hook, schedules, and everything that is refused."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import hoplon as hp
from hoplon import TMR, Aspis, HoplonError, Scores
from hoplon.formats import equal_bits
from hoplon.formats.digest import digest_of
from hoplon.protections import GuardReport, StaleGuardError
from hoplon.protections.memory_guard import Guard
from hoplon.protections.runtime import UncorrectableMemory
from tests.support.networks import NETWORKS


def net(name: str = "in-place-sum") -> nn.Module:
    return NETWORKS[name].model()


def strike(model: nn.Module, name: str = "fc.weight", value: float = 1e30) -> None:
    with torch.no_grad():
        dict([*model.named_parameters(), *model.named_buffers()])[name].data.view(-1)[0] = value


def beyond_repair(guarded: hp.runtime.GuardedModel) -> None:
    strike(guarded.model)
    guarded.monitor.guards[0].copies["fc.weight#1"].view(-1)[0] = 6.0


def words(model: nn.Module) -> str:
    return digest_of(dict(model.state_dict()))


def test_two_lines_repair_parameters_and_buffers() -> None:
    model = net()
    before = words(model)
    guarded = hp.guard(model, [TMR()])
    strike(model, "conv1.weight", float("nan"))
    strike(model, "bn.running_mean", float("inf"))
    assert words(model) != before
    report = guarded.check()
    assert (report.detected, report.corrected, report.uncorrectable) == (2, 2, 0)
    assert set(report.where) == {"conv1.weight", "bn.running_mean"}
    assert report == guarded.monitor.report
    assert words(model) == before
    assert guarded.monitor.extra_bytes == 2 * sum(tensor.nbytes for tensor in model.state_dict().values())


def test_a_hook_checks_before_each_forward_pass_until_it_is_taken_away() -> None:
    model, x = net(), NETWORKS["in-place-sum"].batch(5)
    with torch.no_grad():
        wanted = model(x)
        guarded = hp.guard(model, [TMR()], hook=True)
        strike(model)
        assert equal_bits(model(x), wanted)
        assert guarded.monitor.forwards == 1
        guarded.detach()
        assert not guarded.attached
        assert "forward" not in model.__dict__
        strike(model)
        assert not equal_bits(model(x), wanted)
        with guarded:
            assert guarded.attached
            assert guarded.attach().attached  # twice is once
            assert equal_bits(model(x), wanted)
        assert guarded.monitor.forwards == 2
        assert not model._forward_pre_hooks


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.complex128])
def test_any_dtype(dtype: torch.dtype) -> None:
    model = nn.Linear(3, 5, dtype=dtype)
    model.register_buffer("flags", torch.tensor([True, False]))
    model.register_buffer("counts", torch.arange(3, dtype=torch.int8))
    before = words(model)
    guarded = hp.guard(model, [TMR()])
    strike(model, "weight", 3.0)
    strike(model, "flags", 0)
    strike(model, "counts", 77)
    assert guarded.check().corrected == 3 + dtype.is_complex  # a complex number of this width is two words
    assert words(model) == before


def test_tied_weights_are_guarded_once_and_repaired_under_both_names() -> None:
    model = net("shared")
    guarded = hp.guard(model, [TMR()])
    assert guarded.monitor.extra_bytes == 2 * 4 * (16 + 4 + 4 + 1)
    strike(model, "a.weight")
    assert guarded.check().corrected == 1
    assert model.get_parameter("b.weight") is model.get_parameter("a.weight")


@dataclass(frozen=True)
class Asked(hp.protections.Protection):
    """A guard that writes down which checks it is asked for."""

    asked: list[tuple[int, int]]
    label = "asked"

    def arm(self, memory: Mapping[str, Tensor]) -> Guard:
        return _Asked(self.asked)


class _Asked(Guard):
    copies: Mapping[str, Tensor] = {}  # type: ignore[assignment]
    protected_bytes = 0  # type: ignore[assignment]

    def __init__(self, asked: list[tuple[int, int]]) -> None:
        self.asked = asked

    def check(self, *, turn: int = 0, turns: int = 1) -> GuardReport:
        self.asked.append((turn, turns))
        return GuardReport(1)

    def refresh(self) -> None:
        self.asked.append((-1, 0))


@pytest.mark.parametrize(
    ("when", "wanted"),
    [
        (None, [(0, 1)] * 5),
        (hp.runtime.EveryForward(2), [(0, 1)] * 3),
        (hp.runtime.Rotating(3), [(0, 3), (1, 3), (2, 3), (0, 3), (1, 3)]),
        (hp.runtime.OnDemand(), []),
    ],
)
def test_which_forward_passes_check_what(when: hp.harden.When | None, wanted: list[tuple[int, int]]) -> None:
    asked: list[tuple[int, int]] = []
    model, x = net(), NETWORKS["in-place-sum"].batch(5)
    guarded = hp.guard(model, [Asked(asked)], when=when, hook=True)
    for _ in range(5):
        model(x)
    assert asked == wanted
    guarded.check()
    assert asked == [*wanted, (0, 1)]
    hardened = hp.harden(hp.capture(net(), x), [Asked(asked)], when=when)
    asked.clear()
    for _ in range(5):
        hardened(x)
    assert asked == wanted
    assert hardened.monitor.when == guarded.monitor.when


def test_schedules_say_what_they_bound_and_refuse_what_they_cannot_do() -> None:
    assert "before each forward pass: a fault reaches at most one forward pass" in hp.runtime.EveryForward().text
    assert "at most 4 forward passes" in hp.runtime.EveryForward(4).text
    assert "at most 7 forward passes" in hp.runtime.Rotating(7).text
    assert (hp.runtime.EveryForward(4).latency, hp.runtime.Rotating(7).latency, hp.runtime.OnDemand().latency) == (
        4,
        7,
        None,
    )
    guarded = hp.guard(net(), [TMR()], when=hp.runtime.Rotating(7))
    assert guarded.monitor.guarantees["when"] == hp.runtime.Rotating(7).text
    assert guarded.monitor.check_due() == guarded.monitor.report
    assert guarded.monitor.report.latency == 7
    with pytest.raises(HoplonError, match="expected turns of Rotating to be an integer of at least 1, got 0"):
        hp.runtime.Rotating(0)
    with pytest.raises(HoplonError, match="expected n of EveryForward to be an integer of at least 1, got True"):
        hp.runtime.EveryForward(True)
    with pytest.raises(
        HoplonError,
        match=r"expected when of guard to be a When or None, got 'often'; such as hoplon.runtime.EveryForward\(\)",
    ):
        hp.guard(net(), [TMR()], when="often")  # type: ignore[arg-type]


@pytest.mark.parametrize("turns", [1, 3, 40])
def test_a_rotating_check_meets_every_fault_within_its_bound(turns: int) -> None:
    model = net()
    guarded = hp.guard(model, [TMR()], when=hp.runtime.Rotating(turns))
    names = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_floating_point()]
    for name in names[::5]:
        waited = []
        for start in range(turns):
            while guarded.monitor.forwards % turns != start:
                guarded.monitor.check_due()
            strike(model, name)
            passes = 1
            while not (report := guarded.monitor.check_due()) or not report.detected:
                passes += 1
            assert report.corrected == 1
            waited.append(passes)
        assert sorted(waited) == [*range(1, turns + 1)]  # never later than the bound, which is reached


def test_what_was_found_is_remembered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    model, x = net(), NETWORKS["in-place-sum"].batch(5)
    guarded = hp.guard(model, [TMR()], hook=True, on_uncorrectable=lambda report: None)
    model(x)
    assert not guarded.monitor.events
    with caplog.at_level(logging.WARNING, logger="hoplon"):
        strike(model, "fc.bias")
        model(x)
        beyond_repair(guarded)
        model(x)
    first, second = guarded.monitor.events
    assert (first.guard, first.forward, first.report.corrected) == ("tmr", 1, 1)
    assert str(first) == "tmr found 1 wrong words in fc.bias after 1 forward passes: 1 corrected"
    assert second.time >= first.time > 1.6e9
    assert (second.forward, second.report.uncorrectable) == (2, 1)
    assert {record.name for record in caplog.records} == {"hoplon"}
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert "1 beyond repair" in caplog.text
    for _ in range(1001):
        guarded.check()
    assert len(guarded.monitor.events) == 1000


def test_uncorrectable_memory_raises_again_and_again_or_calls_back() -> None:
    model, x = net(), NETWORKS["in-place-sum"].batch(5)
    guarded = hp.guard(model, [TMR()], when=hp.runtime.EveryForward(5), hook=True)
    beyond_repair(guarded)
    for _ in range(2):  # a refused pass does not use up the check
        with pytest.raises(UncorrectableMemory, match="got 1 uncorrectable words in fc.weight") as info:
            model(x)
        assert info.value.report.uncorrectable == 1
    with pytest.raises(UncorrectableMemory):
        guarded.check()
    assert guarded.monitor.forwards == 0
    seen: list[GuardReport] = []
    patient = hp.guard(net(), [TMR()], on_uncorrectable=seen.append)
    beyond_repair(patient)
    assert patient.check().uncorrectable == 1
    assert seen == [patient.monitor.report]


def test_what_one_guard_cannot_repair_another_one_may() -> None:
    model = net()
    before = words(model)
    guarded = hp.guard(model, [TMR(vote="tensor"), TMR()])
    strike(model)
    guarded.monitor.guards[0].copies["fc.weight#1"].view(-1)[1] = 6.0
    report = guarded.check()
    assert (report.uncorrectable, report.where) == (0, ("fc.weight",))
    assert words(model) == before


def _update(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.125)


@pytest.mark.parametrize("kind", ["parity", "aspis"])
def test_a_check_that_finds_nothing_makes_few_calls(kind: str) -> None:
    model = net()
    scores = Scores({name: tensor.detach().abs() for name, tensor in model.named_parameters()})
    guarded = hp.guard(model, [hp.Parity() if kind == "parity" else Aspis(scores, 0.1)], end_to_end=True)
    calls = []
    guarded.monitor.check_due()
    guarded.monitor.check_due()
    sys.setprofile(lambda frame, event, argument: calls.append(event))
    try:
        guarded.monitor.check_due()
    finally:
        sys.setprofile(None)
    assert calls.count("call") < 60
    assert calls.count("c_call") < 60


def test_updated_weights_are_refused_and_left_alone_until_refreshed() -> None:
    model = net()
    guarded = hp.guard(model, [TMR()])
    _update(model)
    after = words(model)
    with pytest.raises(StaleGuardError, match=r"got other values in .* words of .*; call refresh\(\)"):
        guarded.check()
    assert words(model) == after
    guarded.monitor.refresh()
    assert guarded.check().detected == 0
    strike(model)
    assert guarded.check().corrected == 1
    assert words(model) == after


class _Counting(nn.Module):
    """Counts its passes and keeps an exponential mean of its inputs, in eval mode too."""

    def __init__(self, *, replaces: bool = False) -> None:
        super().__init__()
        self.fc, self.replaces = nn.Linear(4, 3), replaces
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        calls, mean = self.get_buffer("calls"), self.get_buffer("mean")
        calls += 1
        if self.replaces:
            self.mean = torch.lerp(mean, x.mean(0), 0.1)
        else:
            mean.lerp_(x.mean(0), 0.1)
        fc: nn.Linear = self.fc
        return fc(x)


@pytest.mark.parametrize("hook", [False, True])
@pytest.mark.parametrize("replaces", [False, True])
def test_buffers_that_forward_writes_to_are_refused_by_name_and_left_out_where_asked(
    hook: bool, replaces: bool
) -> None:
    model, x = _Counting(replaces=replaces).eval(), torch.ones(2, 4)
    guarded = hp.guard(model, [TMR()], hook=hook)
    model(x)
    named = "another tensor as mean" if replaces else r"of calls; .* leave_out=\['calls', 'mean'\]\) if forward writes"
    with pytest.raises(HoplonError, match=named):
        model(x) if hook else guarded.check()
    assert int(model.get_buffer("calls")) == 1
    guarded.detach()
    guarded = hp.guard(model, [TMR()], hook=hook, leave_out=["calls", "mean"])
    assert guarded.monitor.left_out == ("calls", "mean")
    for _ in range(3):
        model(x)
        strike(model)
        assert guarded.check().corrected == 1
    assert int(model.get_buffer("calls")) == 4
    with pytest.raises(HoplonError, match="expected names of parameters or buffers to leave out, got 'calls.1'"):
        hp.guard(model, [TMR()], leave_out=["calls.1"])


def test_running_statistics_are_left_out_in_training_mode_until_refreshed(caplog: pytest.LogCaptureFixture) -> None:
    model = net().train()
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    x = NETWORKS["in-place-sum"].batch(5)
    with caplog.at_level(logging.WARNING, logger="hoplon"):
        guarded = hp.guard(model, [TMR()], hook=True)
    assert "bn.running_mean" in guarded.monitor.left_out
    assert "left out of what is guarded: forward writes to it in training mode" in caplog.text
    model(x)
    model(x)
    model.eval()
    guarded.monitor.refresh()
    assert guarded.monitor.left_out == ()
    norm.train()
    model(x)
    after = words(model)
    with pytest.raises(StaleGuardError, match=r"words of bn\.(num_batches_tracked|running_mean)"):
        guarded.check()
    assert words(model) == after


def test_training_step_by_step_under_a_hook_is_refused_at_the_first_changed_word() -> None:
    model = net().to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    hp.guard(model, [TMR()], hook=True)
    x = NETWORKS["in-place-sum"].batch(5).to(torch.bfloat16)
    model(x).float().square().mean().backward()
    before = words(model)
    optimizer.step()
    after = words(model)
    assert before != after
    with pytest.raises(StaleGuardError, match="if it was updated on purpose"):
        model(x)
    assert words(model) == after


def test_what_is_armed_or_made_in_inference_mode_still_tells_an_update_from_a_fault() -> None:
    model, x = net(), NETWORKS["in-place-sum"].batch(5)
    with torch.inference_mode():
        hardened = hp.harden(hp.capture(model, x), [TMR()]).to(torch.float64)
        checks = [hp.guard(model, [TMR()]).check, hardened.check, copy.deepcopy(hardened).check]
    strike(model)
    assert checks[0]().corrected == 1
    for module in (model, hardened):
        assert not any(tensor.is_inference() for tensor in module.parameters())
    with torch.no_grad():
        for module in (model, hardened):
            module.get_parameter("fc.weight").view(-1)[0] += 1
    for check in checks[:2]:
        with pytest.raises(StaleGuardError, match="in 1 of 12 words of fc.weight"):
            check()
    assert checks[2]().detected == 0


class _Other(nn.Linear):
    pass


def _replaced(model: nn.Module) -> None:
    model.fc = _Other(3, 4)


def _reshaped(model: nn.Module) -> None:
    weight = model.get_parameter("fc.weight")
    weight.data = weight.data.view(2, 6)


def _cast(model: nn.Module) -> None:
    model.fc.half()


def _viewed(model: nn.Module) -> None:
    model.bn.running_mean = model.bn.running_mean.view(torch.int32)


def _data(model: nn.Module) -> None:
    weight = model.get_parameter("fc.weight")
    weight.data = weight.data.clone()


def _removed(model: nn.Module) -> None:
    del model.fc.bias


def _absent(model: nn.Module) -> None:
    model.fc.bias = None


def _added(model: nn.Module) -> None:
    model.fc.register_buffer("more", torch.ones(1))


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (_replaced, "another module as fc;"),
        (_reshaped, r"fc.weight of shape \(2, 6\) where it was of \(4, 3\);"),
        (_cast, "fc.weight cast from torch.float32 to torch.float16;"),
        (_viewed, "bn.running_mean cast from torch.float32 to torch.int32;"),
        (_data, "another tensor as fc.weight;"),
        (_removed, "no fc.bias;"),
        (_absent, "no fc.bias;"),
        (_added, "fc.more, which was not there;"),
    ],
)
def test_a_changed_model_is_refused_by_name_until_refreshed(change: object, got: str) -> None:
    model = net()
    guarded = hp.guard(model, [TMR()], when=hp.runtime.Rotating(4))
    assert callable(change)
    change(model)
    with pytest.raises(HoplonError, match=rf"got {got} call monitor.refresh\(\)"):
        guarded.check()
    with pytest.raises(HoplonError, match=rf"got {got} call monitor.refresh\(\)"):  # within the bound of the schedule
        [guarded.monitor.check_due() for _ in range(4)]
    guarded.monitor.refresh()
    assert guarded.check().detected == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_and_moved_there() -> None:
    model = net()
    guarded = hp.guard(model, [TMR()])
    model.cuda()
    with pytest.raises(HoplonError, match="got conv1.weight on cuda:0 where it was on cpu"):
        guarded.check()
    guarded.monitor.refresh()
    before = words(model)
    strike(model, value=float("nan"))
    assert guarded.check().corrected == 1
    assert words(model) == before
    assert all(tensor.is_cuda for tensor in guarded.monitor.guards[0].copies.values())


def scores_of(model: nn.Module, **about: str) -> Scores:
    return Scores({"fc.weight": torch.rand(4, 3), "conv1.weight": torch.rand(3, 2, 3, 3)}, score="random", **about)


def test_scores_of_another_model_are_refused() -> None:
    model = net()
    own = digest_of({name: model.get_parameter(name) for name in ("fc.weight", "conv1.weight")})
    for scores in (scores_of(model), scores_of(model, weights=own, fingerprint="of a program")):
        guarded = hp.guard(model, [Aspis(scores, 1.0)])
        strike(model)
        assert guarded.check().corrected == 1
    with pytest.raises(HoplonError, match=r"expected the weights that were scored \(random\), got others"):
        hp.guard(model, [Aspis(scores_of(model, weights="0" * 64), 0.5)])
    with pytest.raises(HoplonError, match=r"expected a storage 'fc.weight' of shape \(4, 3\), as scored, got none"):
        hp.guard(net("branches").left, [Aspis(scores_of(model), 0.5)])


def test_scores_know_the_weights_they_are_of() -> None:
    model = net()
    scores = hp.importance.magnitude(hp.capture(model, NETWORKS["in-place-sum"].batch(5)))
    assert hp.guard(model, [Aspis(scores, 0.1)]).check().checked == scores.count(0.1)
    with pytest.raises(HoplonError, match=r"expected the weights that were scored \(magnitude\)"):
        hp.guard(NETWORKS["in-place-sum"].model(9), [Aspis(scores, 0.1)])


def test_a_module_with_bounds_alone_asks_nothing_of_its_memory() -> None:
    program = hp.capture(net(), NETWORKS["in-place-sum"].batch(5))
    module = hp.harden(program, [hp.Ranger(hp.profile_ranges(program, NETWORKS["in-place-sum"].batch(5)))])
    assert module.to("meta").check() == GuardReport()
    with pytest.raises(HoplonError, match=r"expected dense tensors in memory to guard, got .* \(on the meta device\)"):
        hp.harden(program, [TMR()]).to("meta")


def test_what_cannot_be_guarded_is_refused() -> None:
    program = hp.capture(net(), NETWORKS["in-place-sum"].batch(5))
    with pytest.raises(HoplonError, match="got ranger, which changes values and needs a graph: hp.harden"):
        hp.guard(net(), [hp.Ranger(hp.ranges.inherent_ranges(hp.capture(net("pooled"), NETWORKS["pooled"].batch(5))))])
    with pytest.raises(
        HoplonError,
        match=r"expected protections of guard to be an iterable \(each a Protection\), got \[a value of type Program\]",
    ):
        hp.guard(net(), [program])  # type: ignore[list-item]
    with pytest.raises(HoplonError, match="in software, got sec-ded-memory, which models hardware"):
        hp.guard(net(), [hp.guards.SecDedMemory()])
    with pytest.raises(HoplonError, match="expected at least one protection that guards memory, got none"):
        hp.guard(net(), [])
    with pytest.raises(HoplonError, match="expected parameters or buffers to guard, got ReLU without any"):
        hp.guard(nn.ReLU(), [TMR()])
    with pytest.raises(HoplonError, match=r"got weight \(on the meta device\)"):
        hp.guard(nn.Linear(2, 2, device="meta"), [TMR()])
    lazy = nn.Module()
    lazy.register_buffer("phase", torch.randn(3, dtype=torch.complex64).conj())
    with pytest.raises(HoplonError, match=r"expected dense tensors in memory to guard, got phase \(a lazy conjugate\)"):
        hp.guard(lazy, [TMR()])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("order", ["hook, compile", "compile, hook", "hook on the compiled", "compile in place, hook"])
def test_a_compiled_model_goes_on_checking(order: str, backend: str) -> None:
    torch._dynamo.reset()
    model, x = net(), NETWORKS["in-place-sum"].batch(5)
    with torch.no_grad():
        wanted = model(x)
        if order == "hook, compile":
            guarded = hp.guard(model, [TMR()], hook=True)
            run = torch.compile(model, backend=backend)
        else:
            if order == "compile in place, hook":
                model.compile(backend=backend)
            run = model if order == "compile in place, hook" else torch.compile(model, backend=backend)
            run(x)
            target = run if order == "hook on the compiled" else model
            guarded = hp.guard(target, [TMR()], hook=True)
        for number in range(3):
            strike(model)
            assert torch.allclose(run(x), wanted)
            assert guarded.monitor.forwards == number + 1
        assert len(guarded.monitor.events) == 3
        assert guarded.monitor.report.where == (
            "fc.weight",
        )  # the user's name, also where the compiler wrapped the model
        guarded.detach()
        strike(model)
        assert not torch.allclose(run(x), wanted)


def test_a_compiled_hardened_module_goes_on_checking() -> None:
    torch._dynamo.reset()
    x = NETWORKS["in-place-sum"].batch(5)
    hardened = hp.harden(hp.capture(net(), x), [TMR()])
    wanted = hardened(x)
    run = torch.compile(hardened, backend="aot_eager")
    for number in range(3):
        strike(hardened)
        assert torch.allclose(run(x), wanted)
        assert len(hardened.monitor.events) == number + 1


def test_a_hooked_model_is_copied_with_its_guards_and_not_exported_or_pickled() -> None:
    model, x = net("shared"), NETWORKS["shared"].batch(5)
    guarded = hp.guard(model, [TMR()], hook=True)
    with torch.no_grad():
        wanted = model(x)
        twin = copy.deepcopy(model)
        strike(twin, "a.weight")
        with pytest.raises(HoplonError, match="expected the copy of a guarded model to hold what was copied"):
            twin(x)
        twin = copy.deepcopy(model)
        assert equal_bits(twin(x), wanted)
        strike(twin, "a.weight")
        assert equal_bits(twin(x), wanted)
        assert not guarded.monitor.events
        twin_of_handle = copy.deepcopy(guarded)
        strike(twin_of_handle.model, "b.bias")
        with pytest.raises(HoplonError, match="expected the copy of a guarded model"):
            twin_of_handle.check()
        twin_of_handle.monitor.refresh()
        assert twin_of_handle.check().checked == 25
        assert twin_of_handle.attached
        twin_of_handle.detach()
        assert guarded.attached
    with pytest.raises(HoplonError, match=r"expected a model without the hook of its guards, .*detach\(\) it"):
        torch.export.export(model, (x,), strict=False)
    with pytest.raises(HoplonError, match=r"the hook of its guards to pickle; detach\(\) it"):
        model.__reduce_ex__(2)[2] and copy.copy(guarded)
