"""Every command and every Python block of the documents is run, or says why not.

A page is a session: its blocks run in their order in one folder, into which `doc_pages.py` puts
what the reader is assumed to have.
"""

import re
import runpy
from pathlib import Path

import doc_pages
import pytest
import torch
from click.testing import CliRunner
from doc_blocks import PAGES, Block, blocks, unknown_words
from places import ROOT

from soul_deploy.cli.main import root

CHINESE = ROOT / "docs" / "zh"
RUN = tuple(page for page in PAGES if CHINESE not in page.parents and page.stem != "README.zh-CN")
QUICK = tuple(page for page in RUN if page.stem in doc_pages.QUICK)
PAIRS = [(page, ROOT / "docs" / page.name) for page in sorted(CHINESE.glob("*.md"))]
PAIRS.append((ROOT / "README.zh-CN.md", ROOT / "README.md"))


def runnable(page: Path, marks: tuple[str, ...]) -> list[Block]:
    return [block for block in blocks(page) if block.mark in marks]


def run(page: Path, found: list[Block], folder: Path) -> None:
    doc_pages.prepare(page.stem, folder)
    names: dict[str, object] = doc_pages.names(page.stem)
    for index, block in enumerate(found):
        where = f"{page.name}:{block.line}"
        if block.kind == "python":
            path = folder / f"block_{index}.py"
            path.write_text(block.text, encoding="utf-8")
            names |= runpy.run_path(str(path), init_globals=names)
            continue
        for words in block.commands:
            assert words[0] == "soul-deploy", f"{where}: {words[0]} is run by nobody; say why"
            done = CliRunner().invoke(root, words[1:])
            assert done.exit_code == 0, f"{where}: {' '.join(words)}\n{done.output}"


@pytest.mark.parametrize("page", QUICK, ids=lambda page: page.stem)
def test_the_blocks_of_a_page(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    found = runnable(page, ("",))
    assert found
    run(page, found, tmp_path)


SLOW = tuple(page for page in RUN if runnable(page, ("", "soak")))


@pytest.mark.soak
@pytest.mark.parametrize("page", SLOW, ids=lambda page: page.stem)
def test_all_blocks_of_a_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    run(page, runnable(page, ("", "soak")), tmp_path)


def test_every_command_in_the_documents_exists_with_its_options() -> None:
    """Those that are not run too, and those inside sentences and tables."""
    seen = 0
    for page in PAGES:
        if page.name == "CHANGELOG.md":  # of other times
            continue
        found = [" ".join(words) for b in blocks(page) if b.kind == "shell" for words in b.commands]
        found += re.findall(r"(?<!`)`(soul-deploy [^`]+)`", page.read_text(encoding="utf-8"))
        for line in found:
            for part in re.findall(r"(?:^|[;&|] *|-m )soul[-_]deploy +([^;&|]*)", line):
                words = part.replace("…", " ").replace("...", " ").split()
                seen += 1
                assert unknown_words(root, words) == [], f"{page.name}: {line}"
    assert seen > 120


def test_a_misspelt_option_would_be_seen() -> None:
    assert unknown_words(root, ["export", "onnx", "m", "--opsett", "17"]) == ["--opsett"]
    assert unknown_words(root, ["exprot", "onnx"]) == ["exprot"]
    assert unknown_words(root, ["train", "-T", "4", "--hidden=3"]) == []


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].stem)
def test_both_languages_show_the_same_commands(pair: tuple[Path, Path]) -> None:
    """In the same order, with the same marks; comments and pages without commands aside."""
    theirs, ours = ([(b.mark, re.sub(r" *#.*", "", b.text)) for b in blocks(page)] for page in pair)
    if pair[0] == ROOT / "README.zh-CN.md":
        ours = [block for block in ours if block in theirs]
        assert len(ours) == 3
    assert theirs == ours


def test_links_between_the_documents_lead_somewhere() -> None:
    """`make docs` checks those inside docs; here are all others, too."""
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)\s#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links {target}"
