"""What a report says of a recogniser: accuracy on labelled crops, best and worst ones, and what its FMU attends to."""

from __future__ import annotations

import numpy as np

from dptr.cache.errors import UserError
from dptr.cache.word_images.dataset import UnreadableImage, WordImages
from dptr.trainer.model.reading import read_pictures
from dptr.trainer.model.recognizer import Reading, Recognizer
from dptr.trainer.report.looks import characters_strip, looks, queries_strip
from dptr.trainer.report.mistakes import accuracy_by_length, confusions
from dptr.trainer.report.page import Cell, Section, Table, picture_address

MOST_CROPS = 2000
_BATCH = 128
_EXAMPLES = 12
Read = tuple[int, Reading]


def image_sections(recognizer: Recognizer, crops: WordImages) -> list[Section]:
    """Read crops (2,000 of them where there are more, always the same) and show the readings.

    Raises:
        UserError: none of them can be decoded.
    """
    chosen = np.random.default_rng(0).permutation(len(crops))[:MOST_CROPS].tolist()
    read = read_crops(recognizer, crops, chosen)
    if not read:
        raise UserError("none of these crops can be decoded", "Check the files that --data names")
    truths = [crops.samples[index].label for index, _ in read]
    texts = [reading.text for _, reading in read]
    said = f"{len(read):,} of {len(crops):,} crops."
    if len(read) < len(chosen):
        said += f" {len(chosen) - len(read):,} more could not be decoded."
    right = [(index, reading) for index, reading in read if reading.text == crops.samples[index].label]
    wrong = [(index, reading) for index, reading in read if reading.text != crops.samples[index].label]
    by_doubt = sorted(read, key=lambda one: one[1].confidence)
    units = recognizer.charset.units
    shown = accuracy_by_length(truths, texts, units), confusions(truths, texts, units)
    sections = [Section("How well it reads", said, [shown[0]], [shown[1]])]
    for title, note, ranked in (
        ("Worst examples", "Wrong, and most certain of it.", sorted(wrong, key=lambda one: -one[1].confidence)),
        ("Best examples", "Right, and most certain of it.", sorted(right, key=lambda one: -one[1].confidence)),
        ("Least certain", "Right or wrong, with the least confidence.", by_doubt),
    ):
        if ranked:
            sections.append(_examples(title, note, recognizer, crops, ranked[:_EXAMPLES]))
    return sections


def read_crops(recognizer: Recognizer, crops: WordImages, chosen: list[int]) -> list[Read]:
    """Read the chosen crops; those that cannot be decoded are left out."""
    read: list[Read] = []
    for start in range(0, len(chosen), _BATCH):
        pictures, readable = [], []
        for index in chosen[start : start + _BATCH]:
            try:
                pictures.append(crops.image(index))
            except UnreadableImage:
                continue
            readable.append(index)
        read += zip(readable, read_pictures(recognizer, pictures), strict=True)
    return read


def _examples(title: str, note: str, recognizer: Recognizer, crops: WordImages, ranked: list[Read]) -> Section:
    rows, shown = [], {"queries": False, "decoder": False}
    for index, reading in ranked:
        image, truth = crops.image(index), crops.samples[index].label
        cells = [Cell(picture=picture_address(image), described=f"crop of {truth}")]
        queries, decoder = looks(recognizer, image)
        if queries is not None:
            strip = picture_address(queries_strip(queries))
            cells.append(Cell(picture=strip, height=52, described="where the queries look"))
        if decoder is not None:
            drawn = characters_strip(decoder, len(reading.text))
            cells.append(Cell(picture=picture_address(drawn), height=drawn.height, described="where the decoder looks"))
        shown = {"queries": queries is not None, "decoder": decoder is not None}
        confidence = Cell(f"{reading.confidence:.2f}")
        rows.append([*cells, Cell(truth), Cell(reading.text, wrong=reading.text != truth), confidence])
    columns = ["image", *(name for name, there in shown.items() if there), "truth", "read", "confidence"]
    return Section(title, note + _said_of_strips(shown), tables=[Table(columns, rows)])


def _said_of_strips(shown: dict[str, bool]) -> str:
    said = ""
    if shown["queries"]:
        said += " Queries: where each query of the Feature Merge Unit looks, a line a query."
    if shown["decoder"]:
        said += " Decoder: where its last layer looks for each character, a line a character, read from left to right."
    return said + (" The darker the more, left to right as the image." if said else "")
