"""DuckDB over a workspace: views of stores, rejected inputs, neighbours, runs, metrics and predictions, and macros.

A statement that reads can contain one that writes (``with x as (copy …) select``), and DuckDB's
``allowed_directories`` permits both. So catalogues are Arrow datasets, which only read; logs of runs are loaded first,
and then DuckDB's access to files is disabled irrevocably.

Macros: ``similarity(a, b)`` of two vectors, such as two rows' ``pooled``, and the tables ``nearest('street', 10)`` and
``nearest_crops('street', 10)``. ``subword_tokens`` has for each subword token how many prompts hold it, and the
accuracy on words with it.

Query results are printed or written in blocks, so they need not fit into memory. Queries cannot name files, and DuckDB
writes none: this module writes the result.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from dptr.cache.choices import AnswerForm
from dptr.cache.errors import DptrError, UserError
from dptr.cache.file_names import (
    MANIFEST_FILE,
    METRICS_FILE,
    NEIGHBOURS_TABLE,
    PREDICTIONS_FOLDER,
    QUARANTINE_FILE,
    RUN_FILE,
    VALIDATION_WORDS,
)
from dptr.cache.printing import plain_json, table_lines, visible
from dptr.cache.processes import interruptible
from dptr.cache.progress import note
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.files import atomic_path
from dptr.cache.stores.manifest import Manifest, StoreKind
from dptr.cache.workspace import Workspace

_DAMAGED = object()
_NOTHING = "Run `dptr embed-text FILE` first, or give --workspace"


def connect(workspace: Workspace) -> duckdb.DuckDBPyConnection:
    """Open an in-memory DuckDB with one view per existing table; it cannot access any other file.

    Views: ``prompts``, ``crops``, ``image_features``, ``neighbours``, ``rejected_text``, ``rejected_photos``,
    ``rejected_crops``, ``rejected_words``, ``runs``, ``metrics``, ``predictions`` and ``subword_tokens``;
    macros: see :mod:`dptr.cache.sql`. Damaged files are skipped with a note.

    Raises:
        UserError: the workspace holds nothing yet.
    """
    connection = duckdb.connect()
    _load_logs(connection, workspace)
    _close(connection)
    for name, files in _parquet_tables(workspace).items():
        _add_view(connection, name, files)
    there = tables(connection)
    if not there:
        raise UserError(f"nothing to query in {workspace.root}", _NOTHING)
    add_macros(connection, there)
    add_subword_tokens(connection)
    return connection


def connect_to(name: str, rows: ds.Dataset) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB as :func:`connect` does, with one view and the macros that need only it."""
    connection = duckdb.connect()
    _close(connection)
    connection.register(name, rows)
    add_macros(connection, [name])
    return connection


