"""The names of files in stores, runs and models, each written here and nowhere else."""

from __future__ import annotations

from fnmatch import fnmatchcase

# In a store of either kind.
MANIFEST_FILE = "manifest.json"
QUARANTINE_FILE = "quarantine.parquet"

# In a prompt store.
PREFIX_FILE = "prefix.arrow"
ROWS_FILE = "rows.arrow"
NEIGHBOURS_TABLE = "neighbours.parquet"
NEIGHBOURS_ARRAY = "neighbours.npy"

# In an ORP bank.
INDEX_FILE = "index.faiss"
#: Of the crops from one row to another, where they are not the first.
_INDEX_SEGMENT = "index-{first}-{end}.faiss"
PHOTOS_FILE = "photos.parquet"

# In a run.
RUN_FILE = "run.json"
IDENTITY_FILE = "identity.json"
RECIPE_FILE = "recipe.toml"
LEXICON_FILE = "lexicon.json"
METRICS_FILE = "metrics.jsonl"
TIMINGS_FILE = "timings.jsonl"
PREDICTIONS_FOLDER = "predictions"
#: What pre-training's own predictions have in place of a data set's name.
VALIDATION_WORDS = "(validation words)"
REPORT_FILE = "report.html"
CHECKPOINTS_FOLDER = "checkpoints"
STATE_FILE = "state.json"

# In the folder of a model, as transformers names them.
MODEL_CONFIG_FILE = "config.json"
IMAGE_PROCESSOR_FILE = "preprocessor_config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
SAFETENSORS = ".safetensors"

# In a folder of labelled crops, as written; more names are read.
LABELS_FILE = "labels.tsv"


def index_file(first: int, end: int) -> str:
    """Return the name of the segment of a bank's index that holds crops ``first … end - 1``."""
    return _INDEX_SEGMENT.format(first=first, end=end) if first else INDEX_FILE


def is_index_file(name: str) -> bool:
    """Return whether a file in a bank is a segment of its index."""
    return name == INDEX_FILE or fnmatchcase(name, _INDEX_SEGMENT.format(first="*", end="*"))
