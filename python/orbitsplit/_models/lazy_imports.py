"""Imports that wait for a use: parts of torch and transformers that the processes of this package mostly do without.

transformers imports a compiler, distributed tensors and optimisers wherever a model is run: 3 seconds of a core and
120 MB. `install` makes these modules lazy in this process: importing one, or a name from it, gives an object that
stands for it, and the first use of that (a call, an attribute, a base class) imports the module. It is for processes of
our own, before they import torch; a program that uses this package decides for itself.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace
from typing import Any, Union

# With all modules below them.
LAZY_MODULES = (
    "accelerate",
    "scipy",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed._composable",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.onnx",
    "transformers.distributed.expert_parallel",
    "transformers.distributed.tensor_parallel",
    "transformers.utils.auto_docstring",
)
_STRUCTURE = "transformers.utils.import_utils"
_USED_OF_MODULES = ("__all__", "__version__")
_LOCK = threading.RLock()


def _unmarked(function: Any = None, *_args: Any, **_options: Any) -> Any:
    """Return a function as it is, or without one a decorator that does so."""
    return _unmarked if function is None else function


def _of_bools(answer: Callable[[Iterable[bool]], bool]) -> Callable[..., Any]:
    def stand_in(*values: Any, skip: int = 0) -> Any:
        return answer(values) if all(type(value) is bool for value in values) else NotImplemented

    return stand_in


def _same_sizes(first: Any, second: Any) -> Any:
    if type(first) is int and type(second) is int:
        return first == second
    if isinstance(first, (tuple, list)) and isinstance(second, (tuple, list)):
        is_plain = all(type(size) is int for size in (*first, *second))
        return tuple(first) == tuple(second) if is_plain else NotImplemented
    return NotImplemented


# What is used instead of a name whose module is still lazy; a function may return NotImplemented, which imports it.
# A compiler that is not imported compiles nothing, so its decorators have no effect and it has nothing to forget; where
# nothing is traced, conditions are plain; and nobody reads the docstrings of models here, which take 0.5 s to write.
_STAND_INS: dict[str, dict[str, Any]] = {
    "torch._dynamo": {
        **dict.fromkeys(("allow_in_graph", "assume_constant_result", "disable"), _unmarked),
        "mark_static_address": lambda *_args, **_options: None,
        "trace_rules": SimpleNamespace(clear_lru_cache=lambda: None),
    },
    "torch.fx.experimental.symbolic_shapes": {
        **dict.fromkeys(
            ("expect_true", "guard_or_false", "guard_or_true", "statically_known_true", "sym_and"), _of_bools(all)
        ),
        "sym_or": _of_bools(any),
        "is_nested_int": lambda value: False if type(value) is int else NotImplemented,
        "sym_eq": _same_sizes,
    },
    "transformers.utils.auto_docstring": {"auto_docstring": _unmarked},
}


def install() -> None:
    """Make `LAZY_MODULES` lazy in this process, those that it has not imported yet; after an import of torch none."""
    if "torch" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(root for root in LAZY_MODULES if root not in sys.modules))


class _Finder(MetaPathFinder):
    """Finds lazy modules in place of the usual finder, as long as they are lazy."""

    def __init__(self, roots: Iterable[str]) -> None:
        self.roots = set(roots)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's own place with another loader, None for a module that is not lazy, or not there."""
        if fullname == _STRUCTURE:
            return _remembering_structure(PathFinder.find_spec(fullname, path, target))
        root = next((root for root in self.roots if _is_within(fullname, root)), None)
        spec = None if root is None else PathFinder.find_spec(fullname, path, target)
        if root is None or spec is None:
            return None
        spec.loader = _Loader(self, root)
        return spec

    def load(self, root: str, name: str) -> ModuleType:
        """Import a lazy module, from here on with all others of its root as usual."""
        with _LOCK:
            if root in self.roots:
                self.roots.discard(root)
                for other in [other for other in sys.modules if _is_within(other, root)]:
                    if isinstance(sys.modules[other], _LazyModule):
                        del sys.modules[other]
        package, _, attribute = name.rpartition(".")
        hiding = vars(sys.modules[package]).get(attribute) if package in sys.modules else None
        module = importlib.import_module(name)
        if hiding is not None and not isinstance(hiding, ModuleType):  # a function of the module's own name
            setattr(sys.modules[package], attribute, hiding)
        return module


