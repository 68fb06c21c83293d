"""Help of commands, printed as everything else is; imports nothing heavy."""

import click

from soul_deploy.base.terminal import show


class Speaking(click.Command):
    """A command whose help is printed as everything else is (soul_deploy/base/terminal.py)."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """click's own, but for who prints."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.callback = _print_help
        return option


def _print_help(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        show(ctx.get_help())
        ctx.exit()
