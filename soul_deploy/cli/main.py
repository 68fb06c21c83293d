"""The root of the command line: it finds each command by its dotted name when it is asked for."""

import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

import click
from click.shell_completion import CompletionItem

from soul_deploy import __version__
from soul_deploy.base import errors, lazy, memory, progress, terminal
from soul_deploy.cli import parsing

EXIT_CODES = (
    "Exit codes: 0 done; 1 an operation or a check failed; 2 a given value breaks a rule; 3 "
    "inconclusive, verify found no difference but part of the network never fired, so that nothing "
    "is proven about it; 130 or 143 stopped by Ctrl-C or SIGTERM; 141 whoever read the output has "
    "gone."
)

REPEATED = 5.0  # seconds within which SIGTERM again is the same request


FILES = "soul_deploy.base.files"  # not imported here; a command that writes does it
SHARED = ("train", "structured", "unstructured")
"""Commands whose work several processes can share."""


WITHOUT_BLAS = ("run", "inspect", "warm-up")
"""Commands that multiply no matrices: numpy's OpenBLAS need not reserve memory for every core."""


def _found(commands: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Commands with the dotted names of their modules; nothing here imports one."""
    return {name: (f"soul_deploy.cli.{place}", line) for name, (place, line) in commands.items()}


# command -> (module:attribute of the click command, help line)
COMMANDS = _found(
    {
        "demo": ("demo:demo", "Train, prune, remove, export and verify on real digits."),
        "train": ("train:train", "Train a spiking network."),
        "quantize": ("quantize:quantize", "Make a fixed-point network: int8 weights, integers."),
        "verify": ("export:verify", "Prove that an exported file equals its model."),
        "energy": ("energy:energy", "Count operations exactly, estimate their energy."),
        "inspect": ("run:inspect", "Print what is in a file, of any kind that commands take."),
        "run": ("run:run", "Run an event network on images or arrays."),
        "card": ("card:card", "Write a model card for Hugging Face."),
        "report": ("report:report", "Show networks side by side on one page of HTML."),
        "warm-up": ("warm_up:warm_up", "Compile an event network's kernels, for an image."),
    }
)
_PRUNE = {
    "structured": (
        "prune_structured:structured",
        "Prune channels by spiking channel activity (Li et al., ICML 2024).",
    ),
    "unstructured": (
        "prune_unstructured:unstructured",
        "Prune weights and neurons (Shi et al., ICLR 2024).",
    ),
    "compact": ("prune_compact:compact", "Remove the masked or zeroed channels of a model file."),
}
_EXPORT = {
    "onnx": ("export:onnx", "Write an ONNX file with all steps inside."),
    "event": ("export:event", "Write an event network, run without PyTorch."),
    "nir": ("export:nir", "Write a NIR graph for other toolkits and neuromorphic chips."),
    "c": ("export_c:c", "Write a fixed-point network as C for microcontrollers."),
}
_IMPORT = {
    "nir": ("import_model:nir", "Read a NIR graph as a model file."),
    "zoo": ("import_zoo:zoo", "Make a model file of weights of a network known by name."),
    "torch": ("import_model:import_torch", "Make a model file of a PyTorch network of yours."),
}
_BENCH = {
    "sparse": ("bench:sparse", "PyTorch, ONNX Runtime, event runtime."),
    "pruning": ("bench_pruning:pruning", "Methods of pruning on one budget, over several seeds."),
}
GROUPS = {
    "prune": ("Decide what goes, then remove it.", _found(_PRUNE)),
    "export": ("Write a model as ONNX, an event network, NIR or C, and check it.", _found(_EXPORT)),
    "import": ("Read a network that another tool wrote.", _found(_IMPORT)),
    "bench": ("Compare engines, or methods of pruning, side by side.", _found(_BENCH)),
}


class _Failure(click.ClickException):
    """An operation or a check failed: "Error: ..." on stderr, exit code 1."""


class _WrongUse(click.ClickException):
    """A given value breaks a rule: exit code 2."""

    exit_code = 2


class _Unproven(click.ClickException):
    """A check that proves nothing: "Inconclusive: ..." on stderr, exit code 3."""

    exit_code = errors.InconclusiveError.exit_code


class _Stopped(click.ClickException):
    """A signal stopped the command: its line on stderr, exit code 130 or 143."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        vars(self)["exit_code"] = exit_code  # click declares it for the class


class _CtrlC(KeyboardInterrupt):
    """Python forgets the exit code once a plain KeyboardInterrupt went through an exec()."""


class Stopping:
    """SIGTERM and Ctrl-C as exceptions, which leave no temporary file, and what came last.

    Commands that end in their own way (training) take the signals over while they work. An
    exception that comes in the middle of an import or of somebody else's `except` may be swallowed
    or come out as another error, so the number is kept.
    """

    def __init__(self) -> None:
        self.number = 0
        self._when = 0.0
        self._importing = False

    @contextmanager
    def importing(self) -> Iterator[None]:
        """While a command is imported: the process ends at once, since nothing is begun, and an
        exception in the middle of a library's start can abort it.
        """
        self._importing = True
        try:
            yield
        finally:
            self._importing = False

    def watch(self) -> None:
        """Take over the signals, unless somebody did before or torchrun started the process."""
        usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        for number, handler in usual.items():
            if signal.getsignal(number) == handler and not _speaker():
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        repeated = number == self.number and time.monotonic() - self._when < REPEATED
        self._when = time.monotonic()
        if repeated and number == signal.SIGTERM:
            return  # `timeout` sends it to the process and to its group; one is enough
        self.number = number
        if self._importing:
            terminal.say(_stopped_by(number), err=True)
            os._exit(128 + number)
        if number == signal.SIGINT:
            raise _CtrlC
        raise errors.InterruptedRunError(_stopped_by(number), number)


STOPPING = Stopping()


def _stopped_by(number: int) -> str:
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    return f"stopped by {name}"


class LazyGroup(parsing.Speaking, click.Group):
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
            raise errors.UsageError(
                f"{cmd_name} runs in one process, and torchrun started several; start it without "
                f"torchrun, which is for {', '.join(SHARED)}"
            )
        progress.status(f"{ctx.command_path} {cmd_name}")
        module, _, attribute = self.entries[cmd_name][0].partition(":")
        try:
            with STOPPING.importing(), _told_if_starved(cmd_name):
                command = getattr(import_module(module), attribute)
        except (ImportError, OSError) as error:
            raise lazy.missing(f"{ctx.command_path} {cmd_name}", error) from error
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands from the table, so that a shell need not wait for an import."""
        rows = {name: line for name, (_, line) in self.entries.items()}
        rows |= {name: command.help or "" for name, command in self.commands.items()}
        found = [CompletionItem(n, help=rows[n]) for n in sorted(rows) if n.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing one of them."""
        rows = [(name, line) for name, (_, line) in self.entries.items()]
        rows += [(name, command.help or "") for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows))

    def main(self, *arguments: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """As click's, but that errors are printed as everything else is."""
        run: Any = super().main
        if not standalone_mode:
            return run(*arguments, standalone_mode=False, **extra)
        terminal.show_as_ascii()
        if FILES in sys.modules:
            sys.modules[FILES].written.clear()
        try:
            code = run(*arguments, standalone_mode=False, **extra)
        except click.ClickException as error:
            _tell(error)
            code = error.exit_code
        except click.Abort:
            terminal.say("Aborted!", err=True)
            code = 1
        sys.exit(code)

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        """As click's; help and version are printed in it."""
        try:
            return super().make_context(*arguments, **extra)
        except errors.SoulDeployError as error:
            raise _as_click(error) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            if ctx.parent is not None:
                return super().invoke(ctx)
            quiet = bool(_speaker()) and os.environ.get("RANK") != "0"
            with progress.messages_printed(), progress.watched(ctx.command_path, quiet=quiet):
                return super().invoke(ctx)
        except errors.InterruptedRunError as error:
            raise _Stopped(f"{_speaker()}{error}", error.exit_code) from error
        except KeyboardInterrupt as error:
            text = _stopped_by(signal.SIGINT)
            raise _Stopped(f"{_speaker()}{text}", 128 + signal.SIGINT) from error
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if STOPPING.number:
                text = _stopped_by(STOPPING.number)
                raise _Stopped(f"{_speaker()}{text}", 128 + STOPPING.number) from error
            if isinstance(error, ImportError):
                error = lazy.missing(f"{ctx.command_path} {ctx.invoked_subcommand}", error)
            if isinstance(error, MemoryError):
                raise _Failure(f"{_speaker()}{_starved(error)}") from error
            if not isinstance(error, errors.SoulDeployError):
                raise
            raise _as_click(error) from error


def _as_click(error: errors.SoulDeployError) -> Exception:
    """What click is to end with."""
    if isinstance(error, errors.ReaderGoneError):
        return click.exceptions.Exit(error.exit_code)  # as `head` wants it: without a word
    if isinstance(error, errors.OutputError):
        return _Failure(f"{_speaker()}{_files_written()}the report could not be printed: {error}")
    kinds = {errors.UsageError.exit_code: _WrongUse, errors.InconclusiveError.exit_code: _Unproven}
    kind = kinds.get(error.exit_code, _Failure)
    return kind(f"{_speaker()}{error}")


def _files_written(most: int = 3) -> str:
    """The last files that this process wrote, which no report names now."""
    written = sys.modules[FILES].written if FILES in sys.modules else []
    paths = list(dict.fromkeys(str(path) for path in reversed(written) if path.exists()))
    names = [*paths[:most], *([f"{len(paths) - most} more"] if paths[most:] else [])]
    return f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} written; " if names else ""


