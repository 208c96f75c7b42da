from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from dptr.cache.crops.dataset import WordImages
from dptr.cache.text.charset import Charset
from dptr.trainer.evaluate import Evaluation, evaluate, figures, table
from dptr.trainer.model.recognizer import Prediction


class ReadsFrom:
    """Stands for a recogniser: reads what it was told, in order."""

    charset = Charset.named("94")
    image_size = (8, 16)
    encoder = SimpleNamespace(widths=(16,))

    def __init__(self, texts: list[str]) -> None:
        self._texts = iter(texts)

    def eval(self) -> None:
        """Nothing to switch."""

    def read(self, images: torch.Tensor) -> list[Prediction]:
        return [Prediction(next(self._texts), 0.5, []) for _ in images]


def crops(folder: Path, labels: list[str]) -> Path:
    folder.mkdir()
    for number in range(len(labels)):
        Image.new("RGB", (16, 8)).save(folder / f"{number}.png")
    lines = [f"{number}.png\t{label}\n" for number, label in enumerate(labels)]
    (folder / "labels.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


def evaluated(predictions: list[str], **sets: Path) -> Evaluation:
    opened = {name: WordImages.open_as_written([path]) for name, path in sets.items()}
    recognizer: Any = ReadsFrom(predictions)
    return evaluate(recognizer, opened)


def test_a_set_has_a_row_for_each_figure_that_differs(tmp_path: Path) -> None:
    result = evaluated(["street", "Road"], a=crops(tmp_path / "a", ["street", "road"]))
    rows = [line.split()[:3] for line in table(result).splitlines()[2:4]]
    assert rows == [["a", "36", "characters"], ["exact", "2", "50.00%"]], "62 and 94 have the figures of exact"
    two = {name: crops(tmp_path / name, ["street", "road"]) for name in ("b", "c")}
    text = table(evaluated(["street", "Road"] * 2, **two))
    assert text.count("all words") == text.count("mean of sets") == 2


def test_each_protocol_counts_its_own_words_and_says_what_it_left_out(tmp_path: Path) -> None:
    labels = ["Caf\u00e9", "Don't", "!!", "\u65e5\u672c", "x" * 26]
    result = evaluated(["Cafe", "dont", "!!", "\u65e5\u672c", "x" * 26], a=crops(tmp_path / "a", labels))
    shown = {name: (s.words, s.score.accuracy, s.empty, s.too_long) for name, s in result.sets["a"].items() if s.score}
    assert shown == {
        "36": (2, 1.0, 2, 1),
        "62": (2, 0.5, 2, 1),
        "94": (3, 2 / 3, 1, 1),
        "as_written": (5, 3 / 5, 0, 0),
    }
    text = table(result)
    assert "36 characters: excluded: 2 empty, 1 too long" in text
    assert "exact: left out" not in text, "nothing is"
    assert [line.split()[0] for line in text.splitlines()[2:6]] == ["a", "62", "94", "exact"]
    assert "60.00%      23.1-88.2" in text, "Wilson's interval of three in five"
    plain = figures(result)
    assert plain["sets"]["a"]["as_written"]["accuracy_interval"] == pytest.approx((0.2307, 0.8824), abs=1e-4)
    assert plain["rows"] == 5
    assert {name: (s["words"], s["empty"], s["too_long"]) for name, s in plain["sets"]["a"].items()} == {
        "36": (2, 2, 1), "62": (2, 2, 1), "94": (3, 1, 1), "as_written": (5, 0, 0),
    }  # fmt: skip
    assert {(mistake.ground_truth, mistake.prediction) for mistake in result.mistakes} == {
        ("Caf\u00e9", "Cafe"),
        ("Don't", "dont"),
    }


def test_totals_weigh_the_words_that_count_and_a_set_without_any_has_no_figure(tmp_path: Path) -> None:
    chinese = crops(tmp_path / "b", ["\u65e5", "\u672c"])
    result = evaluated(["one", "no", "no", "\u65e5", "x"], a=crops(tmp_path / "a", ["one", "two", "three"]), b=chinese)
    assert result.sets["b"]["94"].score is None
    assert (result.weighted["94"], result.averaged["94"]) == (1 / 3, 1 / 3)
    assert (result.weighted["as_written"], result.averaged["as_written"]) == (2 / 5, (1 / 3 + 1 / 2) / 2)
    alone = evaluated(["\u65e5", "x"], b=chinese)
    assert (alone.weighted["36"], alone.averaged["36"]) == (None, None)
    assert figures(alone)["sets"]["b"]["36"] == {"words": 0, "empty": 2, "too_long": 0}
    assert table(alone).splitlines()[2].split() == ["b", "36", "characters", "0", "-", "-", "-"]


def test_accuracy_by_script_is_told_where_labels_are_of_several(tmp_path: Path) -> None:
    labels = ["Street", "дом", "мир", "東京タワー", "42"]
    result = evaluated(["Street", "дом", "мор", "東京タワー", "41"], a=crops(tmp_path / "a", labels))
    assert result.accuracy_by_script == {
        "Cyrillic": (2, 0.5),
        "Japanese": (1, 1.0),
        "Latin": (1, 1.0),
        "no letters": (1, 0.0),
    }
    assert "Cyrillic" in table(result)
    assert figures(result)["accuracy_by_script"]["Cyrillic"] == 0.5
    alone = evaluated(["Street"], a=crops(tmp_path / "b", ["Street"]))
    assert "Latin" not in table(alone)


def test_the_chinese_protocol_stands_in_place_of_the_fields(tmp_path: Path) -> None:
    images = {"a": WordImages.open_as_written([crops(tmp_path / "a", ["龍門", "ＡＢ"])])}
    recognizer: Any = ReadsFrom(["龙门", "ab"])
    result = evaluate(recognizer, images, protocol="chinese")
    assert {name: found.score and found.score.accuracy for name, found in result.sets["a"].items()} == {
        "chinese": 1.0,
        "as_written": 0.0,
    }
    assert "Chinese benchmark: NFKC" in table(result)
    assert figures(result)["metrics"]["accuracy_chinese_weighted"] == 1.0
