"""The page on adding a decoder does what it says: its code is registered as a package would be, trained and read."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dptr.cache.text.charset import Charset
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.base import Memory, Targets
from dptr.trainer.recipe import DecoderSettings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "decoders.md"
CHARSET = Charset("abcd")
LABELS = ["bad", "cab", "add", "d"]


def example(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Lay the example out as an installed package would lie; return the decoder's name."""
    points = tomllib.loads(example("toml"))["project"]["entry-points"]["dptr.decoders"]
    ((name, target),) = points.items()
    package, module = target.partition(":")[0].split(".")
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    (tmp_path / package / f"{module}.py").write_text(example("python"), encoding="utf-8")
    metadata = tmp_path / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[dptr.decoders]\n{name} = {target}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for loaded in [key for key in sys.modules if key.split(".")[0] == package]:
        del sys.modules[loaded]


def test_it_is_short_and_counts_its_lines() -> None:
    code, metadata = (len(example(language).splitlines()) for language in ("python", "toml"))
    assert code + metadata < 60
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert "touches 2 files of a package of yours and none of dptr" in text
    assert f"a new one of {code} lines, and {metadata} lines" in text


def test_a_registered_decoder_learns_and_reads(installed: str) -> None:
    torch.manual_seed(0)
    settings = DecoderSettings(kind=installed, dim=32, heads=4, max_label_length=5)
    model = build_decoder(settings, len(CHARSET.characters), 12)
    memory = Memory(torch.randn(len(LABELS), 6, 12), torch.zeros(len(LABELS), 6, dtype=torch.bool))
    targets = Targets.of(LABELS, CHARSET)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        model.loss(memory, targets).backward()
        optimizer.step()
    with torch.inference_mode():
        logits = model.decode(memory)
        assert [CHARSET.decode(row) for row in logits.argmax(-1).numpy()] == LABELS
        assert logits.shape == (len(LABELS), 6, CHARSET.classes)
        assert model.decode(memory, 3).shape[1] == 4
        disturbed = memory.tokens.clone()
        disturbed[:, 4:] = 99
        padding = torch.arange(6).expand(len(LABELS), -1) >= 4
        torch.testing.assert_close(
            model.decode(Memory(disturbed, padding)), model.decode(Memory(memory.tokens[:, :4], None))
        )
