"""Stage 1: raw text and photos to stores."""
