"""Decision tables: written, read, applied again, and refused where they do not fit."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from exprune.core import (
    Calibrated,
    DecisionTable,
    ExPrune,
    FromTables,
    Heuristic,
    Optimal,
    Prefix,
    Recorder,
    SettingError,
    Site,
    StatsTest,
    find_sites,
    load_tables,
    save_tables,
    select_sites,
    term_order,
)
from exprune.core.accounting.plan import Plan
from tests.core.activations import Gated
from tests.core.networks import scramble

STAGES = (2, 4, 6)


class Network(nn.Module):
    """A network with a ReLU, a gate with its factor, and layers that feed no activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.gated = nn.Linear(9, 9), nn.Linear(9, 2), Gated(fused=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gated(self.second(torch.relu(self.first(torch.tanh(x)))))


def made(order: str) -> tuple[Network, torch.Tensor, list[Site], dict]:
    torch.manual_seed(0)
    model, x = scramble(Network().double()), torch.randn(300, 9, dtype=torch.float64)
    sites = select_sites(find_sites(model, x), None, "all")
    variances = torch.ones(9, dtype=torch.float64)
    orders = {s.name: term_order(s, variances[: s.terms], order) for s in sites if s.eligible}
    with torch.no_grad(), Recorder(sites, STAGES, orders) as recorder:
        model(x)
    measured = recorder.statistics()
    gradient = {name: torch.rand(of.slope.shape[1], dtype=torch.float64) + 0.1 for name, of in measured.items()}
    return model, x, sites, {name: replace(of, gradient=gradient[name]) for name, of in measured.items()}


def outcome(model: nn.Module, x: torch.Tensor, run: ExPrune) -> tuple:
    with torch.no_grad(), run:
        out = model(x)
    return out.tolist(), run.flops.pruned, run.flops.dense, [count.stopped for count in run.flops.sites]


@pytest.mark.parametrize("order", ["input", "layer", "neuron", "model"])
@pytest.mark.parametrize("predict", [True, False])
def test_what_was_read_decides_as_what_was_written(order: str, predict: bool, tmp_path: Path) -> None:
    model, x, sites, measured = made(order)
    sites = sites if predict else select_sites(sites, ["first", "gated.gate"])
    run = ExPrune(sites, Optimal(1e-3, statistics=measured, predict=predict))
    want = outcome(model, x, run)
    assert sum(sum(stopped) for stopped in want[-1]) > 50
    save_tables(run.tables, tmp_path / "tables.safetensors")
    again = load_tables(tmp_path / "tables.safetensors")
    assert again.keys() == run.tables.keys() == measured.keys() & {site.name for site in sites if site.eligible}
    assert outcome(model, x, ExPrune(sites, FromTables(again))) == want
    assert outcome(model, x, ExPrune(sites, FromTables(pickle.loads(pickle.dumps(run.tables))))) == want


def test_what_its_author_solves_is_applied() -> None:
    """A heuristic that returns a table instead of deciding after each stage."""

    class HalfSum(Heuristic):
        def solve(self, site: Site, plan: Plan, tau: object) -> DecisionTable:
            none = torch.zeros(len(plan.stages), site.outputs, dtype=torch.float64)
            return DecisionTable(tuple(stage.n for stage in plan.stages), none + 0.5, none, below=none[None] - 0.1)

    class Same(Heuristic):
        def stop(self, seen: Prefix) -> torch.Tensor:
            return 0.5 * seen.s + seen.r < -0.1

    model, x, sites, _ = made("model")
    sites = select_sites(sites, "first")
    assert outcome(model, x, ExPrune(sites, HalfSum(n=4))) == outcome(model, x, ExPrune(sites, Same(n=4)))


def test_a_heuristic_that_decides_itself_has_no_tables() -> None:
    _, _, sites, measured = made("model")
    sites = select_sites(sites, "first")
    assert ExPrune(sites, StatsTest(0.1, n=4)).tables == {} == ExPrune(sites, None).tables
    assert list(ExPrune(sites, Calibrated(0.1, statistics=measured)).tables) == ["first"]


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    model, x, sites, measured = made("input")
    run = ExPrune(sites, Optimal(1e-3, statistics=measured, predict=True))
    path = tmp_path / "tables.safetensors"
    save_tables(run.tables, path)
    whole = path.read_bytes()
    for size in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(SettingError, match=r"tables\.safetensors: not a whole safetensors file"):
            load_tables(path)
    with pytest.raises(SettingError, match=r"nothing\.safetensors: no such file"):
        load_tables(tmp_path / "nothing.safetensors")
    with pytest.raises(SettingError, match="there is no decision table"):
        FromTables({})
    other = {"first": run.tables["gated.gate"]}
    with pytest.raises(SettingError, match="the decision table of first is of 5 outputs"):
        outcome(model, x, ExPrune(sites, FromTables(other)))
    with pytest.raises(SettingError, match="has no decision table"):
        ExPrune(select_sites(sites, "first"), FromTables({"gated.up": run.tables["gated.up"]}))


@pytest.mark.parametrize("order", ["input", "layer"])
def test_every_table_can_be_drawn(order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from exprune.lab.fronts import decision_chart

    _, _, sites, measured = made(order)
    run = ExPrune(sites, Optimal(1e-3, statistics=measured, predict=True))
    save_tables(run.tables, tmp_path / "tables.safetensors")
    sites_drawn = [name for name in run.tables if order == "input" or name in ("first", "gated.gate")]
    for name in sites_drawn:
        arguments = ["chart", str(tmp_path / "tables.safetensors"), name, "--plot", str(tmp_path / f"{name}.png")]
        monkeypatch.setattr("sys.argv", arguments)
        decision_chart.main()
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    monkeypatch.setattr("sys.argv", ["chart", str(tmp_path / "tables.safetensors"), "none"])
    with pytest.raises(SystemExit, match="error: none: no such site; there are first"):
        decision_chart.main()


@pytest.mark.parametrize("order", ["input", "layer"])
def test_a_layer_whose_terms_are_nearly_all_zero(order: str) -> None:
    """All terms but two are zero, so nothing is left after the first stage; the site is solved and its outputs stay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 5), nn.ReLU())
    with torch.no_grad():
        model[0].weight[2:] = 0
        model[0].bias[2:] = -1.0
    x = torch.randn(200, 6)
    sites = find_sites(model.eval(), x)
    orders = {site.name: term_order(site, torch.ones(site.terms), order) for site in sites if site.eligible}
    with torch.no_grad(), Recorder(sites, (2, 4), orders) as recorder:
        model(x)
    measured = {
        name: replace(of, gradient=torch.rand(of.slope.shape[1], dtype=torch.float64))
        for name, of in recorder.statistics().items()
    }
    with torch.no_grad():
        want = model(x)
        with ExPrune(sites, Optimal(1e-12, statistics=measured, predict=True)):
            torch.testing.assert_close(model(x), want)
