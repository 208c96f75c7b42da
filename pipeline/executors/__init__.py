"""Execution of shards: in one process or several, in parts on several machines, or by Ray.

executor has the interface and the local executors, ray_cluster Ray's; executor also selects the shards of a part.
store_builder commits shards one by one, of a whole store, a part or a repair; merge joins parts to a store.
"""
