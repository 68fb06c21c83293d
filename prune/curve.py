"""`prune_curve`: one network pruned to smaller and smaller targets in one run.

Each point goes on from the one before it: by channel from its compact network, so that later points
are trained at compact width, by weight from its masked network with its alphas. All shares are of
the first network.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from soul_deploy import distributed
from soul_deploy.analysis.connectivity import connectivity
from soul_deploy.base import errors, files
from soul_deploy.data import datasets, given
from soul_deploy.ir import SpikingGraph
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model
from soul_deploy.prune.curve_record import Curve, CurvePoint, DenseNetwork, read_curve
from soul_deploy.prune.delivered import synops_per_sample
from soul_deploy.prune.removal.apply import parameters
from soul_deploy.prune.result import PruneResult
from soul_deploy.prune.structured.config import ScaConfig
from soul_deploy.prune.structured.pipeline import prune_structured
from soul_deploy.prune.target import TOLERANCE, Target
from soul_deploy.prune.unstructured.config import SearchConfig
from soul_deploy.prune.unstructured.pipeline import prune_unstructured
from soul_deploy.prune.unstructured.stopped import SearchStoppedError
from soul_deploy.training import checkpoint, messages, train, trainer
from soul_deploy.training import checkpoint_manager as keeping

Config = ScaConfig | SearchConfig
FIRST = ("dense", "test_start")
"""What is asked of the first point alone."""


def prune_curve(
    model: Model | SpikingGraph,
    data: given.DataLike,
    targets: Sequence[Target],
    config: Config = ScaConfig(),
    training: trainer.TrainConfig = trainer.TrainConfig(),
    *,
    path: Path,
    device: str = "auto",
    checkpoints: keeping.Checkpoints | None = None,
    log: Path | None = None,
    **how: Any,
) -> Curve:
    """Prune `model` to the first of `targets`, the result to the second, and so on.

    targets      of one quantity, falling, all shares of what `model` has or all counts
    config       a ScaConfig prunes channels, a SearchConfig weights and neurons; its target is not
                 used. The share of channels that a layer keeps is of `model`'s too.
    path         how the points' models are called: pruned_a.safetensors gives
                 pruned_a_0.50.safetensors and pruned_a_0.50_compact.safetensors. The points are
                 written to curve_a.json beside them after each
    checkpoints  each point has a folder of its own, as has each point's log. With resume=True
                 points whose files are whole are not pruned again
    how          what else `prune_structured` or `prune_unstructured` takes

    Started by torchrun, all processes prune together, each returns the curve, and the main one
    writes. Raises what these raise (for a target that cannot be met, with the points before it
    kept), UsageError for targets that do not fall and for a `path` whose curve was made otherwise.
    """
    check_falling(targets)
    errors.require_known("config", type(config).__name__, [kind.__name__ for kind in _METHODS])
    train.prepare_device(device)
    first = train.with_weights(model, training.seed)
    training = train.decided(training, first.graph)
    loaded = train.data_read(first, data, training)
    asked = {"device": device, **how}
    parts = first, loaded, config, training, CurveFiles(path, log), checkpoints, asked
    return _Descent(model, *parts).run(targets)


def check_falling(targets: Sequence[Target]) -> None:
    """Raise UsageError for targets that cannot be met one after the other.

    A point may end as far from its target as the tolerance allows, so the next lies below that.
    """
    told = ", ".join(f"{target.value:g}" for target in targets)
    kinds = {(target.quantity, target.is_share) for target in targets}
    if len(kinds) != 1:
        raise errors.UsageError(
            f"targets {told or '(none)'}: give some, all of one quantity, and all shares (below 1) "
            "or all counts"
        )
    for before, after in pairwise(targets):
        if after.value >= (1 - TOLERANCE) * before.value:
            raise errors.UsageError(
                f"target_{after.quantity} {told}: each must be more than {TOLERANCE:.0%} below the "
                f"one before it, and {after.value:g} is not; leave it out or reorder the list"
            )


def label_of(target: Target) -> str:
    """The target in file names: 0.5 -> 0.50, 0.042 -> 0.042, 2000 -> 2000."""
    exact = Decimal(repr(float(target.value))).normalize()
    return f"{exact:.2f}" if target.is_share and exact == round(exact, 2) else f"{exact:f}"


@dataclass(frozen=True)
class CurveFiles:
    """Where a curve's files go. model, log: as one target has them."""

    model: Path
    log: Path | None = None

    @property
    def table(self) -> Path:
        """The JSON file with the points."""
        return self.model.with_name(f"curve_{self.model.stem.removeprefix('pruned_')}.json")

    def masked(self, label: str) -> Path:
        return _labelled(self.model, label)

    def compact(self, label: str) -> Path:
        return _labelled(self.model, f"{label}_compact")

    def of_point(self, label: str) -> dict[str, Path]:
        """What -> path, of a point's models."""
        return {"masked": self.masked(label), "compact": self.compact(label)}


