"""What the packages export: a change of names is detected and must be in the changelog."""

import importlib

import pytest

PUBLIC = {
    "exprune.core": """
        Activation Calibrated CalibratedTest Cats Chess Choice DecisionTable Dominance ExPrune FlopReport FromTables
        HeadRecorder Heuristic InputRule InputVariances Magnitude Optimal Oracle Prefix RSparse Recorder
        SettingError Site SiteFlops SiteStatistics SquaredGradients StatsTest Teal Threshold TopK Wina
        find_sites load_tables register_activation save_tables select_sites term_order
    """,
    "exprune": "Calibration SettingError Tradeoff calibrate inspect prune tradeoff",
    "exprune.fast": "faster",
}


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(PUBLIC[package].split())
    assert all(getattr(module, name).__doc__ for name in module.__all__)


def test_a_former_name_goes_on_working_with_a_line() -> None:
    core = importlib.import_module("exprune.core")
    with pytest.warns(DeprecationWarning, match="is called FlopReport"):
        assert core.Flops is core.FlopReport
