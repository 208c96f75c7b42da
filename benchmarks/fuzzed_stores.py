"""Readers of stores, runs, models and their descriptions, with valid files for each: for ``fuzz.py``."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from fuzzed_readers import Fuzzed, made_up_words, written

from dptr.cache.stores import checks, sealed
from dptr.cache.stores.manifest import FileRecord
from dptr.cache.stores.verify import verify


def _store(place: Path) -> Path:
    from dptr.cli import run_command

    words = written(place / "words.txt", "\n".join(made_up_words(60)).encode())
    run_command(["embed-text", str(words), "-o", str(place / "prompts"), "--shard-rows", "20", "--quiet"])
    return place / "prompts"


def _read_store(folder: Path) -> None:
    """Look at all of a store, first as ``verify`` does, then as training does, whatever ``verify`` finds."""
    from dptr.cache.stores.prompts import PromptStore

    verify(folder)
    try:
        store = PromptStore(folder)
        rows = np.arange(len(store))
        _ = store.charset, store.labels[:50], store.prefix, store.states(rows[:50])
    finally:
        checks.finish()


def _beside(path: Path, folder: Path) -> None:
    """Let the other files of a folder lie beside one of them that is broken."""
    for file in folder.iterdir():
        if file.name != path.name and file.is_file():
            os.link(file, path.parent / file.name)


def _manifest(place: Path) -> Fuzzed:
    from dptr.cache.stores import manifest_log
    from dptr.cache.stores.files import sha256_of
    from dptr.cache.stores.manifest import Manifest

    store = _store(place)
    manifest = Manifest.read(store)
    logged = place / "logged"
    shutil.copytree(store, logged)
    # As a store is while it is being filled: the last shards stand in the log.
    last = manifest.shards.pop()
    manifest.save(logged)
    manifest_log.append(logged, sha256_of(logged / "manifest.json"), last)

    def read(path: Path) -> None:
        _beside(path, store if path.name == "manifest.json" else logged)
        if path.name == "manifest.log":
            _hash_lines_again(path)
        else:
            _seal_again(path)
        _read_store(path.parent)

    return Fuzzed([store / "manifest.json", logged / "manifest.log"], read)


def _hash_lines_again(path: Path) -> None:
    lines = [line.partition(b" ")[2] for line in path.read_bytes().split(b"\n")[:-1]]
    path.write_bytes(b"".join(hashlib.sha256(line).hexdigest().encode() + b" " + line + b"\n" for line in lines))


def _seal_again(path: Path) -> None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            value.pop("seal", None)
            sealed.write_json(path, {"format_version": 2, **value})
    except (ValueError, RecursionError):
        pass


def _shards(place: Path) -> Fuzzed:
    """Files of a store whose manifest has the hashes of what was broken: a store that somebody else made."""
    store = _store(place)
    names = ["part-00000.parquet", "part-00000.arrow", "prefix.arrow", "rows.arrow"]
    manifest = json.loads((store / "manifest.json").read_text())

    def read(path: Path) -> None:
        _beside(path, store)
        changed: dict[str, Any] = json.loads(json.dumps(manifest))
        lists = [changed["files"], *(shard["files"] for shard in changed["shards"])]
        next(files for files in lists if path.name in files)[path.name] = vars(FileRecord.of(path))
        changed.pop("seal")
        (path.parent / "manifest.json").unlink()
        sealed.write_json(path.parent / "manifest.json", changed)
        _read_store(path.parent)

    return Fuzzed([store / name for name in names], read)


def _listing(place: Path) -> Fuzzed:
    """A kept list of crops: what is not as it was written counts as none."""
    from dptr.cache.word_images.form import Place
    from dptr.cache.word_images.samples import CropTable, Samples, map_table, write_table

    crops = CropTable.of(((0, word, word, Place(0, 1)) for word in made_up_words(40)), ["crops"])
    write_table(place / "kept.arrow", crops.table)

    def read(path: Path) -> None:
        table = map_table(path)
        if table is not None and list(Samples([CropTable(table, ["crops"])])) != list(Samples([crops])):
            raise AssertionError(f"{path} was damaged and used")

    return Fuzzed([place / "kept.arrow"], read)


def _recipe(place: Path) -> Fuzzed:
    from dptr.trainer.training.recipe import Recipe, load_recipe, load_saved_recipe, recipe_to_toml

    files = [
        written(place / "recipe.toml", recipe_to_toml(Recipe()).encode()),
        *sorted(path for path in _BUNDLED.glob("*.toml") if "ablate" not in path.name),
    ]

    def read(path: Path) -> None:
        text = path.read_bytes().decode("utf-8", "replace")
        load_saved_recipe(text, str(path))
        load_recipe(str(path))

    return Fuzzed(files, read)


_BUNDLED = Path(__file__).parent.parent / "recipes"


def _grid(place: Path) -> Fuzzed:
    from dptr.trainer.ablation.grid import load_grid

    return Fuzzed(sorted(_BUNDLED.glob("ablate*.toml")), load_grid)


def _checkpoint(place: Path) -> Fuzzed:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    from dptr.trainer.model.model_file import BUNDLED, ModelFile
    from dptr.trainer.training.checkpoint import load_state, load_tensors, save_checkpoint

    save_checkpoint(place / "last", {"model": {"w": torch.ones(4, 5), "b": torch.zeros(7)}}, {"step": 3})
    with safe_open(BUNDLED, "pt") as file:
        save_file({"w": torch.ones(4, 5)}, place / "model_file.safetensors", file.metadata())

    def read(path: Path) -> None:
        if path.name == "model_file.safetensors":
            if sealed.is_sealed(path) is False:
                sealed.seal(path)
            ModelFile.open(path)
            return
        other = {"state.json": "model.safetensors", "model.safetensors": "state.json"}[path.name]
        shutil.copy(place / "last" / other, path.parent)
        if path.name == "state.json":
            _seal_again(path)
            load_state(path.parent)
        load_tensors(path.parent, "model")

    seeds = [place / "last" / "state.json", place / "last" / "model.safetensors"]
    return Fuzzed([*seeds, place / "model_file.safetensors"], read)


def _clip(place: Path) -> Fuzzed:
    """The folder of a CLIP that somebody else trained: its descriptions, its tokenizer and its weights."""
    from dptr.pipeline.clip.bundled import BUNDLED
    from dptr.pipeline.clip.loading import load_clip

    whole = place / "clip"
    shutil.copytree(BUNDLED, whole)

    def read(path: Path) -> None:
        _beside(path, whole)
        load_clip(str(path.parent))

    files = ["config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "model.safetensors"]
    return Fuzzed([whole / name for name in files], read)


def _query(place: Path) -> Fuzzed:
    from dptr.cache.sql.query import ask
    from dptr.cache.sql.views import connect
    from dptr.cache.workspace import Workspace

    _store(place)
    questions = [
        "select label, n_tokens from prompts order by n_tokens desc limit 10",
        "select a.label, b.label from prompts a join prompts b using (n_tokens) where a.id < 5 and b.id < 5",
        "with x as (select unnest(token_ids) as t from prompts) select t, count(*) from x group by t order by 2",
        "select array_cosine_similarity(pooled::float[128], pooled::float[128]) from prompts limit 3",
        "select regexp_replace(label, '[aeiou]', '_', 'g'), '\u6771' from prompts where label like '%a%'",
    ]
    files = [written(place / f"{number}.sql", text.encode()) for number, text in enumerate(questions)]
    # One for a process, as at the prompt: to connect costs ten times what most questions do.
    connection = lru_cache(lambda process: connect(Workspace(place)))

    def read(path: Path) -> None:
        answer = ask(connection(os.getpid()), path.read_bytes().decode("utf-8", "surrogateescape"))
        for _, _block in zip(range(100), answer.blocks, strict=False):
            pass

    return Fuzzed(files, read)


def _workspace(place: Path) -> Fuzzed:
    """What ``dptr sql`` reads of a workspace that somebody else made: descriptions, logs and readings of its runs."""
    from dptr.cache.sql.query import ask
    from dptr.cache.sql.views import connect, tables
    from dptr.cache.workspace import Workspace
    from dptr.trainer.predictions import keep_readings

    written(place / "metrics.jsonl", b"".join(b'{"step": %d, "loss": 0.5, "rate": 1e-3}\n' % step for step in range(9)))
    description = {"kind": "finetune", "charset": "abc", "data": {"rows": 3, "paths": ["a", "b"]}, "versions": {}}
    sealed.write_json(place / "run.json", description)
    keep_readings(place, ["ab", "c"], ["ab", "b"])
    readings = next((place / "predictions").glob("*.parquet"))

    def read(path: Path) -> None:
        run = path.parent / "ws" / "runs" / "one"
        (run / "predictions").mkdir(parents=True)
        for file in (place / "metrics.jsonl", place / "run.json", readings):
            shutil.copy(path if path.name == file.name else file, run / file.relative_to(place))
        if path.name == "run.json":
            _seal_again(run / path.name)
        elif path.name == readings.name and sealed.is_sealed(run / "predictions" / path.name) is False:
            sealed.seal(run / "predictions" / path.name)
        connection = connect(Workspace(path.parent / "ws"))
        for table in tables(connection):
            list(ask(connection, f'select * from "{table}"').blocks)

    return Fuzzed([place / "metrics.jsonl", place / "run.json", readings], read)


READERS: dict[str, Callable[[Path], Fuzzed]] = {
    "manifest": _manifest,
    "shards": _shards,
    "listing": _listing,
    "recipe": _recipe,
    "grid": _grid,
    "checkpoint": _checkpoint,
    "clip": _clip,
    "query": _query,
    "workspace": _workspace,
}
