"""Properties that hold for every pruned run, whatever the model."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18, vgg11_bn

from exprune.core import (
    Calibrated,
    ExPrune,
    Heuristic,
    InputVariances,
    Recorder,
    SettingError,
    StatsTest,
    Threshold,
    find_sites,
)
from exprune.core.simulation import blocks
from tests.core.networks import SmallCNN, Transformer, counts, pruned_pass, scramble

N = 4


@pytest.fixture
def cnn() -> nn.Module:
    """The small CNN in float64, eval mode."""
    torch.manual_seed(0)
    return scramble(SmallCNN().double())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


HEURISTICS = pytest.mark.parametrize(
    "heuristic", [StatsTest(0.25, n=N), Threshold(-0.05, n=N)], ids=["StatsTest", "Threshold"]
)


def test_the_small_cnn_has_the_sites_it_should(cnn: nn.Module, images: Tensor) -> None:
    sites = find_sites(cnn, images)
    assert [s.name for s in sites if s.eligible] == [
        "block1.conv1",
        "block1.conv2",
        "block2.conv1",
        "block2.conv2",
        "hidden",
    ]
    run = pruned_pass(cnn, sites, StatsTest(0.25, n=N), images)
    for count in run.flops.sites:  # so that the tests below compare something
        assert 0 < count.pruned < count.outputs
    assert sum(int(count.wrong) for count in run.flops.sites) > 0


# alpha = 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_alpha_zero_prunes_nothing(cnn: nn.Module, images: Tensor, dtype: torch.dtype) -> None:
    cnn, images = cnn.to(dtype), images.to(dtype)
    run = ExPrune(find_sites(cnn, images), StatsTest(0, n=N))
    with torch.no_grad():
        dense = cnn(images)
        with run:
            pruned = cnn(images)
    assert torch.equal(dense, pruned)
    assert all(count.pruned == 0 and int(count.wrong) == 0 for count in run.flops.sites)
    tested = 8 * (8 * 36 * 2 + 10 * 36 * 2 + 12)
    assert sum(count.outputs for count in run.flops.sites) == tested
    assert run.flops.pruned == run.flops.dense + tested * (2 * N + 6)
    assert run.flops.saved < 0


def test_threshold_of_minus_infinity_prunes_nothing(cnn: nn.Module, images: Tensor) -> None:
    run = pruned_pass(cnn, find_sites(cnn, images), Threshold(float("-inf"), n=N), images)
    assert run.flops.pruned == run.flops.dense + sum(count.outputs for count in run.flops.sites)


# Zeros


@HEURISTICS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_outputs_are_zero_or_dense(heuristic: Heuristic, dtype: torch.dtype) -> None:
    """Tested at the first site, whose input is the same in both passes; the number of zeros matches the counts."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(9, 12, 1), nn.Conv2d(12, 8, 3), nn.ReLU()).to(dtype)
    x = 5 * torch.randn(4, 9, 6, 6).to(dtype)
    run = ExPrune(find_sites(model, x), heuristic)
    with torch.no_grad():
        dense = model(x)
        with run:
            pruned = model(x)
    (count,) = run.flops.sites
    assert torch.equal(pruned[pruned != 0], dense[pruned != 0])
    assert 0 < int(count.wrong) == int((dense > 0).sum() - (pruned > 0).sum())
    assert int(count.negative) == int((dense <= 0).sum())
    assert int((pruned == 0).sum()) == int(count.negative) + int(count.wrong)


def test_a_stopped_neuron_is_zero_even_where_the_rest_overflows() -> None:
    """The remaining terms are never computed, so an infinite sum does not matter."""
    model = nn.Sequential(nn.Linear(1, 6, bias=False), nn.Linear(6, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [1.0], [1.0], [1.0], [3e38], [3e38]]))
        model[1].weight.copy_(torch.tensor([[-1.0, -1, -1, -1, 1, 1], [1, 1, 1, 1, 1, 1]]))
    x = torch.ones(1, 1)
    run = ExPrune(find_sites(model, x), Threshold(-0.5, n=4))
    with torch.no_grad(), run:
        out = model(x)
    assert out.tolist() == [[0.0, float("inf")]]


# Order, batches, chunks, runs


@HEURISTICS
def test_flops_do_not_depend_on_the_batches(cnn: nn.Module, images: Tensor, heuristic: Heuristic) -> None:
    sites = find_sites(cnn, images)
    expected = counts(pruned_pass(cnn, sites, heuristic, images))
    shuffled = images[torch.randperm(8, generator=torch.Generator().manual_seed(1))]
    assert counts(pruned_pass(cnn, sites, heuristic, shuffled)) == expected
    for size in (1, 3, 5):
        assert counts(pruned_pass(cnn, sites, heuristic, *shuffled.split(size))) == expected


