"""Memory end to end: the same tensors, the same bits, and guards that read it at once and still name what is wrong."""

from __future__ import annotations

import copy
import gc
import io
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hoplon as hp
from hoplon.formats import integer_view
from hoplon.protections.guards.memory.arena import _arenas, arena_around, end_to_end, lay_end_to_end
from tests.support.guarded_memory import bytes_of, flip
from tests.support.oracles import assert_same, changed, snapshot


def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    nan = torch.tensor([0x7F800001, 0x7FC12345, -0x80000000], dtype=torch.int32).view(torch.float32)
    return [
        torch.randn(3, 5, generator=generator),
        nan,
        torch.randn(2, 3, 4, 4, generator=generator).to(memory_format=torch.channels_last),
        torch.tensor(7),
        torch.rand(9, generator=generator) < 0.5,
        torch.randn(64, 8, generator=generator).to(torch.float8_e4m3fn),
        torch.randn(6, generator=generator).to(torch.complex64),
        torch.randn(32, 32, generator=generator, dtype=torch.float64),
        torch.zeros(0, 4),
        torch.randn(4, 6, generator=generator)[:, ::2],
        torch.randn(8, 8, generator=generator).to_sparse(),
    ]


def test_copies_have_the_same_bits_and_lie_end_to_end_without_gaps() -> None:
    given = tensors()
    copies = end_to_end(given)
    inside: list[tuple[int, int]] = []
    for tensor, twin in zip(given, copies, strict=True):
        assert (twin.dtype, twin.shape, twin.layout, twin._version) == (tensor.dtype, tensor.shape, tensor.layout, 0)
        if tensor.layout != torch.strided or not tensor.numel():
            assert twin is not tensor
            continue
        assert twin.stride() == tensor.clone().stride()
        assert (bytes_of(twin) == bytes_of(tensor.clone())).all()
        assert twin.data_ptr() % twin.itemsize == 0
        assert twin.untyped_storage().nbytes() == twin.nbytes  # each is saved by itself
        inside.append((twin.data_ptr(), twin.nbytes))
    inside.sort()
    assert all(one + size == other for (one, size), (other, _) in itertools.pairwise(inside))
    arena = arena_around(copies[0])
    assert arena is not None
    assert arena.data_ptr() == inside[0][0]
    assert arena_around(given[0]) is None


def test_the_arena_lives_as_long_as_any_of_its_tensors() -> None:
    gc.collect()  # what earlier tests left
    before = len(_arenas)
    kept = end_to_end([torch.arange(5), torch.arange(3)])[1]
    assert len(_arenas) == before + 1
    assert kept.tolist() == [0, 1, 2]
    del kept
    gc.collect()
    assert len(_arenas) == before


def network() -> nn.Sequential:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 130)]
    return nn.Sequential(*body, nn.Linear(130, 130), nn.Linear(130, 7)).eval()


def test_a_laid_out_model_keeps_its_tensors_ties_views_and_outputs() -> None:
    model = network()
    model[6].weight = nn.Parameter(torch.randn(7, 130))
    tied = nn.Module()
    tied.register_parameter("again", model[5].weight)
    model.add_module("tied", tied)
    model.register_buffer("turned", model[4].weight.detach().t())
    before = dict(model.named_parameters(remove_duplicate=False))
    x, wanted = torch.randn(2, 3, 8, 8), snapshot(dict(model.state_dict()))
    expected = model[:7](x)
    lay_end_to_end(model)
    assert all(tensor is before[name] for name, tensor in model.named_parameters(remove_duplicate=False))
    assert_same(dict(model.state_dict()), wanted)
    assert torch.equal(model[:7](x), expected)
    assert arena_around(model[5].weight) is not None
    assert arena_around(model[4].weight) is None  # its transpose is a buffer
    assert model.get_buffer("turned").data_ptr() == model[4].weight.data_ptr()


def test_tensors_made_in_inference_mode_stay_where_they_are() -> None:
    with torch.inference_mode():
        model = nn.Linear(4, 4)
    guarded = hp.guard(model, [hp.Parity()], end_to_end=True)
    flip(model.weight, 30)
    assert guarded.check().where == ("weight",)
    assert arena_around(model.weight) is None


