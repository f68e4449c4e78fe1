"""The errors hoplon raises for input it cannot use, and the check of arguments against their annotations."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import operator
import os
import re
import traceback
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

_NAMES_SHOWN = 3
_LONGEST_SAID = 200  # characters of what another library says
_LONGEST_FAILURE = 300  # characters: a condition on many unknown sizes has thousands
_OURS = re.escape(str(Path(__file__).parent))
_INSTALLED = re.compile(rf"^<|[/\\](site-packages|dist-packages|lib[/\\]python3[^/\\]*)[/\\]|^{_OURS}")
_UNSEEN = (range(0x20), range(0x7F, 0xA0), range(0x200E, 0x2010), range(0x2028, 0x202F), range(0x2060, 0x2070))
_SHOWN = {code: repr(chr(code))[1:-1] for codes in _UNSEEN for code in codes} | {ord("\ufeff"): "\\ufeff"}


def one_line(text: str) -> str:
    """Return a text as one line that a terminal shows as it is: what moves its cursor or its direction is escaped.

    Example:
        >>> print(one_line("layer" + chr(27) + "[31m"))
        layer\\x1b[31m
    """
    return text.translate(_SHOWN)


def _joined(message: object) -> str:
    return one_line(" ".join(filter(None, (line.strip() for line in str(message).splitlines()))))


class HoplonError(ValueError):
    """One clear message about bad input, on one line; base of all the errors below."""

    def __init__(self, message: object = "") -> None:
        super().__init__(_joined(message))


class CaptureError(HoplonError):
    """A model that cannot be captured."""


class DataError(HoplonError):
    """Data that cannot be used: shape, dtype, NaN, labels, no samples, a missing or damaged file."""


class SiteError(HoplonError):
    """A pattern or a site that matches nothing."""


class UserCodeError(HoplonError):
    """A user's own code, a factory or a model, that failed; ``__cause__`` is what it raised."""


class StoreError(HoplonError):
    """A run directory or file that cannot be read or written, or that belongs to another campaign."""


class HoplonWarning(UserWarning):
    """Something that works, but not as one would expect; says what and what it costs, on one line."""

    def __init__(self, message: object = "") -> None:
        super().__init__(_joined(message))


def failure_of(error: BaseException) -> str:
    """Say what an exception is and where it was raised: in the last line that is not of an installed package.

    Example:
        >>> failure_of(KeyError("weights"))
        "KeyError: 'weights'"
    """
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno))
    own = [frame for frame in frames if not _INSTALLED.search(frame[0])] or frames
    where = f" (line {own[-1][1]} of {own[-1][0]})" if own else ""
    text = _joined(error.msg if isinstance(error, SyntaxError) else error)
    text = text if len(text) <= _LONGEST_FAILURE else f"{text[:_LONGEST_FAILURE]} ..."
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"


def said(error: BaseException) -> str:
    """What an error of another library says, on one line of at most 200 characters.

    Example:
        >>> said(OSError("no space\\n\\n   left"))
        'no space left'
    """
    return _joined(error)[:_LONGEST_SAID].rstrip(".") or type(error).__name__


def no_match(what: str, pattern: str, names: Sequence[str]) -> SiteError:
    """The error for a pattern that matches none of `names`, showing the nearest ones.

    Args:
        what: the kind of thing looked for, in the singular.
        pattern: what the caller asked for.
        names: all that could have matched, may be empty.
    Example:
        >>> print(no_match("site", "conv9", ["conv1", "conv2", "fc"]))
        no site matches 'conv9'; near names: conv2, conv1 (3 in all)
    """
    if not names:
        return SiteError(f"no {what} matches {pattern!r}; there is no {what} at all")
    near = difflib.get_close_matches(pattern, names, n=_NAMES_SHOWN) or names[:_NAMES_SHOWN]
    listed = ", ".join(map(one_line, near))
    return SiteError(f"no {what} matches {pattern!r}; near names: {listed} ({len(names)} in all)")


Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Batch = Annotated[int, Ge(1), Le(2**20)]
"""Samples in a pass; an exported graph takes no more."""
Seed = Annotated[int, Ge(0), Lt(2**63)]
Share = Annotated[float, Gt(0), Lt(1)]
Fraction = Annotated[float, Gt(0), Le(1)]
BelowOne = Annotated[float, Ge(0), Lt(1)]
NonNegative = Annotated[float, Ge(0)]
_AboveOne = Annotated[float, Gt(1)]

_LIMITS = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
WORDS: Mapping[Any, str] = {int: "an integer", float: "a number", str: "a text", bool: "true or false", Path: "a path"}

_Defined = TypeVar("_Defined", bound=Callable[..., Any])
_LONGEST, _MOST_SHOWN = 80, 4
_DATA = frozenset(["Inputs", "Tensor", "DataFrame"])  # names of the classes that hold data
_INT64 = 2**63  # what torch and Parquet hold

