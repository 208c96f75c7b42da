"""Stages 2 and 3: prompt stores to a decoder, labelled crops to a recogniser.

pretrain, finetune, adapt, evaluate (metrics, predictions) and read (read_files) are a stage each; zero_shot and
nearest_words read without labelled crops. They put together data/ (batches by number), model/ (what is trained) and
training/ (the loop). report/ shows a run, export/ writes it for other programs. commands/ declares the commands,
recipe the settings, choices the values of options.
"""
