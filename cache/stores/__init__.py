"""Stores: what stage 1 writes and training reads by memory map.

In this order: files (written whole or not at all), sealed (text that holds its own hash) and lock (one writer at a
time); shards (states as Arrow IPC) on mapped_file; manifest (the commit point and identity) with its manifest_log, a
shard_record and a file_record each, and quarantine (refused inputs). On them stand states_store and the three kinds of
store, prompts, orp and word_crops, and neighbours beside a prompt store. checks compares hashes at first use; verify
and invariants check everything.
"""
