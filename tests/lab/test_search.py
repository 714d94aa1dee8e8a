"""The search for one tau per site: its study, its trials, its front."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import lightning
import optuna
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from optuna.trial import TrialState, create_trial

from exprune.core.errors import SettingError
from exprune.lab.examples.molecules.task import GraphTask
from exprune.lab.selection.front import front, spread
from exprune.lab.selection.search import _halves, _spread
from exprune.lab.studies import finished, open_study
from tests.cli import TINY, CommandLine

SEARCH = ("evaluate.py", "model=gnn", "search=tpe", "logger=none", "seed=11", "search.max_drop=60", *TINY)
ABOUT = {"model": "gnn", "sites": ["a", "b"]}


def config(storage: str, **search: object) -> OmegaConf:
    search = {"name": "tpe", "storage": storage, "study": None, **search}
    return OmegaConf.create({"search": search, "seed": 0, "paths": {"cache_dir": "unused"}})


def study_of(points: list[tuple[float, float]]) -> optuna.Study:
    study = optuna.create_study(directions=("minimize", "maximize"))
    for drop, saved in points:
        study.add_trial(create_trial(values=[drop, saved]))
    study.add_trial(create_trial(state=TrialState.PRUNED))
    return study


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 5), st.integers(0, 6)), max_size=12))
def test_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    found = [tuple(trial.values) for trial in front(study_of(points), 3.0)]
    beaten = lambda p: any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)  # noqa: E731
    assert sorted(found, key=lambda p: p[1]) == found
    assert set(found) == {p for p in points if not beaten(p) and p[0] <= 3} and len(found) == len(set(found))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 5), st.integers(-1, 12)), max_size=12), st.integers(1, 5))
def test_spread_has_the_best_of_each_range_of_saving(points: list[tuple[int, int]], count: int) -> None:
    found = [tuple(trial.values) for trial in spread(study_of(points), 3.0, count)]
    within = [(drop, saved) for drop, saved in points if drop <= 3 and saved > 0]
    most = max((saved for _, saved in within), default=0)
    wanted = []
    for k in range(count):
        low, high = k * most, (k + 1) * most  # of count * saved
        there = [p for p in within if low <= count * p[1] < high or (k == count - 1 and p[1] == most)]
        wanted += [min(there, key=lambda p: (p[0], -p[1]))] if there else []
    assert found == wanted


def test_search_finds_measures_and_writes(command: CommandLine, session_cache: Path) -> None:
    """The front is chosen on validation and measured once on test; uniform settings come first."""
    storage = f"sqlite:///{command.folder / 'study.db'}"
    outcome = command(*SEARCH, "search.trials=12", "search.front=3", f"search.storage={storage}")
    assert outcome.code == 0, outcome.err
    (table,) = command.folder.rglob("front.csv")
    rows, trials = pd.read_csv(table), pd.read_csv(table.with_name("trials.csv"))
    assert len(trials) == 12 and 1 <= len(rows) <= 3
    taus = trials.filter(like="params_tau/").to_numpy()
    assert taus.shape == (12, 5) and (taus >= 0).all() and (taus <= 0.5).all()
    assert (taus[:10] == taus[:10, :1]).all() and (taus[0] == 0).all() and (taus[9] == 0.5).all()
    for _, row in rows.iterrows():
        files = [table.parent / part / f"{row.trial:05d}" / "result.json" for part in ("valid", "test")]
        results = [json.loads(file.read_text()) for file in files]
        assert [one["split"] for one in results] == ["valid", "test"]
        assert results[0]["metric"]["drop"] == pytest.approx(row.valid_drop, abs=1e-3)
        assert results[1]["metric"]["drop"] == pytest.approx(row.drop_points, abs=1e-3)
        assert 100 * results[1]["flops"]["saved"] == pytest.approx(row.saved_percent, abs=1e-3)
        assert set(results[1]["tau"]) == {f"convolutions.{k}.linear" for k in range(5)}
        # A trial's own figures are those of its setting on the validation split.
        trial = trials[trials.number == row.trial].iloc[0]
        assert trial.values_1 == pytest.approx(row.valid_saved_percent / 100, abs=1e-4)


PROMISE = ("data.limit=480", "data.eval_batch_size=40", "exprune.confidence=0.8")


def test_a_search_promises_on_what_it_did_not_see(command: CommandLine) -> None:
    settings = (*PROMISE, "exprune.target_drop=30", "search.trials=8", "search.max_drop=60", "search.front=6")
    outcome = command(*SEARCH, *settings, f"search.storage=sqlite:///{command.folder / 'study.db'}")
    assert outcome.code == 0, outcome.err
    (table,) = command.folder.rglob("front.csv")
    rows = pd.read_csv(table).sort_values("saved_percent")
    assert rows["promised"].dtype == bool and rows["promised"].iloc[0]
    assert rows["promised"].is_monotonic_decreasing  # a sequence, from what saves least


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("exprune.target_drop=0",), "cannot show a drop of at most 0 points with 0.8 probability; the smallest limit"),
        (("exprune.target_drop=null",), "exprune.confidence=0.8: needs a limit on the drop"),
        (("exprune.target_drop=1", "exprune.confidence=2"), "exprune.confidence=2: must be a probability"),
        (
            ("exprune.target_drop=1", "data.eval_batch_size=480"),
            "exprune.confidence=0.8: half of split=valid: it contains no",
        ),
    ],
)
def test_a_search_that_can_promise_nothing(command: CommandLine, settings: tuple[str, ...], words: str) -> None:
    storage = f"search.storage=sqlite:///{command.folder / 'study.db'}"
    outcome = command(*SEARCH, *PROMISE, "search.trials=8", "search.max_drop=60", *settings, storage)
    assert outcome.code == 1
    assert words in outcome.err and not list(command.folder.rglob("front.csv"))


def test_halves() -> None:
    batches = [torch.zeros(3, 1)] * 5
    assert [len(half) for half in _halves(batches)] == [3, 2]
    texts = [SimpleNamespace(groups=torch.tensor([k])) for k in range(5)]
    assert _halves(texts) == (texts[:2], texts[2:])  # a text may run on from one batch to the next


def test_a_killed_search_goes_on(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = f"sqlite:///{command.folder / 'study.db'}"
    step, seen = GraphTask.predict_step, []

    def die(self: GraphTask, batch: object, index: int) -> object:
        seen.append(index)
        if len(seen) == 6:
            raise RuntimeError("power cut")
        return step(self, batch, index)

    monkeypatch.setattr(GraphTask, "predict_step", die)
    with pytest.raises(RuntimeError, match="power cut"):
        command(*SEARCH, "search.trials=9", "search.front=1", f"search.storage={storage}")
    monkeypatch.setattr(GraphTask, "predict_step", step)
    (name,) = optuna.get_all_study_names(storage)
    before = [trial.values for trial in finished(optuna.load_study(study_name=name, storage=storage))]
    assert 0 < len(before) < 9
    outcome = command(*SEARCH, "search.trials=9", "search.front=1", f"search.storage={storage}")
    assert outcome.code == 0, outcome.err
    after = finished(optuna.load_study(study_name=name, storage=storage))
    assert len(after) == 9 and [trial.values for trial in after][: len(before)] == before


def test_what_an_interrupted_search_measured_is_not_measured_again(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, asked = lightning.Trainer.predict, []

    def counted(*arguments: object, **more: object) -> object:
        asked.append(1)
        return predict(*arguments, **more)

    monkeypatch.setattr(lightning.Trainer, "predict", counted)
    command.keeps_passes = True
    storage, run = f"sqlite:///{command.folder / 'study.db'}", command.folder / "run"
    arguments = (*SEARCH, "search.trials=9", "search.front=2", f"search.storage={storage}", f"hydra.run.dir={run}")
    assert command(*arguments).code == 0
    files = {path: json.loads(path.read_text()) for path in [*run.rglob("result.json")]}
    tables = {path: path.read_text() for path in (run / "front.csv", run / "trials.csv")}
    tests = sum("test" in path.parts for path in files)
    assert len(asked) == 9 + 1 + tests + 1  # trials and the dense passes: on validation the front was measured by them
    for path in (*files, *tables):
        path.unlink()
    asked.clear()
    assert command(*arguments).code == 0 and not asked
    assert {path: json.loads(path.read_text()) for path in files} == files
    assert {path: path.read_text() for path in tables} == tables
    lost = max(command.passes.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    lost.unlink()
    assert command(*arguments).code == 0 and len(asked) == 1
    assert command(*arguments, "bootstrap=60").code == 0 and len(asked) == 1  # another command, the same passes
    for path, before in files.items():
        after = json.loads(path.read_text())
        assert after["command"] != before["command"] and after["flops"] == before["flops"]


def test_two_workers_share_a_study(tmp_path: Path) -> None:
    """This also works if both create it at the same moment; neither repeats the other's settings."""
    storage = f"sqlite:///{tmp_path / 'study.db'}"

    def worker(number: int) -> None:
        study = open_study(config(storage), "shared", ABOUT)
        study.sampler.reseed_rng()
        study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)), n_trials=6)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(worker, range(2)))
    trials = finished(open_study(config(storage), "shared", ABOUT))
    assert len(trials) == 12
    assert len({tuple(trial.params.values()) for trial in trials}) == 12


