"""What `import dptr` gives to a notebook."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dptr

ROOT = Path(__file__).resolve().parents[2]


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


def test_the_public_functions_say_what_they_raise() -> None:
    functions = [dptr.embed_text, dptr.build_orp_bank, dptr.pretrain, dptr.finetune, dptr.load, dptr.Reader.read]
    assert all("Raises:" in (function.__doc__ or "") for function in functions)


def test_a_file_a_picture_and_pixels_are_read_alike(reader: dptr.Reader, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 100, 3), np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    alone = reader.read([tmp_path / "a.png", str(tmp_path / "a.png"), picture, pixels], batch_size=1)
    assert len({reading.text for reading in alone}) == 1
    assert [reading.text for reading in reader.read(np.stack([pixels, pixels]))] == [alone[0].text] * 2
    assert reader.read([]) == []
    assert "charset of 94" in repr(reader)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("sign.png", "Give a list"),
        (Path("sign.png"), "Give a list"),
        (np.zeros((8, 8, 3), np.uint8), "Give a list"),
        ([np.zeros((8, 8, 3), np.float32)], "uint8"),
        ([np.zeros((3, 8, 8), np.uint8)], "height, width, 3"),
        ([np.zeros((0, 8, 3), np.uint8)], "height, width, 3"),
        (["nothing.png"], "nothing.png"),
    ],
)
def test_what_is_no_list_of_pictures_is_one_line(reader: dptr.Reader, given: object, said: str) -> None:
    with pytest.raises(dptr.DptrError, match=said):
        reader.read(given)  # type: ignore[arg-type]


def test_a_batch_of_nothing_is_refused(reader: dptr.Reader) -> None:
    with pytest.raises(dptr.DptrError, match="batch of 0"):
        reader.read([], batch_size=0)


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


def test_a_program_that_uses_the_api_is_typed() -> None:
    mypy = [sys.executable, "-m", "mypy", "--strict", "examples/notebook.py"]
    done = subprocess.run(mypy, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_the_package_is_quick_and_loads_no_library() -> None:
    code = (
        "import time, dptr, sys; "
        "heavy = [m for m in ('torch', 'numpy', 'pyarrow', 'duckdb', 'typer') if m in sys.modules]; "
        "print(time.process_time() < 1, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == ["True", "[]\n"]
