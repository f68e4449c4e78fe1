"""Capture: equality with the model, and one clear error for what cannot be captured."""

from __future__ import annotations

import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hoplon import BitFlip, Campaign, Deviation, Inputs, Memory, TopK, Values, capture
from hoplon.errors import CaptureError, DataError, HoplonWarning
from hoplon.formats import Quantized, equal_bits
from hoplon.program.verify import find_samples
from hoplon.protections.base import Overlay
from hoplon.protections.runtime.lowering import lower
from tests.support.networks import GRAPHS, NETWORKS


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_program_equals_model_bit_for_bit(name: str, size: int) -> None:
    net = NETWORKS[name]
    model, x = net.model(), net.batch(size)
    with torch.inference_mode():
        wanted = model(x.clone())
    assert equal_bits(capture(model, net.batch(4))(x), wanted)


def test_structured_inputs_and_outputs_keep_their_structure() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
            return {"scaled": x * scale, "parts": (x + 1, x - 1)}

    x, scale = torch.randn(3, 2), torch.randn(3, 2)
    program = capture(Pair().eval(), (x,), kwargs={"scale": scale})
    found = program(x, scale=scale)
    assert equal_bits(found["scaled"], x * scale)
    assert equal_bits(found["parts"][1], x - 1)


def test_memory_is_shared_with_the_model_and_not_changed() -> None:
    net = NETWORKS["mlp"]
    model = net.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    program = capture(model, net.batch(2))
    assert program.memory()["fc1.weight"].data_ptr() == model.fc1.weight.data_ptr()
    assert all(equal_bits(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.fc1.weight.requires_grad
    assert model.fc1.weight.grad is None


def test_fingerprint_follows_structure_and_weights() -> None:
    net = NETWORKS["mlp"]
    same = capture(net.model(), net.batch(2)).fingerprint()
    assert capture(net.model(), net.batch(3, seed=9)).fingerprint() == same
    assert capture(net.model(seed=5), net.batch(2)).fingerprint() != same


class _Bare(nn.Module):
    """A forward given at construction."""

    def __init__(self, forward: object) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda m, x: m.linear(x) if x.sum() > 0 else x, "expected a model that torch.export can trace, got _Bare"),
        (
            lambda m, x: m.linear(x) - m.linear(x).mean(0, keepdim=True),
            "do not influence each other, got operator mean .* mixes samples|which mixes",
        ),
        (
            lambda m, x: m.linear(x).cumsum(0),
            "expected samples .* that do not influence each other, got operator cumsum",
        ),
        (lambda m, x: m.linear(x) + torch.rand(4), "expected a deterministic model, got two different outputs"),
    ],
)
def test_a_model_that_cannot_be_captured_is_named(forward: object, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(_Bare(forward).eval(), torch.randn(2, 4), form="export")


def test_train_mode_is_refused_with_the_way_out() -> None:
    model = NETWORKS["residual"].model()
    model.bn1.train()
    with pytest.raises(CaptureError, match=r"got train mode in bn1; call model.eval\(\) first"):
        capture(model, NETWORKS["residual"].batch(2))


def test_an_example_without_a_batch_axis_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"got inputs of shape \(2, 8, 8\) .* with the batch axis first"):
        capture(NETWORKS["residual"].model(), torch.randn(2, 8, 8))
    with pytest.raises(CaptureError, match="expected inputs that share a batch axis 0"):
        capture(NETWORKS["mlp"].model(), torch.tensor(1.0))
    with pytest.raises(CaptureError, match="expected an example of at least one sample, got an empty batch"):
        capture(NETWORKS["mlp"].model(), torch.zeros(0, 6))
    with pytest.raises(CaptureError, match="at least one tensor, got none"):
        capture(NETWORKS["mlp"].model(), ())


def test_inputs_of_another_shape_or_dtype_are_refused() -> None:
    program = capture(NETWORKS["mlp"].model(), NETWORKS["mlp"].batch(2))
    with pytest.raises(DataError, match=r"expected input 0 of Mlp with shape \(batch, 6\), got \(2, 7\)"):
        program(torch.zeros(2, 7))
    with pytest.raises(DataError, match=r"expected input 0 of Mlp as torch.float32, got torch.float64"):
        program(torch.zeros(2, 6, dtype=torch.float64))


