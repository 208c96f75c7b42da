"""What is on disk, and what all commands share; the floor that stage 1 and training stand on. Imports no model library.

Read first: workspace (where things are), file_names, errors, charset and normalization (raw text to labels),
validation (which rows validate), row_set (some of many rows). Then stores/ (prompt stores, ORP banks, word-crop
stores), word_images/ (labelled crops of any form) with pictures (the one decoder), and sql/. command_line, options,
path_lists and choices are what commands share, commands the three of this folder. progress, table,
visible and plain_json print; interrupts, launched, processors, ranges and tensor_hash are small and used by both
stages; remote fetches what lies elsewhere.
"""