_unchecked: dict[Any, Any] = {}  # functions with checks, and without

_Fit = Callable[[Any], Any]
"""Returns a value as the annotation has it, a number of numpy as one of Python; raises `_Misfit` for any other."""

_HOW = {
    "Program": "capture the model first: hoplon.capture(model, example)",
    "Module": "give the torch.nn.Module itself, or wrap a function in one that calls it in forward",
    "Protection": "such as hoplon.TMR()",
    "When": "such as hoplon.runtime.EveryForward()",
    "Tensor": "torch.as_tensor makes one from an array",
    "Inputs": "hoplon.Inputs(x, y) makes them",
    "Values": "select sites by name or kind, as in hoplon.Values(kind='conv') or hoplon.Memory('conv1.weight')",
    "Ranges": "hoplon.profile_ranges(program, data) makes them",
    "Scores": "make scores with hoplon.importance, such as taylor(program, data, loss=loss)",
    "FaultTable": "draw one with Campaign(...).draw(count=..., seed=...)",
    "HardenedModule": "hoplon.harden(program, protections) makes one",
}
"""Ways to what some classes hold, by name of the class."""


class _Misfit(Exception):  # noqa: N818 -- never leaves this module
    """A value that an annotation does not take."""


def checked(defined: _Defined) -> _Defined:
    """Have a function, or the constructor and public methods of a class, refuse arguments that their annotations do.

    A number of numpy becomes one of Python, a text a path, a list a tuple, where that is what the annotation says;
    all other values are handed on as they are. A missing or unknown keyword is Python's own ``TypeError``.

    Example:
        >>> @checked
        ... def draw(count: Count, *, seed: int = 0) -> int:
        ...     return count
        >>> draw(2.5)
        Traceback (most recent call last):
        hoplon.errors.HoplonError: expected count of draw to be an integer of at least 1, got 2.5
    """
    if not inspect.isclass(defined):
        return _checked(defined, defined.__name__, _hints_of(defined))  # type: ignore[no-any-return]
    generated = dataclasses.is_dataclass(defined) and "__init__" in vars(defined)
    for name, member in list(vars(defined).items()):
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if (name.startswith("_") and name != "__init__") or not inspect.isfunction(function):
            continue
        fields = generated and name == "__init__"
        label = defined.__name__ if name == "__init__" else f"{defined.__name__}.{name}"
        wrapped = _checked(function, label, _hints_of(defined if fields else function))
        setattr(defined, name, wrapped if function is member else type(member)(wrapped))
    return defined


def _hints_of(annotated: Any) -> Callable[[], Mapping[str, Any]]:
    return lambda: get_type_hints(annotated, include_extras=True)


