"""Modules that run at the first access to one of their attributes: seaborn, which gymnax imports and uses in figures alone."""

import importlib.util
import sys
from types import ModuleType
from typing import Any


def defer(name: str) -> None:
    """Let `import name` succeed at once. A module that is loaded already, or that this process lacks, stays as it is."""
    if name not in sys.modules and importlib.util.find_spec(name) is not None:
        sys.modules[name] = _Deferred(name)


class _Deferred(ModuleType):
    """Stands in `sys.modules` until it is used; a module that imported it reads the real one through it."""

    def __getattr__(self, attribute: str) -> Any:
        name = self.__name__
        if sys.modules.get(name) is self:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)


defer("seaborn")  # with scipy.stats and pandas a third of `python -X importtime -c "import discover"`
