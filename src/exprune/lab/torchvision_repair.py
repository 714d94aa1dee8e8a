"""Make ``import torchvision`` work beside a torch build its compiled operators do not fit."""

import importlib
import sys

import torch

_library: torch.library.Library | None = None  # the schemas live as long as this object does


def repair_torchvision() -> None:
    """Define the two operator schemas that torchvision's import needs, only where they are missing.

    torchvision registers fake kernels for ``nms`` and ``qnms`` at import. Where its compiled library does
    not load (a CPU build of torch beside the registry's torchvision), that fails, and with it every
    import of lightning. Models, data sets and transforms need neither operator. A healthy or an absent
    torchvision is left alone.
    """
    global _library
    try:
        importlib.import_module("torchvision")
        return
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "FRAGMENT")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("torchvision")
