"""Stores, which stage 1 writes and training reads by memory map.

files writes atomically, checksummed has text with its own hash, lock allows one writer. manifest is the commit point,
with identity and a hash a file; checks compares hashes at first use, verify compares all. shards has embeddings as
Arrow IPC; and the base of prompts (with prompt_rows), orp and image_features; neighbours belong to a
prompt store.
"""
