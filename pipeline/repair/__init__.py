"""Damaged shards of a store, computed again from the inputs that it was made of.

losses finds what is damaged and how it was made, repair puts a shard back where the hash is the old one; prompt_shards,
photo_shards and crop_shards compute one of each kind of store.
"""
