"""`run --window`: recordings of every format and from a pipe, one answer a line."""

import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from event_nets import CLASSES, SIDE, STEPS, drawn_events, event_model, frames

from soul_deploy.base import Array, errors
from soul_deploy.base.events import FIELDS
from soul_deploy.cli.main import root
from soul_deploy.export.event.build import build_event_network, export_event
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.io.recordings import read_events, stream_events, write_records
from soul_deploy.runtime.ops.counted_run import count_run
from soul_deploy.runtime.ops.over_time import accuracy_over_time

EVENTS = drawn_events(400, 40_000)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("events") / "net.event.safetensors"
    export_event(event_model(), path)
    return path


def lines(*words: object, given: bytes | None = None) -> tuple[list[dict[str, Any]], str]:
    found = CliRunner().invoke(root, ["run", *map(str, words)], input=given)
    assert found.exit_code == 0, found.output
    return [json.loads(line) for line in found.stdout.splitlines()], found.stderr


def columns() -> dict[str, Array]:
    return {field: EVENTS[field].copy() for field in FIELDS}


def test_formats_and_pipes_give_the_same_answers(network: Path, tmp_path: Path) -> None:
    text = "# t x y p\n" + "".join(f"{t} {x},{y} {p}\n" for t, x, y, p in EVENTS.tolist())
    np.save(tmp_path / "a.npy", EVENTS)
    np.save(tmp_path / "b.npy", np.array(EVENTS.tolist(), np.int64))
    np.savez(tmp_path / "c.npz", **columns())  # type: ignore[arg-type]
    (tmp_path / "d.events").write_bytes(write_records(EVENTS))
    (tmp_path / "e.txt").write_text(text)
    assert write_records(EVENTS[:1]) == EVENTS[:1].tobytes() + bytes(3)
    first, told = lines(network, tmp_path / "a.npy", "--window", "10ms")
    assert "× real time" in told and f"400 events in {len(first)} windows" in told
    for name in ("b.npy", "c.npz", "d.events", "e.txt"):
        assert lines(network, tmp_path / name, "--window", "10ms")[0] == first, name
    for kind, given in (("records", write_records(EVENTS)), ("text", text.encode())):
        words = ("-", "--window", "10ms", "--input_format", kind)
        assert lines(network, *words, given=given)[0] == first
    stream = Network(build_event_network(event_model()), 1).stream()
    since = (EVENTS["t"] - EVENTS["t"][0]) // 10_000
    for window, answer in enumerate(first):
        stream.push(EVENTS[since == window])
        scores = stream.step()[0]
        assert answer["scores"] == scores.tolist() and answer["ended"]
        assert answer["t"] == int(EVENTS["t"][0]) + 10_000 * (window + 1)
    assert first[-1]["class"] == str(np.argmax(first[-1]["average"]))


