"""Memory as words: one list of sites whoever asks, faults in shared and computed weights by brute force, state kept."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import register_parametrization

import hoplon as hp
from hoplon.cli.app import main
from hoplon.errors import CaptureError, HoplonError, HoplonWarning, SiteError
from hoplon.formats.base import equal_bits, integer_view
from hoplon.program import Program

X = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
FORMS = ("export", "eager")


class Two(nn.Module):
    """Two linear layers, the words of whose weights lie as a test says."""

    def __init__(self, place: Callable[[nn.Module], None]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(4, 6))
        self.v = nn.Parameter(torch.randn(6, 4))
        place(self)

    def weights(self) -> tuple[Tensor, Tensor]:
        held = self.__dict__.get("held")
        first = held[0] if isinstance(held, list) else held() if callable(held) else self.w
        return first, self.v

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.weights()
        return F.linear(F.linear(x, first).relu(), second)


def _transposed(net: Any) -> None:
    net.v = nn.Parameter(net.w.data.t())


def _transposed_attribute(net: Any) -> None:
    del net.v
    net.v = net.w.data.t()


def _disjoint(net: Any) -> None:
    flat = torch.randn(48)
    net.w, net.v = nn.Parameter(flat[:24].view(4, 6)), nn.Parameter(flat[24:].view(6, 4))


def _disjoint_of_registered(net: Any) -> None:
    net.flat = nn.Parameter(torch.randn(48))
    net.w, net.v = nn.Parameter(net.flat.data[:24].view(4, 6)), nn.Parameter(net.flat.data[24:].view(6, 4))


def _interleaved(net: Any) -> None:
    pairs = torch.randn(24, 2)
    net.w, net.v = nn.Parameter(pairs[:, 0].view(4, 6)), nn.Parameter(pairs[:, 1].view(6, 4))


def _overlapping(net: Any) -> None:
    flat = torch.randn(36)
    net.w, net.v = nn.Parameter(flat[:24].view(4, 6)), nn.Parameter(flat[12:].view(6, 4))


def _expanded(net: Any) -> None:
    del net.w
    net.register_buffer("w", torch.randn(1, 6).expand(4, 6))


def _in_list(net: Any) -> None:
    del net.w
    net.held = [torch.randn(4, 6)]


def _in_closure(net: Any) -> None:
    del net.w
    table = torch.randn(4, 6)
    net.held = lambda: table


def _held_twice(net: Any) -> None:
    net.held = [net.w]


W, V = ("w", (), (4, 6)), ("v", (), (6, 4))
SETS: dict[str, tuple[Callable[[Any], None], list[tuple[str, tuple[str, ...], tuple[int, ...]]]]] = {
    "a transposed tie": (_transposed, [("w", ("v",), (4, 6))]),
    "a transposed attribute": (_transposed_attribute, [("w", ("v",), (4, 6))]),
    "slices of one storage": (_disjoint, [W, V]),
    "slices of a parameter that nothing reads": (_disjoint_of_registered, [W, V]),
    "interleaved slices": (_interleaved, [W, V]),
    "slices that overlap in part": (_overlapping, [("w", ("v",), (36,))]),
    "repeated words": (_expanded, [V, ("w", (), (6,))]),
    "a list": (_in_list, [V, ("held.0", (), (4, 6))]),
    "a closure": (_in_closure, [V, ("held.table", (), (4, 6))]),
    "a parameter in a list too": (_held_twice, [W, V]),
}


def _wrong(model: nn.Module, program: Program, x: Tensor, *, count: int, sites: Any = None) -> int:
    """Runs of a campaign that end otherwise than the model itself does with the same word changed."""
    campaign = hp.Campaign(program, x, sites=sites or hp.Memory(), criterion=hp.Deviation((0.1,)))
    results = campaign.run(count=count, seed=1)
    assert results.summary()[0].counts["crash"] == 0
    golden, wrong = model(x).detach(), 0
    outcomes = results.runs.sort("fault", "input").partition_by("fault", as_dict=True)
    for row in results.faults.frame.iter_rows(named=True):
        words = integer_view(program.memory_site(row["site"]).of(program.memory()))
        where = tuple(torch.unravel_index(torch.tensor(row["element"]), words.shape))
        before = words[where].clone()
        bits = 8 * words.itemsize
        signed = row["flip"] - (1 << bits) if row["flip"] >> (bits - 1) and words.dtype != torch.uint8 else row["flip"]
        words[where] = before ^ torch.tensor(signed, dtype=words.dtype)
        output = model(x).detach()
        words[where] = before
        failed = ((output - golden).abs().amax(1) > 0.1) | ~output.isfinite().all(1)
        told = outcomes[(row["fault"],)][results.criteria[0]].is_in(["sdc", "nonfinite"]).to_list()
        wrong += sum(one != other for one, other in zip(failed.tolist(), told, strict=True))
    return wrong


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", SETS)
def test_a_site_is_a_set_of_words_and_every_reader_sees_its_faults(case: str, form: Any) -> None:
    place, sites = SETS[case]
    model = Two(place).eval()
    program = hp.capture(model, X, form=form)
    assert [(site.name, site.aliases, site.shape) for site in program.memory_sites] == sites
    assert _wrong(model, program, X, count=25) == 0


@pytest.mark.parametrize("case", ["a transposed attribute", "slices that overlap in part"])
def test_words_are_shared_in_another_process_and_in_hardened_modules_too(case: str) -> None:
    model = Two(SETS[case][0]).eval()
    program = hp.capture(model, X)
    there = pickle.loads(pickle.dumps(program))
    assert there.memory_sites == program.memory_sites
    assert there.memory().keys() == program.memory().keys()
    runs = [
        hp.Campaign(one, X, sites=hp.Memory(), criterion=hp.Deviation((0.1,))).run(count=20).runs
        for one in (program, there)
    ]
    assert runs[0].equals(runs[1])
    words = sum(site.numel for site in program.memory_sites)
    counts = [hp.guard(model, [hp.TMR()]).check().checked]
    for form in FORMS:
        module = hp.harden(hp.capture(model, X, form=form), [hp.TMR()])
        assert equal_bits(module(X), model(X))
        counts.append(module.check().checked)
    assert len(set(counts)) == 1
    assert counts[0] == words or case == "slices that overlap in part"  # of which each slice is guarded


def test_names_that_leave_gaps_where_they_overlap_are_refused() -> None:
    def place(net: Any) -> None:
        flat = torch.randn(200)
        net.w, net.v = nn.Parameter(flat[:48:2].view(4, 6)), nn.Parameter(flat[24:96:3].view(6, 4))

    with pytest.raises(CaptureError, match=r"parts that overlap and leave gaps: w, v; give each its own with \.clone"):
        hp.capture(Two(place).eval(), X)


class _Graph(nn.Module):
    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.mm(self.adjacency, self.fc(x).relu())


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_sparse_tensor_is_named_with_its_share(layout: torch.layout) -> None:
    model = _Graph(torch.eye(6).to_sparse(layout=layout)).eval()
    with pytest.warns(HoplonWarning, match=r"no fault strikes adjacency \(torch.sparse_c\w+ of torch.float32\), \d"):
        program = hp.capture(model, X, batch_axis=None)
    assert [site.name for site in program.memory_sites] == ["fc.weight", "fc.bias"]
    (row,) = hp.inspect(program).to_dict()["unstruck"]
    assert (row["name"], row["reason"]) == ("adjacency", f"{layout} of torch.float32")
    assert row["share"] == row["bytes"] / (row["bytes"] + 4 * 21)
    campaign = hp.Campaign(program, X[None], sites=hp.Memory(), criterion=hp.Deviation((0.1,)))
    assert campaign.run(count=5).summary()[0].counts["crash"] == 0
    with pytest.raises(HoplonError, match="expected dense tensors in memory to guard, got adjacency"):
        hp.guard(model, [hp.TMR()])


class _Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, dtype=torch.complex64))
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.fft.irfft(torch.fft.rfft(x) * self.w, n=6))


def test_complex_words_are_named_as_not_struck(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(HoplonWarning, match=r"no fault strikes w \(torch.complex64, of no number format"):
        program = hp.capture(_Complex().eval(), X)
    assert [site.name for site in hp.Memory().select(program)] == ["fc.weight", "fc.bias"]
    assert hp.inspect(program).unstruck["w"].nbytes == 32
    factory = tmp_path / "model.py"
    factory.write_text(
        "import torch\nfrom tests.program.test_memory import _Complex\n"
        "def make():\n    return _Complex().eval(), torch.zeros(2, 6)\n"
    )
    with pytest.warns(HoplonWarning, match="no fault strikes w"):
        assert main(["inspect", f"{factory}:make"]) == 0
    assert "w: 32 bytes, 36.4% (torch.complex64" in capsys.readouterr().out


@pytest.fixture(scope="module")
def packed() -> nn.Module:
    """A network quantised by torch.ao, its weights packed."""
    quantization = torch.ao.quantization
    layers = (quantization.QuantStub(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), quantization.DeQuantStub())
    model = nn.Sequential(*layers).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still what people have
        model.qconfig = quantization.get_default_qconfig("x86")  # type: ignore[assignment]
        prepared = quantization.prepare(model)
        prepared(X)
        converted: nn.Module = quantization.convert(prepared)
    return converted.eval()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_packed_weights_are_refused_by_name_and_quantised_values_are_struck(packed: nn.Module) -> None:
    with pytest.warns(HoplonWarning, match=r"no fault strikes 1\._packed_params\._packed_params \(packed\), 3\."):
        program = hp.capture(packed, X, form="eager")
    with pytest.raises(SiteError, match=r"got a model that holds 1\._packed_params\._packed_params, 3\..* alone"):
        hp.Memory().select(program)
    with pytest.raises(
        HoplonError, match=r"to guard, got 1\._packed_params\._packed_params \(packed\), .* of the bytes"
    ):
        hp.guard(packed, [hp.TMR()])
    sites = hp.Values().select(program)
    assert [site.dtype for site in sites] == [torch.quint8] * 4 + [torch.float32]
    results = hp.Campaign(program, X, sites=hp.Values(dtype=torch.quint8), criterion=hp.Deviation((1e-3,))).run(
        count=40
    )
    assert results.summary()[0].counts["crash"] == 0
    golden, wrong = packed(X), 0
    outcomes = dict(zip(results.runs["fault"], results.runs[results.criteria[0]], strict=True))
    for row in results.faults.frame.iter_rows(named=True):
        value = X[row["input"]][None]
        for number, layer in enumerate(packed):
            value = layer(value)
            if row["site"].startswith(f"{number}:"):
                integer_view(value).view(-1)[row["element"]] ^= row["flip"]
        failed = bool((value - golden[row["input"]]).abs().max() > 1e-3)
        wrong += failed != (outcomes[row["fault"]] == "sdc")
    assert wrong == 0


class _Integers(nn.Module):
    """An int8 weight that is dequantised, a position that is looked up, and a mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("q", torch.randint(-100, 100, (4, 6), dtype=torch.int8))
        self.register_buffer("plain", torch.randint(-100, 100, (3, 4), dtype=torch.int8))
        self.register_buffer("scale", torch.full((4,), 0.01))
        self.register_buffer("zero", torch.zeros(4, dtype=torch.int64))
        self.register_buffer("position", torch.arange(3))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.table = nn.Embedding(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        dequantise = torch.ops.quantized_decomposed.dequantize_per_channel
        weight = dequantise(self.q, self.scale, self.zero, 0, -128, 127, torch.int8)
        y = F.linear(F.linear(x, weight).relu(), self.plain.float() * 0.01) + self.table(self.position)[:, 0]
        return torch.where(self.mask, y, -y)


@pytest.mark.parametrize("form", FORMS)
def test_default_selections_take_numbers_of_any_dtype_and_no_indices(form: Any) -> None:
    model = _Integers().eval()
    program = hp.capture(model, X, form=form)
    names = {site.name for site in hp.Memory().select(program)}
    assert names == {"q", "plain", "scale", "zero", "table.weight"}
    assert {"position", "mask"} <= {site.name for site in program.memory_sites}
    assert _wrong(model, program, X, count=25, sites=hp.Memory(("q", "plain"))) == 0


class _Rounded(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        scale = weight.abs().max() / 127
        return (weight / scale).round().clamp(-128, 127) * scale


def _computed(how: str) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 3))
    for layer in (model[0], model[3]):
        if how == "weight norm":
            parametrizations.weight_norm(layer)
        elif how == "pruned":
            prune.l1_unstructured(layer, "weight", 0.5)
        elif how == "rounded":
            register_parametrization(layer, "weight", _Rounded())
        elif how == "spectral norm":
            parametrizations.spectral_norm(layer)
        elif how == "rounded bias":
            register_parametrization(layer, "bias", _Rounded())
    return model.eval()


MAPS = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))
SOURCES = {
    "weight norm": {"0.bias", "0.parametrizations.weight.original0", "0.parametrizations.weight.original1"},
    "pruned": {"0.bias", "0.weight_orig", "0.weight_mask"},
    "rounded": {"0.bias", "0.parametrizations.weight.original"},
    "spectral norm": {"0.bias", "0.parametrizations.weight.original"}
    | {f"0.parametrizations.weight.0.{name}" for name in ("_u", "_v")},
    "rounded bias": {"0.weight", "0.parametrizations.bias.original"},
}


@pytest.mark.parametrize("how", SOURCES)
def test_faults_in_what_weights_are_computed_from_end_as_in_the_model(how: str) -> None:
    model = _computed(how)
    program = hp.capture(model, MAPS)
    sites = hp.Memory(kind="conv")
    assert {site.name for site in sites.select(program)} == SOURCES[how]
    assert {site.name for site in sites.select(hp.capture(model, MAPS, form="eager"))} == SOURCES[how]
    assert program.unread == ()
    assert _wrong(model, program, MAPS, count=30, sites=sites) == 0


def test_kinds_end_where_values_meet_an_input() -> None:
    program = hp.capture(_computed("weight norm"), MAPS)
    assert program.memory_site("0.bias").kinds == {"conv"}
    assert program.memory_site("0.parametrizations.weight.original0").kinds == {"_weight_norm", "conv"}
    assert program.memory_site("3.parametrizations.weight.original0").kinds == {"_weight_norm", "linear"}


