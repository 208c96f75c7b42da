"""Make the bundled CLIP's tokenizer: CLIP's own byte-level BPE, with about 1,000 tokens learnt from a word list.

    python examples/train_clip/tiny_tokenizer.py /usr/share/dict/words pipeline/clip/tiny

Each of so few tokens is in many words, so a decoder trained on some thousand words can spell unseen words.

Smallest size: WORDS OUT
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tokenizers import pre_tokenizers, trainers
from transformers import CLIPTokenizer

from dptr.cache.errors import run_script

MOST_PIECES = 1024
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def main() -> None:
    """Parse, train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", type=Path, help="a word list, one word a line")
    parser.add_argument("out", type=Path, help="folder for the tokenizer's files")
    arguments = parser.parse_args()
    train(arguments.words, arguments.out)


def train(word_list: Path, folder: Path) -> None:
    """Train on one word a line and save the tokenizer's files in ``folder``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = CLIPTokenizer(vocab={BEGIN: 0, END: 1}, merges=[]).backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=MOST_PIECES - len(alphabet) - 2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    words = word_list.read_text(encoding="utf-8").splitlines()
    backend.train_from_iterator(words, trainer)
    model = json.loads(backend.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    # CLIP's order: bytes, bytes that end a word, merges, specials.
    pieces = alphabet + [f"{byte}</w>" for byte in alphabet]
    merged = ["".join(merge) for merge in merges]
    room = MOST_PIECES - len(pieces) - 2
    kept = [(merge, piece) for merge, piece in zip(merges, merged, strict=True) if piece not in pieces][:room]
    vocabulary = [*pieces, *dict.fromkeys(piece for _, piece in kept), BEGIN, END]
    tokenizer = CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(vocabulary)},
        merges=[merge for merge, _ in kept],  # type: ignore[misc]
        model_max_length=77,
    )
    tokenizer.save_pretrained(folder)
    print(f"{len(vocabulary)} tokens, {len(kept)} merges in {folder}")


if __name__ == "__main__":
    run_script(main)
