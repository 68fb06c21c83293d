"""The state of neurons, out of reach while their network is traced."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

from torch import nn

from soul_deploy.frontend import clock_driven, module_kinds, stepped
from soul_deploy.frontend.sizes import Refusal


class State:
    """Stands for a neuron's state during tracing; whatever is done with it is refused."""

    def __init__(self, path: str) -> None:
        self.path = path

    def refuse(self, *args: Any) -> NoReturn:
        raise Refusal(
            f"the state of {self.path!r} is used outside its neuron; only spikes leave a neuron"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = refuse
    __lt__ = __gt__ = __le__ = __ge__ = __eq__ = __bool__ = __float__ = refuse
    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.refuse()


class _Memories(dict[str, Any]):
    """In place of a neuron's memories: stand-ins, which only a reset may be written to."""

    def __init__(self, path: str, resets: Mapping[str, Any], held: Mapping[str, Any]) -> None:
        numbers = {name: held[name] for name in clock_driven.NUMBERS if name in held}
        super().__init__({name: State(path) for name in held} | numbers)
        self._path, self._resets = path, resets

    def __setitem__(self, name: str, value: Any) -> None:
        if not module_kinds.is_reset(value, self._resets.get(name)):
            raise Refusal(
                f"the state of {self._path!r} is set outside its neuron ({name}); a neuron starts "
                "at rest, and only spikes leave it"
            )


@contextmanager
def hidden(network: nn.Module) -> Iterator[None]:
    """Put stand-ins in place of the state of neurons, and the state back after.

    SpikingJelly keeps it in `_memories`, snnTorch as `stepped.hidden` says.
    """
    with ExitStack() as after:
        after.enter_context(stepped.hidden(network))
        after.callback(_drop_constants, vars(network), set(vars(network)))
        for path, module in network.named_modules():
            own = vars(module)
            memories = own.get("_memories") if module_kinds.is_stateful(module) else None
            if isinstance(memories, dict):
                after.callback(own.__setitem__, "_memories", memories)
                own["_memories"] = _Memories(path, own.get("_memories_rv", {}), memories)
        yield


def _drop_constants(own: dict[str, Any], names: set[str]) -> None:
    """Tensors that a forward makes are put into the network by torch.fx while it is traced."""
    for name in own.keys() - names:
        del own[name]
