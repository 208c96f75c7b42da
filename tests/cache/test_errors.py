"""What a command says of an expected failure is one line."""

from __future__ import annotations

import pytest

from dptr.cache.errors import DamagedStore, DptrError, UserError


@pytest.mark.parametrize("kind", [UserError, DamagedStore])
def test_what_another_library_says_in_several_lines_becomes_one(kind: type[DptrError]) -> None:
    error = kind("cannot be read (no\nsuch\r\nthing)", "Mend it")
    assert str(error) == "cannot be read (no such thing). Mend it"
    assert error.problem == "cannot be read (no such thing)"
