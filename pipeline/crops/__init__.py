"""Labelled crops to an image-feature store: their image tokens, in augmented copies (embed_crops)."""
