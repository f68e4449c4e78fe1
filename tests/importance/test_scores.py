from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hoplon.errors import DataError, HoplonError, SiteError
from hoplon.importance import Scores


def ranked(scores: Scores) -> list[tuple[str, int]]:
    """Slow reference: every weight, best first; ties by site and index."""
    weights = [
        (-value, order, name, index)
        for order, (name, score) in enumerate(scores.values.items())
        for index, value in enumerate(score.reshape(-1).tolist())
    ]
    return [(name, index) for _, _, name, index in sorted(weights)]


def with_ties() -> Scores:
    generator = torch.Generator().manual_seed(0)
    return Scores(
        {
            "b": torch.randint(0, 4, (3, 7), generator=generator).float(),
            "a": torch.randint(0, 4, (11,), generator=generator).double(),
            "c": torch.randint(0, 4, (2, 2, 2), generator=generator).to(torch.bfloat16),
        }
    )


@pytest.mark.parametrize("count", range(1, 41))
def test_the_top_is_exact_in_number_and_in_ties(count: int) -> None:
    scores = with_ties()
    assert scores.total == 40
    top = scores.top(count / 40)
    assert list(top) == ["b", "a", "c"]
    found = {(name, index) for name, indices in top.items() for index in indices.tolist()}
    assert found == set(ranked(scores)[:count])
    assert all(
        indices.dtype == torch.int64 and indices.tolist() == sorted(indices.tolist()) for indices in top.values()
    )


def test_counts_are_rounded_and_never_zero() -> None:
    scores = Scores({"w": torch.zeros(250)})
    assert [scores.count(fraction) for fraction in (0.0001, 0.01, 0.011, 0.5, 1.0)] == [1, 2, 3, 125, 250]
    assert scores.top(0.01)["w"].tolist() == [0, 1]


@pytest.mark.parametrize("fraction", [0, -0.1, 1.0001, float("nan")])
def test_fractions_outside_are_refused(fraction: float) -> None:
    with pytest.raises(
        HoplonError, match=r"expected fraction of Scores.top to be a number above 0 and of at most 1, got"
    ):
        with_ties().top(fraction)


def test_a_file_gives_the_same_scores_back(tmp_path: Path) -> None:
    scores = Scores(
        {"b": torch.tensor([[1e-45, 0.1], [2.0, 0.0]]).t(), "a": torch.zeros(0)},
        score="taylor",
        data="train",
        n_samples=7,
        batch=2,
        loss="cross_entropy",
        fingerprint="f" * 64,
    )
    scores.save(tmp_path / "scores.safetensors")
    loaded = Scores.load(tmp_path / "scores.safetensors")
    assert list(loaded.values) == ["b", "a"]
    assert all(loaded[name].equal(scores[name]) for name in scores.values)
    provenance = ("score", "data", "n_samples", "batch", "loss", "fingerprint")
    assert [getattr(loaded, name) for name in provenance] == [getattr(scores, name) for name in provenance]
    assert [path.name for path in tmp_path.iterdir()] == ["scores.safetensors"]


def test_refusals_name_the_thing(tmp_path: Path) -> None:
    with pytest.raises(HoplonError, match="expected finite floating-point scores, got others in w"):
        Scores({"w": torch.tensor([1.0, float("nan")])})
    with pytest.raises(HoplonError, match="expected finite floating-point scores"):
        Scores({"w": torch.tensor([1])})
    with pytest.raises(HoplonError, match="expected scores of at least one weight, got none"):
        Scores({})
    with pytest.raises(SiteError, match="no scored site matches 'conv9'; near names: conv1"):
        Scores({"conv1": torch.ones(1)})["conv9"]
    (tmp_path / "bad").write_bytes(b"not safetensors at all")
    for path in (tmp_path / "missing", tmp_path / "bad"):
        with pytest.raises(DataError, match="expected a file of scores in"):
            Scores.load(path)
