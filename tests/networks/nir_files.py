"""Rows of NIR files that a recipe has left in a folder (`recording.py`): read, and compared."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from row import Made, Own, Row

from soul_deploy.export.nir.read import import_nir
from soul_deploy.model.model import Model

FOLDER = "NETWORKS_FILES"
"""The variable that holds the folder; in it one of each tool."""


def rows(tool: str) -> list[Row]:
    """None where no folder is given, or the tool has none."""
    folder = Path(os.environ.get(FOLDER, "none")) / tool
    return [_row(path) for path in sorted(folder.glob("*.json"))]


def version_of(tool: str) -> str:
    """Of the package that wrote the files."""
    folder = Path(os.environ.get(FOLDER, "none")) / tool
    found = {json.loads(path.read_text())["version"] for path in folder.glob("*.json")}
    (version,) = found
    return str(version)


def _row(path: Path) -> Row:
    told = json.loads(path.read_text())
    return Row(
        network=told["network"],
        neuron=told["neuron"],
        way="import nir",
        differs=told["differs"],
        make=lambda: _made(path, told),
    )


def _made(path: Path, told: dict[str, Any]) -> Made:
    arrays = dict(np.load(path.with_suffix(".npz")))
    x, scores = (torch.from_numpy(arrays.pop(name)) for name in ("x", "scores"))
    sent = {name.removeprefix("sent."): torch.from_numpy(a) for name, a in arrays.items()}

    def taken() -> Model:
        model = import_nir(path.with_suffix(".nir"), **told["said"])
        rename = {name.removeprefix("node_"): name for name in model.graph.shapes}
        rename |= {n.removesuffix(".lif"): name for n, name in rename.items()}  # recurrent ones
        missing = [name for name in sent if name not in rename]
        if model.graph.readout.neuron is not None:  # whose membrane makes the scores
            missing = [name for name in missing if sent.pop(name) is None]
        assert not missing, f"{missing} are no populations of the model: {list(rename)}"
        for name in list(sent):
            sent[rename[name]] = sent.pop(name)
        return model

    return Made(x, lambda: Own(sent, scores), taken, tuple(told["modules"]))
