"""What guards share: slices, and the line between an update and a soft error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hoplon as hp
from hoplon.protections.memory_guard import Counters, change, of_turn


@pytest.mark.parametrize(("count", "turns"), [(0, 3), (1, 4), (7, 3), (16, 16)])
def test_turns_part_everything_evenly(count: int, turns: int) -> None:
    parts = [of_turn(count, turn, turns) for turn in range(turns)]
    assert [piece for part in parts for piece in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_turn_out_of_range_is_refused() -> None:
    with pytest.raises(hp.HoplonError, match=r"expected a turn in \[0, 2\), got 2"):
        of_turn(4, 2, 2)


def words(**sizes: int) -> dict[str, Tensor]:
    return {name.replace("_", ".", 1): torch.zeros(size) for name, size in sizes.items()}


def refused(memory: dict[str, Tensor], writes: Callable[[], object], **differing: int) -> str | None:
    """The name of the refused storage, if this was written and so many words of each storage are found changed."""
    counters = Counters(memory)
    writes()
    names = {name.replace("_", ".", 1): count for name, count in differing.items()}
    try:
        counters.require_no_update({name: change(count, memory[name].numel()) for name, count in names.items()})
    except hp.protections.StaleGuardError as error:
        return str(error).split(" words of ")[1].split(";")[0]
    return None


def test_one_word_is_an_update_where_the_counter_moved_and_nowhere_else() -> None:
    memory = words(fc_weight=4000, fc_bias=10)
    assert refused(memory, lambda: memory["fc.bias"].add_(1), fc_weight=1, fc_bias=1) == "fc.bias"
    assert refused(memory, lambda: memory["fc.bias"].add_(1), fc_weight=1) is None
    assert refused(memory, lambda: memory["fc.bias"].data.add_(1), fc_weight=1, fc_bias=1) is None


@pytest.mark.parametrize(
    ("differing", "name"),
    [
        ({"a_w": 513}, "a.w"),  # most of 1,024 words
        ({"a_w": 512, "b_w": 10}, None),
        ({"b_w": 10}, None),  # a burst over all of a small storage
        ({"b_w": 10, "c_w": 5}, None),  # and one over two, of 15 words
        ({"b_w": 10, "c_w": 5, "d_w": 1}, "b.w"),
    ],
)
def test_where_no_counter_moved_changes_throughout_are_an_update(differing: dict[str, int], name: str | None) -> None:
    assert refused(words(a_w=1024, b_w=10, c_w=5, d_w=1), lambda: None, **differing) == name


def test_what_is_written_under_one_name_is_written_under_all_that_share_its_memory() -> None:
    flat = torch.zeros(20)
    memory = {"flat": flat, "tied": flat.data.view(4, 5).t(), "beside": flat[:10].data}
    assert refused(memory, lambda: flat[12:].add_(1), tied=1) == "tied"
    assert refused({"flat": flat, "other": torch.zeros(3)}, lambda: flat.add_(1), other=1) is None


def test_batch_norm_in_training_is_an_update_though_torch_does_not_count_it() -> None:
    layers = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3).eval())
    memory = dict(layers.named_buffers())
    counters = Counters(memory)
    layers(torch.randn(4, 3))
    counters.require_no_update({"1.running_mean": change(1, 3)})
    with pytest.raises(hp.protections.StaleGuardError, match="1 of 3 words of 0.running_mean"):
        counters.require_no_update({"1.running_mean": change(1, 3), "0.running_mean": change(1, 3)})


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
@pytest.mark.parametrize("how", ["foreach", "fused"])
def test_steps_of_optimizers_move_the_counter(optimizer: Any, how: str) -> None:
    weight, frozen = (torch.nn.Parameter(torch.randn(4)) for _ in range(2))
    weight.grad = torch.ones(4)
    Counters({})
    before = weight._version, frozen._version
    optimizer([weight, frozen], lr=0.1, **{how: True}).step()
    assert weight._version > before[0]
    assert frozen._version == before[1]