def tables(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the names of all views."""
    return [str(row[0]) for row in connection.execute("show tables").fetchall()]


def write_views(workspace: Workspace, out: Path) -> list[str]:
    """Write a DuckDB file for other programs; return the names of its tables and views.

    It has the macros, views over the workspace's Parquet files, and the current ``runs`` and ``metrics`` as tables.

    Raises:
        UserError: the file exists, or there is nothing to query.
    """
    if out.exists():
        raise UserError(f"{out} exists", "Remove it, or name another file: it may hold tables of yours")
    with atomic_path(out) as temporary, duckdb.connect(str(temporary)) as connection:
        _load_logs(connection, workspace)
        for name, files in _parquet_tables(workspace).items():
            try:
                connection.execute(f"create view {name} as {_parquet_query(name, files)}")
            except duckdb.Error as error:
                note(f"skipped: {name} ({str(error).splitlines()[0]})")
        views = tables(connection)
        if not views:
            raise UserError(f"nothing to query in {workspace.root}", _NOTHING)
        add_macros(connection, views)
        add_subword_tokens(connection)
        connection.close()
    return views


def _close(connection: duckdb.DuckDBPyConnection) -> None:
    """Disable DuckDB's access to files, extensions, the network and Python's variables irrevocably.

    It may still spill to a temporary folder, which is removed with the connection.
    """
    spilled = os.path.join(tempfile.gettempdir(), f"dptr-sql-{os.getpid()}")
    connection.execute(f"set temp_directory = {_quoted(spilled)}")
    connection.execute("set python_enable_replacements = false")
    connection.execute("set autoload_known_extensions = false")
    connection.execute("set autoinstall_known_extensions = false")
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")


def _parquet_tables(workspace: Workspace) -> dict[str, list[Path]]:
    """Return the Parquet files of each existing table; damaged stores are skipped with a note."""
    stores: tuple[tuple[Path, StoreKind, str, str], ...] = (
        (workspace.prompts, "prompts", "prompts", "rejected_text"),
        (workspace.orp, "orp", "crops", "rejected_photos"),
        (workspace.image_features, "image_features", "image_features", "rejected_crops"),
    )
    found: dict[str, list[Path]] = {}
    for folder, kind, rows, rejected in stores:
        found |= _store_tables(folder, kind, rows, rejected)
    found["rejected_words"] = [*found.get("rejected_crops", []), *_in_runs(workspace, QUARANTINE_FILE)]
    found["predictions"] = _in_runs(workspace, f"{PREDICTIONS_FOLDER}/*.parquet")
    return {name: files for name, files in found.items() if files}


def _store_tables(folder: Path, kind: StoreKind, rows: str, rejected: str) -> dict[str, list[Path]]:
    if not (folder / MANIFEST_FILE).is_file():
        return {}
    try:
        manifest = Manifest.load(folder, kind)
        found = {rows: manifest.catalogues(folder)}
    except DptrError as error:
        note(f"skipped: {error}")
        return {}
    for name, view in ((QUARANTINE_FILE, rejected), (NEIGHBOURS_TABLE, "neighbours")):
        if name in manifest.files and not manifest.is_intact(folder, name):
            note(
                f"skipped: {view}, because {folder / name} has changed since it was written. See `dptr verify {folder}`"
            )
        elif (folder / name).is_file():
            found[view] = [folder / name]
    return found


def _in_runs(workspace: Workspace, pattern: str) -> list[Path]:
    there = [path for folder in (workspace.runs, workspace.models) for path in sorted(folder.glob(f"*/{pattern}"))]
    return [path for path in there if _unless_damaged(path, checksummed.require_whole) is not _DAMAGED]


def _unless_damaged(path: Path, read: Callable[[Path], Any]) -> Any:
    """Return the result of ``read``; if the file is damaged, note it and return :data:`_DAMAGED`."""
    try:
        return read(path)
    except OSError as error:
        note(f"skipped: {path} cannot be read ({error.strerror})")
    except DptrError as error:
        note(f"skipped: {error.problem}")
    return _DAMAGED


def _add_view(connection: duckdb.DuckDBPyConnection, name: str, files: list[Path]) -> None:
    try:
        connection.register(name, _predictions(files) if name == "predictions" else _dataset(files))
    except (pa.ArrowException, OSError) as error:
        note(f"skipped: {name}, because {files[0]} cannot be read ({str(error).splitlines()[0]})")


def _dataset(files: list[Path]) -> ds.Dataset:
    return ds.dataset([str(path.absolute()) for path in files], format="parquet")


def _predictions(files: list[Path]) -> ds.Dataset:
    """Return the files as one table with a column ``run``, the folder's name."""
    whole = _dataset(files)
    runs = {str(path.absolute()): _unicode(path.parent.parent.name) for path in files}
    fragments = [
        whole.format.make_fragment(part.path, whole.filesystem, ds.field("run") == runs[part.path])
        for part in whole.get_fragments()
    ]
    schema = pa.schema([pa.field("run", pa.string()), *whole.schema])
    return ds.FileSystemDataset(fragments, schema, whole.format, whole.filesystem)


def _parquet_query(name: str, files: list[Path]) -> str:
    """Return the query with which DuckDB itself reads Parquet files, each by its exact name."""
    listed = ", ".join(_quoted(glob.escape(str(path.absolute()))) for path in files)
    if name != "predictions":
        return f"select * from read_parquet([{listed}], union_by_name = true)"
    return (
        "select parse_path(filename, 'forward_slash')[-3] as run, * exclude filename "
        f"from read_parquet([{listed}], union_by_name = true, filename = true)"
    )


def _load_logs(connection: duckdb.DuckDBPyConnection, workspace: Workspace) -> None:
    """Make the tables ``runs`` and ``metrics``; unreadable files are skipped with a note."""
    folders = workspace.run_folders()
    _load_rows(connection, "runs", (row for folder in folders for row in _description(folder / RUN_FILE)))
    _load_rows(connection, "metrics", (row for folder in folders for row in _metrics(folder / METRICS_FILE)))


def _load_rows(connection: duckdb.DuckDBPyConnection, name: str, rows: Iterator[dict[str, Any]]) -> None:
    # DuckDB infers the types of JSON. It reads a temporary file, as it may take names of users' files for patterns.
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", errors="replace", suffix=".json") as stream:
        stream.writelines(plain_json(row) + "\n" for row in rows)
        stream.flush()
        if not stream.tell():
            return
        source = f"read_json({_quoted(glob.escape(stream.name))}, format = 'newline_delimited', sample_size = -1)"
        try:
            connection.execute(f"create table {name} as from {source}")
        except duckdb.Error as error:
            note(f"skipped: {name} ({str(error).splitlines()[0]})")


def _description(path: Path) -> Iterator[dict[str, Any]]:
    described = _unless_damaged(path, checksummed.read_json)
    if described is not _DAMAGED:
        yield {"run": _unicode(path.parent.name), **described}


def _metrics(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    unreadable = 0
    # The rest after the last line break is a line that a training is writing.
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            value = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            value = {}
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            yield {"run": _unicode(path.parent.name), **value}
        elif line.strip():
            unreadable += 1
    if unreadable:
        note(f"skipped in metrics: {unreadable} lines of {path}, which cannot be read")


def _unicode(name: str) -> str:
    """Return a file's name as valid Unicode."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _quoted(text: str) -> str:
    """Return a text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


_GIVEN = """given as (
    select coalesce(
        (select any_value(pooled) from prompts where label = word),
        error('no prompt has the label ' || word || '; dptr embed-text adds labels')
    ) as vector
)"""
_NEAREST = f"""create macro nearest(word, k := 10) as table
with {_GIVEN}
select id, label, similarity(pooled, vector) as similarity from prompts, given
where label <> word order by similarity desc, id limit k"""
_NEAREST_CROPS = f"""create macro nearest_crops(word, k := 10) as table
with {_GIVEN}
select id, image, x, y, width, height, similarity(pooled, vector) as similarity from crops, given
order by similarity desc, id limit k"""
#: Views that a macro reads, and how it is made.
_TABLES = (({"prompts"}, _NEAREST), ({"prompts", "crops"}, _NEAREST_CROPS))

# Case variants of a label share their embeddings and tokens, so each prompt counts once.
_MET = """
with tokens as (
    select embeddings_of, lower(label) as label, unnest(token_ids) as token_id, unnest(token_letters) as letters,
        generate_subscripts(token_ids, 1) as place
    from prompts where embeddings_of = id
), placed as (
    select *, sum(letters) over (partition by embeddings_of order by place) - letters as start from tokens
), met as (
    select embeddings_of, label, token_id, substr(label, start::bigint + 1, letters) as token
    from placed where letters > 0
), counted as (
    select token_id, any_value(token) as token, count(distinct embeddings_of) as rows from met group by token_id
)"""
_WITHOUT_RUNS = f"""create view subword_tokens as {_MET}
select token, token_id, rows, null::varchar as run, 0::bigint as words, null::double as accuracy from counted"""
_WITH_RUNS = f"""create view subword_tokens as {_MET}, judged as (
    select token_id, run, count(*) as words, avg((lower(prediction) = held.label)::int) as accuracy
    from (select distinct token_id, label from met) as held
    join predictions on data = '{VALIDATION_WORDS}' and lower(ground_truth) = held.label
    group by token_id, run
)
select token, token_id, rows, run, coalesce(words, 0) as words, accuracy
from counted left join judged using (token_id)"""


def add_macros(connection: duckdb.DuckDBPyConnection, views: Collection[str]) -> None:
    """Make the macros whose ``views`` exist."""
    connection.execute(_similarity(connection))
    for needed, definition in _TABLES:
        if needed <= set(views):
            connection.execute(definition)


def _similarity(connection: duckdb.DuckDBPyConnection) -> str:
    widths = "select distinct data_type from information_schema.columns where column_name = 'pooled'"
    types = [str(row[0]) for row in connection.execute(widths).fetchall()]
    # Arrays of fixed width are compared about ten times as fast as lists.
    # Parquet files that DuckDB reads itself, as in a file of views, give lists.
    if len(types) == 1 and re.fullmatch(r"FLOAT\[\d+\]", types[0]):
        return f"create macro similarity(a, b) as array_cosine_similarity(a::{types[0]}, b::{types[0]})"
    return "create macro similarity(a, b) as list_cosine_similarity(a::float[], b::float[])"


def add_subword_tokens(connection: duckdb.DuckDBPyConnection) -> None:
    """Add the view ``subword_tokens`` if there are prompts with the number of letters of each token.

    It has a row for each token and each run with predictions for validation words with it, case-insensitive:
    ``token``, ``token_id``, ``rows`` (prompts that hold it), ``run``, ``words`` (validation words that hold it) and
    ``accuracy``; for a token without such a run one row, with ``run`` and ``accuracy`` null.
    """
    # Other programs' files may have other columns.
    if {"token_letters", "embeddings_of", "token_ids"} <= _columns(connection, "prompts"):
        with_runs = {"data", "ground_truth", "prediction", "run"} <= _columns(connection, "predictions")
        connection.execute(_WITH_RUNS if with_runs else _WITHOUT_RUNS)


def _columns(connection: duckdb.DuckDBPyConnection, view: str) -> set[str]:
    found = connection.execute("select column_name from information_schema.columns where table_name = ?", [view])
    return {name for (name,) in found.fetchall()}


_Result = TypeVar("_Result")

_ROWS_A_BLOCK = 1000
_ROWS_A_BATCH = 16_384
#: Kinds of statement that only read; ``pivot`` is several statements in one.
_QUESTIONS = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN, duckdb.StatementType.MULTI)


@dataclass(frozen=True)
class Answer:
    """The result of a query.

    Attributes:
        columns: their names.
        blocks: rows in blocks of at most 1,000; to be read once, before the connection's next query.
    """

    columns: list[str]
    blocks: Iterator[list[tuple[Any, ...]]]

    def rows(self) -> list[tuple[Any, ...]]:
        """Return all rows that are left."""
        return [row for block in self.blocks for row in block]


def ask(connection: duckdb.DuckDBPyConnection, query: str) -> Answer:
    """Run one query.

    Raises:
        UserError: DuckDB rejects it, or it is empty, several statements, or a statement that writes.
    """
    cursor = _run(connection, query, connection.execute)

    def blocks() -> Iterator[list[tuple[Any, ...]]]:
        with _explained(connection):
            while block := interruptible(lambda: cursor.fetchmany(_ROWS_A_BLOCK), connection.interrupt):
                yield block

    return Answer([str(column[0]) for column in cursor.description or []], blocks())


def require_distinct(columns: Sequence[str]) -> None:
    """Raise :class:`UserError` if two columns have one name, which JSON objects and Parquet files do not allow."""
    twice = [name for name in dict.fromkeys(columns) if columns.count(name) > 1]
    if twice:
        raise UserError(f"two columns are called {twice[0]}", "Give each a distinct name: select a.id as first, …")


def prompt(connection: duckdb.DuckDBPyConnection) -> None:
    """Run queries from standard input until its end; an error does not stop it."""
    print(f"tables: {', '.join(tables(connection))}; end with Ctrl-D", file=sys.stderr)
    interactive = sys.stdin.isatty()
    if interactive:
        with suppress(ImportError):  # Python on Windows has no readline
            import readline  # noqa: F401  # lets input() edit and recall lines
    while True:
        try:
            query = input("dptr> " if interactive else "").strip()
        except EOFError:
            return
        try:
            if query:
                answer = ask(connection, query)
                for line in table_lines(answer.columns, answer.blocks):
                    print(line)
        except UserError as error:
            print(visible(str(error)), file=sys.stderr)


def _run(connection: duckdb.DuckDBPyConnection, query: str, how: Callable[[str], _Result]) -> _Result:
    # Outside UTF-8 locales Python represents undecodable bytes as surrogates.
    query = query.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    with _explained(connection):
        _require_question(connection, query)
        _end_transaction(connection)
        # A select can hold an insert, update or delete: ``with x as (delete from runs returning *) from x``.
        connection.execute("begin transaction read only")
        return interruptible(lambda: how(query), connection.interrupt)


def _end_transaction(connection: duckdb.DuckDBPyConnection) -> None:
    with suppress(duckdb.TransactionException):  # none is active
        connection.execute("rollback")


@contextmanager
def _explained(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    try:
        yield
    except duckdb.InterruptException as error:
        raise KeyboardInterrupt from error
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        _end_transaction(connection)
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"DuckDB: {problem}", f"Tables here: {', '.join(tables(connection))}") from error


def _require_question(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    statements = connection.extract_statements(query)
    if not statements:
        raise UserError("the query is empty", 'Give one, such as "select count(*) from prompts"')
    if len(statements) > 1:
        raise UserError(f"{len(statements)} statements at once", "Run one at a time")
    if statements[0].type not in _QUESTIONS:
        kind = str(statements[0].type).rpartition(".")[2].lower()
        raise UserError(f"only queries are allowed, not a {kind} statement", "Use select")


_FORMS: dict[str, AnswerForm] = {".csv": "csv", ".json": "json", ".parquet": "parquet", ".txt": "table"}


def form_of(path: Path) -> AnswerForm:
    """Return the format of a file's suffix.

    Raises:
        UserError: the suffix is unknown.
    """
    if path.suffix.lower() not in _FORMS:
        raise UserError(f"{path} has no known suffix", f"Use one of {', '.join(_FORMS)}, or give --format")
    return _FORMS[path.suffix.lower()]


def write_answer(connection: duckdb.DuckDBPyConnection, query: str, form: AnswerForm, out: Path) -> int:
    """Write the result of ``query`` to ``out``, atomically and block by block; return its number of rows.

    Raises:
        UserError: DuckDB rejects the query, or two columns of an object or a Parquet file have one name.
    """
    return _write_parquet(connection, query, out) if form == "parquet" else _write_text(connection, query, form, out)


def text_pieces(answer: Answer, form: AnswerForm, fit: bool = True) -> Iterator[str]:
    """Yield a result as text; ``fit`` limits a table to the terminal's width.

    Raises:
        UserError: two columns of a JSON object have one name, or the format is no text.
    """
    match form:
        case "table":
            return (line + "\n" for line in table_lines(answer.columns, answer.blocks, fit=fit))
        case "csv":
            return _csv(answer)
        case "json":
            require_distinct(answer.columns)
            return _json(answer)
        case "parquet":
            raise UserError("Parquet is for files", "Name one: -o FILE.parquet")


def json_pieces(answer: Answer, figures: dict[str, Any]) -> Iterator[str]:
    """Yield the parts of one JSON object: ``figures``, columns, all rows as ``result``, and their number."""
    started, rows = time.monotonic(), 0
    yield plain_json({**figures, "columns": answer.columns})[:-1] + ', "result": ['
    for block in answer.blocks:
        texts = (plain_json(row) for row in block)
        yield (", " if rows else "") + ", ".join(texts)
        rows += len(block)
    seconds = figures.get("seconds", 0.0) + time.monotonic() - started
    yield "], " + plain_json({"rows": rows, "seconds": seconds})[1:]


def _csv(answer: Answer) -> Iterator[str]:
    header: list[tuple[Any, ...]] = [tuple(answer.columns)]
    for block in chain([header], answer.blocks):
        stream = io.StringIO()
        # Lists and structures as JSON, which programs can parse; nulls as empty text.
        rows = ([plain_json(v) if isinstance(v, list | tuple | dict) else v for v in row] for row in block)
        csv.writer(stream, lineterminator="\n").writerows(rows)
        yield stream.getvalue()


def _json(answer: Answer) -> Iterator[str]:
    """One array, an object a line."""
    yield "["
    before = "\n"
    for block in answer.blocks:
        yield before + ",\n".join(plain_json(dict(zip(answer.columns, row, strict=True))) for row in block)
        before = ",\n"
    yield "\n]\n"


def _write_text(connection: duckdb.DuckDBPyConnection, query: str, form: AnswerForm, out: Path) -> int:
    answer, rows = ask(connection, query), 0

    def counted() -> Iterator[list[tuple[object, ...]]]:
        nonlocal rows
        for block in answer.blocks:
            rows += len(block)
            yield block

    pieces = text_pieces(Answer(answer.columns, counted()), form, fit=False)
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        stream.writelines(pieces)
    return rows


def _write_parquet(connection: duckdb.DuckDBPyConnection, query: str, out: Path) -> int:
    # A relation streams its batches; an executed result would first be copied as a whole.
    relation = _run(connection, query, connection.sql)
    require_distinct(relation.columns)
    with _explained(connection):
        reader = interruptible(lambda: relation.to_arrow_reader(_ROWS_A_BATCH), connection.interrupt)

    def batches() -> Iterator[pa.RecordBatch]:
        with _explained(connection):
            while (batch := interruptible(lambda: next(reader, None), connection.interrupt)) is not None:
                yield batch

    rows = 0
    with atomic_path(out) as temporary, pq.ParquetWriter(temporary, reader.schema, compression="zstd") as writer:
        for batch in batches():
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows
