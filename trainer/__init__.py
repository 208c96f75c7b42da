"""Stages 2 and 3: prompt stores to a decoder, labelled crops to a recogniser.

pretrain, finetune, adapt, evaluate (with metrics) and read (with read_files) are a stage each; nearest_words measures a
CLIP. They put together data/ (batches by number), model/ (what is trained) and training/ (the loop). report shows a
run, export writes it for other programs, push for the hub. commands/ declares the commands, recipe the settings,
choices the values of options.
"""
