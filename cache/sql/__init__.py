"""Queries over a workspace: views opens it in DuckDB, macros are functions for queries, query runs one, answers prints."""
