"""Energy estimates from operation counts: integers times constants, exact and the same everywhere.

Two models, never mixed. "ops45" charges arithmetic only, as papers on spiking networks do;
"mem45" also charges every access to memory. All constants are of 45 nm at 0.9 V (Horowitz, ISSCC
2014; the memory constants of `eie45` are those of Han et al., EIE, ISCA 2016). They exclude
instructions and control, so they say nothing about a CPU: estimates, for comparison.
Definitions: docs/counting.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from soul_deploy.base.errors import UnknownNameError, UsageError
from soul_deploy.runtime.ops.counters import LayerCounts


@dataclass(frozen=True)
class Arithmetic:
    """Energy per operation: integers in `unit`. mac: a multiplication and an addition; ac: an
    addition to a sum; mul: what the leak of a neuron multiplies.
    """

    unit: Literal["0.1pJ", "0.01pJ"]
    mac: int
    ac: int
    mul: int


ARITHMETIC: Mapping[str, Arithmetic] = {
    "fp32": Arithmetic("0.1pJ", 46, 9, 37),
    "int8": Arithmetic("0.01pJ", 23, 3, 20),
    "int8w-int32acc": Arithmetic("0.01pJ", 30, 10, 310),
}
"""Horowitz's figures, in pJ: float32 addition 0.9 and multiplication 3.7; integer additions of 8
bits 0.03 and of 32 bits 0.1; integer multiplications of 8 bits 0.2 and of 32 bits 3.1. "int8" has 8
bits everywhere; "int8w-int32acc" multiplies 8-bit weights and adds 32-bit sums and membranes."""
FIXED_POINT = "int8w-int32acc"
"""The preset of networks of int8 weights whose currents are summed in 16 or 32 bits."""
DROPPED = {"fp16": (1.5, 0.4), "int32": (3.2, 0.1)}
"""Presets of earlier versions: pJ per multiplication and addition, pJ per addition."""
UNITS = {"0.1pJ": 10, "0.01pJ": 100}  # parts of a pJ
OPTIONAL_TERMS = ("bias", "neurons", "graded")


@dataclass(frozen=True)
class Activity:
    """The counts of a layer that cost energy, and the kind of the layer.

    graded: its events can have values above 1. leaky: its neurons multiply once per update.
    analog: values that a layer with analog inputs reads and writes, weights that it holds; all 0
    for others.
    """

    counts: LayerCounts
    graded: bool = False
    leaky: bool = False
    analog: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class OpsEnergy:
    """Model A: terms in `unit`; those in `included` make up the value, the others stand apart.

    synops  additions for events; macs  the analog layers'
    bias    additions of biases
    neurons one comparison per update and one subtraction per spike, and for leaky neurons one
            multiplication per update
    graded  what graded events cost more if each is one multiplication instead of several additions
    """

    preset: str
    unit: str
    terms: Mapping[str, int]
    included: tuple[str, ...]

    @property
    def value(self) -> int:
        """The included terms' sum."""
        return sum(self.terms[name] for name in self.included)

    @property
    def picojoules(self) -> float:
        """The value in pJ, for printing."""
        return self.value / UNITS[self.unit]

    def to_json(self) -> dict[str, Any]:
        """The entry of a report."""
        costs = arithmetic(self.preset)
        return {
            "model": f"ops45_{self.preset}",
            "estimate": True,
            "unit": self.unit,
            "value_int": self.value,
            "constants": {"mac": costs.mac, "ac": costs.ac, "mul": costs.mul},
            "terms": dict(self.terms),
            "included": list(self.included),
        }


def arithmetic(preset: str) -> Arithmetic:
    """The constants of a preset. Raises UsageError for one of DROPPED, UnknownNameError."""
    if preset in DROPPED:
        raise UsageError(dropped_hint(preset))
    if preset not in ARITHMETIC:
        raise UnknownNameError("energy preset", preset, ARITHMETIC)
    return ARITHMETIC[preset]


def dropped_hint(preset: str) -> str:
    """What to do instead of giving a preset of DROPPED."""
    mac, ac = DROPPED[preset]
    return (
        f"the energy preset {preset!r} was dropped; valid: {', '.join(ARITHMETIC)}. Multiply the "
        f"report's counts: {mac} pJ per MAC, {ac} pJ per SynOp"
    )


def ops_energy(
    layers: Mapping[str, Activity], preset: str = "fp32", optional: tuple[str, ...] = ()
) -> OpsEnergy:
    """Model A: 46·macs + 9·synops in units of 0.1 pJ, for fp32.

    optional: of OPTIONAL_TERMS, those that count as well. Raises UnknownNameError.
    """
    costs = arithmetic(preset)
    for name in optional:
        if name not in OPTIONAL_TERMS:
            raise UnknownNameError("energy term", name, OPTIONAL_TERMS)
    terms = dict.fromkeys(("synops", "macs", *OPTIONAL_TERMS), 0)
    for layer in layers.values():
        c = layer.counts
        terms["synops"] += costs.ac * c.synops
        terms["macs"] += costs.mac * c.macs_effective
        terms["bias"] += costs.ac * c.bias_adds
        terms["neurons"] += costs.ac * (c.neuron_updates + c.spikes_out)
        terms["neurons"] += costs.mul * c.neuron_updates * layer.leaky
        if layer.graded:
            terms["graded"] += costs.mac * c.synops_events - costs.ac * c.synops
    included = ("synops", "macs", *(name for name in OPTIONAL_TERMS if name in optional))
    return OpsEnergy(preset, costs.unit, terms, included)


