"""A NIR file against the model it should come from: its graph read back and run step by step."""

from collections.abc import Iterator

import numpy as np

from soul_deploy.base.files import File
from soul_deploy.equivalence.engines import Execution, ModelExecution
from soul_deploy.equivalence.reference import ReferenceModel
from soul_deploy.export.nir.read import import_nir, read_nir
from soul_deploy.lowering.deploy import lower
from soul_deploy.model.model import Model


def open_nir(
    reference: ReferenceModel, file: File, source_sha256: str | None
) -> tuple[tuple[str, ...], Execution | None]:
    """The static check's problems, and the network read back from the file if there are none.

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
        read_with = reference.model.info.provenance.get("nir")
        said = read_with if isinstance(read_with, dict) else {}
        rules = {name: said.get(name) for name in ("dt", "fire", "reset")}
        imported = import_nir(graph, time_steps=reference.graph.time_steps, **rules)
    problems += nir_problems(reference.model, imported)
    return tuple(problems), None if problems else ModelExecution(imported)


def nir_problems(reference: Model, imported: Model) -> Iterator[str]:
    """The static check: T, shapes, every folded weight and every neuron's numbers, exactly."""
    ours, theirs = reference.graph, imported.graph
    for what, mine, imported_value in (
        ("time_steps", ours.time_steps, theirs.time_steps),
        ("input", ours.input.shape, theirs.input.shape),
        ("input_kind", reference.info.input_kind, imported.info.input_kind),
        ("classes", ours.readout.classes, theirs.readout.classes),
    ):
        if mine != imported_value:
            yield f"{what}: {imported_value} in the file, the model says {mine}"
    expected, found_neurons = lower(reference).equations, lower(imported).equations
    for name in sorted(set(expected) ^ set(found_neurons)):
        yield f"{name}: {'missing' if name in expected else 'not in the model'}"
    for name in sorted(set(expected) & set(found_neurons)):
        if ours.shapes[name] != theirs.shapes[name]:
            yield f"{name}: shape {theirs.shapes[name]}, the model says {ours.shapes[name]}"
        if expected[name] != found_neurons[name]:
            yield f"{name}: {found_neurons[name]}, the model says {expected[name]}"
    yield from _weight_problems(reference, imported)


def _weight_problems(reference: Model, imported: Model) -> Iterator[str]:
    expected, folded = lower(reference).synapses, lower(imported).synapses
    for name in sorted(set(expected) ^ set(folded)):
        yield f"{name}: {'missing' if name in expected else 'not in the model'}"
    for name in sorted(set(expected) & set(folded)):
        for part in ("weight", "bias"):
            mine, theirs = getattr(expected[name], part), getattr(folded[name], part)
            mine = None if part == "bias" and mine is not None and not mine.any() else mine
            if (mine is None) != (theirs is None) or (
                mine is not None and not np.array_equal(mine, theirs)
            ):
                yield f"{name}.{part}: not the folded numbers of the model"
