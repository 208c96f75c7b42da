"""What lies on disk between stages: shards, manifest, catalogues, and what keeps them whole."""
