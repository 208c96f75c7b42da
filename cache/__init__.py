"""What is on disk: stores, manifests, charsets. Knows no model library."""
