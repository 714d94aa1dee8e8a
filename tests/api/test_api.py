"""The public calls of `exprune`, on networks and batches of many kinds."""

import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import exprune
from exprune.api.change import apart, summarised
from exprune.core import ExPrune, Optimal, SettingError


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(32, 96), nn.Tanh(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@lru_cache
def made() -> tuple[Classifier, Tensor, Tensor]:
    torch.manual_seed(0)
    model = Classifier()
    x = torch.randn(800, 32)
    y = (x[:, :5] + x[:, 5:10] * x[:, 10:15]).argmax(1)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), x, y


def pairs() -> list[tuple[Tensor, Tensor]]:
    _, x, y = made()
    return list(zip(x.split(100), y.split(100), strict=True))


@lru_cache
def calibrated() -> exprune.Calibration:
    return exprune.calibrate(made()[0], pairs())


def test_a_curve_is_what_a_run_at_each_price_gives() -> None:
    model, x, _ = made()
    calibration = calibrated()
    assert calibration.measure == "kl"
    curve = exprune.tradeoff(model, calibration, pairs())
    assert [point.price for point in curve.points] == sorted(point.price for point in curve.points)
    saved = [point.flops.saved for point in curve.points]
    assert saved == sorted(saved) and saved[-1] > saved[0] + 0.2
    sites = calibration.sites(model, calibration.batches)
    for point in curve.points:
        run = ExPrune(sites, Optimal(point.price, statistics=calibration.statistics, predict=True))
        with torch.no_grad():
            dense = model(x).log_softmax(-1)
            with run:
                pruned = model(x).log_softmax(-1)
        kl = (dense.exp() * (dense - pruned)).sum(-1).clamp(min=0).double()
        assert (run.flops.pruned, run.flops.dense) == (point.flops.pruned, point.flops.dense)
        assert point.change.mean == pytest.approx(float(kl.mean()), rel=1e-3, abs=1e-9)
        assert point.change.largest == pytest.approx(float(kl.max()), rel=1e-3, abs=1e-9)
        assert point.change.same == pytest.approx(float((dense.argmax(1) == pruned.argmax(1)).double().mean()))
        assert point.change.low <= point.change.mean <= point.change.high
        assert point.change.examples == len(x)


def test_a_target_is_kept_on_the_batches_it_was_found_on() -> None:
    model, _, _ = made()
    calibration = calibrated()
    for target in ({"kl": 0.02}, {"saved": 0.3}):
        run = exprune.prune(model, calibration, **target)
        found_on = exprune.tradeoff(model, calibration, pairs()[::2], prices=[run.price]).points[0]
        tried_on = exprune.tradeoff(model, calibration, pairs()[1::2], prices=[run.price]).points[0]
        assert run.point is not None
        assert (run.point.flops.pruned, run.point.change) == (tried_on.flops.pruned, tried_on.change)
        if "kl" in target:
            assert found_on.change.mean <= 0.02
            bolder = exprune.tradeoff(model, calibration, pairs()[::2], prices=[run.price * 1.2]).points[0]
            assert bolder.change.mean > 0.02
        else:
            assert found_on.flops.saved >= 0.3


def test_a_metric_of_the_users() -> None:
    model, _, _ = made()
    right = lambda out, batch: (out.argmax(1) == batch[1]).float()  # noqa: E731
    curve = exprune.tradeoff(model, calibrated(), pairs(), metric=right)
    for point in curve.points:
        assert point.metric is not None and point.metric.measure == "metric"
        assert point.metric.low <= point.metric.mean <= point.metric.high
    assert curve.points[-1].metric.mean > curve.points[0].metric.mean
    run = exprune.prune(model, calibrated(), drop=0.05, metric=right)
    assert run.point is not None and run.point.metric is not None


def test_printed_drawn_and_as_a_table(tmp_path: Path) -> None:
    curve = exprune.tradeoff(made()[0], calibrated(), pairs(), prices=[1e-9, 1e-7])
    lines = str(curve).splitlines()
    assert len(lines) == 3 and "saved" in lines[0] and "the same prediction" in lines[1]
    table = curve.to_pandas()
    assert list(table.price) == [1e-9, 1e-7] and table.saved.notna().all()
    curve.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5_000


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    model, _, _ = made()
    calibration = calibrated()
    calibration.save(tmp_path / "c.safetensors")
    again = exprune.Calibration.load(tmp_path / "c.safetensors")
    one, other = (exprune.tradeoff(model, c, pairs(), prices=[1e-7]).points[0] for c in (calibration, again))
    assert (one.flops.pruned, one.change) == (other.flops.pruned, other.change)
    with pytest.raises(SettingError, match="knows no batches: give some with batches="):
        exprune.prune(model, again, kl=0.1)
    whole = (tmp_path / "c.safetensors").read_bytes()
    for size in (0, 5, 200, len(whole) - 3):
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        with pytest.raises(SettingError, match=r"cut\.safetensors: not a whole safetensors file"):
            exprune.Calibration.load(tmp_path / "cut.safetensors")


