"""Checkpoints of trained weights: the configuration they belong to, their location, and safe loading."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from exprune.core.errors import SettingError
from exprune.files import TORCH_FILES, check_file, load_tensors, named, save_tensors
from exprune.lab.training.masks import masked_layers, refresh_weights

# Settings of a data set that do not influence training, or that appear elsewhere (model.epochs, cutout).
_NOT_LEARNED = ("module", "task", "epochs", "cutouts", "eval_batch_size", "num_workers")

_RELEASED_BYTES = 25e6  # largest size of a released file


def training_config(cfg: DictConfig) -> dict[str, Any]:
    """The part of the configuration that determines what is learned, without the names of our classes.

    Settings that are null do not count, so that new optional settings do not change the names of existing checkpoints.
    Data without a training split names the data that its networks are trained on (``data.trained_as``).
    """
    model = OmegaConf.to_container(cfg.model, resolve=True)
    data: Any = OmegaConf.to_container(cfg.data.get("trained_as", cfg.data), resolve=True)
    data = {key: value for key, value in data.items() if key not in _NOT_LEARNED}
    static: Any = OmegaConf.to_container(cfg.static, resolve=True)
    static.pop("sparsities", None)  # `sparsity` holds the value in use
    return _settings({"model": model, "data": data, "static": static, "seed": cfg.seed})


def _settings(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _settings(value) for key, value in node.items() if key != "_target_" and value is not None}
    return node


def checkpoint_name(cfg: DictConfig) -> str:
    """``<model>-<data>-<static>-seed<N>-<digest of the training configuration>``."""
    config = training_config(cfg)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]
    return f"{cfg.model.name}-{config['data']['name']}-{cfg.static.name}-seed{cfg.seed}-{digest}"


def cached_path(cfg: DictConfig) -> Path:
    """The default file for the trained weights of this configuration, in the cache."""
    return Path(cfg.paths.cache_dir).expanduser() / "checkpoints" / f"{checkpoint_name(cfg)}.safetensors"


def find_checkpoint(cfg: DictConfig) -> Path | None:
    """The weights that ``checkpoint`` names, or else this configuration's in the cache, or else the released ones."""
    if cfg.checkpoint is not None:
        return Path(cfg.checkpoint).expanduser()
    cached = cached_path(cfg)
    for path in (cached, Path(cfg.paths.released) / cached.name):
        if path.exists():
            return path
        if parts := sorted(path.parent.glob(f"{path.stem}-1of*{path.suffix}")):
            return parts[0]
    return None


def save_weights(path: Path, network: nn.Module, cfg: DictConfig, dtype: str, history: dict[str, str]) -> Path:
    """Save the network's floating-point tensors as ``dtype``, with the training configuration; returns the file.

    For a layer with a mask, only the remaining weights are saved, and the mask as bits. In float16, which is used for
    released weights, no file exceeds 25 MB: larger networks are saved in parts, and the first part is the one to load.
    Tensors beyond the range of float16, such as the variances of an unnormalised layer, keep their type.
    """
    target = getattr(torch, dtype)
    weights = _weights_of(network)
    for name in masked_layers(network):
        mask = weights[f"{name}.weight_mask"].bool().cpu()
        weights[f"{name}.weight_orig"] = weights[f"{name}.weight_orig"].cpu()[mask]
        weights[f"{name}.weight_mask"] = torch.from_numpy(np.packbits(mask.numpy()))
    if (wrong := _not_finite(weights)) is not None:
        raise SettingError(f"{path}: {wrong}; nothing was written")
    weights = {name: _within(tensor, target) for name, tensor in weights.items()}
    about = {"config": json.dumps(training_config(cfg), sort_keys=True), **history}
    return save_tensors(path, weights, about, most=_RELEASED_BYTES if dtype == "float16" else math.inf)


def _weights_of(network: nn.Module) -> dict[str, Tensor]:
    """The network's state, each tensor once: a language head that is tied to the embedding is left out."""
    first: dict[int, str] = {}
    state = network.state_dict(keep_vars=True)
    for name, value in state.items():
        first.setdefault(id(value), name)
    return {name: state[name].detach() for name in first.values()}


