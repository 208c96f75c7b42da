"""Commands on stored data: SQL queries, and packing labelled crops."""

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from dptr.cache.choices import AnswerForm
from dptr.cache.command_line import Report, command, command_group
from dptr.cache.errors import UserError
from dptr.cache.options import WORKSPACE, OrpFolder, PromptsFolder, WorkspaceFolder
from dptr.cache.stores.files import require_replaceable
from dptr.cache.workspace import Workspace

commands = command_group()


@command(commands, "sql", "Inspect")
def sql(
    query: Annotated[str | None, typer.Argument(help="SQL query; without it, an interactive shell.")] = None,
    *,
    workspace: WorkspaceFolder = WORKSPACE,
    form: Annotated[
        AnswerForm | None, typer.Option("--format", help="Output format; default: by the suffix of -o, else table.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the result to this file.")] = None,
    view_file: Annotated[
        Path | None, typer.Option("--open", help="Write the views to a DuckDB file for other clients.")
    ] = None,
    prompts: PromptsFolder = None,
    orp: OrpFolder = None,
) -> Report[None]:
    """Query stores, runs and predictions with DuckDB.

    Views: prompts, crops, neighbours, rejected_…, runs, metrics, predictions.

    Example: dptr sql "select label, n_tokens from prompts order by n_tokens desc limit 10"
    """
    from dptr.cache.sql import ask, connect, form_of, write_answer, write_views

    started = time.monotonic()
    place = Workspace.at(workspace, prompts, orp)
    for written in (out, view_file):
        if written is not None:
            require_replaceable(written)
    if view_file is not None:
        if query is not None or out is not None:
            raise UserError("--open writes views and runs no query", "Give either a query or --open")
        names = write_views(place, view_file)
        figures = {"out": str(view_file), "views": names, "rows": len(names)}
        return Report({**figures, "seconds": time.monotonic() - started}, f"{view_file}: {', '.join(names)}")
    form = form or (form_of(out) if out else "table")
    if out is not None and query is None:
        raise UserError("no query to write the result of", 'Give one: dptr sql "from prompts" -o FILE')
    figures = {"out": str(out or place.root)}
    if query is None:
        _prompt(place)
        return Report({**figures, "rows": 0, "seconds": time.monotonic() - started})
    connection = connect(place)
    if out is None:
        answer = ask(connection, query)
        return Report({**figures, "seconds": time.monotonic() - started}, answer=answer, form=form)
    rows = write_answer(connection, query, form, out)
    return Report({**figures, "rows": rows, "seconds": time.monotonic() - started}, f"{rows:,} rows in {out}")


def _prompt(workspace: Workspace) -> None:
    """Open DuckDB's own shell on a terminal where it is installed, else run queries line by line."""
    from dptr.cache.sql import connect, prompt, write_views

    shell = shutil.which("duckdb")
    if shell is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        prompt(connect(workspace))
        return
    with tempfile.TemporaryDirectory(prefix="dptr-sql-") as folder:
        file = Path(folder) / "dptr.duckdb"
        write_views(workspace, file)
        # Ctrl-C belongs to the shell, which would inherit SIG_IGN but not a handler.
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            subprocess.run([shell, "-readonly", str(file)], check=False)
        finally:
            signal.signal(signal.SIGINT, before)


@command(commands, "pack-crops", "Share")
def pack_crops(
    folder: Annotated[Path, typer.Argument(help="Labelled crops in any accepted format.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A .lmdb or .parquet file.")],
) -> Report[None]:
    """Pack labelled crops into one LMDB or Parquet file.

    Example: dptr pack-crops crops/ -o crops.lmdb
    """
    from dptr.cache.crops.dataset import pack_crops as pack

    require_replaceable(out)
    summary = pack(folder, out)
    rejected, examples = summary.rejected, summary.rejected.examples
    lines = [
        f"rejected: {count:,} crops, {reason} (such as {examples[reason][0]})"
        for reason, count in rejected.counts.items()
    ]
    return Report(
        {"out": str(out), "rows": summary.rows, "computed": summary.rows, "quarantined": rejected.total},
        "\n".join([*lines, f"{summary.rows:,} crops in {out}"]),
    )
