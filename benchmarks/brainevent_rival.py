"""One fully connected layer: brainevent's event-driven product of a sparse matrix, and ours.

    python -m venv ENV; ENV/bin/pip install brainevent numba
    python benchmarks/brainevent_rival.py --python ENV/bin/python [--density 0.02] [--rate 0.08]

16,384 inputs of which `rate` fire at a step, 2,048 outputs, T = 4: the first matrix of the
reference network, without bias or neurons. brainevent (a package of JAX kernels; those for a CPU
are numba's) runs in an environment of its own, one thread, compiled by `jax.jit`: `mm` takes all
steps as one matrix of events, `mv` is four products of a vector. Ours is what the event runtime
calls for the layer's synapses. Both compute the same currents from the same arrays, in turns.
Medians.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

INPUTS, OUTPUTS, STEPS = 16384, 2048, 4
ROUNDS, WARM_UP = 5, 3
CHILD = "--child"


def draw(density: float, rate: float, seed: int) -> dict[str, Any]:
    """Compressed rows, one for each input, and spikes uint8 (T, inputs)."""
    rng = np.random.default_rng(seed)
    kept = rng.random((INPUTS, OUTPUTS)) < density
    row, target = np.nonzero(kept)
    return {
        "starts": np.searchsorted(row, np.arange(INPUTS + 1)).astype(np.int32),
        "targets": target.astype(np.int32),
        "weights": rng.standard_normal(len(row)).astype(np.float32),
        "spikes": (rng.random((STEPS, INPUTS)) < rate).astype(np.uint8),
    }


def answer(folder: Path) -> None:
    """Time brainevent on request: a child process in which brainevent is installed."""
    brainevent: Any = import_module("brainevent")
    jax: Any = import_module("jax")

    drawn = np.load(folder / "layer.npz", allow_pickle=False)
    rows = tuple(jax.numpy.asarray(drawn[name]) for name in ("weights", "targets", "starts"))
    matrix = brainevent.CSR(rows, shape=(INPUTS, OUTPUTS))
    spikes = jax.numpy.asarray(drawn["spikes"].astype(bool))

    def by_matrix(spikes: Any) -> Any:
        return brainevent.BinaryArray(spikes) @ matrix

    def by_vector(spikes: Any) -> Any:
        steps = [brainevent.BinaryArray(step) @ matrix for step in spikes]
        return jax.numpy.stack(steps)

    for form in (by_matrix, by_vector):  # brainevent makes workspaces, which jit must not do
        form(spikes)
    forms = {"mm": jax.jit(by_matrix), "mv": jax.jit(by_vector)}
    for name, form in forms.items():
        np.save(folder / f"{name}.npy", np.asarray(form(spikes)), allow_pickle=False)
    versions = {"brainevent": brainevent.__version__, "jax": jax.__version__}
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        name, runs = json.loads(line)
        run = forms[name]
        times = timed(lambda: run(spikes).block_until_ready(), runs)  # noqa: B023
        print(json.dumps(times), flush=True)


def timed(run: Any, runs: int) -> list[float]:
    """Milliseconds of each run; one before is not counted."""
    found = []
    run()
    for _ in range(runs):
        start = time.perf_counter_ns()
        run()
        found.append((time.perf_counter_ns() - start) / 1e6)
    return found


def our_layer(drawn: dict[str, Any]) -> tuple[Any, Any]:
    """Run the synapses, and the currents (T, outputs) that they leave."""
    from soul_deploy.runtime.equations import NeuronEquation
    from soul_deploy.runtime.format.network import MatrixSynapses, SparseRows, SpikingLayer
    from soul_deploy.runtime.plan.layer_plan import aligned, plan_layer
    from soul_deploy.runtime.plan.regions import currents_shape, run_calls, spiking_regions

    starts, targets = (drawn[name].astype(np.uint32) for name in ("starts", "targets"))
    rows = SparseRows(starts, targets, drawn["weights"])
    synapses = MatrixSynapses((INPUTS,), (OUTPUTS,), rows, None)
    neuron = NeuronEquation("soul_lif_decay", 2.0, 1.0, 0.0, "gt")
    layer = SpikingLayer("layer", "layer.fc", "input", "spike", 1, synapses, neuron)
    plan = plan_layer(layer, "sparse")
    values = drawn["spikes"][:, None]
    current = aligned(currents_shape(layer, plan, STEPS), np.float32)
    v, spikes = aligned((OUTPUTS,), np.float32), aligned((STEPS, 1, OUTPUTS), np.uint8)
    ((calls,),) = spiking_regions(
        layer, plan, values, current, v, spikes, carry=False, partitions=1
    )
    own = tuple(call for call in calls if not any(given is spikes for given in call.arguments))
    return lambda: run_calls(own), current


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="of the environment with brainevent")
    parser.add_argument("--density", type=float, default=0.02)
    parser.add_argument("--rate", type=float, default=0.08)
    parser.add_argument("--iterations", type=int, default=50, help="runs of each in a round")
    given = parser.parse_args(words)
    drawn = draw(given.density, given.rate, 2025)
    ours, currents = our_layer(drawn)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "layer.npz", **drawn)
        compare(given, ours, currents, folder)


def compare(given: argparse.Namespace, ours: Any, currents: Any, folder: Path) -> None:
    """Print the table."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "NPROC"), "1")
    one |= {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}
    words = [given.python, __file__, CHILD, str(folder)]
    pipe = subprocess.PIPE
    environment = {**os.environ, **one, "PYTHONPATH": "", "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=environment) as child:
        assert child.stdin is not None and child.stdout is not None
        first = child.stdout.readline()
        if not first:
            raise SystemExit("brainevent does not run; its error stands above")
        times: dict[str, list[float]] = {"ours": [], "mm": [], "mv": []}
        timed(ours, WARM_UP)
        for _ in range(ROUNDS):
            times["ours"] += timed(ours, given.iterations)
            for name in ("mm", "mv"):
                print(json.dumps([name, given.iterations]), file=child.stdin, flush=True)
                times[name] += json.loads(child.stdout.readline())
        child.stdin.close()
    print(first.strip(), f"density {given.density:g}, rate {given.rate:g}, T = {STEPS}")
    middle = {name: float(np.median(found)) for name, found in times.items()}
    for name in ("mm", "mv"):
        theirs = np.load(folder / f"{name}.npy", allow_pickle=False)
        apart = np.abs(theirs - of_steps(currents)).max()
        print(
            f"brainevent {name}: {middle[name]:.3f} ms, ours {middle['ours']:.3f} ms, "
            f"{middle[name] / middle['ours']:.1f} times as long; currents differ by {apart:.1e}"
        )


def of_steps(currents: Any) -> Any:
    """(T, outputs) from lanes (outputs, lanes)."""
    return currents.reshape(OUTPUTS, -1)[:, :STEPS].T


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        answer(Path(sys.argv[2]))
    else:
        main()
