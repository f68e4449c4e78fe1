"""The table of operators: one kind in all forms, and traits that follow from each other."""

from __future__ import annotations

import pytest
import torch

from hoplon.program.operators import _OPERATORS, ACTIVATION_KINDS, canonical_kind, has, is_passive


@pytest.mark.parametrize(
    ("operators", "kind"),
    [
        ((torch.ops.aten.relu.default, torch.ops.aten.relu_.default), "relu"),
        ((torch.ops.aten.conv2d.default, torch.ops.aten.convolution.default), "conv"),
        ((torch.ops.aten.linear.default, torch.ops.aten.addmm.default), "linear"),
        ((torch.ops.aten.matmul.default, torch.ops.aten.mm.default, torch.ops.aten.bmm.default), "matmul"),
        ((torch.ops.aten.relu6.default, torch.ops.aten.hardtanh_.default), "hardtanh"),
    ],
)
def test_forms_of_an_operator_have_one_kind(operators: tuple[object, ...], kind: str) -> None:
    assert {canonical_kind(operator) for operator in operators} == {kind}


def test_an_operator_that_the_table_lacks_is_its_own_kind_without_traits() -> None:
    assert canonical_kind(torch.ops.aten.erf.default) == "erf"
    assert not has(torch.ops.aten.erf.default, "pointwise")
    assert not is_passive(torch.ops.aten.erf.default)


def test_narrower_traits_imply_wider_ones() -> None:
    for name, entry in _OPERATORS.items():
        assert "settles" not in entry.traits or "exact" in entry.traits, name
        assert "exact" not in entry.traits or "pointwise" in entry.traits, name
        assert not {"passive", "shape"} <= entry.traits, name


def test_exact_operators_round_no_element_by_its_neighbours() -> None:
    """Each exact operator of one tensor gives an element the same bits alone as among 1,021 others."""
    x = torch.randn(1021, generator=torch.Generator().manual_seed(0))
    for name in ("relu", "hardtanh", "relu6", "leaky_relu", "neg", "abs", "clone"):
        operator = getattr(torch.ops.aten, name).default
        assert has(operator, "exact")
        alone = torch.cat([operator(x[i : i + 1]) for i in range(len(x))])
        assert torch.equal(operator(x).view(torch.int32), alone.view(torch.int32)), name


def test_kinds_that_count_as_activations_are_those_of_their_operators() -> None:
    assert {"relu", "hardtanh", "elu", "clamp", "atan"} <= ACTIVATION_KINDS
    assert all(("activation" in entry.traits) == (entry.kind in ACTIVATION_KINDS) for entry in _OPERATORS.values())
