"""What long work says of itself: a line each ten seconds in a log, one line on a terminal."""

import re
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from test_output import NET, WORDS, made, put  # noqa: F401

from soul_deploy.base import progress as progress_module
from soul_deploy.base import terminal
from soul_deploy.base.errors import UsageError
from soul_deploy.base.progress import Progress, duration, interval
from soul_deploy.base.terminal import STATUS, say
from soul_deploy.cli.main import root
from soul_deploy.training.trainer import EpochResult


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def lines(captured: pytest.CaptureFixture[str]) -> list[str]:
    return captured.readouterr().err.splitlines()


def test_a_line_each_ten_seconds_and_none_before(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress("soul-deploy verify", 10.0, drawn=False, clock=clock)
    for second in range(35):
        clock.now = 1000.0 + second
        if second == 12:
            progress.status("verifying x.onnx")
        progress.look()
    assert lines(capsys) == [
        "soul-deploy verify (10 s so far)",
        "verifying x.onnx (20 s so far)",
        "verifying x.onnx (30 s so far)",
    ]


def test_a_share_gives_the_time_that_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress("train", 10.0, drawn=False, clock=clock)
    for second in range(41):
        clock.now = 1000.0 + second
        progress.status(f"train: batch {second}", second / 200, "train")
        progress.look()
    assert lines(capsys)[1:] == [
        "train: batch 20 (10 %, 20 s so far, about 3 min left)",
        "train: batch 30 (15 %, 30 s so far, about 3 min left)",
        "train: batch 40 (20 %, 40 s so far, about 3 min left)",
    ]
    clock.now += 10
    progress.status("finetune: batch 1", 0.5, "finetune")  # resumed: half was done before
    progress.look()
    assert lines(capsys) == ["finetune: batch 1 (50 %, 50 s so far)"]


def test_other_lines_of_the_work_put_it_off(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress("train", 10.0, drawn=False, clock=clock)
    for second in range(30):
        clock.now = 1000.0 + second
        if second == 9:
            progress.said()
        progress.look()
    assert lines(capsys) == ["train (19 s so far)", "train (29 s so far)"]


def test_names_in_it_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress("verifying a[b]\n\x1b[2J:cat:", 10.0, drawn=False, clock=clock)
    clock.now += 10
    progress.look()
    assert lines(capsys) == ["verifying a[b]\\n\\x1b[2J:cat: (10 s so far)"]


def test_a_terminal_has_one_line_and_what_is_printed_stands_above(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    clock = Clock()
    progress = Progress("train", 10.0, drawn=True, clock=clock)
    clock.now += 0.5
    progress.look()
    assert capsys.readouterr().err == ""  # short work draws nothing
    clock.now += 1.5
    progress.status("train: " + "x" * 100)
    drawn = capsys.readouterr().err
    assert drawn == "train: " + "x" * 22
    say("epoch 1", err=True)
    blank = "\r" + " " * 29 + "\r"
    assert capsys.readouterr().err == f"{blank}epoch 1\n{drawn}"
    STATUS.set("")
    assert capsys.readouterr().err == blank and terminal.STATUS is STATUS


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99, "99 s"), (150, "2 min"), (5900, "98 min"), (7200, "2.0 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_variable_says_how_often() -> None:
    assert interval({}) == 10 and interval({"SOUL_DEPLOY_PROGRESS": ""}) == 10
    assert interval({"SOUL_DEPLOY_PROGRESS": "0"}) == 0
    assert interval({"SOUL_DEPLOY_PROGRESS": "2.5"}) == 2.5
    for wrong in ("x", "-1", "inf", "nan"):
        with pytest.raises(UsageError, match="SOUL_DEPLOY_PROGRESS is '"):
            interval({"SOUL_DEPLOY_PROGRESS": wrong})
    result = CliRunner(env={"SOUL_DEPLOY_PROGRESS": "x"}).invoke(root, ["inspect", "x"])
    assert result.exit_code == 2 and "give the seconds between two lines" in result.stderr


@pytest.fixture
def place(
    made: dict[str, bytes],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """Files of all kinds in the current folder; a line each 10 s."""
    put(made, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOUL_DEPLOY_PROGRESS", "10")
    monkeypatch.delitem(sys.modules, "somenets", raising=False)
    yield tmp_path


SAID = {
    "train": "train: epoch 1 of 1, batch ",
    "prune structured": "prune: epoch 1 of 1, batch ",
    "prune unstructured": "search: epoch 1 of 1, batch ",
    "export onnx": "verifying out/x on ",
    "export event": "verifying out/x on ",
    "export nir": "verifying out/x on ",
    "verify": "verifying net.event on ",
    "energy": f"energy: counting {NET}",
    "bench sparse": "bench: timing 2 engines, threads 1, batch 1",
}
LINE = re.compile(r".+ \((\d+ %, )?\d+ (s|min|h) so far(, about \d+ (s|min|h) left)?\)")


@pytest.mark.parametrize("name", SAID)
def test_commands_say_where_they_are(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, seconds = [], count(step=11)

    class Recorded(Progress):
        """At each thing that a command is at, more than ten seconds have gone by."""

        def __init__(self, text: str, every: float, *, drawn: bool) -> None:
            super().__init__(text, every, drawn=drawn, clock=lambda: float(next(seconds)))

        def status(self, text: str, share: float | None = None, label: str = "") -> None:
            texts.append(text)
            super().status(text, share, label)
            self.look()

    monkeypatch.setattr(progress_module, "Progress", Recorded)
    words = [*name.split(), *map(str, WORDS[tuple(name.split())][0])]
    result: Result = CliRunner().invoke(root, words)
    assert result.exit_code == 0, result.output
    told = [line for line in result.stderr.splitlines() if line.endswith(("so far)", "left)"))]
    assert any(text.startswith(SAID[name]) for text in texts), texts
    assert told and all(LINE.fullmatch(line) for line in told)
    assert not terminal.CONTROLS.search(result.stderr) and "so far" not in result.stdout
    assert progress_module._current == []


def test_an_epochs_line_says_learning_rate(capsys: pytest.CaptureFixture[str]) -> None:
    from soul_deploy.base.progress import messages_printed
    from soul_deploy.training.messages import EpochLog

    with messages_printed():
        EpochLog("train", 3, None).epoch(EpochResult(1, 0.5, 0.25, 0.5, 0.001, 2.0))
    assert lines(capsys) == [
        "train 1/3: loss 0.5000, train 25.00%, validation 50.00%, learning rate 1.00e-03, 2.0 s"
    ]


def test_reports_say_which_rate(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("verify", "energy", "train"):
        words = [*name.split(), *map(str, WORDS[tuple(name.split())][0])]
        result = CliRunner().invoke(root, words)
        assert result.exit_code == 0, result.output
        text = result.stdout + result.stderr
        rates = re.findall(r"(\w+)\s+rate\b", text)
        assert rates and set(rates) <= {"firing", "learning"}, text
        assert len(rates) == len(re.findall(r"\brates?\b", text.replace("Firing rates", "")))