def test_sites_do_not_depend_on_the_batch(cnn: nn.Module, images: Tensor) -> None:
    assert find_sites(cnn, images) == find_sites(cnn, images[:1]) == find_sites(cnn, images[:3])


@HEURISTICS
@pytest.mark.parametrize("outputs", [1, 289, 600, 10**9])
def test_chunks_change_nothing(
    cnn: nn.Module, images: Tensor, heuristic: Heuristic, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = find_sites(cnn, images)
    with torch.no_grad(), (plain := ExPrune(sites, heuristic)):
        expected = cnn(images)
    monkeypatch.setattr(blocks, "_CHUNK", outputs)
    with torch.no_grad(), (chunked := ExPrune(sites, heuristic)):
        out = cnn(images)
    torch.testing.assert_close(out, expected)
    assert torch.equal(out == 0, expected == 0)
    assert counts(chunked) == counts(plain)


@pytest.mark.parametrize("residual", [(2, 5), (5,), (1, 5), (2, 1), (2, 3, 5), (1, 3, 5), (3, 1, 1), (2, 1, 5)])
def test_chunks_and_residuals_that_broadcast(residual: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A residual with fewer dimensions, or with dimensions of size 1, is broadcast over the rows."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layer = nn.Linear(2, 6), nn.Linear(6, 5)

        def forward(self, x: Tensor, r: Tensor) -> Tensor:
            return F.relu(self.layer(self.stem(x)) + r)

    torch.manual_seed(0)
    model = Model().double().eval()
    shape = torch.broadcast_shapes(
        residual, (3, 3, 5) if residual[0] == 3 else (2, 3, 5) if len(residual) == 3 else (2, 5)
    )
    x, r = torch.randn(*shape[:-1], 2, dtype=torch.float64), torch.randn(residual, dtype=torch.float64)
    seen = []
    for value, chunk in ((r.expand(shape).contiguous(), 10**9), (r, 10**9), (r, 1)):
        monkeypatch.setattr(blocks, "_CHUNK", chunk)
        run = ExPrune(find_sites(model, x, value), StatsTest(0.4, n=3))
        with torch.no_grad(), run:
            seen.append((model(x, value).tolist(), counts(run)))
    assert seen[0] == seen[1] == seen[2]
    assert 0 < run.flops.sites[0].pruned < run.flops.sites[0].outputs


def test_runs_do_not_influence_each_other(cnn: nn.Module, images: Tensor) -> None:
    sites = find_sites(cnn, images)
    first = counts(pruned_pass(cnn, sites, StatsTest(0.25, n=N), images))
    other = counts(pruned_pass(cnn, sites, StatsTest(0.4, n=2), images))
    assert counts(pruned_pass(cnn, sites, StatsTest(0.25, n=N), images)) == first != other
    with torch.no_grad():
        dense = cnn(images)
        with ExPrune(sites, StatsTest(0.25, n=N)):
            assert not torch.equal(cnn(images), dense)
        assert torch.equal(cnn(images), dense)


def test_entering_a_run_twice_adds_up(cnn: nn.Module, images: Tensor) -> None:
    run = ExPrune(find_sites(cnn, images), StatsTest(0.25, n=N))
    with torch.no_grad():
        for batch in images.split(4):
            with run:
                cnn(batch)
            cnn(batch)  # outside: not counted
    assert counts(run) == counts(pruned_pass(cnn, run.sites, StatsTest(0.25, n=N), images))


def test_a_run_is_not_entered_inside_itself(cnn: nn.Module, images: Tensor) -> None:
    run = ExPrune(find_sites(cnn, images), StatsTest(0.25, n=N))
    with torch.no_grad(), run:
        with pytest.raises(RuntimeError, match="already entered"), run:
            pass
        cnn(images)
    assert run.flops.sites[0].outputs == 8 * 8 * 36


def test_another_model_s_sites_are_refused(cnn: nn.Module, images: Tensor) -> None:
    run = ExPrune(find_sites(SmallCNN().double(), images), StatsTest(0.25, n=N))
    with pytest.raises(SettingError, match="none of the sites was reached"), torch.no_grad(), run:
        cnn(images)


# The model stays as it was


def state(model: nn.Module) -> dict[str, Any]:
    """Collects everything about a model that a run could have changed."""
    hooks = {
        (name, kind): list(getattr(module, kind).items())
        for name, module in model.named_modules()
        for kind in vars(module)
        if "hook" in kind and isinstance(getattr(module, kind), dict)
    }
    assert any(kind == "_forward_hooks" for _, kind in hooks)
    return {
        "hooks": hooks,
        "training": {name: module.training for name, module in model.named_modules()},
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "identities": {name: (id(value), value._version) for name, value in model.state_dict(keep_vars=True).items()},
        "gradients": {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()},
        "attributes": {name: set(vars(module)) for name, module in model.named_modules()},
    }


def assert_same_state(model: nn.Module, before: dict[str, Any]) -> None:
    after = state(model)
    for what in before.keys() - {"values"}:
        assert after[what] == before[what]
    assert after["values"].keys() == before["values"].keys()
    assert all(torch.equal(value, before["values"][name]) for name, value in after["values"].items())


@pytest.fixture
def hooked(cnn: nn.Module) -> nn.Module:
    """The CNN with hooks registered by its owner."""
    cnn.block1.conv1.register_forward_hook(lambda *_: None)
    cnn.block2.conv2.register_forward_pre_hook(lambda *_: None)
    cnn.register_forward_hook(lambda module, args, kwargs, out: None, with_kwargs=True, always_call=True)
    return cnn


def test_a_run_leaves_the_model_as_it_was(hooked: nn.Module, images: Tensor) -> None:
    sites = find_sites(hooked, images)
    before = state(hooked)
    pruned_pass(hooked, sites, StatsTest(0.25, n=N), images, images)
    assert_same_state(hooked, before)


@pytest.mark.parametrize("mode", ["eval", "train", "mixed"])
def test_find_sites_leaves_the_model_as_it_was(hooked: nn.Module, images: Tensor, mode: str) -> None:
    hooked.train(mode != "eval")
    if mode == "mixed":
        hooked.block1.eval()
        hooked.block1.bn2.train()
    before = state(hooked)
    assert any(site.eligible for site in find_sites(hooked, images))
    assert_same_state(hooked, before)


class Breaking(nn.Module):
    """Raises while it runs."""

    def forward(self, x: Tensor) -> Tensor:
        raise ZeroDivisionError("broken")


def break_body(model: nn.Module, images: Tensor) -> None:
    model(images)
    raise ZeroDivisionError("broken")


def break_module(model: nn.Module, images: Tensor) -> None:
    kept, model.block2.relu = model.block2.relu, Breaking()
    try:
        model(images)
    finally:
        model.block2.relu = kept


def break_layer(model: nn.Module, images: Tensor) -> None:
    """Raise inside a layer's own forward, after its pre-hooks."""
    layer = model.block2.conv2
    layer.forward = Breaking().forward
    try:
        model(images)
    finally:
        del layer.forward


def break_shapes(model: nn.Module, images: Tensor) -> None:
    model(images[:, :, :4])


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (break_body, ZeroDivisionError),
        (break_module, ZeroDivisionError),
        (break_layer, ZeroDivisionError),
        (break_shapes, RuntimeError),
    ],
)
def test_an_exception_leaves_nothing_behind(
    hooked: nn.Module, images: Tensor, broken: Callable[[nn.Module, Tensor], None], error: type[Exception]
) -> None:
    sites = find_sites(hooked, images)
    expected = counts(pruned_pass(hooked, sites, StatsTest(0.25, n=N), images))
    before = state(hooked)
    run = ExPrune(sites, StatsTest(0.25, n=N))
    with pytest.raises(error), torch.no_grad(), run:
        broken(hooked, images)
    assert_same_state(hooked, before)
    assert counts(pruned_pass(hooked, sites, StatsTest(0.25, n=N), images)) == expected
    with torch.no_grad(), run:  # and it can be entered again
        hooked(images)
    assert run.flops.dense > expected["dense"]
    with pytest.raises(error):
        find_sites(Calling(broken, hooked), images)
    assert_same_state(hooked, before)


