"""Where the shards of a store are made: in this process or several, in parts on several machines, or by Ray.

executor has the interface and the local ones, ray_cluster the one of Ray; part has which shards a part makes.
store_builder commits shards one by one, of a whole store, a part or a repair; merge joins parts to a store.
"""
