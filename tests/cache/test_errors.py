"""What a command says of an expected failure is one line."""

from __future__ import annotations

import errno

import pytest

from dptr.cache.errors import DamagedStore, DptrError, UserError, disk_problem


@pytest.mark.parametrize("kind", [UserError, DamagedStore])
def test_what_another_library_says_in_several_lines_becomes_one(kind: type[DptrError]) -> None:
    error = kind("cannot be read (no\nsuch\r\nthing)", "Mend it")
    assert str(error) == "cannot be read (no such thing). Mend it"
    assert error.problem == "cannot be read (no such thing)"


def test_a_full_disk_is_told_with_the_file_where_it_is_known() -> None:
    assert (
        disk_problem(OSError(errno.ENOSPC, "No space left on device", "out.bin")) == "out.bin: No space left on device"
    )
    assert disk_problem(OSError(errno.ENOSPC, "No space left on device")) == "writing: No space left on device"