def _checked(function: Any, label: str, hints: Callable[[], Mapping[str, Any]]) -> Any:
    parameters = inspect.signature(function).parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if all(one.annotation is one.empty or one.kind in several for one in parameters):
        return function  # there is nothing to check, and to look takes a part of what a small check of memory does
    by_place = [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    annotations: dict[str, Any] = {}
    fits: dict[str, _Fit] = {}  # filled by the first call: annotations may name what is defined later

    def fitted(given: tuple[Any, ...], named: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        if not fits:
            known = hints()
            annotations.update({one.name: known[one.name] for one in parameters if one.name in known})
            fits.update({name: _fit(annotation) for name, annotation in annotations.items()} or {"": _any})
        places = list(given)
        for place, (name, value) in enumerate(zip(by_place, given, strict=False)):
            if name in fits:
                places[place] = _fitted(name, value)
        return places, {name: _fitted(name, value) if name in fits else value for name, value in named.items()}

    def _fitted(name: str, value: Any) -> Any:
        try:
            return fits[name](value)
        except _Misfit:
            raise refused(f"{name} of {label}", annotations[name], value) from None

    def checked_call(*given: Any, **named: Any) -> Any:
        given, named = fitted(given, named)  # type: ignore[assignment]
        return function(*given, **named)

    # the globals are those of the function, so that doctest finds its examples where they are written
    own = types.FunctionType(
        checked_call.__code__, inspect.unwrap(function).__globals__, "", None, checked_call.__closure__
    )
    _unchecked[wraps(function)(own)] = function
    return own


def unchecked(function: _Defined) -> _Defined:
    """A function without the checks that :func:`checked` put around it, for arguments that are known to be right."""
    return cast("_Defined", _unchecked.get(function, function))


def refused(name: str, annotation: Any, value: Any) -> HoplonError:
    """Return the error for a value that an annotation does not take."""
    kind = HoplonError if _DATA.isdisjoint(map(_name, _leaves(annotation))) else DataError
    return kind(f"expected {name} to be {words(annotation)}, got {shown(value)}{_way_out(annotation, value)}")


def fits(annotation: Any, value: Any) -> bool:
    """Tell whether an annotation takes a value."""
    try:
        _fit(annotation)(value)
    except _Misfit:
        return False
    return True


def shown(value: Any) -> str:
    """Return a value as messages show it: plain ones as they are written, others by their type.

    Example:
        >>> shown("a"), shown(int), shown([1, "b"]), shown({1: 2}), shown(object())
        ("'a'", 'the class int', "[1, 'b']", 'a dict of 1', 'a value of type object')
    """
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, str | bytes | Real):
        text = repr(value)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    if isinstance(value, list | tuple):
        if len(value) <= _MOST_SHOWN:
            inner = ", ".join(map(shown, value))
            return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {len(value)}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    return f"a value of type {type(value).__name__}"


def words(annotation: Any) -> str:
    """Return what an annotation takes, in words.

    Example:
        >>> words(Count | None), words(Sequence[str]), words(Literal["a", "b"])
        ('an integer of at least 1 or None', 'a sequence (each a text)', "'a' or 'b'")
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return words(parts[0]) + limits_in_words(annotation)
    if _is_array(annotation):
        return "an array of numbers" + (" or None" if types.NoneType in parts else "")
    if origin in (Union, types.UnionType):
        texts = (str,) if any(map(_is_path, parts)) else ()
        return " or ".join(dict.fromkeys(words(part) for part in parts if part not in texts))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if annotation in (types.NoneType, Any):
        return "None" if annotation is types.NoneType else "anything"
    if _is_path(annotation):
        return "a path"
    if origin is tuple and parts and parts[-1] is not Ellipsis:
        return f"a tuple of {len(parts)} ({', '.join(map(words, parts))})"
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return f"a mapping from {words(parts[0])} to {words(parts[1])}"
    if inspect.isclass(origin) and issubclass(origin, Iterable) and parts:
        kind = "an iterable" if origin is Iterable else "a sequence"
        return kind if parts[0] is Any else f"{kind} (each {words(parts[0])})"
    if origin is Callable or annotation is Callable:
        return "a function"
    name = _name(origin or annotation) or str(annotation)
    article = "" if name.endswith("s") else "an " if name[:1] in "AEIOU" else "a "
    return WORDS.get(annotation) or article + name


def limits_in_words(annotation: Any) -> str:
    """Return the limits of an annotated number, such as " of at least 1"."""
    found = [
        f" {text} {getattr(limit, key)}"
        for limit in annotation.__metadata__
        for key, text in _LIMITS.items()
        if math.isfinite(getattr(limit, key, math.inf))
    ]
    return " and".join(found)


def _way_out(annotation: Any, value: Any) -> str:
    """What to write instead, where that can be told from what was given."""
    leaves = _leaves(annotation)
    if inspect.isclass(value) and any(inspect.isclass(leaf) and leaf in value.__mro__ for leaf in leaves):
        return f"; give an instance: {value.__name__}(...)"
    parts = [part for one in _members(annotation) for part in get_args(one)[:1] if _is_several(one) and part is not Any]
    if any(fits(part, value) for part in parts):
        return "; put it in a list"
    shares = (Share, Fraction, Share | None, Fraction | None)
    if annotation in shares and (isinstance(value, str) or fits(_AboveOne, value)):
        return "; 0.01 is one percent"
    return next((f"; {_HOW[_name(leaf)]}" for leaf in leaves if _name(leaf) in _HOW), "")


def _name(annotation: Any) -> str:
    return getattr(annotation, "__name__", "")


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _leaves(annotation: Any) -> list[Any]:
    parts = [] if get_origin(annotation) in (Literal, Callable) else get_args(annotation)
    return [leaf for part in parts for leaf in _leaves(part)] if parts else [annotation]


def _is_several(annotation: Any) -> bool:
    origin = get_origin(annotation)
    return inspect.isclass(origin) and issubclass(origin, Iterable) and not issubclass(origin, Mapping)


def _fit(annotation: Any) -> _Fit:
    """What fits an annotation; anything where that cannot be told, such as for a type variable."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _within(_fit(parts[0]), [note for note in parts[1:] if isinstance(note, Ge | Gt | Le | Lt)])
    if _is_array(annotation):
        return _first_of([_instance(types.NoneType), _numbers] if types.NoneType in parts else [_numbers])
    if origin in (Union, types.UnionType):
        texts = (str,) if any(map(_is_path, parts)) else ()  # a path says more of a text
        return _first_of([_fit(part) for part in parts if part not in texts])
    if origin is Literal:
        return _one_of(parts)
    if _is_path(annotation):
        return _path if annotation is not Path else lambda value: Path(_path(value))
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if origin is Callable or annotation is Callable:
        return _callable
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return _mapping(origin, _fit(parts[0]), _fit(parts[1]))
    if origin is tuple and parts[-1] is not Ellipsis:
        return _row([_fit(part) for part in parts])
    if _is_several(annotation) and parts:
        return _several(origin, _fit(parts[0]))
    kind = origin or annotation
    is_protocol = getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False)
    return _instance(kind) if inspect.isclass(kind) and not is_protocol else _any


