"""Run code once another module has been imported, without importing it here."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def after_import(name: str, do: Callable[[], object]) -> None:
    """Call `do` now if the module `name` is already loaded, else right after it is imported."""
    if name in sys.modules:
        do()
    else:
        sys.meta_path.insert(0, _Waiting(name, do))


class _Waiting(MetaPathFinder):
    """Finds one module as other finders do, makes its loader call `do`, and removes itself."""

    def __init__(self, name: str, do: Callable[[], object]):
        self.name, self.do = name, do

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            self.do()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
