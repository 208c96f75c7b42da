"""Stages 2 and 3: prompt stores to a decoder, labelled crops to a recogniser that reads.

One file a stage: pretrain, finetune, evaluate (with metrics, evaluation_table and predictions), read (with read_files
and page_boxes), zero_label. They put together data/ (batches by number), model/ (what is trained) and
training/ (the one loop). report/ shows one, export/ takes it elsewhere. commands/ is where
each command starts; choices are its options' values, tensor_file writes safetensors.
"""
