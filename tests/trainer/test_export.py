"""Exports give the same predictions elsewhere: in onnxruntime alone, and in modules with PARSeq's own names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import dptr
from dptr.cache.crops.dataset import preprocess
from dptr.cache.errors import DptrError, UserError
from dptr.cache.text.charset import Charset
from dptr.cache.text.lexicon import Lexicon
from dptr.cli import run_command
from dptr.trainer import read
from dptr.trainer.choices import ExportTarget
from dptr.trainer.export import export, largest_difference, renamed
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.base import Memory
from dptr.trainer.model.model_file import BUNDLED, ModelFile
from dptr.trainer.model.reading import width_for
from dptr.trainer.model.recognizer import Prediction, Recognizer, load_recognizer
from dptr.trainer.read import load
from dptr.trainer.recipe import Recipe
from dptr.trainer.training import runs
from dptr.trainer.training.checkpoint import save_checkpoint

CHARSET = Charset("abcdefgh")
EXAMPLE = Path(__file__).parents[2] / "examples" / "read_onnx.py"
DIM = 32


def recipe(kind: str = "parseq", **decoder: int) -> Recipe:
    sizes = {"dim": DIM, "heads": 4, "layers": 2, "feed_forward": 64, "max_label_length": 4} | decoder
    made = Recipe().replace("decoder", kind=kind, **sizes)
    made = made.replace("encoder", dim=32, heads=2, layers=1)
    return made.replace("fmu", queries=5, heads=4)


def lively(model: nn.Module) -> None:
    """Give a model weights large enough that what it reads depends on what it sees."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=2.0 * parameter[0].numel() ** -0.5, generator=generator)


def trained(folder: Path, recipe: Recipe, kind: runs.RunKind = "finetune") -> runs.Run:
    run = runs.start_or_continue(folder, kind, recipe, CHARSET, DIM, {})
    characters = len(CHARSET.characters)
    model = Recognizer(recipe, CHARSET, DIM) if kind == "finetune" else build_decoder(recipe.decoder, characters, DIM)
    lively(model)
    save_checkpoint(folder / "checkpoints" / "best", {"model": model.state_dict()}, {"step": 1})
    return run


def pictures(folder: Path, count: int) -> list[Path]:
    generator = np.random.default_rng(1)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        width = int(generator.choice([40, 80, 140]))
        Image.fromarray(generator.integers(0, 256, (2, 6, 3), np.uint8)).resize((width, 40), 0).save(path)
    return paths


def columns_of_several_widths() -> Recipe:
    made = recipe("ctc", layers=1).replace("fmu", kind="none")
    return made.replace("encoder", kind="convolution", channels=8, image_widths="64,96")


def read_once(recognizer: Recognizer, path: Path) -> Prediction:
    """Read in single precision and in one width, as an exported graph does; a reader reads again what is unsure."""
    picture = Image.open(path)
    height, widths = recognizer.image_size[0], recognizer.encoder.widths
    pixels = preprocess(picture, height, width_for(picture, height, widths))
    return recognizer.read(torch.from_numpy(pixels)[None])[0]


@pytest.mark.parametrize("kind", ["parseq", "nrtr", "parallel", "ctc", "several widths"])
def test_onnx_reads_as_torch_does_with_onnxruntime_alone(tmp_path: Path, kind: str) -> None:
    small = recipe(kind, layers=1, max_label_length=3)
    run = trained(tmp_path / "run", columns_of_several_widths() if kind == "several widths" else small)
    summary = export(run, "onnx", tmp_path / "model.onnx")
    assert summary.checked > 0
    assert summary.largest_difference < 1e-3
    written = summary.out.read_bytes()
    assert b" at 0x" not in written, "an address differs from process to process, and the bytes with it"
    assert str(Path(dptr.__file__).parent).encode() not in written, (
        "where dptr lies on this machine is nobody's business"
    )
    paths = pictures(tmp_path, 12)
    predictions = [read_once(load_recognizer(run), path) for path in paths]
    assert len({prediction.text for prediction in predictions}) > 1
    script = "import sys; sys.modules.update(torch=None, dptr=None, onnx=None); import runpy; sys.argv = sys.argv[1:]; "
    script += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", script, str(EXAMPLE), str(summary.out), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ), check=True)
    expected = [f"{path}\t{prediction.text}" for path, prediction in zip(paths, predictions, strict=True)]
    assert [line.rsplit("\t", 1)[0] for line in done.stdout.splitlines()] == expected
    # A graph that reads otherwise is an error.
    other = load_recognizer(run)
    nn.init.normal_(other.decoder.get_parameter("head.weight"), generator=torch.Generator().manual_seed(5))
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 128), np.uint8)
    with pytest.raises(DptrError, match=r"where torch reads|away from torch"):
        largest_difference(other, summary.out, images)


