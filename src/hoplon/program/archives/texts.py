"""What torch would run, import or put into code when it reads a graph: expressions, operators, structures, names."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import torch

_LONGEST = 4096
_SYMBOL = re.compile(r"[a-z]+\d{1,6}")

# As `sympy.srepr` writes what torch computes with sizes. Powers are apart: they may be of any size.
_FUNCTION = re.compile(
    "Add|Mul|Max|Min|Mod|FloorDiv|ModularIndexing|PythonMod|CleanDiv|CeilDiv|CeilToInt|FloorToInt|TruncToInt|"
    "TruncToFloat|RoundToInt|ToFloat|IntTrueDiv|FloatTrueDiv|Where|Identity|Abs|Equality|Unequality|StrictLessThan|"
    "LessThan|StrictGreaterThan|GreaterThan|And|Or|Not"
)
_MOST_POWERS, _LARGEST_POWER = 4, 9

_ON_SIZES_AND_GRAPHS = re.compile(
    r"_operator\.(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|truediv|and_|or_)|math\.trunc|"
    r"torch\.(sym_not|sym_int|sym_float|sym_ite|sym_max|sym_min|_sym_sqrt)|"
    r"torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond|map_impl|scan|while_loop)|"
    r"torch\.ops\.aten\.(_assert_scalar|sym_constrain_range|sym_constrain_range_for_size)\.default|"
    r"torch\._functorch\.predispatch\.(_vmap_(in|de)crement_nesting|_(add|remove)_batch_dim|lazy_load_decompositions)"
)
_ON_TENSORS = re.compile(r"torch\.ops\.(aten|prims|quantized_decomposed|torchao|torchvision)\.(\w+)\.(\w+)")
_VALUES = re.compile(
    r"((Optional|List)\[)*(Tensor|int|float|bool|number|complex|Device|Generator)\]*|str|Optional\[str\]"
)
_WORD = re.compile(  # a text that says how an operator computes, by argument; any other might be a path
    "activation|algorithm|api_name|approximate|assert_msg|driver|equation|indexing|interpolation|mode|norm|ord|p|pad_mode|"
    "padding|padding_side|reduce|rounding_mode|side|UPLO"
)


def is_path(text: str) -> bool:
    """Return True for the name of a tensor or a module: names joined by dots, none of them Python's own.

    Torch writes them into code between quotes.
    """
    plain = text.isprintable() and not {"'", '"', "`", "\\"} & {*text}
    return plain and all(part and not part.startswith("__") for part in text.split("."))


def is_symbol(text: str) -> bool:
    """Return True for the name of a size, such as s77."""
    return _SYMBOL.fullmatch(text) is not None


def is_expression(text: str) -> bool:
    """Return True for an expression over sizes as torch writes it; sympy would evaluate any other.

    Example:
        >>> is_expression("Add(Symbol('s77', positive=True, integer=True), Integer(1))"), is_expression("exit()")
        (True, False)
    """
    if len(text) > _LONGEST or not text.isascii() or text.count("Pow") > _MOST_POWERS:
        return False
    try:
        return _is_term(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_term(node: ast.expr) -> bool:
    match node:
        case ast.Name(id="true" | "false"):
            return True
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))], keywords=assumed):
            return is_symbol(name) and all(
                str(one.arg).isidentifier()
                and isinstance(one.value, ast.Constant)
                and isinstance(one.value.value, bool)
                for one in assumed
            )
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str(digits))], keywords=[ast.keyword(arg)]):
            precision = node.keywords[0].value
            small = isinstance(precision, ast.Constant) and precision.value in range(1, 1025)
            return arg == "precision" and small and re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d{1,3})?", digits) is not None
        case ast.Call(func=ast.Name(id="Integer" | "Rational"), args=numbers, keywords=[]) if len(numbers) in (1, 2):
            return all(_integer(number) is not None for number in numbers)
        case ast.Call(func=ast.Name(id="Pow"), args=[base, ast.Call(func=ast.Name(id="Integer"), args=[power])]):
            return _is_term(base) and abs(_integer(power) or _LARGEST_POWER + 1) <= _LARGEST_POWER
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if _FUNCTION.fullmatch(name):
            return all(_is_term(argument) for argument in arguments)
    return False


def _integer(node: ast.expr) -> int | None:
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=value)) | ast.Constant(value=value):
            return value if type(value) is int and value < 2**63 else None
    return None


def is_operator(text: str) -> bool:
    """Return True for what computes on tensors and sizes, and neither calls, reads nor writes anything else.

    Example:
        >>> [is_operator(f"torch.{name}") for name in ("ops.aten.relu.default", "ops.aten.from_file.default", "load")]
        [True, False, False]
    """
    if _ON_SIZES_AND_GRAPHS.fullmatch(text):
        return True
    parts = _ON_TENSORS.fullmatch(text)
    found: Any = torch.ops
    for part in parts.groups() if parts is not None else ():
        found = getattr(found, part, None)
    if not isinstance(found, torch._ops.OpOverload):
        return False
    arguments, results = found._schema.arguments, found._schema.returns
    kinds = [str(value.type) for value in [*arguments, *results]]
    words = [argument.name for argument in arguments if "str" in str(argument.type)]
    computes = any("Tensor" in kind for kind in kinds) and all(map(_VALUES.fullmatch, kinds))
    return computes and all(map(_WORD.fullmatch, words))


def is_structure(text: str, *, arguments: bool = False) -> bool:
    """Return True for a structure of inputs or outputs whose reading imports nothing.

    Args:
        arguments: of a call: a tuple and a dictionary, whose keys become names in code.
    """
    try:
        version, tree = json.loads(text)
        names = json.loads(tree["children_spec"][1]["context"]) if arguments else []
        return version == 1 and _is_tree(tree) and all(isinstance(one, str) and one.isidentifier() for one in names)
    except (ValueError, TypeError, LookupError, RecursionError):
        return False


def _is_tree(tree: Any) -> bool:
    if tree.keys() != {"type", "context", "children_spec"}:
        return False
    kind, context, children = tree["type"], tree["context"], tree["children_spec"]
    if kind is None:
        return context is None and children == []
    named = kind == "collections.namedtuple" and isinstance(context, str) and is_path(context)
    known = named or (kind != "collections.defaultdict" and _is_plain(json.loads(context)))
    return isinstance(kind, str) and known and all(_is_tree(child) for child in children)


def _is_plain(value: Any) -> bool:
    """Return True for texts, numbers and lists of them: an object might name an enumeration to import."""
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float)
