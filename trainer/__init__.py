"""Stages 2 and 3: stores to a decoder, word images to a recogniser."""
