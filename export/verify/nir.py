"""A NIR file against the model it should come from: its graph read back and run step by step."""

from collections.abc import Iterator

import numpy as np

from soul_deploy.base.files import File
from soul_deploy.equivalence.engines import Execution, ModelExecution
from soul_deploy.equivalence.golden import Golden
from soul_deploy.export.nir.read import import_nir, read_nir
from soul_deploy.lowering.deploy import lower
from soul_deploy.model.model import Model


def opened(
    golden: Golden, file: File, source_sha256: str | None
) -> tuple[tuple[str, ...], Execution | None]:
    """The static gate's problems, and the network read back from the file if there are none.

    Raises what `read_nir` and `import_nir` raise.
    """
    graph = read_nir(file)
    stored = str(graph.metadata.get("source_sha256", ""))
    problems: list[str] = []
    if source_sha256 and stored and stored != source_sha256:
        problems.append(
            f"made from a file with sha256 {stored[:16]}…, the model given is {source_sha256[:16]}…"
        )
    if "time_steps" in graph.metadata:
        imported = import_nir(graph)
    else:  # of another tool: read as the model was, if it came from there
        read_with = golden.model.info.provenance.get("nir")
        said = read_with if isinstance(read_with, dict) else {}
        rules = {name: said.get(name) for name in ("dt", "fire", "reset")}
        imported = import_nir(graph, time_steps=golden.graph.time_steps, **rules)
    problems += static_problems(golden.model, imported)
    return tuple(problems), None if problems else ModelExecution(imported)


def static_problems(golden: Model, imported: Model) -> Iterator[str]:
    """Gate 1: T, shapes, every folded weight and every neuron's numbers, exactly."""
    ours, theirs = golden.graph, imported.graph
    for what, mine, found in (
        ("time_steps", ours.time_steps, theirs.time_steps),
        ("input", ours.input.shape, theirs.input.shape),
        ("input_kind", golden.info.input_kind, imported.info.input_kind),
        ("classes", ours.readout.classes, theirs.readout.classes),
    ):
        if mine != found:
            yield f"{what}: {found} in the file, the model says {mine}"
    expected, found_neurons = lower(golden).equations, lower(imported).equations
    for name in sorted(set(expected) ^ set(found_neurons)):
        yield f"{name}: {'missing' if name in expected else 'not in the model'}"
    for name in sorted(set(expected) & set(found_neurons)):
        if ours.shapes[name] != theirs.shapes[name]:
            yield f"{name}: shape {theirs.shapes[name]}, the model says {ours.shapes[name]}"
        if expected[name] != found_neurons[name]:
            yield f"{name}: {found_neurons[name]}, the model says {expected[name]}"
    yield from _weight_problems(golden, imported)


def _weight_problems(golden: Model, imported: Model) -> Iterator[str]:
    expected, found = lower(golden).synapses, lower(imported).synapses
    for name in sorted(set(expected) ^ set(found)):
        yield f"{name}: {'missing' if name in expected else 'not in the model'}"
    for name in sorted(set(expected) & set(found)):
        for part in ("weight", "bias"):
            mine, theirs = getattr(expected[name], part), getattr(found[name], part)
            mine = None if part == "bias" and mine is not None and not mine.any() else mine
            if (mine is None) != (theirs is None) or (
                mine is not None and not np.array_equal(mine, theirs)
            ):
                yield f"{name}.{part}: not the folded numbers of the model"
