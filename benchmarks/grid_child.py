"""Run event networks of one version of the runtime on request: a child of forms_grid.py.

Each line on stdin is a JSON object, and so is each answer on stdout:

    {"load": EVENT_FILE, "input": NPY_FILE, "forms": [FORM or null, ...]}
        -> {"forms": [{LAYER: FORM}, ...]}
    {"time": which of the forms, "runs": N}
        -> {"ms": [N numbers], "scores": [numbers]}

Each run takes the next image of INPUT_FILE; scores are those of its first. A form is asked of every
layer that can have it. Versions without forms answer with {} for each.
The version is the one that PYTHONPATH names; nothing here may need a newer one.
"""

import gc
import json
import sys
import time
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np


class Contender:
    """A network that runs one image after the other."""

    def __init__(self, network: Any, images: list[Any]) -> None:
        self.network, self.images = network, images
        self._next = cycle(images)

    def __call__(self) -> Any:
        return self.network.run(next(self._next)[None])

    def first(self) -> Any:
        """The scores of the first image."""
        return self.network.run(self.images[0][None])


def load(path: Path, x: Any, wanted: list[str | None]) -> tuple[list[Contender], list[Any]]:
    """One network a form, each run twice, and the forms of its layers."""
    networks: list[Any]
    forms: list[Any]
    try:
        from soul_deploy.runtime.engine import network
        from soul_deploy.runtime.plan.forms import possible_forms
    except ImportError:  # versions that had one form a layer
        earlier: Any = import_module("soul_deploy.runtime.network")
        networks, forms = [earlier.load(path, 1)], [{}]
    else:
        networks, forms = [], []
        layers = network.load(path, 1).events.projected
        for form in wanted:
            able = {item.name: form for item in layers if form in possible_forms(item)}
            networks.append(network.load(path, 1, forms=able if form else None))
            forms.append(dict(networks[-1].layer_forms))
    contenders = [Contender(loaded, list(x)) for loaded in networks]
    for run in contenders * 2:
        run()
    return contenders, forms


def times(run: Contender, runs: int) -> dict[str, Any]:
    """Milliseconds of each run; one run before is not counted."""
    found = []
    scores = run.first()
    gc.disable()
    for _ in range(runs):
        start = time.perf_counter_ns()
        run()
        found.append((time.perf_counter_ns() - start) / 1e6)
    gc.enable()
    return {"ms": found, "scores": scores.ravel().tolist()}


def main() -> None:
    contenders: list[Contender] = []
    for line in sys.stdin:
        asked = json.loads(line)
        if "load" in asked:
            x = np.load(asked["input"], allow_pickle=False)
            contenders, forms = load(Path(asked["load"]), x, asked["forms"])
            answer: dict[str, Any] = {"forms": forms}
        else:
            answer = times(contenders[asked["time"]], asked["runs"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