class _Gate(nn.Module):
    """Control flow that depends on values: small inputs take one more layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.extra, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        if x.sum() < 2:
            x = torch.relu_(self.extra(x))
        return self.last(x)


class _Alive(TorchDispatchMode):
    """The most results of operators that were alive at once; indices, which are the same ones, left out."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[weakref.ref[Tensor]] = []
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [weakref.ref(one) for one in tree_leaves(result) if isinstance(one, Tensor) and one.is_floating_point()]
        self.results = made + [one for one in self.results if one() is not None]
        self.most = max(self.most, len(self.results))
        return result


def test_the_proof_of_samples_holds_no_more_values_than_a_pass_needs() -> None:
    class Deep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(30):
                x = torch.stack([part + 1 for part in x.chunk(2, 1)], 1).flatten(1, 2)
            return x

    x = torch.randn(3, 4)
    program = capture(Deep().eval(), x)
    with _Alive() as alive:
        again = find_samples(program, [x])
    assert len(program.steps) > 150
    assert alive.most < 30
    assert (again.layouts, again.site_steps) == (program.layouts, program.site_steps)


class _ManySizes(nn.Module):
    """Control flow on the sum of many sizes that depend on values, as of the boxes that a detector keeps."""

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.cat([x[x > limit / 100] for limit in range(60)])
        return x * 2 if kept.numel() > 40 else x


