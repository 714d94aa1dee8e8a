"""What is measured of a network lies in the cache, under the fingerprint of everything that decides it."""

from collections.abc import Callable
from typing import Any

from exprune.core import Dominance, ExPrune
from exprune.lab.evaluation.passes import Batches, Pass, run_pass
from exprune.lab.evaluation.subject import Inputs, Subject
from exprune.lab.fingerprint import fingerprint

FOLDER = "passes"  # in the cache


def measured(
    subject: Subject,
    inputs: Inputs,
    run: ExPrune | None = None,
    gain_ratio: Any = None,
    watch: Callable[[Batches], None] | None = None,
    head: Dominance | None = None,
) -> Pass:
    """The pass of the subject's network over the inputs, under ``run`` and ``head``, which then have its counts.

    It is read where it lies in the cache; else it is run, or goes on where it was interrupted, and is kept there.

    Args:
        run: None: the dense pass. ``gain_ratio`` is what it was made with.
        watch: sees what the batches give, as in :func:`~exprune.lab.evaluation.passes.run_pass`.

    Raises:
        SettingError: the network's output for some input is NaN or infinite.
    """
    of_head = None if head is None else [head.tau, head.stages, head.order, head.lines()]
    of_run = None if run is None else about(run, gain_ratio)
    file = subject.cached(f"{FOLDER}/{fingerprint(subject.identity, inputs.digest, of_run, of_head)[:16]}.pt")
    return run_pass(subject.trainer, subject.task, inputs.batches, run, file, watch, head)


def about(run: ExPrune, gain_ratio: Any) -> list[Any]:
    """All that tells this pruned pass from others of the network and the inputs, for its fingerprint."""
    plans = {count.site.name: [count.stages, count.plan.by_input] for count in run.flops.sites}
    sites = [[site.name, site.reason, site.outcomes, plans.get(site.name)] for site in run.sites]
    return ["counted" if run.heuristic is None else "pruned", run.heuristic, run.taus, gain_ratio, sites]
