"""Queries over a workspace: views opens it in DuckDB, macros defines functions, query runs one, answers writes it."""
