"""The cache of measurements of a network, stored under the fingerprint of everything that determines them."""

from collections.abc import Callable
from typing import Any

from exprune.core import Dominance, ExPrune
from exprune.lab.evaluation.passes import Batches, Pass, run_pass
from exprune.lab.evaluation.subject import Inputs, Subject
from exprune.lab.fingerprint import fingerprint

FOLDER = "passes"  # in the cache folder


def measured(
    subject: Subject,
    inputs: Inputs,
    run: ExPrune | None = None,
    gain_ratio: Any = None,
    watch: Callable[[Batches], None] | None = None,
    head: Dominance | None = None,
) -> Pass:
    """The pass of a subject's network over some inputs, from the cache, or else run and stored there.

    An interrupted pass continues where it stopped.

    Args:
        subject: The trained network.
        inputs: The inputs.
        run: The context to run in, which gets the counts of the pass; None for the dense pass.
        gain_ratio: The gain ratio that ``run`` was made with.
        watch: Sees the results of the batches; see `run_pass`.
        head: A context for the head, which gets its counts.

    Raises:
        SettingError: If the network's output for some input is NaN or infinite.
    """
    of_head = None if head is None else [head.tau, head.stages, head.order, head.lines()]
    of_run = None if run is None else about(run, gain_ratio)
    file = subject.cached(f"{FOLDER}/{fingerprint(subject.identity, inputs.digest, of_run, of_head)[:16]}.pt")
    return run_pass(subject.trainer, subject.task, inputs.batches, run, file, watch, head)


def about(run: ExPrune, gain_ratio: Any) -> list[Any]:
    """Everything that distinguishes this pruned pass from others of the same network and inputs."""
    plans = {count.site.name: [count.stages, count.plan.by_input] for count in run.flops.sites}
    sites = [[site.name, site.reason, site.outcomes, plans.get(site.name)] for site in run.sites]
    return ["counted" if run.heuristic is None else "pruned", run.heuristic, run.taus, gain_ratio, sites]
