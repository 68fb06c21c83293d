"""`soul-deploy report`."""

import json
from dataclasses import dataclass
from pathlib import Path

import click

from soul_deploy.base import errors, files, progress, terminal
from soul_deploy.cli import common_options as common
from soul_deploy.cli import options, parsing
from soul_deploy.cli.common_options import given, option_group, shared
from soul_deploy.cli.output import drawn
from soul_deploy.data.chosen import Chosen, Wish, choose
from soul_deploy.reporting import content
from soul_deploy.reporting import report as reporting
from soul_deploy.reporting.files import read_all
from soul_deploy.reporting.networks import Network
from soul_deploy.training.messages import note

USUAL = Path("report.html")


@dataclass(frozen=True)
class Samples:
    """On what the networks run; nothing runs without --input."""

    source: str | None = given(
        None,
        "Also run the networks: counts on --samples, spikes of the first --shown. data: the data "
        "set that a model file records; random; a data set's name; or a path.",
        "--input",
        "source",
        metavar=common.INPUTS,
    )
    resize: bool = shared(common.resize_option())
    dataset_name: str | None = shared(
        common.dataset_option(f"Data set of --input data.  {options.TRAINED_ON}")
    )
    data_dir: Path = shared(common.data_dir_option())
    download: bool = shared(common.download_option())
    samples: int = given(100, "Images to count on.", type=click.IntRange(1))
    shown: int = given(2, "Images of which spikes are drawn.", type=click.IntRange(0, 20))
    seed: int = shared(common.seed_option("Of random pixels.", "Data"))

    def __post_init__(self) -> None:
        errors.require_seed(self.seed)

    def chosen(self, network: Network) -> Chosen | None:
        """What one network runs on, if any. Raises as `choose`."""
        if network.model is None or (self.source is None and self.dataset_name is None):
            return None
        wish = Wish(
            source=self.source or "data",
            dataset=self.dataset_name,
            data_dir=self.data_dir,
            download=self.download,
            count=self.samples,
            seed=self.seed,
            resize=self.resize,
        )
        found = choose(network.model, wish)
        for line in found.remarks:
            note(line)
        return found


@click.command(cls=parsing.SoulCommand, example="report model.safetensors net.event -o report.html")
@click.argument("paths", metavar="FILE...", nargs=-1, required=True)
@common.output_option(f"Where the page goes.  [default: {USUAL}; Markdown: standard output]")
@common.option("--title", default=reporting.TITLE, help="Its heading.", heading="Output")
@option_group("wanted", Samples, "Data")
@common.format_option("style", ("html", "markdown", "json"), "How the report is written.")
def report(
    paths: tuple[str, ...], output: Path | None, title: str, wanted: Samples, style: str
) -> None:
    """Show networks side by side on one page: FILE... as HTML that needs nothing else.

    FILE is a model file, an export, or what train, prune, verify, energy, bench, quantize or export
    printed with --format json, or wrote. NAME=FILE names a model file in the report. What belongs
    together is found by digest, name and size.
    """
    place = output or (USUAL if style == "html" else None)
    if style == "html":
        reporting.require_libraries()
    if place is not None:
        files.require_writable(place)
    progress.status(f"report: reading {len(paths)} files")
    contents = read_all(paths)
    for file in contents.models:
        if place is not None:
            files.refuse_itself(place, file.path)
    found = reporting.assembled(contents, wanted.chosen, wanted.shown, title)
    progress.status("report: drawing")
    text = _written(found, style)
    if place is None:
        terminal.show(text.rstrip("\n"))
        return
    files.write_text(place, text)
    if found.networks:
        terminal.show(drawn([content.summary(found.networks)]))
    size = place.stat().st_size / 1e6
    terminal.say(f"Report: {place} ({size:.2f} MB); no other file belongs to it")


def _written(found: reporting.Report, style: str) -> str:
    if style == "json":
        return json.dumps(found.to_dict(), indent=1) + "\n"
    return found.markdown() if style == "markdown" else found.html()
