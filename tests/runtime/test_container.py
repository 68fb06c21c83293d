"""A container of the runtime, as `examples/Dockerfile` makes it: its layers, imitated.

The file's own instructions are read: the image is a temporary folder, what it installs is a copy of
this tree, what it runs afterwards is run, and then all files get other times and nobody may write.
The installation itself is what `.ci/run` does for a device without PyTorch.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from glob import glob
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from deployed import SHAPE, make_files
from places import ROOT

import soul_deploy

DOCKERFILE = ROOT / "examples" / "Dockerfile"
NOBODY = 65534
PROGRAM = """
import json, os, sys
from contextlib import suppress
from importlib import import_module

modules, user, words = json.loads(sys.argv[1])
for name in modules:  # nobody may not enter a Python in somebody's home
    with suppress(ImportError):
        import_module(name)
if user is not None:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "onnx", "onnxruntime"):
            raise ModuleNotFoundError(f"no {name} in this image", name=name)

sys.meta_path.insert(0, Forbid())
from numba.core.event import install_recorder
from soul_deploy.cli.main import main
sys.argv[1:] = words
with install_recorder("numba:compile") as compiled:
    try:
        main()
    finally:
        import soul_deploy
        others = [name for name in sys.modules if not name.startswith("soul_deploy")]
        print(json.dumps([len(compiled.buffer), soul_deploy.__file__, others]), file=sys.stderr)
"""


class Image:
    """The last stage of the Dockerfile, at the folder `root`; built by `build`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.variables: dict[str, str] = {}
        self.entry: list[str] = []
        self.modules: list[str] = []

    def path(self, word: str) -> str:
        """A word of the Dockerfile, with folders of the image in their place."""
        return f"{self.root}{word}" if word.startswith("/") else word

    def build(self, nets: Path) -> None:
        """Do what the instructions say."""
        text = DOCKERFILE.read_text().replace("\\\n", " ")
        _, _, stage = text.rpartition("\nFROM ")
        for line in stage.splitlines()[1:]:
            instruction, _, rest = line.partition(" ")
            if instruction == "ENV":
                name, _, value = rest.partition("=")
                self.variables[name] = self.path(value)
            elif instruction == "COPY" and rest.startswith("nets "):
                shutil.copytree(nets, self.path(rest.split()[1]))
            elif instruction == "RUN" and rest.startswith("pip install"):
                self.install()
            elif instruction == "RUN":
                program, *words = shlex.split(rest)
                assert program == "soul-deploy"
                given = [glob(self.path(word)) or [self.path(word)] for word in words]
                done = self.run(*chain.from_iterable(given))
                assert done["code"] == 0, done
                self.modules = done["modules"]
            elif instruction == "ENTRYPOINT":
                self.entry = json.loads(rest)

    def install(self) -> None:
        """A copy of this tree, without what a checkout's runs left in it."""
        unkept = shutil.ignore_patterns("__pycache__")
        source, site = Path(soul_deploy.__file__).parent, self.root / "site" / "soul_deploy"
        shutil.copytree(source, site, ignore=unkept, dirs_exist_ok=True)

    def freeze(self) -> None:
        """What another layer and `--read-only` make of the files."""
        for path in [*self.root.rglob("*"), self.root]:
            os.utime(path, (1e9, 1e9))
            path.chmod(0o555 if path.is_dir() else 0o444)

    def run(self, *words: object, user: int | None = None) -> dict[str, Any]:
        """soul-deploy in the image: exit code, what is printed, how many kernels it compiles."""
        unset = {"NUMBA_CACHE_DIR", "NUMBA_DISABLE_JIT", "XDG_CACHE_HOME"}
        usual = {key: value for key, value in os.environ.items() if key not in unset}
        own = {"PYTHONPATH": str(self.root / "site"), "HOME": "/nonexistent"}
        given = json.dumps([self.modules, user, [str(word) for word in words]])
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, given], cwd="/", capture_output=True, text=True,
            env=usual | own | {"PYTHONDONTWRITEBYTECODE": "1"} | self.variables, check=False,
        )  # fmt: skip
        *said, last = done.stderr.splitlines()
        compiled, place, modules = json.loads(last)
        assert Path(place).is_relative_to(self.root)
        return {
            "code": done.returncode, "stdout": done.stdout, "said": said,
            "compiled": compiled, "modules": modules,
        }  # fmt: skip

    def files(self) -> dict[str, float]:
        """All that is there, with its time."""
        return {str(path): path.stat().st_mtime for path in self.root.rglob("*")}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The image, in a folder that every user may enter, with x.npy in it."""
    nets = tmp_path_factory.mktemp("nets")
    made = make_files(tmp_path_factory.mktemp("made"))
    shutil.copy(made.compact_event, nets / "net.event.safetensors")
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        found = Image(Path(folder) / "image")
        found.build(nets)
        x = np.random.default_rng(0).integers(0, 256, (3, *SHAPE)).astype(np.uint8)
        np.save(found.root / "x.npy", x)
        found.freeze()
        yield found
        for path in [found.root, *found.root.rglob("*")]:
            path.chmod(0o755)


@pytest.fixture(params=[None, NOBODY], ids=["the user of the tests", "nobody"])
def user(request: pytest.FixtureRequest) -> int | None:
    if request.param is not None and os.geteuid() != 0:
        pytest.skip("only root can start a process of another user")
    found: int | None = request.param
    return found


def words(image: Image) -> tuple[str, ...]:
    assert image.entry == ["soul-deploy"]
    net = str(image.root / "nets" / "net.event.safetensors")
    return "run", net, str(image.root / "x.npy"), "--counts", "--format", "json"


def test_a_start_compiles_nothing_and_writes_nothing(image: Image, user: int | None) -> None:
    before = image.files()
    assert any(name.endswith(".nbc") for name in before)
    done = image.run(*words(image), user=user)
    assert (done["code"], done["said"], done["compiled"]) == (0, [], 0)
    assert len(json.loads(done["stdout"])["results"]) == 3
    assert image.files() == before


def test_without_its_kernels_nobody_is_told_what_to_do(image: Image, tmp_path: Path) -> None:
    """Of other sources, then none; scores are the same."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process of another user")
    expected = image.run(*words(image), user=NOBODY)["stdout"]
    (kernels,) = image.root.glob("kernels/*")
    other = kernels.with_name(kernels.name[:-1] + "x")
    kernels.rename(other)
    try:
        done = image.run(*words(image), user=NOBODY)
    finally:
        other.rename(kernels)
    assert done["code"] == 0 and done["compiled"] > 5
    (line,) = done["said"]
    assert "at every start" in line and "NUMBA_CACHE_DIR" in line and "warm-up" in line
    assert f"those in {kernels.parent} are of other sources or versions" in line
    assert done["stdout"] == expected
