"""Stores and crops to batches; batch i depends on the seed and i alone.

batch_order draws rows. For pre-training noisy_memory makes memories with noise; pooled_memory and column_memory make
other kinds. For fine-tuning image_batches reads crops, stored_batches and stored_crops an image-feature store.
"""
