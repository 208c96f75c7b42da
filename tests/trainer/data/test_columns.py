"""Crops of Chinese and Japanese columns are turned for training as reading turns them; others are left as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dptr.cache.crops.dataset import WordImages, preprocess
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.trainer.data.image_batches import ImageBatches
from dptr.trainer.recipe import Recipe


@pytest.mark.parametrize(("label", "turned"), [("東京", True), ("ab", False), ("東", False)])
def test_a_column_is_turned_to_the_left_so_that_its_characters_follow_each_other(
    label: str, turned: bool, tmp_path: Path
) -> None:
    picture = Image.new("RGB", (20, 40), "white")
    picture.paste("black", (0, 0, 20, 10))  # the upper end, which then is on the left
    picture.save(tmp_path / "tall.png")
    (tmp_path / "labels.tsv").write_text(f"tall.png\t{label}\n", encoding="utf-8")
    (tmp_path / "charset.txt").write_text("東京ab", encoding="utf-8")
    charset = Charset.named(str(tmp_path / "charset.txt"))
    images = WordImages.open([tmp_path], charset, Normalization())
    batches = ImageBatches(images, charset, Recipe().replace("finetune", augmentation=0.0, batch_size=1), 32, [64])
    seen = preprocess(picture.transpose(Image.Transpose.ROTATE_90) if turned else picture, 32, 64)
    assert batches(0).portrait == ("tall.png",)
    assert np.array_equal(batches(0).images[0].numpy(), seen)
    assert (seen[:, :, :8].mean() < 60) == turned
