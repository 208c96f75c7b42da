import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dptr.cache.charset import Charset
from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import RUN_FILE
from dptr.cache.normalization import Normalization
from dptr.cache.progress import set_quiet
from dptr.cache.stores import sealed
from dptr.cache.word_images.dataset import WordImages
from dptr.pipeline.clip import bundled as bundled_clip
from dptr.pipeline.clip.loading import ImageEncoder, load_clip
from dptr.pipeline.clip.text_encoder import TextEncoder
from dptr.pipeline.rendering.render_words import render_words
from dptr.pipeline.rendering.style import CLEAN
from dptr.pipeline.text.templates import Template
from dptr.trainer.data.clip_batches import Prompts
from dptr.trainer.export.export import export
from dptr.trainer.model.clip_learner import contrastive_loss
from dptr.trainer.model.clip_start import take_weights_of_clip
from dptr.trainer.report.report import report
from dptr.trainer.train_clip import TrainClipSummary, open_learner, retrieval, train_clip
from dptr.trainer.training.recipe import Recipe, load_recipe
from dptr.trainer.training.runs import Run

WORDS = ["street", "market", "hotel", "exit", "open", "closed", "north", "sale"]
CHARSET = Charset.named("94")
UNSEEN = ["south", "bank", "cafe"]


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crops")
    render_words(WORDS, folder / "train", count=32, style=CLEAN)
    render_words(UNSEEN, folder / "unseen", count=6, style=CLEAN)
    (folder / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photos" / "one.png")
    return folder


@pytest.fixture
def like(tmp_path: Path) -> Path:
    """The bundled model's files with the smallest sizes that make sense."""
    folder = tmp_path / "like"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((bundled_clip.BUNDLED / name).read_bytes())
    config = json.loads((bundled_clip.BUNDLED / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        config[tower] |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        config[tower]["projection_dim"] = 32
    config["vision_config"] |= {"image_size": 32, "patch_size": 16}
    config["projection_dim"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    pixels = json.loads((bundled_clip.BUNDLED / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**pixels, "size": {"height": 32, "width": 32}}))
    return folder


def recipe(**changes: object) -> Recipe:
    base = {"steps": 30, "batch_size": 8, "photos": 2, "precision": "fp32", "validate_every": 10, "log_every": 1}
    return load_recipe("clip").replace("clip", **{**base, "checkpoint_every": 10, "learning_rate": 3e-3, **changes})


def opened(folder: Path) -> WordImages:
    return WordImages.open([folder], CHARSET, Normalization())


def train(crops: Path, like: Path, out: Path, settings: Recipe, start: Run | None = None) -> TrainClipSummary:
    photos = [crops / "photos" / "one.png"]
    images, unseen = opened(crops / "train"), opened(crops / "unseen")
    return train_clip(images, unseen, CHARSET, photos, like, Template().prompt, start, settings, out)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_what_it_writes_is_a_clip(crops: Path, like: Path, tmp_path: Path) -> None:
    summary = train(crops, like, tmp_path / "run", recipe())
    assert summary.metrics["prompts"] == len(UNSEEN)
    found = losses(summary.out)
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:5])
    clip = load_clip(str(summary.model))
    tower = TextEncoder(clip, Template())
    assert tower.encode(tower.tokenize([Template().prompt("exit")])).pooled.shape == (1, 32)
    assert (summary.model / "model.safetensors").stat().st_size < 250_000


def test_training_sees_what_stage_1_sees(crops: Path, like: Path, tmp_path: Path) -> None:
    """The same picture and prompt give the same vectors in training as by the towers of stage 1."""
    from dptr.cache.word_images.dataset import preprocess

    summary = train(crops, like, tmp_path / "run", recipe(steps=2))
    learner, tokenizer = open_learner(summary.model, 68)
    learner.load_state_dict(Run.load(summary.out).weights())
    learner.train(False)
    clip = load_clip(str(summary.model))
    image = opened(crops / "train").image(3)
    with torch.no_grad():
        ours, _ = learner.encode_images(torch.from_numpy(preprocess(image, 32, 32))[None])
        texts, _ = learner.encode_texts(Prompts(tokenizer, Template().prompt)(["exit", "street's"]))
    tower = ImageEncoder(clip)
    theirs = tower.encode(tower.preprocess(image)[None])[1]
    assert np.abs(ours.numpy() - theirs / np.linalg.norm(theirs)).max() < 2e-3  # saved in half precision
    text_tower = TextEncoder(clip, Template())
    pooled = text_tower.encode(text_tower.tokenize([Template().prompt(word) for word in ("exit", "street's")])).pooled
    assert np.abs(texts.numpy() - pooled / np.linalg.norm(pooled, axis=1, keepdims=True)).max() < 2e-3


def test_a_clip_with_other_pieces_starts_from_one_of_the_same_shape(crops: Path, like: Path, tmp_path: Path) -> None:
    """The image tower, the layers and the pieces that both know are taken; pieces of its own begin anew."""
    first = train(crops, like, tmp_path / "first", recipe(steps=2))
    other = tmp_path / "other"
    shutil.copytree(like, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    # Pieces a and b change places, so that rows have to be found by their text.
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    learner, pieces = open_learner(other, 68)
    take_weights_of_clip(learner.clip, pieces.get_vocab(), first.model)
    ours, theirs = learner.clip.state_dict(), load_file(first.model / "model.safetensors")
    embeddings = "text_model.embeddings.token_embedding.weight"
    assert all(torch.equal(ours[name].half(), theirs[name]) for name in ours if name != embeddings)
    assert torch.equal(ours[embeddings][vocabulary["a"]].half(), theirs[embeddings][vocabulary["b"]])
    photos = [crops / "photos" / "one.png"]
    images, unseen, out = opened(crops / "train"), opened(crops / "unseen"), tmp_path / "second"
    train_clip(images, unseen, CHARSET, photos, other, Template().prompt, first.model, recipe(steps=2), out)
    assert Run.load(out).data["from"][0] == first.model.name


def test_a_start_of_another_shape_is_refused(crops: Path, like: Path, tmp_path: Path) -> None:
    learner, pieces = open_learner(like, 68)
    with pytest.raises(UserError, match="of another shape"):
        take_weights_of_clip(learner.clip, pieces.get_vocab(), bundled_clip.BUNDLED)
    with pytest.raises(UserError, match="is no CLIP to start from"):
        take_weights_of_clip(learner.clip, pieces.get_vocab(), crops)


def test_a_run_goes_on_where_it_stopped(
    crops: Path, like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(crops, like, tmp_path / "whole", recipe())
    from dptr.trainer.training import recording

    save = recording.save

    def save_once(folder: Path, state: recording.TrainState) -> None:
        save(folder, state)
        if folder.name == "last":
            raise RuntimeError("power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(recording, "save", save_once)
        with pytest.raises(RuntimeError, match="power is gone"):
            train(crops, like, tmp_path / "cut", recipe())
    train(crops, like, tmp_path / "cut", recipe())
    for name in ("metrics.jsonl", "clip/model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (whole.out / name).read_bytes(), name


def test_it_can_start_from_weights(crops: Path, like: Path, tmp_path: Path) -> None:
    first = train(crops, like, tmp_path / "first", recipe())
    more = recipe(learning_rate=1e-5, steps=3)
    train(crops, like, tmp_path / "more", more, Run.load(first.out))
    assert losses(tmp_path / "more")[0] < 0.8 * losses(first.out)[0]


def test_words_on_both_sides(crops: Path, like: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are among those to learn and those to validate with"):
        seen = opened(crops / "train")
        train_clip(seen, seen, CHARSET, [], like, Template().prompt, None, recipe(), tmp_path / "run")


def test_photos_asked_for_and_not_given(crops: Path, like: Path, tmp_path: Path) -> None:
    images, unseen = opened(crops / "train"), opened(crops / "unseen")
    with pytest.raises(UserError, match="0 photos are given"):
        train_clip(images, unseen, CHARSET, [], like, Template().prompt, None, recipe(), tmp_path / "run")


def test_a_folder_that_lacks_a_file(crops: Path, like: Path, tmp_path: Path) -> None:
    (like / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer_config\.json"):
        train(crops, like, tmp_path / "run", recipe())


def test_a_clip_that_cuts_words_off(crops: Path, like: Path, tmp_path: Path) -> None:
    path = like / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_center_crop": True}))
    with pytest.raises(UserError, match="words lose letters"):
        train(crops, like, tmp_path / "run", recipe())


def test_the_figures_are_those_of_what_is_written(crops: Path, like: Path, tmp_path: Path) -> None:
    summary = train(crops, like, tmp_path / "run", recipe(validate_every=2))
    lines = [json.loads(line) for line in (summary.out / "metrics.jsonl").read_text().splitlines()]
    assert summary.metrics["top1"] == max(line.get("validation_top1", 0.0) for line in lines)


def test_a_run_of_other_data(crops: Path, like: Path, tmp_path: Path) -> None:
    train(crops, like, tmp_path / "run", recipe(steps=1))
    with pytest.raises(DamagedStore, match=r"recipe \(clip.steps\) differ"):
        train(crops, like, tmp_path / "run", recipe(steps=2))


def test_a_run_that_remembers_its_validation_images_as_held_out_goes_on(
    crops: Path, like: Path, tmp_path: Path
) -> None:
    train(crops, like, tmp_path / "run", recipe(steps=1))
    path = tmp_path / "run" / RUN_FILE
    described = sealed.read_json(path)
    described["data"]["held_out"] = described["data"].pop("validation")
    sealed.write_json(path, described)
    assert train(crops, like, tmp_path / "run", recipe(steps=1)).computed == 0


def test_a_word_that_is_twice_in_a_batch_is_no_wrong_answer() -> None:
    token_ids = torch.tensor([[1, 2], [1, 3], [1, 2]])
    similarities = torch.tensor([[9.0, 0, 9, 0], [0, 9, 0, 0], [9, 0, 9, 0]])
    assert contrastive_loss(similarities, token_ids) < 0.01
    different = torch.tensor([[1, 2], [1, 3], [1, 4]])
    assert contrastive_loss(similarities, different) > 0.4


def test_photos_only_count_as_wrong_images() -> None:
    token_ids = torch.tensor([[1], [2]])
    words = torch.tensor([[5.0, 0], [0, 5]])
    alone = contrastive_loss(words, token_ids)
    beside_photos = contrastive_loss(torch.cat([words, torch.full((2, 3), 5.0)], 1), token_ids)
    assert beside_photos > alone + 0.5


def test_its_report_shows_how_often_the_right_prompt_came_first(crops: Path, like: Path, tmp_path: Path) -> None:
    summary = train(crops, like, tmp_path / "run", recipe(steps=10))
    report(Run.load(summary.out), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "top1" in page
    assert "letters_weight" in page
    with pytest.raises(UserError, match="does not read"):
        report(Run.load(summary.out), tmp_path / "report.html", opened(crops / "unseen"))
    with pytest.raises(UserError, match="does not read"):
        export(Run.load(summary.out), "safetensors", tmp_path / "model.safetensors")


def test_states_behind_the_end_of_a_prompt_are_asked_nothing(like: Path) -> None:
    learner, _ = open_learner(like, 68)
    end = learner.clip.config.text_config.eos_token_id
    states = torch.randn(1, 5, 32)
    loss = learner._states_loss(states, torch.tensor([[993, 7, end, end, end]]))
    torch.testing.assert_close(loss, learner._states_loss(states[:, :3], torch.tensor([[993, 7, end]])))


def test_an_unreadable_validation_image_is_left_out_of_validation_and_named(
    crops: Path, like: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_quiet(False)
    shutil.copytree(crops, tmp_path / "crops")
    broken = sorted((tmp_path / "crops" / "unseen" / "images").iterdir())[2]
    broken.write_bytes(b"no picture")
    summary = train(tmp_path / "crops", like, tmp_path / "run", recipe(steps=2, validate_every=1))
    assert summary.metrics["prompts"] == len(UNSEEN) - 1
    assert summary.quarantined == 1
    assert capsys.readouterr().err.count(f"left out: image images/{broken.name}") == 1
    for image in (tmp_path / "crops" / "unseen" / "images").iterdir():
        image.write_bytes(b"no picture")
    with pytest.raises(UserError, match="not one validation image can be read"):
        train(tmp_path / "crops", like, tmp_path / "other", recipe(steps=2))


def test_validation_looks_at_all_sets_of_crops_not_at_the_first(crops: Path, like: Path, tmp_path: Path) -> None:
    """Of more words than are asked for, every n-th is taken."""
    looked: list[int] = []
    learner, tokenizer = open_learner(like, 68)
    images = opened(crops / "train")
    taken = WordImages.image

    def image(self: WordImages, row: int) -> Image.Image:
        looked.append(row)
        return taken(self, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WordImages, "image", image)
        retrieval(learner, images, Prompts(tokenizer, Template().prompt), 2, torch.device("cpu"), lambda lines: None)
    words = list(dict.fromkeys(sample.label for sample in images.samples))
    assert [images.samples[row].label for row in looked] == [words[0], words[len(words) // 2]]
