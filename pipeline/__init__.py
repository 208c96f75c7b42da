"""Stage 1: text, photos and labelled crops to stores.

text/ makes prompt stores, photos/ ORP banks with their index and each prompt's neighbours, embed_crops image-feature
stores,
rendering/ synthetic labelled crops. clip/ has CLIP's encoders; executors/ makes shards in this process, in
parts or by Ray. repair recomputes damaged shards, first_look inspects a machine and a user's data. commands and
options declare the commands.
"""
