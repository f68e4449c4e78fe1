"""What guards share: slices, and the line between an update and a soft error."""

from __future__ import annotations

import pytest
import torch

import hoplon as hp
from hoplon.protections.memory_guard import of_turn, require_no_update, version_of


@pytest.mark.parametrize(("count", "turns"), [(0, 3), (1, 4), (7, 3), (16, 16)])
def test_turns_part_everything_evenly(count: int, turns: int) -> None:
    parts = [of_turn(count, turn, turns) for turn in range(turns)]
    assert [piece for part in parts for piece in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_turn_out_of_range_is_refused() -> None:
    with pytest.raises(hp.HoplonError, match=r"expected a turn in \[0, 2\), got 2"):
        of_turn(4, 2, 2)


@pytest.mark.parametrize(
    ("differing", "total", "written", "refused"),
    [
        (9, 16, True, True),
        (8, 16, True, False),
        (15, 15, True, False),
        (600, 1024, False, True),
        (600, 1000, False, False),
    ],
)
def test_a_change_of_most_words_is_an_update(differing: int, total: int, written: bool, refused: bool) -> None:
    if refused:
        with pytest.raises(
            hp.protections.StaleGuardError, match=f"{differing} of {total:,} words of fc.weight; call refresh"
        ):
            require_no_update("fc.weight", differing=differing, total=total, written=written)
    else:
        require_no_update("fc.weight", differing=differing, total=total, written=written)


def test_writing_moves_the_version() -> None:
    words = torch.zeros(3)
    before = version_of(words)
    words.detach().add_(1)
    assert version_of(words) > before
