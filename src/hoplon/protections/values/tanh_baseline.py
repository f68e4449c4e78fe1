"""The baseline of Hong et al.: tanh in the place of ReLU, and training again."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from hoplon.errors import HoplonError
from hoplon.program.capturing import capture

_REPLACED = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.Hardswish, nn.SiLU, nn.GELU)
_KINDS = frozenset({"relu", "leaky_relu", "elu", "hardswish", "silu", "gelu", "hardtanh"})


def with_tanh(model: nn.Module, *example: Any) -> nn.Module:
    """A copy of a model with ``tanh`` in the place of every ReLU and its relatives; to be trained again.

    A baseline to compare Ranger with, not a protection: the weights are those of another network, and the accuracy is
    gone until the copy is trained as the model was, with the same data, loss, optimiser and schedule, starting from
    these weights. Then capture it and run the same campaign. Its state has the names of the model's.

    Args:
        model: its activations have to be modules; left alone.
        example: positional inputs, to see whether an activation is left.
    Raises:
        HoplonError: no activation module, or a ReLU that is called as a function and so cannot be replaced; names it.
    Source:
        Hong et al., Terminal brain damage, USENIX Security 2019; compared with in Fig. 8 of Chen et al., DSN 2021
        (Ranger).
    """
    twin = copy.deepcopy(model)
    replaced = 0
    for parent in list(twin.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _REPLACED):
                setattr(parent, name, nn.Tanh())
                replaced += 1
    if not replaced:
        raise HoplonError(f"expected an activation module in {type(model).__name__} to replace, got none; use modules")
    left = [site.name for site in capture(twin.eval(), *example).value_sites if site.kind in _KINDS]
    if left:
        raise HoplonError(
            f"expected all activations of {type(model).__name__} as modules, got function calls at "
            f"{', '.join(left[:3])} ({len(left)} in all); write them as modules, such as nn.ReLU()"
        )
    return twin.train(model.training)
