"""Guards in processes that are forked, in two that share memory, and after checks that did not end."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

import hoplon as hp
from hoplon.formats import equal_bits, integer_view
from hoplon.protections.memory_guard import GuardReport

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

SECONDS = 60


def _strike(tensor: Tensor, bit: int = 30) -> None:
    integer_view(tensor).view(-1).numpy()[7] ^= 1 << bit


def _result_in_a_copy(call: Callable[[], int]) -> int:
    """What a call gives in a process that is forked here; minus a signal, if it does not come back."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # what forks and threads do is asked
        child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS // 3)
            os._exit(call())
        finally:
            os._exit(99)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status)


def _copies(guarded: hp.protections.GuardedModel) -> list[Tensor]:
    return [guarded.monitor.guards[0].copies[f"weight#{n}"] for n in (1, 2)]


@contextmanager
def _check_going_on(model: nn.Module) -> Iterator[hp.protections.GuardedModel]:
    """A guarded model that another thread checks meanwhile."""
    begun, end = threading.Event(), threading.Event()

    def waits(report: GuardReport) -> None:
        begun.set()
        end.wait(SECONDS)

    guarded = hp.guard(model, [hp.TMR()], on_uncorrectable=waits)
    every = [model.get_parameter("weight").data, *_copies(guarded)]
    before = every[0].clone()
    for bit, tensor in enumerate(every):
        _strike(tensor, 20 + bit)
    thread = threading.Thread(target=guarded.monitor.check_due)
    thread.start()
    assert begun.wait(SECONDS)
    for tensor in every:
        tensor.copy_(before)
    try:
        yield guarded
    finally:
        end.set()
        thread.join()


@pytest.mark.parametrize(("width", "threads"), [(8, 1), (1024, 2)])
def test_a_process_forked_during_a_check_goes_on(width: int, threads: int) -> None:
    """Also where operators use threads, which do not come along."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = nn.Linear(width, width).eval()
        with _check_going_on(model) as guarded:

            def check() -> int:
                _strike(model.weight.data)
                return guarded.monitor.check().corrected

            assert _result_in_a_copy(check) == 1
    finally:
        torch.set_num_threads(before)
    assert guarded.monitor.check() == GuardReport(checked=width * width + width)


def test_workers_of_a_data_loader_use_a_model_that_is_being_checked() -> None:
    class Features(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Tensor:
            with torch.no_grad():
                found: Tensor = model(torch.ones(1, 8))[0]
                return found

    model = nn.Linear(8, 8).eval()
    with _check_going_on(model) as guarded:
        guarded.attach()
        loader = torch.utils.data.DataLoader(
            Features(), num_workers=1, multiprocessing_context="fork", timeout=SECONDS / 3
        )
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            rows = list(loader)
    with torch.no_grad():
        assert all(equal_bits(row, model(torch.ones(1, 8))) for row in rows)


def test_two_processes_guard_the_same_memory() -> None:
    model = nn.Linear(8, 8).eval().share_memory()
    guarded, before = hp.guard(model, [hp.TMR()]), model.weight.detach().clone()
    armed, struck = os.pipe(), os.pipe()

    def other() -> int:
        mine = hp.guard(model, [hp.Parity()])
        os.write(armed[1], b"1")
        os.read(struck[0], 1)
        return mine.monitor.check().corrected

    def strike() -> None:
        os.read(armed[0], 1)
        _strike(model.weight.data)
        os.write(struck[1], b"1")

    thread = threading.Thread(target=strike)
    thread.start()
    assert _result_in_a_copy(other) == 1
    thread.join()
    assert guarded.monitor.check().detected == 0
    assert equal_bits(model.weight, before)
    for descriptor in (*armed, *struck):
        os.close(descriptor)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_check_that_did_not_end_counts_nothing_and_comes_again(error: type[BaseException]) -> None:
    """Ended in the middle of a repair, and by what is called where there is none."""
    model, fails = nn.Linear(8, 8).eval(), [True]
    saved = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}

    def source(name: str) -> Tensor:
        if fails.pop():
            raise error
        return saved[name]

    def calls(report: GuardReport) -> None:
        raise error

    reloaded = hp.guard(model, [hp.guards.Checksum("reload", source=source)])
    voted = hp.guard(model, [hp.TMR()])
    for guarded, repairs in ((reloaded, True), (voted, False)):
        monitor = guarded.monitor
        monitor.on_uncorrectable = calls
        fails[:] = [False, True]
        for bit, tensor in enumerate([model.weight.data] if repairs else [model.weight.data, *_copies(guarded)]):
            _strike(tensor, 30 - bit)
        with pytest.raises(error):
            monitor.check_due()
        assert (monitor.forwards, len(monitor.events)) == (0, 0 if repairs else 1)
        thread = threading.Thread(target=monitor.check)
        thread.start()
        thread.join(SECONDS)
        assert not thread.is_alive()
        assert monitor.report.corrected == repairs
        if repairs:
            assert monitor.check_due() == GuardReport(checked=monitor.report.checked)
            assert monitor.forwards == 1
