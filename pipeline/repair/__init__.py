"""Damaged shards computed again from what they were made of."""
