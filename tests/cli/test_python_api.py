"""What `import dptr` gives to a notebook."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.main import get_command

import dptr
from dptr.cli import app

Draw = Callable[[Path, Sequence[str]], Path]


@pytest.fixture(scope="module")
def reader() -> dptr.Reader:
    return dptr.load()


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    for name in dptr.__all__:
        value = getattr(dptr, name)
        assert name in dir(dptr)
        assert name == "__version__" or (
            value.__doc__ and "Raises" in value.__doc__ + "Raises" * isinstance(value, type)
        )


def test_pictures_of_every_form_are_read_alike(reader: dptr.Reader, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 100, 3), np.uint8)
    png = tmp_path / "a.png"
    Image.fromarray(pixels).save(png)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    forms: list[Any] = [png, str(png), Image.fromarray(pixels), pixels, tensor, tensor / 255]
    alone = [reader(form) for form in forms]
    assert len({prediction.text for prediction in [*alone, *reader.read(forms[:4], batch_size=1)]}) == 1
    both = reader.read(torch.stack([tensor, tensor]))
    assert isinstance(both, dptr.Predictions)
    assert [prediction.text for prediction in both] == [alone[0].text] * 2
    table = both.to_arrow()
    assert table.column_names == ["text", "confidence", "character_confidences"]
    assert table["text"].to_pylist() == [alone[0].text] * 2
    assert reader.read([]) == []
    assert "charset of 95" in repr(reader)
    assert reader.to("cpu") is reader


def test_a_reader_evaluates_labelled_crops(reader: dptr.Reader, tmp_path: Path, draw_crops: Draw) -> None:
    crops = draw_crops(tmp_path / "crops", ["street", "road"])
    result = reader.evaluate(crops)
    assert result.words == 2
    assert list(result.sets) == [str(crops)]


def test_a_list_of_words_is_embedded_and_a_path_is_a_file(tmp_path: Path) -> None:
    store = dptr.embed_text(["street", "road"], workspace=tmp_path / "work", charset="36")
    assert sorted(store.labels.to_pylist()) == ["road", "street"]
    again = dptr.embed_text(["street", "road"], workspace=tmp_path / "work", charset="36")
    assert again.manifest.identity == store.manifest.identity
    (tmp_path / "words.txt").write_text("lane")
    other = dptr.embed_text(tmp_path / "words.txt", workspace=tmp_path / "work", out=tmp_path / "other", charset="36")
    assert other.labels.to_pylist() == ["lane"]


COLOURS = np.zeros((8, 8, 3), np.uint8)
WRONG: dict[str, Callable[[Any, Any], object]] = {
    "embed nothing": lambda _, d: d.embed_text(),
    "embed a number": lambda _, d: d.embed_text(5),
    "embed no words": lambda _, d: d.embed_text([]),
    "embed None": lambda _, d: d.embed_text(None),
    "embed numbers": lambda _, d: d.embed_text([1, 2]),
    "embed two words as one": lambda _, d: d.embed_text(["two words"]),
    "embed an empty word": lambda _, d: d.embed_text([""]),
    "embed a line": lambda _, d: d.embed_text(["a\nb"]),
    "no such file": lambda _, d: d.embed_text(Path("nothing.txt")),
    "case": lambda _, d: d.embed_text(["a"], case="title"),
    "unit": lambda _, d: d.embed_text(["a"], unit="sentence"),
    "mistyped keyword": lambda _, d: d.embed_text(["a"], chraset="36"),
    "charset": lambda _, d: d.embed_text(["a"], charset="37"),
    "charset of a type": lambda _, d: d.embed_text(["a"], charset=36),
    "zero length": lambda _, d: d.embed_text(["a"], max_label_length=0),
    "length as text": lambda _, d: d.embed_text(["a"], max_label_length="25"),
    "batch as a share": lambda _, d: d.embed_text(["a"], batch_size=0.5),
    "a device": lambda _, d: d.embed_text(["a"], device="gpu"),
    "a device of a type": lambda _, d: d.embed_text(["a"], device=0),
    "a CLIP": lambda _, d: d.embed_text(["a"], clip="nothing/here/there"),
    "a template": lambda _, d: d.embed_text(["a"], template="no place for it"),
    "a workspace": lambda _, d: d.embed_text(["a"], workspace=3),
    "positional": lambda _, d: d.embed_text(["a"], "work"),
    "no photos": lambda _, d: d.build_orp_bank([]),
    "photos of a type": lambda _, d: d.build_orp_bank({"photos": 1}),
    "photos that are not there": lambda _, d: d.build_orp_bank("nothing"),
    "no crops of an image": lambda _, d: d.build_orp_bank("nothing", crops_per_image=0),
    "a share beyond one": lambda _, d: d.build_orp_bank("nothing", exclude_threshold=1.5),
    "no store": lambda _, d: d.pretrain(),
    "steps as text": lambda _, d: d.pretrain(steps="many"),
    "steps as a ground truth": lambda _, d: d.pretrain(steps=True),
    "no steps": lambda _, d: d.pretrain(steps=0),
    "a recipe": lambda _, d: d.pretrain("huge"),
    "a recipe key": lambda _, d: d.pretrain(set={"noise.ration": 0.2}),
    "recipe keys of a type": lambda _, d: d.pretrain(set=0.2),
    "no data": lambda _, d: d.finetune([], from_="none"),
    "data that is not there": lambda _, d: d.finetune("nothing", from_="none"),
    "a start": lambda _, d: d.finetune("nothing", from_="nowhere"),
    "an FMU": lambda _, d: d.finetune("nothing", fmu="some"),
    "a model": lambda _, d: d.load("nothing"),
    "a model of a type": lambda _, d: d.load(5),
    "a precision": lambda _, d: d.load(precision="fp16"),
    "words that are not there": lambda _, d: d.load(lexicon="nothing.txt"),
    "words of a type": lambda _, d: d.load(lexicon={"street": "often"}),
    "a picture of a type": lambda reader, _: reader.read(5),
    "pictures of a type": lambda reader, _: reader.read([None]),
    "a picture that is not there": lambda reader, _: reader.read("nothing.png"),
    "pixels as floats": lambda reader, _: reader.read([np.zeros((8, 8, 3), np.float32)]),
    "pixels with channels first": lambda reader, _: reader.read([np.zeros((3, 8, 8), np.uint8)]),
    "no pixels": lambda reader, _: reader.read([np.zeros((0, 8, 3), np.uint8)]),
    "a tensor with channels last": lambda reader, _: reader.read(torch.zeros(8, 8, 3)),
    "a tensor beyond one": lambda reader, _: reader.read(torch.full((3, 8, 8), 200.0)),
    "a batch of nothing": lambda reader, _: reader.read([COLOURS], batch_size=0),
    "a batch of a type": lambda reader, _: reader.read([COLOURS], batch_size="2"),
    "to a device": lambda reader, _: reader.to("gpu"),
    "to a number": lambda reader, _: reader.to(0),
    "evaluate nothing": lambda reader, _: reader.evaluate([]),
    "evaluate what is not there": lambda reader, _: reader.evaluate("nothing"),
    "evaluate a number": lambda reader, _: reader.evaluate(5),
    "a protocol": lambda reader, _: reader.evaluate("nothing", protocol="all"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_an_error_in_terms_of_python(
    reader: dptr.Reader, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(dptr.DptrError) as caught:
        WRONG[name](reader, dptr)
    said = str(caught.value)
    assert len(said) > 20
    assert not re.search(r"(?<!\w)--[a-z]", said), said


@pytest.mark.parametrize("name", ["embed_text", "build_orp_bank", "pretrain", "finetune"])
def test_a_function_is_the_twin_of_its_command(name: str) -> None:
    function = getattr(dptr, name)
    command = get_command(app).commands[name.replace("_", "-")]  # type: ignore[attr-defined]
    alone = {"as_json", "data_option", "debug", "dry_run", "help", "no_check", "part", "quiet"}
    parameters = inspect.signature(function).parameters
    assert set(parameters) == {option.name for option in command.params} - alone
    assert all(f"\n    {parameter}: " in function.__doc__ for parameter in parameters)
    assert "typer" not in str(inspect.signature(function))


def test_a_store_in_numpy_torch_arrow_and_duckdb(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("street\nroad\nlane\n")
    store = dptr.embed_text(tmp_path / "words.txt", workspace=tmp_path / "work", charset="36")
    assert (
        repr(store) == f"PromptStore({str(tmp_path / 'work' / 'prompts')!r}, rows=3, dim={store.dim}, encoder='tiny')"
    )
    pooled = store.pooled_of(np.array([2, 0]))
    assert torch.from_numpy(pooled).shape == (2, pooled.shape[1])
    table = store.catalogue(["label", "label_length"])
    assert table.to_pydict() == {"label": store.labels.to_pylist(), "label_length": [6, 4, 4]}
    assert store.duckdb().execute("select max(similarity(pooled, pooled)) from prompts").fetchall()[0][0] > 0.99
    assert len(store.duckdb().execute("from nearest('street', 2)").fetchall()) == 2
    with pytest.raises(dptr.DptrError, match="no column lable"):
        store.catalogue(["lable"])


def test_importing_the_package_is_quick_and_loads_no_library() -> None:
    code = (
        "import time, dptr, sys; "
        "heavy = [m for m in ('torch', 'numpy', 'pyarrow', 'duckdb', 'typer') if m in sys.modules]; "
        "print(time.process_time() < 1, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == ["True", "[]\n"]
