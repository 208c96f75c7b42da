"""CLIP: loading, its two towers, and the bundled model."""
