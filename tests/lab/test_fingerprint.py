"""A cached result is identified by all that determines it: another argument or another byte gives another key."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.data import Batch, Data

import exprune.core
from exprune.core import (
    Calibrated,
    CalibratedTest,
    ExPrune,
    Heuristic,
    InputRule,
    Optimal,
    Recorder,
    SiteStatistics,
    Threshold,
    find_sites,
)
from exprune.core.calibration.files import network_digest
from exprune.lab.evaluation.store import about
from exprune.lab.fingerprint import code_digest, fingerprint

STAGES = (2, 4)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)).eval()


def statistics(stages: tuple[int, ...] = STAGES) -> dict[str, SiteStatistics]:
    network, x = model(), torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    sites = find_sites(network, x)
    with torch.no_grad(), Recorder(sites, stages, {site.name: "input" for site in sites if site.eligible}) as recorder:
        network(x)
    return {
        name: replace(of, gradient=torch.ones(of.slope.shape[1], dtype=torch.float64))
        for name, of in recorder.statistics().items()
    }


def key(heuristic: Heuristic | None, gain_ratio: Any = 1.0) -> str:
    network, x = model(), torch.randn(4, 8)
    return fingerprint(about(ExPrune(find_sites(network, x), heuristic, gain_ratio=gain_ratio), gain_ratio))


HEURISTICS = [
    kind
    for kind in vars(exprune.core).values()
    if inspect.isclass(kind) and issubclass(kind, Heuristic) and kind not in (Heuristic, CalibratedTest, InputRule)
]
TABLES = ExPrune(find_sites(model(), torch.randn(4, 8)), Optimal(1e-9, STAGES, statistics())).tables
OTHER_TABLES = {"2": replace(TABLES["2"], offset=TABLES["2"].offset + 1e-9)}
OTHER_STATISTICS = {"2": replace(statistics()["2"], sd=statistics()["2"].sd + 1e-9)}
# By argument: a value, and others.
VALUES: dict[str, tuple[Any, ...]] = {
    "tau": (0.1, 0.2, 0.0, {"*": 0.1}),
    "n": (2, 3),
    "lam": (1e-9, 1e-8, 0.0),
    "stages": (STAGES,),
    "statistics": (statistics(), OTHER_STATISTICS),
    "tables": (TABLES, OTHER_TABLES),
    "tolerance": (0.05, 0.5, None),
    "ahead": (True, False),
    "predict": (False, True),
    "order": ("model", "input"),
    "divide": ("even", "greedy"),
    "rank": (2, 3),
    "finite_population": (False, True),
}


@pytest.mark.parametrize("kind", HEURISTICS)
def test_every_argument_of_every_heuristic_is_in_the_key(kind: type[Heuristic]) -> None:
    names = list(inspect.signature(kind).parameters)
    assert set(names) <= VALUES.keys(), "say here what a new argument may be"
    of = VALUES | ({"tau": (-0.1, -0.2, {"*": -0.1})} if kind is Threshold else {})
    given = {name: of[name][0] for name in names}
    variants = [{**given, name: value} for name in names for value in of[name][1:]]
    if "stages" in names:
        variants.append({**given, "stages": (2,), "statistics": statistics((2,))})
    keys = [key(kind(**one)) for one in (given, *variants)]
    assert len(set(keys)) == len(keys) > 1
    assert key(kind(**given)) == keys[0]


@pytest.mark.parametrize("what", [field.name for field in fields(SiteStatistics) if field.init])
def test_every_byte_of_the_statistics_is_in_the_key(what: str) -> None:
    first = Optimal(1e-9, STAGES, statistics())
    of = statistics()["2"]
    value = getattr(of, what)
    if isinstance(value, torch.Tensor):
        other: Any = value.clone()
        other.view(-1)[-1] = torch.nextafter(other.view(-1)[-1], torch.tensor(torch.inf).to(other))
    else:
        each, steps = torch.ones(10, dtype=torch.float64), torch.ones(1025, dtype=torch.float64)
        others = {"stages": (2, 5), "order": torch.arange(12), "gate": each, "factor": each, "weighed": steps}
        other = others[what]
    changed = {**statistics(), "2": replace(of, **{what: other})}
    assert fingerprint(first) != fingerprint(_with(first, changed))
    assert fingerprint(first) == fingerprint(_with(first, statistics()))


def _with(heuristic: Heuristic, measured: dict[str, SiteStatistics]) -> Heuristic:
    """Return the heuristic with statistics that a run would refuse."""
    other = object.__new__(type(heuristic))
    vars(other).update({k: measured if v is heuristic.statistics else v for k, v in vars(heuristic).items()})
    return other


def test_what_a_run_worked_out_is_in_no_key() -> None:
    network, x = model(), torch.randn(4, 8)
    sites = find_sites(network, x)
    heuristic = Optimal(1e-9, STAGES, statistics())
    before = fingerprint(heuristic)
    with torch.no_grad(), ExPrune(sites, heuristic):
        network(x)
    assert fingerprint(heuristic) == before


def test_the_sites_and_the_gain_ratio_are_in_the_key() -> None:
    sites = find_sites(model(), torch.randn(4, 8))
    fewer = [replace(site, reason="not selected") if site.name == "0" else site for site in sites]
    keys = [key(Threshold(-0.1, 2)), key(Threshold(-0.1, 2), 2.0), key(None)]
    keys.append(fingerprint(about(ExPrune(fewer, Threshold(-0.1, 2), gain_ratio=1.0), 1.0)))
    assert len(set(keys)) == len(keys)


class Mine(Heuristic):
    """A user's heuristic, which may keep any attribute."""

    def __init__(self, rule: Any) -> None:
        super().__init__(None, 2)
        self._rule = rule

    def stop(self, seen: Any) -> torch.Tensor:
        return torch.zeros_like(seen.s, dtype=torch.bool)


