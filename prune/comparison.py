"""Several ways to prune, side by side: the same networks, data and seeds, a table of what is left.

Each run leaves its network and a JSON file in a folder, so that a comparison which was stopped goes
on, and one that gets another entry or seed does only what is new.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from soul_deploy.base import errors, files, json_text
from soul_deploy.data import given
from soul_deploy.data.datasets import Data
from soul_deploy.model.file import load, save
from soul_deploy.model.model import Model
from soul_deploy.prune import comparison_table as table
from soul_deploy.prune.comparison_table import Comparison, Run
from soul_deploy.prune.delivered import synops_per_sample
from soul_deploy.prune.removal.apply import parameters
from soul_deploy.prune.result import PruneResult
from soul_deploy.training import messages, train, trainer
from soul_deploy.training.checkpoint_manager import content_of, network_of, plain_settings

SCHEMA = "soul-deploy/pruning-run/1"
FIELDS = {"entry", "seed", "common", "asked", "start", "run"}
Start: TypeAlias = Model | Callable[[int], Model]
"""A network that all seeds share, or what gives the network of each seed."""
Made: TypeAlias = tuple[Model, float]
"""A network and its test accuracy."""


@dataclass(frozen=True)
class Entry:
    """A way to prune, under a name of its own.

    method    `prune_structured` or `prune_unstructured`, or what is called as they are
    config    the method's settings, a ScaConfig or a SearchConfig
    training  how weights are learned meanwhile; each run gets the seed of its own
    """

    name: str
    method: Callable[..., PruneResult]
    config: Any
    training: trainer.TrainConfig

    def settings(self) -> dict[str, Any]:
        """What decides the result, besides network, data and seed."""
        recipe, method = self.training.recorded(), self.method.__name__
        del recipe["seed"]
        config, epochs = asdict(self.config), self.training.epochs
        return {"method": method, "config": config, "recipe": recipe, "epochs": epochs}


def compare_pruning(
    start: Start,
    data: given.DataLike,
    entries: Sequence[Entry],
    seeds: Sequence[int],
    folder: Path,
    *,
    dense: trainer.TrainConfig | None = None,
    shared: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> Comparison:
    """Prune in all the ways of `entries` with all `seeds`; the table of what is left.

    start   a trained network, or what gives the network of a seed
    folder  of every run there is a model file in it, and a JSON file with its figures
    dense   training of the start, first, with each seed; None: it is pruned as it is
    shared  what else all runs in the folder have in common, as JSON data

    Runs whose files are in the folder are read from there, which is told. SynOps are those of the
    validation split. A run that fails (a budget that cannot be met) is a row that says
    why. Raises UsageError for names that no file can have, and for a folder that holds runs with
    other settings; what training the start raises.
    """
    folder = Path(folder)
    _check(entries, seeds)
    one = start(seeds[0]) if callable(start) else start
    loaded = given.as_data(data, model=one)
    common = {
        "network": network_of(one.graph),
        "data": content_of(loaded),
        "dense": None if dense is None else _recipe(dense),
        **(shared or {}),
    }
    work = _Work(start, loaded, folder, dense, plain_settings(common), device)
    asked = {entry.name: entry.settings() for entry in entries} | {table.DENSE: {}}
    for path in sorted(folder.glob("*.json")):
        work.require_same(_read(path), asked, seeds)
    runs: list[Run] = []
    for seed in seeds:
        if not (work.one_start and runs):
            runs.append(work.dense_run(seed))
        runs += [work.run(entry, seed) for entry in entries]
    return Comparison(tuple(entry.name for entry in entries), tuple(seeds), tuple(runs))


def _check(entries: Sequence[Entry], seeds: Sequence[int]) -> None:
    """Raise UsageError for what no table or folder can hold."""
    names = [entry.name for entry in entries]
    taken = {table.DENSE, *(name.lower() for name in names)}
    if len(taken) <= len(names) or not seeds or len(set(seeds)) < len(seeds):
        told = f"entries {', '.join(names)}, seeds {', '.join(map(str, seeds))}"
        raise errors.UsageError(f"{told}: each must be there once, and none is {table.DENSE}")
    for name in names:
        if not all(char.isalnum() or char in ":._=-" for char in name):
            told = f"entry {name!r} becomes part of a file's name"
            raise errors.UsageError(f"{told}; use letters, digits and : . _ = -")
    for seed in seeds:
        errors.require_seed(seed)


def _recipe(training: trainer.TrainConfig) -> dict[str, Any]:
    recipe = training.recorded()
    del recipe["seed"]
    return {"recipe": recipe, "epochs": training.epochs}


def _read(path: Path) -> dict[str, Any]:
    """A run's JSON. Raises FileFormatError."""
    record = json_text.parse_json(path.read_bytes(), str(path))
    held = isinstance(record, dict) and record.get("schema") == SCHEMA
    told = f"{path} is no {SCHEMA}; give a folder of its own, or remove it"
    errors.require(held and set(record) >= FIELDS, told)
    return {**record, "path": path}


