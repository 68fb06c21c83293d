"""Rules of the code base that a reader cannot check by eye."""

import ast
from importlib import import_module

import pytest
from jit import jit_decorations, name_of
from places import ROOT

SOURCES = sorted(
    path
    for folder in ("soul_deploy", "prune", "export", "runtime")
    for path in (ROOT / folder).rglob("*.py")
)


def _calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def breaks_fastmath_policy(decorator: ast.expr) -> bool:
    """Each kernel is declared by `cached_njit`, which alone says how kernels are compiled."""
    return not isinstance(decorator, ast.Name) or decorator.id != "cached_njit"


def test_every_kernel_is_compiled_in_the_one_way_and_without_fastmath() -> None:
    found, flags = [], []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        for name, decorator in jit_decorations(tree):
            found.append(name)
            assert not breaks_fastmath_policy(decorator), f"{path.name}: {name}"
        flags += [call.keywords for call in _calls(tree) if name_of(call.func) == "njit"]
    assert len(found) > 20
    ((parallel, fastmath),) = flags
    assert (parallel.arg, ast.unparse(parallel.value)) == ("nogil", "True")
    assert (fastmath.arg, ast.unparse(fastmath.value)) == ("fastmath", "FASTMATH")
    assert import_module("soul_deploy.runtime.kernels.cache").FASTMATH is False


@pytest.mark.parametrize("decorator", ["@njit", "@njit()", "@njit(fastmath=True)", "@numba.njit"])
def test_the_fastmath_check_can_fail(decorator: str) -> None:
    ((_, found),) = jit_decorations(ast.parse(f"{decorator}\ndef f(): pass"))
    assert breaks_fastmath_policy(found)


FORBIDDEN = {"eval", "exec", "compile", "__import__"}


def test_no_code_is_made_from_data_and_nothing_is_unpickled() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        for call in _calls(tree):
            name = name_of(call.func)
            if isinstance(call.func, ast.Name):
                assert name not in FORBIDDEN, f"{path.name}:{call.lineno} calls {name}"
            if isinstance(call.func, ast.Attribute) and name_of(call.func.value) == "pickle":
                raise AssertionError(f"{path.name}:{call.lineno} uses pickle.{name}")
            if isinstance(call.func, ast.Attribute) and name_of(call.func.value) == "torch":
                stated = {k.arg: k.value for k in call.keywords}
                safe = isinstance(flag := stated.get("weights_only"), ast.Constant) and flag.value
                assert name != "load" or safe, f"{path.name}:{call.lineno} torch.load"
                assert name != "save", f"{path.name}:{call.lineno} torch.save"
            if name == "load" and name_of(getattr(call.func, "value", call.func)) in (
                "np",
                "numpy",
            ):
                stated = {k.arg: k.value for k in call.keywords}
                flag = stated.get("allow_pickle")
                assert isinstance(flag, ast.Constant) and flag.value is False, (
                    f"{path.name}:{call.lineno} np.load without allow_pickle=False"
                )


def test_files_and_functions_stay_small() -> None:
    for path in SOURCES:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, f"{path.name} is {len(text.splitlines())} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                documented = ast.get_docstring(node) is not None
                first = node.body[1 if documented and len(node.body) > 1 else 0].lineno
                declares = path.parent.name == "cli"  # lists of options
                assert declares or node.end_lineno - first < 45, f"{path.name}: {node.name}"


def test_compiled_kernels_stand_in_one_package() -> None:
    """`kernels/cache.py` announces those of its own package only."""
    for path in SOURCES:
        if path.parent != ROOT / "runtime" / "kernels":
            assert not jit_decorations(ast.parse(path.read_text())), path
