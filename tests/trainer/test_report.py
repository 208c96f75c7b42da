"""The report: what it says of a run, that no text becomes HTML, and that a browser shows it in both colour schemes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from dptr.cache.crops.dataset import WordImages
from dptr.cache.errors import UserError
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.cli import run_command
from dptr.trainer.model.recognizer import Recognizer
from dptr.trainer.recipe import Recipe
from dptr.trainer.report import Cell, Section, Table, attention_maps, render, report
from dptr.trainer.training import runs
from dptr.trainer.training.checkpoint import save_checkpoint

LABELS = ["<script>alert(1)</script>", "<3", "a&amp;b", '"><img/src=x>', "$x^2$", "fish"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Elements(HTMLParser):
    """All elements of a page and the texts between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def small(fmu: str = "queries", **decoder: Any) -> Recipe:
    made = Recipe().replace("decoder", **{"dim": 32, "heads": 4, "layers": 1, "feed_forward": 32, **decoder})
    made = made.replace("encoder", dim=32, heads=4, layers=1, patch_height=16, patch_width=8)
    return made.replace("fmu", kind=fmu, queries=8, heads=4)


def make_run(folder: Path, log: Sequence[str]) -> runs.Run:
    """An untrained recogniser as a run, with a log of its training."""
    recipe, charset = small(), Charset.named("94")
    torch.manual_seed(0)
    model = Recognizer(recipe, charset, 32)
    run = runs.start_or_continue(folder, "finetune", recipe, charset, 32, {"images": {"rows": 200}})
    for name in ("best", "last"):
        save_checkpoint(folder / "checkpoints" / name, {"model": model.state_dict()}, {"step": 20})
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in log), encoding="utf-8")
    return run


