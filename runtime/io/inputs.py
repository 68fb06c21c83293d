"""What commands run on: `data`, `random`, a data set's name, a path, or `-`. One definition.

The names of data sets are words of their own: a file or folder that is called like one is given
with its folder, ./digits. PyTorch is imported only where a data set is asked for by name.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from soul_deploy.base import lazy, pixel_rule, terminal
from soul_deploy.base.errors import UnknownNameError, UsageError, ValidityError
from soul_deploy.base.files import require_file
from soul_deploy.base.pixel_rule import InputRule
from soul_deploy.runtime.io import arrays, images
from soul_deploy.runtime.io.folders import SUFFIXES
from soul_deploy.runtime.io.images import Samples

DATA, RANDOM, STDIN = "data", "random", "-"
DATA_SETS = (
    *("mnist5k", "digits", "mnist", "fashionmnist", "cifar10", "cifar100", "svhn"),
    *("events5k", "cifar10dvs", "dvsgesture", "nmnist", "ncaltech101"),
    *("folder", "npz"),
)
"""The data sets that `soul_deploy.data` reads; folder and npz are the user's own."""
ALIASES = {
    "ncaltech": "ncaltech101",  # Soul's
    "dvs128gesture": "dvsgesture",
    "dvs128_gesture": "dvsgesture",
    "cifar10_dvs": "cifar10dvs",
    "n_mnist": "nmnist",
    "n_caltech101": "ncaltech101",  # SpikingJelly's modules
}
"""Other people's names of them."""
PATH_SUFFIXES = SUFFIXES | {".npy", ".npz"}
Kind: TypeAlias = Literal["data", "random", "name", "path", "stdin"]


@dataclass(frozen=True)
class InputName:
    """What was named; text: the data set's name in our spelling, or the path."""

    kind: Kind
    text: str


def read_input_name(text: str) -> InputName:
    """What `text` names. Raises UnknownNameError for a word that is neither name nor path."""
    word = ALIASES.get(text.lower(), text.lower())
    if word == DATA:
        return InputName("data", word)
    if word == RANDOM:
        return InputName("random", word)
    if word in DATA_SETS:
        return InputName("name", word)
    if text == STDIN:
        return InputName("stdin", text)
    path = Path(text)
    looks_like_one = path.suffix.lower() in PATH_SUFFIXES or len(path.parts) != 1
    if looks_like_one or os.path.exists(text):
        return InputName("path", text)
    raise UnknownNameError("input", text, [DATA, RANDOM, *DATA_SETS, "an existing file or folder"])


def named_samples(
    name: InputName, rule: InputRule, count: int, *, data_dir: Path, seed: int
) -> Samples:
    """At most `count` samples, as a network of `rule` takes them.

    random: numbers of the rule's kind, drawn from `seed`; for images uniform pixels, normalised. A
    data set: its first test samples, from `data_dir`. A path: samples at equal distances.
    Raises UsageError for `data`, which only a model file records, and for `-`; what `read_path` and
    `load_data` raise.
    """
    if name.kind == "path":
        return images.read_path(Path(name.text), rule, count)
    if name.kind == "name":
        return dataset_samples(name.text, data_dir, rule, count)
    if name.kind == "random":
        values = pixel_rule.random_inputs(rule, count, seed)
        return Samples(tuple(f"random[{index}]" for index in range(count)), values)
    if name.kind == "stdin":
        raise UsageError("- (standard input) is for `soul-deploy run`; give the path of a file")
    raise UsageError(
        "data stands for the data set that a model file records, and no model file is given; name "
        f"the data set ({', '.join(DATA_SETS)}), give a path, or random"
    )


def dataset_samples(name: str, data_dir: Path, rule: InputRule, count: int) -> Samples:
    """The first `count` test samples, normalised as the network's file says, or the data set."""
    where = "soul_deploy.data.datasets:load_for_runtime"
    data: Any = lazy.load_object(where, f"the data set {name}")(rule, name, data_dir)
    for line in data.remarks:
        terminal.say(line, err=True)
    if tuple(data.input_shape) != rule.shape:
        raise ValidityError(
            f"{name} has images of {tuple(data.input_shape)}, the networks take {rule.shape}"
        )
    if data.input_kind != rule.kind:
        raise ValidityError(f"{name} holds {data.input_kind}, the networks take {rule.kind}")
    if not rule.mean and data.normalization is not None:
        rule = replace(rule, mean=data.normalization.mean, std=data.normalization.std)
    held = data.test.images[:count].numpy()
    batch = held.swapaxes(0, 1) if data.frames else held
    found = images.array_samples(name, batch, rule)
    return replace(found, labels=data.test.labels[:count].numpy(), classes=data.names)


def run_samples(
    words: Sequence[str],
    rule: InputRule,
    *,
    stdin: Callable[[], IO[bytes]],
    count: int | None,
    drawn: int,
    data_dir: Path,
    seed: int,
) -> list[Samples]:
    """The samples of each word, in order; all image files together come first.

    -: a .npy file from `stdin()`. count: at most so many of a word; None: all that a path or `-`
    holds, `drawn` of a data set and of random numbers. Raises as `named_samples`.
    """
    groups: list[Samples] = []
    singles: list[Path] = []
    if list(words).count(STDIN) > 1:
        raise UsageError("- is given twice; standard input can be read once")
    for word in words:
        name = read_input_name(word)
        if name.kind == "stdin":
            array = arrays.read_npy_stream(stdin(), "standard input")
            given = images.array_samples("-", array, rule)
            groups.append(images.first_samples(given, count))
        elif name.kind != "path":
            many = drawn if count is None else count
            groups.append(named_samples(name, rule, many, data_dir=data_dir, seed=seed))
        elif os.path.isdir(word) or Path(word).suffix.lower() in (".npy", ".npz"):
            groups.append(images.read_path(Path(word), rule, count))
        else:
            singles.append(require_file(Path(word)))
    if singles:
        pixels = pixel_rule.normalise(images.read_images(singles, rule), rule)
        groups.insert(0, Samples(tuple(map(str, singles)), pixels))
    return groups
