"""Labelled crops in any of the field's forms: read, written, packed."""
