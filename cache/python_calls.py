"""Calls from Python: arguments are checked by their annotations, and errors name arguments instead of options."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ParamSpec, TypeVar, get_args

from dptr.cache.errors import DptrError, UserError

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]*)")
_COMMAND = re.compile(r"`dptr (embed-text|build-orp-bank|pretrain|finetune)[^`]*`")
_KEYWORDS = {"from": "from_"}


def checked(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Make a function raise :class:`UserError` for arguments that do not match its signature or annotations.

    Values are not converted: neither "5" nor True is an int. Errors of the function name arguments instead of options.
    """

    @functools.wraps(function)
    def call(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        from pydantic import ValidationError

        try:
            with errors_in_python():
                result: _Result = _validated(function)(*args, **kwargs)
                return result
        except ValidationError as error:
            raise UserError(_what_is_wrong(function, error), f"See help(dptr.{function.__qualname__})") from None

    return call


@contextmanager
def errors_in_python() -> Iterator[None]:
    """Make errors name arguments and functions of the Python API instead of options and commands."""
    try:
        yield
    except DptrError as error:
        raise type(error)(in_python(error.problem), in_python(error.advice)) from error


def in_python(text: str) -> str:
    """Return a text with arguments and functions of the Python API instead of options and commands."""
    text = _COMMAND.sub(lambda found: f"dptr.{found[1].replace('-', '_')}(…)", text)
    return _OPTION.sub(lambda found: _KEYWORDS.get(found[1], found[1].replace("-", "_")), text)


@functools.cache
def _validated(function: Callable[..., Any]) -> Callable[..., Any]:
    from pydantic import ConfigDict, Field, validate_call

    # A copy without the return annotation, whose type may import heavy libraries.
    parts = (function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    bare = types.FunctionType(*parts)
    bare.__dict__.update(function.__dict__)
    bare.__kwdefaults__ = function.__kwdefaults__
    bare.__qualname__, bare.__module__ = function.__qualname__, function.__module__
    bare.__annotations__ = {name: kind for name, kind in function.__annotations__.items() if name != "return"}
    for name, kind in bare.__annotations__.items():
        for option in getattr(kind, "__metadata__", ()):
            limits = Field(ge=getattr(option, "min", None), le=getattr(option, "max", None))
            bare.__annotations__[name] = Annotated[get_args(kind)[0], limits]
            break
    return validate_call(config=ConfigDict(strict=True, arbitrary_types_allowed=True))(bare)


def _what_is_wrong(function: Callable[..., Any], error: Any) -> str:
    found = error.errors(include_url=False)
    names = list(inspect.signature(function).parameters)
    first = found[0]
    place = first["loc"][0]
    name = names[place] if isinstance(place, int) and place < len(names) else str(place)
    if first["type"] == "unexpected_keyword_argument":
        near = difflib.get_close_matches(name, names, 1)
        return f"{function.__name__} takes no argument {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    if first["type"].startswith("missing"):
        return f"{function.__name__} needs the argument {name!r}"
    if first["type"] == "unexpected_positional_argument":
        return f"{function.__name__} takes fewer positional arguments: {_short(first['input'])} has no name"
    reasons = dict.fromkeys(one["msg"].removeprefix("Input should be ") for one in found if one["loc"][0] == place)
    return f"{function.__name__}: {name}={_short(first['input'])} should be {' or '.join(reasons)}"


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
