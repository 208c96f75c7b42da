"""Labelled word images of several forms behind one interface; which form a path has is found from the files."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from dptr.cache.errors import UserError
from dptr.cache.file_names import MANIFEST_FILE
from dptr.cache.word_images import label_files, lmdb_form, parquet_form, tar_form
from dptr.cache.word_images.form import Form, NotLabelled, Source

#: Every form that can be read; docs/new_crop_form.md adds one.
FORMS: list[Form] = [lmdb_form.FORM, label_files.FORM, parquet_form.FORM, tar_form.FORM]


def find_sources(path: Path) -> list[Source]:
    """Return the data sets at ``path``: one file, one folder, or a folder of archives at any depth.

    Raises:
        NotLabelled: there is none; the message lists the accepted forms. UserError: it is damaged, or not there.
    """
    if not path.exists():
        raise UserError(f"there is no {path}", "Name a folder or file with labelled word images")
    if not path.is_dir() and not path.is_file():
        raise UserError(f"{path} is not a regular file", "Name a folder or file with labelled word images")
    if (path / MANIFEST_FILE).is_file():
        raise UserError(f"{path} is a store, which holds no pictures of words", "Name the labelled word images")
    sources = _in_folder(path) if path.is_dir() else _in_file(path)
    if not sources:
        accepted = ", ".join(form.description for form in FORMS)
        raise NotLabelled(f"no labelled word images in {path}", f"Accepted are {accepted}")
    return sources


def _in_file(path: Path) -> list[Source]:
    for form in FORMS:
        if any(fnmatchcase(path.name, pattern) for pattern in form.patterns):
            return [form.open(path)]
    return []


def _in_folder(folder: Path) -> list[Source]:
    if (folder / lmdb_form.DATA_FILE).is_file():
        return _in_file(folder / lmdb_form.DATA_FILE)
    if files := label_files.find(folder):
        return [label_files.LabelFile.open(path) for path in files]
    # The field's collections are trees of LMDB folders, and archives come in numbered parts.
    archives = [pattern for form in FORMS if form is not label_files.FORM for pattern in form.patterns]
    paths = [path for pattern in archives for path in sorted(folder.rglob(pattern)) if path.is_file()]
    return [source for path in paths if path.name != lmdb_form.LOCK_FILE for source in _in_file(path)]
