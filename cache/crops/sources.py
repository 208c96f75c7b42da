"""Detection of the form of labelled word images at a path, from its files."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from dptr.cache.crops import label_files, lmdb_form, parquet_form, tar_form
from dptr.cache.crops.form import Form, NotLabelled, Source
from dptr.cache.errors import UserError
from dptr.cache.file_names import MANIFEST_FILE
from dptr.cache.progress import note

#: Every form that can be read; docs/new_crop_form.md adds one.
FORMS: list[Form] = [lmdb_form.FORM, label_files.FORM, parquet_form.FORM, tar_form.FORM]


def find_sources(path: Path) -> list[Source]:
    """Return the data sets at ``path``: one file, one folder, or a folder of archives at any depth.

    In a folder, files of other programs are rejected with a note.

    Raises:
        NotLabelled: there is none; the message lists the accepted forms. UserError: it is damaged or missing.
    """
    if not path.exists():
        raise UserError(f"there is no {path}", "Name a folder or file with labelled word images")
    if not path.is_dir() and not path.is_file():
        raise UserError(f"{path} is not a regular file", "Name a folder or file with labelled word images")
    if (path / MANIFEST_FILE).is_file():
        raise UserError(f"{path} is a store, not labelled crops", "Name the labelled crops")
    sources = _in_folder(path) if path.is_dir() else _in_file(path)
    if not sources:
        raise NotLabelled(f"no labelled word images in {path}", f"Accepted are {accepted_forms()}")
    return sources


def accepted_forms() -> str:
    """Return the descriptions of all forms."""
    return ", ".join(form.description for form in FORMS)


def _in_file(path: Path) -> list[Source]:
    for form in FORMS:
        if any(fnmatchcase(path.name, pattern) for pattern in form.patterns):
            return [form.open(path)]
    return []


def _in_folder(folder: Path) -> list[Source]:
    if (folder / lmdb_form.DATA_FILE).is_file():
        return _in_file(folder / lmdb_form.DATA_FILE)
    # The field's collections are trees of LMDB folders, and archives come in numbered parts.
    patterns = [pattern for form in FORMS if form is not label_files.FORM for pattern in form.patterns]
    archives = (path for pattern in patterns for path in sorted(folder.rglob(pattern)))
    failures: list[tuple[Path, NotLabelled]] = []
    for files in (*label_files.candidates(folder), archives):
        if found := _opened(folder, files, failures):
            break
    if failures and not found:
        raise failures[0][1]
    if failures:
        path, error = failures[0]
        count = f"{len(failures):,} file{'s' if len(failures) > 1 else ''}"
        note(f"rejected: {count} in {folder} without labelled crops, such as {path.name} ({error.problem})")
    return found


def _opened(folder: Path, files: Iterable[Path], failures: list[tuple[Path, NotLabelled]]) -> list[Source]:
    found: list[Source] = []
    for path in files:
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not path.is_file() or path.name == lmdb_form.LOCK_FILE:
            continue
        try:
            if hidden:
                raise NotLabelled("a hidden file", "Rename it if it holds labelled crops")
            found += _in_file(path)
        except NotLabelled as error:
            failures.append((path, error))
    return found
