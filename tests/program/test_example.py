"""Calls with several inputs: where each holds its samples, what all share, lengths that are free."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hoplon as hp
from hoplon.errors import CaptureError, DataError
from hoplon.program.eager import EagerProgram
from hoplon.protections.runtime import harden
from hoplon.zoo.entries import ZooModel
from tests.support.oracles import with_flipped_bit

IDS = torch.arange(24).view(4, 6) % 11
MASK = torch.ones(6, 4).index_put((torch.tensor([5, 4, 5]), torch.tensor([1, 1, 2])), torch.tensor(0.0))
BIAS = torch.linspace(-1, 1, 8).expand(6, 8)


class Encoder(nn.Module):
    """Attention with an additive mask, its samples on the second axis, and a bias that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.query, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
        hidden = self.embedding(ids) + bias
        scores = self.query(hidden) @ hidden.transpose(1, 2) + mask.t()[:, None].log()  # -inf where masked
        return self.head(torch.relu(scores.softmax(-1) @ hidden).reshape(-1, 8)).view(ids.shape[0], -1, 3).mean(1)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder().eval()


def example(*, bias: Tensor = BIAS, **axes: Any) -> hp.Example:
    return hp.Example(kwargs={"ids": IDS, "mask": MASK, "bias": bias}, batch_axis={"mask": 1, "bias": None}, **axes)


@pytest.fixture(scope="module")
def program(encoder: Encoder) -> hp.Program:
    return hp.capture(encoder, example())


def test_each_input_has_its_own_batch_axis_and_what_is_shared_has_none(program: hp.Program) -> None:
    assert [form.axis for form in program.signature.tensors] == [0, 1]
    assert program.signature.axes == (0, 1, None)
    assert [site.shape for site in program.input_sites] == [(6,), (6,)]
    data = hp.Inputs(example().x)
    assert data.names == ("ids", "mask")
    assert torch.equal(data.tensors[1], MASK.t())


@pytest.mark.parametrize("form", ["export", "eager"])
def test_faulty_runs_equal_whole_forwards_with_the_fault_in_a_weight(encoder: Encoder, form: Any) -> None:
    program, data = hp.capture(encoder, example(), form=form), hp.Inputs(example().x)
    settings = {"sites": hp.Memory(), "fault_model": hp.BitFlip(), "criterion": hp.Deviation((0.05,))}
    results = hp.Campaign(program, data, **settings).run(count=30, seed=0)
    outcomes = {(row["fault"], row["input"]): row["deviation>0.05"] for row in results.runs.to_dicts()}
    assert set(outcomes.values()) == {"identical", "benign", "sdc"}
    for word in results.faults.frame.to_dicts():
        broken = with_flipped_bit(encoder, word["site"], word["element"], word["flip"].bit_length() - 1)
        rows = [slice(0, 4)] if form == "export" else [slice(row, row + 1) for row in range(4)]
        with torch.inference_mode():
            pairs = [(encoder(*call), broken(*call)) for call in ((IDS[r], MASK[:, r], BIAS) for r in rows)]
        golden, faulty = (torch.cat(side) for side in zip(*pairs, strict=True))
        for row in range(4):
            moved = (golden[row] - faulty[row]).abs().max()
            same = torch.equal(golden[row], faulty[row])
            wanted = "identical" if same else "nonfinite" if moved.isnan() else "sdc" if moved > 0.05 else "benign"
            assert outcomes[word["fault"], row] == wanted


def test_a_hardened_model_takes_the_whole_call(program: hp.Program, encoder: Encoder) -> None:
    strong = harden(program, [hp.Parity()])
    with torch.inference_mode():
        assert torch.equal(strong(ids=IDS, mask=MASK, bias=BIAS), encoder(IDS, MASK, BIAS))


def test_another_value_of_what_is_shared_is_refused(program: hp.Program) -> None:
    with pytest.raises(DataError, match="input 2 of Encoder, which samples share, as in the example"):
        program(ids=IDS, mask=MASK, bias=BIAS + 1)


def test_positional_inputs_are_found_by_name_and_in_their_order(encoder: Encoder) -> None:
    mixed = hp.Example(IDS, {"mask": MASK, "bias": BIAS}, batch_axis={"mask": 1, "bias": None})
    program = hp.capture(encoder, mixed)
    wanted = encoder(IDS, MASK, BIAS)
    by_order = program.leaves(hp.Inputs(mixed.x))
    by_name = program.leaves(hp.Inputs({"mask": MASK.t(), "ids": IDS}))
    with torch.inference_mode():
        assert torch.equal(program.run(by_order)[0], wanted)
        assert torch.equal(program.run(by_name)[0], wanted)


@pytest.fixture(scope="module")
def of_any_length(encoder: Encoder) -> hp.Program:
    return hp.capture(encoder, example(bias=BIAS[:1], length_axis={"ids": 1, "mask": 0}))


