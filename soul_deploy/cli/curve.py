"""Lists of targets, as options and as a run: what both kinds of pruning share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soul_deploy import distributed
from soul_deploy.base import errors
from soul_deploy.cli import common_options as common
from soul_deploy.cli import config as resolve
from soul_deploy.cli import options, output, parsing
from soul_deploy.prune import curve
from soul_deploy.prune.curve_record import SCHEMA, Curve
from soul_deploy.prune.target import QUANTITIES, Target
from soul_deploy.training import messages


def given_targets(text: str) -> Any:
    """A field for one target or a falling list of them."""
    return common.given(None, text, cls=parsing.ListOption, metavar="LIST")


def targets_of(given: Any, *others: str) -> tuple[Target, ...]:
    """The targets that an option group holds, of one quantity; none is fine.

    others: options given that say how much is pruned too. Raises UsageError.
    """
    asked = [
        quantity for quantity in QUANTITIES if getattr(given, f"target_{quantity}") is not None
    ]
    names = [f"--{name}" for name in (*(f"target_{quantity}" for quantity in asked), *others)]
    if asked and names[1:]:
        raise errors.UsageError(
            f"{' and '.join(names)} given; each says how much is pruned: leave all but one out"
        )
    if not asked:
        return ()
    text = getattr(given, f"target_{asked[0]}")
    try:
        values = [float(word) for word in parsing.words(text)]
    except ValueError:
        told = f"target_{asked[0]} {text!r}: give a number, or several such as 0.5,0.2,0.1"
        raise errors.UsageError(told) from None
    targets = tuple(Target(asked[0], value) for value in values)
    curve.check_falling(targets)
    return targets


def outputs(files: Mapping[str, Path], targets: Sequence[Target]) -> list[Path]:
    """What is written; files: for one target, by name."""
    places, masked = dict(files), files["Masked model"]
    if not targets[1:]:
        return [*places.values()]
    for name in ("Masked model", "Compact model"):
        del places[name]
    found = curve.CurveFiles(masked)
    points = [path for t in targets for path in found.of_point(curve.label_of(t)).values()]
    return [*places.values(), found.table, *points]


def tell_first(targets: Sequence[Target]) -> None:
    """Say, of several targets, whose plan is shown."""
    if targets[1:]:
        others = ", ".join(f"{target.value:g}" for target in targets[1:])
        messages.note(
            f"the plan is that of {targets[0]}; {others} are planned from the network before each, "
            "which is not there yet"
        )


def go_down(
    targets: Sequence[Target],
    inputs: tuple[Any, ...],
    how: Mapping[str, Any],
    files: Mapping[str, Path],
    run: options.RunOptions,
    data: options.DataOptions,
) -> None:
    """Prune to one target after the other; print the points.

    inputs: model, data, settings of the method, training. how: what else the method takes. files:
    for one target, by name.
    """
    model, loaded, config, training = inputs
    masked, last = files["Masked model"], curve.label_of(targets[-1])
    found = curve.prune_curve(model, loaded, targets, config, training, path=masked, **how)
    with curve.checkpoints_of_point(how["checkpoints"], last).watching():
        if distributed.hand_over():
            resolve.leave_options(files["Configuration"])
            _print(found, run.output_format, data.data_dir)


def _print(found: Curve, output_format: str, data_dir: Path) -> None:
    """The points, the files, the next command."""
    table = found.table()
    document = {**found.to_dict(), "path": str(found.path)}
    output.print_result(output_format, SCHEMA, document, table.title, table.columns, table.rows)
    folder, compact = found.path.parent, [point.files["compact"] for point in found.points]
    names = {f"Compact model, {point.label}": point.files["compact"] for point in found.points}
    files = {"Curve": found.path, **{what: folder / name for what, name in names.items()}}
    words = ["export", "event", folder / compact[-1], *output.folder_flags(data_dir)]
    output.print_files(output_format, files, words)
