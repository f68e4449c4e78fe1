"""Site identities: one table, equal in the raw, functional and eager form; selections and their errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hoplon import Memory, Values, capture
from hoplon.errors import SiteError
from hoplon.program.eager_watch import OperatorWatch
from hoplon.program.sites import ValueSite
from hoplon.program.tracing import identities
from tests.support.networks import GRAPHS, NETWORKS


def eager_sites(model: nn.Module, x: Tensor) -> list[ValueSite]:
    """The operator outputs of one eager forward pass, in execution order; their shapes include the batch axis."""
    seen: list[ValueSite] = []
    watch = OperatorWatch(
        model, lambda call: seen.extend(who.site(out.shape, out.dtype) for who, out in call.outputs())
    )
    with torch.inference_mode(), watch.watching():
        model(x)
    return seen


@pytest.mark.parametrize("name", GRAPHS)
def test_sites_are_the_same_in_every_form(name: str) -> None:
    net = NETWORKS[name]
    model, x = net.model(), net.batch(3)
    program = capture(model, x)
    raw = [identity.name for identity in identities(program.exported.graph).values()]
    eager = [site.name for site in eager_sites(model, x)]
    assert tuple(site.name for site in program.value_sites) == net.sites
    assert tuple(raw) == net.sites
    assert tuple(eager) == net.sites


@pytest.mark.parametrize("name", GRAPHS)
def test_eager_shapes_are_the_batch_of_the_captured_ones(name: str) -> None:
    net = NETWORKS[name]
    model, x = net.model(), net.batch(3)
    captured = [(3, *site.shape) for site in capture(model, x).value_sites]
    assert [site.shape for site in eager_sites(model, x)] == captured


def test_watching_leaves_no_hooks() -> None:
    model = NETWORKS["residual"].model()
    with pytest.raises(RuntimeError):
        eager_sites(model, torch.zeros(1, 9, 8, 8))
    hooks = [(m._forward_hooks, m._forward_pre_hooks) for m in model.modules()]
    assert all(not after and not before for after, before in hooks)


def test_tied_weights_are_one_memory_site() -> None:
    net = NETWORKS["tied"]
    program = capture(net.model(), net.batch(2))
    tied = program.memory_site("second.weight")
    assert tied.name == "first.weight"
    assert tied.aliases == ("second.weight",)
    assert sum(site.numel for site in program.memory_sites) == 36 + 6 + 6 + 18 + 3


def test_storages_that_nothing_reads_are_listed_and_not_counted() -> None:
    net = NETWORKS["residual"]
    program = capture(net.model(), net.batch(2))
    assert program.unread == ("bn1.num_batches_tracked", "bn2.num_batches_tracked")
    names = [site.name for site in program.memory_sites]
    assert "bn1.running_mean" in names
    assert not set(program.unread) & set(names)


def test_selections_count_what_they_name() -> None:
    net = NETWORKS["residual"]
    program = capture(net.model(), net.batch(2))
    convs = Values(kind="conv").select(program)
    assert [site.name for site in convs] == ["stem:conv", "conv1:conv", "conv2:conv"]
    assert [site.numel for site in convs] == [4 * 8 * 8, 6 * 2 * 2, 6 * 2 * 2]
    assert [s.name for s in Values(("relu*", "head:*")).select(program)] == ["relu:relu", "relu:relu.1", "head:linear"]
    weights = Memory("*.weight", kind="conv").select(program)
    assert [site.name for site in weights] == ["stem.weight", "conv1.weight", "conv2.weight"]
    parameters = Memory(kind="batch_norm", buffers=False).select(program)
    assert [site.name for site in parameters] == ["bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias"]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Values("conv9*"), r"no value site matches 'conv9\*'; near names: .*conv.:conv.*12 in all"),
        (Values(("stem:conv", "nothing")), "no value site matches 'nothing'"),
        (Values(kind="attention"), "expected at least one value site with kind attention .* kinds here are add, "),
        (Memory("conv9.weight"), r"no memory site matches 'conv9.weight'; near names: conv\d.weight"),
        (Memory(dtype=torch.float16), "expected at least one memory site with kind any and dtype torch.float16"),
    ],
)
def test_a_selection_of_nothing_is_refused(selection: Values | Memory, message: str) -> None:
    net = NETWORKS["residual"]
    program = capture(net.model(), net.batch(2))
    with pytest.raises(SiteError, match=message):
        selection.select(program)
