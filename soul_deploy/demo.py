"""`soul-deploy demo`: the commands a user would type, each printed and run, and one table."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from soul_deploy.runtime.tables import text_table

COUNTED_IMAGES = 200


@dataclass(frozen=True)
class Files:
    """Where the demo's results go."""

    folder: Path

    def __getattr__(self, name: str) -> str:
        return str(self.folder / NAMES[name])


NAMES = {
    "dense": "best_spikingvgg5_lif_mnist5k_T4_2025.safetensors",
    "compact": "pruned_spikingvgg5_lif_mnist5k_T4_2025_compact.safetensors",
    "dense_onnx": "dense.onnx",
    "compact_onnx": "compact.onnx",
    "event": "compact.event.safetensors",
    "bench": "bench.json",
}


def commands(files: Files, *, threads: int) -> list[list[str]]:
    """What to type, in order."""
    folder = str(files.folder)
    shared = ["--dataset_name", "mnist5k", "--batch_size", "64", "--threads", str(threads)]
    places = ["--model_dir", folder, "--log_dir", f"{folder}/logs"]
    return [
        ["train", "--model", "spikingvgg5", "--hidden", "256", "--epochs", "4", *shared, *places],
        [
            *("prune", "structured", "--mode", "load", "--model_path", files.dense),
            *("--prune_ratio", "0.5", "--min_keep", "0.25", "--epochs", "4"),
            *("--finetune_epochs", "3", *shared, *places),
        ],
        ["export", "onnx", files.dense, "--output", files.dense_onnx],
        ["export", "onnx", files.compact, "--output", files.compact_onnx],
        ["export", "event", files.compact, "--output", files.event],
        ["verify", files.compact, files.compact_onnx, "--samples", "200"],
        ["verify", files.compact, files.event, "--samples", "200"],
        [
            *("bench", "sparse", "--model", files.dense, "--compact", files.compact),
            *("--onnx", files.dense_onnx, "--onnx_compact", files.compact_onnx),
            *("--event", files.event, "--input", "mnist5k", "--threads", "1"),
            *("--iterations", "200", "--output", files.bench),
        ],
    ]
