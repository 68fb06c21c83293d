"""What each kernel relies on, the check that guarantees it, and a file that violates it.

Kernels index without checks, on arrays that the loader let through. Each assumption below names
damaged files from the tables of test_eventfile.py and test_residual_files.py, which are refused
there one by one. A kernel belongs to the family that its name starts with.
"""

import ast
from pathlib import Path

import numpy as np
import pytest
import test_eventfile
import test_residual_files
from jit import jit_decorations
from places import ROOT
from test_eventfile import rewritten, tensor

from soul_deploy.base.errors import FileFormatError
from soul_deploy.runtime.format.file import load_event_network

ROWS = {  # SparseRows.check
    "starts are uint32, one more than rows": ["starts length"],
    "starts rise from 0 to the number of synapses": [
        *("starts fall", "starts end early", "starts begin late")
    ],
    "targets are uint32 and inside the output": ["target beyond", "matrix target", "targets dtype"],
    "targets of a row are different ones": ["row order", "twice"],
    "one float32 weight per target, finite": ["weights length", "nan"],
}
DENSE = {  # DenseRows: checks.require_array
    "weights are float32, contiguous, of the geometry's shape": [
        *("weight dtype", "weight shape", "matrix shape")
    ]
}
BIAS = {"a bias is as long as the output": ["bias length", "matrix bias"]}
GEOMETRY = {  # synapses.ConvSynapses: every tap of tap_tables.py stays inside the output
    "sides are positive": ["empty side", "two sides", "flat convolution"],
    "kernel, stride, dilation from 1, padding from 0": [
        *("kernel", "stride", "dilation", "padding", "long pair")
    ],
    "the output has no positions that no input reaches": ["out shape"],
    "groups divide the channels": ["groups"],
    "no event beyond reach has targets": ["reach"],
    "a source has the shape that its reader takes": ["in shape", "source shape", "source"],
}
COMPACTED = {  # layout.py renumbers live neurons only
    "a live mask is bool, one per neuron": ["live length", "live dtype"],
    "no row leads to or from a neuron that is not live": ["dead target", "dead source"],
    "patterns are (T, channels) of 0 and 1": [
        *("pattern steps", "pattern values", "pattern dtype", "pattern sides", "pattern width")
    ],
}
NEURON = {
    "numbers are finite in float32, the threshold above 0, no division by 0": [
        *("threshold", "threshold below float32", "huge constant", "constant", "reset")
    ],
    "the equation is a known one": ["charge", "fire"],
}
POOL = {"windows of output positions start inside": ["pool output", "pool stride"]}
MERGE = {
    "branches have one shape": ["shape of a merge", "branches", "unknown branch"],
    "what leaves is what readers take": ["graded bound", "function", "iand of three"],
}
SCATTER = {
    "places rise and lie inside the wide map": ["index range", "index type", "scattered shape"]
}
READOUT = {
    "weights and bias are (classes, sums) and (classes,)": ["head weights", "head bias"],
    "votes times classes are the sums": ["voteless", "no votes", "head votes"],
}
EVENTS = {"values of an edge are what it says": ["edge kind", "input edge", "bound", "edge"]}

FAMILIES = {
    "convolve_dense": [DENSE, BIAS, GEOMETRY, EVENTS],
    "convolve_gathered": [DENSE, BIAS, GEOMETRY, EVENTS],
    "pack_words": [EVENTS],
    "unpack_words": [],
    "convolve_analog": [DENSE, BIAS, GEOMETRY, EVENTS],
    "convolve_sparse": [ROWS, BIAS, GEOMETRY, EVENTS],
    "multiply_dense": [DENSE, BIAS, COMPACTED, EVENTS],
    "multiply_sparse": [ROWS, BIAS, COMPACTED, EVENTS],
    "start": [BIAS],
    "convolve": [ROWS, BIAS, GEOMETRY, EVENTS],
    "multiply": [ROWS, BIAS, COMPACTED, EVENTS],
    "repeat": [ROWS, BIAS, GEOMETRY, COMPACTED, EVENTS],
    "arrive": [],
    **{key: [] for key in ("is_missing", "give", "serve", "change", "is_busy")},  # duty.py
    "gather": [COMPACTED],
    "scatter_spikes": [COMPACTED],
    "mask_out": [COMPACTED],
    "max_pool": [POOL, GEOMETRY],
    "max_of_fours": [POOL, GEOMETRY],
    "pool_words": [POOL, GEOMETRY],
    "sum_spikes": [READOUT],
    "score": [READOUT],
    "keep_largest": [READOUT],
    "vote": [READOUT],
    "update": [NEURON, COMPACTED],
    "add_": [MERGE],
    "both": [MERGE],
    "first_without_second": [MERGE],
    "scatter_channels": [SCATTER],
    "count_convolution": [GEOMETRY, DENSE, ROWS],
    "count_matrix": [DENSE, ROWS],
    "write_rows": [ROWS, GEOMETRY, COMPACTED],
    # touched.py
    **{key: [EVENTS] for key in ("sort_events", "forget_events", "place", "clear")},
    **{key: [] for key in ("commit", "undo")},
    "alone": [NEURON, BIAS],
    "advance": [ROWS, GEOMETRY, BIAS, NEURON, EVENTS],
    "pool": [POOL, GEOMETRY, EVENTS],
}
REFUSED = {**test_residual_files.DAMAGE, **test_eventfile.DAMAGE}


def kernels() -> list[str]:
    """Every compiled function of runtime and export."""
    folders = (ROOT / "runtime", ROOT / "export")
    sources = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return [name for path in sources for name, _ in jit_decorations(ast.parse(path.read_text()))]


def test_every_kernel_has_its_assumptions_stated() -> None:
    found = kernels()
    assert len(found) > 20
    unstated = [name for name in found if not any(map(name.startswith, FAMILIES))]
    assert not unstated, f"say in FAMILIES what these rely on: {unstated}"


def test_every_assumption_has_a_file_that_violates_it_and_is_refused() -> None:
    named = {
        case
        for family in FAMILIES.values()
        for assumptions in family
        for cases in assumptions.values()
        for case in cases
    }
    missing = named - set(REFUSED)
    assert not missing, f"no damaged file is called {sorted(missing)}"
    assert all(cases for family in FAMILIES.values() for a in family for cases in a.values())


def test_bytes_of_a_bool_other_than_0_and_1_are_refused(tmp_path: Path) -> None:
    """Compiled code takes the lowest bit of such a byte, numpy any bit: they would disagree."""
    odd = tensor("p2/live", lambda a: np.full(a.shape, 2, np.uint8).view(np.bool_))
    with pytest.raises(FileFormatError, match="'p2/live' holds bytes other than 0 and 1"):
        load_event_network(rewritten(tmp_path, odd))


def test_arrays_that_start_anywhere_are_read_as_they_are(tmp_path: Path) -> None:
    """A header of another length moves all arrays off the alignment of their type."""
    path = rewritten(tmp_path, lambda document, tensors: None)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    for extra in (1, 2, 3):
        header = data[8 : 8 + size] + b" " * extra
        moved = tmp_path / f"moved{extra}.safetensors"
        moved.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
        assert test_eventfile.same(load_event_network(moved), test_eventfile.example())
