"""The Python API from a word list to predictions, as a notebook would use it; type-checked with ``mypy --strict``.

python examples/notebook.py words.txt photos/ crops/ sign.png

Smallest size: FEW_WORDS PHOTOS CROPS IMAGE 2
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import dptr


def main(words: str, photos: str, crops: str, picture: str, steps: int = 2000) -> list[dptr.Prediction]:
    """Run all stages in ``./dptr_data`` and return the predictions for ``picture`` and for a white image."""
    store: dptr.PromptStore = dptr.embed_text(Path(words), charset="36")
    bank: dptr.OrpBank = dptr.build_orp_bank(photos, crops_per_image=8)
    print(store, bank, sep="\n")

    rows = np.arange(min(len(store), 4))
    own = store.embeddings(rows)  # tokens (sum of lengths, dim), lengths (rows,), pooled (rows, pooled_dim)
    print(store.labels_of(rows), own.tokens.shape, own.lengths, store.pooled_of(rows).shape)
    print(store.catalogue(["label", "n_tokens"]).num_rows, "rows as an Arrow table")
    print(store.duckdb().sql("select label_length, count(*) as prompts from prompts group by 1 order by 1"))

    decoder: dptr.TrainingSummary = dptr.pretrain("tiny", steps=steps)
    recogniser = dptr.finetune(crops, from_=decoder.out, steps=steps)
    print({name: round(value, 3) for name, value in recogniser.metrics.items()})

    reader: dptr.Reader = dptr.load(recogniser.out)
    pixels = np.full((32, 128, 3), 255, np.uint8)
    print(reader(picture).text)
    return list(reader.read_each([picture, pixels], batch_size=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("words", "photos", "crops", "picture"):
        parser.add_argument(name)
    parser.add_argument("steps", type=int, nargs="?", default=2000, help="of each training")
    try:
        predictions = main(**vars(parser.parse_args()))
    except dptr.DptrError as error:
        sys.exit(f"error: {error}")
    for prediction in predictions:
        print(f"{prediction.text}\t{prediction.confidence:.3f}")