def _within(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to ``dtype``, unless the tensor is not floating-point or would become infinite."""
    if not tensor.is_floating_point():
        return tensor
    converted = tensor.to(dtype)
    return converted if converted.isfinite().all() else tensor


def _not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The first tensor with values that are NaN or infinite, and their number; None if there is none."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and (wrong := int((~tensor.isfinite()).sum())):
            return f"{name!r} has {wrong} of {tensor.numel()} values that are NaN or infinite"
    return None


def load_weights(path: Path, network: nn.Module, model_name: str) -> dict[str, str]:
    """Load weights into the network, as float32; returns the metadata of the file.

    Files of torch.save (``.ckpt`` of Lightning, ``.pt``, ``.pth``) are read without executing code.

    Raises:
        SettingError: If the file is missing or truncated; if the weights belong to another model; if only one of
            weights and network has masks; or if a weight is NaN or infinite.
    """
    return named(path, lambda path: _load(path, network, model_name))


def _load(path: Path, network: nn.Module, model_name: str) -> dict[str, str]:
    ours = path.suffix not in TORCH_FILES
    weights, metadata = load_tensors(path) if ours else (_torch_weights(path, network), {})
    trained_as = json.loads(metadata.pop("config", "{}")).get("model", {}).get("name")
    if trained_as not in (None, model_name):
        raise SettingError(f"checkpoint={path}: weights of model={trained_as}, not of model={model_name}")
    own = _weights_of(network)
    masked = any(name.endswith(".weight_mask") for name in weights)
    if masked != bool(masked_layers(network)):
        is_, given = ("statically pruned", "static=none") if masked else ("dense", "static pruning")
        raise SettingError(f"checkpoint={path}: {is_} weights, but the network is configured with {given}")
    if weights.keys() != own.keys():
        name = min(weights.keys() ^ own.keys())
        where = "not in the network" if name in weights else "not in the checkpoint"
        raise SettingError(f"checkpoint={path}: not the weights of model={model_name}: {name!r} is {where}")
    if (wrong := _not_finite(weights)) is not None:
        raise SettingError(f"checkpoint={path}: {wrong}; train again, or name another checkpoint")
    for name in masked_layers(network) if ours else ():
        _unpack(weights, name, own[f"{name}.weight_mask"].shape, path)
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            raise SettingError(
                f"checkpoint={path}: {name!r} has shape {tuple(tensor.shape)}, "
                f"model={model_name} as configured needs {tuple(own[name].shape)}"
            )
    network.load_state_dict(weights, strict=False)  # the names were checked above; tied weights are left out
    refresh_weights(network)
    return metadata


def other_settings(path: Path, cfg: DictConfig) -> list[str]:
    """How the network that a checkpoint of ours was trained as differs from the configured one, setting by setting.

    Dropout is left out: it does nothing in an evaluation. Other files say nothing of their network.
    """
    if path.suffix in TORCH_FILES:
        return []
    saved = json.loads(load_tensors(path)[1].get("config", "{}")).get("model", {}).get("network")
    if saved is None:
        return []
    own = training_config(cfg)["model"].get("network", {})
    differ = sorted(
        name for name in saved.keys() | own.keys() if saved.get(name) != own.get(name) and name != "dropout"
    )
    return [f"model.network.{name}={saved.get(name, 'null')} (here {own.get(name, 'null')})" for name in differ]


def _torch_weights(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """The network's tensors from a file of torch.save. In a Lightning checkpoint, their names begin with ``network.``.

    Raises:
        SettingError: If the file does not exist, or holds anything other than tensors by name.
    """
    expected = "expected a file of train.py, a checkpoint of Lightning or a saved state_dict"
    check_file(path)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many types: truncated, another format, other objects
        raise SettingError(f"{path}: cannot be used ({_why(error)}); {expected}") from error
    if isinstance(saved, dict):
        saved = saved.get("state_dict", saved)
    if not isinstance(saved, dict) or not all(isinstance(value, Tensor) for value in saved.values()):
        raise SettingError(f"{path}: holds no tensors by name; {expected}")
    if any(name.startswith("network.") for name in saved):
        saved = {name.removeprefix("network."): v for name, v in saved.items() if name.startswith("network.")}
    tied = network.state_dict().keys() - _weights_of(network).keys()
    return {name: tensor for name, tensor in saved.items() if name not in tied}


def _why(error: Exception) -> str:
    """The reason in our own words, because torch advises to load the file anyway."""
    if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"loading it would execute {code[1]}, and weights are read without executing code"
    if "TorchScript" in str(error):
        return "a TorchScript archive contains code, and weights are read without executing code"
    return "truncated, or of another format"


def _unpack(weights: dict[str, Tensor], name: str, shape: torch.Size, path: Path) -> None:
    """Replace a layer's mask bits and its remaining weights by tensors of the weight's shape."""
    bits, left = weights[f"{name}.weight_mask"], weights[f"{name}.weight_orig"]
    mask = np.unpackbits(bits.numpy()).astype(bool)
    size = shape.numel()
    if not size <= len(mask) < size + 8 or mask[:size].sum() != len(left):
        raise SettingError(f"checkpoint={path}: the mask of {name!r} is not one of {tuple(shape)} weights")
    keep = torch.from_numpy(mask[:size]).view(shape)
    weight = torch.zeros(shape, dtype=left.dtype)
    weight[keep] = left
    weights[f"{name}.weight_mask"], weights[f"{name}.weight_orig"] = keep, weight
