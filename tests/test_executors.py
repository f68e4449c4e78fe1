"""Executors: units in other processes give what they give here; a program survives the journey bit for bit."""

from __future__ import annotations

import pickle

import cloudpickle
import pytest
import torch

from hoplon import HoplonError, Memory, Values, capture
from hoplon.executors import Processes, Serial
from hoplon.formats import equal_bits
from hoplon.program import Program
from tests.nets import NETS


@pytest.mark.parametrize("form", ["export", "eager"])
@pytest.mark.parametrize("name", NETS)
def test_a_program_travels_bit_for_bit(name: str, form: str) -> None:
    net = NETS[name]
    program = capture(net.model(), net.batch(2), form=form)  # type: ignore[arg-type]
    twin: Program = pickle.loads(cloudpickle.dumps(program))
    assert type(twin) is type(program)
    assert twin.fingerprint() == program.fingerprint()
    assert twin.value_sites == program.value_sites
    assert twin.memory_sites == program.memory_sites
    assert [s.name for s in Values().select(twin)] == [s.name for s in Values().select(program)]
    assert [s.numel for s in Memory().select(twin)] == [s.numel for s in Memory().select(program)]
    x = net.batch(1, seed=4)
    assert equal_bits(twin(x), program(x))


def test_processes_give_every_unit_once_with_their_threads() -> None:
    def work(unit: int) -> tuple[int, int]:
        return unit * unit, torch.get_num_threads()

    found = dict(Processes(2, threads=1).run(work, range(5)))
    assert found == dict(Serial().run(lambda unit: (unit * unit, 1), range(5)))
    assert dict(Processes(2, threads=1).run(work, [])) == {}


def test_an_error_in_a_process_comes_back_as_it_is() -> None:
    def work(unit: int) -> int:
        raise HoplonError(f"expected another unit, got {unit}")

    with pytest.raises(HoplonError, match="expected another unit, got 3"):
        list(Processes(1, threads=1).run(work, [3]))
    with pytest.raises(HoplonError, match="expected at least 1 worker and 1 thread, got 0 and 1"):
        Processes(0, threads=1)
