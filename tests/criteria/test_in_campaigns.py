"""Criteria at work: several outputs, several criteria, measures, and functions that fail."""

from __future__ import annotations

import math

import polars as pl
import pytest
import torch
from torch import Tensor, nn

from hoplon import BitFlip, Campaign, HoplonError, Inputs, Memory, TopK, Values, capture
from hoplon.comparison.comparison import compare
from hoplon.criteria import (
    Criterion,
    Custom,
    Detection,
    Deviation,
    EmbeddingDistance,
    Judged,
    PerplexityChange,
    TokenMatch,
)
from hoplon.program.program import Program
from tests.reference.forward import faulty_outputs
from tests.support.networks import NETWORKS

SITES = [Values(), Memory()]


class Heads(nn.Module):
    """Class indices first, then logits and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        embedding = torch.tanh(self.body(x))
        logits = self.head(embedding)
        return logits.argmax(1), {"logits": logits, "embedding": embedding}


class Detector(nn.Module):
    """Three candidates: boxes, scores, classes."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes, self.scores = nn.Linear(6, 12), nn.Linear(6, 9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        corner, size = self.boxes(x).view(-1, 3, 4).sigmoid().split(2, dim=2)
        scores, classes = self.scores(x).view(-1, 3, 3).softmax(2).max(2)
        return torch.cat([corner, corner + size], 2), scores, classes


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 6), nn.Linear(6, 7)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.embed(ids))


def heads() -> tuple[Program, Inputs]:
    torch.manual_seed(0)
    x = torch.randn(9, 6)
    model = Heads().eval()
    right = model(x)[0]
    return capture(model, x[:3]), Inputs(x, torch.where(torch.arange(9) % 3 == 2, (right + 1) % 4, right))


def run(program: Program, data: Inputs, sites: Values | Memory, *criteria: Criterion) -> pl.DataFrame:
    campaign = Campaign(program, data, sites=sites, criterion=criteria, batch=4, fault_model=BitFlip(bits=(30, 29, 25)))
    return campaign.run(count=60, seed=0).runs


@pytest.mark.parametrize("sites", SITES)
def test_several_criteria_give_the_columns_that_each_gives_alone(sites: Values | Memory) -> None:
    program, data = heads()
    data = Inputs(data.x)
    criteria = [TopK(1), TopK(2), EmbeddingDistance(0.1, outputs=2), Deviation((0.5, 2.0), outputs=1)]
    together = run(program, data, sites, *criteria)
    for criterion in criteria:
        alone = run(program, data, sites, criterion)
        for name in (*criterion.names, *criterion.measure_names):
            assert together[name].equals(alone[name], null_equal=True), name
            assert together[name].n_unique() > 1, name
    assert together["gap_change"].dtype == pl.Float32


def test_an_input_has_to_count_under_all_criteria() -> None:
    program, data = heads()
    runs = run(program, data, Memory(), EmbeddingDistance(0.1, outputs=2), TopK(1))
    assert set(runs["input"].to_list()) == {0, 1, 3, 4, 6, 7}


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_measures_equal_the_naive_injector(name: str) -> None:
    net, batch = NETWORKS[name], 4
    model, x = net.model(), net.batch(batch)
    campaign = Campaign(capture(model, net.batch(3)), Inputs(x), sites=Values(), batch=batch)
    results = campaign.run(count=60, seed=5)
    joined = results.faults.frame.join(results.runs, on=["fault", "input"]).with_columns(results.faults.bits)
    for fault in joined.iter_rows(named=True):
        row = fault["input"]
        hit = [(fault["element"], [fault["bit"]])]
        faulty = faulty_outputs(model, x, fault["site"], row, hit)[row].double()
        with torch.inference_mode():
            golden = model(x.clone())[row].double()
        found = fault["confidence_change"], fault["gap_change"]
        if not faulty.isfinite().all():
            assert all(math.isnan(value) for value in found)
            continue
        first = int(golden.argmax())
        others = torch.arange(len(golden)) != first
        confidence = faulty.softmax(0)[first] - golden.softmax(0)[first]
        gap = (faulty[first] - faulty[others].max()) - (golden[first] - golden[others].max())
        assert found == (
            pytest.approx(float(confidence), rel=1e-5, abs=1e-6),
            pytest.approx(float(gap), rel=1e-5, abs=1e-5),
        )


@pytest.mark.parametrize("sites", SITES)
def test_a_detector_and_a_decoder(sites: Values | Memory) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 6)
    detector = capture(Detector().eval(), x[:3])
    counts = run(detector, Inputs(x), sites, Detection(score=0.4))["detection-iou0.5-score0.4"].value_counts()
    assert {"benign", "sdc"} <= set(counts.to_series(0))
    ids = torch.randint(0, 7, (6, 5), generator=torch.Generator().manual_seed(1))
    decoder = capture(Decoder().eval(), ids[:3])
    runs = run(decoder, Inputs(ids, ids.roll(-1, 1)), sites, TokenMatch(), TokenMatch(0.1), PerplexityChange(1.1))
    harmed = [runs[name].cast(pl.String) == "sdc" for name in ("token-match", "token-match>10%", "perplexity>1.1x")]
    assert all(column.any() and not column.all() for column in harmed)
    assert not (harmed[1] & ~harmed[0]).any()


@pytest.mark.parametrize("sites", SITES)
def test_a_criterion_that_fails_in_a_run_is_no_outcome(sites: Values | Memory) -> None:
    calls = []

    def fails_later(golden: Judged, faulty: Judged, labels: Tensor | None) -> Tensor | None:
        calls.append(len(faulty))
        return None if len(calls) > 1 else torch.zeros(len(faulty), dtype=torch.bool)

    program, data = heads()
    with pytest.raises(HoplonError, match="expected bool of shape .* from the function of 'odd', got NoneType"):
        run(program, data, sites, Custom(fails_later, "odd"))


def test_arms_are_compared_under_the_first_column_and_keep_the_others() -> None:
    program, data = heads()
    criteria = (TopK(1), EmbeddingDistance(0.1, outputs=2))
    campaign = Campaign(program, data, sites=Values(), criterion=criteria, batch=4)
    found = compare(
        program, data, arms={"none": []}, faults=campaign.draw(count=40), criterion=criteria, batch=4, latency=False
    )
    arm = found["none", "values"]
    assert arm.rate.criterion == "top-1"
    assert arm.results.criteria == ("top-1", "cosine>0.1@2")
    assert arm.cost.accuracy == pytest.approx(6 / 9)
    assert arm.wrong_fault_free == 0
    assert arm.results.runs.equals(campaign.run(count=40).runs)
