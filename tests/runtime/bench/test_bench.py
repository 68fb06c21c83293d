"""What `bench sparse` computes: schedule, percentiles, agreement, engines, a fresh process."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed import SHAPE, STEPS, Files, make_files, random_pixels, small_model
from hypothesis import given
from hypothesis import strategies as st

from soul_deploy.base import Array
from soul_deploy.base.errors import SoulDeployError, UsageError, ValidityError
from soul_deploy.cli.parsing import positive_integers, words
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.model.torch_engine import TorchEngine
from soul_deploy.runtime.bench.engines import ENGINES, EngineSpec, EventEngine, OnnxRuntimeEngine
from soul_deploy.runtime.bench.report import compare_with, differences, reference_speedups
from soul_deploy.runtime.bench.runner import (
    MAX_BATCHES,
    compare_engines,
    engine_entry,
    merge_agreement,
    split_batches,
)
from soul_deploy.runtime.bench.timing import (
    TimingSchedule,
    measure_fresh,
    percentile,
    time_in_turns,
)

ENTRY_KEYS = {"p50_ms", "p90_ms", "p99_ms", "items_per_s", "rss_mb", "load_ms", "first_ms"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("bench"))


# The schedule


def recorded(
    schedule: TimingSchedule, batches: int = 3
) -> tuple[list[str], dict[str, list[float]]]:
    calls: list[str] = []
    runs = {name: lambda x, name=name: calls.append(f"{name}{int(x[0])}") for name in "ab"}
    times = time_in_turns(runs, [np.array([k]) for k in range(batches)], schedule)
    return calls, times


def test_engines_take_turns_and_each_block_starts_with_a_run_that_is_not_measured() -> None:
    calls, times = recorded(TimingSchedule(warmup=2, iterations=3, rounds=2))
    warm = ["a0", "a1", "b0", "b1"]
    first = ["a0", "a0", "a1", "b0", "b0", "b1"]  # one unmeasured, then two
    second = ["a2", "a2", "b2", "b2"]  # one unmeasured, then the third
    assert calls == warm + first + second
    assert [len(measured) for measured in times.values()] == [3, 3]


@given(st.integers(0, 3), st.integers(1, 9), st.integers(1, 4))
def test_exactly_the_asked_number_of_runs_is_measured(
    warmup: int, iterations: int, rounds: int
) -> None:
    from soul_deploy.runtime.bench import timing

    rest, timing.REST_SECONDS = timing.REST_SECONDS, 0.0
    try:
        calls, times = recorded(TimingSchedule(warmup, iterations, None, rounds))
    finally:
        timing.REST_SECONDS = rest
    assert {len(measured) for measured in times.values()} == {iterations}
    blocks = -(-iterations // -(-iterations // rounds))
    assert len(calls) == 2 * (warmup + iterations + blocks)


def test_a_duration_measures_at_least_the_iterations() -> None:
    _, times = recorded(TimingSchedule(0, 4, seconds=1e-9, rounds=2))
    assert all(len(measured) >= 4 for measured in times.values())


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.floats(0, 100))
def test_percentile_is_linear_between_neighbours(times: list[float], share: float) -> None:
    ordered = sorted(times)
    place = share / 100 * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    expected = ordered[low] + (ordered[high] - ordered[low]) * (place - low)
    assert percentile(times, share) == pytest.approx(expected, rel=1e-9, abs=1e-9)


# Batches


def test_batches_are_cut_in_order_along_the_batch_axis() -> None:
    samples = np.arange(7 * 2, dtype=np.float32).reshape(7, 2, 1, 1)
    assert [part[:, 0, 0, 0].tolist() for part in split_batches(samples, 3, 0)] == [
        [0, 2, 4],
        [6, 8, 10],
    ]
    steps = np.zeros((2, 5, 1, 1, 1), np.float32)
    steps[1, :, 0, 0, 0] = range(5)
    parts = split_batches(steps, 2, 1)
    assert [part.shape for part in parts] == [(2, 2, 1, 1, 1)] * 2
    assert [part[1, :, 0, 0, 0].tolist() for part in parts] == [[0, 1], [2, 3]]


def test_there_are_at_most_eight_batches_and_never_a_partial_one() -> None:
    assert len(split_batches(np.zeros((100, 1), np.float32), 2, 0)) == MAX_BATCHES
    with pytest.raises(UsageError, match="batch size 4 asked, but the input holds 3 samples"):
        split_batches(np.zeros((3, 1), np.float32), 4, 0)


@given(st.lists(st.integers(1, 999), min_size=1), st.sampled_from(("{}", "[{}]", "({})")))
def test_lists_of_integers_are_read_in_every_spelling(numbers: list[int], form: str) -> None:
    expected = tuple(dict.fromkeys(numbers))
    for separator in (" ", ",", ", "):
        text = form.format(separator.join(map(str, numbers)))
        assert positive_integers("--threads", text) == expected
    assert words("a, b c") == ("a", "b", "c")


# Numbers


def spec_of(path: Path, name: str = "event", network: str = "compact") -> EngineSpec:
    return EngineSpec(name, network, ENGINES[name].target, path)


def test_an_entry_holds_what_its_runs_say(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    found = engine_entry(spec_of(path), 2, 4, [3.0, 1.0, 2.0], [25], None)
    assert (found["p25_ms"], found["p50_ms"], found["min_ms"], found["max_ms"]) == (1.5, 2, 1, 3)
    assert found["items_per_s"] == 4 / 0.002
    assert (found["file_bytes"], found["runs"], found["mean_ms"]) == (5, 3, 2)
    assert found.keys() >= ENTRY_KEYS


def row(engine: str, p50: float, threads: int = 1, batch: int = 1) -> dict[str, Any]:
    return {"engine": engine, "threads": threads, "batch_size": batch, "p50_ms": p50}


def test_speed_is_told_against_onnxruntime_on_the_compact_network_of_the_same_setting() -> None:
    rows = [
        row("onnxruntime-compact", 6.0),
        row("event", 2.0),
        row("onnxruntime-compact", 4.0, threads=2),
        row("event", 1.0, threads=2),
        row("event", 1.0, threads=3),
    ]
    found = reference_speedups(rows)
    assert found["event", 1, 1] == 3.0
    assert found["event", 2, 1] == 4.0
    assert ("event", 3, 1) not in found
    assert reference_speedups([row("onnxruntime-dense", 6.0), row("event", 2.0)])[
        "event", 1, 1
    ] == pytest.approx(3)


def test_a_baseline_is_compared_entry_by_entry() -> None:
    now = {"entries": [row("event", 2.0), row("event", 1.0, batch=8)]}
    found = compare_with(now, {"entries": [row("event", 3.0), row("pytorch-dense", 1.0)]})
    (only,) = found
    assert (only["engine"], only["batch_size"], only["speedup"]) == ("event", 1, 1.5)


# Agreement


@dataclass
class Fixed:
    """An engine that gives fixed scores."""

    scores: list[list[float]]
    imports: tuple[str, ...] = ()

    def load(self) -> None: ...

    def infer(self, x: Array) -> Array:
        return np.array(self.scores[: len(x)], np.float32)


def agree(*engines: tuple[str, str, Sequence[Sequence[float]]]) -> list[dict[str, Any]]:
    made = {
        EngineSpec(name, network, "", Path(name)): Fixed([list(row) for row in scores])
        for name, network, scores in engines
    }
    return compare_engines(made, [np.zeros((2, 1), np.float32)] * 2)


def test_engines_are_compared_with_the_first_of_the_same_network() -> None:
    found = agree(
        ("p", "dense", [[0, 1], [1, 0]]),
        ("q", "compact", [[9, 9.5], [1, 0]]),
        ("r", "dense", [[0, 1.25], [0, 0.5]]),
        ("s", "compact", [[9, 9.5], [1, 0]]),
    )
    first, second = found
    assert (first["engine"], first["against"]) == ("r", "p")
    assert (first["classes_agree"], first["samples"]) == (2, 4)
    assert first["max_logit_difference"] == 1.0
    assert (second["engine"], second["against"]) == ("s", "q")
    assert (second["classes_agree"], second["max_logit_difference"]) == (4, 0.0)


def test_another_number_of_classes_is_not_the_same_network() -> None:
    with pytest.raises(ValidityError, match="these files are not the same dense network"):
        agree(("p", "dense", [[0, 1]] * 2), ("r", "dense", [[0, 1, 2]] * 2))


def test_agreement_over_settings_is_summed_and_the_worst_is_kept() -> None:
    item = {"engine": "e", "samples": 2, "classes_agree": 2, "max_logit_difference": 0.5}
    known: dict[str, dict[str, Any]] = {}
    merge_agreement(known, [item])
    merge_agreement(known, [item | {"classes_agree": 1, "max_logit_difference": 0.1}])
    assert known["e"] == item | {"samples": 4, "classes_agree": 3}


# Engines


def test_every_engine_gives_the_scores_of_pytorch(files: Files) -> None:
    x = (random_pixels(5) / np.float32(255)).astype(np.float32)
    golden = TorchEngine(files.compact, 1)
    golden.load()
    expected = golden.infer(x)
    assert expected.std() > 0
    for engine in (
        OnnxRuntimeEngine(files.compact_onnx, 1),
        EventEngine(files.compact_event, 1),
        EventEngine(files.compact_event, 2),
    ):
        engine.load()
        np.testing.assert_allclose(engine.infer(x), expected, atol=1e-5)


def test_threads_give_the_same_bits_for_images_and_sequences(files: Files) -> None:
    rng = np.random.default_rng(1)
    one, three = EventEngine(files.compact_event, 1), EventEngine(files.compact_event, 3)
    one.load()
    three.load()
    for shape in ((5, *SHAPE), (STEPS, 5, *SHAPE), (2, *SHAPE), (1, *SHAPE)):
        x = rng.normal(size=shape).astype(np.float32)
        np.testing.assert_array_equal(one.infer(x), three.infer(x))


def test_onnxruntime_refuses_the_other_input_mode(files: Files) -> None:
    engine = OnnxRuntimeEngine(files.compact_onnx, 1)
    engine.load()
    with pytest.raises(ValidityError, match=r"takes \(batch, 3, 8, 10\), but the input is \(3, 2"):
        engine.infer(np.zeros((STEPS, 2, *SHAPE), np.float32))


def test_onnxruntime_refuses_another_batch_than_the_fixed_one(tmp_path: Path) -> None:
    export_onnx(small_model(), tmp_path / "net.onnx", fixed_batch=2)
    engine = OnnxRuntimeEngine(tmp_path / "net.onnx", 1)
    engine.load()
    assert engine.infer(np.zeros((2, *SHAPE), np.float32)).shape == (2, 4)
    with pytest.raises(ValidityError, match=r"takes \(2, 3, 8, 10\), but the input is \(3, 3"):
        engine.infer(np.zeros((3, *SHAPE), np.float32))


def test_a_fresh_process_tells_what_the_first_use_costs(files: Files, tmp_path: Path) -> None:
    batch = tmp_path / "batch.npy"
    np.save(batch, np.zeros((1, *SHAPE), np.float32))
    found = measure_fresh(spec_of(files.compact_event), 1, batch)
    assert found.import_ms > 0 and found.load_ms > 0 and found.first_ms > 0
    assert found.rss_mb is not None and 20 < found.rss_mb < 2000


def test_a_failing_fresh_process_is_one_clear_error(files: Files, tmp_path: Path) -> None:
    batch = tmp_path / "batch.npy"
    np.save(batch, np.zeros((1, 2, 2), np.float32))
    with pytest.raises(SoulDeployError, match=r"engine event failed .* input \(1, 2, 2\) given"):
        measure_fresh(spec_of(files.compact_event), 1, batch)


def test_what_a_baseline_has_not_in_common_is_named() -> None:
    now = {"entries": [row("event", 2.0)], "input": "digits, static, 8 samples, T = 4", "seed": 1}
    assert differences(now, now | {"seed": 2, "input": "digits, static, 64 samples, T = 4"}) == []
    assert differences(now, now | {"input": "digits, static, 8 samples, T = 6"}) == [
        "the input was T = 6, now T = 4"
    ]
    drawn = now | {"input": "random, static, 8 samples, T = 4"}
    assert differences(drawn, drawn | {"seed": 2}) == ["the seed was 2, now 1"]
    assert differences(now, now | {"environment": {"cpu": "Z80"}}) == [
        "the processor was Z80, now None"
    ]
    old = {**row("event", 2.0), "file": "other"}
    assert "event: the file was other, now" in differences(now, now | {"entries": [old]})[0]
    was, this = ({**row("event", 2.0), "source_sha256": c * 64} for c in "ab")
    assert differences({"entries": [this]}, {"entries": [was]}) == [
        f"event ran a network made from model {'a' * 16}…, now from {'b' * 16}…"
    ]
