"""Frames of a data set on the disk: made once, then mapped, so that no batch holds them all.

Two files: `NAME-KEY.npy`, the frames (N, T, 2, H, W), which anything that reads .npy can open, and
`NAME-KEY.json`, which says what they are of. The key is the sha256 of everything that shapes a
frame. A cache whose files do not belong together is made again.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soul_deploy.base import Array, brief, errors, files, json_text, memory, progress
from soul_deploy.base.opening import OpenFile
from soul_deploy.runtime.io import arrays

FORMAT = "soul-deploy/frames/1"
LIMIT = 64 << 30
"""Bytes of all caches in one folder; the ones used longest ago go first."""


@brief
@dataclass(frozen=True)
class Frames:
    """Frames, as many as there are `places` first, (N, T, 2, H, W).

    places: of each in the list that they were made of. told: what could not be read of it, and the
    like, as sentences.
    """

    values: Array
    places: tuple[int, ...]
    told: tuple[str, ...] = ()


@dataclass(frozen=True)
class FrameCache:
    """One data set's frames in a folder; key: plain JSON data that shape them."""

    folder: Path
    name: str
    key: Mapping[str, Any]

    @property
    def stem(self) -> Path:
        text = json.dumps({"format": FORMAT, **self.key}, sort_keys=True)
        return self.folder / f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"

    @property
    def paths(self) -> tuple[Path, Path]:
        """Of the frames, and of what they are."""
        return Path(f"{self.stem}.npy"), Path(f"{self.stem}.json")

    def read(self) -> Frames | None:
        """The frames, mapped; None if they are not here, or not what was written."""
        frames, told = self.paths
        if not (frames.is_file() and told.is_file()):
            return None
        try:
            found = self._read()
        except errors.SoulDeployError as error:
            progress.status(f"{self.name}: its cached frames are made again ({error})")
            return None
        told.touch()  # when it was used last
        return found

    def _read(self) -> Frames:
        frames, told = self.paths
        with OpenFile(told) as source:
            data = json_text.parse_json(source.start(source.size), str(told))
        wanted = {"format": FORMAT, "key": json.loads(json.dumps(self.key))}
        same = isinstance(data, dict) and {name: data.get(name) for name in wanted} == wanted
        errors.require(same, f"{told} is of other frames")
        signed = data.pop("signed", None)
        errors.require(signed == _signature(data), f"{told} is damaged")
        with OpenFile(frames) as source:
            errors.require(data["sha256"] == source.sha256(), f"{frames} is damaged")
            source.stream.seek(0)
            values = arrays.read_npy(source)
        return Frames(values, tuple(data["places"]), tuple(data["told"]))

    def make(self, fill: Callable[[Path], Frames]) -> Frames:
        """Write what `fill` makes at a temporary place, then read it. Raises FileWriteError."""
        frames, told = self.paths
        document: dict[str, Any] = {"format": FORMAT, "key": dict(self.key)}

        def write(place: Path) -> None:
            made = fill(place)
            document.update(places=made.places, told=made.told)

        files.write_atomically(frames, write)
        document["sha256"] = files.file_sha256(frames)
        document["signed"] = _signature(json.loads(json.dumps(document)))
        files.write_text(told, json.dumps(document))
        return self._read()

    def make_room(self, needed_bytes: int) -> None:
        """Raises LimitError for more than the limit or the disk's room."""
        self.folder.mkdir(parents=True, exist_ok=True)
        instead = "Give --cache_dir another disk, --no_cache, fewer time steps or a smaller --size"
        memory.require_memory(f"{self.name}: its frames in a cache", needed_bytes, LIMIT, instead)
        others = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        sizes = {path: _size(path.with_suffix(".npy")) for path in others}
        while sizes and sum(sizes.values()) + needed_bytes > LIMIT:
            oldest = next(iter(sizes))
            progress.status(f"{oldest.with_suffix('.npy')} is removed: caches keep {LIMIT:,} bytes")
            oldest.with_suffix(".npy").unlink(missing_ok=True)
            oldest.unlink()
            del sizes[oldest]
        free = shutil.disk_usage(self.folder).free
        if needed_bytes > free:
            raise errors.LimitError(
                f"{self.name}: its frames take {needed_bytes:,} bytes, and {free:,} are free at "
                f"{self.folder}. {instead}"
            )


def _signature(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
