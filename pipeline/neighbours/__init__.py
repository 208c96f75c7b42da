"""A bank's pooled vectors to a FAISS index (faiss_index), and each prompt's nearest crops (mine_neighbours).

exact compares with every row, which is what recall is measured against.
"""
