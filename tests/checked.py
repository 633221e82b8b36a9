"""Every function of the package is checked as it is called: types by beartype, and shapes, where an annotation has some, by jaxtyping.

jaxtyping's own import hook binds the signature of every call, and compiles its checks anew each time that a function makes a
function, which takes longer than small models do. Here functions within functions are left out.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

import jaxtyping
from beartype import beartype


def check(package: str) -> None:
    """Check a package, which is not imported yet, for as long as `jaxtyping.config` does not say otherwise."""
    sys.meta_path.insert(0, _Finder(package))


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.split(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Compiled from the source: what Python keeps beside it has no checks, and must get none."""
        tree = _Decorate().visit(ast.parse(self.get_data(self.path), self.path))
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)


class _Decorate(ast.NodeTransformer):
    """Puts `checked` next to each function, and before whatever makes a class a dataclass."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.decorator_list.append(_decorator(node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        if any("dataclass" in ast.unparse(one) for one in node.decorator_list):
            node.decorator_list.insert(0, _decorator(node))
        return node


def _decorator(at: ast.AST) -> ast.expr:
    return ast.copy_location(ast.parse("__import__('checked').checked", mode="eval").body, at)


def checked(made: Any) -> Any:
    """A function, or a dataclass with its `__init__`, checked."""
    if isinstance(made, type):
        made.__init__ = checked(made.__init__)  # type: ignore[misc]
        return made
    function: Callable[..., Any] = made
    if _has_shapes(function):
        return jaxtyping.jaxtyped(typechecker=beartype)(function)
    strict: list[Callable[..., Any]] = []

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        if not strict:  # now that all that annotations name is there
            strict.append(beartype(_without_unknown(function)))
        return strict[0](*args, **kwargs)

    return call


def _without_unknown(function: Callable[..., Any]) -> Callable[..., Any]:
    """Without annotations that name what only type checkers import."""
    known = vars(builtins).keys() | function.__globals__.keys()
    function.__annotations__ = {to: hint for to, hint in function.__annotations__.items() if _names(hint) <= known}
    return function


def _names(hint: object) -> set[str]:
    return {one.id for one in ast.walk(ast.parse(hint, mode="eval")) if isinstance(one, ast.Name)} if isinstance(hint, str) else set()


def _has_shapes(function: Callable[..., Any]) -> bool:
    """Whether a name in its annotations is one of jaxtyping's, or stands for one with a shape."""
    found = [function.__globals__.get(name) for hint in function.__annotations__.values() for name in _names(hint)]
    return any(isinstance(one, type) and (one.__module__.split(".")[0] == "jaxtyping" or hasattr(one, "dim_str")) for one in found)
