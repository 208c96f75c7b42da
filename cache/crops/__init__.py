"""Labelled crops in the field's file formats: reading and writing.

form is the interface of a form; label_files, lmdb_form, parquet_form and tar_form implement it, with reader and writer.
sources detects the form of a path; samples reads and checks labels into a table; dataset adds the pictures and splits
training and validation, writes and packs crops; augmentation distorts them.
"""
