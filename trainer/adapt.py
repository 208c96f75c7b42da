"""Adapting a recogniser to a domain: few labelled crops, plus text, photos and unlabelled crops.

Small sets of labelled crops are cross-validated, and then one recogniser is trained on all of them. Larger sets are
split once. In both cases accuracies are of real held-out crops, and a result that is no better than the start is not
used. Rendered crops of general words are mixed in against forgetting, and rendered crops of the given text.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dptr.cache import processes
from dptr.cache.crops.dataset import UnreadableImage, WordImages, without_overlap, write_word_images
from dptr.cache.crops.samples import Samples
from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import ADAPTATION_FILE, CHECKPOINTS_FOLDER, RUN_FILE
from dptr.cache.printing import table
from dptr.cache.progress import note, progress
from dptr.cache.stores import checksummed
from dptr.cache.stores.lock import locked
from dptr.cache.text.charset import Charset
from dptr.cache.text.lexicon import Lexicon
from dptr.cache.text.normalization import Normalization
from dptr.pipeline.rendering.fonts import Font, FontCollection, find_fonts, packaged_fonts
from dptr.pipeline.rendering.like import looks_of_crops
from dptr.pipeline.rendering.render_words import render_words
from dptr.pipeline.rendering.style import RenderStyle
from dptr.pipeline.rendering.word_lists import photo_paths, text_counts
from dptr.trainer.data.image_batches import mixing_weights
from dptr.trainer.evaluate import ReadImages, read_word_images
from dptr.trainer.finetune import FinetuneSummary, finetune, validated
from dptr.trainer.metrics import Score, score, wilson
from dptr.trainer.model.language_model import CharacterModel
from dptr.trainer.model.model_file import BUNDLED, ModelFile
from dptr.trainer.model.reading import width_for
from dptr.trainer.model.recognizer import Prediction, Recognizer, load_recognizer
from dptr.trainer.read import PictureFiles, Reader, open_picture
from dptr.trainer.recipe import FinetuneSettings, Recipe
from dptr.trainer.training import runs
from dptr.trainer.training.checkpoint import MODEL, OPTIMIZER, save_checkpoint
from dptr.trainer.training.step_log import Tracker

_WORK = "adaptation"
#: Number of rendered crops of a kind, of general words for the comparison, and of fonts.
_RENDERED, _GENERAL_READ = 2500, 300
_FONTS = 100
_GENERAL_STYLE = RenderStyle.of_difficulty(0.6)
_READ_STYLE = RenderStyle.of_difficulty(0.3)
#: Weights tried for the user's text as a lexicon.
_WEIGHTS = (0.6, 1.0)
#: Without the start's lexicon seven points of general words are lost, so another lexicon has to be better by this much.
_WITHOUT_WORDS = 0.02
_OWN = "that of the start"
#: Candidate confidence thresholds of pseudo-labels, and their minimum precision on validation crops.
_CONFIDENCES, _RIGHT = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98), 0.95
_LEAST_ACCEPTED = 10
#: Quantile of the labels' language-model scores below which a pseudo-label is rejected.
_ALLOWED = 0.02
_UNLABELLED_READ = 3000
#: Maximum number of held-out crops.
_MOST_HELD_OUT = 400
#: Minimum number of groups.
_LEAST_GROUPS = 5
#: Fraction of labels with a space from which text is read as lines.
_LINES = 0.05
_LONGEST, _WIDEST, _MEASURED, _SQUEEZED = 100, 1024, 500, 1.25
_ENOUGH = 0.999


@dataclass(frozen=True)
class Material:
    """Inputs of adaptation besides labelled crops.

    Attributes:
        text: words or lines -> count. photos: files for backgrounds.
        unlabelled: picture files of one word or line each.
    """

    text: Mapping[str, float] = field(default_factory=dict)
    photos: Sequence[Path] = ()
    unlabelled: Sequence[Path] = ()

    @classmethod
    def read(
        cls, crops: Sequence[Path], text: Sequence[Path], photos: Path | None, unlabelled: Sequence[Path]
    ) -> Material:
        """Read text as lines where labels of ``crops`` have spaces, else as words; find photos and pictures.

        Raises:
            UserError: a file is missing or holds no text, or a folder no picture.
        """
        labels = [sample.label.split() for sample in WordImages.open_as_written(crops).samples]
        has_lines = sum(len(words) > 1 for words in labels) > _LINES * len(labels)
        return cls(
            text_counts([str(path) for path in text], "line" if has_lines else "word") if text else {},
            photo_paths(photos) if photos else (),
            _pictures(unlabelled),
        )

    def identity(self) -> dict[str, Any]:
        """Return the material's identity: a hash of the text, names and sizes of the files."""
        files = [[str(path), path.stat().st_size] for path in (*self.photos, *self.unlabelled)]
        return {"text": _digest(sorted(self.text.items())), "files": _digest(files)}


