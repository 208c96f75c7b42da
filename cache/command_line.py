"""Common parts of commands: shared options, printing, and the Python function of each command.

A command is one function beside its stage. Its signature declares options, help and documentation: :func:`command`
registers it for the command line and returns it as a function of the Python API. ``cli.py`` puts the stages together
and fixes the exit codes.

That function checks its arguments by their annotations, and its errors name arguments in place of options.
"""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import io
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
)

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.models import OptionInfo

from dptr.cache import processes
from dptr.cache.choices import AnswerForm
from dptr.cache.errors import DptrError, TooManyRejected, UserError
from dptr.cache.options import COMMAND_LINE_ONLY, WORKSPACE, AnyPath, Paths, Texts, WorkspaceFolder
from dptr.cache.printing import plain_json, visible
from dptr.cache.processes import start_no_more_threads_than_usable
from dptr.cache.progress import set_quiet
from dptr.cache.stores import checks

if TYPE_CHECKING:
    from dptr.cache.sql import Answer


_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

#: Panels of `dptr --help`, in this order.
CommandPanel = Literal["Get started", "Read", "Train", "Stage 1: embeddings", "Inspect", "Share"]

#: Panel of a command's help -> its parameters; parameters that are not listed are in the panel of the data.
_OPTION_PANELS = {
    "Data": "",
    "Model": "from_ encoder decoder fmu clip lexicon precision embeddings context half protocol single_view",
    "Training": "recipe steps seed noise sampling set yes track",
    "Output": "out form view_file to dtype shard_rows max_bad dry_run private license as_json",
    "Machine": "device batch_size workers part engine address engine_workers",
    "Common": "workspace quiet debug no_check help",
}
_PANEL_OF = {name: panel for panel, names in _OPTION_PANELS.items() for name in names.split()}
#: Words for values in help texts, in place of the types of Python.
_METAVARS: dict[object, str] = {Path: "PATH", str: "TEXT", int: "N", float: "X", bool: ""}
#: Types of parameters -> those in which the command line gives them.
_ON_THE_COMMAND_LINE: dict[object, Any] = {
    AnyPath: Path,
    Paths: list[Path],
    Texts: list[str],
    Mapping[str, object] | Sequence[str]: list[str],
}

_COMMON = {
    "as_json": Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")],
    "quiet": Annotated[bool, typer.Option("--quiet", help="Print no progress and no notes.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show tracebacks.")],
    "no_check": Annotated[
        bool, typer.Option("--no-check", envvar="DPTR_NO_CHECK", help="Skip the hash check of stored files.")
    ],
}
_RAISES = "Raises:\n    DptrError: an argument, an input or a setting is wrong, or stored data is damaged."


@dataclass
class Report(Generic[_Result]):
    """Result of a command.

    Attributes:
        figures: the object that ``--json`` prints. text: the output for people.
        result: makes what the function returns in Python; None: nothing.
        problems: unusable inputs, one line each; if there are any, the exit code is 4.
        rows: figures and text, printed one by one; figures and problems are complete after the last one.
        answer: a query's result, printed block by block, so that it need not fit into memory.
        form: of the answer where it is no ``--json``.
    """

    figures: dict[str, Any]
    text: str = ""
    result: Callable[[], _Result] | None = None
    problems: list[str] = field(default_factory=list)
    rows: Iterable[tuple[dict[str, Any], str]] = ()
    answer: Answer | None = None
    form: AnswerForm = "table"


def _without_type(parameter: Any) -> None:
    """Make help texts show a word for an option's value, without a range, and nothing after an argument's name."""
    parameter._get_number_range_help_str = lambda: None
    if isinstance(parameter, TyperArgument):
        parameter.metavar = parameter.metavar or str(parameter.name).upper()
        parameter.display_type_rich = lambda ctx: ""  # type: ignore[method-assign]
    elif parameter.metavar is None and not parameter.type_descriptor.is_choice:
        kind = parameter.type_descriptor.annotation
        parameter.metavar = _METAVARS.get(get_args(kind)[0] if get_args(kind) else kind)


class _Command(TyperCommand):
    """A command whose help groups options."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return arguments, then options in the order of their panels."""
        parameters = super().get_params(ctx)
        for parameter in parameters:
            _without_type(parameter)
            if isinstance(parameter, TyperOption):
                parameter.rich_help_panel = _PANEL_OF.get(str(parameter.name), "Data")
        panels = [None, *_OPTION_PANELS]
        return sorted(parameters, key=lambda parameter: panels.index(getattr(parameter, "rich_help_panel", None)))