def _any(value: Any) -> Any:
    return value


def _instance(kind: type) -> _Fit:
    def fit(value: Any) -> Any:
        if not isinstance(value, kind):
            raise _Misfit
        return value

    return fit


def _integer(value: Any) -> int:
    if type(value) is int and -_INT64 <= value < _INT64:  # nearly always
        return value
    if isinstance(value, bool) or not isinstance(value, Integral) or not -_INT64 <= int(value) < _INT64:
        raise _Misfit
    return int(value)


def _number(value: Any) -> Any:
    if type(value) in (int, float):  # nearly always
        if value != value:
            raise _Misfit
        return value
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
        raise _Misfit
    return float(value)


def _numbers(value: Any) -> Any:
    import numpy as np

    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # ragged rows, tensors elsewhere
        raise _Misfit from None
    if array.dtype.kind not in "biuf" or isinstance(value, bool):
        raise _Misfit
    return array


def _truth(value: Any) -> bool:
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):  # of numpy
        raise _Misfit
    return bool(value)


def _path(value: Any) -> Any:
    if not isinstance(value, str | os.PathLike) or "\0" in str(value) or not str(value):
        raise _Misfit
    return value


def _callable(value: Any) -> Any:
    if not callable(value):
        raise _Misfit
    return value


_PLAIN: Mapping[Any, _Fit] = {int: _integer, float: _number, bool: _truth, Any: _any, object: _any}


def _is_path(annotation: Any) -> bool:
    return annotation is Path or annotation is os.PathLike or get_origin(annotation) is os.PathLike


def _is_array(annotation: Any) -> bool:
    """Return True for numpy's array, and for its ``ArrayLike``, a union of protocols, alone or in a larger union."""
    names = {getattr(get_origin(part) or part, "__name__", "") for part in (annotation, *_members(annotation))}
    return not names.isdisjoint(("ndarray", "_SupportsArray"))


def _within(fit: _Fit, limits: Sequence[Any]) -> _Fit:
    compared = {Ge: operator.ge, Gt: operator.gt, Le: operator.le, Lt: operator.lt}
    rules = [(compared[type(limit)], getattr(limit, type(limit).__name__.lower())) for limit in limits]

    def fit_within(value: Any) -> Any:
        value = fit(value)
        if not all(holds(value, limit) for holds, limit in rules):
            raise _Misfit
        return value

    return fit_within


def _first_of(fits: Sequence[_Fit]) -> _Fit:
    def fit(value: Any) -> Any:
        for one in fits:
            try:
                return one(value)
            except _Misfit:
                continue
        raise _Misfit

    return fit


def _one_of(values: Sequence[Any]) -> _Fit:
    def fit(value: Any) -> Any:
        for one in values:
            if type(value) is type(one) and value == one:
                return one
            if type(one) is int and type(value) is not bool and isinstance(value, Integral) and value == one:
                return one
        raise _Misfit

    return fit


def _mapping(kind: type[Mapping[Any, Any]], fit_key: _Fit, fit_value: _Fit) -> _Fit:
    def fit(value: Any) -> Any:
        if not isinstance(value, kind):
            raise _Misfit
        fitted = {fit_key(key): fit_value(one) for key, one in value.items()}
        same = all(one is fitted[key] for key, one in value.items())
        return value if same else fitted

    return fit


def _row(fits: Sequence[_Fit]) -> _Fit:
    def fit(value: Any) -> Any:
        if not isinstance(value, tuple | list) or len(value) != len(fits):
            raise _Misfit
        return tuple(one(part) for one, part in zip(fits, value, strict=True))

    return fit


def _several(kind: type[Iterable[Any]], fit_one: _Fit) -> _Fit:
    """Several values; a row of numbers may be an array, a tuple may be written as a list."""
    wanted: type[Iterable[Any]] = Sequence if kind in (tuple, list) else kind

    def fit(value: Any) -> Any:
        if getattr(value, "ndim", 0) == 1 and hasattr(value, "tolist"):
            value = value.tolist()
        if isinstance(value, str | bytes) or not isinstance(value, wanted):
            raise _Misfit
        if fit_one is _any:
            return tuple(value) if kind is tuple and not isinstance(value, tuple) else value
        fitted = [fit_one(one) for one in value]
        if kind is tuple:
            return value if isinstance(value, tuple) and all(map(operator.is_, value, fitted)) else tuple(fitted)
        if isinstance(value, Collection) and all(map(operator.is_, value, fitted)):
            return value
        return fitted

    return fit
