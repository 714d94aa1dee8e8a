"""Sweeps: what is collected at their end, what fails, the launchers, and the weights that jobs share."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb
from filelock import FileLock
from hydra_plugins.hydra_joblib_launcher import _core as joblib_launcher
from omegaconf import DictConfig

from exprune.lab import entry
from exprune.lab.examples.molecules.task import GraphTask
from exprune.lab.failures import known, recorded
from exprune.lab.fronts import sweep
from exprune.lab.training import trained
from tests.cli import TINY, CommandLine

SWEEP = ("evaluate.py", "-m", "model=gnn", "hydra.sweep.dir=s", *TINY)


def logs(folder: Path) -> str:
    """Return what the jobs below a folder logged."""
    return "".join(path.read_text() for path in sorted(folder.rglob("*.log")) if "wandb" not in path.parts)


def test_networks_on_different_data_are_one_table(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One W&B run per job and one for the sweep, in one group, all finished; one chart per data set."""
    runs, init = [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **kwargs: runs.append((kwargs, init(**kwargs))) or runs[-1][1])
    outcome = command(
        *(word for word in SWEEP if not word.startswith("model=gnn")),
        "model=gnn,vgg11_bn",
        "exprune.tau=0.3",
        "seed=11",
    )
    assert outcome.code == 0, outcome.err
    folder = outcome.folder / "s"
    table = pd.read_csv(folder / "pareto.csv")
    assert list(table["data"]) == ["digits", "nci"] and table["front"].all()
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")

    evaluations = [(kwargs, run) for kwargs, run in runs if kwargs["job_type"] == "evaluate"]
    assert len({run.id for _, run in evaluations}) == 2
    assert sorted(Path(kwargs["dir"]).name for kwargs, _ in evaluations) == ["0", "1"]
    assert [kwargs["job_type"] for kwargs, _ in runs].count("sweep") == 1
    assert {kwargs["group"] for kwargs, _ in runs} == {"s"} and wandb.run is None
    for _, run in runs:
        with pytest.raises(wandb.errors.UsageError, match="finished"):
            run.define_metric("a")
    (summary,) = folder.glob("wandb/offline-run-*")
    assert len(list(summary.glob("files/media/plotly/front/*.plotly.json"))) == 2
    (front,) = summary.glob("files/media/table/front/table_*.table.json")
    assert len(json.loads(front.read_text())["data"]) == 2


