"""Stage 1: raw text, photos and labelled crops to stores.

starting/ comes before it: checks of a machine, and a plan. clip/ loads CLIP; text/ makes prompt stores, photos/ ORP
banks, neighbours/ each prompt's nearest crops, image_features/ stores of labelled crops, rendering/ synthetic crops;
repair/ computes damaged shards again, parts/ shares a store's making out. commands is where each command starts,
choices are its options' values; read_ahead reads files in threads.
"""
