"""The forms of a label that share its states, where a CLIP folds case."""

from __future__ import annotations

from dptr.pipeline.choices import Case


def case_variants(label: str, case: Case) -> list[str]:
    """Return the forms of ``label`` that are rows of the same states, each once: for one in three, upper case first.

    A variant may lack a character of the charset or be longer than its label (ß has no single capital): judge each.
    """
    if case != "upper-lower-title":
        return [label]
    title = " ".join(word.capitalize() for word in label.split(" "))
    return list(dict.fromkeys([label.upper(), label.lower(), title]))
