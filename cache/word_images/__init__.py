"""Labelled crops of any of the field's forms, read and written.

form is what each form offers; label_files, lmdb_form, parquet_form and tar_form are the forms, reader beside
writer; sources finds which form a path has, writer and pack write. dataset turns paths into normalised samples with
pixels; augmentation distorts them.
"""