def test_a_free_length_is_free(of_any_length: hp.Program, encoder: Encoder) -> None:
    short = {"ids": IDS[:, :4], "mask": MASK[:4], "bias": BIAS[:1]}
    strong = harden(of_any_length, [hp.Parity()])
    with torch.inference_mode():
        assert torch.equal(of_any_length(**short), encoder(**short))
        assert torch.equal(strong(**short), encoder(**short))
    assert str(of_any_length.signature.tensors[0]) == "(batch, length)"


def test_sites_are_those_of_the_length_of_the_example(of_any_length: hp.Program, program: hp.Program) -> None:
    assert [(site.name, site.shape) for site in of_any_length.value_sites] == [
        (site.name, site.shape) for site in program.value_sites
    ]
    with pytest.raises(DataError, match="samples of length 6, as in the example of Encoder, got 4; pad them"):
        of_any_length.leaves(hp.Inputs({"ids": IDS[:, :4], "mask": MASK[:4].t()}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (hp.Example(IDS, batch_axis={"nothing": 1}), "batch_axis for inputs of the example, got 'nothing'; they are 0"),
        (hp.Example(IDS, batch_axis={0: None}), "expected a batch axis in at least one input, got None for all"),
        (hp.Example((IDS, MASK, BIAS)), r"share a batch axis 0, .*by input where they differ and None for what all"),
    ],
)
def test_axes_that_do_not_fit_are_refused(encoder: Encoder, given: hp.Example, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        hp.capture(encoder, given)


class Experts(nn.Module):
    """The tokens of all samples in the order of their expert: each keeps its own answer."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(4, 2), nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        order = self.router(x).argmax(1).argsort(stable=True)
        sorted_tokens = x[order] * 2
        return torch.empty_like(x).index_copy(0, order, sorted_tokens) @ self.experts[0]


def test_experts_that_take_the_samples_together_run_one_sample_at_a_time() -> None:
    model, x = Experts().eval(), torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.warns(
        UserWarning, match=r"samples of a batch meet inside of Experts \(.*\), so every pass will hold one"
    ):
        program = hp.capture(model, x)
    assert program.signature.fixed_batch == 1
    assert not isinstance(program, EagerProgram)
    with torch.inference_mode():
        assert torch.equal(program(x[:1]), model(x[:1]))
    run = hp.Campaign(program, x, sites=hp.Values(), fault_model=hp.BitFlip(), criterion=hp.Deviation((0.1,)))
    assert run.run(count=20, seed=0).summary()[0].n_runs == 20


class Boxes(nn.Module):
    """A detector: for each sample as many boxes as it finds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        found = [self.linear(row) for row in x]
        return [{"scores": row[row > 0], "boxes": row[row > 0, None].expand(-1, 4)} for row in found]


def test_a_list_with_a_part_for_each_sample_is_captured_one_sample_at_a_time() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Boxes().eval(), torch.randn(5, 4)
    with pytest.warns(UserWarning, match="its code fixes the batch size.*, so every pass will hold one sample"):
        program = hp.capture(model, x)
    assert len({len(found["scores"]) for found in model(x)}) > 1
    settings = {"fault_model": hp.BitFlip(), "criterion": hp.Deviation((0.1,))}
    results = hp.Campaign(program, x, sites=hp.Values(), **settings).run(count=40, seed=0)
    counts = results.summary()[0].counts
    assert sum(counts.values()) == 40
    assert counts["sdc"]
    assert counts["identical"] + counts["benign"]


def test_a_sample_that_is_judged_by_the_others_is_still_refused() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    with pytest.raises(CaptureError, match="expected samples of a batch that do not influence each other"):
        hp.capture(Centred().eval(), torch.randn(4, 4))


class OfOne(nn.Module):
    """A model whose code says how many samples there are, as converters from other formats write it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x.reshape(1, 8)) * 2


def test_a_model_of_one_sample_alone_is_captured_at_it() -> None:
    with pytest.warns(UserWarning, match="it takes batches of 1 only, as in the example"):
        program = hp.capture(OfOne().eval(), torch.ones(1, 2, 4))
    assert program.signature.fixed_batch == 1
    assert not isinstance(program, EagerProgram)


def test_samples_of_the_data_stand_for_an_example_of_any_size() -> None:
    named = ZooModel("conv", nn.Conv2d(3, 2, 3).eval(), torch.zeros(2, 3, 9, 9), any_size=True)
    data = hp.Inputs(torch.ones(5, 3, 7, 7))
    taken = hp.Inputs(hp.Example.of(named.for_data(data).example).x)
    assert taken.tensors[0].shape == (4, 3, 7, 7)
    same = hp.Inputs(torch.ones(5, 3, 9, 9))
    assert named.for_data(same) is named
    assert ZooModel("conv", named.module, named.example).for_data(data).example is named.example
