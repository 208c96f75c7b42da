from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dptr.cache.errors import UserError
from dptr.pipeline.rendering import crop, fonts
from dptr.pipeline.rendering.crop import render_one
from dptr.pipeline.rendering.fonts import Font, FontCollection, find_fonts
from dptr.pipeline.rendering.letters import letter_masks
from dptr.pipeline.rendering.render_words import render_words
from dptr.pipeline.rendering.style import CLEAN, HARD, STREET, STYLES, RenderStyle
from dptr.pipeline.rendering.word_lists import read_words

WORDS = ["Open", "24/7", "Exit", "hôtel", "transcontinental"]


def packaged_font(package: str, name: str) -> Font:
    folder = Path(pytest.importorskip(package).__file__).parent / "files"
    return Font(folder / name)


@pytest.fixture(scope="module")
def roboto() -> Font:
    return packaged_font("font_roboto", "Roboto-Regular.ttf")


@pytest.fixture(scope="module")
def caladea() -> Font:
    return packaged_font("font_caladea", "Caladea-Regular.ttf")


@pytest.fixture(scope="module")
def font_folder(roboto) -> Path:
    return roboto.path.parent


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_font_covers_what_it_has_glyphs_for(roboto, caladea):
    assert roboto.covers("Straße 42, hôtel!")
    assert roboto.covers("Привет")
    assert not caladea.covers("Привет")
    assert not roboto.covers("出口")
    assert not roboto.covers("Exit出")
    assert not roboto.covers("a\u200bb")  # drawn as nothing, so nobody could read it


def test_a_font_without_the_glyphs_is_never_chosen(roboto, caladea):
    fonts = FontCollection([roboto, caladea])
    assert {fonts.choose("Привет", rng(index)).path for index in range(20)} == {roboto.path}
    assert {fonts.choose("Hello", rng(index)).path for index in range(20)} == {roboto.path, caladea.path}
    with pytest.raises(UserError, match="--fonts"):
        fonts.choose("出口", rng(0))


def test_families_are_met_equally_often(roboto, caladea):
    styles = [Font(path) for path in sorted(roboto.path.parent.glob("*.ttf"))]
    fonts = FontCollection([*styles, caladea])
    chosen = [fonts.choose("Hello", rng(index)).path for index in range(200)]
    assert 70 < chosen.count(caladea.path) < 130


def test_installed_font_packages_are_found(roboto):
    assert any(font.path == roboto.path for font in find_fonts().fonts)