class Calling(nn.Module):
    """A model whose forward calls a function on another model."""

    def __init__(self, function: Callable[[nn.Module, Tensor], None], model: nn.Module) -> None:
        super().__init__()
        self.function, self.model = function, model

    def forward(self, x: Tensor) -> None:
        self.function(self.model, x)


def test_an_exception_in_find_sites_leaves_the_model_as_it_was(hooked: nn.Module, images: Tensor) -> None:
    hooked.train()
    before = state(hooked)
    with pytest.raises(RuntimeError):
        find_sites(hooked, images[:, :, :4])
    assert_same_state(hooked, before)


def test_an_exception_that_is_caught_inside(cnn: nn.Module, images: Tensor) -> None:
    """A layer that has raised is not treated as one that is still running."""
    run = ExPrune(find_sites(cnn, images), StatsTest(0.25, n=N))
    with torch.no_grad(), run:
        with pytest.raises(ZeroDivisionError):
            break_layer(cnn, images)
        before = counts(run)
        F.relu(F.linear(torch.randn(4, 9), torch.randn(5, 9)))  # belongs to no layer
        after = counts(run)
    assert after.pop("dense") == before.pop("dense") + 2 * 4 * 5 * 9
    assert after.pop("pruned") == before.pop("pruned") + 2 * 4 * 5 * 9
    assert after == before


