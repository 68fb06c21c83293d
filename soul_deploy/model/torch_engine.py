"""PyTorch as one of the engines that `bench` times (soul_deploy.runtime.bench.engines.Engine)."""

from pathlib import Path

import torch

from soul_deploy.base import Array
from soul_deploy.model.file import load


class TorchEngine:
    """A model file as an eager PyTorch module on the CPU, masks applied, no gradients."""

    imports = ("torch", "soul_deploy.model.file")

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self.threads = path, threads

    def load(self) -> None:
        """Read the model file. Raises MissingFileError, FileFormatError."""
        self.module = load(self.path).module()

    def infer(self, x: Array) -> Array:
        """Class scores (B, classes) of a batch (B, C, H, W) or (T, B, C, H, W)."""
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            scores: Array = self.module(torch.from_numpy(x)).numpy()
        return scores
