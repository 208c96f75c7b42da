"""The project is written in the field's terms: invented words stay out of documentation, help, messages and code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Term to use -> what it replaces, as a regular expression.
TERMS = {
    "from scratch": r"from nothing",
    "case-insensitive": r"case aside|case set aside",
    "held-out": r"kept back|keeps? back|kept aside|keeps? aside",
    "resume": r"goes? on with|went on with|goes on where|go on where|begun anew",
    "prediction": r"what was read|what it reads on|surest reading",
    "fixed": r"mended|mends\b",
    "most confident": r"surest",
    "attention decoder": r"decoders? that attends?",
    "text encoder, image encoder": r"\b(text|image|CLIP's) towers?\b|(?<![a-z])tower_|_towers?\b|Tower\b",
    "embeddings": r"\b(text|token|image|hidden|prompt) states\b|\bstates of (a |the )?(text|prompt|picture|image)s?\b",
    "zero-shot": r"without one labelled crop",
    "code layout": r"\bthe house\b",
    "lexicon": r"words to prefer|preferred words",
    "augmented copies": r"views of (a |each |labelled )?crops?",
    "log-probabilities": r"\bchances\b",
    "checksum": r"\bseal(s|ed)?\b",
    "decoded again": r"asked again|read again in|asks again",
    "rejected": r"refus(e|es|ed|al|als|ing)\b",
    "what the reader can do": r"what you get",
    "nothing": r"of no use|told apart|is told of|are told of|tells of\b",
}
TEXTS = [
    *(path for path in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
      if path.endswith((".py", ".md", ".toml", ".jinja", ".sh", ".ipynb"))),
]  # fmt: skip
#: This file lists the words.
WITHOUT = {"tests/docs/test_words.py", "CHANGELOG.md", "examples/notebook.ipynb"}


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.replace(" ", "_"))
def test_the_fields_terms_are_used(term: str) -> None:
    private = re.compile(TERMS[term], re.IGNORECASE)
    assert len(TEXTS) > 200
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name in TEXTS
        if name not in WITHOUT
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1)
        if private.search(line)
    ]
    assert found == [], f"say {term!r}"