@dataclass(frozen=True)
class Comparison:
    """Word accuracy on some crops before and after, with the interval of the latter at 95 %."""

    crops: int
    before: float
    after: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, before: Score, after: Score) -> Comparison:
        """Compare two scores of the same crops."""
        interval = wilson(round(after.accuracy * after.words), after.words)
        return cls(after.words, before.accuracy, after.accuracy, interval)


@dataclass(frozen=True)
class AdaptSummary(FinetuneSummary):
    """Result of an adaptation.

    Attributes:
        own: of held-out labelled crops. general: of rendered general words, to measure forgetting.
        lexicon: of the result. folds: of the cross-validation; 1: one held-out set.
        remarks: unused inputs, with reasons.
    """

    own: Comparison
    general: Comparison | None
    lexicon: str
    folds: int
    remarks: list[str]

    def lines(self) -> list[str]:
        """Return the comparison for people."""
        held_out = "held out" if self.folds == 1 else f"{self.folds}-fold cross-validation"
        rows = [_row(f"your crops, {held_out}", self.own)]
        if self.general:
            rows.append(_row("general words, rendered", self.general))
        shown = table(["word accuracy", "crops", "before", "after", "95 % interval"], rows, numbers=(1, 2, 3, 4))
        if self.own.after <= self.own.before:
            shown += "\nno configuration was better on your crops than the starting model"
        return [shown, f"lexicon: {self.lexicon}", *self.remarks]


@dataclass(frozen=True)
class _Part:
    """Labelled crops to train on, and others to validate on."""

    training: WordImages
    validation: WordImages


@dataclass(frozen=True)
class _Option:
    """Recognisers, one a fold, with a lexicon: ``stage`` -1 is the start, others are rounds of training.

    ``loses_words``: the lexicon lacks the start's words.
    """

    stage: int
    named: str
    lexicon: Lexicon | None
    read: list[ReadImages]
    loses_words: bool = False

    def rank(self, parts: Sequence[int] | None = None) -> tuple[float, float]:
        """Return accuracy, minus a penalty for losing the start's words, and 1-NED, over some folds."""
        found = pooled([self.read[part] for part in (range(len(self.read)) if parts is None else parts)])
        return found.accuracy - _WITHOUT_WORDS * self.loses_words, found.one_minus_ned


def fitted(
    paths: Sequence[Path], material: Material, start: runs.Trained, recipe: Recipe, named: Charset | None
) -> tuple[Charset, Recipe]:
    """Return the charset and the recipe for labelled crops: old and new characters, label lengths and widths.

    Args:
        paths: labelled crops. material: its text's characters are added, too.
        start: the recogniser. recipe: with its parts. named: a requested charset, which is then used unchanged.
    """
    crops = WordImages.open_as_written(paths)
    form = Normalization(keep_spaces=True, max_label_length=_LONGEST)
    labels = [label for label in (form.apply(sample.label) for sample in crops.samples) if label]
    lines = list(material.text)
    charset = named or _union(start.charset, labels, lines)
    lengths = [charset.length(label) for label in (*labels, *lines)] or [1]
    longest = max(recipe.decoder.max_label_length, min(int(np.quantile(lengths, _ENOUGH, method="higher")), _LONGEST))
    recipe = recipe.replace("decoder", max_label_length=longest)
    if recipe.encoder.kind == "convolution" and recipe.fmu.kind == "none":
        recipe = recipe.replace("encoder", image_widths=_widths(crops, recipe))
    return charset, recipe