def test_counts_events_and_an_early_exit(network: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", EVENTS)
    words = network, tmp_path / "a.npy", "--window"
    counted, told = lines(*words, "10ms", "--counts")
    shown = np.zeros((STEPS, 1, 2, SIDE, SIDE), np.uint8)
    for t, x, y, p in EVENTS.tolist():
        shown[(t - int(EVENTS["t"][0])) // 10_000, 0, p, y, x] += 1
    counts = count_run(Network(build_event_network(event_model()), 1), shown).counts
    spiking = sum(found.synops for name, found in counts.items() if name != "head")
    assert len(counted) == STEPS and "SynOps a window" in told
    assert 0 < sum(line["synops"] for line in counted) - spiking < 16 * CLASSES * STEPS
    by_event, _ = lines(*words, "10ms", "--every", "event")
    assert len(by_event) == len(EVENTS) + len(counted)
    ended = [line["scores"] for line in by_event if line["ended"]]
    np.testing.assert_allclose(ended, [line["scores"] for line in counted], atol=1e-5)
    margins = [line["margin"] for line in counted]
    least = sorted(margins)[-2]
    stopped, told = lines(*words, "10ms", "--margin", least, "--label", 0)
    assert len(stopped) == margins.index(next(m for m in margins if m >= least)) + 1
    assert "stopped at" in told and "class 0" in told
    fitted, _ = lines(*words, "10ms", "--stride", "5ms", "--region", "0,0,20,20", "--down", 2)
    assert len(fitted) > len(counted)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--window", "10"), "give a time from 1us on"),
        (("--window", "1ms", "--stride", "2ms"), "leaves events out"),
        (("--window", "1ms", "--region", "0,0,9,9"), "give a region of 10×10"),
        (("--window", "1ms", "--region", "0,0,9"), "give X,Y,WIDTH,HEIGHT"),
        (("--window", "1ms", "--input_format", "text"), "needed is `t x y p`"),
        (("--window", "1ms", "--every", "event", "--counts"), "--counts is of windows"),
    ],
)
def test_refusals(network: Path, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    np.save(tmp_path / "a.npy", EVENTS)
    found = CliRunner().invoke(root, ["run", str(network), str(tmp_path / "a.npy"), *words])
    assert found.exit_code in (1, 2) and told in found.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("given", "kind", "told"),
    [
        (write_records(EVENTS)[:-1], "records", "ends in the middle of an event: 15 bytes"),
        (write_records(EVENTS)[:12] + b"\2" + bytes(3), "records", "a polarity of 2"),
        (b"1 2 3\n", "text", "line 1 is '1 2 3'"),
        (b"1 2 3 1\n-4 2 3 1\n", "text", "line 2 is '-4 2 3 1'"),
        (b"1 70000 3 1\n", "text", "x from 70000 to 70000"),
        (b"99999999999999999999 1 1 1\n", "text", "beyond 64 bits"),
        (b"1 " * 200, "text", "longer than 256 bytes"),
    ],
)
def test_damaged_streams_are_refused(given: bytes, kind: Any, told: str) -> None:
    with pytest.raises(errors.FileFormatError, match=told):
        list(stream_events(io.BytesIO(given), kind, "here"))


def test_packages_of_others_are_imported_when_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their own objects, as they document them: no file of theirs is at hand."""
    (tmp_path / "a.aedat4").write_bytes(b"")
    (tmp_path / "b.raw").write_bytes(b"")
    for name, path in (("aedat", "a.aedat4"), ("evt3", "b.raw")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(errors.UsageError, match=f"pip install {name}"):
            list(read_events(tmp_path / path))
    aedat, evt3 = ModuleType("aedat"), ModuleType("evt3")
    titled = np.dtype([("t", "<u8"), ("x", "<u2"), ("y", "<u2"), (("p", "on"), "?")])
    packets = [{"imus": []}, {"events": np.array(EVENTS.tolist(), titled)}]
    monkeypatch.setattr(aedat, "Decoder", lambda path: packets, raising=False)
    found = SimpleNamespace(
        timestamp=EVENTS["t"], x=EVENTS["x"], y=EVENTS["y"], polarity=EVENTS["p"]
    )
    monkeypatch.setattr(evt3, "decode_file", lambda path: found, raising=False)
    for module, path in ((aedat, "a.aedat4"), (evt3, "b.raw")):
        monkeypatch.setitem(sys.modules, module.__name__, module)
        np.testing.assert_array_equal(np.concatenate(list(read_events(tmp_path / path))), EVENTS)


def test_accuracy_over_time() -> None:
    network, x = Network(build_event_network(event_model()), 1), frames(count=6)
    labels = network.run(x).argmax(axis=1)
    found = accuracy_over_time(network, x, labels)
    assert found.accuracy[-1] == 1.0 and (found.exits == STEPS).all() and found.right.all()
    steps, early = network.run_steps(x), accuracy_over_time(network, x, labels, margin=0.5)
    for sample in range(6):  # by hand
        for step in range(STEPS):
            mean = np.sort(steps[: step + 1, sample].mean(axis=0))
            if mean[-1] - mean[-2] >= 0.5 or step == STEPS - 1:
                assert early.exits[sample] == step + 1
                break
    assert "steps on average" in str(early.parts()[1])
