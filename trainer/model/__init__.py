"""The recogniser: image encoder, Feature Merge Unit, decoder."""
