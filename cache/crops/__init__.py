"""Labelled crops of any of the field's forms, read and written.

form is the interface of a form; label_files, lmdb_form, parquet_form and tar_form are the forms, reader beside writer.
sources finds which form a path has; samples reads and judges labels into a table, dataset adds the pictures and parts
training from validation; augmentation distorts crops, writer writes and packs them.
"""
