"""What each help is worth when a recogniser is adapted to few crops: labels, rendered text, lexicon, unlabelled crops.

    python benchmarks/adaptation.py DOMAIN... -o OUT [--seed 0] [--steps 600] [--side test]

A DOMAIN is a folder NAME-SEED with ``crops`` (labelled), ``text.txt``, ``more`` (crops without labels, may be absent)
and ``test`` or ``validation`` (labelled, of other groups): `adaptation_domains.py` cuts them. Each configuration trains
on all of ``crops`` for as many steps as the others, and then reads the other side; the lexicon is the one with which
the start reads ``crops`` best. One line of JSON each goes to OUT/rows.jsonl, and a table of them is printed: accuracy,
case-insensitive, and its difference from the start's, with a paired bootstrap interval over groups of crops.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import bootstrap

from dptr.cache.crops.dataset import WordImages
from dptr.cache.errors import run_script
from dptr.trainer import adapt
from dptr.trainer.evaluate import ReadImages, read_word_images
from dptr.trainer.finetune import parts_of
from dptr.trainer.metrics import wilson
from dptr.trainer.model.model_file import BUNDLED, ModelFile
from dptr.trainer.model.recognizer import Recognizer, load_recognizer
from dptr.trainer.recipe import load_recipe
from dptr.trainer.training.runs import Trained

CPU = torch.device("cpu")
#: Configurations beside the start: whether text is rendered, and whether unlabelled crops are used.
CONFIGURATIONS = {
    "labels": (False, False),
    "labels + rendering": (True, False),
    "labels + unlabelled": (False, True),
    "labels + rendering + unlabelled": (True, True),
}


def main() -> None:
    """Parse, adapt, read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domains", type=Path, nargs="*", help="none: only print the table")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600, help="of each configuration")
    parser.add_argument("--side", default="test", help="what is read: test, or validation to choose settings")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--threshold", type=float, default=0.9, help="confidence of a predicted label that counts")
    parser.add_argument("--configurations", default="0,1,2,3", help=f"of {', '.join(CONFIGURATIONS)}")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for domain in arguments.domains:
        Study(domain, arguments).run()
    print(table_of(arguments.out / "rows.jsonl"))


