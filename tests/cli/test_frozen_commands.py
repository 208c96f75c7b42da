"""Commands and flags that people and scripts rely on: what is here stays, and what is new is added here and told."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.main import get_command

from dptr.cli import app

ROOT = Path(__file__).resolve().parents[2]
COMMON = "--debug --help --json --no-check --quiet --workspace"
FROZEN = {
    "build-orp-bank": "--address --batch-size --clip --crops-per-image --device --dtype --engine --engine-workers "
    "--exclude-near --exclude-threshold --max-bad --out --part --precision --retry-quarantined --seed "
    "--tokens-per-crop --workers",
    "demo": "--out",
    "doctor": "",
    "embed-crops": "--augmentation --batch-size --charset --clip --device --dtype --max-bad --max-label-length "
    "--out --part --precision --seed --views --workers",
    "embed-text": "--address --ascii --batch-size --case --charset --clip --column --context --cover-pieces --device "
    "--dry-run --dtype --engine --engine-workers --max-bad --max-label-length --min-count --out --part --precision "
    "--seed --shard-rows --simplified --states --template --unicode --unit --units",
    "evaluate": "--data --device --precision --protocol --single-view --words",
    "export": "--data --half --out --to --words",
    "finetune": "--charset --data --device --encoder --fmu --from --mix --out --photos --recipe --seed --set "
    "--simplified --steps --text --track --unlabelled --units --validation",
    "init": "",
    "merge": "",
    "mine-neighbours": "--orp --prompts -k",
    "pack-crops": "--out",
    "pretrain": "--decoder --device --noise --orp --out --prompts --recipe --sampling --seed --set --steps --track",
    "push": "--half --license --out --private",
    "read": "--batch-size --boxes --device --out --precision --watch --words",
    "render-words": "--address --count --engine --engine-workers --fonts --language --like --max-label-length --out "
    "--part --photos --seed --style --unit --vertical --workers",
    "report": "--data --orp --out --prompts",
    "sql": "--format --open --orp --out --prompts",
    "verify": "--repair",
}


def flags_of(name: str) -> set[str]:
    context = get_command(app).make_context("dptr", [name], resilient_parsing=True)
    found = context.command.commands[name]  # type: ignore[attr-defined]
    options = [option for option in found.get_params(context) if option.param_type_name == "option"]
    return {max(option.opts, key=len) for option in options}


def test_the_commands_are_the_frozen_ones() -> None:
    assert set(get_command(app).commands) == set(FROZEN)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FROZEN)
def test_the_flags_of_a_command_are_the_frozen_ones(name: str) -> None:
    assert flags_of(name) == {*FROZEN[name].split(), *COMMON.split()}


@pytest.mark.parametrize("name", FROZEN)
def test_every_command_is_told_of_in_readme_or_docs(name: str) -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert any(f"dptr {name}" in page.read_text(encoding="utf-8") for page in pages)
