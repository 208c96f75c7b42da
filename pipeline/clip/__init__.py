"""CLIP, frozen: files to a text encoder and an image encoder that give token embeddings and pooled vectors.

clip_files finds a model's folder (bundled names those in the package), loading builds it once for both encoders,
families has what differs between kinds of CLIP. text_encoder runs prompts, image_shards runs pictures and writes them.
"""