# Modes


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, nullcontext])
def test_works_in_every_gradient_mode(
    cnn: nn.Module, images: Tensor, mode: Callable[[], AbstractContextManager]
) -> None:
    sites = find_sites(cnn, images)
    expected = counts(pruned_pass(cnn, sites, StatsTest(0.25, n=N), images))
    with torch.no_grad(), ExPrune(sites, StatsTest(0.25, n=N)):
        reference = cnn(images)
    run = ExPrune(sites, StatsTest(0.25, n=N))
    with mode(), run:
        out = cnn(images)
    assert torch.equal(out, reference)
    assert counts(run) == expected


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, nullcontext])
def test_find_sites_works_in_every_gradient_mode(
    cnn: nn.Module, images: Tensor, mode: Callable[[], AbstractContextManager]
) -> None:
    expected = find_sites(cnn, images)
    with mode():
        assert find_sites(cnn, images) == expected
        assert find_sites(cnn, images.clone()) == expected


def test_find_sites_reads_inference_tensors(cnn: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        batch = images.clone()
    assert find_sites(cnn, batch) == find_sites(cnn, images)


def test_bfloat16_autocast(cnn: nn.Module, images: Tensor) -> None:
    cnn, images = cnn.float(), images.float()
    exact = pruned_pass(cnn, find_sites(cnn, images), StatsTest(0.25, n=N), images)
    with torch.autocast("cpu", torch.bfloat16):
        sites = find_sites(cnn, images)
        run = ExPrune(sites, StatsTest(0.25, n=N))
        with torch.no_grad(), run:
            out = cnn(images)
    assert sites == find_sites(cnn, images)
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()
    assert run.flops.dense == exact.flops.dense
    for count, reference in zip(run.flops.sites, exact.flops.sites, strict=True):
        assert count.outputs == reference.outputs
        assert abs(count.pruned - reference.pruned) < 0.1 * count.outputs
        assert abs(int(count.negative) - int(reference.negative)) < 0.1 * count.outputs


def test_channels_last(cnn: nn.Module, images: Tensor) -> None:
    expected = counts(pruned_pass(cnn, find_sites(cnn, images), StatsTest(0.25, n=N), images))
    cnn, images = cnn.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    assert counts(pruned_pass(cnn, find_sites(cnn, images), StatsTest(0.25, n=N), images)) == expected


def test_counts_are_integers(cnn: nn.Module, images: Tensor) -> None:
    run = pruned_pass(cnn, find_sites(cnn, images), StatsTest(0.25, n=N), images)
    for value in (run.flops.dense, run.flops.pruned, *(c.pruned_flops for c in run.flops.sites)):
        assert type(value) is int
    assert run.flops.saved == 1 - run.flops.pruned / run.flops.dense
    text = str(run.flops)
    assert f"{run.flops.dense:,}" in text
    assert all(count.site.name in text for count in run.flops.sites)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("where", ["on the way to the ReLU", "elsewhere"])
def test_batch_norm_in_training_mode_is_refused(where: str, affine: bool) -> None:
    layers = [nn.Linear(3, 8), nn.Linear(8, 5)]
    norm = nn.BatchNorm1d(5, affine=affine)
    model = nn.Sequential(*layers, *([norm, nn.ReLU()] if where != "elsewhere" else [nn.ReLU(), norm]))
    x = torch.randn(6, 3)
    run = ExPrune(find_sites(model, x), StatsTest(0.25, n=N))
    model.train()
    mean = norm.running_mean.clone()
    with pytest.raises(SettingError, match="eval") as caught, torch.no_grad(), run:
        model(x)
    assert "\n" not in str(caught.value)
    assert torch.equal(norm.running_mean, mean)
    model.eval()
    assert pruned_pass(model, run.sites, StatsTest(0.25, n=N), x).flops.sites[0].outputs == 30


# Padding

LENGTHS = [5, 2, 7, 3]


@pytest.fixture
def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(20, (length,), generator=generator) for length in LENGTHS]


