"""Labelled crops of any of the field's forms, read and written.

form is what each form offers; label_files, lmdb_form, parquet_form and tar_form are the forms, reader beside writer;
sources finds which form a path has, writer writes and packs. listing reads and judges labels into a table; samples are
what of it is used, dataset adds their pictures, split parts training from validation; augmentation distorts them.
"""
