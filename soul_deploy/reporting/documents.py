"""What commands print with `--format json`, or write, as records, which `readers` makes."""

from collections.abc import Mapping
from dataclasses import dataclass

from soul_deploy.base import brief


@dataclass(frozen=True)
class Epoch:
    """One epoch; accuracies from 0 to 1, `loss` as the training has it."""

    epoch: int
    loss: float
    train: float
    validation: float | None


@dataclass(frozen=True)
class Written:
    """A file that a command wrote: its path as the command said it, and its size in bytes."""

    path: str
    size: int


@brief
@dataclass(frozen=True, kw_only=True)
class Learned:
    """What `train` or a pruning did: files, test accuracies by kind, epochs, in their order."""

    where: str
    command: str
    written: tuple[Written, ...]
    accuracies: Mapping[str, float]
    epochs: tuple[Epoch, ...]
    target: str = ""


@dataclass(frozen=True, kw_only=True)
class LayerNumbers:
    """A layer's counts per sample: a projection with its population, a pooling, the readout.

    rate: spikes per step and neuron of the population behind, 0 to 1; None without one.
    """

    name: str
    op: str
    rate: float | None
    synops: float
    macs: float
    synapses: int
    synapses_dense: int
    neurons: int
    neurons_dense: int


@brief
@dataclass(frozen=True, kw_only=True)
class Counted:
    """A network's operations per sample. energy: nJ, estimated with `constants`."""

    where: str
    path: str
    sha256: str
    data: str
    samples: int
    time_steps: int
    accuracy: float | None
    synops: float
    macs: float
    energy: float | None
    constants: str
    weights: int
    weights_kept: int
    layers: tuple[LayerNumbers, ...]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """An engine's median time for a batch, in ms, on one file."""

    where: str
    engine: str
    file: str
    size: int
    threads: int
    batch: int
    p50: float
    p90: float
    source_sha256: str | None


@brief
@dataclass(frozen=True, kw_only=True)
class Benched:
    """Times of engines. profile: µs of each layer of the event network, by its population."""

    where: str
    machine: str
    timings: tuple[Timing, ...]
    profile: Mapping[str, float]


@dataclass(frozen=True)
class Flip:
    """A neuron's first differing spike: the reference's membrane's distance from its threshold,
    and the distance up to which rounding explains it; traced: to an earlier flip upstream.
    """

    layer: str
    step: int
    sample: int
    neuron: str
    distance: float | None
    allowance: float
    traced: bool

    @property
    def explained(self) -> bool:
        near = self.distance is not None and abs(self.distance) <= self.allowance
        return self.traced or near


@dataclass(frozen=True, kw_only=True)
class LayerChecked:
    """A population in both checks; a count that was not made is None."""

    layer: str
    spikes: int
    flips_forced: int | None
    flips_whole: int | None
    differing: int | None
    unexplained: int
    silent: bool


@brief
@dataclass(frozen=True, kw_only=True)
class Verified:
    """What `verify` found. problems: of the static check; checks: outcomes in words, by name."""

    where: str
    artifact: str
    kind: str
    verdict: str
    images: str
    problems: tuple[str, ...]
    checks: Mapping[str, str]
    layers: tuple[LayerChecked, ...]
    flips: tuple[Flip, ...]

    @property
    def first(self) -> LayerChecked | None:
        """The first population, in execution order, that differs end to end, or on given inputs."""
        different = (row for row in self.layers if row.flips_whole or row.flips_forced)
        return next(different, None)


@brief
@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A fixed-point network beside the one of real numbers. rates: population -> (float, fixed)."""

    where: str
    written: Written
    samples: int
    accuracies: tuple[float | None, float | None]
    synops: tuple[float, float]
    rates: Mapping[str, tuple[float, float]]
    distances: Mapping[str, float]


@brief
@dataclass(frozen=True)
class Removed:
    """What goes from each population: (name, channels, kept, rule -> channels, why it stays)."""

    where: str
    layers: tuple[tuple[str, int, int, Mapping[str, int], str], ...]


Document = Learned | Counted | Benched | Verified | Quantized | Removed
