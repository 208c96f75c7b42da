"""The manifest is the commit point of a store: a shard exists once the manifest lists it.

It also holds the store's identity, so that embeddings of different encoders are never mixed, and the hash of every
file, so that damage is found rather than trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal, Self

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import (
    INDEX_FILE,
    MANIFEST_FILE,
    NEIGHBOURS_ARRAY,
    NEIGHBOURS_TABLE,
    QUARANTINE_FILE,
    ROWS_FILE,
)
from dptr.cache.plain_json import what_is_wrong
from dptr.cache.progress import note
from dptr.cache.stores import checks
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.files import CHANGED, begun_anew, problem_of, sha256_of, xxh3_of

_LONGEST_SHOWN = 40

#: Files that can be derived again, or only record past runs: damage to them does not keep a store from being used.
DISPENSABLE = frozenset({INDEX_FILE, NEIGHBOURS_ARRAY, NEIGHBOURS_TABLE, QUARANTINE_FILE, ROWS_FILE})

StoreKind = Literal["prompts", "orp", "image_features"]
_COMMAND_THAT_MAKES = {"prompts": "dptr embed-text", "orp": "dptr build-orp-bank", "image_features": "dptr embed-crops"}


@dataclass(frozen=True)
class FileRecord:
    """Size and hashes of a committed file, by which damage to it is found; ``xxh3`` is the fast one."""

    bytes: int
    sha256: str
    xxh3: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Measure a finished file."""
        return cls(path.stat().st_size, sha256_of(path), xxh3_of(path))

    def problem(self, path: Path, fast: bool = False) -> str | None:
        """Return what is wrong with the file at ``path``, None when it is as it was committed.

        Args:
            path: the file. fast: compare the fast hash, which finds damage, not forgery.
        """

        def compare() -> str | None:
            size = path.stat().st_size
            if size != self.bytes:
                return f"has {size} bytes, not {self.bytes}"
            same = xxh3_of(path) == self.xxh3 if fast else sha256_of(path) == self.sha256
            return None if same else CHANGED

        return problem_of(path, compare)


