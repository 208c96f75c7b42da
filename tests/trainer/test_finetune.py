"""Fine-tuning: data sets that are partly broken, mixed or of another charset, frozen parts, and runs that were cut."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dptr.cache.crops.dataset import WordImages
from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.progress import set_quiet
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.cli import run_command
from dptr.pipeline.clip.clip_files import BUNDLED
from dptr.pipeline.clip.loading import ImageEncoder, load_clip
from dptr.trainer.data.image_batches import ImageBatch, ImageBatches, mixing_weights
from dptr.trainer.finetune import data_identity, finetune
from dptr.trainer.metrics import score_as_written
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.encoders import build_encoder
from dptr.trainer.model.encoders.clip import ClipEncoder, describe
from dptr.trainer.model.recognizer import Recognizer
from dptr.trainer.read import load
from dptr.trainer.recipe import Recipe
from dptr.trainer.training import runs
from dptr.trainer.training.checkpoint import load_tensors, save_checkpoint

WORDS = ["red", "oak", "tin", "sky", "map", "owl", "ice", "bun", "fog", "hut"]
DIM = 32


def recipe(**changes: Any) -> Recipe:
    made = Recipe().replace("decoder", dim=DIM, heads=4, layers=1, feed_forward=64, dropout=0.0)
    made = made.replace("encoder", stem="convolution", dim=DIM, heads=4, layers=1, patch_height=16, patch_width=8)
    made = made.replace("fmu", queries=8, heads=4)
    settings = {"steps": 8, "batch_size": 4, "log_every": 1, "validate_every": 4, "checkpoint_every": 2} | changes
    return made.replace("finetune", **settings)


def test_a_batch_of_images_holds_words_of_all_lengths(tmp_path: Path, draw_crops: Any) -> None:
    """Sorted by length, batch norm saw one word length at a time, and read 61 % where mixed batches read 85 %."""
    words = [character * length for character in "abcdefgh" for length in (1, 4, 9)]
    batches = ImageBatches(opened(draw_crops(tmp_path / "crops", words)), Charset.named("94"), recipe(), 32, [64])
    targets = [batches(number).targets for number in range(6)]
    lengths = [set((batch.outputs != batch.padding).sum(1).tolist()) for batch in targets]
    assert sum(len(found) > 1 for found in lengths) >= 4


def test_long_labels_are_read_in_wide_pictures_and_every_crop_has_its_turn(tmp_path: Path, draw_crops: Any) -> None:
    words = [f"word{number}" for number in range(9)]
    lines = [f"line {number} has so many words on it" for number in range(5)]
    images = opened(draw_crops(tmp_path / "crops", words + lines), keep_spaces=True, max_label_length=40,
                    charset=Charset.named("94+space"))  # fmt: skip
    batches = ImageBatches(images, Charset.named("94+space"), recipe(), 32, [96, 160, 256, 512])
    seen = [batches(number) for number in range(batches.per_epoch)]
    for batch in seen:
        longest = batch.targets.characters
        assert batch.images.shape[3] <= 256 if longest < 13 else batch.images.shape[3] == 512
    assert sum(len(batch.images) for batch in seen) == len(words) + len(lines)
    assert batches.per_epoch == 3 + 2


def test_drawing_by_a_mix_keeps_long_labels_apart_too(tmp_path: Path, draw_crops: Any) -> None:
    words = opened(draw_crops(tmp_path / "words", ["one", "two", "three"]))
    both = opened(tmp_path / "words", draw_crops(tmp_path / "lines", ["quite a long line of text it is"] * 3),
                  keep_spaces=True, max_label_length=40, charset=Charset.named("94+space"))  # fmt: skip
    assert len(words) == 3
    batches = ImageBatches(both, Charset.named("94+space"), recipe(mix="3,1", batch_size=2), 32, [96, 512])
    widths = [batches(number).images.shape[3] for number in range(40 * batches.per_epoch)]
    # 4.5 of 6 crops are words: three batches of an epoch, and one of lines.
    assert widths.count(512) == 40
    assert widths.count(96) == 40 * 3


def opened(*paths: Path, charset: Charset | None = None, **normalization: Any) -> WordImages:
    return WordImages.open(list(paths), charset or Charset.named("94"), Normalization(**normalization))


def pretrained(folder: Path, charset: Charset, **decoder: int) -> runs.Run:
    settings = recipe().replace("decoder", **decoder)
    torch.manual_seed(7)
    model = build_decoder(settings.decoder, len(charset.characters), DIM)
    run = runs.start_or_continue(folder, "pretrain", settings, charset, DIM, {})
    save_checkpoint(folder / "checkpoints" / "best", {"model": model.state_dict()}, {"step": 1})
    return run


def test_no_figure_for_36_characters_where_labels_have_none_of_them(tmp_path: Path, draw_crops: Any) -> None:
    greek = ["δρόμος", "οδός", "στοπ", "νερό", "ψωμί", "τυρί"]
    charset = Charset("".join(dict.fromkeys("".join(greek) + "5")))
    crops = opened(draw_crops(tmp_path / "crops", greek), charset=charset)
    found = []
    for name, words in (("run", ["σ"]), ("5", ["σ", "5"])):
        seen = opened(draw_crops(tmp_path / f"validation {name}", words), charset=charset)
        small = recipe(steps=1, validate_every=1)
        found.append(finetune(crops, charset, None, small, tmp_path / name, validation=seen).metrics)
    assert "accuracy_36" not in found[0]
    assert found[1]["words_36"] == 1


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_training_goes_on_beside_broken_images_and_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], draw_crops: Any
) -> None:
    set_quiet(False)
    good = [path.read_bytes() for path in sorted(draw_crops(tmp_path / "crops", WORDS).glob("*.png"))]
    entries = {f"image-{number:09d}": image for number, image in enumerate(good, 1)}
    entries |= {f"label-{number:09d}": word.encode() for number, word in enumerate(WORDS, 1)}
    tall = io.BytesIO()
    Image.new("RGB", (12, 60), "white").save(tall, "PNG")
    flat = io.BytesIO()
    Image.new("RGB", (60, 1), "white").save(flat, "PNG")
    entries |= {"image-000000007": tall.getvalue(), "image-000000008": flat.getvalue()}
    entries |= {"image-000000003": good[2][:60], "label-000000004": "d\u00e9j\u00e0".encode(), "num-samples": b"13"}
    del entries["image-000000005"]
    with lmdb.open(str(tmp_path / "bad.lmdb")) as environment, environment.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key.encode(), value)
    images = opened(tmp_path / "bad.lmdb")
    summary = finetune(images, Charset.named("94"), None, recipe(validation_share=0.2, seed=3), tmp_path / "run")
    assert summary.steps == 8
    assert summary.portrait == ["image-000000007"]
    assert summary.quarantined == 5 + 2
    assert images.rejected.counts == {"label or image is missing": 4, "not in the charset": 1}
    said = capsys.readouterr().err
    assert [said.count(f"skipped: image image-00000000{number} of") for number in (3, 8)] == [1, 1]


@pytest.mark.parametrize("cut", [1, 6])
def test_a_run_that_was_cut_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int, draw_crops: Any
) -> None:
    images = opened(draw_crops(tmp_path / "crops", WORDS))
    arguments = (images, Charset.named("94"), pretrained(tmp_path / "start", Charset.named("94")), recipe())
    finetune(*arguments, tmp_path / "whole")
    make = ImageBatches.__call__

    def dies(self: ImageBatches, number: int) -> ImageBatch:
        if number == cut:
            raise RuntimeError("killed")
        return make(self, number)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="killed"):
        patched.setattr(ImageBatches, "__call__", dies)
        finetune(*arguments, tmp_path / "cut")
    finetune(*arguments, tmp_path / "cut")
    whole, resumed = (load_tensors(tmp_path / name / "checkpoints" / "last", "model") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


@pytest.mark.parametrize(
    ("old", "new", "words", "longest"),
    [
        (Charset.named("36"), Charset.named("94"), [word.title() for word in WORDS], 25),
        (Charset.named("94"), Charset(Charset.named("94").characters + "\u00e9\u00e8\u00e0\u00e7"),
         ["\u00e9t\u00e9", "d\u00e9j\u00e0", "\u00e7a", "p\u00e8re", "caf\u00e9", "no\u00ebl".replace("\u00eb", "e"),
          "m\u00e8re", "l\u00e0", "fa\u00e7on", "cl\u00e9"], 40),
    ],
)  # fmt: skip
def test_another_charset_and_longer_labels_start_from_what_fits_and_learn(
    tmp_path: Path, old: Charset, new: Charset, words: list[str], longest: int, draw_crops: Any
) -> None:
    start = pretrained(tmp_path / "start", old)
    images = opened(draw_crops(tmp_path / "crops", words), charset=new, max_label_length=longest)
    settings = recipe(steps=30, validate_every=30, checkpoint_every=30, augmentation=0.0, learning_rate=5e-3)
    settings = settings.replace("decoder", max_label_length=longest)
    summary = finetune(images, new, start, settings, tmp_path / "run")
    assert summary.coverage is not None
    carried = summary.coverage.partial
    assert carried["head.weight"] == f"{len(old.characters)} of {len(new.characters)} characters"
    assert ("positions" in carried) == (longest > 25)
    assert not summary.coverage.missing + summary.coverage.extra
    assert not summary.coverage.mismatched
    found = losses(tmp_path / "run")
    assert np.mean(found[-5:]) < 0.75 * np.mean(found[:5])


def test_data_sets_are_drawn_in_the_proportions_asked_for(tmp_path: Path, draw_crops: Any) -> None:
    images = opened(draw_crops(tmp_path / "few", WORDS[:2]), draw_crops(tmp_path / "many", WORDS[2:]))
    weights = mixing_weights(images, "3,1")
    assert weights is not None
    sizes = np.bincount([sample.data_set for sample in images.samples])
    assert (weights * sizes)[0] / (weights * sizes)[1] == pytest.approx(3)
    batches = ImageBatches(images, Charset.named("94"), recipe(mix="3,1"), 32, [128])
    drawn = [label for number in range(200) for label in batches(number).targets.outputs[:, 0].tolist()]
    first = {int(Charset.named("94").encode(word)[0]) for word in WORDS[:2]}
    assert np.mean([label in first for label in drawn]) == pytest.approx(0.75, abs=0.06)
    for wrong in ("3", "3,x", "3,0", "3,1,1"):
        with pytest.raises(UserError, match=r"finetune\.mix"):
            mixing_weights(images, wrong)


def test_a_frozen_decoder_comes_out_as_it_went_in(tmp_path: Path, draw_crops: Any) -> None:
    start = pretrained(tmp_path / "start", Charset.named("94"))
    images = opened(draw_crops(tmp_path / "crops", WORDS))
    finetune(images, start.charset, start, recipe(decoder_lr_scale=0.0), tmp_path / "run")
    after = load_tensors(tmp_path / "run" / "checkpoints" / "last", "model")
    assert all(torch.equal(after[f"decoder.{name}"], tensor) for name, tensor in start.weights().items())


def test_without_merging_the_decoder_reads_all_image_tokens() -> None:
    model = Recognizer(recipe().replace("fmu", kind="none"), Charset("ab"), DIM)
    images = torch.randint(0, 256, (2, 3, 32, 128), dtype=torch.uint8)
    tokens = model.tokens(images)
    assert tokens.shape == (2, model.encoder.grid[0] * model.encoder.grid[1], DIM)
    torch.testing.assert_close(model.memory(images).tokens, tokens)
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3


def test_clips_own_image_encoder_gives_the_tokens_that_a_bank_holds() -> None:
    folder = BUNDLED
    settings = recipe().replace("encoder", kind="clip:tiny", config=describe(folder)).encoder
    encoder = build_encoder(settings)
    assert isinstance(encoder, ClipEncoder)
    encoder.load(folder)
    assert (encoder.size, encoder.grid, encoder.dim) == ((96, 96), (6, 6), 128)
    of_bank = ImageEncoder(load_clip("tiny"))
    image = Image.effect_mandelbrot((96, 96), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    expected, _ = of_bank.encode(of_bank.preprocess(image)[None])
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        torch.testing.assert_close(encoder.eval()(pixels), torch.from_numpy(expected[:, 1:]), atol=1e-4, rtol=1e-4)


def test_a_recognizer_on_clips_encoder_trains_and_is_read_without_the_clip(tmp_path: Path, draw_crops: Any) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(BUNDLED, folder)
    images = opened(draw_crops(tmp_path / "crops", WORDS))
    settings = recipe(steps=2, batch_size=2).replace("encoder", kind="clip:tiny", config=describe(folder))
    finetune(images, Charset.named("94"), None, settings, tmp_path / "run", encoder_model=folder)
    shutil.rmtree(folder)
    reader = load(tmp_path / "run")
    assert len(reader.read([images.image(0), images.image(1)])) == 2
    with pytest.raises(UserError, match="no encoder 'resnet'"):
        build_encoder(recipe().replace("encoder", kind="resnet").encoder)


def test_the_image_encoder_is_taken_from_safetensors_without_a_word_and_never_from_a_pickle(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(BUNDLED, folder)
    encoder = build_encoder(recipe().replace("encoder", kind="clip:tiny", config=describe(folder)).encoder)
    assert isinstance(encoder, ClipEncoder)
    encoder.load(folder)
    assert capfd.readouterr() == ("", "")
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UserError, match="pickled weights only"):
        encoder.load(folder)


def test_weights_that_were_trained_further_make_another_run(tmp_path: Path, draw_crops: Any) -> None:
    charset = Charset.named("94")
    start = pretrained(tmp_path / "pretrain", charset)
    images = opened(draw_crops(tmp_path / "crops", WORDS))
    steps = recipe(steps=2)
    clip = tmp_path / "clip"
    clip.mkdir()
    save_file({"weight": torch.zeros(2)}, clip / "model.safetensors")

    def identities() -> list[object]:
        """Of a start, of an encoder that is a run's and of one that is a CLIP's."""
        return [data_identity(images, start), *(data_identity(images, None, None, model) for model in (start, clip))]

    early = identities()
    finetune(images, charset, start, steps, tmp_path / "run")
    assert finetune(images, charset, start, steps, tmp_path / "run").computed == 0
    save_checkpoint(
        start.folder / "checkpoints" / "best",
        {"model": {name: tensor + 1 for name, tensor in start.weights().items()}},
        {"step": 2},
    )
    save_file({"weight": torch.ones(2)}, clip / "model.safetensors")
    assert all(before != after for before, after in zip(early, identities(), strict=True))
    with pytest.raises(DamagedStore, match=r"data \(weights to start from\) differ"):
        finetune(images, charset, start, steps, tmp_path / "run")


def test_spaces_of_labels_survive_training_and_evaluation(
    tmp_path: Path, draw_crops: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    crops = draw_crops(tmp_path / "crops", ["red oak", "two words", "sky", "map of it"] * 3)
    tiny = ["--set=encoder.dim=8", "--set=encoder.heads=1", "--set=encoder.layers=1", "--set=finetune.batch_size=4"]
    run, data = tmp_path / "run", [str(crops)]
    common = ["--from", "none", "--charset", "94+space", "-o", str(run), "--steps", "2", "--workspace", str(tmp_path)]
    assert run_command(["finetune", *data, *common, *tiny, "--json"]) == 0
    done = capsys.readouterr()
    assert "spaces removed" not in done.out + done.err
    labels = [sample.label for sample in opened(crops, keep_spaces=True, charset=Charset.named("94+space")).samples]
    assert "red oak" in labels
    assert run_command(["evaluate", str(run), *data, "--workspace", str(tmp_path), "--json"]) == 0
    ground_truths = pq.read_table(next((run / "predictions").glob("*.parquet")))["ground_truth"].to_pylist()
    assert sorted(set(ground_truths)) == sorted(set(labels))


def test_as_written_a_missing_space_is_a_mistake_only_where_spaces_are_read() -> None:
    ground_truths, predictions = ["red  oak", "sky"], ["redoak", "sky"]
    kept, removed = (
        score_as_written(ground_truths, predictions, normalization=Normalization(keep_spaces=keep)).score
        for keep in (True, False)
    )
    assert kept is not None
    assert removed is not None
    assert (kept.accuracy, removed.accuracy) == (0.5, 1.0)
