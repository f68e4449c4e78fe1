"""From a user's model to a :class:`Program`: export, number the sites, prove the result."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as pytree

from hoplon.errors import CaptureError
from hoplon.program import BatchLayout, Program, Ref, Step
from hoplon.proof import prove
from hoplon.quiet import quiet_torch
from hoplon.sites import CallCounter, MemorySite, ValueSite, canonical_kind, is_passive

_EXPORT_ERRORS = (
    RuntimeError,  # includes NotImplementedError and most of torch's own errors
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    torch._dynamo.exc.TorchDynamoException,
)


def capture(
    model: nn.Module, example: Any, *, kwargs: Mapping[str, Any] | None = None, name: str | None = None
) -> Program:
    """Trace a model once and prove that the trace computes what the model computes.

    The proof: outputs bit-identical to the model's, twice and at two batch sizes; every operator's samples move with
    the samples of the input; no sample influences another.

    Args:
        model: in eval mode; neither copied nor changed, its memory is shared.
        example: a batch (a tensor whose first axis is the batch) or a tuple of positional inputs.
        kwargs: keyword inputs, tensors batch-first as well.
        name: what reports call the model; the class name by default.
    Raises:
        CaptureError: train mode, no batch axis, not exportable, not deterministic, or samples that influence each
            other; says which and the way out.
    """
    _require_eval(model)
    args = example if isinstance(example, tuple) else (example,)
    inputs = _at_least_two_samples((args, dict(kwargs or {})))
    _require_running(model, *inputs)
    exported = _export(model, *inputs)
    program = _program(exported, name or type(model).__name__, inputs)
    prove(program, model, inputs)
    return program


def _require_eval(model: nn.Module) -> None:
    training = [path or type(model).__name__ for path, module in model.named_modules() if module.training]
    if training:
        raise CaptureError(
            f"expected a model in eval mode, got train mode in {', '.join(training[:3])}"
            f"{' and others' if len(training) > 3 else ''}; call model.eval() first"
        )


def _require_running(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        with torch.inference_mode():
            model(*args, **kwargs)
    except _EXPORT_ERRORS as error:
        shapes = ", ".join(
            str(tuple(leaf.shape)) for leaf in pytree.tree_leaves((args, kwargs)) if hasattr(leaf, "shape")
        )
        raise CaptureError(
            f"expected an example that {type(model).__name__} accepts, got inputs of shape {shapes} and from the model "
            f"{_first_line(error)!r}; give a batch of real input, with the batch axis first"
        ) from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _at_least_two_samples(
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Repeat a batch of one: an export specialises on sizes 0 and 1, so the batch axis would not stay free."""
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if not tensors:
        raise CaptureError("expected an example with at least one tensor, got none; give a batch of real input")
    sizes = {leaf.shape[0] if leaf.dim() else None for leaf in tensors}
    if len(sizes) > 1 or None in sizes:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in tensors)
        raise CaptureError(f"expected inputs that share a first batch axis, got shapes {shapes}")
    if sizes == {0}:
        raise CaptureError("expected an example of at least one sample, got an empty batch")
    if sizes == {1}:
        return pytree.tree_map_only(Tensor, lambda leaf: torch.cat([leaf, leaf]), inputs)  # type: ignore[no-any-return]
    return inputs


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    batch = Dim("batch", min=2, max=2**20)
    shapes = pytree.tree_map(lambda leaf: {0: batch} if isinstance(leaf, Tensor) else None, (args, kwargs))
    try:
        with torch.no_grad(), quiet_torch():
            return torch.export.export(model, args, kwargs, dynamic_shapes=_by_parameter(model, *shapes))
    except _EXPORT_ERRORS as error:
        raise _export_error(model, args, error) from error