@dataclass(frozen=True)
class Shard:
    """One committed shard: its catalogue ``<name>.parquet`` and its embeddings ``<name>.arrow``."""

    name: str
    rows: int
    files: dict[str, FileRecord]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def catalogue(self) -> str:
        """Name of the file that describes its rows."""
        return f"{self.name}.parquet"

    @property
    def embeddings(self) -> str:
        """Name of the file that holds its embeddings."""
        return f"{self.name}.arrow"

    def stored(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        files = {name: vars(record) for name, record in self.files.items()}
        return {"name": self.name, "rows": self.rows, "files": files, "details": self.details}

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Self:
        """Return the shard that was stored.

        Raises:
            KeyError, TypeError, AttributeError, ValueError: it is none.
        """
        shard = cls(stored["name"], stored["rows"], _file_records(stored["files"]), dict(stored["details"]))
        if not isinstance(shard.rows, int) or not 0 <= shard.rows < 1 << 63:
            raise ValueError("a shard has a number of rows that none can have")
        for name in (shard.catalogue, shard.embeddings):
            _ = shard.files[name]
        return shard


def _file_records(stored: dict[str, dict[str, Any]]) -> dict[str, FileRecord]:
    """Return the records of files that JSON holds, by name.

    Raises:
        TypeError, AttributeError: it holds something else. ValueError: a name leads out of the store's folder.
    """
    for name in stored:
        if name != PurePath(name).name or name in ("", ".", ".."):
            raise ValueError(f"{name!r} is no name of a file in a store")
    records = {name: FileRecord(**record) for name, record in stored.items()}
    for record in records.values():
        if type(record.bytes) is not int or not isinstance(record.sha256, str) or not isinstance(record.xxh3, str):
            raise TypeError(f"{record} is none")
        if not 0 <= record.bytes < 1 << 63:
            raise ValueError("a file has a size that none can have")
        if not (record.sha256 + record.xxh3).isascii():
            raise ValueError(f"{record} holds no digests")
    return records


@dataclass
class Manifest:
    """Identity, shards and store-wide files of one store.

    Attributes:
        kind: which store this is.
        identity: everything that makes two stores' embeddings comparable or not (encoder, weights, template, dtype,
            ...).
        shards: committed shards in order; a global row number counts through them.
        files: store-wide files (``prefix.arrow``, ``index.faiss``, ...) by name.
        details: whatever describes the contents without being identity (counts, index parameters, measured recall).
    """

    kind: StoreKind
    identity: dict[str, Any]
    shards: list[Shard] = field(default_factory=list)
    files: dict[str, FileRecord] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows in all committed shards."""
        return sum(shard.rows for shard in self.shards)

    def fingerprint(self) -> dict[str, Any]:
        """Return a short description that changes whenever identity or contents do, whatever the encoder is called."""
        identity = {key: value for key, value in self.identity.items() if key != "encoder"}
        contents = [record.sha256 for shard in self.shards for record in shard.files.values()]
        digest = hashlib.sha256(json.dumps([identity, contents], sort_keys=True).encode()).hexdigest()
        return {"rows": self.rows, "sha256": digest}

    def is_described_by(self, known: object) -> bool:
        """Return whether ``known``, which a run saved, is this store's fingerprint."""
        return known == self.fingerprint()

    def is_intact(self, folder: Path, name: str) -> bool:
        """Return whether a store-wide file is listed and is, to the last bit, what was committed."""
        path, record = folder / name, self.files.get(name)
        return record is not None and record.problem(path) is None

    def checked(self, folder: Path, name: str) -> Path:
        """Return the path of a committed file whose hash was compared in this process.

        Raises:
            DamagedStore: the file is not listed, or not what was committed.
        """
        found = self.files.get(name)
        for shard in self.shards:
            found = shard.files.get(name, found)
        if found is None:
            raise DamagedStore(f"{folder / MANIFEST_FILE} does not list {name}", _REPAIR)
        return checks.now(folder / name, found)

    def catalogues(self, folder: Path) -> list[Path]:
        """Return the paths of all shards' catalogues, whose hashes were compared.

        Raises:
            DamagedStore: one is not what was committed.
        """
        return [checks.now(folder / shard.catalogue, shard.files[shard.catalogue]) for shard in self.shards]

    def commit_files(self, folder: Path, *names: str) -> None:
        """List finished store-wide files, those of them that exist, and save."""
        self.files |= {name: FileRecord.of(folder / name) for name in names if (folder / name).is_file()}
        self.save(folder)

    def withdraw_files(self, folder: Path, *names: str) -> None:
        """List files no longer and save: before they are replaced, so that a kill meanwhile leaves no contradiction."""
        if any(self.files.pop(name, None) for name in names):
            self.save(folder)

    @contextmanager
    def rewriting(self, folder: Path, *names: str) -> Iterator[None]:
        """Let a run rewrite files that record earlier runs; they are listed again after it, even if it fails.

        What is not what was committed is removed first and said so: it may well be readable, and wrong. Removed rather
        than passed over, since a kill leaves files unlisted, and without a hash damage could not be found any more.
        """
        for name in names:
            if name in self.files and not self.is_intact(folder, name):
                note(begun_anew(folder / name))
                (folder / name).unlink(missing_ok=True)
        self.withdraw_files(folder, *names)
        try:
            yield
        except BaseException:
            if (folder / MANIFEST_FILE).is_file():
                # What was committed, and no more: the rest of this manifest may be half changed.
                Manifest.load(folder, self.kind).commit_files(folder, *names)
            raise
        if self.shards or (folder / MANIFEST_FILE).is_file():
            self.commit_files(folder, *names)

    def commit_shard(self, folder: Path, shard: Shard) -> None:
        """List one more finished shard and save."""
        self.shards.append(shard)
        self.save(folder)

    def save(self, folder: Path) -> None:
        """Write ``manifest.json`` atomically; what it lists is committed from then on.

        Files and details stand in the order of names: those that a kill made a run list again leave no trace.
        """
        value = {
            "kind": self.kind,
            "rows": self.rows,
            "identity": self.identity,
            "details": dict(sorted(self.details.items())),
            "files": {name: vars(record) for name, record in sorted(self.files.items())},
        }
        checksummed.write_json(folder / MANIFEST_FILE, value, {"shards": [shard.stored() for shard in self.shards]})

    @classmethod
    def load(cls, folder: Path, kind: StoreKind) -> Manifest:
        """Read a store's manifest and compare the sizes of its files with it.

        Raises:
            UserError: there is no such store, or it is of another kind or format.
            DamagedStore: the manifest cannot be read or contradicts itself, or a file is missing or cut short.
        """
        if not (folder / MANIFEST_FILE).is_file():
            raise UserError(f"no {kind} store in {folder}", f"Make one with `{_COMMAND_THAT_MAKES[kind]}`")
        manifest = cls.read(folder)
        if manifest.kind != kind:
            raise UserError(f"{folder} is a store of kind {manifest.kind!r}, not {kind!r}", "Name the right folder")
        manifest._check_files(folder)
        return manifest

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a store of any kind, and no other file.

        Raises:
            UserError: it is of another format. DamagedStore: it cannot be read or contradicts itself.
        """
        path = folder / MANIFEST_FILE
        value = checksummed.read_json(path)
        try:
            shards = [Shard.of(stored) for stored in value["shards"]]
            files, details = _file_records(value["files"]), dict(value["details"])
            manifest = cls(value["kind"], dict(value["identity"]), shards, files, details)
            told = value["rows"]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DamagedStore(f"{path} is damaged: {what_is_wrong(error)}", checksummed.RESTORE) from error
        if not isinstance(manifest.kind, str) or manifest.kind not in _COMMAND_THAT_MAKES:
            raise DamagedStore(f"{path} is of no known kind: {manifest.kind!r}", _REPAIR)
        if manifest.rows != told:
            raise DamagedStore(f"{path} lists {told} rows but its shards have {manifest.rows}", _REPAIR)
        return manifest

    @classmethod
    def begin_or_go_on(cls, folder: Path, kind: StoreKind, identity: dict[str, Any]) -> Manifest:
        """Return the manifest of the store in ``folder``, which must have been made in the same way, or a new one.

        Raises:
            DamagedStore: there is a store of another identity; the message names what differs.
        """
        if not (folder / MANIFEST_FILE).is_file():
            return cls(kind, dict(identity))
        manifest = cls.load(folder, kind)
        manifest.require_equal(folder, identity)
        return manifest

    def require_equal(self, folder: Path, identity: dict[str, Any]) -> None:
        """Check parts of the identity.

        Raises:
            DamagedStore: they differ.
        """
        differing = [
            f"{name}: {_shown(self.identity.get(name))} there, {_shown(value)} now"
            for name, value in identity.items()
            # The same weights may go by several names (two paths, a hub id): their hashes are compared.
            if name != "encoder" and self.identity.get(name) != value
        ]
        if differing:
            raise DamagedStore(
                f"{folder} holds a store with other settings ({'; '.join(differing)})",
                "Use the same settings, another folder with -o, or move the old store away",
            )

    def _check_files(self, folder: Path) -> None:
        """Compare presence and size of every file that is needed: cheap, and catches what is cut short or missing."""
        listed = {name: record for name, record in self.files.items() if name not in DISPENSABLE}
        for shard in self.shards:
            listed.update(shard.files)
        for name, record in listed.items():
            path = folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != record.bytes:
                found = "is missing" if size is None else f"has {size} bytes, not {record.bytes}"
                raise DamagedStore(f"{path} {found}", _REPAIR)


_REPAIR = "`dptr verify --repair` computes it again where the inputs are still there"


def kind_of(folder: Path) -> str | None:
    """Return which kind of store is in ``folder``; None where there is none.

    Raises:
        DamagedStore: its manifest cannot be read. UserError: it is of another format.
    """
    path = folder / MANIFEST_FILE
    return checksummed.read_json(path).get("kind") if path.is_file() else None


def require_same_encoder(one: Manifest, other: Manifest) -> None:
    """Check that two stores' embeddings come from one CLIP model.

    Raises:
        DamagedStore: they do not belong together.
    """
    if one.identity["weights"] != other.identity["weights"]:
        raise DamagedStore(
            f"the {one.kind} store was made with encoder {one.identity['encoder']} "
            f"and the {other.kind} store with {other.identity['encoder']}, whose weights differ",
            f"Make both with the same --clip (`{_COMMAND_THAT_MAKES[one.kind]}`, `{_COMMAND_THAT_MAKES[other.kind]}`)",
        )


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"
