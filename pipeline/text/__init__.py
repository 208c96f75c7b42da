"""A corpus to a prompt store.

Start at embed_text. corpus goes from files to distinct labels: corpus_files reads them, label_counts normalises and
counts; made_up_words covers rare pieces of the tokenizer. prompts puts labels into templates, prompt_store writes them.
"""