def adapt(
    images: WordImages,
    charset: Charset,
    start: runs.Trained,
    recipe: Recipe,
    out: Path,
    device: str | torch.device = "cpu",
    track: Tracker | None = None,
    validation: WordImages | None = None,
    material: Material | None = None,
) -> AdaptSummary:
    """Adapt a recogniser to labelled crops, and compare it with the start; resumes interrupted runs.

    Args:
        images: labelled crops. charset, recipe: see :func:`fitted`. start: the recogniser.
        out: the run. validation: held-out crops; by default some of ``images``. material: text, photos, more crops.

    Raises:
        UserError: too few crops, or none can be read. DamagedStore: ``out`` holds something else.
    """
    processes.require_alone("finetune --from RECOGNISER")
    started = time.monotonic()
    material = material or Material()
    data = [images.identity(), validation.identity() if validation else None, material.identity()]
    identity = json.loads(json.dumps([recipe.defining("finetune"), charset.text, start.weights_hash(), *data]))
    with locked(out):
        if (out / ADAPTATION_FILE).is_file():
            return _kept(out, identity)
        if (out / RUN_FILE).is_file() and not (out / _WORK).is_dir():
            raise DamagedStore(f"{out} holds another run", "Choose another folder with -o")
        work = out / _WORK
        adaptation = Adaptation(images, charset, start, recipe, work, torch.device(device), track, material)
        summary = replace(adaptation.run(validation, out), seconds=time.monotonic() - started)
        plain = {**asdict(replace(summary, coverage=None)), "out": str(out)}
        checksummed.write_json(out / ADAPTATION_FILE, {"identity": identity, "summary": plain})
        shutil.rmtree(work)
    return summary


