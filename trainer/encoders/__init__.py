"""Image encoders: word images in, visual tokens out."""
