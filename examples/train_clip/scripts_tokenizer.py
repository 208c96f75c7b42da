"""Make a tokenizer for a CLIP of any scripts: byte-level BPE as GPT-2's, whose merges never cross a character.

    python examples/train_clip/scripts_tokenizer.py lists/*.txt -o my_clip

Each character of the word lists is one token, and other characters are bytes. All tokens are frequent, so a decoder can
learn to spell them; plain BPE would learn tokens of whole syllables, which are rare in most scripts. The folder also
gets the bundled CLIP's configuration and preprocessing, as `train.py --clip` needs them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from dptr.cache.errors import run_script
from dptr.cache.file_names import IMAGE_PROCESSOR_FILE, MODEL_CONFIG_FILE
from dptr.pipeline.clip.clip_files import BUNDLED

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
_MOST_TOKENS = 77


def main() -> None:
    """Parse, train, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", nargs="+", type=Path, help="word lists, one word a line")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the CLIP that is to be trained")
    parser.add_argument("--min-count", type=int, default=2, help="words with a character that becomes a token")
    arguments = parser.parse_args()
    words = (word for file in arguments.lists for word in file.read_text(encoding="utf-8").split())
    tokenizer = train_tokenizer(words, arguments.min_count)
    write_clip_folder(tokenizer, arguments.out)
    print(f"{len(tokenizer):,} tokens in {arguments.out}")


def train_tokenizer(words: Iterable[str], min_count: int = 2) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each character in ``min_count`` of the words."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex("."), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    counts = Counter(character for word in words for character in set(word))
    frequent = [character for character, count in counts.items() if count >= min_count]
    trainer = trainers.BpeTrainer(
        vocab_size=4 * len(frequent) + 512,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[BEGIN, END],
        show_progress=False,
    )
    # Each twice: BPE merges nothing that it meets only once.
    backend.train_from_iterator([*frequent, *frequent], trainer)
    vocabulary = backend.get_vocab()
    ends = (END, vocabulary[END]), (BEGIN, vocabulary[BEGIN])
    backend.post_processor = processors.RobertaProcessing(*ends, False, False)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        unk_token=END,
        model_max_length=_MOST_TOKENS,
    )


def write_clip_folder(tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the tokenizer with the bundled CLIP's configuration and preprocessing, for as many tokens."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    config = json.loads((BUNDLED / MODEL_CONFIG_FILE).read_text(encoding="utf-8"))
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    config["text_config"] |= {
        "vocab_size": len(tokenizer), "bos_token_id": begin, "eos_token_id": end, "pad_token_id": end
    }  # fmt: skip
    (out / MODEL_CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(BUNDLED / IMAGE_PROCESSOR_FILE, out / IMAGE_PROCESSOR_FILE)


if __name__ == "__main__":
    run_script(main)
