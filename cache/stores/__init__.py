"""Stores: what stage 1 writes and training reads by memory map.

files (written whole or not at all), checksummed (text that holds its own hash) and lock (one writer at a time) come
first; manifest is the commit point, with identity and a hash a file, and checks compares hashes at first use. shards
are embeddings as Arrow IPC, on mapped_file; embeddings_store is what prompts (with prompt_rows), orp and image_features
share; neighbours lie beside a prompt store. verify compares every hash.
"""
