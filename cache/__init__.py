"""Files on disk, and code that all commands share; imports no model library.

stores/ has prompt stores, ORP banks and image-feature stores; crops/ labelled crops of any form; text/ charsets,
normalisation and reading order; sql queries over all of it. workspace and file_names name folders and files, errors
has the exceptions and their exit codes, rejections the records of rejected inputs; remote and hub fetch files.
command_line, options and choices declare options; progress and printing print; processes has rank, cores and signals.
"""
