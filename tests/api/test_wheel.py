"""What a user's own scripts see of the installed wheel: it runs them, and has types for them."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from places import ROOT

SECONDS = 900  # on a busy machine; kernels are compiled anew
FOLDERS = ("soul_deploy", "prune", "export", "runtime")
FILES = ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE")
FIRST = ("train", "prune_structured", "prune_unstructured", "export")  # the rest reads their files
EXAMPLES = sorted(
    (ROOT / "examples").glob("*.py"),
    key=lambda path: FIRST.index(path.stem) if path.stem in FIRST else len(FIRST),
)
RUN_ALL = (
    "import runpy, sys\nfor path in sys.argv[1:]:\n    runpy.run_path(path, run_name='__main__')\n"
)


def run(folder: Path, *command: object, **variables: object) -> str:
    """What a Python process printed that was started in `folder`; it must end with 0."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | {n: str(v) for n, v in variables.items()},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This tree as git checks it out where there are no symbolic links: files with their texts."""
    work = tmp_path_factory.mktemp("tree")
    for name in FOLDERS:
        unkept = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, work / name, symlinks=True, ignore=unkept)
    for name in FILES:
        shutil.copy(ROOT / name, work)
    links = [path for path in work.rglob("*") if path.is_symlink()]
    assert {path.name for path in links} == {"prune", "export", "runtime"}
    for path in links:
        text = os.readlink(path)
        path.unlink()
        path.write_text(text)
    return work


@pytest.fixture(scope="module")
def site(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel of this tree was installed."""
    work = tmp_path_factory.mktemp("wheel")
    run(work, "-m", "build", "--wheel", "--no-isolation", "--outdir", work / "dist", tree)
    (wheel,) = (work / "dist").glob("*.whl")
    run(work, *("-m", "pip", "install", "--quiet", "--no-deps", "--target", work / "site", wheel))
    return work / "site"


EDITABLE = """
import sys
from setuptools.build_meta import build_editable
build_editable(sys.argv[1])
"""
INSTALLED = """
import site, sys
from importlib import import_module
site.addsitedir(sys.argv[1])
sys.path.append(sys.argv[2])  # without what its .pth files do
for name in ("prune.removal.planner", "export.event.build", "runtime.engine.network", "cli.main"):
    print(import_module(f"soul_deploy.{name}").__file__)
"""


def test_neither_a_wheel_nor_an_editable_installation_needs_links(
    tree: Path, site: Path, tmp_path: Path
) -> None:
    """As `pip install` and `pip install -e` make them; both have all modules of the tree."""
    modules = {str(path.relative_to(site)) for path in (site / "soul_deploy").rglob("*.py")}
    here = {
        str(Path("" if name == "soul_deploy" else "soul_deploy", path.relative_to(tree)))
        for name in FOLDERS
        for path in (tree / name).rglob("*.py")
    }
    assert modules == here and len(modules) > 200
    run(tree, "-c", EDITABLE, tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    words = (tmp_path / "site", sysconfig.get_path("purelib"))
    found = run(tmp_path, "-S", "-c", INSTALLED, *words, PYTHONPATH="").split()
    places = [Path(path).relative_to(tree).parts[0] for path in found]
    assert places == ["prune", "export", "runtime", "soul_deploy"]


def test_the_runtimes_requirements_are_those_of_the_package() -> None:
    """requirements-runtime.txt repeats lines of setup.cfg, none of them with another version."""
    lines = [line.strip() for line in (ROOT / "setup.cfg").read_text().splitlines()]
    wanted = (ROOT / "requirements-runtime.txt").read_text().splitlines()
    wanted = [line for line in wanted if not line.startswith("#")]
    assert len(wanted) >= 7 and set(wanted) <= set(lines)


def readme_script() -> str:
    """The script that README opens with."""
    text = (ROOT / "README.md").read_text()
    return text.partition("```python\n")[2].partition("```")[0]


def test_the_scripts_are_typed(site: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """mypy --strict finds nothing in README's script and the examples, and each wrong name."""
    (tmp_path / "readme.py").write_text(readme_script())
    for path in EXAMPLES:
        shutil.copy(path, tmp_path)
    (tmp_path / "wrong.py").write_text("import soul_deploy\n\nsoul_deploy.lode('m')\n")
    assert pytestconfig.cache is not None
    kept = pytestconfig.cache.mkdir("mypy_of_wheel")
    mypy = ("-m", "mypy", "--strict", "--config-file=", "--cache-dir", kept)
    done = subprocess.run(
        [sys.executable, *map(str, mypy), *map(str, sorted(tmp_path.glob("*.py")))],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    errors = [line for line in done.stdout.splitlines() if " error: " in line]
    assert len(errors) == 1 and "wrong.py:3" in errors[0], done.stdout + done.stderr
    assert 'Module has no attribute "lode"' in errors[0]


def test_the_script_of_the_readme(site: Path, tmp_path: Path) -> None:
    lines = readme_script().strip().splitlines()
    assert len([line for line in lines if line.strip()]) <= 14
    check = "import soul_deploy\nprint(soul_deploy.__file__)\n"
    (tmp_path / "readme.py").write_text(readme_script() + check)
    printed = run(tmp_path, "readme.py", PYTHONPATH=site)
    assert printed.splitlines()[-1] == str(site / "soul_deploy" / "__init__.py")
    assert "passed" in printed


def test_the_examples(site: Path, tmp_path: Path) -> None:
    """One process, so that libraries are loaded once."""
    assert {path.stem for path in EXAMPLES} > set(FIRST)
    run(tmp_path, "-c", RUN_ALL, *EXAMPLES, PYTHONPATH=site)