class Adaptation:
    """The trainings of one adaptation, each in a separate folder, and their results."""

    def __init__(
        self,
        images: WordImages,
        charset: Charset,
        start: runs.Trained,
        recipe: Recipe,
        work: Path,
        device: torch.device,
        track: Tracker | None,
        material: Material,
    ) -> None:
        self.images, self.charset, self.start, self.recipe = images, charset, start, recipe
        self.work, self.device, self.track, self.material = work, device, track, material
        self.settings, self.normalization = recipe.finetune, normalization_of(recipe, charset)
        self.lexica = _lexica(start, material.text, recipe)
        self.remarks: list[str] = []
        self.rendered: list[tuple[float, WordImages]] = []
        self.rules: list[Rule] = []
        self.summaries: list[FinetuneSummary] = []

    def run(self, validation: WordImages | None, out: Path) -> AdaptSummary:
        """Train, choose, and move the chosen run to ``out``."""
        parts = _parts(self.images, validation, self.settings)
        self.held_out, self.is_crossed = [part.validation for part in parts], len(parts) > 1
        general = self.render()
        options = self._read(-1, [load_recognizer(self.start, str(self.device))] * len(parts), parts)
        starts: Sequence[runs.Trained] = [self.start] * len(parts)
        more: list[list[WordImages]] = [[] for _ in parts]
        rounds: list[list[runs.Run]] = []
        for stage in range(1 + (self.settings.rounds if self.material.unlabelled else 0)):
            if stage:
                latest = max((option for option in options if option.stage == stage - 1), key=_Option.rank)
                more = self._predicted(latest, rounds[-1])
                if not all(more):
                    break
            trained = [
                self._train(f"round-{stage}-{number}", part, start, images)
                for number, (part, start, images) in enumerate(zip(parts, starts, more, strict=True))
            ]
            rounds.append(trained)
            starts = trained
            options += self._read(stage, [load_recognizer(run, str(self.device)) for run in trained], parts)
        chosen = max(options, key=_Option.rank)
        run = self._final(chosen, rounds)
        _promote(run, out, chosen.lexicon)
        return self._summary(out, options, chosen, general)

    def render(self) -> WordImages | None:
        """Render the crops to mix in; return crops of general words for the comparison, None without fonts."""
        text = list(self.material.text)
        if text and self.settings.text:
            crops = self._crops("text", text, RenderStyle.like(looks_of_crops(self.images)), 3)
            if crops is not None:
                self.rendered.append((self.settings.text, crops))
        words = _general_words(self.start, self.charset)
        read, others = words[:_GENERAL_READ], words[_GENERAL_READ:]
        if self.settings.general and others:
            crops = self._crops("general", others, _GENERAL_STYLE, 2)
            if crops is not None:
                self.rendered.append((self.settings.general, crops))
        return self._crops("general_read", read, _READ_STYLE, 1, _GENERAL_READ, _plain_fonts()) if read else None

    def _crops(
        self,
        name: str,
        words: Sequence[str],
        style: RenderStyle,
        seed: int,
        count: int = _RENDERED,
        fonts: FontCollection | None = None,
    ) -> WordImages | None:
        path, photos = self.work / f"{name}.parquet", self.material.photos
        try:
            if not path.is_file():
                chosen = fonts or _some_fonts(words)
                render_words(words, path, count=count, seed=seed, style=style, photos=photos, fonts=chosen)
        except UserError as error:
            self.remarks.append(f"no rendered crops of {name} words: {error.problem}")
            return None
        return WordImages.open([path], self.charset, self.normalization)

    def _train(self, name: str, part: _Part, start: runs.Trained, more: Sequence[WordImages]) -> runs.Run:
        """Train on the crops of one fold."""
        if self.is_crossed:
            # No early stopping: there are too few crops to choose the number of steps.
            validate = partial(validated, images=part.validation, device=self.device)
            return self.finetune(name, part.training, start, more, validate=validate)
        return self.finetune(name, part.training, start, more, validation=part.validation)

    def finetune(
        self,
        name: str,
        crops: WordImages,
        start: runs.Trained,
        more: Sequence[WordImages],
        validation: WordImages | None = None,
        validate: Callable[[torch.nn.Module], dict[str, float]] | None = None,
    ) -> runs.Run:
        """Train on labelled crops mixed with rendered ones and ``more``, in a folder of that name."""
        mixed = [*self.rendered, *((self.settings.unlabelled, images) for images in more)]
        shares = [*_shares(crops, self.settings.mix), *(share for share, _ in mixed)]
        recipe = self.recipe.replace("finetune", mix=",".join(f"{share:.9f}" for share in shares))
        if validate is not None:
            steps = min(self.settings.steps, self.settings.few_steps)
            recipe = recipe.replace("finetune", steps=steps, validate_every=steps, patience=0)
        rounds = 1 + (self.settings.rounds if self.material.unlabelled else 0)
        most = rounds * (len(self.held_out) + self.is_crossed)
        note(f"training {len(self.summaries) + 1} of at most {most}, {recipe.finetune.steps:,} steps each")
        summary = finetune(
            _joined([crops, *(images for _, images in mixed)]),
            self.charset,
            start,
            recipe,
            self.work / name,
            self.device,
            self.track,
            validation=validation,
            validate=validate,
        )
        self.summaries.append(summary)
        return runs.Run.load(self.work / name)

    def _read(self, stage: int, models: Sequence[Recognizer], parts: Sequence[_Part]) -> list[_Option]:
        """Read the held-out crops with every lexicon."""
        options = []
        has_words = self.lexica[0][1] is not None
        for named, lexicon in self.lexica:
            read = []
            for model, part in zip(models, parts, strict=True):
                prefer(model, lexicon)
                read.append(read_word_images(model, part.validation, self.device))
            options.append(_Option(stage, named, lexicon, read, has_words and not named.startswith(_OWN)))
        return options

    def _predicted(self, latest: _Option, trained: Sequence[runs.Run]) -> list[list[WordImages]]:
        """Return the unlabelled crops with each recogniser's pseudo-labels; nothing if too few are accepted."""
        allowed = allowed_by(self.material.text, self.charset, [sample.label for sample in self.images.samples])
        least, right = _threshold(latest, allowed)
        if least is None:
            self.remarks.append(
                f"unlabelled crops are not used: no confidence threshold selects {_LEAST_ACCEPTED} held-out crops with "
                f"{_RIGHT:.0%} correct predictions"
            )
            return [[] for _ in trained]
        self.rules.append(Rule(latest.lexicon, least, allowed))
        found = [self.labelled(run, self.rules[-1]) for run in trained]
        self.remarks.append(
            f"unlabelled crops: {sum(map(len, found)) // len(found):,} of {len(self.unlabelled):,} have predictions of "
            f"confidence {least:g} or more, of which {right:.0%} are right for held-out crops"
        )
        return [[images] if len(images) else [] for images in found]

    @cached_property
    def unlabelled(self) -> list[Path]:
        """The unlabelled pictures, without those that are labelled crops."""
        labelled = {found for images in (self.images, *self.held_out) for found in images.content_hashes()}
        chosen = sorted(self.material.unlabelled, key=lambda path: _digest([path.name]))[:_UNLABELLED_READ]
        return [path for path in chosen if hashlib.sha256(path.read_bytes()).digest() not in labelled]

    def labelled(self, run: runs.Run, rule: Rule) -> WordImages:
        """Write the unlabelled crops with accepted pseudo-labels as labelled crops."""
        path = self.work / f"{run.name}.parquet"
        if not path.is_file():
            model = load_recognizer(run, str(self.device))
            prefer(model, rule.lexicon)
            openers = (partial(open_picture, file) for file in self.unlabelled)
            predictions = Reader(model, str(self.device)).read_opened(openers)
            with write_word_images(path) as writer, progress("labelling", len(self.unlabelled), "crops") as shown:
                for file, prediction in zip(self.unlabelled, predictions, strict=True):
                    shown.advance()
                    if isinstance(prediction, Prediction) and rule.accepts(prediction):
                        writer.write(file.read_bytes(), prediction.text)
        try:
            return WordImages.open([path], self.charset, self.normalization)
        except UserError:  # no prediction is accepted
            return WordImages()

    def _final(self, chosen: _Option, rounds: Sequence[Sequence[runs.Run]]) -> runs.Run:
        """Return the run of the chosen option; after cross-validation, a new one that trains on all crops."""
        if chosen.stage < 0:
            return self._start_as_run()
        if not self.is_crossed:
            return rounds[chosen.stage][0]
        found = pooled(chosen.read)
        figures = {"score": found.accuracy, "accuracy": found.accuracy, "one_minus_ned": found.one_minus_ned}
        start: runs.Trained = self.start
        more: list[WordImages] = []
        for stage in range(chosen.stage + 1):
            run = self.finetune(f"round-{stage}-all", self.images, start, more, validate=lambda _: figures)
            more = [self.labelled(run, self.rules[stage])] if stage < chosen.stage else []
            start = run
        return run

    def _start_as_run(self) -> runs.Run:
        """Return the start as a run, which can have another lexicon."""
        start, folder = self.start, self.work / "start"
        run = runs.start_or_continue(folder, "finetune", start.recipe, start.charset, start.memory_dim, start.data)
        state: dict[str, Any] = {"step": 0, "best_score": None, "best_step": 0, "metrics": {}, "unlogged": None}
        for name in ("best", "last"):
            save_checkpoint(folder / CHECKPOINTS_FOLDER / name, {MODEL: start.weights(), OPTIMIZER: {}}, state)
        return run

    def _summary(
        self, out: Path, options: Sequence[_Option], chosen: _Option, general: WordImages | None
    ) -> AdaptSummary:
        own = Comparison.of(pooled(options[0].read), pooled(_held_out_choice(options)))
        remembered = None
        if general is not None:
            models = (load_recognizer(self.start), load_recognizer(runs.Run.load(out)))
            scores = [pooled([read_word_images(model.to(self.device), general, self.device)]) for model in models]
            remembered = Comparison.of(*scores)
        forgotten = {"general_before": remembered.before, "general": remembered.after} if remembered else {}
        last = self.summaries[-1]
        if chosen.stage < 0:
            self.remarks.append("training did not help: the result has the starting weights")
        return AdaptSummary(
            out=out,
            rows=len(self.images),
            computed=sum(summary.computed for summary in self.summaries),
            quarantined=last.quarantined,
            steps=runs.Run.load(out).step(),
            seconds=0.0,
            coverage=last.coverage,
            portrait=last.portrait,
            metrics={"accuracy_before": own.before, "accuracy": own.after, **forgotten},
            own=own,
            general=remembered,
            lexicon=chosen.named,
            folds=len(self.held_out),
            remarks=self.remarks,
        )