def _by_parameter(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Dynamic shapes as torch.export wants them: a tuple, or by parameter name once there are keywords."""
    if not kwargs:
        return args
    names = list(inspect.signature(model.forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _export_error(model: nn.Module, args: tuple[Any, ...], error: Exception) -> CaptureError:
    text = str(error)
    reason = _first_line(error)
    kind = type(model).__name__
    shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
    if "Constraints violated" in text or "specialized" in text or "ConstraintViolation" in type(error).__name__:
        return CaptureError(
            f"expected the first axis of the example (shape {shapes[0]}) to be a free batch axis, got a model that "
            f"fixes it: {reason}; give an example of shape (batch, ...) and take the batch size from the input, "
            "not from a constant"
        )
    return CaptureError(
        f"expected a model that torch.export can trace, got {kind} failing with: {reason}; capture the part that can "
        "be traced (a backbone or a head), or replace control flow that depends on values, .item() and numpy calls "
        "in forward"
    )


@dataclass(frozen=True)
class Identity:
    """Who an operator output is, before its shape is known: the key that all forms share."""

    owner: str
    kind: str
    call: int
    output: int


def identities(graph: fx.Graph) -> dict[fx.Node, Identity]:
    """The identity of every node of a graph that is an operator's output, views and copies left out.

    The same in the raw and the functional form. For an operator with several outputs the nodes are its ``getitem``.
    """
    counter = CallCounter()
    found: dict[fx.Node, Identity] = {}
    for node in graph.nodes:
        if node.op != "call_function" or is_passive(node.target):
            continue
        value = node.meta.get("val")
        owner, kind = owner_of(node), canonical_kind(node.target)
        if isinstance(value, Tensor):
            found[node] = Identity(owner, kind, counter.next(owner, kind), 0)
        elif isinstance(value, (tuple, list)) and any(isinstance(item, Tensor) for item in value):
            call = counter.next(owner, kind)
            for user in node.users:
                if user.target is operator.getitem:
                    found[user] = Identity(owner, kind, call, int(user.args[1]))
    return found


def owner_of(node: fx.Node) -> str:
    """The innermost module path of a node, "" for the model itself."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path, _ = next(reversed(stack.values()))
    return str(path)


def _program(exported: ExportedProgram, name: str, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Program:
    with quiet_torch():
        functional = exported.run_decompositions({})
    if functional.graph_signature.buffers_to_mutate:
        names = ", ".join(functional.graph_signature.buffers_to_mutate.values())
        raise CaptureError(
            f"expected a model without state that forward changes, got writes to {names}; make them inputs"
        )
    nodes = list(functional.graph.nodes)
    numbers = {node: number for number, node in enumerate(n for n in nodes if n.op != "output")}
    symbol: sympy.Expr = _batch_symbol(functional, numbers)
    layouts = {number: layout for node, number in numbers.items() if (layout := _layout(node, symbol))}
    sites = {
        node: _value_site(identity, node, layouts[numbers[node]])
        for node, identity in identities(functional.graph).items()
        if numbers[node] in layouts
    }
    input_steps, memory_steps, constants = _placeholders(functional, numbers)
    _require_layouts(nodes, {nodes[step] for step in input_steps}, numbers, layouts)
    memory_sites, unread = _memory_sites(functional, memory_steps, nodes)
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    in_spec, out_spec = functional.call_spec.in_spec, functional.call_spec.out_spec
    return Program(
        name=name,
        exported=exported,
        steps=tuple(_step(node, numbers) for node in numbers),
        input_steps=input_steps,
        memory_steps=memory_steps,
        constants=constants,
        output_steps=_outputs(functional, numbers),
        in_spec=in_spec,
        out_spec=out_spec,
        layouts=layouts,
        value_sites=tuple(sites.values()),
        site_steps={site.name: numbers[node] for node, site in sites.items()},
        memory_sites=memory_sites,
        unread=unread,
        example_shapes=tuple(tuple(leaf.shape) for leaf in tensors),
        example_dtypes=tuple(leaf.dtype for leaf in tensors),
    )


def _step(node: fx.Node, numbers: Mapping[fx.Node, int]) -> Step:
    if node.op == "placeholder":
        return Step(numbers[node], node.name, None, (), {}, ())
    if node.op != "call_function" or isinstance(node.target, torch._ops.HigherOrderOperator):
        raise CaptureError(
            f"expected a model of plain operators, got {node.op} {node.target} in {owner_of(node) or 'the model'}; "
            "replace torch.cond and other higher-order control flow by tensor arithmetic"
        )

    def template(item: Any) -> Any:
        if isinstance(item, fx.Node):
            return Ref(numbers[item])
        if isinstance(item, (tuple, list)):
            return [template(part) for part in item]
        return item

    args = tuple(template(arg) for arg in node.args)
    kwargs = {key: template(arg) for key, arg in node.kwargs.items()}
    reads = tuple(numbers[source] for source in node.all_input_nodes)
    value = node.meta.get("val")
    carries = any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
    assert callable(node.target)
    return Step(numbers[node], node.name, node.target, args, kwargs, reads, carries, owner_of(node))


def _batch_symbol(exported: ExportedProgram, numbers: Mapping[fx.Node, int]) -> sympy.Expr:
    user_inputs = set(exported.graph_signature.user_inputs)
    for node in numbers:
        if node.op == "placeholder" and node.name in user_inputs:
            value = node.meta.get("val")
            if isinstance(value, Tensor):
                size: int | torch.SymInt = value.shape[0]
                if not isinstance(size, torch.SymInt):
                    raise CaptureError(
                        f"expected a free batch axis, got a model whose export fixes it to {size}; take the batch size "
                        "from the input, not from a constant"
                    )
                return _expression(size)
    raise CaptureError("expected a model with at least one tensor input, got none")


def _expression(size: torch.SymInt) -> sympy.Expr:
    expression: sympy.Expr = size.node.expr
    return expression


def _layout(node: fx.Node, symbol: sympy.Expr) -> BatchLayout | None:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    sizes: list[int | torch.SymInt] = list(value.shape)
    held = [(axis, _expression(size) / symbol) for axis, size in enumerate(sizes) if not isinstance(size, int)]
    if len(held) != 1 or not held[0][1].is_Integer:
        return None
    return BatchLayout(axis=held[0][0], fold=int(held[0][1]))


def _require_layouts(
    nodes: Sequence[fx.Node],
    inputs: set[fx.Node],
    numbers: Mapping[fx.Node, int],
    layouts: Mapping[int, BatchLayout],
) -> None:
    """Every tensor that depends on the input has to hold one batch axis, or samples could not share a pass."""
    dependent = set(inputs)
    for node in nodes:
        if node.op != "call_function" or dependent.isdisjoint(node.all_input_nodes):
            continue
        value = node.meta.get("val")
        if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value)):
            dependent.add(node)
        if node in dependent and isinstance(value, Tensor) and numbers[node] not in layouts:
            raise CaptureError(
                f"expected every value to keep one batch axis, got operator {node.name} in "
                f"{owner_of(node) or 'the model'} with shape {tuple(value.shape)}; remove reductions over the batch"
            )


