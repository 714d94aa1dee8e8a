"""Plain runs inside an allocation; on a real SLURM, if there is one, jobs that reach their time limit and resume.

On a cluster of several nodes, with FOLDER on a shared disk: pytest -m slow tests/lab/test_slurm.py --basetemp=FOLDER
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from exprune.lab.examples.molecules.task import GraphTask
from tests.cli import ROOT, TINY, CommandLine

STARTS = 3


@pytest.mark.parametrize("tasks_per_node", [None, "4"])
def test_a_plain_run_inside_an_allocation(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch, tasks_per_node: str | None
) -> None:
    """A run in the second of four tasks is not part of a distributed run."""
    task = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    for name, value in {**task, "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}.items():
        monkeypatch.setenv(name, value)
    if tasks_per_node is not None:
        monkeypatch.setenv("SLURM_NTASKS_PER_NODE", tasks_per_node)
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as at Lightning's import in that task
    seed = f"seed={3301 + (tasks_per_node is None)}"
    outcome = command("evaluate.py", "model=gnn", *TINY, "exprune.tau=0.1", seed, "logger=none")
    assert outcome.code == 0, outcome.err
    assert "training gnn on nci" in outcome.out and rank_zero_only.rank == 0


class OneEpochAStart(GraphTask):
    """Trains one epoch and then waits for the time limit, in all starts of a job but the last."""

    def on_train_epoch_start(self) -> None:
        last = int(os.environ.get("SLURM_RESTART_COUNT", 0)) == STARTS - 1
        if not last and self.trainer.fit_loop.epoch_progress.current.completed > self.begun:
            time.sleep(1000)

    def on_train_start(self) -> None:
        self.begun = self.trainer.fit_loop.epoch_progress.current.completed


def slurm_answers() -> bool:
    try:
        sinfo = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return bool(sinfo.stdout.strip())


def start_sweep(folder: Path, logger: str) -> subprocess.Popen:
    """Start two trainings of three epochs, on as many cores as there are."""
    (folder / logger).mkdir(parents=True)
    launcher = ("timeout_min=2", "signal_delay_s=1", "mem_gb=2", "cpus_per_task=1")
    settings = (
        *("hydra/launcher=slurm", *(f"hydra.launcher.{setting}" for setting in launcher), "hydra.sweep.dir=s"),
        *("model=gnn", "exprune.tau=0.1", *TINY, f"model.epochs={STARTS}", "seed=1,2", f"logger={logger}"),
        f"model.task._target_={__name__}.{OneEpochAStart.__name__}",
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "EXPRUNE_CACHE_DIR": str(folder / logger / "cache"),
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
    }
    command = [sys.executable, str(ROOT / "evaluate.py"), "-m", *settings]
    with (folder / logger / "printed").open("w") as printed:
        return subprocess.Popen(command, cwd=folder / logger, env=environment, stdout=printed, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_a_sweep_that_is_put_into_the_queue_twice(tmp_path: Path) -> None:
    """With and without W&B at the same time: W&B's service receives the signals that end the job, too."""
    if not slurm_answers():
        pytest.skip("no SLURM answers here")
    sweeps = {logger: start_sweep(tmp_path, logger) for logger in ("wandb", "none")}
    try:
        codes = {logger: sweep.wait(timeout=3600) for logger, sweep in sweeps.items()}
    finally:
        for sweep in sweeps.values():
            sweep.kill()
    printed = {logger: (tmp_path / logger / "printed").read_text() for logger in sweeps}
    assert codes == {"wandb": 0, "none": 0}, printed
    for logger in sweeps:
        folder = tmp_path / logger / "s"
        assert sorted(pd.read_csv(folder / "pareto.csv")["seed"]) == [1, 2]
        assert not list(folder.rglob("error.json"))
        for job in (folder / "0", folder / "1"):
            text = (job / "evaluate.log").read_text()
            assert text.count("Requeued job") == STARTS - 1
            assert text.count("resuming the interrupted training") == STARTS - 1
            assert [text.count(f"epoch {epoch + 1} of {STARTS}:") for epoch in range(STARTS)] == [1] * STARTS
            assert bool(list(job.glob("wandb/offline-run-*"))) == (logger == "wandb")
