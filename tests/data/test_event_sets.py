"""Data sets of event cameras: written as published, read by us and by SpikingJelly 2.0.0."""

from collections import Counter
from pathlib import Path
from typing import Any

import absent
import event_archives
import numpy as np
import pytest
import torch

from soul_deploy.base import errors
from soul_deploy.base.event_frames import Scaling
from soul_deploy.data import frame_cache
from soul_deploy.data.datasets import Data, EventOptions, Split, canonical_data_name, load_data

CLASSES = {
    "cifar10dvs": ("cifar10_dvs", "CIFAR10DVS"),
    "dvsgesture": ("dvs128_gesture", "DVS128Gesture"),
    "nmnist": ("n_mnist", "NMNIST"),
    "ncaltech101": ("n_caltech101", "NCaltech101"),
}
SCALED: list[tuple[int | None, Scaling | None]] = [(None, None), (17, None), (17, "sum")]
WAYS: list[dict[str, Any]] = [
    {"frames_number": 3, "split_by": "number"},
    {"frames_number": 2, "split_by": "time"},
]


def theirs(name: str, root: Path, **how: Any) -> Counter[tuple[str, int, bytes]]:
    """Split, label and frames of every sample, as SpikingJelly makes them of its events_np."""
    module, of = CLASSES[name]
    kind = getattr(absent.spikingjelly_data(module), of)
    found: Counter[tuple[str, int, bytes]] = Counter()
    for split in ("train", "test") if name in ("dvsgesture", "nmnist") else ("",):
        chosen = {"train": split == "train"} if split else {}
        for frames, label in kind(str(root), data_type="frame", **chosen, **how):
            found[split, label, frames.astype(np.float32).tobytes()] += 1
    return found


def ours(data: Data, *, has_test: bool) -> Counter[tuple[str, int, bytes]]:
    found: Counter[tuple[str, int, bytes]] = Counter()
    parts = {"train": "train", "validation": "train", "test": "test"}
    for name, part in parts.items():
        split: Split = getattr(data, name)
        for frames, label in zip(split.images.float().numpy(), split.labels.tolist(), strict=True):
            found[part if has_test else "", label, frames.tobytes()] += 1
    return found


@pytest.mark.parametrize("name", CLASSES)
def test_the_same_frames_as_spikingjelly(name: str, tmp_path: Path) -> None:
    """From the archive's own files, and from the .npz that SpikingJelly makes of them."""
    extract, raw = tmp_path / "extract", tmp_path / "events_np"
    event_archives.SETS[name](extract)
    options = [
        EventOptions(steps=how["frames_number"], split_by=how["split_by"], cache=False)
        for how in WAYS
    ]
    from_files = [load_data(name, tmp_path, size=0, events=how) for how in options]
    raw.mkdir()
    module, of = CLASSES[name]
    getattr(absent.spikingjelly_data(module), of).create_raw_from_extracted(extract, raw)
    split = name in ("dvsgesture", "nmnist")
    for how, asked, found in zip(WAYS, options, from_files, strict=True):
        known = theirs(name, tmp_path, **how)
        again = load_data(name, tmp_path, size=0, events=asked)
        assert ours(found, has_test=split) == known == ours(again, has_test=split)
        assert sum(known.values()) > 15 and found.input_kind == "counts" and found.frames
        assert found.classes == again.classes and found.steps == how["frames_number"]
        assert torch.equal(found.test.images, again.test.images)


def test_labels_count_in_the_order_of_names(tmp_path: Path) -> None:
    """DVS-Gesture's folders are 0, 1, 10, 2, … as texts, for SpikingJelly and Soul too."""
    event_archives.dvsgesture(tmp_path)
    data = load_data("dvs128gesture", tmp_path, events=EventOptions(cache=False))
    assert data.classes[:4] == (
        *("hand_clapping", "right_hand_wave", "other_gestures", "left_hand_wave"),
    )
    assert data.input_shape == (2, 64, 64) and data.steps == 4


def test_splits_and_their_shares(tmp_path: Path) -> None:
    event_archives.cifar10dvs(tmp_path, each=10)
    data = load_data("cifar10dvs", tmp_path, events=EventOptions(steps=1, cache=False))
    for split, count in ((data.train, 72), (data.validation, 8), (data.test, 20)):
        assert len(split) == count
    assert data.test.labels.bincount().tolist() == [2] * 10  # as many of each class
    assert data.input_shape == (2, 48, 48)


def test_souls_frames_are_scaled_to_the_nearest_pixel(tmp_path: Path) -> None:
    event_archives.nmnist(tmp_path)
    whole, small, summed = (
        load_data("nmnist", tmp_path, size=size, events=EventOptions(scaling=how, cache=False))
        for size, how in SCALED
    )
    known = torch.nn.functional.interpolate(whole.test.images.flatten(1, 2).float(), (17, 17))
    assert torch.equal(small.test.images.flatten(1, 2).float(), known)
    assert summed.test.images.sum() == whole.test.images.sum() > small.test.images.sum()
    assert summed.record()["frames"]["scaling"] == "sum"


