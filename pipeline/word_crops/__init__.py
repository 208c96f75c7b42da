"""Labelled crops and augmented views of them to a word-crop store."""
