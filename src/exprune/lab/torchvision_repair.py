"""Make ``import torchvision`` work beside a torch build its compiled operators do not fit."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

_libraries: list[Any] = []  # the schemas live as long as these objects do


def repair_torchvision() -> None:
    """From now on define the two operator schemas that torchvision's import needs, where they turn out to be missing.

    torchvision registers fake kernels for ``nms`` and ``qnms`` at import. Where its compiled library does
    not load (a CPU build of torch beside the registry's torchvision), that fails, and with it every
    import of lightning. Models, data sets and transforms need neither operator. A healthy or an absent
    torchvision is left alone, and nothing is imported before someone asks for it.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds torchvision, and nothing else, where Python itself does; :class:`_Loader` loads it."""

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
