"""Masked = compact = ONNX = event with counts, on one drawn network; counterexamples as files.

A drawn network is plain data (a spec and what is masked), so that one that fails can be stored as
JSON in tests/counterexamples/, where the normal tests find it and run it again for ever.
"""

import dataclasses
import hashlib
import json
import types
import typing
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis
import numpy as np
from chains import WEIGHT_GRID, ChainSpec, build, chains, images, pruned, random_neuron_masks
from forms import FormSpec, form_images, form_model, forms
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from places import COUNTEREXAMPLES
from residual import ResidualSpec, masked, residual_images, residual_model, residuals
from torch import Tensor

from soul_deploy.base.errors import RemovalError, SoulDeployError
from soul_deploy.base.reduction import OVER_TIME, OverTime
from soul_deploy.equivalence.engines import compare
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.event.build import export_event
from soul_deploy.export.event.storage_format import CHOICES, Choice
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.export.verify.verify import verify
from soul_deploy.ir import Convolution, Linear, NeuronSpec, Node, OneToOne
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model
from soul_deploy.prune.channel_groups import Residual
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal
from soul_deploy.runtime.dynamics.equation import DYNAMICS
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.format.file import load_event_network
from soul_deploy.runtime.plan.forms import event_forms, possible_forms


@dataclass(frozen=True)
class Drawn:
    """A network, its masks (from `seed`), how it is removed and stored, and what becomes of its
    steps.
    """

    spec: ChainSpec | ResidualSpec | FormSpec
    seed: int
    neurons: bool
    choice: Choice
    removal: Residual
    over_time: OverTime = "mean"
    family: str = ""
    membrane: str = ""
    feedback: str = ""

    @property
    def exact(self) -> bool:
        """Whether all engines compute the same bits: sums are exact, and nothing else rounds in
        another way.
        """
        return self.spec.dyadic and not {self.family, self.membrane} & set(ROUNDING)


ROUNDING = ("clif", "ilif", "eif", "complementary_lif", "psn")
"""Families whose steps hold an exp, a sigmoid or a sum over the steps."""
SOFT = ("integer_lif", "complementary_lif")
"""Families that know no reset to a value."""
INTEGRATORS = {
    "integrates": NeuronSpec("if", v_reset=None, v_subtract=0.0),
    "leaks": NeuronSpec("lif", tau=3.0, v_reset=None, v_subtract=0.0, form="spikingjelly"),
    "leaks apart": NeuronSpec(
        "snn_leaky", settings=(("reset", 2.0),), tensors=(("beta", "channel"),)
    ),
    "synaptic": NeuronSpec("snn_synaptic", settings=(("reset", 2.0),)),
    "resets late": NeuronSpec(
        "lif", tau=4.0, decay_input=False, v_reset=None, v_threshold=0.5, form="snntorch"
    ),
}
"""Neurons behind the head, whose membrane is read; other names are families."""


READ = tuple(family for family in ("lif", "plif", *DYNAMICS) if family not in ("glif", "ielif"))
"""Families with a membrane, and no numbers of single steps."""


@st.composite
def drawn_networks(draw: st.DrawFn) -> Drawn:
    """Chains, residual networks and those of all forms, dyadic and not."""
    dyadic = draw(st.booleans())
    kinds = chains(dyadic=dyadic), residuals(dyadic=dyadic), forms(dyadic=dyadic)
    made = draw(st.one_of(*kinds))
    return Drawn(
        made,
        draw(st.integers(0, 2**16)),
        draw(st.booleans()),
        draw(st.sampled_from(CHOICES)),
        draw(st.sampled_from(("coupled", "scatter"))),
        draw(st.sampled_from(OVER_TIME)),
        draw(st.sampled_from(("", *DYNAMICS, "psn", "ltmd"))),
        draw(st.sampled_from(("", "", *INTEGRATORS, *READ))),
        draw(st.sampled_from(("", "weights", "one to one"))),
    )


def masked_model(drawn: Drawn) -> tuple[Model, Tensor]:
    """The network with its masks, and images for it."""
    spec = drawn.spec
    if isinstance(spec, FormSpec):
        found = _fed_back(_given_neurons(_scored(form_model(spec), drawn), drawn), drawn)
        masks = random_neuron_masks(found, drawn.seed) if drawn.neurons else {}
        return replace(found, neuron_masks=masks), form_images(spec)
    if isinstance(spec, ResidualSpec):
        model = _fed_back(_given_neurons(_scored(residual_model(spec), drawn), drawn), drawn)
        return masked(model, drawn.seed, neurons=drawn.neurons), residual_images(spec)
    made = _fed_back(_given_neurons(_scored(build(spec), drawn), drawn), drawn)
    found = pruned(made, drawn.seed)
    if drawn.neurons:
        found = replace(found, neuron_masks=random_neuron_masks(found, drawn.seed))
    return found, images(spec)


