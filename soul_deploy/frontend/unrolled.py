"""A forward that loops over time itself, as one step of it.

A trace holds the loop unrolled: T times the same operations. The graph needs them once, which is
right only if each step does the same to the same values, one step on. That is shown while the graph
is made, operation by operation: every value is of one step (or of none: the same at all), every
neuron's n-th call is step n and takes the membrane of its own call n - 1, and an operation at a
later step must be one that step 1 did, on the values that step 1 did it on, or it makes a node of
its own, which no neuron of step 1 reads. What is put together over steps must be the same value of
all steps in order.
"""

import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from soul_deploy.base.errors import NetworkWarning
from soul_deploy.frontend import module_kinds, outputs, reduced, stepped, stepped_specs
from soul_deploy.frontend.summed import sum_of_steps

if TYPE_CHECKING:
    from soul_deploy.frontend.graph_builder import GraphBuilder
    from soul_deploy.frontend.traced_value import TracedValue

    Values = Mapping[outputs.Key | None, TracedValue]

BEFORE = -1  # the step of a membrane that no call in the trace made


@dataclass
class Unrolled:
    """What is known of the steps of a trace.

    calls     how often each neuron was called
    kept      the neurons that begin with a membrane from before the trace
    returns   what forward is given and returns besides input and class scores
    one_step  whether the network is called once a step
    """

    calls: dict[str, int] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    returns: stepped.Returns = stepped.NOTHING_MORE
    one_step: bool = False
    _done: dict[Any, "TracedValue"] = field(default_factory=dict)
    _weighed: dict[str, list[fx.Node]] = field(default_factory=dict)
    _given: dict[fx.Node, tuple[str, str]] = field(default_factory=dict)

    def follow(self, builder: "GraphBuilder", node: fx.Node) -> None:
        """Make an operation of a network with stepped neurons, or find that it was made."""
        if node.op == "get_attr":  # a constant, for whoever takes one
            return
        module = _module_of(builder, node)
        if module is not None and module_kinds.module_kind(module) is None:
            builder.operate(node)  # which refuses it
        if _is_neuron(module):
            self._call(builder, node, str(node.target), module)
            return
        called = node.args[0] if node.target is operator.getitem else None
        if isinstance(called, fx.Node) and stepped.is_stepped(_module_of(builder, called)):
            states = stepped.results_of(_module_of(builder, called))
            part = states[int(str(node.args[1]))]  # of (spikes, state, ...)
            builder.values[node] = replace(builder.values[called], membrane=part)
            return
        if node.target in (torch.stack, torch.cat):  # puts steps together, and says which
            builder.operate(node)
            return
        total = sum_of_steps(builder, node)
        if total is not None:
            builder.values[node] = total
            return
        key, step = self._key_of(builder, node), self._step_of(builder, node)
        if key in self._done:
            builder.values[node] = self._done[key]
        else:
            builder.operate(node)
            self._done[key] = builder.values[node]
        if step is not None:
            builder.values[node] = replace(builder.values[node], step=step)
        if module is not None:
            self._note(node, module)

    def _note(self, node: fx.Node, module: Any) -> None:
        """Remember calls that batch norms belong to: each of them, or none, is followed by it."""
        if module_kinds.module_kind(module) in ("Conv2d", "Linear"):
            self._weighed.setdefault(str(node.target), []).append(node)

    def _key_of(self, builder: "GraphBuilder", node: fx.Node) -> Any:
        """What an operation does, to which values, at whatever step: the same key, the same node.

        The number of a step (x[t]) is part of what it does.
        """

        def plain(argument: Any) -> Any:
            if isinstance(argument, fx.Node):
                value = builder.values.get(argument)
                if value is not None:
                    return replace(value, step=None)
                return argument if argument.op != "get_attr" else (argument.op, argument.target)
            if isinstance(argument, list | tuple):
                return tuple(map(plain, argument))
            if isinstance(argument, dict):
                return tuple((name, plain(part)) for name, part in argument.items())
            return type(argument), argument if argument.__hash__ else repr(argument)

        return node.op, node.target, plain(node.args), plain(node.kwargs)

    def _step_of(self, builder: "GraphBuilder", node: fx.Node) -> int | None:
        found = [builder.values.get(source) for source in node.all_input_nodes]
        known = [value for value in found if value is not None]
        for value in known:
            if value.membrane and node.target != "detach" and not _is_put_together(value):
                what = f"{node.name!r} of the membrane of {value.name!r}, which only spikes leave,"
                raise builder.unsupported(node, what)
        steps = {value.step for value in known} - {None}
        if len(steps) > 1:
            raise builder.unsupported(
                node, f"{node.name!r} of values of different steps ({_told(steps)}), which"
            )
        return next(iter(steps), None)

    def _call(self, builder: "GraphBuilder", node: fx.Node, path: str, module: Any) -> None:
        """A neuron's next step."""
        step = self.calls.get(path, 0)
        current = builder.value(node, node.args[0])
        self._check_current(builder, node, current, step)
        states = stepped.states_of(module) if stepped.is_stepped(module) else ()
        for state, given in zip(states, node.args[1:], strict=True):
            self._check_membrane(builder, node, (path, state, step), given)
        if not states:  # SpikingJelly's keep theirs from call to call
            self.kept.add(path)
        if step == 0:
            if states:
                stepped_specs.check_place(path, module, builder.shapes[current.name])
            converted = module_kinds.CONVERTERS[str(module_kinds.module_kind(module))](
                path, (current.name,), module
            )
            builder.add(node, converted, replace(current, name=path, step=0))
        elif builder.nodes[path].inputs != (current.name,):
            raise builder.unsupported(
                node,
                f"neuron {path!r} called with {current.name!r} at step {step + 1} and with "
                f"{builder.nodes[path].inputs[0]!r} at step 1, which",
            )
        builder.values[node] = replace(current, name=path, step=step)
        self.calls[path] = step + 1

    def _check_current(
        self, builder: "GraphBuilder", node: fx.Node, current: "TracedValue", step: int
    ) -> None:
        if current.lead == 2:
            raise builder.shows_image(
                node,
                f"neuron {str(node.target)!r} with a whole sequence (T, B, ...): it is called once "
                "a step, which",
            )
        reduced.check_neuron(builder, node, str(node.target), current)
        if current.step not in (None, step):
            raise builder.unsupported(
                node,
                f"neuron {str(node.target)!r} called for the {step + 1}. time, which is its step "
                f"{step + 1}, with a value of step {current.step + 1}, which",
            )

    def _check_membrane(
        self, builder: "GraphBuilder", node: fx.Node, place: tuple[str, str, int], given: Any
    ) -> None:
        """What a neuron's call is given for a state, place = (path, state, step)."""
        path, state, step = place
        assert isinstance(given, fx.Node), "the tracer gives each call a state"
        if step == 0 and given.op == "placeholder" and given not in self._given:
            self._given[given] = path, state
            self.kept.add(path)
            return
        membrane = builder.values.get(given)
        own: set[tuple[str, str | None]] = {("", "any"), (path, state)}
        own |= {(path, None)} if state == stepped.SPIKES else set()
        if membrane is None or (membrane.name, membrane.membrane) not in own:
            what = f"neuron {path!r} with another membrane than its own of the step before"
            raise builder.unsupported(node, what)
        if membrane.step != step - 1:
            begun = "starts again at rest" if membrane.step == BEFORE else "is of an earlier step"
            raise builder.unsupported(
                node, f"neuron {path!r} with a membrane that {begun} at step {step + 1}, which"
            )
        if step == 0 and membrane.name == path:
            self.kept.add(path)

    def stacked(
        self, builder: "GraphBuilder", node: fx.Node, parts: Sequence[Any]
    ) -> "TracedValue | None":
        """The sequence that the values of all steps are; None if they are of no step."""
        values = [builder.values.get(part) if isinstance(part, fx.Node) else None for part in parts]
        found = [value for value in values if value is not None]
        if not found or len(found) < len(values) or all(value.step is None for value in found):
            return None
        whole = replace(found[0], step=None)
        if any(replace(value, step=None) != whole for value in found):
            raise builder.unsupported(node, "different values of the steps, put together, which")
        steps = [value.step for value in found]
        if steps != list(range(builder.time_steps)):
            raise builder.unsupported(
                node,
                f"{len(steps)} steps put together ({_told(steps)}) with time_steps = "
                f"{builder.time_steps} (all of them in order are the network's output), which",
            )
        return replace(whole, lead=2)

    def returned(self, builder: "GraphBuilder", node: fx.Node) -> "TracedValue":
        """The class scores that forward returns. Membranes next to them are left out, which is
        warned about; what else there is is refused.
        """
        (given,) = node.args
        several = outputs.returned(given)
        found = [builder.values.get(item) for item in several.values() if _is_node(item)]
        of_steps = all(value is not None and value.step is not None for value in found)
        alike = {None if value is None else replace(value, step=None) for value in found}
        if of_steps and len(found) == len(several) > 1 == len(alike):  # a list of one value's steps
            several = {}
        items: dict[outputs.Key | None, Any] = dict(several.items()) or {None: given}
        values = {key: self._item(builder, node, item) for key, item in items.items()}
        if builder.output is not None:
            scores: outputs.Key | None = outputs.key_of(several, builder.output)
        else:
            scores = self._likely_scores(builder, node, values)
        self.returns = self._handed_on(builder, node, values, scores)
        self._check_calls(builder, node, values[scores])
        self._check_norms(builder)
        return self._scores(builder, node, values[scores])

    def _likely_scores(
        self, builder: "GraphBuilder", node: fx.Node, values: "Values"
    ) -> outputs.Key | None:
        """Which value holds the class scores if nobody says it: the only spikes, or the only value.

        Refused where there are several.
        """
        spikes = [key for key, value in values.items() if not value.membrane]
        if len(spikes) == 1 or len(values) == 1:
            return (spikes or [*values])[0]
        held = values.values()
        told = ", ".join(
            f"{key!r}: {'membrane' if value.membrane else 'output'} of {value.name!r}"
            for key, value in zip(values, held, strict=True)
        )
        raise builder.unsupported(
            node,
            f"a forward that returns several values ({told}; say with output= which one holds the "
            "class scores)",
        )

    def _scores(
        self, builder: "GraphBuilder", node: fx.Node, scores: "TracedValue"
    ) -> "TracedValue":
        """Class scores; the value of the last step of a loop is a reduction over time."""
        if self.one_step or scores.step is None:
            return scores
        if scores.step != builder.time_steps - 1:
            raise builder.unsupported(
                node,
                f"a forward that returns {scores.name!r} of step {scores.step + 1} alone (return "
                "that of the last step, or torch.stack of all steps)",
            )
        return replace(scores, step=None, reduced="last")

    def _handed_on(
        self, builder: "GraphBuilder", node: fx.Node, values: "Values", scores: outputs.Key | None
    ) -> stepped.Returns:
        """Where the membranes that forward is given stand in what it returns."""
        states = []
        for placeholder in [n for n in node.graph.nodes if n.op == "placeholder"][1:]:
            path, state = self._given.get(placeholder, ("", ""))
            last = path, state, self.calls.get(path, 0) - 1
            where = [i for i, v in values.items() if (v.name, v.membrane, v.step) == last]
            if not path or not where:
                raise builder.unsupported(
                    node,
                    f"a forward that takes {placeholder.target!r} besides its input, and does not "
                    "give it to a neuron as its membrane and return that neuron's next one,",
                )
            assert where[0] is not None, "a state is returned beside the scores"
            states.append((path, state, where[0]))
        held = {scores, *(i for *_, i in states)}
        left_out = any(value.membrane and i not in held for i, value in values.items())
        if left_out and builder.output is None:
            text = (
                "class scores are the spikes that forward returns; its membranes are left out "
                "(output= takes another of its values)"
            )
            warnings.warn(NetworkWarning(text), stacklevel=2)
        return stepped.Returns(scores, tuple(states))

    def _item(self, builder: "GraphBuilder", node: fx.Node, item: Any) -> "TracedValue":
        if isinstance(item, list | tuple):
            parts = [builder.values.get(part) for part in item if isinstance(part, fx.Node)]
            held = [value for value in parts if value is not None and value.membrane]
            if len({replace(value, step=None) for value in held}) > 1 and len(held) == len(item):
                return replace(held[0], membrane="several")
            whole = self.stacked(builder, node, item)
            if whole is not None:
                return whole
        value = builder.values.get(item) if isinstance(item, fx.Node) else None
        if value is not None and value.partial:
            builder.value(node, item)  # which refuses it
        if value is None:
            raise builder.unsupported(node, "a forward that returns other than tensors it computes")
        return value

    def _check_calls(self, builder: "GraphBuilder", node: fx.Node, scores: "TracedValue") -> None:
        """All neurons ran the same number of steps, all of T or one."""
        steps = builder.time_steps
        counts = set(self.calls.values())
        if len(counts) > 1:
            told = ", ".join(f"{path!r} {count}" for path, count in self.calls.items())
            raise builder.unsupported(node, f"a forward whose neurons run unlike steps ({told})")
        (ran,) = counts or {steps}
        self.one_step = ran == 1 and scores.lead == 1 and scores.reduced is None
        if self.one_step and steps > 1 and self.kept != self.calls.keys():
            path = next(path for path in self.calls if path not in self.kept)
            raise builder.unsupported(
                node,
                f"a forward of one step that starts {path!r} at rest each time, with time_steps = "
                f"{steps} (keep the membranes between the calls: init_hidden=True)",
            )
        if not self.one_step and ran != steps:
            raise builder.unsupported(
                node, f"a forward that runs {ran} steps with time_steps = {steps}"
            )

    def _check_norms(self, builder: "GraphBuilder") -> None:
        """Every call of what a batch norm belongs to goes through it: its node is one with it."""
        for path, calls in self._weighed.items():
            norm = getattr(builder.nodes[path], "norm", None)
            if norm is None:
                continue
            for call in calls:
                if [user.target for user in call.users] != [norm.name]:
                    what = f"{path!r} with and without batch norm {norm.name!r}, which"
                    raise builder.unsupported(call, what)

    def warn_of_kept(self, modules: Any) -> NetworkWarning | None:
        """What to warn about membranes that an earlier run left."""
        used = [
            path
            for path in sorted(self.kept)
            if stepped.is_stepped(modules[path])
            and any(
                getattr(modules[path], state).any() for state in stepped.states_of(modules[path])
            )
        ]
        if not used:
            return None
        return NetworkWarning(
            f"{', '.join(used[:3])}{' and more' if used[3:] else ''} hold membranes of an earlier "
            "run; the graph starts at rest, as the network does after a reset"
        )


def _module_of(builder: "GraphBuilder", node: Any) -> Any:
    """The module that an operation calls; None if it calls none."""
    called = isinstance(node, fx.Node) and node.op == "call_module"
    return builder.modules[str(node.target)] if called else None


def _is_node(item: Any) -> bool:
    return isinstance(item, fx.Node)


def _is_put_together(value: "TracedValue") -> bool:
    """Whether a membrane is that of all steps, or what became of them: it may be class scores."""
    return value.step is None


def _is_neuron(module: Any) -> bool:
    return module is not None and (
        module_kinds.module_kind(module) in stepped.STATES or module_kinds.takes_steps(module)
    )


def _told(steps: Any) -> str:
    shown = [str(step + 1) for step in steps if step is not None]
    return "steps " + ", ".join(shown[:4]) + (", …" if shown[4:] else "")