def test_a_failed_export_is_one_short_sentence_and_prints_no_graph(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(HoplonWarning, match="got _ManySizes failing with: .* eager form") as caught:
        capture(_ManySizes().eval(), torch.randn(2, 4))
    assert all(len(str(warning.message)) < 800 for warning in caught)
    assert capfd.readouterr() == ("", "")


def test_what_a_model_prints_while_it_is_exported_still_appears(capsys: pytest.CaptureFixture[str]) -> None:
    class Talking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if isinstance(x, FakeTensor):
                sys.stderr.write("seen")
            return x * 2

    capture(Talking().eval(), torch.randn(2, 4))
    assert "seen" in capsys.readouterr().err


def test_a_model_with_control_flow_runs_in_the_eager_form_and_says_so() -> None:
    model, x = _seeded(_Gate), torch.randn(12, 4, generator=torch.Generator().manual_seed(2))
    short = next(i for i in range(12) if torch.relu(model.first(x[i])).sum() < 2)
    with pytest.warns(HoplonWarning, match="expected a model that torch.export can trace, got _Gate .* eager form"):
        program = capture(model, x[short : short + 1])
    assert [s.name for s in program.value_sites] == [
        *("first:linear", ":relu", ":sum", ":lt", "extra:linear", ":relu.1", "last:linear")
    ]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    results = Campaign(program, Inputs(x), sites=Values()).run(count=200, seed=0)
    with torch.inference_mode():
        gated = {i for i in range(12) if torch.relu(model.first(x[i])).sum() < 2}
    assert 0 < len(gated) < 12
    table = results.faults.frame.join(results.runs, on=["fault", "input"])
    skipped = table.filter(
        ~table["input"].is_in(list(gated)) & table["site"].cast(str).is_in(["extra:linear", ":relu.1"])
    )
    assert skipped.height > 10
    assert not skipped["reached"].any()
    assert set(skipped["top-1"]) == {"identical"}
    assert table.filter(table["site"] == "last:linear")["reached"].all()
    assert all(equal_bits(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def _seeded(build: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("sites", [Values(), Memory()])
def test_the_eager_form_gives_the_faults_and_outcomes_of_replay(name: str, sites: Values | Memory) -> None:
    net = NETWORKS[name]
    model, x = net.model(), net.batch(6)
    programs = [capture(model, x, form="export"), capture(model, x, form="eager")]
    assert [s.name for s in programs[0].value_sites] == [s.name for s in programs[1].value_sites]
    assert [s.numel for s in programs[0].value_sites] == [s.numel for s in programs[1].value_sites]
    assert programs[0].memory_sites == programs[1].memory_sites
    assert [s.kinds for s in programs[0].memory_sites] == [s.kinds for s in programs[1].memory_sites]
    first, second = (
        Campaign(program, Inputs(x), sites=sites, fault_model=BitFlip(2), batch=1).run(count=40, seed=0)
        for program in programs
    )
    assert first.faults == second.faults
    assert first.runs.equals(second.runs)


class _Counting(nn.Module):
    """A linear layer that knows how many samples it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, FakeTensor):
            _seen.append(len(x))
        return torch.relu(self.inner(x))


_seen: list[int] = []


@pytest.mark.parametrize("size", [1, 2, 3, 200])
def test_the_proofs_take_few_samples_of_any_example(size: int) -> None:
    _seen.clear()
    capture(_seeded(_Counting), torch.randn(size, 4))
    assert sorted(_seen) == [2, 3, 3, 3]


class _Fixed(nn.Module):
    """The batch size written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(4, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.inner(x)).reshape(4, 8))


def test_a_fixed_batch_size_is_kept_and_said() -> None:
    model, x = _seeded(_Fixed), torch.randn(10, 2, 4, generator=torch.Generator().manual_seed(1))
    with pytest.warns(HoplonWarning, match="_Fixed fixes its batch size in its code, so it takes batches of 4 only"):
        program = capture(model, x[:4])
    assert [(s.name, s.shape) for s in program.value_sites] == [
        ("inner:linear", (2, 4)),
        (":tanh", (2, 4)),
        ("last:linear", (3,)),
    ]
    results = Campaign(program, Inputs(x), sites=Values(), criterion=TopK(1)).run(count=100, seed=0)
    table = results.faults.frame.join(results.runs, on=["fault", "input"])
    assert table["reached"].all()
    assert set(table["input"]) == set(range(10))
    assert results.manifest["batch"] == 4
    with pytest.raises(DataError, match="expected a batch of 4, which _Fixed is fixed to, got 8"):
        Campaign(program, Inputs(x), sites=Values(), batch=8).run(count=5)


class _Recurrent(nn.Module):
    """Batch on the second axis of input and output, folded with the heads in between."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.last = nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        steps, batch, width = x.shape
        heads = self.mix(x).reshape(steps, batch * 2, width // 2).transpose(0, 1)
        mixed = torch.softmax(heads @ heads.transpose(1, 2), -1) @ heads
        return self.last(mixed.transpose(0, 1).reshape(steps, batch, width))[-1]


def test_a_batch_axis_in_the_middle_or_folded_is_found() -> None:
    model = _seeded(_Recurrent)
    x = torch.randn(7, 3, 6, generator=torch.Generator().manual_seed(1))  # samples first, as data are
    program = capture(model, x.movedim(0, 1), batch_axis=1)
    shapes = {site.name: site.shape for site in program.value_sites}
    assert shapes[":softmax"] == (2, 3, 3)
    assert shapes["mix:linear"] == (3, 6)
    alone = capture(model, x.movedim(0, 1), batch_axis=1, form="eager")
    found = Campaign(program, Inputs(x), sites=Values(), batch=1).run(count=120, seed=0)
    wanted = Campaign(alone, Inputs(x), sites=Values()).run(count=120, seed=0)
    assert found.faults == wanted.faults
    assert found.runs.equals(wanted.runs)


def test_an_example_that_is_one_sample_needs_no_batch_axis() -> None:
    class Cloud(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return (points - points.mean(0)).abs().amax(0)

    x = torch.randn(5, 9, 3)
    program = capture(Cloud().eval(), x[0], batch_axis=None)
    results = Campaign(program, Inputs(x), sites=Values()).run(count=50, seed=0)
    assert results.manifest["batch"] == 1
    assert results.runs["reached"].all()
    assert program.value_site(":mean").shape == (3,)


def test_keyword_inputs_come_from_named_data() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, *, scale: Tensor, offset: float = 0.5) -> Tensor:
            return x * scale + offset

    data = Inputs({"scale": torch.rand(6, 3) + 1, "x": torch.rand(6, 3)})
    program = capture(Scaled().eval(), (), kwargs={"x": data.x["x"][:2], "scale": data.x["scale"][:2]})
    results = Campaign(program, data, sites=Values(kind=("mul", "input"))).run(count=60, seed=0)
    assert set(results.faults.frame["site"].cast(str)) == {":input", ":input.1", ":mul"}
    assert results.runs["reached"].all()
    with pytest.raises(DataError, match="expected inputs named x, scale, got x, weight"):
        Campaign(program, Inputs({"x": torch.rand(6, 3), "weight": torch.rand(6, 3)}), sites=Values()).run(count=1)


class _Mixer(nn.Module):
    """A linear layer over a transposed input: its kernel depends on whether the weight requires a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2))


@pytest.mark.parametrize("trainable", [True, False])
def test_parameters_are_read_with_the_models_own_requires_grad(trainable: bool) -> None:
    model = _seeded(_Mixer).requires_grad_(trainable)
    x = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    program = capture(model, x)
    with torch.inference_mode():
        assert equal_bits(program(x), model(x))
        assert equal_bits(lower(program, Overlay())(x), model(x))
    results = Campaign(program, Inputs(x), sites=Memory()).run(count=40, seed=0)
    eager = Campaign(capture(model, x, form="eager"), Inputs(x), sites=Memory()).run(count=40, seed=0)
    assert results.faults == eager.faults


def test_a_model_that_overwrites_its_input_leaves_the_example_alone() -> None:
    class Doubling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2)
            return self.linear(x)

    model, x = _seeded(Doubling), torch.ones(3, 4)
    for form in ("export", "eager"):
        program = capture(model, x, form=form)  # type: ignore[arg-type]
        results = Campaign(program, Inputs(x), sites=Values(kind="linear"), batch=1).run(count=20, seed=0)
        assert results.runs["reached"].all()
    assert (x == 1).all()


