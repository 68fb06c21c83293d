"""Compiled functions in source text."""

import ast


def name_of(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def jit_decorations(tree: ast.AST) -> list[tuple[str, ast.expr]]:
    """Every use of njit, jit or vectorize as a decorator, with the function's name."""
    return [
        (function.name, decorator)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for decorator in function.decorator_list
        if name_of(decorator.func if isinstance(decorator, ast.Call) else decorator)
        in ("cached_njit", "njit", "jit", "vectorize", "guvectorize")
    ]