def test_no_fonts_says_what_to_install(tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    with pytest.raises(UserError, match=r"dptr\[demo\].*--fonts"):
        find_fonts(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        find_fonts(tmp_path / "missing")


def test_no_letter_leaves_the_canvas_however_hard_the_style(roboto, monkeypatch):
    """What the warp pushed over the border would be lost, and the label with it."""
    warp = importlib.import_module("dptr.pipeline.rendering.letters")._warp
    warped: list[Image.Image] = []

    def remember(*arguments):
        warped.append(warp(*arguments))
        return warped[-1]

    monkeypatch.setattr("dptr.pipeline.rendering.letters._warp", remember)
    for index in range(150):
        letter_masks(WORDS[index % len(WORDS)], roboto, rng(index), HARD)
    for masks in warped:
        fill = np.asarray(masks)[..., 0]
        assert not fill[0].any()
        assert not fill[-1].any()
        assert not fill[:, 0].any()
        assert not fill[:, -1].any()


def test_other_text_shows_at_the_borders_of_street_crops_and_the_word_stays_whole(roboto):
    alone, among = replace(STREET, clutter=0.0), replace(STREET, clutter=1.0)
    surrounded = 0
    for index in range(40):
        masks = np.asarray(letter_masks("Exit", roboto, rng(index), among))
        fill, word = masks[..., 0], masks[..., 3]
        assert (fill >= word).all()
        surrounded += bool((fill.astype(int) - word).max() > 128)
        quiet = np.asarray(letter_masks("Exit", roboto, rng(index), alone))
        assert (quiet[..., 0] == quiet[..., 3]).all()
    assert surrounded > 30


def test_carelessly_cut_boxes_lose_an_edge_of_the_letters_and_no_more(roboto):
    """What is cut off is a few hundredths of the height; the letters stay readable."""
    cut = []
    for index in range(60):
        mask = np.asarray(letter_masks("HHH", roboto, rng(index), replace(CLEAN, cut=1.0)))[..., 3]
        whole = np.asarray(letter_masks("HHH", roboto, rng(index), CLEAN))[..., 3]
        cut.append(1 - mask.sum() / whole.sum())
    assert 0 < max(cut) < 0.3
    assert sorted(cut)[30] < 0.05


def test_exposure_leaves_ink_that_can_be_told_from_its_ground(roboto):
    style = replace(CLEAN, exposure=1.0)
    spreads = []
    for index in range(60):
        grey = np.asarray(render_one("HHH", roboto, rng(index), style).convert("L"), np.float64)
        low, high = np.percentile(grey, [5, 95])
        spreads.append(high - low)
    assert min(spreads) > 8
    assert min(spreads) < 40  # some are dim, or the effect does nothing


def test_ink_stands_out_in_clean_crops(roboto):
    for index in range(30):
        grey = np.asarray(render_one("HHH", roboto, rng(index), CLEAN).convert("L"), np.float64)
        low, high = np.percentile(grey, [5, 95])
        assert high - low > 60


def test_crops_have_the_shape_of_the_word(roboto):
    short, long = (render_one(word, roboto, rng(5), CLEAN) for word in ("in", "transcontinental"))
    assert short.mode == long.mode == "RGB"
    assert long.width > 3 * short.width
    assert all(12 <= image.height <= 80 for image in (short, long))


def test_harder_styles_look_less_alike(roboto):
    def spread(style: RenderStyle) -> float:
        crops = [render_one("Exit", roboto, rng(index), style).convert("L").resize((48, 16)) for index in range(40)]
        pixels = np.stack([np.asarray(crop, np.float64) for crop in crops])
        pixels -= pixels.mean((1, 2), keepdims=True)
        pixels /= pixels.std((1, 2), keepdims=True)
        # Ink may be lighter or darker than the ground: only the size of the agreement counts.
        agreement = np.abs(pixels.reshape(40, -1) @ pixels.reshape(40, -1).T) / (48 * 16)
        return float(1 - agreement.mean())

    assert spread(RenderStyle.of_difficulty(0)) < spread(HARD) - 0.1


def test_styles_by_name_and_number():
    assert RenderStyle.named("hard") == RenderStyle.named("1")
    assert RenderStyle.named("street") == STREET
    for wrong in ("harder", "1.5", "-1"):
        with pytest.raises(UserError):
            RenderStyle.named(wrong)


def test_photos_serve_as_backgrounds(roboto, tmp_path):
    Image.new("RGB", (300, 200), (0, 255, 0)).save(tmp_path / "green.png")
    style = RenderStyle.of_difficulty(1)
    images = [render_one("Exit", roboto, rng(index), style, [tmp_path / "green.png"]) for index in range(10)]
    greens = [np.asarray(image)[0, 0] for image in images]
    assert all(int(green[1]) > int(green[0]) + 20 for green in greens)


def test_same_crops_for_any_number_of_workers_and_others_for_another_seed(font_folder, tmp_path):
    for name, options in {"one": {"workers": 1}, "two": {"workers": 2}, "seed": {"seed": 8}}.items():
        summary = render_words(WORDS, tmp_path / name, **{"count": 80, "seed": 7, "fonts": font_folder, **options})
        assert (summary.rows, summary.rejected) == (80, 0)
    assert len(contents(tmp_path / "one")) == 81
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert contents(tmp_path / "one") != contents(tmp_path / "seed")


def test_each_word_comes_equally_often_with_its_label(font_folder, tmp_path):
    render_words(WORDS, tmp_path / "x", count=15, fonts=font_folder)
    rows = [line.split("\t") for line in (tmp_path / "x/labels.tsv").read_text().splitlines()]
    assert sorted(label for _, label in rows) == sorted(WORDS * 3)
    assert all(Image.open(tmp_path / "x" / name).size[0] > 0 for name, _ in rows)


def test_three_forms_hold_the_same(font_folder, tmp_path):
    for name in ("folder", "x.lmdb", "x.parquet"):
        render_words(WORDS, tmp_path / name, fonts=font_folder)
    labels = [line.split("\t")[1] for line in (tmp_path / "folder/labels.tsv").read_text().splitlines()]
    images = [path.read_bytes() for path in sorted((tmp_path / "folder/images").iterdir())]
    table = pq.read_table(tmp_path / "x.parquet")
    assert (table["label"].to_pylist(), table["image"].to_pylist()) == (labels, images)
    with lmdb.open(str(tmp_path / "x.lmdb"), readonly=True, lock=False) as environment, environment.begin() as read:
        assert read.get(b"num-samples") == b"5"
        assert [read.get(b"label-%09d" % index).decode() for index in range(1, 6)] == labels
        assert [read.get(b"image-%09d" % index) for index in range(1, 6)] == images


def test_words_that_no_font_draws_are_counted_and_named(font_folder, tmp_path):
    joiner = "\u200c"  # leaves no ink, though fonts have it
    summary = render_words([*WORDS, "出口", " ", joiner], tmp_path / "x", count=20, fonts=font_folder)
    assert (summary.rejected, summary.examples) == (3, ["出口", " ", joiner])
    assert "出口" not in (tmp_path / "x/labels.tsv").read_text()


@pytest.mark.parametrize(("words", "says"), [(["出口"], "no font has"), ([], "no words")])
def test_nothing_to_draw_is_an_error(words, says, font_folder, tmp_path):
    with pytest.raises(UserError, match=says):
        render_words(words, tmp_path / "x", fonts=font_folder)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["folder", "x.lmdb", "x.parquet"])
def test_what_was_cut_short_is_not_taken_for_finished(name, font_folder, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"not a photo")
    broken = {"photos": [tmp_path / "photo.jpg"], "style": HARD, "fonts": font_folder, "count": 200}
    out = tmp_path / name
    with pytest.raises(UserError, match=r"photo\.jpg cannot be read"):
        render_words(WORDS, out, **broken)
    assert not (out if out.suffix else out / "labels.tsv").exists()
    assert render_words(WORDS, out, fonts=font_folder).rows == 5
    with pytest.raises(UserError, match="is there already"):
        render_words(WORDS, out, fonts=font_folder)


@pytest.mark.parametrize("wrong", [{"count": -5}, {"count": 0}, {"workers": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_told_before_any_work(wrong, font_folder, tmp_path):
    with pytest.raises(UserError, match=f"--{next(iter(wrong))} is"):
        render_words(WORDS, tmp_path / "x", fonts=font_folder, **wrong)
    assert not (tmp_path / "x").exists()


def test_damaged_glyphs_are_not_drawn_and_what_breaks_off_is_one_line(roboto, monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise OSError("invalid outline")

    damaged = Font(roboto.path)
    monkeypatch.setattr(fonts, "_ink", fails)
    assert not damaged.covers("word")
    monkeypatch.setattr(crop, "letter_masks", fails)
    with pytest.raises(UserError, match="cannot draw 'word'"):
        render_one("word", roboto, rng(0))


@pytest.mark.parametrize("name", STYLES)
def test_each_style_draws_what_it_is_given(name: str, roboto: Font) -> None:
    word = "AB12CDE" if name == "plate" else "Two words"
    drawn = [render_one(word, roboto, rng(1, seed), RenderStyle.named(name)) for seed in range(12)]
    assert all(image.mode == "RGB" and min(image.size) >= 8 for image in drawn)
    assert len({image.tobytes() for image in drawn}) == 12
    # Something is to be seen on almost all.
    assert sum(np.asarray(image.convert("L")).std() > 2 for image in drawn) >= 10


def test_a_line_along_a_circle_is_higher_than_a_straight_one(roboto: Font) -> None:
    straight = replace(CLEAN, rotation=0.0, perspective=0.0, curve=0.0)
    shapes = [
        [letter_masks("Circular", roboto, rng(seed), replace(straight, arc=arc)).size for seed in range(10)]
        for arc in (0.0, 1.0)
    ]
    heights = [np.median([height / width for width, height in found]) for found in shapes]
    assert heights[1] > 1.5 * heights[0]


def test_lines_keep_their_spaces(tmp_path: Path, font_folder: Path) -> None:
    (tmp_path / "lines.txt").write_text("two words\nNo. 7,  Main St.\n")
    labels = read_words([str(tmp_path / "lines.txt")], "line", 40)
    assert labels == ["two words", "No. 7, Main St."]
    render_words(labels, tmp_path / "out", fonts=font_folder, style=RenderStyle.named("receipt"))
    written = (tmp_path / "out" / "labels.tsv").read_text().splitlines()
    assert sorted(row.split("\t")[1] for row in written) == sorted(labels)