class _Group(TyperGroup):
    """Commands in the order of their panels."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options of ``dptr`` itself."""
        parameters = super().get_params(ctx)
        for parameter in parameters:
            _without_type(parameter)
        return parameters

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands."""
        panels = get_args(CommandPanel)
        return sorted(self.commands, key=lambda name: panels.index(getattr(self.commands[name], "rich_help_panel", "")))


def command_group(help: str | None = None) -> typer.Typer:
    """Return an empty command group; the one with ``text``, the root, supports shell completion."""
    return typer.Typer(
        help=help,
        add_completion=help is not None,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        cls=_Group,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def command(
    group: typer.Typer, name: str, panel: CommandPanel, in_several_processes: bool = False
) -> Callable[[Callable[_Parameters, Report[_Result]]], Callable[_Parameters, _Result]]:
    """Register a function as a command with the common options, and return the function for programs.

    The returned function gives what :attr:`Report.result` makes, and its errors name arguments.

    Args:
        group: the commands of its stage. panel: its heading in the list of commands.
        in_several_processes: whether torchrun may start it.
    """

    def register(function: Callable[_Parameters, Report[_Result]]) -> Callable[_Parameters, _Result]:
        parameters = inspect.signature(function).parameters
        options = [_option(parameter) for parameter in parameters.values()]
        added = {**_COMMON, **({} if "workspace" in parameters else {"workspace": WorkspaceFolder})}

        def run(as_json: bool, quiet: bool, debug: bool, no_check: bool, **arguments: Any) -> None:
            set_quiet(quiet)
            checks.turn_off(no_check)
            if in_several_processes:
                processes.hush_torch()
            else:
                processes.require_alone(name)
            if "workspace" not in parameters:
                del arguments["workspace"]
            with checks.before_ending():
                report = function(**arguments)  # type: ignore[call-arg]
            if not processes.rank():
                print_report(name, report, as_json)
            if report.problems:
                raise typer.Exit(TooManyRejected.exit_code)

        keyword = inspect.Parameter.KEYWORD_ONLY
        defaults = {"workspace": WORKSPACE}
        options += [
            _option(inspect.Parameter(n, keyword, default=defaults.get(n, False), annotation=a))
            for n, a in added.items()
        ]
        run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in options}
        run.__doc__ = function.__doc__
        group.command(name, cls=_Command, rich_help_panel=panel)(run)
        return _python_function(function)

    return register


def _marks(parameter: inspect.Parameter) -> tuple[Any, ...]:
    return getattr(parameter.annotation, "__metadata__", ())


def _option(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return a function's parameter as typer takes it."""
    declared, info = get_args(parameter.annotation)[:2]
    types = [kind for kind in get_args(declared) if kind is not type(None)]
    required = Union[*types] if get_origin(declared) in (Union, UnionType) else declared
    parsed = _ON_THE_COMMAND_LINE.get(required, required)
    if get_origin(parsed) is list and isinstance(info, OptionInfo):
        info = copy.copy(info)
        info.help = f"{(info.help or '').rstrip('.')}; repeatable."
    return parameter.replace(
        kind=inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[parsed | None if required != declared else parsed, info],
    )


def _python_function(function: Callable[_Parameters, Report[_Result]]) -> Callable[_Parameters, _Result]:
    """Return a command as a function for programs, with its options' help as documentation."""
    given = inspect.signature(function).parameters.values()
    parameters = [parameter for parameter in given if COMMAND_LINE_ONLY not in _marks(parameter)]

    def call(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        # No effect if torch is already loaded: its threads are then the caller's choice.
        start_no_more_threads_than_usable()
        report = function(*args, **kwargs)
        return cast(_Result, report.result and report.result())

    call.__name__ = call.__qualname__ = function.__name__
    call.__module__ = function.__module__
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    parts = [get_args(p.annotation) for p in parameters]
    plain = [p.replace(annotation=declared) for p, (declared, *_) in zip(parameters, parts, strict=True)]
    call.__signature__ = inspect.Signature(plain)  # type: ignore[attr-defined]
    described = [f"    {p.name}: {in_python(info.help)}" for p, (_, info, *_) in zip(parameters, parts, strict=True)]
    said = inspect.getdoc(function) or ""
    call.__doc__ = "\n".join([said.split("Example:")[0].rstrip(), "", "Args:", *described, "", _RAISES])
    return checked(call)


def figures_of(summary: Any) -> dict[str, Any]:
    """A summary's plain fields, for JSON."""
    return {key: value for key, value in vars(summary).items() if key not in ("table", "coverage")}


def print_report(name: str, report: Report[Any], as_json: bool) -> None:
    """Print a command's result on stdout and its unusable inputs on stderr."""
    for row, text in report.rows:
        # Flushed for readers of a pipe.
        print(plain_json(row) if as_json else text, flush=True)
    for problem in report.problems:
        print(f"error: {visible(problem)}", file=sys.stderr)
    if report.answer is not None:
        _print_answer(name, report.answer, report, as_json)
        return
    if not as_json:
        if report.text:
            print(report.text)
        return
    figures = report.figures
    if figures.get("seconds") and "computed" in figures:
        figures["rows_per_second"] = figures["computed"] / figures["seconds"]
    print(plain_json({"command": name, **figures}))


def _print_answer(name: str, answer: Answer, report: Report[Any], as_json: bool) -> None:
    from dptr.cache.sql import json_pieces, text_pieces

    if not as_json:
        for piece in text_pieces(answer, report.form):
            print(piece, end="")
        return
    for piece in json_pieces(answer, {"command": name, **report.figures}):
        print(piece, end="")
    print()


def require_no_empty_argument(arguments: Sequence[str]) -> None:
    """Check that no argument is empty: an empty path would be the current folder.

    Raises:
        UserError: one is.
    """
    for position, argument in enumerate(arguments):
        if not argument or re.fullmatch(r"--[a-z-]+=", argument):
            where = argument or (f"after {arguments[position - 1]}" if position else "the first")
            raise UserError(f"an argument is empty: {where}", "Check whether a shell variable is unset, or remove it")


def open_missing_streams() -> None:
    """Open the null device for each standard stream that the caller closed, as ``2>&-`` does in a shell."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def speak_utf8() -> None:
    """Read and write UTF-8 regardless of the locale: texts are in any script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper) and sys.stdin.encoding.lower() != "utf-8":
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")


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
