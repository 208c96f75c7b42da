"""DuckDB over a workspace."""
