"""`soul-deploy warm-up`. It imports what it uses, when it uses it."""

import json
from pathlib import Path

import click

from soul_deploy.base import memory, terminal
from soul_deploy.cli import common_options as common
from soul_deploy.cli import parsing

MAX_MEMORY = common.max_memory_option("As of `run`: bytes, or with a unit (500MB, 2GiB).")


@click.command(cls=parsing.SoulCommand, example="warm-up net.event")
@click.argument("paths", metavar="NETWORK...", nargs=-1, type=common.FILE, required=True)
@common.option("--counts", is_flag=True, help="Also what `run --counts` needs.", heading="Method")
@MAX_MEMORY
@common.format_option("style")
def warm_up(paths: tuple[Path, ...], counts: bool, max_memory: str | None, style: str) -> None:
    """Compile all kernels that the event networks NETWORK... need, and keep them on disk.

    They are for this version on this kind of processor, and `run` finds them from then on, as any
    user and on a read-only file system too: a container's image is made with this command. They
    are kept in the folder that NUMBA_CACHE_DIR names, or else beside the installed package.
    """
    memory.require_address_space(2)
    from soul_deploy.runtime.io.warm_up import warm_up as warm

    done = warm(*paths, counts=counts, max_memory=memory.parse_bytes(max_memory))
    if style == "json":
        terminal.show(json.dumps(done.to_dict(), indent=1))
        return
    from soul_deploy.cli.output import drawn

    terminal.show(drawn(done))