def test_computed_weights_are_scored_hardened_and_compared() -> None:
    model = _computed("weight norm")
    program = hp.capture(model, MAPS)
    data = hp.Inputs(MAPS, model(MAPS).argmax(1))
    scores = hp.importance.taylor(program, data, loss=F.cross_entropy)
    arms: dict[str, Any] = {"none": [], "aspis": [hp.Aspis(scores, fraction=1.0)], "parity": [hp.Parity()]}
    table = hp.Campaign(program, data, sites=hp.Memory(kind=("conv", "linear"), buffers=False)).draw(count=20, seed=0)
    comparison = hp.compare(program, data, arms=arms, faults=table, guard_faults=0)
    assert comparison is not None
    assert equal_bits(hp.harden(program, arms["aspis"])(MAPS), model(MAPS))


class _Stateful(nn.Module):
    """Changes its state in ``forward`` as ``how`` says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.calls, self.log, self.interrupt = how, 0, list[Tensor](), False
        self.fc = nn.Linear(6, 3)
        self.register_buffer("mean", torch.zeros(6))
        self.table = torch.zeros(6)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.how == "buffer":
            self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        elif self.how == "rebound":
            self.mean = self.mean + 1
        elif self.how == "attribute":
            self.table.add_(1)
        elif self.how == "uncounted":
            self.mean.data.add_(1)
        elif self.how == "containers":
            self.log.append(x)
            self.last = x
        if self.interrupt:
            raise KeyboardInterrupt
        return self.fc(x - self.mean - self.table).relu()

    def state(self) -> list[Any]:
        """What it holds."""
        return [self.calls, [id(item) for item in self.log], id(self.last), id(self.mean), id(self.table)]


@pytest.mark.parametrize("how", ["buffer", "rebound", "attribute", "uncounted", "containers"])
def test_what_forward_changes_is_put_back(how: str) -> None:
    model = _Stateful(how).eval()
    before, words = model.state(), copy.deepcopy([model.mean, model.table, *model.parameters()])

    def kept() -> bool:
        now = [model.mean, model.table, *model.parameters()]
        return model.state() == before and all(map(equal_bits, now, words))

    if how in ("buffer", "rebound", "attribute"):
        with pytest.raises(CaptureError, match='got writes to (mean|table); make them inputs, or .*form="eager"'):
            hp.capture(model, X)
        assert kept()
    program = hp.capture(model, X, form="eager")
    assert kept()
    runs = []
    for sites in (hp.Memory(), hp.Memory(), hp.Values()):
        runs.append(hp.Campaign(program, X, sites=sites, criterion=hp.Deviation((0.1,))).run(count=15, seed=0).runs)
        assert kept()
    assert runs[0].equals(runs[1])
    hp.profile_ranges(program, X)
    assert kept()
    model.interrupt = True
    before = model.state()
    for call in (
        lambda: hp.Campaign(program, X, sites=hp.Memory(), criterion=hp.Deviation((0.1,))).run(count=15),
        lambda: hp.capture(model, X),
        lambda: hp.capture(model, X, form="eager"),
    ):
        with pytest.raises(KeyboardInterrupt):
            call()
        assert kept()