def test_one_file_reads_as_the_run_does(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", recipe())
    summary = export(run, "safetensors", tmp_path / "model.safetensors")
    paths = pictures(tmp_path, 3)
    assert read.load(summary.out).read(paths) == read.load(run.folder).read(paths)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_what_is_written_follows_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        run = trained(tmp_path / "run", recipe())
        written = [export(run, target, tmp_path / f"{target}.safetensors").out for target in ("safetensors", "parseq")]
    finally:
        os.umask(before)
    written += (tmp_path / "run").rglob("*.safetensors")
    assert len(written) == 3
    assert {path.stat().st_mode & 0o777 for path in written} == {0o666 & ~mask}


def test_a_file_without_a_recognizer_is_rejected(tmp_path: Path) -> None:
    summary = export(trained(tmp_path / "run", recipe(), "pretrain"), "safetensors", tmp_path / "decoder.safetensors")
    with pytest.raises(UserError, match="without an image encoder"):
        read.load(summary.out)
    with pytest.raises(UserError, match="without an image encoder"):
        export(runs.Run.load(tmp_path / "run"), "onnx", tmp_path / "model.onnx")


class NamedLayer(nn.Module):
    """One layer with PARSeq's names, on PyTorch's own attention."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2, self.norm_q, self.norm_c = (nn.LayerNorm(dim) for _ in range(4))

    def stream(self, x: Tensor, normed: Tensor, content: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(normed, content, content, attn_mask=mask)[0]
        x = x + self.cross_attn(self.norm1(x), memory, memory)[0]
        hidden = nn.functional.gelu(self.linear1(self.norm2(x)))
        return x + self.linear2(hidden)


class NamedDecoder(nn.Module):
    """Reads left to right, without caches, one position at a time."""

    def __init__(self, dim: int, heads: int, hidden: int, layers: int, tokens: int, length: int) -> None:
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(NamedLayer(dim, heads, hidden) for _ in range(layers))
        self.decoder.norm = nn.LayerNorm(dim)
        self.text_embed = nn.Module()
        self.text_embed.embedding = nn.Embedding(tokens, dim)
        self.pos_queries = nn.Parameter(torch.zeros(1, length + 1, dim))
        self.head = nn.Linear(dim, tokens - 2)

    def forward(self, ids: Tensor, memory: Tensor) -> Tensor:
        """Logits of the character after ``ids``, which start with the begin."""
        embedded = self.text_embed.embedding(ids) * memory.shape[-1] ** 0.5
        length = ids.shape[1]
        content = torch.cat([embedded[:, :1], embedded[:, 1:] + self.pos_queries[:, : length - 1]], dim=1)
        query = self.pos_queries[:, length - 1 : length].expand(len(ids), -1, -1)
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        for layer in self.decoder.layers:
            normed = layer.norm_c(content)
            query = layer.stream(query, layer.norm_q(query), normed, memory, None)
            content = layer.stream(content, normed, normed, memory, mask)
        return self.head(self.decoder.norm(query))[:, 0]


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
@pytest.mark.parametrize("family", ["parseq", "openocr"])
def test_a_decoder_under_other_names_gives_the_same_logits(tmp_path: Path, kind: runs.RunKind, family: str) -> None:
    run = trained(tmp_path / "run", recipe(refinements=0), kind)
    summary = export(run, "parseq" if family == "parseq" else "openocr", tmp_path / "decoder.safetensors")
    tensors = load_file(summary.out)
    if family == "openocr":
        tensors = {name.removeprefix("decoder."): tensor for name, tensor in tensors.items()}
    named = NamedDecoder(DIM, 4, 64, 2, len(CHARSET.characters) + 3, 4).eval()
    named.load_state_dict(tensors)
    memory = torch.randn(6, 9, DIM, generator=torch.Generator().manual_seed(2))
    own = build_decoder(run.recipe.decoder, len(CHARSET.characters), DIM).eval()
    prefix = "decoder." if kind == "finetune" else ""
    own.load_state_dict({n.removeprefix(prefix): t for n, t in run.weights().items() if n.startswith(prefix)})
    ids = torch.full((6, 1), own.begin)
    with torch.inference_mode():
        logits = own.decode(Memory(memory))
        for position in range(logits.shape[1]):
            torch.testing.assert_close(named(ids, memory), logits[:, position], rtol=1e-4, atol=1e-4)
            ids = torch.cat([ids, logits[:, position : position + 1].argmax(-1)], dim=1)


def test_other_names_need_a_memory_as_wide_as_the_decoder(tmp_path: Path) -> None:
    decoder = build_decoder(recipe(dim=64).decoder, 8, DIM)
    with pytest.raises(UserError, match="needs them equal"):
        renamed(decoder, "parseq")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="parseq decoders only"):
        export(trained(tmp_path / "run", recipe("nrtr"), "pretrain"), "parseq", tmp_path / "x.safetensors")


def test_a_model_file_is_exported_like_the_run_it_came_from(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", recipe())
    export(run, "safetensors", tmp_path / "model.safetensors")
    model = ModelFile.open(tmp_path / "model.safetensors")
    targets: dict[str, ExportTarget] = {"a": "parseq", "b": "safetensors"}
    for name, target in targets.items():
        export(run, target, tmp_path / f"{name}1.safetensors")
        export(model, target, tmp_path / f"{name}2.safetensors")
        one, other = (load_file(tmp_path / f"{name}{number}.safetensors") for number in (1, 2))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_model_file_is_never_replaced_by_its_own_export(tmp_path: Path) -> None:
    export(trained(tmp_path / "run", recipe()), "safetensors", tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="is the model itself"):
        export(ModelFile.open(tmp_path / "model.safetensors"), "safetensors", tmp_path / "model.safetensors", half=True)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_the_bundled_recogniser_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "english.onnx"
    assert run_command(["export", "bundled", "--to", "onnx", "-o", str(out), "--workspace", str(tmp_path)]) == 0
    assert out.stat().st_size > 1e6
    assert "as torch reads on" in capsys.readouterr().out


@pytest.mark.parametrize("half", [False, True])
def test_weights_that_are_not_finite_are_named_as_such(tmp_path: Path, half: bool) -> None:
    run = trained(tmp_path / "run", recipe())
    weights = run.weights()
    name = next(iter(weights))
    weights[name].view(-1)[0] = torch.nan
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "before")
    for checkpoint in ("best", "last"):
        save_checkpoint(tmp_path / "run" / "checkpoints" / checkpoint, {"model": weights}, {"step": 20})
    targets: tuple[ExportTarget, ...] = ("safetensors",) if half else ("safetensors", "parseq", "onnx")
    for target in targets:
        with pytest.raises(UserError, match=f"{name} of run holds values that are not finite"):
            export(run, target, tmp_path / f"model-{target}", half=half)
        assert not (tmp_path / f"model-{target}").exists()


def test_an_export_replaces_no_file_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "run", recipe())
    before = (tmp_path / "run" / "run.json").read_bytes()
    for target in ("safetensors", "onnx", "parseq"):
        given = ["export", str(tmp_path / "run"), "--to", target, "-o", str(tmp_path / "run" / "run.json")]
        assert run_command(given) == 2
        assert "Name another place" in capsys.readouterr().err
    assert (tmp_path / "run" / "run.json").read_bytes() == before


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("street\t3\nsquare\n", encoding="utf-8")
    return path


@pytest.fixture
def blurred() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (4, 8, 24, 3), np.uint8))


def test_an_export_keeps_words_and_reads_as_if_they_were_given(tmp_path: Path, words: Path, blurred) -> None:
    out = tmp_path / "with.safetensors"
    export(ModelFile.open(BUNDLED), "safetensors", out, lexicon=words)
    assert ModelFile.open(out).lexicon() == Lexicon({"street": 3, "square": 1})
    assert load(out).read(blurred) == load(BUNDLED, lexicon=words).read(blurred)
    assert load(out).read(blurred) != load(out, lexicon="none").read(blurred)
    # What is trained or exported further is the weights alone.
    assert ModelFile.open(out).weights().keys() == ModelFile.open(BUNDLED).weights().keys()


def test_a_further_export_keeps_them_unless_told_otherwise(tmp_path: Path, words: Path) -> None:
    first, again, without = (tmp_path / f"{name}.safetensors" for name in ("first", "again", "without"))
    export(ModelFile.open(BUNDLED), "safetensors", first, lexicon=words)
    export(ModelFile.open(first), "safetensors", again)
    export(ModelFile.open(first), "safetensors", without, lexicon="none")
    assert ModelFile.open(again).lexicon() == Lexicon({"street": 3, "square": 1})
    assert ModelFile.open(without).lexicon() is None


def test_words_are_given_as_counts_too(words: Path, blurred) -> None:
    assert load(lexicon={"street": 3, "square": 1}).read(blurred) == load(lexicon=words).read(blurred)


def test_a_form_that_keeps_no_words_rejects_them(tmp_path: Path, words: Path) -> None:
    with pytest.raises(UserError, match="onnx cannot store a lexicon"):
        export(ModelFile.open(BUNDLED), "onnx", tmp_path / "x.onnx", lexicon=words)
