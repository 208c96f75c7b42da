"""The page on adding a recipe key does what it says, in as many lines as it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "new_recipe_key.md").read_text(encoding="utf-8")
NEW, CHANGED = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
BESIDE = "    weight_decay: float = Field(default=0.0, ge=0, le=100)\n"
BEFORE = (
    "    optimizer = torch.optim.AdamW("
    "groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)\n"
)
USED = """
from dptr.cache.errors import UserError
from dptr.trainer.recipe import load_recipe
print(load_recipe("tiny").pretrain.beta2, load_recipe("tiny", ["pretrain.beta2=0.98"]).pretrain.beta2)
try:
    load_recipe("tiny", ["pretrain.beta2=1.5"])
except UserError as error:
    print(error)
"""


def test_the_page_counts_its_lines() -> None:
    counts = [len(text.splitlines()) for text in (NEW, BEFORE, CHANGED)]
    assert counts == [1, 1, 4]
    assert "2 files: 1 new line, and 1\nline that becomes 4" in PAGE


def test_with_its_lines_the_key_is_read_and_checked(tmp_path: Path) -> None:
    package = tmp_path / "dptr"
    for folder in ("cache", "pipeline", "trainer", "recipes"):
        shutil.copytree(ROOT / folder, package / folder, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    shutil.copy(ROOT / "__init__.py", package)
    for name, old, new in (("recipe", BESIDE, BESIDE + NEW), ("training/loop", BEFORE, CHANGED)):
        path = package / "trainer" / f"{name}.py"
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding="utf-8")
        compile(path.read_text(encoding="utf-8"), path, "exec")
    changed = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", USED], env=changed, capture_output=True, text=True, check=True)
    defaults, rejection = done.stdout.splitlines()
    assert defaults == "0.999 0.98"
    assert "pretrain.beta2 = 1.5" in rejection
    assert "a number above 0 below 1" in rejection