@dataclass(frozen=True)
class Rule:
    """Acceptance of pseudo-labels."""

    lexicon: Lexicon | None
    least: float
    allowed: Callable[[str], bool]

    def accepts(self, prediction: Prediction) -> bool:
        """Return whether a prediction is accepted as a label."""
        return bool(prediction.text) and prediction.confidence >= self.least and self.allowed(prediction.text)


def _pictures(folders: Sequence[Path]) -> list[Path]:
    """Return the picture files of folders.

    Raises:
        UserError: one cannot be listed or holds no picture.
    """
    found = []
    for picture in PictureFiles(folders):
        if isinstance(picture, UserError):
            raise picture
        found.append(picture)
    return found


def normalization_of(recipe: Recipe, charset: Charset) -> Normalization:
    """Return the normalisation of labels: with spaces if the charset has one."""
    return Normalization.of(charset, max_label_length=recipe.decoder.max_label_length)


def _parts(images: WordImages, validation: WordImages | None, settings: FinetuneSettings) -> list[_Part]:
    """Return training and validation crops: one split, or the folds of the cross-validation."""
    if validation is not None:
        return [_Part(without_overlap(images, validation), validation)]
    if len(images) < 2 * settings.folds:
        raise UserError(
            f"{len(images)} labelled crops are too few to train on and to validate",
            f"Label {2 * settings.folds} or more; 100 are a good start",
        )
    groups = groups_of([f"{sample.source}\t{sample.key}" for sample in images.samples])
    names = sorted(set(groups), key=lambda name: _digest([settings.seed, name]))
    sizes = Counter(groups)
    held_out: list[set[str]] = [set() for _ in range(settings.folds if len(images) < settings.few else 1)]
    counts = [0] * len(held_out)
    for name in names:
        if len(held_out) == 1 and counts[0] >= min(settings.validation_share * len(images), _MOST_HELD_OUT):
            break
        place = counts.index(min(counts))
        held_out[place].add(name)
        counts[place] += sizes[name]
    if not all(held_out) or len(held_out[0]) == len(names):
        raise UserError("all crops are of one group, by their names", "Name other crops with --validation")
    parts = []
    for chosen in held_out:
        inside = [group in chosen for group in groups]
        validated_on = images.only([index for index, is_held_out in enumerate(inside) if is_held_out])
        rest = images.only([index for index, is_held_out in enumerate(inside) if not is_held_out])
        parts.append(_Part(without_overlap(rest, validated_on) if len(held_out) > 1 else rest, validated_on))
    return parts


