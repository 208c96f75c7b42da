"""The recogniser: images to tokens (encoders/), to a short memory (fmu), to characters (decoders/).

Read recognizer first, then layers, fmu and the two folders. reading takes pictures of any shape, folding is for speed;
coverage loads weights that fit in part, model_file is a model in one file.
"""
