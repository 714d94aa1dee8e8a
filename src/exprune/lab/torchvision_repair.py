"""Make ``import torchvision`` work with a torch build that does not fit its compiled operators."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

_libraries: list[Any] = []  # the schemas exist as long as these objects


def repair_torchvision() -> None:
    """Define the two operator schemas that torchvision's import needs, when it turns out that they are missing.

    torchvision registers fake kernels for ``nms`` and ``qnms`` at import. If its compiled library does not load (a CPU
    build of torch with torchvision from PyPI), this fails, and so does every import of lightning. Models, data sets and
    transforms need neither operator. An intact or absent torchvision is left alone, and nothing is imported early.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Find torchvision only, in the usual place; `_Loader` loads it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == "torchvision" else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        try:
            super().exec_module(module)
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            for name in [name for name in sys.modules if name.startswith("torchvision.")]:
                del sys.modules[name]
            _define_operators()
            super().exec_module(module)


def _define_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
