"""Rows of rockpool: the NIR files of record_rockpool.py."""

import nir_files
from row import Row


def rows() -> list[Row]:
    return nir_files.rows("rockpool")
