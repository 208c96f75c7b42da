"""Frozen CLIP: text encoder and image encoder with token and pooled embeddings.

clip_files finds a model's folder, loading builds it once for both encoders.
families has what differs between kinds of CLIP, multilingual text encoders of other models. text_encoder runs prompts,
image_shards runs pictures and writes them, batch_size finds how many fit into a GPU's memory.
"""
