"""Train a CLIP for the scripts of some word lists, from the bundled one: tokenizer, rendered crops, one run.

    python examples/word_lists.py ru el ar he hi th -o lists
    python examples/train_clip/make_scripts.py lists/*.txt -o my_clip --photos photos/

Words that ``is_held_out`` names and one family of fonts in five are kept from training; the last lines say, list by
list, how often a crop of such a word in such a font finds its prompt among those of 1,000 such words. What was made is
taken as it is, so the same command resumes it.

Smallest size: WORDS -o OUT --photos PHOTOS --scale 0.0002 --workers 1
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

from dptr.cache.errors import UserError, run_script
from dptr.cache.text.normalization import Normalization
from dptr.cache.text.units import JOINERS
from dptr.pipeline.clip.clip_files import is_held_out
from dptr.pipeline.rendering.fonts import FontCollection, find_fonts

_UNSEEN_ONE_IN = 5
_CROPS, _UNSEEN, _STEPS, _FEWEST = 16_000, 1_000, 12_000, 10
_ORNAMENTAL = ("Linux Biolinum Keyboard", "Linux Libertine Initials")


def main() -> None:
    """Parse, render, train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", nargs="+", type=Path, help="word lists, one for each language or script")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True, help="photos without text")
    parser.add_argument("--fonts", type=Path, help="folder of fonts; otherwise those that are installed")
    parser.add_argument("--style", default="natural", help="of the crops, as for render-words")
    parser.add_argument("--crops", type=int, default=_CROPS, help="rendered of each list")
    parser.add_argument("--steps", type=int, default=_STEPS)
    parser.add_argument("--workers", default="2", help="processes that render")
    parser.add_argument("--only-render", action="store_true", help="stop before training")
    parser.add_argument("--scale", type=float, default=1.0, help="so much of the crops and steps, to try the script")
    arguments = parser.parse_args()
    render_all(arguments)
    if arguments.only_render:
        return
    out, names = arguments.out, [words.stem for words in arguments.lists]
    learnt = [out / name / "train.txt" for name in names]
    # As labels have them: Thai sara am is two characters in one.
    characters = {character for file in learnt for character in Normalization().apply(file.read_text(encoding="utf-8"))}
    charset = sorted(c for c in characters if not c.isspace() and (c.isprintable() or c in JOINERS))
    (out / "charset.txt").write_text("".join(charset), encoding="utf-8")
    if not (out / "like").exists():
        script = Path(__file__).with_name("scripts_tokenizer.py")
        subprocess.run([sys.executable, script, *learnt, "-o", out / "like"], check=True)
    train = [Path(__file__).with_name("train.py"), "--clip", out / "like", "--from", "tiny", "-o", out / "run"]
    train += ["--charset", out / "charset.txt", "--photos", arguments.photos]
    train += ["--steps", scaled(arguments.steps, arguments.scale)]
    train += ["--validation", *(out / name / "unseen.parquet" for name in names)]
    train += ["--data", *(out / name / "crops.parquet" for name in names)]
    subprocess.run([sys.executable, *map(str, train)], check=True)
    print(f"the CLIP: {out / 'run' / 'clip'}")


def render_all(arguments: argparse.Namespace) -> None:
    """Render crops of each list: words to learn in fonts to learn, unseen words in unseen fonts."""
    out = arguments.out
    part_fonts(find_fonts(arguments.fonts), out)
    for words in arguments.lists:
        folder = out / words.stem
        folder.mkdir(parents=True, exist_ok=True)
        write_words(words, folder)
        for name, which, count in (("crops", "train", arguments.crops), ("unseen", "unseen", _UNSEEN)):
            if not (folder / f"{name}.parquet").exists():
                dptr(
                    *("render-words", folder / f"{which}.txt", "-o", folder / f"{name}.parquet"),
                    *("--count", scaled(count, arguments.scale), "--fonts", out / f"fonts_{which}"),
                    *("--photos", arguments.photos, "--style", arguments.style),
                    *("--workers", arguments.workers),
                )


def write_words(source: Path, folder: Path) -> None:
    """Write the words to learn, also capitalised where the script has capitals, and those never to be seen."""
    words = list(dict.fromkeys(source.read_text(encoding="utf-8").split()))
    seen = [word for word in words if not is_held_out(word)]
    forms = dict.fromkeys(form for word in seen for form in (word, word.capitalize(), word.upper()))
    # Asked of each form: the capital of a Turkish letter is another letter's, too.
    learnt = [form for form in forms if not is_held_out(form)]
    (folder / "train.txt").write_text("\n".join(learnt) + "\n", encoding="utf-8")
    (folder / "unseen.txt").write_text("\n".join(filter(is_held_out, words)) + "\n", encoding="utf-8")


def part_fonts(fonts: FontCollection, out: Path) -> None:
    """Copy fonts to two folders: those to learn from, and one family in five."""
    if (out / "fonts_train").exists():
        return
    usable = [font for font in fonts.fonts if not font.names[0].startswith(_ORNAMENTAL)]
    drawn = {font.names[0]: zlib.crc32(font.names[0].encode()) for font in usable}
    if len(drawn) < 2:
        raise UserError(f"{len(drawn)} families of fonts", "Install more, one of them is kept from training")
    # Where there are few families it may be that no number ends so.
    unseen = {family for family in drawn if drawn[family] % _UNSEEN_ONE_IN == 0} or {min(drawn, key=lambda f: drawn[f])}
    for name in ("fonts_train", "fonts_unseen"):
        (out / name).mkdir(parents=True)
    for number, font in enumerate(usable):
        folder = out / ("fonts_unseen" if font.names[0] in unseen else "fonts_train")
        shutil.copyfile(font.path, folder / f"{number:04d}-{font.path.name}")


def scaled(count: int, scale: float) -> int:
    """Return a share of ``count``, and never next to nothing."""
    return max(_FEWEST, round(count * scale))


def dptr(*arguments: object) -> None:
    """Run one command and stop where it fails."""
    subprocess.run([sys.executable, "-m", "dptr", *map(str, arguments)], check=True)


if __name__ == "__main__":
    run_script(main)
