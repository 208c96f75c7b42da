"""Words to labelled synthetic word images: a folder, LMDB or Parquet, the same whatever the number of workers.

Crop number i depends on the seed and i alone. Words come in turn from a shuffled list, so all are drawn equally often.
"""

from __future__ import annotations

import io
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dptr.cache.crops.dataset import write_word_images
from dptr.cache.errors import UserError, require_at_least
from dptr.cache.progress import note, progress
from dptr.pipeline.executors.executor import IN_PROCESS, WHOLE, Executor, Part, Processes, Work, Worker
from dptr.pipeline.rendering.crop import render_one
from dptr.pipeline.rendering.fonts import FontCollection, find_fonts
from dptr.pipeline.rendering.shaping import needs_shaping, require_raqm
from dptr.pipeline.rendering.style import NATURAL, RenderStyle

_CROPS_A_TASK = 64
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class RenderSummary:
    """Result of rendering.

    Attributes:
        out: the output. rows: crops written. fonts: usable fonts.
        rejected: words that no font can draw; examples: some of them.
        seconds: from the first crop to the last.
    """

    out: Path
    rows: int
    fonts: int
    rejected: int
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class _Job:
    words: list[str]
    fonts: FontCollection
    photos: list[Path]
    style: RenderStyle
    seed: int

    def crop(self, index: int) -> tuple[bytes, str]:
        """Render crop ``index`` of the job as JPEG bytes, with its label."""
        rng = np.random.default_rng((self.seed, index))
        word = self.words[index % len(self.words)]
        image = render_one(word, self.fonts.choose(word, rng), rng, self.style, self.photos)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        return stream.getvalue(), word


def render_words(
    words: Sequence[str],
    out: Path,
    *,
    count: int | None = None,
    seed: int = 0,
    fonts: Path | FontCollection | None = None,
    language: str | None = None,
    photos: Sequence[Path] = (),
    style: RenderStyle = NATURAL,
    workers: int = 1,
    part: Part = WHOLE,
    executor: Executor = IN_PROCESS,
) -> RenderSummary:
    """Render ``words`` as labelled crops into ``out`` (``.lmdb``, ``.parquet`` or a folder with ``labels.tsv``).

    Args:
        words: labels.
        out: must not hold labelled images.
        count: crops in all; by default one a word.
        seed: makes crops reproducible, on any number of workers.
        fonts: folder of fonts, or fonts; by default those of installed packages and of the system.
        language: whose forms of the characters are drawn, as zh-Hans, zh-Hant, ja or ko; fonts for others are left out.
        photos: image files that backgrounds may be cut from.
        style: how strong each effect may be.
        workers: processes that render.
        part: of the crops to render, into a Parquet file in a folder beside ``out``.
        executor: where crops are rendered; with several ``workers``, processes of this machine by default.

    Raises:
        UserError: a number out of range, no words, no fonts, no font that can draw any word, ``out`` is taken, or a
            photo cannot be read; or Pillow has no Raqm, and a word, ``language`` or a column needs it.
    """
    require_at_least(1, count=count, workers=workers)
    require_at_least(0, seed=seed)
    _require_raqm(words, language, style)
    collection = fonts if isinstance(fonts, FontCollection) else find_fonts(fonts, language)
    usable, rejected = _drawable(words, collection)
    order = np.random.default_rng(seed).permutation(len(usable))
    job = _Job([usable[i] for i in order], collection, list(photos), style, seed)
    count = len(usable) if count is None else count
    wanted = part.stretch(count)
    total, target = len(wanted), part.beside(out, ".parquet")
    started = time.monotonic()
    with write_word_images(target) as writer, progress("rendering words", total, "crops") as bar:
        for crops in _render(job, wanted, workers, executor):
            for image, label in crops:
                writer.write(image, label)
            bar.advance(len(crops))
    return RenderSummary(target, total, len(collection.fonts), len(rejected), rejected[:5], time.monotonic() - started)


def _require_raqm(words: Sequence[str], language: str | None, style: RenderStyle) -> None:
    combining = next(filter(needs_shaping, words), None)
    if combining is not None:
        require_raqm(f"the word {combining!r}")
    if language is not None or style.vertical:
        require_raqm("--language" if language is not None else "--vertical")


def _leaves_ink(word: str) -> bool:
    """Return whether ``word`` has visible characters, not only joiners and spaces."""
    return any(not (c.isspace() or unicodedata.category(c) in ("Cf", "Cc")) for c in word)


def _drawable(words: Sequence[str], fonts: FontCollection) -> tuple[list[str], list[str]]:
    usable: list[str] = []
    rejected: list[str] = []
    for word in words:
        (usable if _leaves_ink(word) and fonts.covers(word) else rejected).append(word)
    if not usable:
        problem = (
            f"no font has the characters and rules for {rejected[0]!r} or any other word"
            if words
            else "there are no words"
        )
        raise UserError(problem, "Name a folder with fonts of that script (--fonts)" if words else "Give a word list")
    if rejected:
        note(f"{len(rejected)} of {len(words)} words rejected, no font has their glyphs: {', '.join(rejected[:5])}")
    return usable, rejected


def _render(job: _Job, wanted: range, workers: int, executor: Executor) -> Iterator[list[tuple[bytes, str]]]:
    tasks = [wanted[start : start + _CROPS_A_TASK] for start in range(0, len(wanted), _CROPS_A_TASK)]
    if executor is IN_PROCESS and workers > 1:
        executor = Processes(workers)
    return executor.in_order(Worker(_renderer(job), _renderer, (job,)), tasks)


def _renderer(job: _Job) -> Work[list[tuple[bytes, str]]]:
    """Return what renders crops."""
    return lambda task: lambda: [job.crop(index) for index in task]
