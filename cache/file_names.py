"""The names of files in stores, runs and models; the only place that spells them."""

from __future__ import annotations

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

# In a run.
RUN_FILE = "run.json"
IDENTITY_FILE = "identity.json"
RECIPE_FILE = "recipe.toml"
LEXICON_FILE = "lexicon.json"
METRICS_FILE = "metrics.jsonl"
TIMINGS_FILE = "timings.jsonl"
PREDICTIONS_FOLDER = "predictions"
#: Replaces the data set's name in predictions of pre-training.
VALIDATION_WORDS = "(validation words)"
REPORT_FILE = "report.html"
#: What an adaptation measured before and after training.
ADAPTATION_FILE = "adaptation.json"
CHECKPOINTS_FOLDER = "checkpoints"
STATE_FILE = "state.json"

# In the folder of a model, as transformers names them.
MODEL_CONFIG_FILE = "config.json"
IMAGE_PROCESSOR_FILE = "preprocessor_config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
SAFETENSORS = ".safetensors"

# In a folder of labelled crops, as written; other names are read, too.
LABELS_FILE = "labels.tsv"
