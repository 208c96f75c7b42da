"""Commands on what is on disk: questions, and labelled crops in another form."""

import time
from pathlib import Path
from typing import Annotated

import typer

from dptr.cache.choices import AnswerForm
from dptr.cache.command_line import Report, command, command_group
from dptr.cache.errors import UserError
from dptr.cache.options import OrpFolder, PromptsFolder
from dptr.cache.workspace import Workspace

commands = command_group()


@command(commands, "sql")
def sql(
    workspace: Workspace,
    query: Annotated[str | None, typer.Argument(help="SQL; without it, an interactive prompt.")] = None,
    form: Annotated[
        AnswerForm | None, typer.Option("--format", help="Of the answer; by default as the file of -o ends, or table.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write the answer to.")] = None,
    view_file: Annotated[
        Path | None, typer.Option("--open", help="Write a DuckDB file of these views, for other programs.")
    ] = None,
    prompts: PromptsFolder = None,
    orp: OrpFolder = None,
) -> Report:
    """DuckDB over everything in the workspace: prompts, crops, neighbours, refused_…, runs, metrics, predictions.

    Example: dptr sql "select label, n_tokens from prompts order by n_tokens desc limit 10"
    """
    from dptr.cache.sql import out_file, views
    from dptr.cache.sql.prompt import prompt
    from dptr.cache.sql.query import ask

    started = time.monotonic()
    workspace = workspace.with_stores(prompts, orp)
    for written in (out, view_file):
        if written is not None:
            out_file.require_no_store(written, workspace)
    if view_file is not None:
        if query is not None or out is not None:
            raise UserError("--open writes views and answers nothing", "Give a query, or --open, each by itself")
        names = out_file.write_views(workspace, view_file)
        figures = {"out": str(view_file), "views": names, "rows": len(names)}
        return Report({**figures, "seconds": time.monotonic() - started}, f"{view_file}: {', '.join(names)}")
    form = form or (out_file.form_of(out) if out else "table")
    if out is not None and query is None:
        raise UserError("no query whose answer could be written", 'Give one: dptr sql "from prompts" -o FILE')
    connection = views.connect(workspace)
    figures = {"out": str(out or workspace.root)}
    if query is None:
        prompt(connection)
        return Report({**figures, "rows": 0, "seconds": time.monotonic() - started})
    if out is None:
        answer = ask(connection, query)
        return Report({**figures, "seconds": time.monotonic() - started}, answer=answer, form=form)
    rows = out_file.write_answer(connection, query, form, out)
    return Report({**figures, "rows": rows, "seconds": time.monotonic() - started}, f"{rows:,} rows in {out}")


@command(commands, "pack-crops")
def pack_crops(
    folder: Annotated[Path, typer.Argument(help="Labelled crops in any accepted form.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A .lmdb or .parquet file.")],
) -> Report:
    """Labelled crops into one LMDB (the field's keys) or Parquet file.

    Example: dptr pack-crops crops/ -o crops.lmdb
    """
    from dptr.cache.word_images import writer

    summary = writer.pack_crops(folder, out)
    rejected, examples = summary.rejected, summary.rejected.examples
    lines = [
        f"rejected: {count:,} crops, {reason} (such as {examples[reason][0]})"
        for reason, count in rejected.counts.items()
    ]
    return Report(
        {"out": str(out), "rows": summary.rows, "computed": summary.rows, "quarantined": rejected.total},
        "\n".join([*lines, f"{summary.rows:,} crops in {out}"]),
    )