def groups_of(keys: Sequence[str]) -> list[str]:
    """Return the group of each crop: its folder, or its name up to the last number.

    Crops of one photo or receipt are similar, so they are held out together. With fewer than five groups, or as many
    as crops, each crop is a group.
    """
    folders = [str(Path(key).parent) for key in keys]
    numbers = [re.sub(r"[-_.]?\d+$", "", str(Path(key).with_suffix(""))) for key in keys]
    numbered = [re.search(r"[-_.]\d+$", str(Path(key).with_suffix(""))) is not None for key in keys]
    for groups, possible in ((folders, True), (numbers, all(numbered))):
        if possible and _LEAST_GROUPS <= len(set(groups)) < len(keys):
            return groups
    return list(keys)


def _lexica(start: runs.Trained, text: Mapping[str, float], recipe: Recipe) -> list[tuple[str, Lexicon | None]]:
    """Return the lexica to choose from, the start's own first."""
    own = start.lexicon()
    lexica: list[tuple[str, Lexicon | None]] = [(_OWN, own)] if own else []
    lexica.append(("none", None))
    if text and recipe.decoder.kind == "ctc":
        if own:
            share = sum(own.counts.values()) / sum(text.values())
            both = dict(own.counts) | {word: own.counts.get(word, 0) + share * count for word, count in text.items()}
            lexica.append((f"{_OWN} and your text, equally", Lexicon(both, own.weight)))
        lexica += [(f"your text, weight {weight:g}", Lexicon(text, weight)) for weight in _WEIGHTS]
    return lexica