def make_crops(folder: Path) -> WordImages:
    folder.mkdir()
    for number in range(len(LABELS)):
        Image.new("RGB", (64, 20), (40 * number, 90, 120)).save(folder / f"{number}.png")
    lines = [f"{number}.png\t{label}\n" for number, label in enumerate(LABELS)]
    (folder / "labels.tsv").write_text("".join(lines), encoding="utf-8")
    return WordImages.open([folder], Charset.named("94"), Normalization())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a run with a log of three lines, and predictions of six crops."""
    folder = tmp_path_factory.mktemp("report")
    log = [json.dumps({"step": step, "loss": 3 / step, "validation_accuracy": step / 40}) for step in (5, 10, 20)]
    out = folder / "page.html"
    report(make_run(folder / "run <b>bold", log), out, make_crops(folder / "crops"))
    return out


@pytest.fixture(scope="module")
def elements(page: Path) -> Elements:
    return Elements(page.read_text(encoding="utf-8"))


def test_labels_are_shown_as_they_are_and_nothing_is_run_or_fetched(elements: Elements) -> None:
    assert {*LABELS, "dptr: run <b>bold"} <= set(elements.texts)
    assert not {"script", "b", "link", "iframe", "object"} & set(elements.tags)
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    asked = [value or "" for name, value in elements.attributes if name in ("src", "href", "xlink:href", "data")]
    assert asked
    assert [value for value in asked if not value.startswith(("#", "data:"))] == []
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in elements.attributes


def test_the_result_stands_first_and_curves_tables_and_attention_are_named(elements: Elements) -> None:
    (found,) = [text for text in elements.texts if text.startswith("Validation word accuracy 50.0% (95 % interval")]
    assert found.endswith("at step 20, from 12.5% at step 5")
    assert elements.tags.count("svg") == 2
    assert {"step", "loss", "word accuracy", "100 %", "Training loss", "images.rows"} <= set(elements.texts)
    assert elements.tags.count("caption") == elements.tags.count("table") >= 3
    assert not [text for text in elements.texts if text.startswith("{")]
    ids = [value for name, value in elements.attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 5
    described = [value for name, value in elements.attributes if name == "alt"]
    assert described.count("attention of the decoder") == described.count("attention of the FMU") > 0


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ['{"step": 5, "loss": 2.0}', '{"step": 6, "loss": 1.0}'])
    pages = []
    for name in ("one", "two"):
        report(run, tmp_path / name)
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def test_damaged_and_infinite_lines_are_said_and_left_out(tmp_path: Path) -> None:
    log = ['{"step": 5, "loss": NaN}', '{"step": 10, "lo', "[]", '{"step": 15, "loss": 2.0}', '{"st']
    report(make_run(tmp_path / "run", log), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "2 lines of metrics.jsonl are damaged" in page
    assert page.count("<svg") == 1
    # A run that has logged no loss yet has a report, too.
    report(make_run(tmp_path / "begun", ['{"step": 5}']), tmp_path / "page.html")
    assert "<svg" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_crops_that_cannot_be_decoded_are_counted(tmp_path: Path) -> None:
    crops = make_crops(tmp_path / "crops")
    (tmp_path / "crops" / "1.png").write_bytes(b"no picture")
    run = make_run(tmp_path / "run", ['{"step": 5, "loss": 2.0}'])
    report(run, tmp_path / "page.html", crops)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "5 of 6 crops: word accuracy" in page
    assert "1 more could not be decoded." in page
    for number in range(len(LABELS)):
        (tmp_path / "crops" / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="can be decoded"):
        report(run, tmp_path / "page.html", crops)


def test_what_utf8_cannot_say_is_written_as_its_code() -> None:
    page = render("t", "h", "n", [Section("s", tables=[Table("t", ["file"], [[Cell("crop of \udce9.png")]])])])
    assert "crop of \\udce9.png" in page.encode("utf-8", "backslashreplace").decode()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(("scheme", "paper", "width"), [("light", (255, 255, 255), 400), ("dark", (20, 25, 31), 1280)])
def test_a_browser_shows_it_light_and_dark(
    page: Path, tmp_path: Path, scheme: str, paper: tuple[int, int, int], width: int
) -> None:
    assert CHROMIUM is not None
    shot = tmp_path / "shot.png"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    command += [f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", f"--user-data-dir={tmp_path / 'me'}"]
    command += [f"--window-size={width},3000", f"--screenshot={shot}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ":CONSOLE(" not in done.stderr
    with Image.open(shot) as image:
        pixels = image.convert("RGB")
    assert pixels.width == width
    # The margin is the page's own colour from top to bottom: nothing stands out of it on either side.
    for left in (0, width - 8):
        assert pixels.crop((left, 0, left + 8, 3000)).getcolors() == [(8 * 3000, paper)]
    assert len(pixels.getcolors(1 << 24) or []) > 50


@pytest.mark.parametrize("kind", ["parseq", "nrtr", "parallel"])
@pytest.mark.parametrize("fmu", ["queries", "none"])
def test_where_a_decoder_looks_is_where_its_memory_comes_from(kind: str, fmu: str) -> None:
    torch.manual_seed(0)
    model = Recognizer(small(fmu, kind=kind, layers=2, refinements=1), Charset.named("36"), 32).eval()
    queries, decoder = attention_maps(model, Image.new("RGB", (64, 20), (40, 90, 120)))
    assert (queries is not None) == (fmu == "queries")
    assert decoder is not None
    assert 1 <= len(decoder) <= model.decoder.steps(None)
    assert decoder.shape[1] == 16
    assert torch.allclose(decoder.sum(1), torch.ones(len(decoder)), atol=1e-5)


def test_a_decoder_that_looks_at_one_place_is_drawn_there() -> None:
    model = Recognizer(small("none", refinements=0), Charset.named("36"), 32).eval()
    cross = model.decoder.layers[0].cross_attention
    image = Image.new("RGB", (128, 32))
    image.paste((255, 255, 255), (40, 0, 48, 32))  # the sixth of sixteen columns
    tokens: dict[str, Tensor] = {}
    hook = model.fmu.register_forward_pre_hook(lambda _, given: tokens.update(all=given[0][0]))
    attention_maps(model, image)
    hook.remove()
    with torch.no_grad():
        # Whatever it asks, keys answer for the tokens of that column alone.
        direction = tokens["all"][5] - tokens["all"].mean(0)
        cross.query.weight.zero_()
        cross.query.bias.fill_(1.0)
        cross.key_value.weight[:32] = 50 * direction / direction.norm() ** 2
        _, decoder = attention_maps(model, image)
    assert decoder is not None
    assert set(decoder.argmax(1).tolist()) == {5}


def test_a_report_replaces_no_file_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", ['{"step": 5, "loss": 2.0}'])
    before = (run.folder / "run.json").read_bytes()
    assert run_command(["report", str(run.folder), "-o", str(run.folder / "run.json")]) == 2
    assert "Name another place" in capsys.readouterr().err
    assert (run.folder / "run.json").read_bytes() == before
