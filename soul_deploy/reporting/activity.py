"""Spike rasters and activity maps of single samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap

from soul_deploy.base import Array
from soul_deploy.reporting import svg
from soul_deploy.reporting.charts import label
from soul_deploy.reporting.spikes import Recorded

NEURONS = 96  # rows of a raster
STEPS = 200  # columns of a raster
LAYERS = 24  # of one sample
_FIRED = ListedColormap([(0, 0, 0, 0), (0.27, 0.47, 0.86, 1)])


def samples(recorded: Sequence[Recorded]) -> list[tuple[str, list[svg.Drawing]]]:
    """For each sample its title, then input, rasters and maps in all networks."""
    numbers = sorted({item.sample for item in recorded})
    found: list[tuple[str, list[svg.Drawing]]] = []
    for number in numbers:
        mine = [item for item in recorded if item.sample == number]
        told = "; ".join(f"{item.label} {item.verdict}" for item in mine)
        drawn = [_input(mine[0], number)] if _picture(mine[0].image) is not None else []
        drawn.append(_rasters(mine, number))
        maps = _maps(mine, number)
        found.append((f"Sample {number}: {told}", [*drawn, *([maps] if maps else [])]))
    return found


def _picture(image: Array) -> Array | None:
    """(H, W) of an image or of frames: the mean over channels and steps; None for no image."""
    if image.ndim not in (3, 4):
        return None
    mean: Array = image.reshape(-1, *image.shape[-2:]).mean(0)
    return mean


def _input(item: Recorded, number: int) -> svg.Drawing:
    figure, axes = svg.new_figure(1.9, 2.0)
    axes.imshow(_picture(item.image), cmap="gray", interpolation="nearest")
    axes.set_title("input")
    axes.set_axis_off()
    return svg.drawing(figure, f"input{number}", f"Sample {number}: what the networks are given")


def _layers(mine: Sequence[Recorded]) -> list[str]:
    return list(dict.fromkeys(name for item in mine for name in item.spikes))[:LAYERS]


def _grid(mine: Sequence[Recorded], names: Sequence[str], height: float) -> tuple[Any, Any]:
    figure, _ = svg.new_figure(1.5 + 1.5 * len(mine), 0.6 + height * len(names))
    figure.clear()
    axes = figure.subplots(len(names), len(mine), squeeze=False)
    for column, item in enumerate(mine):
        axes[0, column].set_title(label(item.label), fontsize=8)
    for row, name in enumerate(names):
        axes[row, 0].set_ylabel(label(name), rotation=0, ha="right", va="center", fontsize=8)
    return figure, axes


def _rasters(mine: Sequence[Recorded], number: int) -> svg.Drawing:
    names = _layers(mine)
    figure, axes = _grid(mine, names, 1.15)
    for row, name in enumerate(names):
        for column, item in enumerate(mine):
            place = axes[row, column]
            if name not in item.spikes:
                place.set_axis_off()
                continue
            flat = item.spikes[name].reshape(len(item.spikes[name]), -1)[:STEPS]
            chosen = np.linspace(0, flat.shape[1] - 1, min(NEURONS, flat.shape[1])).astype(int)
            how = {"cmap": _FIRED, "vmin": 0, "vmax": 1, "interpolation": "nearest"}
            extent = (0.5, len(flat) + 0.5, flat.shape[1], 0)
            place.imshow(flat[:, chosen].T, aspect="auto", extent=extent, **how)
            place.set_xlabel(f"{flat.mean():.1%} of {flat.shape[1]:,}", fontsize=7, labelpad=1)
            place.set_yticks([])
            place.set_xticks(range(1, len(flat) + 1) if len(flat) <= 8 else [1, len(flat)])
            place.tick_params(length=0, labelsize=7, pad=1)
    caption = (
        f"Sample {number}, spikes: steps from left to right, neurons from top to bottom (at most "
        f"{NEURONS} of a population, at equal distances); below, the share that fires"
    )
    return svg.drawing(figure, f"raster{number}", caption)


def _maps(mine: Sequence[Recorded], number: int) -> svg.Drawing | None:
    names = [name for name in _layers(mine) if any(_is_map(item, name) for item in mine)]
    if not names:
        return None
    figure, axes = _grid(mine, names, 1.4)
    shown = None
    for row, name in enumerate(names):
        maps = [_map(item, name) for item in mine]
        most = max([1e-9, *(float(found.max()) for found in maps if found is not None)])
        for place, found in zip(axes[row], maps, strict=True):
            place.set_xticks([])
            place.set_yticks([])
            if found is None:
                place.set_axis_off()
                continue
            shown = place.imshow(found / most, cmap="cividis", vmin=0, vmax=1)
    if shown is not None:
        bar = figure.colorbar(shown, ax=axes, shrink=0.8, aspect=30, pad=0.02)
        bar.ax.tick_params(labelsize=7)
        bar.set_label("share of the row's most active position", fontsize=7)
    caption = f"Sample {number}, activity: spikes at each position, all channels and steps"
    return svg.drawing(figure, f"maps{number}", caption)


def _is_map(item: Recorded, name: str) -> bool:
    return name in item.spikes and item.spikes[name][0, 0].size > 1 and item.spikes[name].ndim == 4


def _map(item: Recorded, name: str) -> Array | None:
    if not _is_map(item, name):
        return None
    mean: Array = item.spikes[name].mean((0, 1))
    return mean