def prefer(model: Recognizer, lexicon: Lexicon | None) -> None:
    """Set a recogniser's lexicon, or remove it."""
    if lexicon is None:
        model.prefer_words(None)
    else:
        model.prefer_words(lexicon.counts, lexicon.weight)


def pooled(read: Sequence[ReadImages]) -> Score:
    """Return the score of all predictions together."""
    ground_truths = [ground_truth for each in read for ground_truth in each.ground_truths]
    return score(
        ground_truths, [prediction.text for each in read for prediction in each.predictions], units=read[0].units
    )


def _held_out_choice(options: Sequence[_Option]) -> list[ReadImages]:
    """Return each fold's predictions of the option that is best on the other folds: no fold chooses for itself."""
    count = len(options[0].read)
    if count == 1:
        return max(options, key=_Option.rank).read
    found = []
    for part in range(count):
        others = [other for other in range(count) if other != part]
        found.append(max(options, key=lambda option: option.rank(others)).read[part])
    return found


def allowed_by(text: Mapping[str, float], charset: Charset, labels: Sequence[str]) -> Callable[[str], bool]:
    """Return which predictions are as likely under the text's language model as labels are; all without text."""
    if not text:
        return lambda _: True
    model = CharacterModel(text, charset)
    least = float(np.quantile([model.mean_score(label) for label in labels], _ALLOWED))
    return lambda word: model.mean_score(word) >= least


def _threshold(option: _Option, allowed: Callable[[str], bool]) -> tuple[float | None, float]:
    """Return the lowest confidence with enough precision on held-out crops, and that precision."""
    rows = [
        (prediction.confidence, ground_truth == prediction.text)
        for read in option.read
        for ground_truth, prediction in zip(read.ground_truths, read.predictions, strict=True)
        if prediction.text and allowed(prediction.text)
    ]
    for least in _CONFIDENCES:
        right = [is_right for confidence, is_right in rows if confidence >= least]
        if len(right) >= _LEAST_ACCEPTED and np.mean(right) >= _RIGHT:
            return least, float(np.mean(right))
    return None, 0.0


def _union(charset: Charset, labels: Sequence[str], text: Sequence[str]) -> Charset:
    """Return a charset extended by the characters of labels, and by all but the rarest of a text."""
    needed = {unit for label in labels for unit in charset.split(charset.fold_case(label))}
    counts = Counter(unit for line in text for unit in charset.split(charset.fold_case(line)))
    held, most = 0, _ENOUGH * sum(counts.values())
    for unit, count in counts.most_common():
        if held >= most:
            break
        needed.add(unit)
        held += count
    missing = needed - set(charset.characters)
    return charset.with_more(missing) if missing else charset