def _scored(model: Model, drawn: Drawn) -> Model:
    readout = replace(model.graph.readout, over_time=drawn.over_time)
    state = dict(model.state)
    if drawn.membrane and readout.linear:
        soft = None if drawn.membrane in SOFT else 0.0
        spec = INTEGRATORS.get(drawn.membrane) or NeuronSpec(drawn.membrane, v_reset=soft)
        readout, rng = replace(readout, neuron=spec), np.random.default_rng(drawn.seed)
        shapes = spec.tensor_shapes(readout.neurons_name, (readout.classes,), 1)
        state |= {n: rng.uniform(0.1, 0.9, s).astype(np.float32) for n, s in shapes.items()}
    graph = model.graph.with_nodes({readout.name: readout})
    return replace(model, graph=graph, state=state)


def _given_neurons(model: Model, drawn: Drawn) -> Model:
    """With neurons of the drawn family in every second population, where the network can have them:
    some merges take spikes only.
    """
    if not drawn.family:
        return model
    rng = np.random.default_rng(drawn.seed)
    spec = NeuronSpec(drawn.family, v_reset=None if drawn.family in SOFT else 0.0)
    chosen = [node for i, node in enumerate(model.graph.populations) if i % 2 == drawn.seed % 2]
    try:
        nodes = {node.name: replace(node, neuron=spec) for node in chosen if not node.generated}
        graph = model.graph.with_nodes(nodes)
    except SoulDeployError:
        return model
    steps, state = graph.time_steps, dict(model.state)
    for node in nodes.values():
        shapes = spec.tensor_shapes(node.name, graph.shapes[node.inputs[0]], steps)
        state = {name: a for name, a in state.items() if name != f"{node.name}.w"}
        state |= {n: rng.normal(0.3, 0.4, s).astype(np.float32) for n, s in shapes.items()}
    return replace(model, graph=graph, state=state)


def _fed_back(model: Model, drawn: Drawn) -> Model:
    """With a feedback in about half of the populations: each neuron to itself, or by weights on the
    grid, of which half are 0.
    """
    rng, nodes, state = np.random.default_rng(drawn.seed), {}, dict(model.state)
    for node in model.graph.populations if drawn.feedback else ():
        if node.generated or node.neuron.parallel or rng.random() < 0.5:
            continue
        name, (channels, *space) = f"{node.name}.fed_back", model.graph.shapes[node.name]
        back: Node = OneToOne(name, (node.name,), float(rng.choice([1, 0.5, -0.25])))
        if drawn.feedback == "weights":
            ends = name, (node.name,), True, None, channels, channels
            back = Convolution(*ends, (3, 3), padding=(1, 1)) if space else Linear(*ends)
        nodes[node.name] = replace(node, feedback=back)
        for key, shape in back.tensors([], 1).items():
            values = rng.normal(0, 0.3, shape) * (rng.random(shape) < 0.5)
            state[key] = (np.round(values / WEIGHT_GRID) * WEIGHT_GRID).astype(np.float32)
    return replace(model, graph=model.graph.with_nodes(nodes), state=state)


def difference(drawn: Drawn) -> tuple[str, str | None]:
    """(what was compared, the first unexplained difference or None).

    A network that loses a whole layer is compared without removal. Whatever a part of the tool
    refuses by name on purpose is counted by what was compared, not as a difference.
    """
    model, x = masked_model(drawn)
    try:
        plan = plan_removal(model, residual=drawn.removal)
    except RemovalError:
        return _engines("masked only", [("masked", model)], x, drawn)
    compact = remove(model, plan)
    names = {node.name for node in model.graph.populations}
    kept = {p.population: np.array(p.outputs) for p in plan.layers if p.population in names}
    agreement = compare(model, compact, x, kept)
    if agreement.verdict is Verdict.FAILED:
        return "all", f"masked and compact: {agreement}"
    found = agreement.end_to_end
    if drawn.exact and not plan.bias and (found.flipped or found.logit_difference):
        return "all", f"masked and compact differ on a dyadic network: {agreement}"
    return _engines("all", [("masked", model), ("compact", compact)], x, drawn)


