"""SIGTERM and Ctrl-C at any moment of any command: exit code, one line, no temporary file."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from soul_deploy.base.errors import FileFormatError, InterruptedRunError
from soul_deploy.cli import main as cli
from soul_deploy.cli.main import LazyGroup, Stopping

TERMINAL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
"""
WRITER = (
    TERMINAL
    + """
import sys, time
from pathlib import Path
import click
from soul_deploy.cli import main as cli
from soul_deploy.base.files import write_atomically

def work(temporary):
    print("writing", flush=True)
    exec("time.sleep(60)")

@cli.root.command("wait")
def wait():
    write_atomically(Path("result.bin"), work)

cli.main()
"""
)


IMPORTER = (
    TERMINAL
    + """
from soul_deploy.cli import main as cli
cli.root.entries["slow"] = ("slow:command", "")
cli.main()
"""
)
SLOW = """
import time
try:
    print("importing", flush=True)
    time.sleep(60)
except BaseException:
    pass
"""


@pytest.fixture(autouse=True)
def signals_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "times", "code", "line"),
    [
        (signal.SIGTERM, 1, 143, "stopped by SIGTERM\n"),
        (signal.SIGTERM, 2, 143, "stopped by SIGTERM\n"),
        (signal.SIGINT, 1, 130, "stopped by Ctrl-C\n"),
    ],
)
def test_a_command_that_is_stopped_leaves_no_file(
    tmp_path: Path, number: int, times: int, code: int, line: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, "wait"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "writing\n"
        assert len(list(tmp_path.iterdir())) == 1  # the temporary file
        for _ in range(times):
            process.send_signal(number)
        ends = (code, -number) if times > 1 else (code,)  # while it ends, nobody listens
        assert process.wait(20) in ends
        assert process.stderr.read() == line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGINT, 130, "stopped by Ctrl-C\n"), (signal.SIGTERM, 143, "stopped by SIGTERM\n")],
)
def test_a_stop_while_a_command_is_imported(
    tmp_path: Path, number: int, code: int, line: str
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    with subprocess.Popen(
        [sys.executable, "-c", IMPORTER, "slow"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        assert process.wait(20) == code
        assert process.stderr.read() == line


def stopped_in(work: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> Result:
    """What a command prints whose work is `work`, with the signals taken over."""
    monkeypatch.setattr(cli, "STOPPING", Stopping())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    group = LazyGroup({})
    group.add_command(click.Command("work", callback=work))
    cli.STOPPING.watch()
    return CliRunner().invoke(group, ["work"])


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGINT, 130, "stopped by Ctrl-C\n"), (signal.SIGTERM, 143, "stopped by SIGTERM\n")],
)
@pytest.mark.parametrize("error", [FileFormatError("cannot be traced"), AttributeError("utils")])
def test_a_stop_that_comes_out_as_another_error_is_a_stop(
    number: signal.Signals, code: int, line: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        try:
            signal.raise_signal(number)
        except BaseException:  # an import in somebody else's code
            raise error from None

    result = stopped_in(work, monkeypatch)
    assert (result.exit_code, result.stderr) == (code, line)


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise FileFormatError("damaged")

    def break_down() -> None:
        raise AttributeError("utils")

    result = stopped_in(fail, monkeypatch)
    assert (result.exit_code, result.stderr) == (1, "Error: damaged\n")
    assert isinstance(stopped_in(break_down, monkeypatch).exception, AttributeError)


def test_sigterm_again_is_one_request_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Stopping().watch()
    with pytest.raises(InterruptedRunError):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    later = time.monotonic() + cli.REPEATED + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(InterruptedRunError):
        signal.raise_signal(signal.SIGTERM)


def test_signals_that_somebody_took_or_torchrun_sends_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with monkeypatch.context() as patched:
        patched.setenv("WORLD_SIZE", "2")
        Stopping().watch()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    Stopping().watch()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
