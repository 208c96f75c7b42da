"""A bank's pooled vectors to a FAISS index (faiss_index), and each prompt's nearest crops (mine_neighbours)."""
