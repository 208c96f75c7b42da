"""Decoders behind one protocol: memory in, characters out."""
