"""Write the source tree of soul-deploy-runtime: what a device without PyTorch needs.

    python .ci/runtime_tree.py build/runtime && pip install build/runtime

It has the packages in `FOLDERS`, under the same names as in soul-deploy, so that programs need not
know which of the two is installed. What it requires stands in requirements-runtime.txt.
"""

import runpy
import shutil
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("soul_deploy/base", "soul_deploy/cli", "soul_deploy/ir", "runtime")
SINGLE = ("__init__.py", "__main__.py", "py.typed", "training/__init__.py", "training/recipes.py")
KEPT = {"soul_deploy", "soul_deploy.training"} | {f"soul_deploy.{Path(f).name}" for f in FOLDERS}
DESCRIPTION = "Run the event networks that soul-deploy exports, without PyTorch"


def kept(package: str) -> bool:
    """Whether a package of setup.cfg is part of the runtime."""
    return package in KEPT or package.startswith("soul_deploy.runtime.")


def described() -> ConfigParser:
    """setup.cfg of the runtime: the metadata of soul-deploy's, fewer packages."""
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    keep = {"metadata", "options", "options.package_data", "options.entry_points"}
    for section in set(config.sections()) - keep:
        config.remove_section(section)
    config["metadata"].update(
        {
            "name": "soul-deploy-runtime",
            "description": DESCRIPTION,
            "long_description": "file: README.md",
            "long_description_content_type": "text/markdown",
        }
    )
    packages = config["options"]["packages"].split()
    config["options"]["packages"] = "\n" + "\n".join(filter(kept, packages))
    config["options"]["package_dir"] = "\nsoul_deploy = soul_deploy"
    lines = (ROOT / "requirements-runtime.txt").read_text(encoding="utf-8").splitlines()
    needed = [line for line in lines if line and not line.startswith("#")]
    config["options"]["install_requires"] = "\n" + "\n".join(needed)
    return config


def write(target: Path) -> None:
    """Make `target` anew. Raises FileExistsError if something else is there."""
    if target.exists() and not (target / "setup.cfg").exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} is not empty, and no tree of this script")
    shutil.rmtree(target, ignore_errors=True)
    unkept = shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc")
    (target / "soul_deploy" / "training").mkdir(parents=True)
    for name in SINGLE:
        shutil.copy(ROOT / "soul_deploy" / name, target / "soul_deploy" / name)
    for source in FOLDERS:
        shutil.copytree(ROOT / source, target / "soul_deploy" / Path(source).name, ignore=unkept)
    shutil.copy(ROOT / "LICENSE", target)
    (target / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools>=77"]\nbuild-backend = "setuptools.build_meta"\n'
    )
    with (target / "setup.cfg").open("w", encoding="utf-8") as file:
        described().write(file)
    setup = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")
    page = (ROOT / "docs" / "device.md").read_text(encoding="utf-8")
    (target / "README.md").write_text(setup["rendered"](page, None), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "runtime"))
