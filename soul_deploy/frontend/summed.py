"""Sums over time that a loop adds up step by step: `total += spikes`, `sum(spk_rec)`."""

import operator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import fx

from soul_deploy.frontend import reduced
from soul_deploy.frontend.traced_value import TracedValue

if TYPE_CHECKING:
    from soul_deploy.frontend.graph_builder import GraphBuilder

ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


def sum_of_steps(builder: "GraphBuilder", node: fx.Node) -> TracedValue | None:
    """The sum of the first steps of a value and its next one; None: the operation is no such sum.

    All T of them are the sum over time, which a readout reduces; fewer are refused where something
    else is done with them.
    """
    if node.target not in ADDITIONS or len(node.args) != 2 or node.kwargs:
        return None
    total, term = (builder.values.get(a) if isinstance(a, fx.Node) else None for a in node.args)
    if total is None or term is None or total.membrane or term.membrane:
        return None
    like = replace(term, step=None)
    steps = builder.time_steps
    if total == replace(like, reduced="sum") and term.step == steps:
        what = f"a loop of more than {steps} steps with time_steps = {steps}, which"
        raise builder.unsupported(node, what)
    count = total.partial or int(total.step == 0)
    if not count or replace(total, step=None, partial=0) != like or term.step != count:
        return None
    if count + 1 < steps:
        return replace(like, partial=count + 1)
    reduced.check_not(builder, node, "a sum", term)
    return replace(like, reduced="sum")
