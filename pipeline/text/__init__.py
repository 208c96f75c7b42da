"""A corpus to a prompt store.

embed_text is the step. corpus goes from files, which corpus_files reads, to distinct labels with counts. templates and
prompts put labels into prompts; made_up_words covers rare tokens.
"""
