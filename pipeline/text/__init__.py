"""A corpus to a prompt store.

embed_text is the step. corpus goes from files to distinct labels: corpus_files reads them, label_counts normalises and
counts. templates and prompts put labels into prompts, prompt_store writes them; made_up_words covers rare tokens.
"""
