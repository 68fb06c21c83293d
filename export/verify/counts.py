"""Operation counts of a model against those of the event network that is made of it."""

from dataclasses import dataclass
from typing import Any

from soul_deploy.data.given import Images, images_for
from soul_deploy.equivalence.comparison import Comparison
from soul_deploy.equivalence.engines import Comparer
from soul_deploy.equivalence.reference import ReferenceModel
from soul_deploy.equivalence.verdict import Verdict, untested
from soul_deploy.export.event.build import build_event_network
from soul_deploy.export.verify.event import EventExecution, event_problems
from soul_deploy.lowering.deploy import lower
from soul_deploy.model.model import Model
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.kernels.cache import compiling_announced


@dataclass(frozen=True)
class CountCheck:
    """Whether the event network is the model, and how its spikes and counts compare."""

    static: bool
    comparison: Comparison

    @property
    def verdict(self) -> Verdict:
        return self.comparison.verdict if self.static else Verdict.FAILED

    @property
    def spike_mismatch(self) -> int:
        """Spikes that differ, end to end."""
        return sum(layer.differing for layer in self.comparison.end_to_end.layers)

    def line(self) -> str:
        """The check in a sentence."""
        gates = {
            "static": self.static,
            "forced": self.comparison.forced.passed,
            "end_to_end": self.comparison.end_to_end.passed,
        }
        told = " ".join(f"{gate} {'yes' if passed else 'NO'}," for gate, passed in gates.items())
        line = f"Counters equal the event runtime's: {told} spike mismatches {self.spike_mismatch}"
        if self.verdict is not Verdict.INCONCLUSIVE:
            return line
        return f"{line}; inconclusive: {untested(self.comparison.silent)}"

    def to_dict(self) -> dict[str, Any]:
        """The check as JSON data."""
        whole = self.comparison.end_to_end
        return {
            "verdict": self.verdict.value,
            "static": self.static,
            "forced": self.comparison.forced.passed,
            "end_to_end": whole.passed,
            "spike_mismatch": self.spike_mismatch,
            "counter_diff": {
                f"{item.layer}.{item.count}": item.difference for item in whole.differences
            },
            "silent_layers": list(self.comparison.silent),
        }


def verify_counts(model: Model, images: Images) -> CountCheck:
    """Build the event network of `model`, and compare its counts on `images` by the three checks.

    Raises UnsupportedGraphError for a model that cannot be an event network, and what `images_for`
    raises.
    """
    reference = ReferenceModel(lower(model).trimmed.model)
    network = Network(build_event_network(model))
    static = not event_problems(reference.model, network)
    with compiling_announced():
        given, _ = images_for(model, images)
        return CountCheck(
            static, Comparer(reference).both(EventExecution(network, reference), given)
        )
