"""Which names a chat template reads, beside those that it sets itself."""

from __future__ import annotations

from typing import Any

from jinja2 import meta, nodes

_ASKS = frozenset(("defined", "undefined", "default", "d"))
"""Tests and filters for what may have no value."""


def names_read(environment: Any, source: str) -> frozenset[str]:
    """Names that rendering looks up outside of the template, globals of the jinja2 environment aside.

    One that the template sets itself is among them only where it asks whether it has a value: jinja2 takes a name that
    is set in one branch and read behind it for one that may come from outside.
    """
    tree: nodes.Template = environment.parse(source)
    names, tests = tree.find_all(nodes.Name), tree.find_all((nodes.Test, nodes.Filter))
    own = {name.name for name in names if name.ctx == "store"}
    asked = {test.node.name for test in tests if test.name in _ASKS and isinstance(test.node, nodes.Name)}
    globals_: dict[str, Any] = environment.globals
    return frozenset(meta.find_undeclared_variables(tree) - (own - asked) - globals_.keys())
