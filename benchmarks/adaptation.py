"""What each help is worth when a recogniser is adapted to few crops: labels, rendered text, lexicon, unlabelled crops.

    python benchmarks/adaptation.py DOMAIN... -o OUT [--seed 0] [--set finetune.steps=300]

A DOMAIN is a folder with ``crops`` (labelled), ``text.txt``, ``more`` (crops without labels, may be absent) and
``test`` (labelled, of other groups). Each configuration trains on all of ``crops`` and reads ``test`` once; the weight
of the lexicon is the one with which the start reads ``crops`` best. One line of JSON each goes to OUT/rows.jsonl, and
a table of them is printed: accuracy, case-insensitive, and its difference from the start's with a paired interval.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dptr.cache.crops.dataset import WordImages
from dptr.cache.errors import run_script
from dptr.trainer import adapt
from dptr.trainer.evaluate import ReadImages, read_word_images
from dptr.trainer.finetune import parts_of
from dptr.trainer.metrics import wilson
from dptr.trainer.model.model_file import BUNDLED, ModelFile
from dptr.trainer.model.recognizer import Recognizer, load_recognizer
from dptr.trainer.recipe import load_recipe
from dptr.trainer.training.runs import Run, Trained

CPU = torch.device("cpu")


def main() -> None:
    """Parse, adapt, read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domains", type=Path, nargs="*", help="none: only print the table")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--threshold", type=float, default=0.9, help="confidence of a predicted label that counts")
    parser.add_argument("--arms", default="labels,text,unlabelled")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for domain in arguments.domains:
        study(domain, arguments)
    print(table_of(arguments.out / "rows.jsonl"))


def study(domain: Path, options: argparse.Namespace) -> None:
    """Adapt to one domain, a help after the other."""
    start = ModelFile.open(BUNDLED)
    changes = [*options.changes, f"finetune.seed={options.seed}"]
    more = [domain / "more"] if (domain / "more").is_dir() else []
    material = adapt.Material.read([domain / "crops"], [domain / "text.txt"], options.photos, more)
    charset, recipe = adapt.fitted(
        [domain / "crops"], material, start, load_recipe("adapt", changes, parts_of(start)), None
    )
    normalization = adapt.normalization_of(recipe, charset)
    crops = WordImages.open([domain / "crops"], charset, normalization)
    test = WordImages.open([domain / "test"], charset, normalization)
    work = options.out / f"{domain.name}-{options.seed}"
    made = adapt.Adaptation(crops, charset, start, recipe, work, CPU, None, material)
    made.held_out, made.is_crossed = [test], True
    general = made.render()
    rendered = made.rendered

    def row(arm: str, read: ReadImages, seconds: float, general_read: ReadImages | None = None, **also: object) -> None:
        right = [t.lower() == r.text.lower() for t, r in zip(read.ground_truths, read.predictions, strict=True)]
        exact = [t == r.text for t, r in zip(read.ground_truths, read.predictions, strict=True)]
        known = adapt.pooled([general_read]).accuracy if general_read else None
        line = {
            "domain": domain.name, "seed": options.seed, "arm": arm, "words": len(right),
            "exact": float(np.mean(exact)), "accuracy": float(np.mean(right)),
            "interval": wilson(sum(right), len(right)), "general": known,
            "seconds": round(seconds), "changes": options.changes, **also, "right": "".join("01"[r] for r in right),
        }  # fmt: skip
        with (options.out / "rows.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print({key: value for key, value in line.items() if key != "right"}, flush=True)

    def read(trained: Trained, lexicon: object, images: WordImages) -> ReadImages:
        model: Recognizer = load_recognizer(trained)
        adapt.prefer(model, lexicon)  # type: ignore[arg-type]
        return read_word_images(model, images, CPU)

    lexica = dict(made.lexica)
    scores = {named: adapt.pooled([read(start, lexicon, crops)]) for named, lexicon in made.lexica}
    best = max(scores, key=lambda named: (scores[named].accuracy, scores[named].one_minus_ned))
    own = made.lexica[0][0]
    general_start = read(start, lexica[own], general) if general else None
    row("start", read(start, lexica[own], test), 0, general_start)
    row("start + lexicon", read(start, lexica[best], test), 0, chosen=best)
    steps: dict[str, Run] = {}
    for arm in options.arms.split(","):
        began = time.process_time()
        source: Trained = start
        found: list[WordImages] = []
        if arm == "unlabelled":
            source = steps["text"]
            rule = adapt.Rule(lexica[best], options.threshold, adapt.allowed_by(material.text, charset, labels(crops)))
            found = [made.labelled(steps["text"], rule)]
        made.rendered = rendered[1:] if arm == "labels" else rendered  # the text comes first
        run = made.finetune(arm, crops, source, found, validate=lambda model: {"score": 0.0})
        steps[arm] = run
        seconds = time.process_time() - began
        arms = {"labels": "labels", "text": "labels + rendering", "unlabelled": "labels + rendering + unlabelled"}
        row(arms[arm], read(run, None, test), seconds, read(run, lexica[own], general) if general else None,
            predicted=[len(images) for images in found])  # fmt: skip
        row(arms[arm] + " + own lexicon", read(run, lexica[own], test), seconds)
        row(arms[arm] + " + text lexicon", read(run, lexica[best], test), seconds, chosen=best)


def table_of(rows: Path) -> str:
    """Return a Markdown table of accuracies over all seeds of a domain."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in map(json.loads, rows.read_text().splitlines()):
        found.setdefault((line["domain"].rpartition("-")[0], line["arm"]), []).append(line)
    lines = ["| domain | configuration | seeds | crops | accuracy | difference | general words |", "|" + " --- |" * 7]
    for (domain, arm), runs in found.items():
        starts = {run["domain"]: run["right"] for run in found[domain, "start"]}
        before, after = (
            np.array([[int(right) for right in line] for line in side])
            for side in ([starts[run["domain"]] for run in runs], [run["right"] for run in runs])
        )
        # Seeds read the same test crops, so a crop is drawn with all its seeds.
        gain = (after - before).mean(0)
        draws = np.random.default_rng(0).integers(len(gain), size=(2000, len(gain)))
        low, high = np.quantile(gain[draws].mean(1), [0.025, 0.975])
        general = [run["general"] for run in runs if run["general"] is not None]
        shown = f"{np.mean(general):.1%}" if general else ""
        lines.append(
            f"| {domain} | {arm} | {len(runs)} | {len(gain)} | {after.mean():.1%} | {100 * gain.mean():+.1f} "
            f"({100 * low:+.1f} to {100 * high:+.1f}) | {shown} |"
        )
    return "\n".join(lines)


def labels(crops: WordImages) -> list[str]:
    """Return the labels of crops."""
    return [sample.label for sample in crops.samples]


if __name__ == "__main__":
    run_script(main)
