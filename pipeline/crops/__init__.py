"""Labelled crops to a store of their image tokens, in augmented views (embed_crops; crop_reader reads one crop)."""