@dataclass(frozen=True)
class _Work:
    """What all runs share."""

    start: Start
    data: Data
    folder: Path
    dense: trainer.TrainConfig | None
    common: Mapping[str, Any]
    device: str

    @property
    def one_start(self) -> bool:
        """Whether all seeds prune one network."""
        return self.dense is None and not callable(self.start)

    def require_same(
        self, record: Mapping[str, Any], asked: Mapping[str, Any], seeds: Sequence[int]
    ) -> None:
        """Raise UsageError if the run was made with other settings than now; asked: by entry."""
        name, seed = record["entry"], record["seed"]
        pairs = [("common", self.common)]
        if name in asked:
            pairs.append(("asked", plain_settings(asked[name])))
            if seed is None or seed in seeds:
                pairs.append(("start", {"sha256": self._digest(seed)}))
        for part, now in pairs:
            held = record[part]
            other = sorted(key for key in {*held, *now} if held.get(key) != now.get(key))
            if other:
                more = f" (and {len(other) - 1} more)" if other[1:] else ""
                raise errors.UsageError(
                    f"{record['path']} was made with other settings: {part} {other[0]} "
                    f"{held.get(other[0])}, now {now.get(other[0])}{more}; give another folder"
                )

    def dense_run(self, seed: int) -> Run:
        """Of the network before pruning, trained first if that is asked for."""
        shown = None if self.one_start else seed
        return self._done(table.DENSE, shown, {}, lambda: self._trained(seed))

    def run(self, entry: Entry, seed: int) -> Run:
        """One way with one seed."""
        return self._done(entry.name, seed, entry.settings(), lambda: self._pruned(entry, seed))

    def _done(
        self, name: str, seed: int | None, asked: Mapping[str, Any], make: Callable[[], Made]
    ) -> Run:
        """The run as the folder holds it, or made now and kept there."""
        model_path = _path(self.folder, name, seed)
        path, label = model_path.with_suffix(".json"), f"{name}{_of(seed)}"
        if path.exists():
            run = Run(**_read(path)["run"])
            if run.error:
                told = f"failed before ({run.error}); remove {path} to try again"
                messages.warn(f"{label}: {told}")
                return run
            if model_path.exists():
                messages.note(f"{label}: complete in {path}, not run again")
                return run
        messages.note(f"{label}: begins")
        made, run = self._figures(name, seed, make)
        if made is not None:
            save(made, model_path)
        document = {"schema": SCHEMA, "entry": name, "seed": seed, "common": dict(self.common)}
        document |= {"asked": plain_settings(asked), "start": {"sha256": self._digest(seed)}}
        document["run"] = asdict(run)
        files.write_text(path, json.dumps(document, indent=1) + "\n")
        messages.note(f"{label}: {run}")
        return run

    def _figures(
        self, name: str, seed: int | None, make: Callable[[], Made]
    ) -> tuple[Model | None, Run]:
        begun = time.perf_counter()
        try:
            made, accuracy = make()
        except errors.SoulDeployError as error:
            if name == table.DENSE:
                raise
            seconds = time.perf_counter() - begun
            return None, Run(name, seed, error=str(error), seconds=seconds)
        seconds = time.perf_counter() - begun
        weights = [value for key, value in made.state.items() if key.endswith(".weight")]
        nonzero = sum(int(np.count_nonzero(value)) for value in weights)
        place = train.prepare_device(self.device)
        synops, size = synops_per_sample(made, self.data, place), parameters(made.state)
        return made, Run(name, seed, accuracy, synops, size, nonzero, seconds)

    def _begun(self, seed: int) -> Model:
        return self.start(seed) if callable(self.start) else self.start

    def _digest(self, seed: int | None) -> str:
        """Of the weights and masks that a run begins with, before any training."""
        model = self._begun(0 if seed is None else seed)
        held = dict(model.state)
        for kind in ("channel_masks", "neuron_masks", "alphas"):
            held |= {f"{kind}:{name}": value for name, value in getattr(model, kind).items()}
        return files.digest(held)

    def _trained(self, seed: int) -> Made:
        model = self._begun(seed)
        if self.dense is None:
            module = train.module_of(model, train.prepare_device(self.device))
            return model, trainer.accuracy(module, self.data, self.data.test)
        config = replace(self.dense, seed=seed)
        result = train.train(model, self.data, config, device=self.device)
        return result.model, result.test_accuracy

    def _pruned(self, entry: Entry, seed: int) -> Made:
        start = load(_path(self.folder, table.DENSE, None if self.one_start else seed))
        training = replace(entry.training, seed=seed)
        result = entry.method(start, self.data, entry.config, training, device=self.device)
        left = "masked" if result.compact is None else "compact"
        return result.compact or result.masked, result.accuracies[left]


def _path(folder: Path, name: str, seed: int | None) -> Path:
    return folder / f"{name.replace(':', '_')}{'' if seed is None else f'_{seed}'}.safetensors"


def _of(seed: int | None) -> str:
    return "" if seed is None else f", seed {seed}"
