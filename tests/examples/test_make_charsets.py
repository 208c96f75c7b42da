"""The named charsets are what their program makes of CLDR's data, as far as that can be told without the data."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import unicodedata
from pathlib import Path

from dptr.cache.text.charset import Charset, names

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "charsets" / "make_charsets.py"


def test_a_set_of_cldr_is_read_with_escapes_clusters_and_ranges() -> None:
    members = runpy.run_path(str(PROGRAM))["members"]
    assert members(r"[aàb {ch} \- \u200C c-e \]]") == set("aàbch-\u200ccde]")


def test_a_charset_is_made_of_letters_in_both_cases_digits_and_punctuation(tmp_path: Path) -> None:
    told = {"exemplarCharacters": "[α σς ΐ]", "numbers": "[0 1]", "punctuation": "[« » … ‾]", "auxiliary": "[ἀ]"}
    file = tmp_path / "main" / "el" / "characters.json"
    file.parent.mkdir(parents=True)
    characters = {**told, "lenient-scope-general": {"£": "[£]", ".": "[.]"}}
    file.write_text(json.dumps({"main": {"el": {"characters": characters}}}))
    arguments = [str(tmp_path / "main"), str(tmp_path), "-o", str(tmp_path / "out"), "--only", "el"]
    subprocess.run([sys.executable, PROGRAM, *arguments], check=True, capture_output=True)
    made = Charset.named(str(tmp_path / "out" / "el.txt"))
    assert made.characters == Charset.named("94").text + "".join(sorted("£«»ΐΑΣαςσ€"))


def test_what_codecs_give_is_in_the_files() -> None:
    program = runpy.run_path(str(PROGRAM))
    assert {*program["SOURCES"], "latin"} == set(names())
    for name, (_, codec) in program["SOURCES"].items():
        if codec is not None:
            found = {unicodedata.normalize("NFKC", character) for character in program["of_codec"](*codec)}
            assert found <= set(Charset.named(name).characters)
            assert len(found) > 2000
