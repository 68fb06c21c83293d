"""Rows of sinabs: the NIR files of record_sinabs.py."""

import nir_files
from row import Row


def rows() -> list[Row]:
    return nir_files.rows("sinabs")
