"""Stores and crops to batches; batch i depends on the seed and i alone.

batch_order draws rows. For pre-training prompt_batches makes memories of each kind, with noise from an ORP bank. For
fine-tuning image_batches reads crops, image_features an image-feature store.
"""
