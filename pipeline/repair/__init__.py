"""Damaged shards of a store, computed again from the inputs that it was made of."""