def _engines(
    what: str, pairs: list[tuple[str, Model]], x: Tensor, drawn: Drawn
) -> tuple[str, str | None]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        for label, model in pairs:
            save(model, folder / "model.safetensors")
            stored = load(folder / "model.safetensors")
            export_onnx(stored, folder / "net.onnx")
            export_event(stored, folder / "net.safetensors", representation=drawn.choice)
            for file in ("net.onnx", "net.safetensors"):
                report = verify(stored, folder / file, x)
                if report.verdict is Verdict.FAILED:
                    return what, f"{label}, {file}:\n{report.text()}"
                exact = report.end_to_end
                if (
                    drawn.exact
                    and exact is not None
                    and (exact.flipped or exact.logit_difference > _allowed(drawn))
                ):
                    return what, f"{label}, {file} differs on a dyadic network"
            if drawn.spec.dyadic and (found := forms_differ(folder / "net.safetensors", x, drawn)):
                return what, f"{label}: {found}"
    return what, None


def _allowed(drawn: Drawn) -> float:
    """Of scores, where all is dyadic: what a batch norm in front of the readout adds to its bias
    is rounded elsewhere."""
    return 1e-6 if isinstance(drawn.spec, FormSpec) else 0.0


def forms_differ(path: Path, x: Tensor, drawn: Drawn) -> str | None:
    """What differs between a network event by event and in forms drawn at random, if anything."""
    events, rng = load_event_network(path), np.random.default_rng(drawn.seed)
    forms = {layer.name: str(rng.choice(possible_forms(layer))) for layer in events.projected}
    one = Network(events, 1, forms=event_forms(events)).run_recorded(x.numpy())
    other = Network(events, int(rng.integers(1, 4)), forms=forms)
    drawn_ones, scores = other.run_recorded(x.numpy()), other.run(x.numpy())
    for name, spikes in one.spikes.items():
        if not np.array_equal(spikes, drawn_ones.spikes[name]):
            return f"{name} differs with {forms}"
    same = np.array_equal(one.logits, scores) and np.array_equal(scores, drawn_ones.logits)
    return None if same else f"scores differ with {forms}"


def problem(drawn: Drawn) -> tuple[str, str | None]:
    """As `difference`; an error is one too, unless the network is refused on purpose."""
    try:
        return difference(drawn)
    except SoulDeployError as error:
        return f"refused: {type(error).__name__}", None
    except Exception as error:
        return "all", f"{type(error).__name__}: {error}"


def to_json(drawn: Drawn) -> str:
    """The drawn network as JSON text."""
    data = dataclasses.asdict(drawn) | {"kind": type(drawn.spec).__name__}
    return json.dumps(data, indent=1) + "\n"


def from_json(text: str) -> Drawn:
    """The network of `to_json`."""
    data = json.loads(text)
    kind: Any = {kind.__name__: kind for kind in (ChainSpec, ResidualSpec, FormSpec)}[
        data.pop("kind")
    ]
    data["spec"] = rebuilt(kind, data["spec"])
    return Drawn(**data)


def rebuilt(kind: Any, data: Any) -> Any:
    """A value of a type made of dataclasses, tuples and None, from JSON data."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        make: Callable[..., Any] = kind  # type: ignore[assignment]
        return make(**{name: rebuilt(hints[name], value) for name, value in data.items()})
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        (kind,) = (part for part in inner if part is not type(None))
        return rebuilt(kind, data)
    if origin is tuple:
        item = [inner[0]] * len(data) if inner[-1] is ... else inner
        return tuple(rebuilt(k, value) for k, value in zip(item, data, strict=True))
    return data


@dataclass(frozen=True)
class Search:
    """How many networks were compared, by what, and the smallest one that differs."""

    counts: dict[str, int]
    smallest: Drawn | None = None
    difference: str | None = None


def search(
    networks: int, seed: int, check: Callable[[Drawn], tuple[str, str | None]] = problem
) -> Search:
    """Compare `networks` drawn networks; hypothesis shrinks the first that differs."""
    counts: Counter[str] = Counter()
    wrong: list[tuple[Drawn, str]] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=networks,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(drawn_networks())
    def one(drawn: Drawn) -> None:
        what, found = check(drawn)
        if found is not None:
            wrong.append((drawn, found))
            raise AssertionError(found)
        counts[what] += not wrong

    try:
        one()
    except AssertionError:
        smallest, found = wrong[-1]  # hypothesis runs the smallest one last
        return Search(dict(counts), smallest, found)
    return Search(dict(counts))


def store(drawn: Drawn, folder: Path = COUNTEREXAMPLES) -> Path:
    """Write a counterexample where the normal tests find it."""
    text = to_json(drawn)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    folder.mkdir(exist_ok=True)
    path.write_text(text)
    return path