def test_a_recurrent_layer_is_captured_without_noise() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.last = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.gru(x)[0][:, -1])

    model, x = _seeded(Recurrent), torch.randn(4, 5, 4, generator=torch.Generator().manual_seed(1))
    program = capture(model, x)
    assert [s.name for s in program.value_sites] == ["gru:gru", "last:linear"]
    assert [s.name for s in capture(model, x, form="eager").value_sites][-1] == "last:linear"
    results = Campaign(program, Inputs(x), sites=Memory(kind="gru")).run(count=30, seed=0)
    assert results.runs["reached"].all()


def test_what_reads_a_shape_alone_is_no_site() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.linear(x)
            return torch.where(h > 0, h, torch.zeros_like(h))

    model, x = _seeded(Masked), torch.randn(4, 4)
    for form in ("export", "eager"):
        sites = [s.name for s in capture(model, x, form=form).value_sites]  # type: ignore[arg-type]
        assert sites == ["linear:linear", ":gt", ":where"]


def test_the_eager_form_leaves_the_batch_axis_out_of_shapes() -> None:
    net = NETWORKS["residual"]
    wanted, got = (capture(net.model(), net.batch(2), form=form) for form in ("export", "eager"))  # type: ignore[arg-type]
    assert [s.shape for s in got.value_sites] == [s.shape for s in wanted.value_sites]
    channel = Quantized(torch.int8, (0.1,) * 6, (0,) * 6, 0)
    results = Campaign(got, Inputs(net.batch(4)), sites=Values("conv1:conv"), fault_model=BitFlip(format=channel)).run(
        count=20, seed=0
    )
    assert results.by("bit")["n_runs"].sum() == 20
    assert results.by("field")["field"].to_list() == [None]


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.last = nn.Linear(8, 24), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.last(mixed.transpose(1, 2).flatten(2))


def test_attention_opens_on_request() -> None:
    model, x = _seeded(_Attention), torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    closed = capture(model, x)
    assert [s.name for s in closed.value_sites] == ["qkv:linear", ":attention", "last:linear"]
    with pytest.warns(HoplonWarning, match="_Attention with attention opened differs from the model by up to"):
        opened = capture(model, x, decompose={"attention"})
    kinds = [s.kind for s in opened.value_sites]
    assert kinds.count("matmul") == 2
    assert "softmax" in kinds
    assert opened.value_site(":softmax").shape == (2, 5, 5)
    assert torch.allclose(opened(x), closed(x), atol=1e-5)
    with pytest.raises(CaptureError, match="expected decompose out of attention, got norm"):
        capture(model, x, decompose={"norm"})


def test_kernels_that_round_by_row_do_not_look_like_samples_that_mix() -> None:
    """A wide input to few outputs, and a sigmoid of odd size: the same sample has other last bits in another row."""
    model = _seeded(lambda: nn.Sequential(nn.Linear(100, 3), nn.Sigmoid(), nn.Linear(3, 1)))
    x = torch.randn(9, 100, generator=torch.Generator().manual_seed(0))
    program = capture(model, x)
    results = Campaign(program, Inputs(x), sites=Values(), criterion=Deviation((0.1,)), batch=3).run(count=300, seed=0)
    nothing = results.faults.frame.join(results.runs, on=["fault", "input"]).filter(~results.runs["reached"])
    assert set(nothing["deviation>0.1"]) <= {"identical"}


class _LastAxis(nn.Module):
    """A linear layer on samples that lie along the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.movedim(-1, 0))
        return out


def test_a_negative_batch_axis_counts_from_the_end() -> None:
    model, x = _LastAxis().eval(), torch.randn(4, 5)
    last, second = capture(model, x, batch_axis=-1), capture(model, x, batch_axis=1)
    assert [site.name for site in last.value_sites] == [site.name for site in second.value_sites]
    other = torch.randn(4, 7)
    assert torch.equal(last(other), model(other))
    assert torch.equal(last(other), second(other))
