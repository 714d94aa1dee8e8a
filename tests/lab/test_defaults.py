"""The defaults of the command line are the defaults of the library."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.nn.utils import prune

from exprune.core import ExPrune, Heuristic, InputRule, Magnitude, Oracle, Threshold, find_sites, select_sites
from exprune.core.heuristics.calibrated_test import default_stages
from tests.cli import ROOT

GROUP = ROOT / "conf" / "exprune"


def configured(name: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        return compose("evaluate", overrides=[f"exprune={name}"]).exprune


NAMES = [path.stem for path in sorted(Path(GROUP).glob("*.yaml")) if path.stem != "none"]


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_the_librarys(name: str) -> None:
    settings = configured(name)
    kind: type[Heuristic] = get_class(settings.heuristic["_target_"])
    arguments = inspect.signature(kind).parameters
    passed = {key for key in settings.heuristic if key != "_target_"}
    # Statistics are measured, and set later; nothing else is out of reach of the command line.
    assert passed == set(arguments) - {"statistics"}
    knobs = {settings.knob: 0.0} if settings.get("knob") else {}
    heuristic = instantiate(settings.heuristic, _convert_="all", **knobs)
    for argument in passed - {settings.get("knob")}:  # the library has no default for the setting to vary
        default = arguments[argument].default
        given = OmegaConf.select(settings, argument)
        if argument == "stages":
            assert default is None and tuple(given) == default_stages(settings.order) == heuristic.stages
            assert kind(**knobs).stages == tuple(given)
        else:
            assert given == default, argument
    if knob := settings.get("knob"):
        assert arguments[knob].default in (None, inspect.Parameter.empty)
    assert settings.gain_ratio == kind.gain_ratio
    usual = inspect.signature(select_sites).parameters["scope"].default
    # Rules that choose inputs were made for all layers of a language model; TEAL's former name keeps its former scope.
    assert settings.scope == ("all" if issubclass(kind, InputRule) and kind is not Magnitude else usual)
    assert settings.sites is None


def test_a_run_that_is_told_no_gain_ratio_takes_the_heuristics() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 3)).eval()
    prune.l1_unstructured(network[2], "weight", amount=0.6)
    sites = find_sites(network, torch.randn(4, 8))
    for heuristic, other in ((Oracle(), 0.5), (Threshold(-0.1, 16), 1000.0)):

        def tested(gain_ratio: float | None, heuristic: Heuristic = heuristic) -> list:
            try:
                run = ExPrune(sites, heuristic, gain_ratio=gain_ratio)
            except ValueError:
                return []
            return [stage.tested.tolist() for count in run.flops.sites for stage in count.plan.stages]

        assert tested(None) == tested(heuristic.gain_ratio) != tested(other)
