"""Packages that are loaded when something of them is first used, not when another library imports them.

peft imports bitsandbytes wherever it is installed. Where nothing is quantised that costs time and memory, and
on processors with AVX512-BF16 it prints a line about a kernel that it could not fetch, at the head of every
command.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class DeferredModule(ModuleType):
    """Stands in `sys.modules` for a package until an attribute of it is asked for.

    Unlike the modules of `importlib.util.LazyLoader` it answers `__spec__` without loading: that is how
    libraries find out whether a package is installed.
    """

    def __init__(self, spec: ModuleSpec):
        super().__init__(spec.name)
        self.__spec__, self.__loader__, self.__file__ = spec, spec.loader, spec.origin

    def __getattr__(self, attribute: str) -> Any:
        """Loads the package and returns its attribute.

        Raises:
            AttributeError: for special names that only inspection asks for, and for those that the package
                has not.
        """
        name = self.__name__
        if attribute.startswith("__") and attribute not in ("__path__", "__version__"):
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        if sys.modules.get(name) is self:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)


class LoadedSubmodules(MetaPathFinder, Loader):
    """Answers `import package.part` where asking for the package's `__path__` has just loaded the part.

    The import system looks into `sys.modules` before it asks for the path and would run the part's code a
    second time.
    """

    def __init__(self, package: str):
        self.prefix = f"{package}."
        self.specs: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns a spec for a part that is loaded, None for every other module."""
        if target is not None or not name.startswith(self.prefix) or name not in sys.modules:
            return None
        self.specs[name] = sys.modules[name].__spec__
        return ModuleSpec(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Returns the part as it is loaded."""
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Runs nothing; gives the part its own spec again."""
        module.__spec__ = self.specs.pop(module.__name__)


def defer_import(name: str) -> None:
    """Lets `import name` load nothing until something of the package is used; nothing happens where it is
    loaded or missing.

    The package's own log is limited to errors.
    """
    if name in sys.modules or (spec := importlib.util.find_spec(name)) is None:
        return
    logging.getLogger(name).setLevel(logging.ERROR)
    sys.modules[name] = DeferredModule(spec)
    sys.meta_path.insert(0, LoadedSubmodules(name))
