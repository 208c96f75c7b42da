"""Which rows of a prompt store are words that ``embed-text --cover-pieces`` made up, and no corpus holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

#: Stands in the catalogue's column ``source`` where words of a corpus have their file.
MADE_UP = "(made up)"
_SOURCE = "source"

#: Of rows, in order: the first, and the one behind the last.
Ranges = list[list[int]]


def made_up_ranges(catalogues: Sequence[Path]) -> Ranges:
    """Return the ranges of rows whose source says so, counted through all catalogues; most are told by a footer."""
    ranges: Ranges = []
    first = 0
    for catalogue in catalogues:
        with pq.ParquetFile(catalogue) as file:
            rows = file.metadata.num_rows
            if _may_hold_some(file):
                source = file.read([_SOURCE]).column(0)
                mask = np.asarray(pc.fill_null(pc.equal(source, MADE_UP), False))
                edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
                ranges += (first + edges.reshape(-1, 2)).tolist()
        first += rows
    return ranges


def within(ranges: Ranges, first: int, rows: int) -> NDArray[np.bool_]:
    """Return which of ``rows`` rows from row ``first`` on are in ranges, shape (rows,)."""
    found = np.zeros(rows, np.bool_)
    for start, stop in ranges:
        found[max(start - first, 0) : max(stop - first, 0)] = True
    return found


def _may_hold_some(file: pq.ParquetFile) -> bool:
    """Return whether the least and the greatest source of a part of the file leave room for it."""
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    told = [column.statistics for column in columns if column.path_in_schema == _SOURCE]
    return any(one is None or not one.has_min_max or one.min <= MADE_UP <= one.max for one in told)
