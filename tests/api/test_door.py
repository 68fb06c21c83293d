"""The public names are the same in docs/python.md, by `dir` and for type checkers."""

import ast
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

import soul_deploy

SOURCE = Path(soul_deploy.__file__).read_text()


def typed(name: str, place: str) -> str:
    """The line by which type checkers know `name`, of "module:attribute" or a module."""
    module, _, attribute = place.partition(":")
    parent, _, leaf = module.rpartition(".")
    if not attribute:
        return f"from soul_deploy.{parent} import {leaf} as {name}"
    if attribute == name:
        return f"from soul_deploy.{module} import {name} as {name}"
    # `as` another name is not exported under mypy --strict.
    return f"from soul_deploy.{parent} import {leaf} as _{leaf}\n{name} = _{leaf}.{attribute}"


def test_type_checkers_see_the_names_that_are_loaded_on_first_use() -> None:
    (block,) = [node for node in ast.parse(SOURCE).body if isinstance(node, ast.If)]
    old = {name: f"deprecated:{name}" for name in soul_deploy._OLD}
    lines = "\n".join(typed(*named) for named in (soul_deploy._NAMES | old).items())
    assert sorted(map(ast.unparse, block.body)) == sorted(lines.splitlines())


def test_the_page_lists_the_names() -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    table = page.partition("## All names")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    listed = [name for cell in cells for name in re.findall(r"`(\w+)", cell)]
    assert sorted(listed) == [name for name in dir(soul_deploy) if name != "__version__"]
    assert len(listed) == len(set(listed))


def test_no_name_is_a_packages_too() -> None:
    """Importing a sub-package binds its name here: a function of that name would be gone."""
    for _, name, _ in pkgutil.iter_modules(soul_deploy.__path__):
        assert name == "errors" or name not in dir(soul_deploy), name


def test_each_name_is_there() -> None:
    for name in dir(soul_deploy):
        assert getattr(soul_deploy, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        _ = soul_deploy.prun  # type: ignore[attr-defined]


def test_importing_loads_no_library() -> None:
    code = "import sys, soul_deploy; print({'torch', 'numba', 'onnx', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