def _value_site(identity: Identity, node: fx.Node, layout: BatchLayout) -> ValueSite:
    value = node.meta["val"]
    shape = layout.sample_shape([size if isinstance(size, int) else -1 for size in value.shape])
    return ValueSite(identity.owner, identity.kind, identity.call, identity.output, shape, value.dtype)


def _placeholders(
    exported: ExportedProgram, numbers: Mapping[fx.Node, int]
) -> tuple[tuple[int, ...], dict[int, str], dict[int, Any]]:
    by_name = {node.name: number for node, number in numbers.items() if node.op == "placeholder"}
    inputs: list[int] = []
    memory: dict[int, str] = {}
    constants: dict[int, Any] = {}
    for spec in exported.graph_signature.input_specs:
        step = by_name[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(step)
            if isinstance(spec.arg, ConstantArgument):
                constants[step] = spec.arg.value
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            memory[step] = str(spec.target)
        else:
            constants[step] = exported.constants[str(spec.target)]
    return tuple(inputs), memory, constants


def _memory_sites(
    exported: ExportedProgram, memory_steps: Mapping[int, str], nodes: Sequence[fx.Node]
) -> tuple[tuple[MemorySite, ...], tuple[str, ...]]:
    """One site per storage, in the order of the model's state, and the names of storages that nothing reads."""
    tensors = {name: _state(exported, name) for name in memory_steps.values()}
    by_storage: dict[tuple[int, int], list[str]] = {}
    for step, name in memory_steps.items():
        tensor = tensors[name]
        key = (tensor.untyped_storage().data_ptr(), 0) if tensor.numel() else (-1, step)
        by_storage.setdefault(key, []).append(name)
    kinds = {name: _reader_kinds(nodes[step]) for step, name in memory_steps.items()}
    buffers = set(exported.graph_signature.inputs_to_buffers.values())
    sites, unread = [], []
    for names in by_storage.values():
        if _same_geometry([tensors[name] for name in names]) is False:
            raise CaptureError(
                f"expected names of one storage to show the same tensor, got different views: {', '.join(names)}"
            )
        read_by = frozenset().union(*(kinds[name] for name in names))
        first = tensors[names[0]]
        site = MemorySite(names[0], tuple(names[1:]), read_by, names[0] in buffers, tuple(first.shape), first.dtype)
        if read_by and site.numel:
            sites.append(site)
        else:
            unread.extend(names)
    return tuple(sites), tuple(unread)


def _state(exported: ExportedProgram, name: str) -> Tensor:
    value = exported.state_dict[name] if name in exported.state_dict else exported.constants[name]
    assert isinstance(value, Tensor)
    return value


def _same_geometry(tensors: Iterable[Tensor]) -> bool:
    return len({(t.data_ptr(), tuple(t.shape), t.stride(), t.dtype) for t in tensors}) == 1


def _reader_kinds(node: fx.Node) -> frozenset[str]:
    """The kinds of the operators that read a placeholder, seen through views."""
    kinds: set[str] = set()
    for user in node.users:
        if user.op != "call_function":
            continue
        kinds |= _reader_kinds(user) if is_passive(user.target) else {canonical_kind(user.target)}
    return frozenset(kinds)


def _outputs(exported: ExportedProgram, numbers: Mapping[fx.Node, int]) -> tuple[Any, ...]:
    by_name = {node.name: number for node, number in numbers.items()}
    specs = exported.graph_signature.output_specs
    return tuple(
        spec.arg.value if isinstance(spec.arg, ConstantArgument) else Ref(by_name[spec.arg.name])
        for spec in specs
        if spec.kind is OutputKind.USER_OUTPUT
    )
