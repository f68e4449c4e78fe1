"""The eager form of a model: its operator calls as they happen, with the same names as in a captured program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hoplon.program.operators import canonical_kind, is_passive
from hoplon.program.sites import Identity, call_numbers


@dataclass(frozen=True, eq=False)
class OperatorCall:
    """One operator call of a running model; ``call`` is its number among its kind in its owner, None for a view."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    owner: str
    call: int | None

    def outputs(self) -> Iterator[tuple[Identity, Tensor]]:
        """The outputs that a fault can strike, with their identities."""
        if self.call is None:
            return
        several = self.result if isinstance(self.result, (tuple, list)) else [self.result]
        for number, output in enumerate(several):
            if isinstance(output, Tensor) and output.numel():
                yield Identity(self.owner, canonical_kind(self.op), self.call, number), output


class OperatorWatch(TorchDispatchMode):
    """Shows every operator call of a running model to ``see``, which may overwrite its outputs in place.

    To be used under ``torch.inference_mode``, where composite operators stay whole.
    """

    def __init__(self, model: nn.Module, see: Callable[[OperatorCall], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model = model
        self._see = see
        self._numbers = call_numbers()
        self._owners: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, then show the call."""
        result = func(*args, **(kwargs or {}))
        owner = self._owners[-1] if self._owners else ""
        several = result if isinstance(result, (tuple, list)) else [result]
        counts = not is_passive(func) and any(isinstance(output, Tensor) for output in several)
        call = next(self._numbers[owner, canonical_kind(func)]) if counts else None
        self._see(OperatorCall(func, args, kwargs or {}, result, owner, call))
        return result

    def restart(self) -> None:
        """Number calls from the first again: another forward begins."""
        self._numbers = call_numbers()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow which module is running; its hooks are gone afterwards, also after an error."""
        handles = []
        try:
            for path, module in self._model.named_modules():
                handles.append(module.register_forward_pre_hook(self._enter(path)))
                handles.append(module.register_forward_hook(self._leave, always_call=True))
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()
            self._owners.clear()

    def _enter(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            self._owners.append(path)

        return hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._owners.pop()
