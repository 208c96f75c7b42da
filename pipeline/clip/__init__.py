"""CLIP, frozen: files to two towers that give token states and pooled vectors.

clip_files finds a model's folder (bundled names the one in the package), loading builds it once for both towers,
families has what differs between kinds of CLIP. text_tower runs prompts by one of text_forward's three ways;
image_shards runs pictures, one image_shard after another; batch_per_core shares work out.
"""
