"""What `prune unstructured` was asked for, checked, and where its files go."""

from dataclasses import dataclass
from pathlib import Path

from soul_deploy.base.brief import brief
from soul_deploy.cli.config import (
    Task,
)
from soul_deploy.cli.options import (
    ResumeOptions,
    RunOptions,
)
from soul_deploy.cli.search_options import (
    MaskOptions,
)
from soul_deploy.cli.start_model import Start
from soul_deploy.data.datasets import Data
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.prune.unstructured.masks import Masks
from soul_deploy.prune.unstructured.plan import Finetune, Search
from soul_deploy.training.checkpoint import checkpoint_path
from soul_deploy.training.trainer import TrainConfig


@brief
@dataclass(frozen=True)
class Job:
    """All that was asked for, checked."""

    task: Task
    data_dir: Path
    recipe: TrainConfig
    search: Search
    finetune: Finetune | None
    masking: MaskOptions
    data: Data
    module: GraphModule
    masks: Masks
    run: RunOptions
    start: Start | None
    save_latest: bool
    tensorboard: bool
    keeping: ResumeOptions

    @property
    def masked_path(self) -> Path:
        """Where the result goes."""
        kind = "pruned" if self.masks.parameters() else "best"
        return result_path(self.task, self.run, kind)


def result_path(task: Task, run: RunOptions, kind: str) -> Path:
    return run.model_dir / f"{kind}_{task.stem}.safetensors"


def compact_path(masked: Path) -> Path:
    return masked.with_name(f"{masked.stem}_compact{masked.suffix}")


def checkpoint_folder(task: Task, run: RunOptions) -> Path:
    return run.model_dir / "checkpoints" / f"unstructured_{task.stem}"


def outputs(task: Task, run: RunOptions, save_latest: bool) -> list[Path]:
    """Every file that may be written, but for checkpoints' numbers."""
    kinds = ("pruned", "best", *(("latest",) if save_latest else ()))
    log = log_path(task, run)
    return [
        *(result_path(task, run, kind) for kind in kinds),
        compact_path(result_path(task, run, "pruned")),
        *(log, log.with_suffix(".csv")),
        checkpoint_path(checkpoint_folder(task, run)),
    ]


def log_path(task: Task, run: RunOptions) -> Path:
    return run.log_dir / f"unstructured_{task.stem}.jsonl"
