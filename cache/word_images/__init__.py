"""Labelled crops of any of the field's forms, read and written.

form is what each form offers; label_files, lmdb_form, parquet_form and tar_form are the forms, reader beside
writer; sources finds which form a path has, writer and pack write. listing reads and judges labels into columns, which
kept_file keeps; samples are what of them is used, dataset adds their pixels, split chooses those for validation;
augmentation distorts them.
"""
