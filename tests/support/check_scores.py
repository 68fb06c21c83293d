"""Compare what `soul-deploy run` printed on a device with PyTorch's scores (used by .ci/run)."""

import json
import sys
from pathlib import Path

import numpy as np

folder = Path(sys.argv[1])
assert "torch" not in sys.modules
printed = json.loads((folder / "scores.json").read_text())
expected = np.load(folder / "expected.npy", allow_pickle=False)
for entry, row in zip(printed["results"], expected, strict=True):
    assert entry["top"][0]["index"] == int(row.argmax()), entry
    assert abs(entry["top"][0]["score"] - float(row.max())) < 1e-5, entry
print(f"{len(expected)} of {len(expected)} images: the class and score that PyTorch gives")
