"""Stores: what stage 1 writes and training reads by memory map.

In this order: files (written whole or not at all), sealed (text that holds its own hash) and lock (one writer at a
time); manifest (the commit point and identity, with a hash a file) and checks, which compares hashes at first use;
shards (states as Arrow IPC) on mapped_file, and quarantine (rejected inputs). On them stand states_store and the three
kinds of store, prompts with its prompt_rows, orp and word_crops, and neighbours beside a prompt store. verify compares
every hash.
"""
