"""The page on adding a form of labelled crops does what it says, in as many lines as it says."""

from __future__ import annotations

import importlib.util
import io
import re
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from dptr.cache.crops import sources
from dptr.cache.crops.dataset import WordImages
from dptr.cache.errors import UserError
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "new_crop_form.md").read_text(encoding="utf-8")
NEW_FILE, CHANGED = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
CHANGED_LINES = [line for line in CHANGED.splitlines() if line]


@pytest.fixture
def zip_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "zip_form.py").write_text(NEW_FILE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("zip_form", tmp_path / "zip_form.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "zip_form", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sources, "FORMS", [*sources.FORMS, module.FORM])
    return module


def crops(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    stream = io.BytesIO()
    Image.new("RGB", (40, 16), (9, 9, 9)).save(stream, "PNG")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", stream.getvalue())
        archive.writestr("bad.png", b"no picture")
        archive.writestr("labels.tsv", "a.png\tgood\ngone.png\tlost\nbad.png\tbad\n")
    return path


def open_images(path: Path) -> WordImages:
    return WordImages.open([path], Charset.named("94"), Normalization())


def test_the_page_counts_its_files_and_lines() -> None:
    assert f"touches 2 files: a new one of {len(NEW_FILE.splitlines())} lines" in PAGE
    assert f"{len(CHANGED_LINES)} changed lines" in PAGE


def test_the_lines_to_change_are_those_that_are_there() -> None:
    present = Path(sources.__file__).read_text(encoding="utf-8").splitlines()
    for line in CHANGED_LINES:
        assert re.sub(r", zip_form(\.FORM)?", "", line) in present


def test_without_it_a_zip_is_no_form(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no labelled word images"):
        open_images(crops(tmp_path / "crops" / "words.zip"))


@pytest.mark.usefixtures("zip_form")
def test_with_it_files_and_folders_of_zips_are_read_and_the_message_names_it(tmp_path: Path) -> None:
    path = crops(tmp_path / "crops" / "words.zip")
    for place in (path, path.parent):
        images = open_images(place)
        assert [sample.label for sample in images.samples] == ["good", "bad"]
        assert images.rejected.counts == {"label or image is missing": 1}
        assert images.image(0).getpixel((0, 0)) == (9, 9, 9)
    path.write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"words\.zip cannot be read"):
        open_images(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"zip with labels\.tsv"):
        open_images(tmp_path / "empty")
