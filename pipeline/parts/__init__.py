"""Shares of stage 1, each made on its own machine without the others, and what joins them.

part says which shards are whose, store_in_making fills a store or a part's share of one, merge makes one of all shares;
cluster lets the workers of a Ray cluster make the shards of one store.
"""
