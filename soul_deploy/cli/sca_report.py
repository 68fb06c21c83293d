"""What `soul-deploy prune structured` prints: the plan before, the outcome after."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from soul_deploy.base.terminal import say
from soul_deploy.cli.output import folder_flags, print_files, print_result
from soul_deploy.ir.graph import SpikingGraph
from soul_deploy.model.model import Model
from soul_deploy.prune.removal.apply import parameters
from soul_deploy.prune.structured.sca import Sca
from soul_deploy.prune.structured.selection import ChannelPlan


@dataclass(frozen=True)
class ChannelCounts:
    """Channels per layer before, after masking and after removal; parameters before and after."""

    layers: tuple[tuple[str, int, int, int], ...]
    parameters: tuple[int, int]

    @staticmethod
    def of(masked: Model, compact: Model) -> "ChannelCounts":
        """Compare a masked network with its compact one."""
        kept = {name: int(keep.sum()) for name, keep in masked.channel_masks.items()}
        rows = []
        for node in masked.graph.populations:
            before = masked.graph.shapes[node.name][0]
            after = compact.graph.shapes[node.name][0]
            rows.append((node.name, before, kept.get(node.name, before), after))
        return ChannelCounts(tuple(rows), (parameters(masked.state), parameters(compact.state)))


def print_preview(
    output_format: str,
    graph: SpikingGraph,
    sca: Sca,
    names: Sequence[str],
    plan: ChannelPlan | None,
) -> None:
    """What would be pruned and when; with weights at hand (`plan`), which channels would stay."""
    units = sca.units(graph, names)
    total = sum(unit.channels for unit in units)
    unit_of = {name: unit.name for unit in units for name in unit.populations}
    updates = {
        epoch: sca.budget(total, ratio).kept for epoch, ratio in sca.schedule.ratio_after.items()
    }
    kept = {layer.name: layer for layer in plan.layers} if plan else {}
    rows: list[tuple[object, ...]] = []
    for index, node in enumerate(graph.populations):
        chosen = node.name in unit_of
        layer = kept.get(unit_of[node.name]) if chosen else None
        channels = graph.shapes[node.name][0]
        floor: object = sca.guard.floor(channels) if chosen else ""
        keep: object = int(layer.keep.sum()) if layer else ("" if chosen else channels)
        rows.append((node.name, index, chosen, channels, floor, keep))
    result = {
        "updates": [{"epoch": epoch, "kept": count} for epoch, count in updates.items()],
        "layers": [
            dict(zip(("name", "index", "pruned", "channels", "floor", "kept"), row, strict=True))
            for row in rows
        ],
        "keep": {name: layer.keep.nonzero()[0].tolist() for name, layer in kept.items()},
        "scores": {name: layer.score.tolist() for name, layer in kept.items()},
    }
    columns = ("layer", "index", "pruned", "channels", "at least", "kept now")
    print_result(output_format, "soul-deploy/prune-plan/1", result, "Channel plan", columns, rows)
    if output_format != "json":
        last = sca.schedule.last_update
        say(
            f"{len(updates)} mask updates in {sca.schedule.epochs} epochs, the last after epoch "
            f"{last}: {updates[last]} of {total} channels stay"
        )


def print_outcome(
    output_format: str,
    accuracies: Mapping[str, float],
    counts: ChannelCounts,
    files: Mapping[str, Path],
    data_dir: Path,
) -> None:
    """Accuracy and channels before and after, the files, the next command."""
    before, after = counts.parameters
    result = {
        "test_accuracy": dict(accuracies),
        **asdict(counts),
        "files": {
            what: {"path": str(path), "bytes": path.stat().st_size} for what, path in files.items()
        },
    }
    rows: list[tuple[object, ...]] = [*counts.layers, ("parameters", before, before, after)]
    accuracy_row = [f"{accuracies[kind]:.2%}" for kind in ("dense", "masked", "compact")]
    columns = ("layer", "before", "masked", "compact")
    rows.append(("test accuracy", *accuracy_row))
    print_result(output_format, "soul-deploy/prune/1", result, "Structured pruning", columns, rows)
    words = ["export", "event", files["Compact model"], *folder_flags(data_dir)]
    print_files(output_format, files, words)