def test_a_journal_is_a_storage(tmp_path: Path) -> None:
    where = str(tmp_path / "study.journal")
    study = open_study(config(where), "one", ABOUT)
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1.0), n_trials=2)
    assert len(finished(open_study(config(where), "one", ABOUT))) == 2


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    open_study(config(storage, study="mine"), "ignored", ABOUT)
    with pytest.raises(SettingError, match=r"search.study=mine: its trials are of another sites"):
        open_study(config(storage, study="mine"), "ignored", {**ABOUT, "sites": ["a"]})


def test_a_storage_that_cannot_be_reached(tmp_path: Path) -> None:
    missing = f"sqlite:///{tmp_path}/no/such/folder/study.db"
    for where in (missing, "postgresql://nobody@localhost:1/none", "nonsense://x"):
        with pytest.raises(SettingError, match=r"search\.storage=.*cannot be opened") as raised:
            open_study(config(where), "one", ABOUT)
        assert "\n" not in str(raised.value)


def test_hopeless_trials_are_stopped_early(command: CommandLine) -> None:
    """If no drop is allowed, a trial ends at the first batch with a drop; trials that stop no neuron complete."""
    storage = f"sqlite:///{command.folder / 'study.db'}"
    settings = [word for word in SEARCH if not word.startswith("search.max_drop")]
    settings += ["search.max_drop=0", "data.eval_batch_size=8", "search.trials=8", "search.front=2"]
    outcome = command(*settings, f"search.storage={storage}")
    assert outcome.code == 0, outcome.err
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    assert trials[0].state == TrialState.COMPLETE and trials[0].values[0] == 0
    assert any(trial.state == TrialState.PRUNED for trial in trials)


