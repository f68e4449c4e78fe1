from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr

from hoplon.errors import HoplonError
from hoplon.importance import Scores, by_layer, heat_map, magnitude, magnitudes, overlap
from hoplon.program.capturing import capture
from tests.support.networks import small_data, small_net


def drawn(seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return Scores(
        {name: torch.rand(shape, generator=generator) for name, shape in {"b": (30, 10), "a": (100,)}.items()}
    )


def test_both_ends_are_counted_by_layer() -> None:
    scores = drawn(0)
    everything = sorted((float(v), name) for name, s in scores.values.items() for v in s.reshape(-1))
    frame = by_layer(scores, 0.1)
    assert frame["layer"].to_list() == ["b", "a"]
    for row in frame.iter_rows(named=True):
        top = sum(name == row["layer"] for _, name in everything[-40:])
        bottom = sum(name == row["layer"] for _, name in everything[:40])
        assert (row["top"], row["bottom"]) == (top, bottom)
        assert row["top_of_layer"] == top / row["weights"]
        assert row["bottom_share"] == bottom / 40
    assert frame["weights"].to_list() == [300, 100]
    assert by_layer(Scores({"a": torch.ones(3), "none": torch.zeros(0)}), 1.0)["top_of_layer"].to_list() == [1.0, None]


def test_magnitudes_of_the_important_are_those_of_table_iv() -> None:
    program = capture(small_net(), small_data()[0].tensors[0])
    scores = magnitude(program)
    frame = magnitudes(program, scores, fraction=0.1, count=5)
    sizes = sorted(float(v) for p in small_net().parameters() for v in p.detach().reshape(-1).abs())
    rows = {row["weights"]: row for row in frame.iter_rows(named=True)}
    assert rows["all"]["n"] == len(sizes) == 300
    assert (rows["all"]["min"], rows["all"]["max"]) == (sizes[0], sizes[-1])
    assert (rows["all"]["low_cutoff"], rows["all"]["high_cutoff"]) == (sizes[4], sizes[-5])
    assert rows["all"]["median"] == pytest.approx((sizes[149] + sizes[150]) / 2)
    assert (rows["top"]["min"], rows["bottom"]["max"]) == (sizes[-30], sizes[29])
    assert magnitudes(program, scores, fraction=0.01)["high_cutoff"].to_list()[1:] == [None, None]
    with pytest.raises(HoplonError, match=r"expected a storage 'a' of shape \(100,\), as scored, got none"):
        magnitudes(program, Scores({"a": torch.ones(100)}))
    with pytest.raises(HoplonError, match="expected count of magnitudes to be an integer of at least 1, got 0"):
        magnitudes(program, scores, count=0)


def test_overlap_compares_the_same_weights_whatever_the_order_of_the_layers() -> None:
    first, second = drawn(1), drawn(2)
    turned = Scores(dict(reversed(first.values.items())))
    frame = overlap({"one": first, "two": second, "turned": turned}, 0.2)
    rows = {(row["first"], row["second"]): row for row in frame.iter_rows(named=True)}
    assert list(rows) == [("one", "two"), ("one", "turned"), ("two", "turned")]
    same = rows["one", "turned"]
    assert (same["common"], same["share"], same["jaccard"], same["correlation"]) == (80, 1.0, 1.0, pytest.approx(1))
    chosen = [{(n, int(i)) for n, part in s.top(0.2).items() for i in part} for s in (first, second)]
    common = len(chosen[0] & chosen[1])
    row = rows["one", "two"]
    assert (row["important"], row["common"], row["chance"]) == (80, common, 0.2)
    assert row["jaccard"] == common / len(chosen[0] | chosen[1])
    flat = [torch.cat([s[name].reshape(-1) for name in ("a", "b")]).numpy() for s in (first, second)]
    assert row["correlation"] == pytest.approx(float(spearmanr(*flat).statistic))
    constant = Scores({name: torch.ones_like(s) for name, s in first.values.items()})
    assert overlap({"one": first, "constant": constant})["correlation"].to_list() == [None]
    with pytest.raises(HoplonError, match="expected at least two scores to compare, got 1"):
        overlap({"one": first})
    with pytest.raises(HoplonError, match="expected scores of the same storages, got others in 'other' than in 'one'"):
        overlap({"one": first, "other": Scores({"a": torch.ones(100)})})


def test_a_heat_map_covers_every_weight_once() -> None:
    scores = Scores({"a": torch.arange(10.0), "b": torch.tensor([20.0, -1.0]), "none": torch.zeros(0)})
    frame = heat_map(scores, cells=4)
    rows = [tuple(row) for row in frame.select("layer", "cell", "start", "weights", "mean", "max").iter_rows()]
    assert rows == [
        ("a", 0, 0, 3, 1.0, 2.0),
        ("a", 1, 3, 3, 4.0, 5.0),
        ("a", 2, 6, 2, 6.5, 7.0),
        ("a", 3, 8, 2, 8.5, 9.0),
        ("b", 0, 0, 1, 20.0, 20.0),
        ("b", 1, 1, 1, -1.0, -1.0),
    ]
    assert frame["rank"].to_list() == [4 / 12, 7 / 12, 9 / 12, 11 / 12, 1.0, 1 / 12]
    with pytest.raises(HoplonError, match="expected cells of heat_map to be an integer of at least 1, got 0"):
        heat_map(scores, cells=0)
