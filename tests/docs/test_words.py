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
#: The same outside tests and benchmarks: idioms and personification.
IDIOMS = {
    "resume, continue": r"\b(goes|went|going) on\b|begun anew|begins? anew",
    "is, has": r"\bwhat stands\b|\bknows?\b|\bto be had\b",
    "prints, reports, states": r"\b(is|are|was|be) told\b|\btells? (of|that|how|what|which|where|whose|the)\b",
    "result": r"\bcomes? to\b|\bcame to\b|\bwhat became of\b",
    "skipped, rejected": r"\bpassed over\b|\bset aside for\b|\bleft out and named\b",
    "local": r"\bat hand\b",
    "users, callers": r"\bwhoever\b|\bsomebody's\b|\bone's own\b",
    "imitates": r"\btakes? after\b",
    "a noun": r"\"\"\"(What|Where|Which|How) ",
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


@pytest.mark.parametrize("term", IDIOMS, ids=lambda term: term.replace(" ", "_"))
def test_sentences_are_plain(term: str) -> None:
    """A docstring names its object: "Result of a run.", not "What a run came to."."""
    private = re.compile(IDIOMS[term], re.IGNORECASE)
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name in TEXTS
        if name not in WITHOUT and not name.startswith(("tests/", "benchmarks/"))
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1)
        if private.search(re.sub(r"https?:\S+", "", line))
    ]
    assert found == [], f"say {term!r}"