@pytest.mark.parametrize("flat", [False, True], ids=["batch x sequence", "flattened"])
@pytest.mark.parametrize("chunk", [1, 10**9])
@HEURISTICS
def test_padded_rows_are_not_counted(
    sequences: list[Tensor], flat: bool, heuristic: Heuristic, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = Transformer(flat=flat).double().eval()
    padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    sites = find_sites(model, padded, mask)
    alone = ExPrune(sites, heuristic)
    with torch.no_grad(), alone:
        outputs = [model(sequence[None])[0] for sequence in sequences]
    monkeypatch.setattr(blocks, "_CHUNK", chunk)
    for rows in (mask, mask.flatten(), mask.flatten().long()):
        run = ExPrune(sites, heuristic, rows=rows)
        with torch.no_grad(), run:
            out = model(padded, mask)
        assert counts(run)["fc1"] == counts(alone)["fc1"]
        assert run.flops.sites[0].outputs == sum(LENGTHS) * 16
        assert 0 < run.flops.sites[0].pruned < run.flops.sites[0].outputs
        for row, (sequence, expected) in enumerate(zip(sequences, outputs, strict=True)):
            torch.testing.assert_close(out[row, : len(sequence)], expected)


def test_rows_are_set_anew_for_every_batch(sequences: list[Tensor]) -> None:
    torch.manual_seed(0)
    model = Transformer(flat=True).double().eval()
    alone, padded = (ExPrune(find_sites(model, sequences[0][None]), StatsTest(0.25, n=N)) for _ in range(2))
    with torch.no_grad():
        for sequence in sequences:
            with alone:
                model(sequence[None])
            mask = torch.arange(9)[None] < len(sequence)
            with padded:
                padded.rows = mask
                model(F.pad(sequence, (0, 9 - len(sequence)))[None], mask)
    assert counts(padded)["fc1"] == counts(alone)["fc1"]


def test_rows_of_images(cnn: nn.Module, images: Tensor) -> None:
    """For a Conv2d a row is an image."""
    sites = find_sites(cnn, images)
    mask = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1], dtype=torch.bool)
    run = ExPrune(sites, StatsTest(0.25, n=N), rows=mask)
    with torch.no_grad(), run:
        cnn(images)
    expected = counts(pruned_pass(cnn, sites, StatsTest(0.25, n=N), images[mask]))
    found = counts(run)
    assert {name: found[name] for name in found.keys() - {"dense", "pruned"}} == {
        name: expected[name] for name in expected.keys() - {"dense", "pruned"}
    }


@pytest.mark.parametrize("length", [1, 27, 29, 56])
def test_a_mask_of_another_length_is_refused(sequences: list[Tensor], length: int) -> None:
    model = Transformer().eval()
    padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    run = ExPrune(find_sites(model, padded), StatsTest(0.25, n=N), rows=torch.ones(length, dtype=torch.bool))
    with pytest.raises(SettingError, match=f"rows: {length} .*28") as caught, torch.no_grad(), run:
        model(padded)
    assert "\n" not in str(caught.value)


# The dense count


@pytest.fixture(scope="module", params=["resnet18", "vgg11_bn", "transformer", "small CNN", "grouped", "attention"])
def counted(request: pytest.FixtureRequest) -> Iterator[tuple[nn.Module, Tensor]]:
    """Models from other libraries, with their inputs."""
    torch.manual_seed(0)
    image = torch.randn(2, 3, 32, 32)
    if request.param == "vgg11_bn":
        with torch.device("meta"):  # its initialisation lasts seconds, and its values do not matter
            model = vgg11_bn()
        model.to_empty(device="cpu")
        yield model.eval(), image[:1]
    else:
        yield {
            "resnet18": lambda: (resnet18().eval(), image),
            "transformer": lambda: (Transformer().eval(), torch.randint(20, (3, 7))),
            "small CNN": lambda: (SmallCNN().eval(), image[:, :, :6, :6]),
            "grouped": lambda: (
                nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 6, 1), nn.ReLU()).eval(),
                image,
            ),
            "attention": lambda: (Mixed().eval(), torch.randn(3, 7, 8)),
        }[request.param]()


