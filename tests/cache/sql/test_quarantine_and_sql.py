from __future__ import annotations

from pathlib import Path

import pytest

from dptr.cache.errors import TooManyRefused, UserError
from dptr.cache.file_names import QUARANTINE_FILE
from dptr.cache.sql.query import ask
from dptr.cache.sql.views import connect
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.quarantine import Quarantine
from dptr.cache.workspace import Workspace


def test_refusals_are_kept_with_place_and_reason_even_when_work_is_cut_short(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(KeyboardInterrupt), Quarantine(workspace.prompts / QUARANTINE_FILE) as quarantine:
        quarantine.refuse("words.txt", 3, "bad\ud800", "not in the charset: x")
        quarantine.refuse("words.txt", None, "y" * 500, "longer than 25 characters")
        raise KeyboardInterrupt
    Manifest("prompts", {}).save(workspace.prompts)
    answer = ask(connect(workspace), "select * from refused_text order by line")
    rows = answer.rows()
    assert answer.columns == ["source", "line", "item", "reason"]
    assert rows[0] == ("words.txt", 3, "bad\\ud800", "not in the charset: x")
    assert len(rows[1][2]) == 200


def test_counts_are_by_kind_of_reason(tmp_path: Path) -> None:
    with Quarantine(tmp_path / "q.parquet") as quarantine:
        for character in "xyz":
            quarantine.refuse("f", 1, character, f"not in the charset: {character}")
    assert quarantine.counts == {"not in the charset": 3}
    quarantine.check(3)
    with pytest.raises(TooManyRefused, match="3 inputs"):
        quarantine.check(2)


def test_an_empty_workspace_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dptr embed-text"):
        connect(Workspace(tmp_path))


def test_a_bad_query_names_the_tables(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with Quarantine(workspace.prompts / QUARANTINE_FILE):
        pass
    Manifest("prompts", {}).save(workspace.prompts)
    with pytest.raises(UserError, match="refused_text"):
        ask(connect(workspace), "select * from nothing")
