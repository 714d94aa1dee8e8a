"""Check settings that the command line adds with ``+``: something must read each of them."""

import inspect
from collections.abc import Iterator
from copy import deepcopy
from difflib import get_close_matches
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from exprune.errors import SettingError

Key = tuple[str, ...]

# Optional settings that the code reads. All other settings are in the files of conf, or nothing reads them.
_OPTIONAL = {"model.epochs", "model.precision", "model.pretrained", "data.task", "data.trained_as"}
_OPTIONAL |= {"exprune.knob", "exprune.levels"}
# Read if a setting is found for a target.
_WITH_KNOB = {
    f"exprune.{name}" for name in ("target_drop", "target_kl", "target_saved", "refine", "confidence", "grid")
}
# Mappings with arbitrary keys, such as the names of networks.
_OPEN = {"static.sparsities", "data.epochs", "data.cutouts", "data.trained_as"}
# Read by hydra.utils.instantiate itself.
_INSTANTIATE = {"_target_", "_args_", "_recursive_", "_convert_", "_partial_"}


def check_additions(cfg: DictConfig) -> None:
    """Check that each added setting is read by a constructor, by an interpolation, or by the code.

    Raises:
        SettingError: If nothing reads it; the message names the setting, and a similar one if there is any.
    """
    parser = OverridesParser.create()
    overrides = {text: parser.parse_override(text) for text in HydraConfig.get().overrides.task}
    added = {text: override for text, override in overrides.items() if _adds_value(override)}
    if not added:
        return
    without = _compose([text for text in overrides if text not in added])
    for text, override in added.items():
        for key in _leaves(tuple(override.key_or_group.split(".")), override.value()):
            new = _first_new(key, without)
            if new is not None and not _is_read(new, cfg):
                near = _near(new, cfg, without)
                meant = f"did you mean {near}?" if near else "--cfg job lists the settings that exist"
                raise SettingError(f"{text}: nothing reads a setting {'.'.join(new)}; {meant}")


def _adds_value(override: Override) -> bool:
    """Whether an override adds a setting, or a mapping of settings, rather than an option of a group."""
    if not (override.is_add() or override.is_force_add()):
        return False
    options = GlobalHydra.instance().config_loader().get_group_options(override.key_or_group)
    return not options or isinstance(override.value(), dict)


def _compose(overrides: list[str]) -> dict[str, Any]:
    name = HydraConfig.get().job.config_name
    composed = GlobalHydra.instance().config_loader().load_configuration(name, overrides, RunMode.RUN)
    return _plain(composed)


def _plain(cfg: DictConfig, resolve: bool = False) -> dict[str, Any]:
    container: Any = OmegaConf.to_container(cfg, resolve=resolve)
    container.pop("hydra", None)
    return container


def _leaves(key: Key, value: Any) -> Iterator[Key]:
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from _leaves((*key, str(name)), below)
    else:
        yield key


def _first_new(key: Key, node: Any) -> Key | None:
    """The shortest prefix of the key that is not in the configuration; None if the key is inside an existing value."""
    for depth, name in enumerate(key):
        if not isinstance(node, dict):
            return None
        if name not in node:
            return key[: depth + 1]
        node = node[name]
    return None


def _is_read(key: Key, cfg: DictConfig) -> bool:
    name = ".".join(key)
    optional = _OPTIONAL | (_WITH_KNOB if "knob" in cfg.exprune else set())
    if name in optional or any(name.startswith(f"{mapping}.") for mapping in _OPEN):
        return True
    return _is_argument(key, _plain(cfg)) or _is_interpolated(key, cfg)


def _is_argument(key: Key, node: dict[str, Any]) -> bool:
    """Whether a constructor takes it, or takes a mapping that contains it."""
    taken = False
    for depth, name in enumerate(key):
        if "_target_" in node:
            parameters = _parameters(node["_target_"])
            taken = name in _INSTANTIATE or parameters is None or name in parameters
        if depth < len(key) - 1:
            node = node[name]
    return taken


def _parameters(target: str) -> list[str] | None:
    """The parameter names of a function or class; None if it accepts any, or if they are unknown."""
    try:
        parameters = inspect.signature(get_object(target)).parameters.values()
    except (HydraException, ImportError, AttributeError, ValueError, TypeError):
        return None  # a wrong name is reported when it is called
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters]


def _is_interpolated(key: Key, cfg: DictConfig) -> bool:
    """Whether another setting changes, or cannot be resolved, without it."""
    without = deepcopy(cfg)
    OmegaConf.set_struct(without, False)
    rest = _plain(cfg, resolve=True)
    parents: list[Any] = [without, rest]
    for parent in parents:
        for name in key[:-1]:
            parent = parent[name]
        del parent[key[-1]]
    try:
        return _plain(without, resolve=True) != rest
    except Exception:  # an interpolation without a target, or a resolver that fails
        return True


def _near(key: Key, cfg: DictConfig, composed: dict[str, Any]) -> str | None:
    """The setting that was probably meant: one in the same group, or else in any."""
    group, own = key[:-1], key[-1]
    names = sorted(_names((), composed), key=lambda name: (len(name), name))
    siblings = [name[-1] for name in names if name[:-1] == group]
    node: Any = OmegaConf.select(cfg, ".".join(group)) if group else None
    if isinstance(node, DictConfig) and "_target_" in node:
        siblings += _parameters(node._target_) or []
    elsewhere = get_close_matches(own, [name[-1] for name in names], 1, cutoff=0.75)
    if (match := get_close_matches(own, siblings, 1)) and (group or not elsewhere):
        return ".".join((*group, match[0]))
    return next((".".join(name) for name in names if name[-1] in elsewhere), None)


def _names(key: Key, node: dict[str, Any]) -> Iterator[Key]:
    for name, below in node.items():
        yield (*key, name)
        if isinstance(below, dict):
            yield from _names((*key, name), below)
