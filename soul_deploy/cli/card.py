"""`soul-deploy card`."""

from pathlib import Path

import click

from soul_deploy.base import files, terminal
from soul_deploy.cli import common_options as common
from soul_deploy.cli import parsing
from soul_deploy.reporting import card as cards


@click.command(cls=parsing.SoulCommand, example="card model.safetensors net.event")
@click.argument("paths", metavar="MODEL [FILE...]", nargs=-1, required=True)
@common.output_option("Where the card goes, mostly README.md.  [default: standard output]")
@common.option("--license", "licence", help="As the Hub spells it, such as apache-2.0.")
def card(paths: tuple[str, ...], output: Path | None, licence: str | None) -> None:
    """Write a model card for Hugging Face: what MODEL is, its numbers, how to run it.

    FILE are exports of it and what verify, energy, bench or quantize printed with --format json;
    what is not about MODEL is left out.
    """
    if output is not None:
        files.require_writable(output)
    found = cards.card(list(paths), licence)
    if output is None:
        terminal.show(found.text().rstrip("\n"))
        return
    files.refuse_itself(output, found.file.path)
    found.save(output)
    size = output.stat().st_size
    terminal.say(f"Model card: {output} ({size:,} bytes); the Hub shows it as README.md")
