"""Photos to an ORP bank: random rectangles through CLIP's image encoder, an index over them, and prompts' neighbours.

build_orp_bank is the step: photo_files finds photos, crops reads and cuts them and rejects those that nearly equal a
benchmark's. faiss_index searches the pooled embeddings, mine_neighbours keeps each prompt's nearest.
"""
