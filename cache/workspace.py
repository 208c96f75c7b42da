"""Locations of stores and runs, by which commands find each other's outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dptr.cache.errors import UserError
from dptr.cache.file_names import MANIFEST_FILE, RUN_FILE
from dptr.cache.remote import at_hand


@dataclass(frozen=True)
class Workspace:
    """One folder with stores and ``runs/``; ``other`` has stores in other folders."""

    root: Path
    other_prompts: Path | None = None
    other_orp: Path | None = None

    def with_stores(self, prompts: str | Path | None, orp: str | Path | None = None) -> Workspace:
        """Return the same workspace, with stores in other folders or on object storage; None keeps its own.

        Raises:
            UserError: a named folder holds no store. DamagedStore: an object of a store is damaged.
        """
        folders = [None if folder is None else at_hand(Path(folder)) for folder in (prompts, orp)]
        for folder in folders:
            if folder is not None and not (folder / MANIFEST_FILE).is_file():
                raise UserError(f"no store in {folder}", "Name a folder that embed-text or build-orp-bank made")
        return replace(self, other_prompts=folders[0], other_orp=folders[1])

    @property
    def prompts(self) -> Path:
        """The prompt store's folder."""
        return self.other_prompts or self.root / "prompts"

    @property
    def orp(self) -> Path:
        """The ORP bank's folder."""
        return self.other_orp or self.root / "orp"

    @property
    def image_features(self) -> Path:
        """The image-feature store's folder."""
        return self.root / "image_features"

    @property
    def runs(self) -> Path:
        """The folder that holds one folder per training run."""
        return self.root / "runs"

    @property
    def models(self) -> Path:
        """The folder of predictions of model files, which have no folder like runs."""
        return self.root / "models"

    @classmethod
    def at(cls, root: str | Path, prompts: str | Path | None = None, orp: str | Path | None = None) -> Workspace:
        """Return the workspace in a folder; stores as of :meth:`with_stores`."""
        return cls(Path(root)).with_stores(prompts, orp)

    def run_folders(self) -> list[Path]:
        """All runs, oldest first."""
        found = [path.parent for path in self.runs.glob(f"*/{RUN_FILE}")]
        return sorted(found, key=lambda folder: (folder / RUN_FILE).stat().st_mtime_ns)

    def find_run(self, name: str) -> Path:
        """Resolve a run given as a path, as a name under ``runs/``, or as an exported model file.

        Raises:
            UserError: there is no such run; the message names those that exist.
        """
        for candidate in (Path(name), self.runs / name):
            if (candidate / RUN_FILE).is_file():
                return candidate
        if Path(name).is_file():
            return Path(name)
        known = ", ".join(folder.name for folder in self.run_folders()) or "none yet"
        raise UserError(f"no run at {name}", f"Runs in {self.runs}: {known}")