def _is_within(name: str, root: str) -> bool:
    return name == root or name.startswith(f"{root}.")


def _remembering_structure(spec: ModuleSpec | None) -> ModuleSpec | None:
    """Return the module's place, with two functions by which transformers reads the names in its own files replaced.

    It reads the 1,600 files of its models twice, because its cache of their folders has fewer places than folders, and
    splits each into lines to find the last list of names: 0.7 s of a core.
    """
    loader = None if spec is None else spec.loader
    if loader is not None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            cached: Any = getattr(module, "create_import_structure_from_path", None)
            if hasattr(cached, "__wrapped__"):
                vars(module)["create_import_structure_from_path"] = functools.cache(cached.__wrapped__)
            names_in: Any = getattr(module, "fetch__all__", None)
            if names_in is not None:
                vars(module)["fetch__all__"] = lambda text: names_in(text[text.rfind("\n__all__") + 1 :])

        vars(loader)["exec_module"] = exec_module
    return spec


class _Loader(Loader):
    """Makes a lazy module without executing anything."""

    def __init__(self, finder: _Finder, root: str) -> None:
        self._finder, self._root = finder, root

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the lazy module, to which the import system adds its place."""
        return _LazyModule(spec.name, self._finder, self._root)

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module as it is."""


class _LazyModule(ModuleType):
    """Stands for a module: its names stand for what the module has."""

    def __init__(self, name: str, finder: _Finder, root: str) -> None:
        super().__init__(name)
        self._orbitsplit_finder, self._orbitsplit_root = finder, root

    def __getattr__(self, name: str) -> Any:
        finder, root = self._orbitsplit_finder, self._orbitsplit_root
        if name.startswith("__") and name not in _USED_OF_MODULES:  # the import system and `inspect` ask for many
            raise AttributeError(name)
        if root not in finder.roots or name in _USED_OF_MODULES:
            return getattr(finder.load(root, self.__name__), name)
        return vars(self).setdefault(name, _LazyName(self, name))


class _LazyName:
    """Stands for a name of a lazy module, a class or a function.

    `isinstance` is answered without an import: of a class that is not imported there are no objects.
    """

    def __init__(self, module: _LazyModule, name: str) -> None:
        self._orbitsplit_module, self._orbitsplit_name = module, name
        self._orbitsplit_stand_in = _STAND_INS.get(module.__name__, {}).get(name)

    def _orbitsplit_value(self) -> Any:
        module = self._orbitsplit_module
        loaded = module._orbitsplit_finder.load(module._orbitsplit_root, module.__name__)
        return getattr(loaded, self._orbitsplit_name)

    def _orbitsplit_is_lazy(self) -> bool:
        return self._orbitsplit_module._orbitsplit_root in self._orbitsplit_module._orbitsplit_finder.roots

    def __getattr__(self, name: str) -> Any:
        stand_in = self._orbitsplit_stand_in
        if isinstance(stand_in, SimpleNamespace) and hasattr(stand_in, name) and self._orbitsplit_is_lazy():
            return getattr(stand_in, name)
        return getattr(self._orbitsplit_value(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if callable(self._orbitsplit_stand_in) and self._orbitsplit_is_lazy():
            result = self._orbitsplit_stand_in(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return self._orbitsplit_value()(*args, **kwargs)

    def __getitem__(self, key: Any) -> Any:
        return self._orbitsplit_value()[key]

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._orbitsplit_value(),)

    def __instancecheck__(self, instance: Any) -> bool:
        return not self._orbitsplit_is_lazy() and isinstance(instance, self._orbitsplit_value())

    def __subclasscheck__(self, subclass: type) -> bool:
        return not self._orbitsplit_is_lazy() and issubclass(subclass, self._orbitsplit_value())

    # In annotations, which are evaluated where functions are defined.
    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007
