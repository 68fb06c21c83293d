"""Rows of norse: the NIR files of record_norse.py."""

import nir_files
from row import Row


def rows() -> list[Row]:
    return nir_files.rows("norse")
