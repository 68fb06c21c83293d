"""The root of the command line: it finds each command by its dotted name when it is asked for."""

import os
import signal
import sys
from importlib import import_module
from typing import IO, Any

import click

from soul_deploy import __version__
from soul_deploy.runtime.errors import InterruptedRunError, SoulDeployError, UsageError

# command -> (dotted name of the click command, help line). Nothing here imports a command.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("soul_deploy.demo:demo", "Train, prune, remove, export and verify on real digits."),
    "train": ("soul_deploy.train_cli:train", "Train a spiking network."),
    "verify": ("soul_deploy.export.cli:verify", "Prove that an exported file equals its model."),
    "energy": (
        "soul_deploy.export.energy_cli:energy",
        "Count operations exactly, estimate their energy.",
    ),
    "inspect": ("soul_deploy.runtime.cli:inspect", "Print what is in a model, event or ONNX file."),
    "run": ("soul_deploy.runtime.cli:run", "Run an event network on images or a .npy file."),
}
GROUPS: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "prune": (
        "Decide what goes, then remove it.",
        {
            "structured": (
                "soul_deploy.prune.cli:structured",
                "Prune channels by spiking channel activity (Li et al., ICML 2024).",
            ),
            "unstructured": (
                "soul_deploy.prune.unstructured_cli:unstructured",
                "Prune weights and neurons (Shi et al., ICLR 2024).",
            ),
            "compact": (
                "soul_deploy.prune.compact_cli:compact",
                "Remove the masked or zeroed channels of a model file.",
            ),
        },
    ),
    "export": (
        "Write a model as ONNX, an event network or NIR, and check it.",
        {
            "onnx": ("soul_deploy.export.cli:onnx", "Write an ONNX file with all steps inside."),
            "event": (
                "soul_deploy.export.cli:event",
                "Write an event network, run without PyTorch.",
            ),
            "nir": (
                "soul_deploy.export.nir_cli:export_command",
                "Write a NIR graph for other toolkits and neuromorphic chips.",
            ),
        },
    ),
    "import": (
        "Read a network that another tool wrote.",
        {
            "nir": (
                "soul_deploy.export.nir_cli:import_command",
                "Read a NIR graph as a model file.",
            ),
            "torch": (
                "soul_deploy.import_cli:import_command",
                "Make a model file of a PyTorch network of yours.",
            ),
        },
    ),
    "bench": (
        "Time engines side by side.",
        {"sparse": ("soul_deploy.runtime.cli:sparse", "PyTorch, ONNX Runtime, event runtime.")},
    ),
}


SHARED = ("train", "structured", "unstructured")
"""Commands whose work several processes can share."""


class _Failure(click.ClickException):
    """An operation or a check failed: "Error: ..." on stderr, exit code 1."""


class _WrongUse(click.ClickException):
    """A given value breaks a rule: exit code 2."""

    exit_code = 2


class _Stopped(click.ClickException):
    """A signal stopped the command: its line on stderr, exit code 130 or 143."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        vars(self)["exit_code"] = exit_code  # click declares it for the class

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(self.message, file=file, err=True)


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used; help comes from the table above."""

    def __init__(self, entries: dict[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(**options)
        self.entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.entries, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.entries:
            return super().get_command(ctx, cmd_name)
        if _speaker() and cmd_name not in SHARED:
            raise UsageError(
                f"{cmd_name} runs in one process, and torchrun started several; start it without "
                f"torchrun, which is for {', '.join(SHARED)}"
            )
        module, _, attribute = self.entries[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing one of them."""
        rows = [(name, line) for name, (_, line) in self.entries.items()]
        rows += [(name, command.help or "") for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InterruptedRunError as error:
            raise _Stopped(f"{_speaker()}{error}", error.exit_code) from error
        except KeyboardInterrupt as error:
            raise _Stopped(f"{_speaker()}stopped by Ctrl-C", 128 + signal.SIGINT) from error
        except SoulDeployError as error:
            kind = _WrongUse if isinstance(error, UsageError) else _Failure
            raise kind(f"{_speaker()}{error}") from error


def _speaker() -> str:
    """Who speaks, if torchrun started several processes."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    return f"rank {os.environ.get('RANK', '?')}: " if several else ""


def _root() -> LazyGroup:
    root = LazyGroup(
        COMMANDS,
        name="soul-deploy",
        help="Take a trained spiking network to where it runs: prune, remove, export, prove.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    click.version_option(__version__, prog_name="soul-deploy")(root)
    for name, (line, entries) in GROUPS.items():
        root.add_command(LazyGroup(entries, name=name, help=line))
    return root


root = _root()


def main() -> None:
    """Entry point of the console script."""
    root.main(sys.argv[1:], prog_name="soul-deploy")
