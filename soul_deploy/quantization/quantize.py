"""`quantize`: a trained network as one of integers, and how it compares with what it was."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

from torch import Tensor

from soul_deploy.base import brief, errors, progress, tables
from soul_deploy.data import given
from soul_deploy.data.samples import Data, Split
from soul_deploy.lowering import bounds, deploy
from soul_deploy.model.model import Model
from soul_deploy.quantization import finetune, quality
from soul_deploy.quantization.network import MEMBRANES, Membrane, Plan, integer_network, make_plan
from soul_deploy.quantization.ranges import MembraneRange, ranges_for
from soul_deploy.quantization.units import UnitChoice
from soul_deploy.runtime.format.bounds import accumulator_for
from soul_deploy.training.messages import warn
from soul_deploy.training.trainer import EpochResult, TrainConfig

SCHEMA = "soul-deploy/quantize/1"


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """How a network becomes one of integers.

    unit         how the unit of currents is chosen
    membrane     "auto": int16, but where calibration data saturate it; "int16", "int32"
    calibration  training samples on which membranes are watched
    samples      validation samples on which both networks are compared
    epochs       of fine-tuning with fake quantisation; 0: none
    learning_rate, batch_size, seed   of fine-tuning: Adam, on weights in shares of the largest
    largest_count  of a network that takes counts; None: the largest of the training data
    """

    unit: UnitChoice = field(default_factory=UnitChoice)
    membrane: Membrane = "auto"
    calibration: int = 256
    samples: int = 1000
    epochs: int = 0
    learning_rate: float = 1e-3
    batch_size: int = 64
    seed: int = 2025
    largest_count: int | None = None

    def __post_init__(self) -> None:
        errors.require_known("membrane", self.membrane, MEMBRANES)
        errors.require_least(1, calibration=self.calibration, samples=self.samples)
        errors.require_least(0, epochs=self.epochs)
        if self.largest_count is not None and not 1 <= self.largest_count < 1 << 15:
            raise errors.UsageError(f"largest_count {self.largest_count}; it is from 1 to 32767")

    @property
    def training(self) -> TrainConfig:
        """The fine-tuning."""
        return TrainConfig(
            epochs=max(self.epochs, 1),
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            seed=self.seed,
        )


@brief
@dataclass(frozen=True, kw_only=True)
class QuantizeResult(tables.Shown):
    """The fixed-point network, and how it compares with the network of real numbers.

    real, whole: what both did on the validation samples. distances: by population, the earth
    mover's distance of the firing rates. ranges: of the membranes. bounds: of every current, and of
    the readout's scores. history: epochs of fine-tuning, with the accuracy of the integers.
    """

    model: Model
    data: str
    real: quality.Firing
    whole: quality.Firing
    distances: Mapping[str, float]
    ranges: Mapping[str, MembraneRange]
    bounds: Mapping[str, int]
    history: tuple[EpochResult, ...] = ()

    @property
    def newly_silent(self) -> tuple[str, ...]:
        """Populations that fired before, and never do now."""
        return quality.newly_silent(self.real, self.whole)

    def parts(self) -> list[tables.Table | str]:
        """The comparison, a row for each population, what fell silent."""
        lines: list[tables.Table | str] = [self._networks(), self._populations()]
        saturating = [name for name, found in self.ranges.items() if not found.proven]
        if saturating:
            lines.append(
                "Membranes that are not proven to stay in their range saturate at its ends; on the "
                f"calibration data none did: {', '.join(saturating)}"
            )
        if self.newly_silent:
            lines.append(f"SILENT since they are integers: {', '.join(self.newly_silent)}")
        return lines

    def _networks(self) -> tables.Table:
        columns = ["network", "accuracy", "SynOps per sample", "firing rate", "weights"]
        rows = [
            _network_row("float", self.real, "float32"),
            _network_row("fixed point", self.whole, "int8"),
        ]
        title = f"{self.real.samples} validation samples of {self.data}, T = {self.real.time_steps}"
        return tables.Table(title, columns, rows)

    def _populations(self) -> tables.Table:
        columns = ["layer", "rate", "rate float", "earth mover's", "current", "accumulator"]
        columns += ["membrane", "reach", "seen", "range"]
        rows = [self._population_row(name) for name in self.real.spikes]
        return tables.Table("Populations", columns, rows)

    def _population_row(self, name: str) -> tuple[object, ...]:
        found = self.ranges[name]
        return (
            name,
            f"{self.whole.rate(name):.2%}",
            f"{self.real.rate(name):.2%}",
            f"{self.distances[name]:.2%}",
            found.current,
            accumulator_for(found.current),
            found.kind,
            found.reach,
            found.seen,
            "proven" if found.proven else "accepted",
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON data, without weights."""
        return {
            "schema": SCHEMA,
            "data": self.data,
            "samples": self.real.samples,
            "time_steps": self.real.time_steps,
            "float": _firing_dict(self.real),
            "fixed_point": _firing_dict(self.whole),
            "populations": {name: self._population_dict(name) for name in self.real.spikes},
            "currents": {
                name: {"bound": bound, "accumulator": accumulator_for(bound)}
                for name, bound in self.bounds.items()
            },
            "newly_silent": list(self.newly_silent),
            "epochs": [
                {"epoch": e.epoch, "loss": e.loss, "validation_accuracy": e.validation_accuracy}
                for e in self.history
            ],
        }

    def _population_dict(self, name: str) -> dict[str, Any]:
        found = self.ranges[name]
        return {
            "firing_rate": self.whole.rate(name),
            "firing_rate_float": self.real.rate(name),
            "earth_movers_distance": self.distances[name],
            "current_bound": found.current,
            "accumulator": accumulator_for(found.current),
            "membrane": found.kind,
            "membrane_bits": found.bits + 1,
            "membrane_reach": found.reach,
            "membrane_seen": found.seen,
            "proven": found.proven,
        }

    def __repr__(self) -> str:
        return (
            f"QuantizeResult({len(self.ranges)} populations; accuracy {_percent(self.real)} float, "
            f"{_percent(self.whole)} fixed point)"
        )