def _tell(error: click.ClickException) -> None:
    """Print what click would, names in it as they are, on one line."""
    if isinstance(error, _Stopped):
        terminal.say(error.message, err=True)
        return
    if isinstance(error, _Unproven):
        terminal.say(f"Inconclusive: {error.message}", err=True)
        return
    if not isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        vars(error)["message"] = terminal.one_line(error.message)  # click declares it final
    text = io.StringIO()
    error.show(text)
    terminal.show(text.getvalue().removesuffix("\n"), err=True)


@contextmanager
def _told_if_starved(command: str) -> Iterator[None]:
    """Say in one line that the libraries of a command do not fit into `ulimit -v`."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except (ImportError, OSError, MemoryError) as error:
        most = memory.address_limit()
        if most is None:
            raise
        raise errors.LimitError(
            f"the libraries of {command} cannot be loaded ({str(error) or 'no memory'}); this "
            f"process may map {most >> 10:,} kB of memory (ulimit -v). Raise the limit"
        ) from error


def _starved(error: MemoryError) -> str:
    """One line for an allocation that failed."""
    most = memory.address_limit()
    limited = "" if most is None else f"; this process may map {most >> 10:,} kB (ulimit -v)"
    return f"out of memory ({str(error) or 'an allocation failed'}){limited}"


def _speaker() -> str:
    """Who speaks, if torchrun started several processes."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    return f"rank {os.environ.get('RANK', '?')}: " if several else ""


def _print_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        terminal.say(f"soul-deploy, version {__version__}")
        ctx.exit()


def _root() -> LazyGroup:
    root = LazyGroup(
        COMMANDS,
        name="soul-deploy",
        help="Take a trained spiking network to where it runs: prune, remove, export, prove.",
        epilog=EXIT_CODES,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    click.option(
        "--version",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_print_version,
        help="Show the version and exit.",
    )(root)
    for name, (line, entries) in GROUPS.items():
        root.add_command(LazyGroup(entries, name=name, help=line))
    return root


root = _root()


def main() -> None:
    """Entry point of the console script."""
    terminal.hold_descriptors()
    STOPPING.watch()
    if sys.argv[1:2] and sys.argv[1] in WITHOUT_BLAS:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        root.main(sys.argv[1:], prog_name="soul-deploy")
    except SystemExit as end:
        if _speaker():
            _leave(end.code)
        raise


def _leave(code: object) -> None:
    """End one of several processes without taking the interpreter down.

    A thread of gloo that still wants Python then would abort it, and torchrun would end the others
    for that, the one that writes the results among them.
    """
    terminal.flush()
    os._exit(0 if code is None else code if isinstance(code, int) else 1)
