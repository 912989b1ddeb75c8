"""Read from a model's source which layers use the attention interface of transformers, and what they hand to it.

A forward pass would show the same. But the model may be too large for a forward, or have no weights yet (`meta`).
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import nn

INTERFACE = "ALL_ATTENTION_FUNCTIONS"
CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that look their attention function up under the name in the model's own config."""
    return [
        module
        for module in model.modules()
        if getattr(module, "config", None) is model.config and INTERFACE in _names(type(module))
    ]


def hands_on(model: nn.Module, layer: nn.Module, argument: str) -> bool:
    """Whether an argument of the model's forward gets through `layer` to its attention function.

    Every forward on the way must hand it on, by name or in its `**kwargs`. True where the source does not say.
    """
    steps: list[tuple[Any, str]] = [(type(module), child) for module, child in _way(model, layer)]
    steps.append((type(layer), INTERFACE))
    return all(_forward_hands_on(kind, child, argument) for kind, child in steps)


def is_local(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether the layer sees at most a window, however long the context: sliding-window and chunked layers."""
    if kwargs.get("sliding_window") is not None or getattr(module, "is_sliding", False):
        return True
    return getattr(module, "sliding_window", None) is not None


def without_positions(layer: nn.Module) -> str:
    return f"its {type(layer).__name__} hands no position_ids to the attention function."


def _names(kind: type[nn.Module]) -> tuple[str, ...]:
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return () if code is None else tuple(code.co_names)


def _way(model: nn.Module, layer: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The way from the model down to the layer: each module with a forward, and its attribute that leads on."""
    path = next(name for name, module in model.named_modules() if module is layer)
    owner, attribute, module = model, "", model
    for part in path.split(".") if path else ():
        attribute = attribute or part
        module = module.get_submodule(part)
        if not isinstance(module, CONTAINERS):
            yield owner, attribute
            owner, attribute = module, ""


@cache
def _forward_hands_on(kind: type[nn.Module], child: str, argument: str) -> bool:
    """Whether a call of `child` in the forward of `kind` has the argument; True if no such call is found."""
    forward = inspect.unwrap(kind.forward)
    try:
        tree: Any = ast.parse(textwrap.dedent(inspect.getsource(forward))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return True
    named = argument in inspect.signature(forward).parameters
    rest = None if named or tree.args.kwarg is None else tree.args.kwarg.arg  # may hold the unnamed argument
    calls = list(_calls(tree, child))
    return not calls or any(_has(call, argument, rest) for call in calls)


def _calls(tree: ast.AST, child: str) -> Iterator[ast.Call]:
    """Calls of `self.child`, of an item of `self.child`, and of variables that a loop or an assignment makes of it."""
    variables: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.For) and _mentions(node.iter, child):
            variables |= {name.id for name in ast.walk(node.target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and _makes(node.value, child):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            variables |= {target.id for target in targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            by_variable = isinstance(function, ast.Name) and function.id in variables
            by_item = isinstance(function, ast.Subscript) and _mentions(function.value, child)
            if by_variable or by_item or _is(function, child):
                yield node


def _makes(value: ast.AST, child: str) -> bool:
    """Whether the value is the child, an item of the child or a look-up in the interface, and not a call of it."""
    if isinstance(value, ast.Call):
        return child == INTERFACE and _mentions(value.func, child)
    return isinstance(value, ast.Subscript | ast.Attribute | ast.Name) and _mentions(value, child)


def _mentions(tree: ast.AST, child: str) -> bool:
    return any(_is(node, child) for node in ast.walk(tree))


def _is(node: ast.AST, child: str) -> bool:
    """Whether the node is `self.child`, or the global name of the interface."""
    if isinstance(node, ast.Attribute):
        return node.attr == child and isinstance(node.value, ast.Name) and node.value.id == "self"
    return child == INTERFACE and isinstance(node, ast.Name) and node.id == child


def _has(call: ast.Call, argument: str, rest: str | None) -> bool:
    if any(isinstance(value, ast.Name) and value.id == argument for value in call.args):
        return True
    for keyword in call.keywords:
        value = keyword.value
        if keyword.arg == argument:
            return not (isinstance(value, ast.Constant) and value.value is None)
        if keyword.arg is None and (not isinstance(value, ast.Name) or value.id == rest):  # `**something` else: unknown
            return True
    return False