def test_the_same_seed_measures_the_same() -> None:
    model, _, _ = made()
    again, other = exprune.calibrate(model, pairs()), exprune.calibrate(model, pairs(), seed=1)
    for name, of in calibrated().statistics.items():
        assert torch.equal(of.gradient, again.statistics[name].gradient)
        assert not torch.equal(of.gradient, other.statistics[name].gradient)


class Graphs(nn.Module):
    """A network that is called like those of PyTorch Geometric."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 64), nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor | None = None) -> Tensor:
        x = torch.relu(self.first(x))
        x = x.index_add(0, edge_index[1], x[edge_index[0]])
        return self.head(torch.relu(self.second(x)))


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mlp = nn.Embedding(50, 48), nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 50))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.mlp(self.embed(input_ids))}


def graph_batches() -> list[Any]:
    from torch_geometric.data import Data

    return [Data(x=torch.randn(40, 12), edge_index=torch.randint(0, 40, (2, 90))) for _ in range(6)]


def of_tokens() -> list[dict[str, Tensor]]:
    mask = torch.ones(8, 20, dtype=torch.long)
    mask[::2, 14:] = 0
    return [{"input_ids": torch.randint(0, 50, (8, 20)), "attention_mask": mask, "labels": mask} for _ in range(5)]


KINDS = {
    "tensors": (Classifier, lambda: [torch.randn(50, 32) for _ in range(6)], "relative"),
    "one tensor": (Classifier, lambda: torch.randn(300, 32), "relative"),
    "labels": (Classifier, lambda: [(torch.randn(50, 32), torch.randint(0, 5, (50,))) for _ in range(6)], "kl"),
    "loader": (
        Classifier,
        lambda: DataLoader(TensorDataset(torch.randn(300, 32), torch.randint(0, 5, (300,))), 50, shuffle=True),
        "kl",
    ),
    "generator": (Classifier, lambda: (torch.randn(50, 32) for _ in range(6)), "relative"),
    "mapping": (Keyword, of_tokens, "kl"),
    "graphs": (Graphs, graph_batches, "relative"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_as_people_have_them(kind: str) -> None:
    network, batches, measure = KINDS[kind]
    torch.manual_seed(0)
    model = network().eval()
    calibration = exprune.calibrate(model, batches())
    assert calibration.measure == measure
    assert calibration.statistics
    curve = exprune.tradeoff(model, calibration, prices=[1e-12, 1e3])
    cautious, bold = curve.points
    assert 10 * cautious.change.mean < 1e-3 < 10 * bold.change.mean
    assert bold.flops.saved > cautious.flops.saved
    assert (bold.change.same is not None) == (measure == "kl")
    if kind == "mapping":
        assert bold.change.examples == 5 * (4 * 20 + 4 * 14)  # tokens that are no padding
        with torch.no_grad(), exprune.prune(model, calibration, price=1e3) as run:
            for batch in of_tokens():
                model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        assert run.flops.pruned == bold.flops.pruned or run.flops.dense == bold.flops.dense


def test_half_precision() -> None:
    torch.manual_seed(0)
    model = Classifier().bfloat16().eval()
    calibration = exprune.calibrate(model, [torch.randn(100, 32) for _ in range(4)])
    curve = exprune.tradeoff(model, calibration, prices=[1e-9])
    assert math.isfinite(curve.points[0].change.mean)


def test_a_call_of_the_users() -> None:
    model, x, _ = made()
    calibration = exprune.calibrate(
        model, [{"image": part} for part in x.split(200)], call=lambda model, batch: model(batch["image"])
    )
    assert calibration.statistics.keys() == calibrated().statistics.keys()


def test_a_model_is_left_as_it_was() -> None:
    model, x, _ = made()
    before, flags = model(x), [p.requires_grad for p in model.parameters()]
    exprune.calibrate(model, pairs())
    with torch.no_grad(), exprune.prune(model, calibrated(), price=1e-6):
        model(x)
    assert torch.equal(model(x), before)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_layers_are_printed_with_their_reasons() -> None:
    model, x, _ = made()
    printed = str(exprune.inspect(model, x[:3]))
    assert len(printed.splitlines()) == 6
    assert "body.2" in printed and "relu" in printed and "layers can be pruned; the batch costs" in printed


def bad() -> Iterator[tuple[str, Any]]:
    model, x, _ = made()
    other = Classifier().eval()
    yield "the model is in training mode", lambda: exprune.calibrate(Classifier().train(), x)
    yield "a torch.nn.Module", lambda: exprune.calibrate(torch.relu, x)
    yield "no layer of the model can be pruned", lambda: exprune.calibrate(nn.Sequential(nn.ReLU()).eval(), x)
    yield "batches: there is none", lambda: exprune.calibrate(model, [])
    yield "batches: there is none", lambda: exprune.calibrate(model, iter(()))
    yield "batches=int", lambda: exprune.calibrate(model, 3)
    yield r"model\(batch\).*call=lambda", lambda: exprune.calibrate(model, [torch.randint(0, 5, (9,))])
    yield r"model\(\*\*batch\)", lambda: exprune.calibrate(model, [{"image": x}])
    yield "batch 1: its inputs hold NaN", lambda: exprune.calibrate(model, [x, x.where(x < 2, torch.nan)])
    yield "of another model, or its weights have changed", lambda: exprune.tradeoff(other, calibrated(), [x])
    yield "of another model", lambda: exprune.prune(other, calibrated(), price=1e-9)
    yield "no target given; give one of kl, drop", lambda: exprune.prune(model, calibrated())
    yield "kl and price given", lambda: exprune.prune(model, calibrated(), kl=1.0, price=1.0)
    yield "kl=-1: must be a number above 0", lambda: exprune.prune(model, calibrated(), kl=-1)
    yield "drop= goes with metric=", lambda: exprune.prune(model, calibrated(), drop=0.1)
    yield "kl=1e-30: no price keeps it; the lowest", lambda: exprune.prune(model, calibrated(), kl=1e-30)
    yield "saved=0.999: the highest price tried saves", lambda: exprune.prune(model, calibrated(), saved=0.999)
    yield (
        "one batch; a price is found on half of the batches",
        lambda: exprune.prune(model, calibrated(), kl=1.0, batches=x),
    )
    yield "prices=", lambda: exprune.tradeoff(model, calibrated(), prices=[-1.0])
    yield "measure='mse'", lambda: exprune.calibrate(model, x, measure="mse")
    yield "its format is None, not 'exprune calibration 2'", lambda: exprune.Calibration.load(_other_file())
    yield "no such file", lambda: exprune.Calibration.load("/nowhere/at/all")


def _other_file() -> Path:
    import tempfile

    from safetensors.torch import save_file

    path = Path(tempfile.mkdtemp()) / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    return path


@pytest.mark.parametrize(("line", "work"), list(bad()))
def test_what_is_wrong_is_one_line(line: str, work: Any) -> None:
    with pytest.raises(SettingError, match=line) as error:
        work()
    assert "\n" not in str(error.value)


def test_a_summary_is_that_of_its_numbers() -> None:
    values = torch.arange(1000, dtype=torch.float64).flip(0)
    of = summarised("kl", values, values < 10, 0)
    assert (of.mean, of.median, of.most, of.largest, of.same) == (499.5, 499.0, 990.0, 999.0, 0.01)
    assert of.error == pytest.approx(float(values.std()) / 1000**0.5)
    assert of.low < 499.5 < of.high and of.high - of.low == pytest.approx(4 * of.error, rel=0.1)
    assert replace(of, same=None).same is None


def test_the_divergence_of_impossible_classes_is_finite() -> None:
    dense = torch.tensor([[0.0, -math.inf, 1.0]])
    value, same = apart("kl", dense, dense, dense)
    assert float(value) == 0.0 and bool(same)


def test_importing_the_package_imports_nothing() -> None:
    code = "import sys, exprune; assert not {'torch', 'pandas', 'matplotlib'} & sys.modules.keys(); exprune.prune"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_promise_of_the_divergence() -> None:
    model, _, _ = made()
    run = exprune.prune(model, calibrated(), kl=0.05, confidence=0.9, batches=pairs() * 8)
    promise = run.promise
    assert promise is not None and run.point is not None and run.price == promise.price
    assert run.point.change.mean < promise.bound <= 0.05 and promise.tried >= 1
    assert "with 0.9 probability" in str(promise) and run.point.flops.saved > 0
    bolder = exprune.prune(model, calibrated(), kl=0.05, batches=pairs() * 8)
    assert run.price <= bolder.price * 1.5
    with pytest.raises(SettingError, match=r"kl=1e-09 with confidence=0.95: .* cannot show a drop of at most 1e-09"):
        exprune.prune(model, calibrated(), kl=1e-9, confidence=0.95)
    with pytest.raises(SettingError, match="confidence=2: must be a probability"):
        exprune.prune(model, calibrated(), kl=0.1, confidence=2)
    with pytest.raises(SettingError, match="is of a change; give kl= or drop="):
        exprune.prune(model, calibrated(), saved=0.1, confidence=0.9)


def test_a_promise_of_the_users_metric_is_exact_where_it_counts_predictions() -> None:
    model, x, y = made()

    def right(output: Any, batch: Any) -> torch.Tensor:
        return (output.argmax(-1) == batch[1]).float()

    batches = [(x.roll(k, 0), y.roll(k, 0)) for k in range(8)]
    run = exprune.prune(model, calibrated(), drop=0.2, metric=right, confidence=0.9, batches=batches)
    assert run.promise is not None and run.promise.kind == "exact for every number of inputs"
