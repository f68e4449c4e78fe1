"""The eager form of a model: its operator calls as they happen, with the same names as in a captured program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hoplon.sites import CallCounter, ValueSite, canonical_kind, is_passive

Visit = Callable[[ValueSite, Tensor], None]


class EagerSites(TorchDispatchMode):
    """Names every operator output of a running model and shows it to ``visit``.

    To be entered around a forward pass under ``torch.inference_mode``, where composite operators stay whole. The
    shape of a site seen here includes the batch axis: one eager run cannot tell which axis that is.
    """

    def __init__(self, model: nn.Module, visit: Visit) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model = model
        self._visit = visit
        self._counter = CallCounter()
        self._owners: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, then name its outputs."""
        result = func(*args, **(kwargs or {}))
        if is_passive(func):
            return result
        outputs = result if isinstance(result, (tuple, list)) else [result]
        if any(isinstance(output, Tensor) for output in outputs):
            owner = self._owners[-1] if self._owners else ""
            kind = canonical_kind(func)
            call = self._counter.next(owner, kind)
            for number, output in enumerate(outputs):
                if isinstance(output, Tensor) and output.numel():
                    self._visit(ValueSite(owner, kind, call, number, tuple(output.shape), output.dtype), output)
        return result

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


def eager_sites(model: nn.Module, *args: Any, **kwargs: Any) -> list[ValueSite]:
    """The operator outputs of one eager forward pass, in execution order."""
    seen: list[ValueSite] = []
    mode = EagerSites(model, lambda site, value: seen.append(site))
    with torch.inference_mode(), mode.watching():
        model(*args, **kwargs)
    return seen
