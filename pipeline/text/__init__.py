"""Corpus to labels to prompts to a prompt store."""