def test_guards_of_a_laid_out_model_repair_and_name_every_tensor() -> None:
    model = network()
    scores = hp.Scores({name: tensor.detach().abs() for name, tensor in model.named_parameters() if tensor.dim() > 1})
    guarded = hp.guard(model, [hp.Parity(), hp.Aspis(scores, 0.3)], end_to_end=True)
    state = {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    wanted = snapshot(state)
    for name, tensor in state.items():
        for bit in (0, 8 * tensor.nbytes // 2 + 5, 8 * tensor.nbytes - 2):
            flip(tensor, bit)
            report = guarded.check()
            assert report.where == (name,), (name, bit)
            assert report.detected == report.corrected >= 1
            assert_same(state, wanted)


def test_parity_reads_units_of_one_arena_and_slices_them() -> None:
    sizes = [(300, 1000), (1, 3), (70_000,), (5,), (256, 33, 3, 3), (17,), (64,)]
    generator = torch.Generator().manual_seed(1)
    words = end_to_end([torch.randn(size, generator=generator) for size in sizes])
    memory = {f"t{number}": tensor for number, tensor in enumerate(words)}
    guard = hp.Parity(group=9).arm(memory)
    (part,) = guard.parts
    assert max(matrix.units for matrix in part.matrices) > 1
    assert sum(len(matrix.runs) for matrix in part.matrices) > len(memory)  # matrices end within tensors
    assert guard.protected_bytes == sum(tensor.nbytes for tensor in words)
    wanted, copies = snapshot(memory), snapshot(guard.copies)
    for turns in (1, 3, 16):
        for name, tensor in memory.items():
            for bit in {3, 8 * tensor.nbytes // 3, 8 * tensor.nbytes - 1}:
                flip(tensor, bit)
                reports = [guard.check(turn=turn, turns=turns) for turn in range(turns)]
                assert sum((report.where for report in reports), ()) == (name,), (turns, name, bit)
                assert sum(report.corrected for report in reports) == 1
                assert_same(memory, wanted)
                assert_same(guard.copies, copies)


def test_an_updated_small_tensor_is_named_though_it_shares_blocks() -> None:
    memory = dict(zip("abcdefgh", end_to_end([torch.randn(40) for _ in range(8)]), strict=True))
    guard = hp.Parity().arm(memory)
    wanted = snapshot(memory)
    memory["e"].add_(1.0)
    with pytest.raises(hp.protections.StaleGuardError, match="words of e;"):
        guard.check()
    assert changed(memory, wanted) == ["e"]


def test_a_hardened_module_is_laid_out_and_stays_so(tmp_path: Path) -> None:
    model = network()
    program = hp.capture(model, torch.randn(2, 3, 8, 8))
    hardened = hp.harden(program, [hp.Parity()])
    x = torch.randn(2, 3, 8, 8)
    for module in (hardened, copy.deepcopy(hardened), hp.harden(program, [hp.Parity()]).to(torch.float64)):
        first, *others = (tensor for tensor in module.memory().values())
        arena = arena_around(first)
        assert arena is not None
        assert all(arena.data_ptr() <= tensor.data_ptr() < arena.data_ptr() + arena.nbytes for tensor in others)
        assert module(x.to(first.dtype)).shape == (2, 7)
    assert arena_around(next(model.parameters())) is None
    hp.save_bundle(hardened, tmp_path / "bundle")
    loaded = hp.load_bundle(tmp_path / "bundle")
    shapes = [
        {name: tensor.shape for name, tensor in module.monitor.guards[0].copies.items()}
        for module in (hardened, loaded)
    ]
    assert shapes[0] == shapes[1]
    size = sum(file.stat().st_size for file in (tmp_path / "bundle").iterdir())
    assert size < 3 * sum(tensor.nbytes for tensor in hardened.memory().values()) + 200_000
    buffer = io.BytesIO()
    torch.save(hardened.memory()["0.bias"], buffer)
    assert buffer.tell() < 4096  # one tensor, not all that lies beside it


def test_an_index_over_one_arena_is_repaired_and_never_followed_where_it_is_wrong() -> None:
    memory = dict(zip("ab", end_to_end([torch.randn(700), torch.randn(500)]), strict=True))
    guard = hp.Aspis(hp.Scores({name: tensor.abs() for name, tensor in memory.items()}), 0.5).arm(memory)
    guard.check()
    wanted, copies = snapshot(memory), snapshot(guard.copies)
    for entry in range(3):
        guard.copies["b#sums"][entry] ^= 1 << 40
        assert guard.check() == hp.protections.GuardReport(600, 1, 1, 0, ("b",)), "each sum is looked at in each check"
        assert_same(guard.copies, copies)
    index = integer_view(guard.copies["a#index"])
    index[0] ^= -(2**31)
    index[5] ^= -(2**31)  # in 32 bits, the two cancel
    report = guard.check()
    assert report.uncorrectable == report.detected == len(index)
    assert_same(memory, wanted)


def test_arenas_that_lie_side_by_side_are_not_read_as_one() -> None:
    layers = nn.ModuleList([nn.Linear(64, 64, bias=False) for _ in range(8)])  # of four pages each
    for layer in layers:
        lay_end_to_end(layer)
    places = {layer.weight.data_ptr() for layer in layers}
    if not any(place + 64 * 64 * 4 in places for place in places):
        pytest.skip("the system left gaps between all of them")
    wanted = snapshot(dict(layers.state_dict()))
    guarded = hp.guard(layers, [hp.Parity()])
    for layer in layers:
        flip(layer.weight, 30)
        assert guarded.check().corrected == 1
    assert_same(dict(layers.state_dict()), wanted)


def test_memory_that_processes_share_stays_shared() -> None:
    model = network().share_memory()
    guarded = hp.guard(model, [hp.Parity()], end_to_end=True)
    hardened = hp.harden(hp.capture(network(), torch.randn(2, 3, 8, 8)), [hp.Parity()])
    hardened.share_memory()
    for module in (model, hardened):
        assert all(tensor.is_shared() for tensor in module.state_dict().values())
    flip(model[0].weight, 30)
    flip(hardened.memory()["0.weight"], 30)
    assert guarded.check().corrected == hardened.check().corrected == 1