def test_a_search_is_a_wandb_run_with_its_front(command: CommandLine) -> None:
    """Offline, the files of the run contain the front as a chart and the tables of the front and the trials."""
    words = ["logger=wandb" if word == "logger=none" else word for word in SEARCH]
    storage = f"sqlite:///{command.folder / 'study.db'}"
    outcome = command(*words, "search.trials=8", "search.front=2", f"search.storage={storage}")
    assert outcome.code == 0, outcome.err
    (table,) = command.folder.rglob("front.csv")
    (run,) = table.parent.glob("wandb/offline-run-*/files/media")
    (front,) = run.glob("table/front/table_*.table.json")
    (trials,) = run.glob("table/trials_*.table.json")
    (chart,) = run.glob("plotly/front/*.plotly.json")
    assert len(json.loads(front.read_text())["data"]) == len(pd.read_csv(table))
    assert len(json.loads(trials.read_text())["data"]) == 8
    assert "gnn, seed 11, dense" in {trace["name"] for trace in json.loads(chart.read_text())["data"]}


def test_threshold_is_searched_in_the_scale_of_its_site(command: CommandLine) -> None:
    outcome = command(*SEARCH, "exprune=threshold", "search.trials=10", "search.front=1", "search=nsga2")
    assert outcome.code == 0, outcome.err
    (trials,) = command.folder.rglob("trials.csv")
    taus = pd.read_csv(trials).filter(like="params_tau/").to_numpy()
    assert (taus <= 0).all() and (taus[0] < 0).all() and (taus[9] == 0).all()
    assert len(set(taus[0])) == 5  # each site has its own


def test_masked_sites_search_their_gain_ratio(command: CommandLine) -> None:
    outcome = command(*SEARCH, "static=magnitude", "static.sparsity=0.3", "search.trials=9", "search.front=1")
    assert outcome.code == 0, outcome.err
    (trials,) = command.folder.rglob("trials.csv")
    gains = pd.read_csv(trials).filter(like="params_gain_ratio/").to_numpy()
    assert gains.shape == (9, 5) and (gains >= 0.1).all() and (gains <= 0.5).all()


def test_trials_see_evenly_spread_batches() -> None:
    batches = [(torch.zeros(10), k) for k in range(20)]
    assert [k for _, k in _spread(batches, 50)] == [0, 4, 8, 12, 16]
    assert len(_spread(batches, None)) == 20 and len(_spread(batches, 1000)) == 20 and len(_spread(batches, 1)) == 1


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("search.trials=0", "search.trials=0"),
        ("search.limit=0", "search.limit=0"),
        ("search.front=some", "search.front=some"),
        ("search.max_drop=-1", "search.max_drop=-1"),
        ("search.name=grid", "search.name=grid"),
        ("exprune=none", "nothing to search"),
        ("search=random", "search/random"),
    ],
)
def test_wrong_setting_is_one_line(command: CommandLine, setting: str, words: str) -> None:
    outcome = command(*SEARCH, setting)
    assert outcome.code == 1 and words in outcome.err
    assert "Traceback" not in outcome.err and outcome.err.strip().count("\n") == 0
