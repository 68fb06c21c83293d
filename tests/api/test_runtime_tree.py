"""soul-deploy-runtime: the tree that `.ci/runtime_tree.py` writes, used as if it were installed."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

import soul_deploy


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("tree") / "runtime"
    subprocess.run([sys.executable, ROOT / ".ci" / "runtime_tree.py", target], check=True)
    return target


def python(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"PYTHONPATH": str(tree)}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=tree, env=variables, capture_output=True, text=True)


PROGRAM = """
import json, sys
from soul_deploy.cli.main import main
import soul_deploy

for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code
    print(code, file=sys.stderr, flush=True)
print(soul_deploy.load_network.__module__)
soul_deploy.train
"""


def test_what_a_device_needs_is_in_it_and_the_rest_is_told(tree: Path) -> None:
    here = [["--version"]]
    here += [[*words.split(), "--help"] for words in ("run", "warm-up", "inspect", "bench sparse")]
    elsewhere = [["train"], ["export", "onnx", "model.safetensors"]]
    done = python(tree, "-c", PROGRAM, json.dumps([*here, *elsewhere]))
    said = done.stderr.splitlines()
    assert said[: len(here)] == ["0"] * len(here)
    assert [said[len(here) + 1], said[len(here) + 3]] == ["2", "2"]
    for line, words in zip(said[len(here) :: 2], elsewhere, strict=False):
        assert f"soul-deploy {' '.join(words[:2])} needs more than soul-deploy-runtime" in line
    printed = done.stdout.splitlines()
    assert printed[0] == f"soul-deploy, version {soul_deploy.__version__}"
    assert printed[-1] == "soul_deploy.runtime.engine.network"
    assert said[-1].endswith(
        "soul_deploy.train is not part of soul-deploy-runtime; install soul-deploy"
    )


def test_both_distributions_in_one_place_are_one_warning(tree: Path) -> None:
    places = [tree / f"{name}-9.9.dist-info" for name in ("soul_deploy", "soul_deploy_runtime")]
    places[1].mkdir()
    assert python(tree, "-c", "import soul_deploy").stderr == ""
    places[0].mkdir()
    try:
        said = python(tree, "-c", "import soul_deploy, soul_deploy.runtime").stderr
    finally:
        for place in places:
            place.rmdir()
    assert said.count("UserWarning") == 1
    assert f"are both installed in {tree}" in said and "uninstall both" in said


def test_the_page_of_a_package_links_no_file_that_it_does_not_show(tree: Path) -> None:
    setup = runpy.run_path(str(ROOT / "setup.py"))
    pages = [(tree / "README.md").read_text()]
    for path in sorted(ROOT.glob("README*.md")):
        pages.append(setup["rendered"](path.read_text(), setup["source"]()))
    for page in pages:
        assert re.findall(r"\]\((?!https?:)(?!#)[^)]*\)", page) == []
    assert "docs/" in pages[1]
    absolute = setup["rendered"]("![a](docs/a.svg) [b](b.md#c) [d](https://e)", "https://f/")
    assert absolute == "![a](https://f/docs/a.svg) [b](https://f/b.md#c) [d](https://e)"
