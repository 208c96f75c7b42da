"""How stage 1 is carried out: in this process or several, in parts on several machines, or on a Ray cluster.

executors say how pieces of work are done, cluster is the one of Ray; part says which shards are whose, store_in_making
fills a store, a part's share of one, or what a repair lacks; merge makes one of all shares.
"""