def test_kinds_of_frames(tmp_path: Path) -> None:
    event_archives.nmnist(tmp_path)
    counts, spikes = (
        load_data("nmnist", tmp_path, input_kind=kind, events=EventOptions(steps=1))
        for kind in (None, "spikes")
    )
    assert (counts.input_kind, spikes.input_kind) == ("counts", "spikes")
    assert torch.equal(spikes.train.images, (counts.train.images > 0).to(torch.uint8))
    with pytest.raises(errors.UsageError, match="images are needed"):
        load_data("nmnist", tmp_path, input_kind="images")


def test_counts_beyond_a_byte(tmp_path: Path) -> None:
    event_archives.nmnist(tmp_path)
    busy = event_archives.recording(0, 1000, 34, 34)
    busy.events["x"] = busy.events["y"] = busy.events["p"] = 1
    event_archives.atis(tmp_path / "Train/3/00000.bin", busy)
    with pytest.raises(errors.DataError, match=r"a pixel counts 1000 events in a frame.*-T"):
        load_data("nmnist", tmp_path, events=EventOptions(steps=1))
    data = load_data("nmnist", tmp_path, events=EventOptions(steps=1, clip_counts=True))
    assert max(int(part.images.max()) for part in (data.train, data.validation)) == 255
    assert data.notes[0] == "data set nmnist: 1 counts above 255 are 255"
    assert load_data("nmnist", tmp_path, input_kind="spikes").train.images.max() == 1


def test_what_is_damaged_is_named_and_may_be_left_out(tmp_path: Path) -> None:
    event_archives.nmnist(tmp_path)
    whole = load_data("nmnist", tmp_path)
    bad, empty = tmp_path / "Train/3/00001.bin", tmp_path / "Test/7/00000.bin"
    bad.write_bytes(bad.read_bytes()[:-2])
    empty.write_bytes(b"")
    with pytest.raises(errors.DataError, match=f"'nmnist': {bad} is cut off.*--skip_damaged"):
        load_data("nmnist", tmp_path)
    for _ in range(2):  # made, and then read from the cache
        data = load_data("nmnist", tmp_path, events=EventOptions(skip_damaged=True))
        told = [line for line in data.notes if "left out" in line]
        assert str(bad) in told[0] and str(empty) in told[1] and len(told) == 2
        assert ours(data, has_test=True) < ours(whole, has_test=True)
        assert [len(data.train) + len(data.validation), len(data.test)] == [19, 9]


def test_the_cache_is_read_again_unless_something_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    event_archives.nmnist(tmp_path / "d")
    first = load_data("nmnist", tmp_path / "d")
    folder = tmp_path / "d" / "soul_deploy_frames"
    (frames,) = folder.glob("*.npy")
    assert f"{frames} ({frames.stat().st_size - 128:,} bytes)" in first.notes[0]
    assert np.load(frames, mmap_mode="r").shape == (30, 4, 2, 34, 34)
    monkeypatch.setattr("soul_deploy.data.event_layouts.event_files.read_atis", None)
    again = load_data("nmnist", tmp_path / "d")
    assert torch.equal(first.train.images, again.train.images) and again.notes == first.notes
    monkeypatch.undo()
    load_data("nmnist", tmp_path / "d", events=EventOptions(steps=2, cache_dir=folder))
    load_data("nmnist", tmp_path / "d", events=EventOptions(duration=20_000))
    load_data("nmnist", tmp_path / "d", input_kind="spikes", size=17)
    assert len(list(folder.glob("*.npy"))) == 4
    frames.write_bytes(frames.read_bytes()[:-1] + b"\x07")  # made again
    assert torch.equal(load_data("nmnist", tmp_path / "d").train.images, first.train.images)
    event_archives.atis(tmp_path / "d/Train/0/00000.bin", event_archives.recording(1, 70, 34, 34))
    changed = load_data("nmnist", tmp_path / "d")
    assert not torch.equal(changed.train.images, first.train.images)
    assert len(list(folder.glob("*.npy"))) == 5
    monkeypatch.setattr(frame_cache, "LIMIT", 3 * frames.stat().st_size)
    load_data("nmnist", tmp_path / "d", events=EventOptions(steps=3))
    assert sum(path.stat().st_size for path in folder.glob("*.npy")) <= frame_cache.LIMIT
    monkeypatch.setattr(frame_cache, "LIMIT", 1000)
    with pytest.raises(errors.LimitError, match="--no_cache"):
        load_data("nmnist", tmp_path / "d", events=EventOptions(steps=5))


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_not_there_says_what_is_needed(name: str, tmp_path: Path) -> None:
    with pytest.raises(errors.MissingFileError, match="events_np; give it with --data_dir"):
        load_data(name, tmp_path)


def test_names_of_others_and_wrong_options(tmp_path: Path) -> None:
    assert canonical_data_name("NCaltech") == "ncaltech101"
    with pytest.raises(errors.UsageError, match="leave one out"):
        load_data("events5k", tmp_path, events=EventOptions(split_by="time", duration=5))
    event_archives.cifar10dvs(tmp_path)
    (tmp_path / "zebra").mkdir()
    event_archives.aedat2(tmp_path / "zebra/0.aedat", event_archives.recording(0))
    with pytest.raises(errors.UsageError, match="zebra is none of the classes airplane"):
        load_data("cifar10dvs", tmp_path)