def _widths(crops: WordImages, recipe: Recipe) -> str:
    """Return the encoder's additional widths, extended if crops are wider than those of the start."""
    known = [int(width) for width in recipe.encoder.image_widths.split(",") if width.strip()]
    height, widest = recipe.encoder.image_height, max([recipe.encoder.image_width, *known])
    wanted = []
    for index in np.random.default_rng(0).permutation(len(crops))[:_MEASURED].tolist():
        try:
            wanted.append(width_for(crops.image(index), height, range(32, _WIDEST + 1, 32)))
        except UnreadableImage:
            continue
    # Letters are still legible at three quarters of their width.
    width, most = widest, int(np.quantile(wanted, 0.98)) if wanted else 0
    while width < most and most > _SQUEEZED * widest:
        width += 32 if width < 256 else 64 if width < 512 else 128
        known.append(width)
    return ",".join(map(str, sorted(set(known))))


def _some_fonts(words: Sequence[str]) -> FontCollection:
    """Return fonts that draw some of the words: of thousands on a machine, a hundred, since each has to be probed.

    Raises:
        UserError: there are none.
    """
    every = find_fonts().fonts
    found: list[Font] = []
    for index in np.random.default_rng(0).permutation(len(every)).tolist():
        if any(every[index].covers(word) for word in words[:3]):
            found.append(every[index])
        if len(found) == _FONTS:
            break
    return FontCollection(found or every)


def _plain_fonts() -> FontCollection | None:
    """Return the fonts of the ``demo`` extra, which are the same everywhere; None without it."""
    try:
        return packaged_fonts()
    except UserError:
        return None


def _general_words(start: runs.Trained, charset: Charset) -> list[str]:
    """Return words of the start's lexicon in a fixed order, in lower, title and upper case."""
    lexicon = start.lexicon() or ModelFile.open(BUNDLED).lexicon()
    known = set(start.charset.characters)
    found: list[str] = []
    for word in sorted(lexicon.counts if lexicon else (), key=lambda word: _digest([word])):
        written = (word.lower(), word.capitalize(), word.upper())[len(found) % 3]
        if 2 <= len(word) <= 12 and word.isalnum() and known.issuperset(written) and not charset.missing(written):
            found.append(written)
        if len(found) == _GENERAL_READ + _RENDERED:
            break
    return found


def _joined(sets: Sequence[WordImages]) -> WordImages:
    samples: Samples = sets[0].samples.joined_with([images.samples for images in sets[1:]])
    sources = {name: source for images in sets for name, source in images.sources.items()}
    return replace(sets[0], samples=samples, sources=sources)


def _shares(crops: WordImages, mix: str) -> list[float]:
    """Return the sampling rate of each data set of labelled crops; they add up to 1."""
    sizes = np.bincount(crops.samples.every_data_set(), minlength=len(crops.samples.data_sets))
    weights = mixing_weights(crops, mix)
    shares = sizes if weights is None else weights * sizes
    return [max(float(share), 1e-9) for share in shares / shares.sum()]


def _promote(run: runs.Run, out: Path, lexicon: Lexicon | None) -> None:
    """Copy a run into ``out``, its description last, and save its lexicon there."""
    for path in sorted(run.folder.iterdir(), key=lambda path: path.name == RUN_FILE):
        if path.is_dir():
            shutil.copytree(path, out / path.name, dirs_exist_ok=True)
        elif not path.name.startswith("."):
            shutil.copyfile(path, out / path.name)
    runs.Run.load(out).keep_lexicon(lexicon)


def _kept(out: Path, identity: Any) -> AdaptSummary:
    """Return the summary of a finished adaptation.

    Raises:
        DamagedStore: it was another.
    """
    kept = checksummed.read_json(out / ADAPTATION_FILE)
    if kept["identity"] != identity:
        raise DamagedStore(
            f"{out} holds an adaptation of other crops or with other settings", "Choose another folder with -o"
        )
    values = kept["summary"]
    for name in ("own", "general"):
        values[name] = values[name] and Comparison(**{**values[name], "interval": tuple(values[name]["interval"])})
    return AdaptSummary(**{**values, "out": out, "computed": 0})


def _row(named: str, compared: Comparison) -> tuple[str, ...]:
    low, high = compared.interval
    interval = f"{100 * low:.1f}-{100 * high:.1f}"
    return named, f"{compared.crops:,}", f"{compared.before:.1%}", f"{compared.after:.1%}", interval


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
