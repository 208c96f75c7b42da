"""From a look at the data to a recipe with comments, a charset, and the commands to run."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dptr.cache.charset import Charset
from dptr.pipeline.starting.look import Look

_RECIPES = Path(__file__).resolve().parents[2] / "recipes"
_NAMED = ("36", "62", "94")
#: Of all characters, that a charset has to hold; the rest is mostly slips.
_ENOUGH = 0.999
_LONG_BEFORE, _LONGEST = 25, 100
_MANY_WORDS = 50_000
_USUAL_WIDTH = 128
#: Crops are squeezed to 4:1; where most are much wider, letters need more columns.
_WIDE = 6.0
#: Besides Latin, what the bundled recogniser and the bundled CLIP called ``scripts`` know.
_READ_BY_SCRIPTS = frozenset({"Cyrillic", "Devanagari", "Greek", "Hebrew", "Thai"})
_EMBEDDED_BY_SCRIPTS = _READ_BY_SCRIPTS | {"Arabic"}


@dataclass(frozen=True)
class Plan:
    """What is proposed.

    Attributes:
        base: the bundled recipe it begins with. recipe: TOML with comments. charset: a name, or characters of its own.
        own_charset: whether ``charset`` is characters, to be written to a file. found: what was seen, in lines.
        short_way: commands of minutes, from the encoder of the bundled recogniser.
        commands: those of the long way, with a decoder that has learnt to spell from text; each in order.
    """

    base: str
    recipe: str
    charset: str
    own_charset: bool
    found: list[str]
    short_way: list[str]
    commands: list[str]


def plan(look: Look, recipe_file: Path, charset_file: Path, on_gpu: bool) -> Plan:
    """Propose a charset, a recipe and the commands that use them."""
    base = "small" if on_gpu and look.labels.words >= _MANY_WORDS else "tiny"
    charset = choose_charset(look.all_characters)
    own = charset not in _NAMED
    named = str(charset_file) if own else charset
    return Plan(
        base,
        _recipe(look, base),
        charset,
        own,
        _found(look),
        _short_way(look, named),
        _commands(look, recipe_file, named),
    )


def choose_charset(characters: Counter[str]) -> str:
    """Return the smallest of the field's charsets that holds 99.9 % of the characters, or else these themselves."""
    total = sum(characters.values())
    for name in _NAMED:
        known = set(Charset.named(name).characters)
        folds = name == "36"
        inside = sum(count for c, count in characters.items() if (c.lower() if folds else c) in known)
        has_case = any(c.isupper() for c in characters)
        if inside >= _ENOUGH * total and not (folds and has_case):
            return name
    kept, held = [], 0
    for character, count in sorted(characters.items(), key=lambda item: (-item[1], item[0])):
        if held >= _ENOUGH * total and count < 2:
            break
        kept.append(character)
        held += count
    return "".join(sorted(kept))


def longest_label(look: Look) -> int:
    """Return how many characters 99.9 % of the labels hold at most, but no more than 100."""
    longest = [labels.longest() for labels in (look.labels, look.crop_labels) if labels.words]
    return min(max(longest, default=0), _LONGEST)


def _recipe(look: Look, base: str) -> str:
    text = (_RECIPES / f"{base}.toml").read_text(encoding="utf-8")
    changes = {}
    longest = longest_label(look)
    if longest > _LONG_BEFORE:
        changes["max_label_length"] = (
            longest,
            f"99.9 % of your labels have {longest} characters or fewer.",
        )
    ratios = [width / height for width, height in look.sizes]
    if ratios and float(np.median(ratios)) > _WIDE:
        changes["image_width"] = (2 * _USUAL_WIDTH, f"Half of your crops are wider than {np.median(ratios):.1f} : 1.")
    for key, (value, why) in changes.items():
        text = re.sub(rf"^{key} = .*$", f"# {why}\n{key} = {value}", text, flags=re.MULTILINE)
    head = [f"# Begun by dptr init from recipe {base}; every key may be changed, `--set section.key=value` overrides."]
    return "\n".join([*head, *(f"# {line}" for line in _found(look)), "", text])


def _found(look: Look) -> list[str]:
    lines = []
    for name, labels in (("words", look.labels), ("labelled crops", look.crop_labels)):
        if labels.words:
            scripts = ", ".join(
                f"{script} {count / max(sum(labels.scripts.values()), 1):.0%}"
                for script, count in labels.scripts.most_common(3)
            )
            middle, longest = int(np.median(labels.lengths)), max(labels.lengths)
            lines.append(
                f"{labels.words:,} {name}: {scripts or 'no letters'}; {len(labels.characters)} characters; "
                f"{middle} long in the middle, {longest} at most"
            )
    if look.sizes:
        widths, heights = np.median(np.array(look.sizes), axis=0).tolist()
        lines.append(f"crops of {widths:.0f} x {heights:.0f} pixels in the middle")
    if look.photo_count:
        lines.append(f"{look.photo_count:,} photos")
    return lines


def _short_way(look: Look, charset: str) -> list[str]:
    """Crops rendered from the words beside the labelled ones, a thousand steps; words longer than 25 are left out."""
    own, run = shlex.quote(charset), "dptr_data/runs/short"
    crops, words = (" ".join(shlex.quote(str(path)) for path in paths) for paths in (look.crops, look.corpora))
    lines = [f"dptr render-words {words} -o short.lmdb --count 4000"] if words else []
    data = " ".join(part for part in (crops, "short.lmdb" if words else "") if part) or "CROPS"
    start = "scripts" if look.main_script in _READ_BY_SCRIPTS else "bundled"
    lines.append(f"dptr finetune --from {start} --charset {own} --data {data} --steps 1000 -o {run}")
    return [*lines, f"dptr read {run} sign.png"]


def _commands(look: Look, recipe_file: Path, charset: str) -> list[str]:
    recipe, own = shlex.quote(str(recipe_file)), shlex.quote(charset)
    crops = " ".join(shlex.quote(str(path)) for path in look.crops) or "CROPS"
    words = " ".join(shlex.quote(str(path)) for path in look.corpora) or "WORDS.txt"
    photos = " ".join(shlex.quote(str(path)) for path in look.photos) or "PHOTOS"
    lines = []
    clip, longest = "", longest_label(look)
    length = f" --max-label-length {longest}" if longest > _LONG_BEFORE else ""
    if look.main_script in _EMBEDDED_BY_SCRIPTS:
        clip = " --clip scripts"
    elif look.main_script not in (None, "Latin"):
        lines += [
            f"dptr render-words {words} -o rendered.parquet --count 200000",
            f"dptr render-words {words} -o unseen.parquet --count 2000 --seed 1",
            "python examples/train_clip/train.py --data rendered.parquet --validation unseen.parquet "
            f"--photos {photos} --charset {own} -o my_clip",
        ]
        clip = " --clip my_clip/clip"
    lines += [
        f"dptr embed-text {words} --charset {own}{clip}{length} --dry-run",
        f"dptr embed-text {words} --charset {own}{clip}{length}",
        f"dptr build-orp-bank {photos}{clip}",
        f"dptr pretrain --recipe {recipe}",
    ]
    if not look.crops:
        lines.append(f"dptr render-words {words} -o rendered.lmdb")
        crops = "rendered.lmdb"
    lines += [
        f"dptr finetune --recipe {recipe} --data {crops} --charset {own}",
        "dptr report RUN",
        "dptr read RUN sign.png",
    ]
    return lines
