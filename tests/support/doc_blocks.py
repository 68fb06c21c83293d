"""The code and the commands in the documents: what they are, and whether a test runs them.

An HTML comment in the line above a block says why it is not run, or that it runs in the soak:

    <!-- not run: downloads PyTorch -->
    <!-- soak: trains and prunes -->
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from places import ROOT

FENCE = re.compile(
    r"(?:^<!-- (?P<mark>not run|soak): (?P<reason>[^\n]+) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PROGRAM = re.compile(r"(soul-deploy|make|pip|python3?|torchrun|apt-get|docker|eval)\b")
PAGES = tuple(
    sorted(
        [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/**/*.md")],
        key=str,
    )
)


@dataclass(frozen=True)
class Block:
    """mark: "" runs in every test; kind: "python" or "shell"."""

    page: Path
    line: int
    kind: str
    text: str
    mark: str
    reason: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each line of a shell block, without comments."""
        joined = self.text.replace("\\\n", " ")
        lines = (shlex.split(line, comments=True) for line in joined.splitlines())
        return [words for words in lines if words]


def blocks(page: Path) -> Iterator[Block]:
    """All blocks of Python and of commands."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        python = found["language"] in ("python", "py")
        shell = found["language"] in ("sh", "bash") or PROGRAM.match(found["text"])
        if python or shell:
            line = text.count("\n", 0, found.start("text"))
            kind = "python" if python else "shell"
            yield Block(page, line, kind, found["text"], found["mark"] or "", found["reason"] or "")


def unknown_words(root: click.Group, words: list[str]) -> list[str]:
    """Commands and options among `words`, those behind soul-deploy, that there are not."""
    context = click.Context(root)
    command: click.Command = root
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        found = command.get_command(context, name)
        if found is None:
            return [name]
        command = found
    options = {text for item in command.get_params(context) for text in item.opts}
    options |= {text for item in command.get_params(context) for text in item.secondary_opts}
    given = [word.partition("=")[0] for word in rest if re.match(r"--?[a-zA-Z]", word)]
    return [word for word in given if word not in options]