def _percent(found: quality.Firing) -> str:
    return "unknown" if found.accuracy is None else f"{found.accuracy:.2%}"


def _network_row(name: str, found: quality.Firing, weights: str) -> tuple[object, ...]:
    rates = [found.rate(population) for population in found.spikes]
    neurons = [spikes.size for spikes in found.spikes.values()]
    mean = sum(r * n for r, n in zip(rates, neurons, strict=True)) / sum(neurons)
    return name, _percent(found), round(found.synops / found.samples), f"{mean:.2%}", weights


def _firing_dict(found: quality.Firing) -> dict[str, Any]:
    return {
        "accuracy": found.accuracy,
        "synops": found.synops,
        "firing_rates": {name: found.rate(name) for name in found.spikes},
        "silent": list(found.silent),
    }


def quantize(
    model: Model, data: given.DataLike, config: QuantizeConfig = QuantizeConfig()
) -> QuantizeResult:
    """The fixed-point network of `model` (docs/fixed-point.md), which stays as it is.

    data: what `as_data` takes. Membranes are watched on training samples, fine-tuning is on them
    too; both networks are compared on the validation split. uint8 images are needed, or counts or
    spikes. Messages go to the logger "soul_deploy". Raises UnsupportedGraphError, by name, for what
    has no form in fixed point, and what `as_data` raises.
    """
    loaded = given.as_data(data, model=model)
    plan = make_plan(model, config.unit, _largest_count(loaded, config))
    whole = integer_network(plan)
    history: tuple[EpochResult, ...] = ()
    judged = _first(loaded.validation, config.samples)
    if config.epochs:
        progress.status("quantize: fine-tuning")

        def scored(moved: Plan) -> float:
            found = integer_network(moved)
            return quality.firing(found, _given(found, loaded, judged), judged.labels).accuracy or 0

        plan, history = finetune.finetuned(plan, loaded, whole, config.training, scored)
    progress.status("quantize: ranges of membranes")
    seen = _given(whole, loaded, _first(loaded.train, config.calibration))
    found, ranges = ranges_for(plan, seen, config.membrane)
    progress.status("quantize: comparing")
    fitted = given.fitted(model, loaded)
    pair = [
        quality.firing(network, given.taken(network, fitted, judged.images), judged.labels)
        for network in (model, found)
    ]
    silent = quality.newly_silent(pair[0], pair[1])
    if silent:
        warn(f"{', '.join(silent)}: fired as real numbers, and never does as integers")
    made = _described(found, model, loaded, config)
    limits = bounds.current_bounds(deploy.lower(made))
    return QuantizeResult(
        model=made,
        data=loaded.name,
        real=pair[0],
        whole=pair[1],
        distances=dict(quality.distances(pair[0], pair[1])),
        ranges=ranges,
        bounds={name: bounds.largest(bound) for name, bound in limits.items()},
        history=history,
    )


def _first(split: Split, count: int) -> Split:
    return Split(split.images[:count], split.labels[:count])


def _given(model: Model, data: Data, split: Split) -> Tensor:
    return given.taken(model, data, split.images)


def _largest_count(data: Data, config: QuantizeConfig) -> int:
    if config.largest_count is not None:
        return config.largest_count
    if data.input_kind != "counts":
        return 1
    parts = (data.train, data.validation, data.test)
    return max(1, *(int(split.images.max()) for split in parts))


def _described(found: Model, model: Model, data: Data, config: QuantizeConfig) -> Model:
    """What it was made of and how, in the provenance."""
    unit = config.unit
    made = {
        "scale": unit.scale,
        "clip": unit.clip,
        "percentile": unit.percentile,
        "membrane": config.membrane,
        "calibration": config.calibration,
        "epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "seed": config.seed,
        "version": version("soul-deploy"),
    }
    known = {name: told for name, told in model.info.provenance.items() if name != "accuracy"}
    known.setdefault("data", data.name)
    info = replace(model.info, provenance={**known, "quantized": made})
    return replace(found, info=info)
