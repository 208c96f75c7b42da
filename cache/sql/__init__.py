"""Queries over a workspace: views opens it in DuckDB with macros; query runs one query and writes its result."""
