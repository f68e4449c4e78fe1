"""Parity against a plain saved copy: after a check every byte is what it was, or the fault was reported."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

import hoplon as hp
from hoplon.protections.guards.parity.parity import ParityGuard
from tests.support.guarded_memory import bytes_of, flip
from tests.support.oracles import assert_same, changed, snapshot

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64, torch.complex128,
]  # fmt: skip


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    size = int(np.prod(shape)) * dtype.itemsize
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    data = torch.randint(256, (size,), generator=generator, dtype=torch.uint8)
    return data.view(dtype).reshape(shape)


def network(seed: int = 0) -> dict[str, Tensor]:
    """Two tensors that are checked where they lie, one of them channels-last, and small ones of many dtypes."""
    generator = torch.Generator().manual_seed(seed)
    memory = {
        "fc": random_tensor((130, 190), torch.float32, generator),
        "conv": random_tensor((64, 40, 3, 3), torch.float32, generator).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0),
    }
    memory |= {str(dtype): random_tensor((5, 3), dtype, generator) for dtype in DTYPES}
    return memory | {"tied": memory["fc"], "transposed": memory["fc"].t()}


def flat_words(words: int, seed: int = 0) -> Tensor:
    return torch.randint(-(2**62), 2**62, (words,), generator=torch.Generator().manual_seed(seed))


def only_matrix(guard: ParityGuard) -> tuple[int, int, int]:
    """Rows, groups and columns of the one matrix that a guard has."""
    (group, *_) = guard.parts[0].groups
    assert len(guard.parts[0].matrices) == 1
    return group.matrix.rows, group.matrix.groups, group.matrix.columns


def one_matrix(words: int = 133 * 8 * 67, *, group: int = 133) -> tuple[Tensor, ParityGuard]:
    """A tensor that is one matrix without rest, and its guard."""
    memory = flat_words(words)
    guard = hp.Parity(group=group).arm({"w": memory})
    rows, groups, columns = only_matrix(guard)
    assert rows * groups * columns == words
    return memory, guard


def test_every_parameter_and_buffer_is_guarded_once_and_all_its_own_memory_is_counted() -> None:
    memory = network()
    guard = hp.Parity().arm(memory)
    once = {name: tensor for name, tensor in memory.items() if name not in ("tied", "transposed", "empty")}
    assert guard.protected_bytes == sum(tensor.nbytes for tensor in once.values())
    assert guard.check() == hp.protections.GuardReport(checked=sum(tensor.numel() for tensor in once.values()))
    assert guard.extra_bytes == sum(copy.nbytes for copy in guard.copies.values())
    kept = [value for part in guard.parts for value in vars(part).values() if isinstance(value, Tensor)]
    assert [id(tensor) for tensor in kept] == [id(part.parity) for part in guard.parts]
    assert guard.check(turn=1, turns=3).checked in range(guard.check().checked // 3, guard.check().checked // 3 + 2)


def test_extra_memory_is_at_most_one_percent_of_a_large_model() -> None:
    shapes = [(64, 3, 7, 7), (1000, 2048), (1000,)]  # ResNet-50: 25,557,032 parameters and its batch norms' buffers
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            inside = 64 if width == 64 and block == 0 else 4 * width if block else 2 * width
            shapes += [(width, inside, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            shapes += [(width,)] * 8 + [(4 * width,)] * 4
            if block == 0:
                shapes += [(4 * width, inside, 1, 1)] + [(4 * width,)] * 4
    shapes += [(64,)] * 4
    memory = {str(number): torch.zeros(shape) for number, shape in enumerate(shapes)}
    guard = hp.Parity().arm(memory)
    assert guard.protected_bytes == 4 * (25_557_032 + 2 * 26_560)
    assert guard.extra_bytes <= 0.01 * guard.protected_bytes


@pytest.mark.parametrize("name", ["fc", "conv", "scalar", *map(str, DTYPES)])
def test_single_flips_are_repaired_wherever_they_are(name: str) -> None:
    memory = network()
    guard = hp.Parity().arm(memory)
    wanted, copies = snapshot(memory), snapshot(guard.copies)
    bits = 8 * memory[name].nbytes
    for bit in {*range(min(bits, 64)), *range(bits - 64, bits, 7), *range(0, bits, bits // 40 + 1)}:
        if name == "torch.bool" and bit % 8:
            continue  # not a truth value
        flip(memory[name], max(0, bit))
        assert guard.check() == hp.protections.GuardReport(guard.check().checked, 1, 1, 0, (name,)), bit
        assert_same(memory, wanted)
    assert_same(guard.copies, copies)


@pytest.mark.parametrize("kind", ["gaps", "expanded", "odd", "inference"])
def test_memory_in_any_layout_is_repaired(kind: str) -> None:
    base = torch.randn(300, 211, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        inference = base.clone()
    given = {
        "gaps": base[:, 1::2],
        "expanded": base[:, :1].expand(300, 50),
        "odd": base.view(-1)[1:-2],
        "inference": inference,
    }[kind]
    guard = hp.Parity().arm({"w": given})
    wanted = given.clone()
    for place in ((0,) * given.dim(), tuple(size - 1 for size in given.shape)):
        with torch.inference_mode():
            given.data[place] = float("nan")
        report = guard.check()
        assert (report.detected, report.corrected, report.where) == (1, 1, ("w",))
        assert torch.equal(given, wanted)


def test_pairs_of_flips_in_one_block_are_repaired_and_never_look_like_nothing() -> None:
    memory, guard = one_matrix()
    _, groups, columns = only_matrix(guard)
    wanted = snapshot({"w": memory})
    width = groups * columns
    places = [(3 * width + c) * 64 + bit for c in (0, 1, columns - 1) for bit in (0, 1, 31, 32, 62, 63)]
    for first, second in itertools.combinations(places, 2):
        flip(memory, first)
        flip(memory, second)
        report = guard.check()
        assert report.detected == report.corrected == (1 if first // 64 == second // 64 else 2)
        assert_same({"w": memory}, wanted)


def test_a_burst_over_a_whole_block_or_the_edge_of_two_is_repaired() -> None:
    memory, guard = one_matrix()
    columns = only_matrix(guard)[2]
    wanted = snapshot({"w": memory})
    noise = np.random.default_rng(0)
    for first in (0, 5 * columns, 5 * columns + 17, columns - 1, len(memory) - columns):
        burst = bytes_of(memory)[8 * first : 8 * (first + columns)]
        burst ^= noise.integers(1, 256, burst.shape, dtype=np.uint8)
        report = guard.check()
        assert (report.detected, report.corrected, report.where) == (columns, columns, ("w",))
        assert_same({"w": memory}, wanted)


def test_blocks_that_follow_each_other_are_in_different_groups() -> None:
    memory, guard = one_matrix(133 * 2 * 8 * 355)
    _, groups, columns = only_matrix(guard)
    assert groups >= 2
    wanted = snapshot({"w": memory})
    bytes_of(memory)[100 : 100 + 8 * columns * (groups - 1)] ^= np.uint8(0x5A)
    report = guard.check()
    assert report.corrected == report.detected == columns * (groups - 1) + 1
    assert_same({"w": memory}, wanted)


def test_faults_in_two_blocks_of_a_group_are_repaired_if_there_is_one_way() -> None:
    memory, guard = one_matrix()
    rows, groups, columns = only_matrix(guard)
    wanted = snapshot({"w": memory})
    for row, column in itertools.product((0, 1, 50, rows - 1), (0, 1, columns - 1)):
        flip(memory, 64 * (2 * groups * columns + 7) + 5)
        flip(memory, 64 * (row * groups * columns + column) + 63)
        report = guard.check()
        assert (report.detected, report.corrected) == (2, 2), (row, column)
        assert_same({"w": memory}, wanted)


def test_two_wrong_words_in_one_column_are_reported_and_left() -> None:
    memory, guard = one_matrix()
    _, groups, columns = only_matrix(guard)
    memory.data[7] += 1
    memory.data[7 + groups * columns] += 2
    memory.data[8] ^= 4
    struck = memory.clone()
    report = guard.check()
    assert (report.detected, report.corrected, report.uncorrectable, report.where) == (2, 0, 2, ("w",))
    assert torch.equal(memory, struck)


def test_what_cancels_in_every_column_is_the_class_that_is_missed() -> None:
    memory, guard = one_matrix()
    rows, groups, columns = only_matrix(guard)
    memory.data[3] += 8
    memory.data[3 + groups * columns] -= 8
    assert guard.check().detected == 0
    bits = 64 * len(memory)
    assert guard.miss_probability == pytest.approx((rows - 1) / (bits - 1) * 65 / 128)


@pytest.mark.parametrize("key", ["parity", "sums#1", "sums#2"])
def test_faults_in_the_guards_own_memory_are_repaired_and_memory_is_left(key: str) -> None:
    memory = network()
    guard = hp.Parity().arm(memory)
    wanted, copies = snapshot(memory), snapshot(guard.copies)
    own = guard.copies[f"{key}@cpu"]
    for bit in range(0, 8 * own.nbytes, 8 * own.nbytes // 150):
        flip(own, bit)
        report = guard.check()
        assert (report.detected, report.corrected) == (1, 1), bit
        assert set(report.where) <= set(memory)
        assert_same(guard.copies, copies)
    assert_same(memory, wanted)


def test_faults_in_sums_do_not_keep_blocks_from_being_repaired() -> None:
    memory = network()
    guard = hp.Parity().arm(memory)
    wanted, copies = snapshot(memory), snapshot(guard.copies)
    one, other = guard.copies["sums#1@cpu"], guard.copies["sums#2@cpu"]
    flip(memory["fc"], 77)
    one.bitwise_xor_(0x55)
    other[0, 0] += 0  # the block of the flip: its other copy is right
    report = guard.check()
    assert report.uncorrectable == 0
    assert report.corrected == report.detected == 1 + len(one)
    assert_same(memory, wanted)
    assert_same(guard.copies, copies)


def test_a_block_without_any_right_sum_is_reported_not_rebuilt() -> None:
    memory, guard = one_matrix()
    for key in ("sums#1", "sums#2"):
        guard.copies[f"{key}@cpu"][0] ^= 1
    memory.data[0] ^= 1
    struck = memory.clone()
    assert guard.check().uncorrectable == 1
    assert torch.equal(memory, struck)
    memory.data[0] ^= 1  # memory is right again: columns add up, so it is the sums that are wrong
    guard.copies["sums#1@cpu"][1] ^= 1
    assert guard.check() == hp.protections.GuardReport(len(memory), 2, 2, 0, ("w",))


def test_turns_together_check_everything_and_a_turn_looks_at_its_slice() -> None:
    memory = network()
    guard = hp.Parity().arm(memory)
    wanted = snapshot(memory)
    checked = sum(guard.check(turn=turn, turns=5).checked for turn in range(5))
    assert checked == guard.check().checked
    for name in ("fc", "conv", "scalar", "torch.int16"):
        for bit in range(0, 8 * memory[name].nbytes, 8 * memory[name].nbytes // 30 + 1):
            flip(memory[name], bit)
            saved = bytes_of(memory[name]).copy()
            noticed = []
            for turn in range(5):
                noticed += [turn] if guard.check(turn=turn, turns=5).detected else []
                if noticed == [turn]:
                    assert_same(memory, wanted)
                    bytes_of(memory[name])[:] = saved
            assert len(noticed) == 1
            assert guard.check().corrected == 1
    with pytest.raises(hp.HoplonError, match=r"expected a turn in \[0, 5\), got 5"):
        guard.check(turn=5, turns=5)


@pytest.mark.parametrize("turns", [1, 7])
def test_an_update_is_refused_and_nothing_is_written(turns: int) -> None:
    memory = network()
    guard = hp.Parity().arm(memory)
    memory["fc"].mul_(1.5)
    flip(memory["scalar"], 3)
    updated = snapshot(memory)
    refusals = []
    for turn in range(turns):
        try:
            assert guard.check(turn=turn, turns=turns).detected == 0
        except hp.protections.StaleGuardError as refusal:
            refusals.append(str(refusal))
    assert len(refusals) >= max(1, turns // 2)  # half of the memory, and a slice never repairs without looking at all
    assert all("of 24,700 words of fc; call refresh" in refusal for refusal in refusals)
    assert_same(memory, updated)
    guard.refresh()
    assert guard.check().detected == 0
    flip(memory["conv"], 5)
    assert guard.check().corrected == 1
    assert_same(memory, updated)


def test_an_update_of_a_small_storage_is_told_from_a_burst_by_the_version_counter() -> None:
    memory = network()
    bias = memory["bias"] = torch.randn(40, generator=torch.Generator().manual_seed(1))
    guard = hp.Parity().arm(memory)
    wanted = snapshot(memory)
    bytes_of(bias)[:] ^= np.uint8(0x11)
    assert guard.check().corrected == 40
    assert_same(memory, wanted)
    bias.add_(1)
    with pytest.raises(hp.protections.StaleGuardError, match="40 of 40 words of bias"):
        guard.check()


def test_it_works_inside_inference_mode_and_beside_autograd() -> None:
    weight = torch.nn.Parameter(torch.randn(200, 100))
    with torch.inference_mode():
        guard = hp.Parity().arm({"w": weight})
    wanted = weight.detach().clone()
    flip(weight, 12345)
    assert guard.check().corrected == 1
    assert torch.equal(weight, wanted)
    assert weight.requires_grad
    guard.refresh()
    guard.copies["parity@cpu"][0] ^= 1
    assert guard.check().corrected == 1


def test_refusals_and_labels() -> None:
    with pytest.raises(hp.HoplonError, match="expected group of Parity to be an integer of at least 1, got 0"):
        hp.Parity(group=0)
    with pytest.raises(hp.HoplonError, match="expected plain memory as w, got a torch.sparse_coo tensor"):
        hp.Parity().arm({"w": torch.eye(3).to_sparse()})
    with pytest.raises(hp.HoplonError, match="expected plain memory as w, got a meta tensor"):
        hp.Parity().arm({"w": torch.empty(3, device="meta")})
    assert hp.Parity().label == "parity"
    assert "any change of one block" in hp.Parity().guarantee
    guard = hp.Parity().arm({"empty": torch.zeros(0)})
    assert (guard.extra_bytes, guard.check()) == (0, hp.protections.GuardReport())


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    memory = {}
    for number in range(draw(st.integers(1, 5))):
        dtype = draw(st.sampled_from([dtype for dtype in DTYPES if dtype != torch.bool]))
        big = draw(st.booleans())
        shape = (draw(st.integers(60, 130)), draw(st.integers(200, 300))) if big else (draw(st.integers(0, 40)),)
        tensor = random_tensor(shape, dtype, generator)
        memory[f"t{number}"] = tensor[draw(st.integers(0, 3)) :]
        if big and draw(st.booleans()):
            memory[f"v{number}"] = tensor.t()
    return memory


@settings(max_examples=60, deadline=None)
@given(layouts(), st.integers(1, 160), st.integers(1, 4), st.data())
def test_after_a_check_memory_is_what_it_was_or_the_fault_is_reported(
    memory: dict[str, Tensor], group: int, faults: int, data: st.DataObject
) -> None:
    guard = hp.Parity(group=group).arm(memory)
    wanted, copies = snapshot(memory), snapshot(guard.copies)
    targets = [tensor for tensor in [*memory.values(), *guard.copies.values()] if tensor.numel()]
    for _ in range(faults if targets else 0):
        target = bytes_of(data.draw(st.sampled_from(targets)))
        first = data.draw(st.integers(0, len(target) - 1))
        length = data.draw(st.sampled_from([1, 1, 4, 300]))
        target[first : first + length] ^= np.uint8(data.draw(st.integers(1, 255)))
    wrong = bool(changed(memory, wanted) or changed(guard.copies, copies))
    struck = snapshot(memory)
    try:
        report = guard.check()
    except hp.protections.StaleGuardError:
        assert_same(memory, struck)
        return
    assert (report.detected > 0) == wrong
    if not report.uncorrectable:
        assert_same(memory, wanted)
        assert_same(guard.copies, copies)
    for name, tensor in memory.items():  # whatever was written is right
        now = bytes_of(tensor)
        assert np.all((now == bytes_of(wanted[name])) | (now == bytes_of(struck[name])))
