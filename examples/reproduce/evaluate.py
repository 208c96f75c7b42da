"""Evaluate a recogniser on the paper's test sets and print its figures beside the paper's.

    python examples/reproduce/evaluate.py runs/finetuned data

Word accuracy by the field's protocol with 36 characters, as in the authors' evaluation (case folded, other characters
removed), each crop read once; BCTR by its own protocol. Means are over sets. Missing sets are skipped with a note.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from check_data import DATASETS, data_sets

from dptr.cache.errors import UserError, run_script
from dptr.cache.printing import table

TITLES = {
    "six": "six benchmarks",
    "beside": "larger ICDAR sets",
    "union14m": "Union14M-Benchmark",
    "ost": "OST",
    "bctr": "BCTR",
}


def main() -> None:
    """Parse, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a fine-tuning run, a model file, or a bundled recogniser's name")
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--sets", type=Path, default=DATASETS, help="TOML file of the data sets")
    parser.add_argument("--only", nargs="+", choices=TITLES, default=["six", "beside", "union14m", "ost"])
    arguments = parser.parse_args()
    described = [one for one in data_sets(arguments.sets) if one.get("test") in arguments.only]
    found = [one for one in described if (arguments.data / one["path"]).exists()]
    if not found:
        raise UserError(f"{arguments.data} has none of the test sets", "See docs/reproduce.md for the layout")
    scores = {}
    for protocol in ("field", "chinese"):
        chosen = [one for one in found if (one["test"] == "bctr") == (protocol == "chinese")]
        if chosen:
            scores |= measured(arguments.run, arguments.data, chosen, protocol)
    means = tomllib.loads(arguments.sets.read_text(encoding="utf-8"))["mean"]
    rows = [row for group in arguments.only for row in rows_of(group, found, scores, means)]
    print(table(["data set", "words", "theirs", "ours", "95 % interval"], rows, numbers=(1, 2, 3)))
    missing = [one["name"] for one in described if one not in found]
    if missing:
        print(f"not found: {', '.join(missing)}")


def measured(run: str, data: Path, sets: list[dict[str, Any]], protocol: str) -> dict[str, dict[str, Any]]:
    """Return the figures of each set, by its path below the data folder."""
    paths = {str(data / one["path"]): one["path"] for one in sets}
    command = [sys.executable, "-m", "dptr", "evaluate", run, *paths, "--protocol", protocol, "--single-view", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])["sets"]
    return {paths[path]: scores["36" if protocol == "field" else "chinese"] for path, scores in figures.items()}


def rows_of(
    group: str, found: list[dict[str, Any]], scores: dict[str, dict[str, Any]], means: dict[str, float]
) -> list[tuple[str, ...]]:
    """Return the rows of a group of sets, and their mean."""
    rows, accuracies = [], []
    for one in found:
        score = scores.get(one["path"])
        if one["test"] != group or score is None or "accuracy" not in score:
            continue
        low, high = score["accuracy_interval"]
        accuracies.append(score["accuracy"])
        interval = f"{100 * low:.1f}-{100 * high:.1f}"
        theirs = f"{one['theirs']:.1f}" if "theirs" in one else "-"
        rows.append((one["name"], f"{score['words']:,}", theirs, f"{100 * score['accuracy']:.1f}", interval))
    if len(rows) > 1:
        theirs = f"{means[group]:.2f}" if group in means else "-"
        rows.append((f"mean: {TITLES[group]}", "", theirs, f"{100 * sum(accuracies) / len(accuracies):.2f}", ""))
    return rows


if __name__ == "__main__":
    run_script(main)
