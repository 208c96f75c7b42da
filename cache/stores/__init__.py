"""Stores: what stage 1 writes and training reads by memory map.

In this order: files (written whole or not at all), checksummed (text that holds its own hash) and lock (one writer at a
time); manifest (the commit point and identity, with a hash a file) and checks, which compares hashes at first use;
shards (embeddings as Arrow IPC) on mapped_file, and quarantine (rejected inputs). On them stand embeddings_store and
the three kinds of store, prompts with its prompt_rows, orp and image_features, and neighbours beside a prompt store.
verify compares every hash.
"""