Rows = Literal["explicit", "implicit"]
ACCESSES = {
    "event_read": "events",
    "ptr_read": "pointers",
    "syn_read": "synapses",
    "v_rmw": "membranes",
    "v_sweep": "membranes",
    "bias_read": "biases",
    "event_write": "events",
    "in_read": "inputs",
    "w_read": "synapses",
    "out_write": "membranes",
}
"""Class of access -> the array that it goes to."""


def accesses(layer: Activity, rows: Rows = "explicit", *, lazy: bool = False) -> dict[str, int]:
    """Accesses of 32 bits by class.

    rows: explicit, an index and a weight per synapse; implicit, rows shared by all positions, where
    the index is computed. lazy: membranes are updated where events arrive, not at every step.
    """
    c = layer.counts
    return {
        "event_read": c.events_in,
        "ptr_read": 2 * c.events_in,
        "syn_read": (2 if rows == "explicit" else 1) * c.synops_events,
        "v_rmw": 2 * c.synops_events,
        "v_sweep": 2 * (c.touched if lazy else c.neuron_updates),
        "bias_read": c.bias_adds,
        "event_write": c.spikes_out,
        "in_read": c.macs_effective,
        "w_read": c.macs_effective,
        "out_write": layer.analog[1],
    }


@dataclass(frozen=True)
class MemoryModel:
    """A hierarchy: (bytes, 0.1 pJ per 32 bits) of rising levels, then DRAM."""

    levels: tuple[tuple[int, str, int], ...]
    dram: int

    def level(self, size: int) -> tuple[str, int]:
        """Where an array of `size` bytes stands, and what an access costs."""
        fitting = ((name, cost) for limit, name, cost in self.levels if size <= limit)
        return next(fitting, ("DRAM", self.dram))


KB = 1024
MEMORY: Mapping[str, MemoryModel] = {
    "eie45": MemoryModel(((KB * KB, "on chip", 50),), 6400),
    "horowitz45": MemoryModel(
        ((8 * KB, "8 kB", 50), (32 * KB, "32 kB", 100), (KB * KB, "1 MB", 500)), 6500
    ),
}


@dataclass(frozen=True)
class MemoryEnergy:
    """Model B in 0.1 pJ: fp32 arithmetic with neurons, plus accesses where the arrays stand.

    placement: layer -> array -> (level, bytes). lower: the value if analog layers read and write
    everything once; `value` charges them two reads per multiplication.
    """

    memory: str
    arithmetic: int
    counts: Mapping[str, int]
    value: int
    lower: int
    placement: Mapping[str, Mapping[str, tuple[str, int]]]

    def to_json(self) -> dict[str, Any]:
        """The entry of a report."""
        costs = MEMORY[self.memory]
        levels = {name: cost for _, name, cost in costs.levels}
        return {
            "model": f"mem45_{self.memory.removesuffix('45')}",
            "estimate": True,
            "unit": "0.1pJ",
            "value_int": self.value,
            "value_int_best_reuse": self.lower,
            "constants": {**levels, "DRAM": costs.dram},
            "terms": {"arithmetic": self.arithmetic, "memory": self.value - self.arithmetic},
            "accesses": dict(self.counts),
            "placement": {
                layer: {
                    array: {"level": at, "bytes": size} for array, (at, size) in levels_of.items()
                }
                for layer, levels_of in self.placement.items()
            },
        }


@dataclass(frozen=True)
class Arrays:
    """Sizes in bytes of what a layer keeps in memory, and the form of its rows."""

    sizes: Mapping[str, int]
    rows: Rows


def memory_energy(
    layers: Mapping[str, Activity], arrays: Mapping[str, Arrays], memory: str = "eie45"
) -> MemoryEnergy:
    """Model B: every array stands in the smallest level that holds it. Raises UnknownNameError."""
    if memory not in MEMORY:
        raise UnknownNameError("memory model", memory, MEMORY)
    hierarchy, counts = MEMORY[memory], dict.fromkeys(ACCESSES, 0)
    spent = saved = 0
    placement: dict[str, dict[str, tuple[str, int]]] = {}
    for name, layer in layers.items():
        stored = arrays[name]
        places = {array: hierarchy.level(size) for array, size in stored.sizes.items()}
        placement[name] = {a: (places[a][0], size) for a, size in stored.sizes.items()}
        access_counts = accesses(layer, stored.rows)
        cost = {kind: n * places[ACCESSES[kind]][1] for kind, n in access_counts.items() if n}
        spent += sum(cost.values())
        once = zip(("inputs", "membranes", "synapses"), layer.analog, strict=True)
        reused = sum(n * places[array][1] for array, n in once if n)
        saved += sum(cost.get(k, 0) for k in ("in_read", "w_read", "out_write")) - reused
        counts = {kind: counts[kind] + n for kind, n in access_counts.items()}
    base = ops_energy(layers, "fp32", ("neurons",)).value
    return MemoryEnergy(memory, base, counts, base + spent, base + spent - saved, placement)