def test_a_job_with_a_bug_does_not_lose_the_others(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is listed, and its log contains the traceback; a later sweep in the same folder does not report it again."""
    step, fail = GraphTask.predict_step, [True]

    def once(self: GraphTask, batch: object, index: int) -> object:
        if fail:
            fail.pop()
            raise RuntimeError("cosmic ray\nsecond line")
        return step(self, batch, index)

    monkeypatch.setattr(GraphTask, "predict_step", once)
    settings = (*SWEEP, "exprune.tau=0.11,0.31", "seed=11", "logger=none")
    outcome = command(*settings)
    folder = outcome.folder / "s"
    assert outcome.code == 1
    assert outcome.err.splitlines() == [
        f"error: model=gnn {' '.join(TINY)} exprune.tau=0.11 seed=11 logger=none: RuntimeError: cosmic ray second line"
    ]
    assert "Traceback" in logs(folder / "0") and "second line" in logs(folder / "0")
    assert list(pd.read_csv(folder / "pareto.csv")["tau"]) == [0.31]

    (folder / "pareto.csv").unlink()
    with pytest.raises(SystemExit, match=r"error: .*exprune\.tau=0\.11 .*cosmic ray"):  # gathered again, later
        sweep.main([str(folder)])
    assert list(pd.read_csv(folder / "pareto.csv")["tau"]) == [0.31]

    (folder / "7").mkdir()  # as if that sweep had been a larger one
    shutil.copy(folder / "0" / "error.json", folder / "7")
    again = command(*settings)
    assert again.code == 0 and not again.err
    assert list(pd.read_csv(folder / "pareto.csv")["tau"]) == [0.11, 0.31]
    assert not (folder / "0" / "error.json").exists()


@pytest.mark.parametrize("script", ["evaluate.py", "train.py"])
def test_all_jobs_fail(command: CommandLine, script: str) -> None:
    outcome = command(script, *SWEEP[1:4], *TINY[:1], "model.epochs=0,-1", "seed=98", "logger=none")
    assert outcome.code == 1
    assert [line.rpartition(": ")[0].rpartition(": ")[2] for line in outcome.err.splitlines()] == [
        "model.epochs=0",
        "model.epochs=-1",
    ]
    assert all(line.startswith("error: model=gnn data.limit=64 ") for line in outcome.err.splitlines())
    assert not list(outcome.folder.rglob("pareto.*"))


def test_nothing_to_gather(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: .*no job of a sweep below it"):
        sweep.main([str(tmp_path)])
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "result.json").write_text("{")
    with pytest.raises(SystemExit, match=r"^error: .*0/result\.json: not a result\.json"):
        sweep.main([str(tmp_path)])


@pytest.mark.parametrize("setting", ["model=gnn,nosuch", "nosuch=a,b", "exprune.nosuch=1,2"])
def test_a_sweep_over_what_does_not_exist(command: CommandLine, setting: str) -> None:
    outcome = command("evaluate.py", "-m", "hydra.sweep.dir=s", "logger=none", *TINY, setting)
    assert outcome.code == 1
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ") and "nosuch" in line
    assert not outcome.runs() and not list(outcome.folder.rglob("error.json"))


def test_an_interrupted_sweep_stops(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is not counted as a failed job; the job that it interrupted is recorded as unfinished."""

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(GraphTask, "predict_step", interrupt)
    handler = signal.getsignal(signal.SIGINT)
    outcome = command(*SWEEP, "exprune.tau=0.1,0.2", "seed=11", "logger=none")
    signal.signal(signal.SIGINT, handler)  # Lightning turns Ctrl-C off
    assert outcome.code == 130 and not outcome.err
    (record,) = outcome.folder.rglob("error.json")
    assert "did not end" in json.loads(record.read_text())["error"]


@pytest.mark.parametrize("stop", [SystemExit(-1), KeyboardInterrupt()])
def test_an_exit_is_no_failure_of_the_job(tmp_path: Path, stop: BaseException) -> None:
    """Also if another exception replaces it on the way out; an exception that only follows another is a failure."""
    with pytest.raises(type(stop)) as raised, recorded(tmp_path, 0, "a=1"):
        try:
            raise stop
        finally:
            raise ConnectionResetError("in the finally of a library")
    assert raised.value is stop
    assert "did not end" in json.loads((tmp_path / "error.json").read_text())["error"]
    with recorded(tmp_path, 0, "a=1"):
        try:
            raise ValueError("first")
        finally:
            raise ConnectionResetError("second")
    assert "ConnectionResetError: second" in json.loads((tmp_path / "error.json").read_text())["error"]


def test_a_generator_that_is_closed_is_no_exit(tmp_path: Path) -> None:
    """Python closes it by GeneratorExit, which is not the job's exit: an exception raised meanwhile is a failure."""

    def batches() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise RuntimeError("a loader that cannot be closed")

    with recorded(tmp_path, 0, "a=1"):
        loader = batches()
        next(loader)
        loader.close()
    assert "RuntimeError: a loader" in json.loads((tmp_path / "error.json").read_text())["error"]


@pytest.fixture
def end_service(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Ends W&B's service, as a cluster does when it signals all processes of a job."""
    wandb.teardown()  # of an earlier test
    services = []

    class Noted(subprocess.Popen):
        def __init__(self, command: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(command, *args, **kwargs)
            if "wandb-core" in str(command[0]):
                services.append(self)

    def end() -> None:
        for service in services:
            service.terminate()
            service.wait()

    monkeypatch.setattr(subprocess, "Popen", Noted)
    return end


def test_a_job_outlives_the_service_of_wandb(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch, end_service: Callable[[], None]
) -> None:
    """A failure of the tracking fails no job, in training or evaluation, and the next job is tracked again."""
    for name in ("training_step", "predict_step"):
        step = getattr(GraphTask, name)
        monkeypatch.setattr(GraphTask, name, lambda *of, step=step: (end_service(), step(*of))[1])
    outcome = command(*SWEEP, "exprune.tau=0.12,0.32", "seed=3103")
    assert outcome.code == 0 and not outcome.err, outcome.err
    assert list(pd.read_csv(outcome.folder / "s" / "pareto.csv")["tau"]) == [0.12, 0.32]
    for job, runs in (("0", 2), ("1", 1)):  # the first trains, too
        assert logs(outcome.folder / "s" / job).count("W&B could not finish the run in") == runs
        assert len(list((outcome.folder / "s" / job).glob("wandb/offline-run-*"))) == runs


def test_an_error_without_a_file_says_what_it_says() -> None:
    """W&B raises without a file name where it has no folder of its own; the system's error names the folder."""
    assert known(PermissionError("no folder for staging\nset DIR")) == "no folder for staging set DIR"
    system = PermissionError(13, "Permission denied", "/there")
    assert known(system) == "/there: Permission denied; choose a folder that is writable"


def test_a_job_that_cannot_be_tracked_to_its_end(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where HOME is read-only, W&B has no folder for tables: the run prints one line, and the result."""

    def no_folder(*args: object, **kwargs: object) -> None:
        raise PermissionError("no folder for staging")

    monkeypatch.setattr(wandb.Table, "bind_to_run", no_folder)
    outcome = command("evaluate.py", "model=gnn", *TINY, "exprune.tau=0.12", "seed=11")
    assert outcome.code == 0 and not outcome.err, outcome.err
    assert outcome.runs()
    (line,) = [line for line in outcome.out.splitlines() if "W&B" in line]
    assert line.endswith("takes no more of this run, which goes on without it: no folder for staging")


def test_an_exit_after_the_end_of_the_service_of_wandb(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch, end_service: Callable[[], None]
) -> None:
    """submitit ends a job this way if SLURM will start it again."""

    def exits(*args: object) -> None:
        end_service()
        raise SystemExit(-1)

    monkeypatch.setattr(GraphTask, "training_step", exits)
    outcome = command(*SWEEP, "exprune.tau=0.12,0.32", "seed=3104")
    assert outcome.code == -1
    (record,) = outcome.folder.rglob("error.json")
    assert "did not end" in json.loads(record.read_text())["error"]


def test_a_launcher_that_dies(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may be killed, without any later callback of Hydra: the finished jobs are collected all the same."""
    job = entry.job

    def dies(task: str, cfg: DictConfig) -> None:
        if cfg.exprune.tau == 0.3:
            raise RuntimeError("a worker process was killed\nby the kernel")
        job(task, cfg)

    monkeypatch.setattr(entry, "job", dies)
    outcome = command(*SWEEP, "exprune.tau=0.1,0.3", "seed=11", "logger=none")
    assert outcome.code == 1
    last = outcome.err.splitlines()[-1]
    assert last == "error: the launcher stopped: RuntimeError: a worker process was killed by the kernel"
    assert list(pd.read_csv(outcome.folder / "s" / "pareto.csv")["tau"]) == [0.1]


@pytest.mark.parametrize("ends", ["returns nothing", "exits", "leaves no folder"])
def test_a_launcher_that_runs_no_job(command: CommandLine, monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    """Nothing failed and nothing was done: that is not a success."""

    def launch(*args: object, **kwargs: object) -> list:
        (command.folder / "s").mkdir(exist_ok=True)
        if ends == "exits":
            raise SystemExit
        if ends == "leaves no folder":
            shutil.rmtree(command.folder / "s")
        return []

    monkeypatch.setattr(joblib_launcher, "launch", launch)
    outcome = command(*SWEEP, "hydra/launcher=parallel", "exprune.tau=0.1,0.3", "logger=none")
    assert outcome.code == 1
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ") and "launcher" in line
    assert ("stopped before" if ends == "exits" else "ran none of the jobs") in line


@pytest.mark.skipif(shutil.which("srun") is not None, reason="there is SLURM here")
def test_slurm_where_there_is_none(command: CommandLine) -> None:
    outcome = command(*SWEEP, "hydra/launcher=slurm", "exprune.tau=0.1,0.3", "logger=none")
    assert outcome.code == 1
    (line,) = outcome.err.splitlines()
    assert "srun" in line


def test_jobs_in_parallel_train_once(command: CommandLine) -> None:
    """Two processes need the same weights at the same time: one trains, the other waits."""
    settings = ("hydra/launcher=parallel", "hydra.launcher.n_jobs=2", "exprune.tau=0.1,0.3", "seed=3101", "logger=none")
    outcome = command(*SWEEP, *settings)
    assert outcome.code == 0 and not outcome.err, outcome.err
    assert len(pd.read_csv(outcome.folder / "s" / "pareto.csv")) == 2
    assert logs(outcome.folder / "s").count("training gnn on nci") == 1


def test_submitit_without_slurm(command: CommandLine) -> None:
    """Jobs in processes that submitit starts: the failed one is listed, the others are collected."""
    outcome = command(*SWEEP, "hydra/launcher=submitit_local", "exprune.tau=0.7,0.3", "seed=11", "logger=none")
    assert outcome.code == 1
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: model=gnn") and line.endswith("tau=0.7 of StatsTest: must be a number in [0, 0.5]")
    assert list(pd.read_csv(outcome.folder / "s" / "pareto.csv")["tau"]) == [0.3]


def test_who_waits_for_weights_takes_them(command: CommandLine, session_cache: Path) -> None:
    """A job that finds its weights being trained says so, and does not train them again."""
    settings = ("evaluate.py", "model=gnn", "exprune.tau=0.1", "logger=none", *TINY)
    assert command(*settings, "seed=3102").code == 0
    (weights,) = (session_cache / "checkpoints").glob("gnn-nci-none-seed3102-*.safetensors")
    hidden, lock = weights.with_suffix(".hidden"), FileLock(weights.with_suffix(".lock"))
    weights.rename(hidden)
    lock.acquire()

    class FinishTraining(logging.Handler):
        """Does what the other job does at its end, once this one says that it waits."""

        def emit(self, record: logging.LogRecord) -> None:
            if "waiting" in record.getMessage():
                hidden.rename(weights)
                lock.release()

    handler = FinishTraining()
    trained.log.addHandler(handler)
    try:
        outcome = command(*settings, "seed=3102")
    finally:
        trained.log.removeHandler(handler)
    assert outcome.code == 0, outcome.err
    assert f"another job trains gnn on nci: waiting for {lock.lock_file}" in outcome.out
    assert "training gnn" not in outcome.out


def test_the_lock_of_a_killed_job_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.safetensors"
    monkeypatch.setattr(trained, "cached_path", lambda cfg: path)
    code = f"import os, filelock; filelock.FileLock({str(path.with_suffix('.lock'))!r}).acquire(); os.abort()"
    killed = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert killed.returncode < 0
    with trained._alone(None), pytest.raises(Exception, match="lock"):
        FileLock(path.with_suffix(".lock")).acquire(timeout=0.01)


@pytest.mark.slow
def test_every_network_dense_and_statically_pruned(command: CommandLine) -> None:
    grid = ("model=gnn,vgg11_bn,resnet18,opt", "static=none,magnitude", "exprune.tau=0.1,0.3")
    run = command("evaluate.py", "-m", *grid, "logger=none", "hydra.sweep.dir=sweep", *TINY)
    assert run.code == 0, run.err
    table = pd.read_csv(run.folder / "sweep" / "pareto.csv")
    assert len(table) == 16
    assert set(table["model"]) == {"gnn", "vgg11_bn", "resnet18", "opt"}
    assert sorted(table.loc[table["static"] == "magnitude", "sparsity"] > 0.4) == [True] * 8
