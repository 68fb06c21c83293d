"""In-place operations in a traced forward: which names stand for the same memory.

A graph has no memory, only values. `z = y; z += y` changes y too, and whoever reads y afterwards
gets the changed numbers; a graph would give them the old ones. Where nobody reads the memory under
a name that is older than the change, the operation is the same as one that is not in place.
"""

import operator
from dataclasses import dataclass, field
from typing import Any

from torch import fx
from torch.fx.graph import inplace_methods


def changes_in_place(node: fx.Node) -> bool:
    """Whether an operation writes its result into the memory of its first input."""
    if node.op == "call_function" and node.target in _OPERATORS:
        return True
    if node.op not in ("call_function", "call_method"):
        return False
    target: Any = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    reserved = getattr(target, "__module__", "") == operator.and_.__module__  # and_, not_, ...
    own = name.endswith("_") and not name.endswith("__") and not reserved
    return bool(own or node.kwargs.get("inplace") is True or "out" in node.kwargs)


_OPERATORS = tuple(getattr(operator, name) for name in inplace_methods)


@dataclass(frozen=True)
class Stale:
    """`changed`: an operation in place on what `name` stands for, before it is read again."""

    changed: fx.Node
    name: fx.Node


@dataclass
class TensorMemory:
    """Whose memory each traced value lies in, and who changed it last.

    Operations are told in the order in which they run.
    """

    _owner: dict[fx.Node, fx.Node] = field(default_factory=dict)
    _changed: dict[fx.Node, fx.Node] = field(default_factory=dict)
    _order: dict[fx.Node, int] = field(default_factory=dict)

    def made(self, node: fx.Node, within: fx.Node | None) -> None:
        """A value: in new memory, or in that of `within`."""
        self._order[node] = len(self._order)
        self._owner[node] = node if within is None else self._owner.get(within, within)
        if changes_in_place(node):
            self._changed[self._owner[node]] = node

    def owner(self, node: fx.Node) -> fx.Node:
        """The value that `node`'s memory was made for."""
        return self._owner.get(node, node)

    def stale(self, node: fx.Node) -> Stale | None:
        """What `node` reads under a name that is older than a change of it in place."""
        for name in node.all_input_nodes:
            changed = self._changed.get(self.owner(name))
            if changed is not None and self._order.get(name, -1) < self._order[changed]:
                return Stale(changed, name)
        return None