class Study:
    """The configurations of one domain, with one draw of its labels."""

    def __init__(self, domain: Path, options: argparse.Namespace) -> None:
        self.domain, self.options = domain, options
        self.start = ModelFile.open(BUNDLED)
        changes = [*options.changes, f"finetune.seed={options.seed}"]
        more = [domain / "more"] if (domain / "more").is_dir() else []
        self.material = adapt.Material.read([domain / "crops"], [domain / "text.txt"], options.photos, more)
        recipe = load_recipe("adapt", changes, parts_of(self.start))
        charset, recipe = adapt.fitted([domain / "crops"], self.material, self.start, recipe, None)
        normalization = adapt.normalization_of(recipe, charset)
        self.crops = WordImages.open([domain / "crops"], charset, normalization)
        self.test = WordImages.open([domain / options.side], charset, normalization)
        work = options.out / f"{domain.name}-{options.seed}"
        self.made = adapt.Adaptation(self.crops, charset, self.start, recipe, work, CPU, None, self.material)
        self.made.held_out, self.made.is_crossed = [self.test], True
        self.lexica = dict(self.made.lexica)
        self.own = self.made.lexica[0][0]

    def run(self) -> None:
        """Train and read, one configuration after the other."""
        began = time.process_time()
        self.general = self.made.render()
        self.rendered = self.made.rendered
        rendering = time.process_time() - began
        scores = {}
        for named, lexicon in self.made.lexica:
            found = adapt.pooled([self.read(self.start, lexicon, self.crops)])
            scores[named] = (found.accuracy, found.one_minus_ned)
        self.best = max(scores, key=lambda named: scores[named])
        self.rows("start", self.start, 0)
        for number in map(int, self.options.configurations.split(",")):
            name = list(CONFIGURATIONS)[number]
            renders, predicts = CONFIGURATIONS[name]
            if predicts and not self.material.unlabelled:
                continue
            began = time.process_time()
            run, predicted = self.trained(number, renders, predicts)
            seconds = time.process_time() - began + (rendering if renders else rendering / 2)
            self.rows(name, run, seconds, predicted=predicted)

    def trained(self, number: int, renders: bool, predicts: bool) -> tuple[Trained, int]:
        """Train one configuration; return it, and how many unlabelled crops its predictions count for."""
        made, steps = self.made, self.options.steps // (2 if predicts else 1)
        made.rendered = self.rendered if renders else self.rendered[1:]  # the text comes first
        made.settings = made.settings.model_copy(update={"steps": steps, "few_steps": steps})
        run = made.finetune(f"{number}-first", self.crops, self.start, [], validate=_unvalidated)
        if not predicts:
            return run, 0
        labels = [sample.label for sample in self.crops.samples]
        allowed = adapt.allowed_by(self.material.text, made.charset, labels)
        found = made.labelled(run, adapt.Rule(self.lexica[self.best], self.options.threshold, allowed))
        more = [found] if len(found) else []
        return made.finetune(f"{number}-second", self.crops, run, more, validate=_unvalidated), len(found)

    def read(self, trained: Trained, lexicon: object, images: WordImages) -> ReadImages:
        """Read crops with a lexicon or, None, without."""
        model: Recognizer = load_recognizer(trained)
        adapt.prefer(model, lexicon)  # type: ignore[arg-type]
        return read_word_images(model, images, CPU)

    def rows(self, name: str, trained: Trained, seconds: float, **also: object) -> None:
        """Write what a recogniser reads with each of three lexica, and how many general words."""
        general = None
        if self.general is not None:
            general = adapt.pooled([self.read(trained, self.lexica[self.own], self.general)]).accuracy
        for suffix, lexicon in (("", self.own), (" + lexicon", self.best), (", no lexicon", "none")):
            read = self.read(trained, self.lexica[lexicon], self.test)
            right = [t.lower() == r.text.lower() for t, r in zip(read.ground_truths, read.predictions, strict=True)]
            keys = [sample.key for sample in self.test.samples]
            line = {
                "domain": self.domain.name, "seed": self.options.seed, "steps": self.options.steps,
                "configuration": name + suffix, "words": len(right), "accuracy": float(np.mean(right)),
                "interval": wilson(sum(right), len(right)), "general": None if suffix else general, "lexicon": lexicon,
                "seconds": round(seconds), "changes": self.options.changes, **also,
                "groups": groups(self.domain.name, keys, read.ground_truths), "ground_truths": read.ground_truths,
                "predictions": [prediction.text for prediction in read.predictions],
            }  # fmt: skip
            with (self.options.out / "rows.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print({key: value for key, value in line.items() if not isinstance(value, list)}, flush=True)


def _unvalidated(_: torch.nn.Module) -> dict[str, float]:
    return {"score": 0.0}


def groups(domain: str, keys: list[str], ground_truths: list[str]) -> list[str]:
    """Return the receipt, photo or plate of each crop."""
    if domain.startswith("plates"):
        return ground_truths
    if domain.startswith("ic15"):  # crops are numbered photo by photo, about 4.5 a photo
        return [str(int("".join(filter(str.isdigit, Path(key).stem))) // 5) for key in keys]
    return [Path(key).stem.split("_")[0] if domain.startswith(("receipts", "iiit5k")) else key for key in keys]


def table_of(rows: Path) -> str:
    """Return a Markdown table of accuracies over all seeds of a domain."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    latest = {(line["domain"], line["configuration"]): line for line in map(json.loads, rows.read_text().splitlines())}
    for line in latest.values():  # of what was run again, the last
        found.setdefault((line["domain"].rpartition("-")[0], line["configuration"]), []).append(line)
    lines = ["| domain | configuration | seeds | crops | accuracy | difference | general words |", "|" + " --- |" * 7]
    for (domain, configuration), runs in found.items():
        starts = {line["domain"]: line for line in found[domain, "start"]}
        pairs = [(right_by_group(run), right_by_group(starts[run["domain"]])) for run in runs]
        low, high = paired_interval(pairs)
        accuracy = np.mean([run["accuracy"] for run in runs])
        gain = accuracy - np.mean([starts[run["domain"]]["accuracy"] for run in runs])
        general = [run["general"] for run in runs if run["general"] is not None]
        shown = f"{np.mean(general):.1%}" if general else ""
        lines.append(
            f"| {domain} | {configuration} | {len(runs)} | {runs[0]['words']} | {accuracy:.1%} | {100 * gain:+.1f} "
            f"({100 * low:+.1f} to {100 * high:+.1f}) | {shown} |"
        )
    return "\n".join(lines)


def right_by_group(line: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return of each group how many crops are read right, and how many there are."""
    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for group, ground_truth, text in zip(line["groups"], line["ground_truths"], line["predictions"], strict=True):
        right, count = found[group]
        found[group] = (right + (ground_truth.lower() == text.lower()), count + 1)
    return found


def paired_interval(
    pairs: list[tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]],
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the difference; a group is drawn with all its seeds and crops."""
    gains: dict[str, float] = defaultdict(float)
    counts: dict[str, float] = defaultdict(float)
    for after, before in pairs:
        for group, (right, count) in after.items():
            gains[group] += right - before[group][0]
            counts[group] += count

    def mean_gain(gain: NDArray[np.float64], count: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        return np.asarray(gain.sum(axis=axis) / count.sum(axis=axis))

    sides = ([gains[group] for group in counts], list(counts.values()))
    interval = bootstrap(
        sides, mean_gain, paired=True, vectorized=True, n_resamples=5000, method="percentile", rng=0
    ).confidence_interval
    return float(interval.low), float(interval.high)


if __name__ == "__main__":
    run_script(main)