def _labelled(path: Path, label: str) -> Path:
    return path.with_name(f"{path.stem}_{label}{path.suffix}")


def checkpoints_of_point(kept: keeping.Checkpoints, label: str) -> keeping.Checkpoints:
    """Those of one point. Raises UsageError for a run that is to go on from a certain file."""
    if not isinstance(kept.resume, bool):
        raise errors.UsageError(
            f"--resume {kept.resume} with several targets: each has checkpoints of its own; give "
            "--resume auto"
        )
    return replace(kept, folder=kept.folder.with_name(f"{kept.folder.name}_{label}"))


def _searched(*inputs: Any, on_masked: Callable[[Model], None], **how: Any) -> PruneResult:
    """As `prune_unstructured`; if the search stops, its last good network goes to `on_masked`."""
    try:
        return prune_unstructured(*inputs, on_masked=on_masked, **how)
    except SearchStoppedError as stop:
        if stop.last_good is not None:
            on_masked(stop.last_good)
        raise


@dataclass(frozen=True)
class _Method:
    """How one point is pruned, and from which of its files the next goes on."""

    prune: Callable[..., PruneResult]
    goes_on_from: Literal["masked", "compact"]


_METHODS: Mapping[type[Any], _Method] = {
    ScaConfig: _Method(prune_structured, "compact"),
    SearchConfig: _Method(_searched, "masked"),
}
_ANEW, _GO_ON, _WHOLE = range(3)


