"""A corpus to a prompt store.

Start at embed_text with its embed_settings. corpus goes from files to distinct labels: corpus_files and blocks read,
corpus_labels normalises, distinct_labels counts on disk, made_up_words covers rare pieces. prompts puts labels into
templates; prompt_shard writes states, prompt_store what all rows share.
"""
