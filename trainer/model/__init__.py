"""The recogniser: images to tokens (encoders/), to a short memory (fmu), to characters (decoders/).

Start with recognizer, then layers and fmu. reading takes pictures of any shape, beam_search and language_model decode
with a lexicon, folding speeds up inference, model_file is a model in one file.
"""
