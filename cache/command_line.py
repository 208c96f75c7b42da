"""What all commands share: their common options, what they are given, and how they print.

A command is a function ``(workspace, ...) -> Report`` beside its stage; :func:`command` adds the common options.
``cli.py`` puts the stages together and fixes the exit codes.
"""

import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, get_args

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from dptr.cache import launched, plain_json
from dptr.cache.choices import AnswerForm
from dptr.cache.errors import TooManyRejected, UserError
from dptr.cache.progress import set_quiet
from dptr.cache.stores import checks
from dptr.cache.visible import visible
from dptr.cache.workspace import Workspace

if TYPE_CHECKING:
    from dptr.cache.sql.query import Answer

_Parameters = ParamSpec("_Parameters")

#: Under which heading `dptr --help` lists a command, in this order.
CommandPanel = Literal["Get started", "Read", "Train", "Stage 1: embeddings", "Inspect", "Share"]

#: Heading of an option in a command's help -> the parameters that stand under it; those not listed are of the data.
_OPTION_PANELS = {
    "Data": "",
    "Model": "start encoder decoder fmu clip lexicon precision embeddings context half protocol single_view",
    "Training": "recipe steps seed noise sampling changes yes track",
    "Output": "out form view_file to dtype shard_rows max_bad dry_run private licence as_json",
    "Machine": "device batch_size workers part engine address engine_workers",
    "Common": "workspace quiet debug no_check help",
}
_PANEL_OF = {name: panel for panel, names in _OPTION_PANELS.items() for name in names.split()}
#: Words for values in help texts, in place of the types of Python.
_METAVARS: dict[object, str] = {Path: "PATH", str: "TEXT", int: "N", float: "X", bool: ""}

_COMMON = {
    "workspace": Annotated[
        Path, typer.Option(envvar="DPTR_WORKSPACE", help="Folder that holds stores and runs.", show_default=True)
    ],
    "as_json": Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")],
    "quiet": Annotated[bool, typer.Option("--quiet", help="Print no progress and no notes.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show tracebacks.")],
    "no_check": Annotated[
        bool, typer.Option("--no-check", envvar="DPTR_NO_CHECK", help="Skip the hash check of stored files.")
    ],
}
_DEFAULTS = {"workspace": Path("dptr_data"), "as_json": False, "quiet": False, "debug": False, "no_check": False}


@dataclass
class Report:
    """What a command came to.

    Attributes:
        figures: for programs: the object that ``--json`` prints. text: for people.
        lines: objects that ``--json`` prints before it, one a line.
        problems: inputs that could not be used, one line each; with any, the command ends with exit code 4.
        rows: the same and their text for people, printed as they come; figures and problems are whole behind them.
        answer: a query's result, printed as it comes, so that it need not fit into memory.
        form: of the answer where it is no ``--json``.
    """

    figures: dict[str, Any]
    text: str = ""
    lines: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    rows: Iterable[tuple[dict[str, Any], str]] = ()
    answer: "Answer | None" = None
    form: AnswerForm = "table"


def _without_type(parameter: Any) -> None:
    """Have help texts show a word for an option's value, and nothing behind an argument's name."""
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
    """Return an empty set of commands; the one with a text of its own, the whole, completes itself in a shell."""
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
) -> Callable[[Callable[_Parameters, Report]], Callable[_Parameters, Report]]:
    """Add a function as a command with the common options; ``in_several_processes`` if torchrun may start it.

    ``panel`` is its heading in the list of commands.

    Its parameters become options, but for ``workspace`` (:class:`Workspace`), which it gets from here.
    """

    def register(function: Callable[_Parameters, Report]) -> Callable[_Parameters, Report]:
        parameters = inspect.signature(function).parameters

        def run(
            workspace: Path,
            as_json: bool,
            quiet: bool,
            debug: bool,
            no_check: bool,
            **arguments: Any,
        ) -> None:
            set_quiet(quiet)
            filled_in: dict[str, Any] = {"workspace": Workspace(workspace)} if "workspace" in parameters else {}
            checks.turn_off(no_check)
            if in_several_processes:
                launched.hush_torch()
            else:
                launched.require_alone(name)
            with checks.before_ending():
                report = function(**filled_in, **arguments)  # type: ignore[call-arg]
            if not launched.rank():
                print_report(name, report, as_json)
            if report.problems:
                raise typer.Exit(TooManyRejected.exit_code)

        keyword = inspect.Parameter.KEYWORD_ONLY
        options = [p.replace(kind=keyword) for p in parameters.values() if p.name != "workspace"]
        options += [inspect.Parameter(n, keyword, default=_DEFAULTS[n], annotation=a) for n, a in _COMMON.items()]
        run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in options}
        run.__doc__ = function.__doc__
        group.command(name, cls=_Command, rich_help_panel=panel)(run)
        return function

    return register


def figures_of(summary: Any) -> dict[str, Any]:
    """A summary's plain fields, for JSON."""
    return {key: value for key, value in vars(summary).items() if key not in ("table", "coverage")}


def print_report(name: str, report: Report, as_json: bool) -> None:
    """Print what a command came to on stdout, and what it could not use on stderr."""
    for row, text in report.rows:
        # Whoever reads a pipe gets each as it comes.
        print(plain_json.dumps(row) if as_json else text, flush=True)
    for problem in report.problems:
        print(f"error: {visible(problem)}", file=sys.stderr)
    if report.answer is not None:
        _print_answer(name, report.answer, report, as_json)
        return
    if not as_json:
        if report.text:
            print(report.text)
        return
    for line in report.lines:
        print(plain_json.dumps(line))
    figures = report.figures
    if figures.get("seconds") and "computed" in figures:
        figures["rows_per_second"] = figures["computed"] / figures["seconds"]
    print(plain_json.dumps({"command": name, **figures}))


def _print_answer(name: str, answer: "Answer", report: Report, as_json: bool) -> None:
    from dptr.cache.sql.query import json_pieces, text_pieces

    if not as_json:
        for piece in text_pieces(answer, report.form):
            print(piece, end="")
        return
    for piece in json_pieces(answer, {"command": name, **report.figures}):
        print(piece, end="")
    print()


def require_no_empty_argument(arguments: Sequence[str]) -> None:
    """Check that no argument is empty: as a path it would be the current folder.

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
    """Write and read UTF-8, whatever the locale says: texts are in any script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper) and sys.stdin.encoding.lower() != "utf-8":
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
