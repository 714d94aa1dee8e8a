"""Tables and plots of many results."""

from pathlib import Path

import pandas as pd
import pytest

from exprune.core.errors import SettingError
from exprune.lab import pareto
from tests.cli import TINY, CommandLine


def test_a_sweep_becomes_a_table_and_a_plot(command: CommandLine, capfd: pytest.CaptureFixture[str]) -> None:
    sweep = command("evaluate.py", "-m", "model=gnn", "exprune.tau=0.1,0.3", "logger=none", "hydra.sweep.dir=s", *TINY)
    assert sweep.code == 0, sweep.err
    csv, plot = sweep.folder / "out" / "table.csv", sweep.folder / "out" / "front.png"
    pareto.main([str(sweep.folder / "s"), "--csv", str(csv), "--plot", str(plot)])
    assert "StatsTest" in capfd.readouterr().out
    table = pd.read_csv(csv)
    assert sorted(table["tau"]) == [0.1, 0.3]
    assert table["saved_percent"].is_monotonic_increasing
    assert (table["drop_low"] <= table["drop_high"]).all()
    assert not table["checkpoint"].str.contains("/").any()
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in csv.parent.iterdir()) == ["front.png", "table.csv"]


def test_results_that_do_not_belong_together(command: CommandLine) -> None:
    for split in ("test", "valid"):
        outcome = command("evaluate.py", "model=gnn", f"split={split}", "logger=none", *TINY)
        assert outcome.code == 0, outcome.err
    with pytest.raises(SettingError, match="different split"):
        pareto.gather([outcome.folder])


@pytest.mark.parametrize("content", [None, "", "{}", "[1]"])
def test_no_results(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(SettingError, match=r"result\.json"):
        pareto.gather([tmp_path])
    with pytest.raises(SystemExit, match="error: "):
        pareto.main([str(tmp_path)])
