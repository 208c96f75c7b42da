"""Queries over a workspace: views makes a DuckDB of everything in it, query runs one query.

stored_tables reads descriptions and metrics of runs for views, pieces adds the tokenizer's pieces, macros are functions
that queries may call. prompt takes queries from a terminal; answer_text and out_file write a result as text, JSON, CSV
or Parquet.
"""