class Mixed(nn.Module):
    """Linear algebra outside of Linear and Conv2d layers: attention, einsum, Conv1d, a bare linear, addmm."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.site = nn.Linear(8, 5)
        self.matrix = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        x = x + self.attention(x, x, x)[0]
        x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)
        x = x + F.linear(x, self.matrix) + torch.einsum("bsh,hk->bsk", x, self.matrix)
        x = torch.baddbmm(x, x, self.matrix.expand(len(x), 8, 8)) + x @ self.matrix
        return F.relu(self.site(x)).flatten(1) @ torch.ones(35, 2)


def test_dense_is_what_flop_counter_mode_counts(
    counted: tuple[nn.Module, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = counted
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)  # it fuses, and the counter sees nothing
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    run = ExPrune(find_sites(model, x), StatsTest(0.1, n=4))
    with torch.no_grad(), run:
        model(x)
    assert run.flops.dense == counter.get_total_flops() > 0
    with torch.no_grad(), run, FlopCounterMode(display=False):  # and somebody may count around it, too
        model(x)
    assert run.flops.dense == 2 * counter.get_total_flops()


# Monotonicity


@given(
    taus=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)),
    seed=st.integers(0, 1000),
    n=st.integers(1, 7),
    heuristic=st.sampled_from([StatsTest, Threshold]),
)
@settings(deadline=None, max_examples=60, database=None, derandomize=True)
def test_a_larger_tau_prunes_a_superset(
    taus: tuple[float, float], seed: int, n: int, heuristic: type[Heuristic]
) -> None:
    """Tested at a single site, whose input is the same in both passes."""
    low, high = sorted(taus)
    if heuristic is Threshold:
        low, high = low - 0.5, high - 0.5
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 6), nn.ReLU()).double()
    x = torch.randn(10, 3, dtype=torch.float64)
    sites = find_sites(model, x)
    passes = []
    for tau in (low, high):
        with torch.no_grad(), ExPrune(sites, heuristic(tau, n=n)) as run:
            zero = model(x) == 0
        passes.append((zero, run.flops.sites[0]))
    (zero_low, count_low), (zero_high, count_high) = passes
    assert (zero_high | ~zero_low).all()
    assert count_low.pruned <= count_high.pruned
    assert count_high.pruned_flops <= count_low.pruned_flops


def test_tau_matters() -> None:
    """Every increase of alpha prunes more, given enough neurons."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 60), nn.ReLU()).double()
    x = torch.randn(100, 3, dtype=torch.float64)
    sites = find_sites(model, x)
    alphas = (0, 0.1, 0.2, 0.3, 0.4, 0.5)
    pruned = [pruned_pass(model, sites, StatsTest(alpha, n=4), x).flops.sites[0].pruned for alpha in alphas]
    assert pruned[0] == 0
    assert all(a < b for a, b in pairwise(pruned))


class Pooled(nn.Module):
    """Layers with a row for each token, followed by a layer with a row for each text."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tokens = nn.Linear(6, 24), nn.Linear(24, 40)
        self.text, self.head = nn.Linear(40, 48), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.tokens(torch.tanh(self.stem(x))))
        return self.head(torch.relu(self.text(hidden[:, 0])))


@pytest.mark.parametrize("order", ["input", "model"])
def test_a_layer_behind_a_pooling_has_a_row_for_each_input(order: str) -> None:
    torch.manual_seed(0)
    model, x = Pooled().eval(), torch.randn(120, 5, 6)
    rows = torch.ones(120, 5, dtype=torch.bool)
    rows[::2, 3:] = False
    rows[::10] = False  # an input without any row
    sites = find_sites(model, x)
    orders = {site.name: order for site in sites} if order == "input" else None
    with torch.no_grad(), Recorder(sites, (4, 8), orders) as recorder:
        recorder.rows = rows
        model(x)
    with InputVariances(sites) as variances, torch.no_grad():
        variances.rows = rows
        model(x)
    known = torch.relu(model.tokens(torch.tanh(model.stem(x))))[:, 0][rows.any(1)]
    want = known.var(0, correction=0).double()
    torch.testing.assert_close(variances.variances()["text"], want, rtol=1e-4, atol=1e-6)
    with torch.no_grad(), ExPrune(sites, Calibrated(0.1, statistics=recorder.statistics()), rows=rows) as run:
        model(x)
    counted = {count.site.name: count.outputs for count in run.flops.sites}
    assert counted == {"tokens": 40 * int(rows.sum()), "text": 48 * int(rows.any(1).sum())}