@dataclass(frozen=True)
class _Descent:
    """All that was asked for, checked; first: `model` with weights."""

    model: Model | SpikingGraph
    first: Model
    data: datasets.Data
    config: Config
    training: trainer.TrainConfig
    files: CurveFiles
    checkpoints: keeping.Checkpoints | None
    how: Mapping[str, Any]

    def run(self, targets: Sequence[Target]) -> Curve:
        """Every point that is not there yet."""
        curve, before = self._begin(targets), ""
        for target in targets:
            label = label_of(target)
            start = self.files.of_point(before)[self._method.goes_on_from] if before else None
            with self._watching(label):
                curve = self._point(curve, target, start)
            before = label
        return curve

    @property
    def _method(self) -> _Method:
        return _METHODS[type(self.config)]

    @contextmanager
    def _watching(self, label: str) -> Iterator[None]:
        kept = self.checkpoints
        with nullcontext() if kept is None else checkpoints_of_point(kept, label).watching():
            yield

    @property
    def _resumes(self) -> bool:
        return self.checkpoints is not None and bool(self.checkpoints.resume)

    def _begin(self, targets: Sequence[Target]) -> Curve:
        """The curve so far, but for points of other targets.

        Raises UsageError if it was made with other settings.
        """
        path, group, quantity = self.files.table, distributed.current(), targets[0].quantity
        settings = keeping.plain_settings(self._settings(quantity))
        curve = Curve(path=path, quantity=quantity, settings=settings)
        if path.exists() and self._resumes:
            curve = read_curve(path)
            keeping.check_settings(path, curve.settings, settings)
            labels = {label_of(target) for target in targets}
            points = tuple(point for point in curve.points if point.label in labels)
            curve = replace(curve, points=points)
        elif path.exists():
            messages.warn(
                f"{path} holds points of an earlier run, which this run will replace; stop it and "
                "give --resume auto to go on with that one"
            )
        group.wait()  # until all have read it
        return curve

    def _settings(self, quantity: str) -> dict[str, Any]:
        """What decides the points, besides their targets."""
        config, kept, dense = asdict(self.config), self.checkpoints, self.how.get("dense")
        del config["target"]
        first = self.first
        held = dict(first.state)
        for kind in ("channel_masks", "neuron_masks", "alphas"):
            held |= {f"{kind}:{name}": value for name, value in getattr(first, kind).items()}
        start = None if kept is None else kept.settings
        return {
            "quantity": quantity,
            "config": config,
            "recipe": self.training.recorded(),
            "epochs": self.training.epochs,
            "dense_epochs": 0 if dense is None else dense.epochs,
            "layers": self.how.get("layers"),
            **({"start": files.digest(held)} if start is None else start),
            "network": keeping.network_of(first.graph),
            "data": keeping.content_of(self.data),
        }

    def _point(self, curve: Curve, target: Target, start: Path | None) -> Curve:
        """The curve with this point. start: the file that it goes on from; None: the first."""
        label, sha256 = label_of(target), "" if start is None else files.file_sha256(start)
        step = self._step(curve, label, sha256)
        if step == _WHOLE:
            messages.note(f"{target}: complete in {self.files.table}, not pruned again")
            return curve
        messages.note(f"{target}: begins" + ("" if start is None else f", from {start}"))
        if step == _ANEW and start is not None:
            self._forget(label)
        curve = curve.with_begun(label, sha256)
        curve.write()
        saved: list[Path] = []
        try:
            result = self._pruned(curve, target, start, saved)
        except errors.SoulDeployError:
            nearest = "".join(f"; {path} holds what it came to" for path in saved)
            points = ", ".join(point.label for point in curve.points) or "none"
            messages.note(f"{target} failed{nearest}. Points in {curve.path}: {points}")
            raise
        curve = self._kept(curve, target, result)
        curve.write()
        return curve

    def _step(self, curve: Curve, label: str, start: str) -> int:
        """How far the point is, as the main process finds it."""
        point, step = curve.point(label), _ANEW
        if distributed.current().is_main and curve.begun.get(label) == start:
            whole = point is not None and point.intact(self.files.model.parent)
            step = _WHOLE if whole else _GO_ON
        return distributed.current().largest(step)

    def _forget(self, label: str) -> None:
        """Remove the checkpoints of another run, so that this one does not go on from them."""
        if self.checkpoints is not None and distributed.current().is_main:
            folder = checkpoints_of_point(self.checkpoints, label).folder
            for old in checkpoint.checkpoints_in(folder):
                files.remove_unless_open(old)

    def _pruned(
        self, curve: Curve, target: Target, start: Path | None, saved: list[Path]
    ) -> PruneResult:
        """One point. saved: where its masked network went, if it came to that."""
        label, kept, log = label_of(target), self.checkpoints, self.files.log
        place = self.files.masked(label)

        def on_masked(masked: Model) -> None:
            if distributed.current().is_main:
                save(masked, place)
            saved.append(place)
            distributed.current().wait()  # torchrun ends all when one has ended

        how = {n: v for n, v in self.how.items() if start is None or n not in FIRST}
        if kept is not None:
            how["checkpoints"] = checkpoints_of_point(kept, label)
            if start is not None:
                how["checkpoints"] = replace(how["checkpoints"], settings=None)
        how |= {"on_masked": on_masked, "log": None if log is None else _labelled(log, label)}
        model = self.model if start is None else self._loaded(start)
        config = replace(self.config, target=target)
        if start is not None:
            config = self._narrower(config, curve)
        return self._method.prune(model, self.data, config, self.training, **how)

    def _loaded(self, path: Path) -> Model:
        """A point's network, which says of itself what the first one did, and where it began."""
        model, made = load(path), self.first.info.provenance
        own = {name: told for name, told in made.items() if name not in train.RUN}
        told = {**(own if "command" in made else made), "start": path.name}
        return replace(model, info=replace(model.info, provenance=told))

    def _narrower(self, config: Config, curve: Curve) -> Config:
        """The settings of a later point: shares are of the first network."""
        assert config.target is not None and curve.dense is not None, "the first point is there"
        config = replace(config, target=replace(config.target, dense=curve.dense.cost))
        if isinstance(config, ScaConfig):
            shapes = self.first.graph.shapes
            widths = {node.name: shapes[node.name][0] for node in self.first.graph.populations}
            config = replace(config, widths=widths)
        return config

    def _kept(self, curve: Curve, target: Target, result: PruneResult) -> Curve:
        """The curve with the point that `result` is; its compact network is written."""
        label, compact, spent = label_of(target), result.compact, result.spent
        assert compact is not None and spent is not None, "a target prunes"
        paths = self.files.of_point(label)
        if distributed.current().is_main:
            save(compact, paths["compact"])
        distributed.current().wait()
        if curve.dense is None:
            curve = replace(curve, dense=self._dense(result))
        synapses = connectivity(compact, self.first)
        history = result.to_dict()["history"]
        point = CurvePoint(
            label=label,
            target=target.value,
            cost=spent.cost,
            accuracy=result.accuracies["compact"],
            synops=self._synops(compact),
            parameters=parameters(compact.state),
            connectivity=synapses.live / synapses.dense,
            seconds=sum(epoch["seconds"] for epoch in history),
            files={what: path.name for what, path in paths.items()},
            sha256={what: files.file_sha256(path) for what, path in paths.items()},
        )
        messages.note(
            f"{target}: test accuracy {point.accuracy:.2%}, {point.synops:,.0f} SynOps per sample"
        )
        return curve.with_point(point)

    def _dense(self, result: PruneResult) -> DenseNetwork:
        """What the first point says of the network before it."""
        tested, synops = result.accuracies, None
        if "dense" in tested and result.synops is not None:
            synops = result.synops[0]
        elif "start" in tested:
            synops = self._synops(self.first)
        accuracy = tested.get("dense", tested.get("start"))
        assert result.spent is not None, "there is a target"
        cost, size = result.spent.dense, parameters(self.first.state)
        return DenseNetwork(cost, size, accuracy, synops)

    def _synops(self, model: Model) -> float:
        """SynOps per sample, the mean over the validation split."""
        return synops_per_sample(model, self.data, train.prepare_device(self.how["device"]))
