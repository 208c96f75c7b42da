"""One loop for every stage, and what it keeps on disk."""
