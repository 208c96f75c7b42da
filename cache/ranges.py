"""Checks that settings lie in their ranges, before any work."""

from __future__ import annotations

from dptr.cache.errors import UserError


def require_at_least(least: int, **settings: int | None) -> None:
    """Check that every setting is ``least`` or more; None means that it is not set.

    Raises:
        UserError: one is smaller; it is named as its option on the command line.
    """
    for name, value in settings.items():
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}", f"Give {least} or more")
