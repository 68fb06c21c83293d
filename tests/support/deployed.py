"""One small network and every file made from it, for tests of what reads those files."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from chains import ChainSpec, ConvSpec, LinearSpec, PoolSpec, build, random_masks

from soul_deploy.base import Array
from soul_deploy.base.files import file_sha256
from soul_deploy.export.event.build import export_event
from soul_deploy.export.onnx.model import export_onnx
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import save
from soul_deploy.model.model import Model, ModelInfo, Normalization
from soul_deploy.prune.removal.apply import remove
from soul_deploy.prune.removal.planner import plan_removal

STEPS, SHAPE, CLASSES = 3, (3, 8, 10), 4
NORM = Normalization((0.5, 0.25, 0.4), (0.2, 0.5, 0.3))


@dataclass(frozen=True)
class Files:
    """A masked model, the compact one, and both exported."""

    masked: Path
    compact: Path
    masked_onnx: Path
    compact_onnx: Path
    masked_event: Path
    compact_event: Path


def small_model(time_steps: int = STEPS) -> Model:
    """Convolution, max pooling, two linear layers, linear head; colour images, named classes."""
    neuron = NeuronSpec()
    pool = PoolSpec("max", (2, 2), (2, 2))
    convolution = ConvSpec(6, (3, 3), (1, 1), (1, 1), (1, 1), 1, False, True, neuron, pool)
    spec = ChainSpec(
        input_shape=SHAPE,
        time_steps=time_steps,
        batch=4,
        convolutions=(convolution,),
        flatten=True,
        linears=(LinearSpec(8, True, False, replace(neuron, v_reset=None)),),
        classes=CLASSES,
        votes=0,
        head_bias=True,
        dyadic=False,
        seed=7,
    )
    info = ModelInfo(
        normalization=NORM, classes=("ant", "bee", "cat", "dog"), provenance={"dataset": "none"}
    )
    return replace(build(spec), info=info)


def make_files(folder: Path) -> Files:
    """Write the network's files to `folder`."""
    model = small_model()
    masks = random_masks(model, seed=3)
    masked = replace(model, channel_masks=masks, info=replace(model.info, stage="masked"))
    compact = remove(masked, plan_removal(masked))
    paths = {}
    for name, made in (("masked", masked), ("compact", compact)):
        path = folder / f"{name}.safetensors"
        save(made, path)
        source = file_sha256(path)
        paths[name] = path
        paths[f"{name}_onnx"] = folder / f"{name}.onnx"
        paths[f"{name}_event"] = folder / f"{name}.event.safetensors"
        export_onnx(made, paths[f"{name}_onnx"], source_sha256=source)
        export_event(made, paths[f"{name}_event"], source_sha256=source)
    return Files(**paths)


def random_pixels(count: int, seed: int = 0) -> Array:
    """uint8 (count, C, H, W)."""
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE)).astype(np.uint8)


def damage(folder: Path, good: Path, name: str) -> Path:
    """The first half of `good` as `name`."""
    content = good.read_bytes()
    path = folder / name
    path.write_bytes(content[: len(content) // 2])
    return path