def test_a_heuristic_of_a_user() -> None:
    assert fingerprint(Mine({"a": np.arange(3)})) == fingerprint(Mine({"a": np.arange(3)}))
    assert fingerprint(Mine({"a": np.arange(3)})) != fingerprint(Mine({"a": np.arange(4)}))
    rule: Callable = lambda: 0  # noqa: E731
    assert fingerprint(Mine(rule)) != fingerprint(Mine(rule))  # what it does cannot be told


def test_plain_values_do_not_run_into_one() -> None:
    values = [None, "", b"", 0, 0.0, False, "0", [], {}, [[]], [0, 1], ["01"], ["0", "1"], {"0": 1}, [1, 0]]
    values += [torch.zeros(2), torch.zeros(2, 1), torch.zeros(2).double(), torch.zeros(3)]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint((1, 2)) == fingerprint([1, 2])


def test_batches_of_graphs_and_networks() -> None:
    def graphs(last: float) -> Batch:
        x = torch.tensor([[1.0], [last]])
        return Batch.from_data_list([Data(x=x, edge_index=torch.tensor([[0], [1]]))] * 2)

    assert fingerprint(graphs(2.0)) == fingerprint(graphs(2.0)) != fingerprint(graphs(3.0))
    other = model()
    assert network_digest(other) == network_digest(model())
    with torch.no_grad():
        other[0].weight[0, 0] += 1e-6
    assert network_digest(other) != network_digest(model())


def test_the_code_of_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This includes the code of a part of it, which a user changes between two runs."""
    file, keys = tmp_path / "of_a_user.py", []
    monkeypatch.syspath_prepend(str(tmp_path))
    for slope in (1, 1, 2):
        file.write_text(f"from torch import nn\n\nclass Half(nn.Linear):\n    slope = {slope}\n")
        keys.append(code_digest(nn.Sequential(importlib.import_module("of_a_user").Half(2, 2))))
    assert keys[0] == keys[1] != keys[2]


def test_a_heuristic_that_goes_on_to_another_run_forgets() -> None:
    """The other run has another price and statistics of another network, though the sites have the same names."""
    network, x = model(), torch.randn(64, 8)
    sites = find_sites(network, x)

    def flops(heuristic: Heuristic) -> int:
        with torch.no_grad(), ExPrune(sites, heuristic, gain_ratio=1000.0) as run:
            network(x)
        return run.flops.pruned

    def shifted() -> dict[str, SiteStatistics]:
        return {name: replace(of, offset=of.offset - 5) for name, of in statistics().items()}

    of = Calibrated(0.1, STAGES, statistics())
    before = flops(of)
    of.statistics = shifted()
    assert flops(of) == flops(Calibrated(0.1, STAGES, shifted())) < before
