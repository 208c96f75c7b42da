"""The errors a user may meet: each says what was wrong, where, and what to do, and fixes the exit code.

Anything else that escapes a command is a bug and leaves with exit code 1.
"""

from __future__ import annotations


class DptrError(Exception):
    """An expected failure. ``str(error)`` is one line: what and where, then what to do."""

    exit_code = 1

    def __init__(self, problem: str, advice: str = "") -> None:
        self.problem = problem
        self.advice = advice
        super().__init__(f"{problem.rstrip('.')}. {advice}" if advice else problem)


class UserError(DptrError):
    """Bad usage, configuration or input."""

    exit_code = 2


class DamagedStore(DptrError):
    """Stored data is damaged, or two stores do not belong together."""

    exit_code = 3


class TooManyRefused(DptrError):
    """More inputs were quarantined than the caller allowed."""

    exit_code = 4
