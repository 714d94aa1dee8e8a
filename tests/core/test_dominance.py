"""Dominance prediction against its definition, one row and one logit at a time."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from exprune.core import Dominance, HeadRecorder, SettingError, SiteStatistics

STAGES = (2, 5, 9, 50)


class Classifier(nn.Module):
    def __init__(self, bias: bool = True, outputs: int = 6, terms: int = 12) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, terms), nn.Linear(terms, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)))


def trained(seed: int = 0, **options: int) -> tuple[Classifier, Tensor]:
    torch.manual_seed(seed)
    model = Classifier(**options).double().requires_grad_(False)
    model.head.weight *= 3
    return model, torch.randn(150, 4, dtype=torch.float64)


def recorded(model: Classifier, x: Tensor, order: Tensor | None = None, rows: Tensor | None = None) -> SiteStatistics:
    recorder = HeadRecorder(model.head, STAGES, order)
    recorder.rows = rows
    with recorder:
        model(x)
    return recorder.statistics()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tau", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("ordered", [False, True])
def test_each_logit_by_hand(bias: bool, tau: float, ordered: bool) -> None:
    model, x = trained(bias=bias)
    order = torch.randperm(12) if ordered else None
    run = Dominance(model.head, recorded(model, x, order), tau)
    with run:
        out = model(x)

    hidden = torch.relu(model.body(x))
    places = list(range(12)) if order is None else order.tolist()
    terms = [[[(w[c] * h[c]).item() for c in places] for w in model.head.weight] for h in hidden]
    biases = model.head.bias.tolist() if bias else [0.0] * 6
    u = statistics.NormalDist().inv_cdf(1 - tau)
    lines = {}
    for n in STAGES[:3]:
        for j in range(6):
            s, full = [sum(t[j][:n]) for t in terms], [sum(t[j]) for t in terms]
            slope, offset = statistics.linear_regression(s, full)
            left = [f - slope * v - offset for v, f in zip(s, full, strict=True)]
            lines[n, j] = slope, offset, math.sqrt(sum(v * v for v in left) / (len(left) - 2))
    spent, changed, dropped = 0, 0, [0, 0, 0]
    for row, t in enumerate(terms):
        alive, before = set(range(6)), 0
        for k, n in enumerate(STAGES[:3]):
            if len(alive) == 1:
                break
            spent += len(alive) * (2 * (n - before) + 5)
            before = n
            bounds = {}
            for j in alive:
                slope, offset, sd = lines[n, j]
                mean = slope * sum(t[j][:n]) + offset + biases[j]
                bounds[j] = mean - u * sd, mean + u * sd
            leader = max(low for low, _ in bounds.values())
            gone = {j for j in alive if bounds[j][1] < leader}
            dropped[k] += len(gone)
            alive -= gone
        if len(alive) > 1:
            spent += len(alive) * 2 * (12 - before)
        logits = [sum(t[j]) + biases[j] for j in range(6)]
        changed += max(range(6), key=logits.__getitem__) not in alive
        wanted = [logits[j] if j in alive else -math.inf for j in range(6)]
        assert out[row].tolist() == pytest.approx(wanted)
    assert (run.dropped, run.changed, run.decided) == (dropped, changed, len(x))
    assert (run.pruned_flops, run.dense_flops) == (spent, len(x) * 6 * 2 * 12)
    assert run.saved == 1 - spent / run.dense_flops
    assert sum(dropped) > 0


@given(seed=st.integers(0, 50), tau=st.floats(0, 0.5))
@settings(max_examples=25, deadline=None)
def test_one_logit_at_least_is_left_with_its_value(seed: int, tau: float) -> None:
    model, x = trained(seed)
    dense, run = model(x), Dominance(model.head, recorded(model, x), tau)
    with run:
        out = model(x)
    left = out > -torch.inf
    assert left.any(1).all()
    assert torch.equal(out[left], dense[left])
    assert run.changed == int((out.argmax(1) != dense.argmax(1)).sum())
    assert int((~left).sum()) == sum(run.dropped)
    assert torch.equal(model(x), dense)  # nothing stays behind
    if tau == 0:
        assert left.all() and run.saved < 0


def test_padding_is_left_alone_and_teaches_nothing() -> None:
    model, x = trained()
    rows = torch.arange(150) % 5 != 0
    of, alone = recorded(model, x, rows=rows), recorded(model, x[rows])
    torch.testing.assert_close(of.slope, alone.slope)
    run, same = (Dominance(model.head, of, 0.1) for _ in range(2))
    run.rows = rows.view(10, 15)
    with run:
        out = model(x.view(10, 15, 4)).view(150, 6)
    with same:
        wanted = model(x[rows])
    torch.testing.assert_close(out[rows], wanted)  # products with other numbers of rows differ in the last bits
    assert (out[~rows] > -torch.inf).all()
    assert (run.pruned_flops, run.dropped, run.decided) == (same.pruned_flops, same.dropped, same.decided)


def test_many_logits_go_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = trained()
    of, whole = recorded(model, x), Dominance(model.head, recorded(model, x), 0.1)
    with whole:
        out = model(x)
    monkeypatch.setattr("exprune.core.heuristics.dominance._CHUNK", 6 * 7)
    torch.testing.assert_close(recorded(model, x).sd, of.sd)
    parts = Dominance(model.head, of, 0.1)
    with parts:
        assert torch.equal(model(x), out)
    assert (parts.pruned_flops, parts.dropped) == (whole.pruned_flops, whole.dropped)


def test_what_is_wrong_is_said() -> None:
    model, x = trained()
    with pytest.raises(SettingError, match="a Linear layer, not ReLU"):
        HeadRecorder(nn.ReLU(), STAGES)
    with pytest.raises(SettingError, match="the head has one output"):
        HeadRecorder(nn.Linear(12, 1), STAGES)
    for stages in ((), (12,), (0, 3), (5, 2)):
        with pytest.raises(SettingError, match="ascending, from 1 to below the head's 12 terms"):
            HeadRecorder(model.head, stages)
    with pytest.raises(SettingError, match="99 rows of the head; at least 100"):
        recorded(model, x[:99])
    with pytest.raises(SettingError, match=r"tau=0\.6 of Dominance"):
        Dominance(model.head, recorded(model, x), 0.6)
    with pytest.raises(SettingError, match="statistics of 6 logits, but the head has 5"):
        Dominance(nn.Linear(12, 5), recorded(model, x), 0.1)
