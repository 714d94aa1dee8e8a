"""A measurement is kept and is the same from the cache, also for a pass that ended early or resumed."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

from exprune.core import Dominance, ExPrune, HeadRecorder, Threshold, find_sites
from exprune.lab.evaluation.curve import Curve, Point
from exprune.lab.evaluation.head import head_row
from exprune.lab.evaluation.store import measured
from exprune.lab.evaluation.subject import Inputs
from exprune.lab.tasks.task import AccuracyTask

SIZE, COUNT = 10, 6  # inputs of a batch, batches


class Classify(AccuracyTask):
    """Counts the predicted batches."""

    metric_name, unit = "accuracy", "row"

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(40, 64, bias=False), nn.ReLU(), nn.Linear(64, 8, bias=False), nn.ReLU()]
        super().__init__(nn.Sequential(*layers, nn.Linear(8, 5, bias=False)).eval())
        self.seen = 0

    def predict_step(self, batch: Tensor, index: int) -> dict[str, Tensor | int]:
        self.seen += 1
        logits = self.network(batch[:, :-1])
        return {"prediction": logits.argmax(1), "target": batch[:, -1].long(), "elementwise_flops": 0}


@pytest.fixture
def subject(cpu_trainer: Callable[..., lightning.Trainer], tmp_path: Path) -> Any:
    task = Classify()
    sites = find_sites(task.network, torch.randn(2, 40))
    return SimpleNamespace(
        trainer=cpu_trainer(), task=task, sites=sites, identity="here", cached=lambda name: tmp_path / "cache" / name
    )


@pytest.fixture
def inputs() -> Inputs:
    x = torch.randn(SIZE * COUNT, 40, generator=torch.Generator().manual_seed(1))
    labels = Classify().network(x).argmax(1, keepdim=True)  # of which the dense pass gets all right
    return Inputs(list(torch.cat([x, labels], dim=1).split(SIZE)))


BOLD = (Threshold(0.0, n=4), 1.0)  # stops half of the neurons, rightly or not


def same(one: Point, other: Point) -> bool:
    return (one.drop, one.saved) == (other.drop, other.saved) and (one.pruned is None) == (other.pruned is None)


def test_what_is_measured_is_not_measured_again(subject: Any, inputs: Inputs) -> None:
    first = Curve(subject, inputs).at(BOLD)
    assert subject.task.seen == 2 * COUNT and first.drop > 10 and 0 < first.saved < 1
    again = Curve(subject, Inputs([batch.clone() for batch in inputs.batches])).at(BOLD)
    assert subject.task.seen == 2 * COUNT and same(first, again)
    assert first.pruned is not None and again.pruned is not None
    assert (first.pruned.predictions == again.pruned.predictions).all() and first.pruned.seconds == again.pruned.seconds
    Curve(subject, Inputs(inputs.batches[:-1])).at((Threshold(-0.01, n=4), 1.0))
    assert subject.task.seen == 2 * COUNT + 2 * (COUNT - 1)


def test_a_pass_that_was_ended_early_goes_on(subject: Any, inputs: Inputs) -> None:
    """Whatever was measured before, a pass that a limit ends is ended at that limit and nowhere else."""
    drop = Curve(subject, inputs).at(BOLD).drop
    fresh = SimpleNamespace(**vars(subject) | {"identity": "elsewhere"})
    early, late = Curve(fresh, inputs, limit=drop / 4), Curve(fresh, inputs, limit=drop / 2)
    before = subject.task.seen
    assert early.at(BOLD) == early.at(BOLD) != Point(drop, 0.0) and math.isinf(early.at(BOLD).drop)
    ended = subject.task.seen - before
    assert 0 < ended < COUNT
    assert math.isinf(late.at(BOLD).drop) and ended < subject.task.seen - before < COUNT
    whole = Curve(fresh, inputs).at(BOLD)
    assert subject.task.seen - before == COUNT  # each batch once
    assert same(whole, Curve(subject, inputs).at(BOLD))
    assert math.isinf(early.at(BOLD).drop) and math.isinf(late.at(BOLD).drop)
    assert same(whole, Curve(fresh, inputs, limit=drop + 1).at(BOLD)) and subject.task.seen - before == COUNT


def test_what_a_head_counts_is_kept(subject: Any, inputs: Inputs) -> None:
    layer = subject.task.network[-1]
    with torch.no_grad(), HeadRecorder(layer, [2, 4]) as recorder:
        subject.task.network(torch.randn(500, 40, generator=torch.Generator().manual_seed(2)))

    def counted(tau: float) -> dict[str, Any]:
        head = Dominance(layer, recorder.statistics(), tau)
        run = ExPrune(subject.sites, None)
        found = measured(subject, inputs, run, head=head)
        return head_row(head, SIZE * COUNT) | {"predictions": found.predictions.tolist(), "dense": run.flops.dense}

    first = counted(0.3)
    assert subject.task.seen == COUNT and first["flops"]["saved"] != 0 and first["rows"] == SIZE * COUNT
    assert counted(0.3) == first and subject.task.seen == COUNT
    assert counted(0.2) != first and subject.task.seen == 2 * COUNT


def test_where_nothing_can_be_kept_it_is_measured_with_a_line(
    subject: Any, inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("in the way")
    curve = Curve(subject, inputs)
    assert same(curve.at(BOLD), curve.at(BOLD)) and subject.task.seen == 3 * COUNT
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("exprune")]
    assert len(lines) == 3 and all("cannot be written" in line and line.endswith("is not kept") for line in lines)
