"""Multiplications by constants in front of a max pooling, put behind it.

The maximum of s · x is s times the maximum of x where s is above 0: exactly, since rounding keeps
order. Behind the pooling the constants become part of the next projection, and the pooling is an OR
of spikes again.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

from torch import Tensor

from soul_deploy import ir
from soul_deploy.base import brief


@brief
@dataclass(frozen=True)
class Rearranged:
    """Nodes in execution order; constants: tensors that they need besides, by name."""

    nodes: list[ir.Node]
    constants: dict[str, Tensor]


def behind_pools(nodes: Sequence[ir.Node], constant_of: Callable[[str], Tensor]) -> Rearranged:
    """The graph's nodes with every scaling by numbers above 0 behind the max pooling that reads it.

    constant_of: gives a tensor by its name. A scaling that something else reads too stays where it
    is, and the pooling gets one of its own.
    """
    made: dict[str, ir.Node] = {}
    constants: dict[str, Tensor] = {}
    moved: dict[str, str] = {}  # a pooling -> the scaling behind it
    taken = {node.name for node in nodes}

    def tensor(name: str) -> Tensor:
        return constants[name] if name in constants else constant_of(name)

    def of_spikes(node: ir.Node) -> bool:
        """Whether no current is scaled: constants behind one become part of its projection."""
        while not (node.fires or node.projects or node.arity is None) and node.inputs:
            node = made[node.inputs[0]]
        return not node.projects

    for node in nodes:
        node = replace(node, inputs=tuple(moved.get(name, name) for name in node.inputs))
        source = made[node.inputs[0]] if node.inputs else node
        before: list[ir.Scale] = []  # nearest to the pooling first
        while isinstance(node, ir.MaxPool) and _positive(source, tensor) and of_spikes(source):
            before.append(source)
            source = made[source.inputs[0]]
        if before:
            node = replace(node, inputs=(source.name,))
        made[node.name] = last = node
        for scale in reversed(before):
            copy = replace(scale, name=_fresh(f"{node.name}.scale", taken), inputs=(last.name,))
            taken.add(copy.name)
            made[copy.name] = last = copy
            names = zip(copy.row_tensors, scale.row_tensors, strict=True)
            constants |= {ours: tensor(theirs).detach() for ours, theirs in names}
        moved[node.name] = last.name
    return Rearranged(_read(list(made.values())), constants)


def _positive(scale: ir.Node, constant_of: Callable[[str], Tensor]) -> TypeGuard[ir.Scale]:
    if not isinstance(scale, ir.Scale):
        return False
    if scale.factor is not None:
        return scale.factor > 0
    return all(bool((constant_of(name) > 0).all()) for name in scale.row_tensors)


def _fresh(stem: str, taken: Iterable[str]) -> str:
    return stem if stem not in taken else _fresh(f"{stem}_", taken)


def _read(nodes: list[ir.Node]) -> list[ir.Node]:
    """Without scalings that only poolings read; the last node is the output."""
    read = {nodes[-1].name, *(name for node in nodes for name in node.inputs)}
    kept = [node for node in nodes if node.name in read or not isinstance(node, ir.Scale)]
    return kept if len(kept) == len(nodes) else _read(kept)
