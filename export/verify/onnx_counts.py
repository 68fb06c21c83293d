"""Operation counts of an ONNX file, from the spikes that it yields and the weights that it stores.

ONNX Runtime multiplies everything; what an event-driven execution of the file would do follows
from its spikes and from which of its stored weights are not 0.
"""

from functools import cached_property

import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor

from soul_deploy.analysis.synops import count_steps
from soul_deploy.export.onnx.nodes import bias_name, mask_name, weight_name
from soul_deploy.lowering import deploy, fan_out, fold_batch_norm
from soul_deploy.model.model import Model
from soul_deploy.nn.graph_module import Signal
from soul_deploy.runtime.ops.counters import LayerCounts


class OnnxCounter:
    """Counts operations from a file's spikes; `reference` gives the graph and runs other nodes."""

    def __init__(self, file: ModelProto, reference: Model) -> None:
        self.file, self.graph, self.module = file, reference.graph, reference.module()

    @cached_property
    def entries(self) -> tuple[fan_out.Counted, ...]:
        """The layers to count, from the file's own weights, biases and masks."""
        stored = {t.name: t for t in self.file.graph.initializer}
        read = {name: numpy_helper.to_array(tensor) for name, tensor in stored.items()}
        folded = {
            node.name: fold_batch_norm.Synapses(
                read[weight_name(node.name)], read.get(bias_name(node.name))
            )
            for node in (*self.graph.projections, self.graph.readout)
            if weight_name(node.name) in read
        }
        masks = {
            node.name: read[mask_name(node.name)].reshape(self.graph.shapes[node.name]) != 0
            for node in self.graph.populations
            if mask_name(node.name) in read
        }
        return deploy.lower_synapses(self.graph, folded, masks).counted

    @torch.no_grad()
    def count(self, images: Tensor, spikes: dict[str, Tensor]) -> dict[str, LayerCounts]:
        """Sums by entry; spikes (T, B, ...) of 0/1 of every population."""
        known = {name: Signal(values.float(), False) for name, values in spikes.items()}
        known[self.graph.input.name] = self.module.as_signal(images)
        counts = {}
        for entry in self.entries:
            known |= self.module.evaluate(known, fan_out.needed_values(entry))
            values = {name: known[name].tensor for name in fan_out.needed_values(entry)}
            counts[entry.name] = count_steps(entry, values).total()
        return counts
