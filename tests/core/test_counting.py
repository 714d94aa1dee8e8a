"""Dense FLOPs: PyTorch's counter, formulas for what it counts as 0, and names for the rest."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

from exprune.core import ExPrune, SettingError, Threshold, find_sites
from exprune.core.accounting.flop_counter import FlopCounter

MODES = pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])


def dense(model: nn.Module, *example: Tensor, mode: Callable = torch.no_grad) -> ExPrune:
    """A run that only counts."""
    model.eval()
    run = ExPrune(find_sites(model, *example), None)
    with mode(), run:
        model(*example)
    return run


@MODES
@pytest.mark.parametrize("directions", [1, 2])
def test_lstm(mode: Callable, directions: int) -> None:
    """Every step of every sequence is multiplied by four gates, from the input and from the hidden state."""
    model = nn.LSTM(10, 20, num_layers=2, bidirectional=directions == 2)
    run = dense(model, torch.randn(5, 3, 10), mode=mode)
    layers = [(10, 20), (20 * directions, 20)]
    assert run.flops.dense == 5 * 3 * directions * sum(2 * 4 * h * (i + h) for i, h in layers)
    assert not run.flops.uncounted


@MODES
@pytest.mark.parametrize(("kind", "gates"), [(nn.GRU, 3), (nn.RNN, 1)])
def test_other_recurrent_layers(kind: type[nn.Module], gates: int, mode: Callable) -> None:
    run = dense(kind(10, 20), torch.randn(5, 3, 10), mode=mode)
    assert run.flops.dense == 5 * 3 * 2 * gates * 20 * (10 + 20)


def test_packed_sequences() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(10, 20)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(pack_padded_sequence(x, [5, 3, 2]))[0].data

    run = dense(Packed(), torch.randn(5, 3, 10))
    assert run.flops.dense == (5 + 3 + 2) * 2 * 4 * 20 * (10 + 20)


class Attention(nn.Module):
    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, k)


@MODES
def test_fused_attention(mode: Callable) -> None:
    run = dense(Attention(), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 5, 8), mode=mode)
    assert run.flops.dense == 2 * (2 * 4 * 7 * 5 * 8) * 2


@MODES
def test_multi_head_attention(mode: Callable) -> None:
    model, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(3, 5, 8)
    run = dense(model, x, x, x, mode=mode)
    assert run.flops.dense == 3 * (2 * 5 * 8 * 4 * 8 + 2 * 2 * 5 * 5 * 8)


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


A, B, V = torch.randn(4, 5), torch.randn(5, 6), torch.randn(5)
PRODUCTS: dict[str, tuple[Callable, tuple[Tensor, ...], int]] = {
    "matrix @ matrix": (lambda a, b: a @ b, (A, B), 2 * 4 * 5 * 6),
    "matrix @ vector": (lambda a, v: a @ v, (A, V), 2 * 4 * 5),
    "vector @ vector": (lambda v, w: v @ w, (V, V), 2 * 5),
    "addmv": (lambda a, v: torch.addmv(torch.zeros(4), a, v), (A, V), 2 * 4 * 5),
    "einsum": (lambda a, b: torch.einsum("ij,jk->ik", a, b), (A, B), 2 * 4 * 5 * 6),
    "addbmm": (lambda a, b: torch.addbmm(torch.zeros(4, 6), a[None], b[None]), (A, B), 2 * 4 * 5 * 6),
    "baddbmm_": (lambda a, b: torch.zeros(1, 4, 6).baddbmm_(a[None], b[None]), (A, B), 2 * 4 * 5 * 6),
    "addmm_": (lambda a, b: torch.zeros(4, 6).addmm_(a, b), (A, B), 2 * 4 * 5 * 6),
    "linear of a vector": (lambda v, b: F.linear(v, b.T.contiguous()), (V, B), 2 * 5 * 6),
}


@MODES
@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str, mode: Callable) -> None:
    function, arguments, flops = PRODUCTS[name]
    run = dense(Call(function), *arguments, mode=mode)
    assert (run.flops.dense, dict(run.flops.uncounted)) == (flops, {})


def test_a_transposed_convolution() -> None:
    model, x = nn.ConvTranspose2d(3, 5, 3, stride=2), torch.randn(2, 3, 4, 4)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(x)
    assert dense(model, x).flops.dense == counter.get_total_flops() == 2 * 2 * 4 * 4 * 3 * 5 * 9


def test_what_has_no_formula_is_named() -> None:
    run = dense(nn.Bilinear(3, 4, 5), torch.randn(2, 3), torch.randn(2, 4))
    assert dict(run.flops.uncounted) == {"aten._trilinear": 1}
    assert "aten._trilinear (1 calls)" in str(run.flops)
    assert "not counted" not in str(dense(nn.Linear(3, 4), torch.randn(2, 3)).flops)


def test_int8_layers_are_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), {nn.Linear}, torch.qint8
        )
        run = dense(model, torch.randn(2, 8))
    assert run.flops.dense == 0
    assert sum(run.flops.uncounted.values()) == 2
    assert all("linear" in name for name in run.flops.uncounted)


@torch.library.custom_op("exprune_tests::mystery", mutates_args=())
def mystery(x: Tensor) -> Tensor:
    return x @ x.T


def test_an_operator_of_somebody_else_is_named() -> None:
    run = dense(Call(lambda x: mystery(x)), torch.randn(3, 3))
    assert dict(run.flops.uncounted) == {"exprune_tests.mystery": 1}


def test_a_product_with_a_sparse_adjacency() -> None:
    """However it is written, a graph's edges are counted, not all pairs of its nodes."""
    adjacency, x = torch.eye(7).to_sparse(), torch.randn(7, 3)
    layer = nn.Linear(3, 4)
    for multiply in (torch.mm, torch.spmm, torch.sparse.mm):
        flop_counter = FlopCounter()
        flop_counter.begin()
        with torch.no_grad():
            multiply(adjacency, layer(x))
        flop_counter.end()
        assert (flop_counter.flops, dict(flop_counter.uncounted)) == (2 * 7 * 3 * 4 + 2 * 7 * 4, {})


def test_counts_go_on_where_they_were() -> None:
    run = dense(nn.Bilinear(3, 4, 5), torch.randn(2, 3), torch.randn(2, 4))
    other = ExPrune(run.sites, None)
    other.load_state_dict(run.state_dict())
    assert other.flops == run.flops
    with pytest.raises(SettingError, match="counts of version None of exprune's accounting"):
        other.load_state_dict({key: value for key, value in run.state_dict().items() if key != "version"})


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    # layer, input, uses of each weight
    "linear": (lambda: nn.Linear(4, 6), (3, 4), 3),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 9), 2 * 7),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 5, 5), 2 * 3 * 3),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5), 2 * 3 * 3),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), (2, 4, 3, 3, 3), 2 * 8),
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 5), 2 * 5),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("how", ["prune", "parametrization"])
def test_masks_of_any_layer_count(name: str, how: str) -> None:
    make, shape, uses = LAYERS[name]
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    weights = model.weight.numel()
    before = dense(model, x).flops
    assert (before.unpruned, before.dense) == (2 * weights * uses,) * 2
    mask = torch.rand_like(model.weight) > 0.4
    if how == "prune":
        prune.custom_from_mask(model, "weight", mask)
    else:
        nn.utils.parametrize.register_parametrization(model, "weight", Sparse(mask.float()))
    flops = dense(model, x).flops
    assert flops.unpruned == 2 * weights * uses
    assert flops.dense == 2 * int(mask.sum()) * uses


def test_masks_of_complex_weights_count() -> None:
    """A multiply-add of complex numbers is 4 of real ones, even if a weight is real."""
    model, x = nn.Linear(4, 6, dtype=torch.complex64), torch.randn(3, 4, dtype=torch.complex64)
    mask = torch.arange(24).reshape(6, 4) % 3 > 0
    prune.custom_from_mask(model, "weight", mask)
    flops = dense(model, x).flops
    assert (flops.unpruned, flops.dense) == (8 * 24 * 3, 8 * 16 * 3)


class Sparse(nn.Module):
    """A mask as ``torch.ao.pruning`` stores it."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return self.mask * weight


def test_the_sparsifier_of_torch_ao() -> None:
    from torch.ao.pruning import WeightNormSparsifier

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 8), nn.ReLU()), torch.randn(5, 4)
    sparsifier = WeightNormSparsifier(sparsity_level=0.5, sparse_block_shape=(1, 1), zeros_per_block=1)
    sparsifier.prepare(model, [{"tensor_fqn": "1.weight"}])
    sparsifier.step()
    left = int((model[1].weight != 0).sum())
    assert 0 < left < 72
    sites = find_sites(model.eval(), x)
    with torch.no_grad(), ExPrune(sites, Threshold(0, n=2), gain_ratio=100) as run:
        model(x)
    assert run.flops.unpruned == 5 * 2 * (36 + 72)
    assert run.flops.dense == 5 * 2 * (36 + left)
    assert int((run.flops.sites[0].plan.terms).sum()) == left


def test_masked_weights_of_a_layer_that_cannot_be_followed_are_named() -> None:
    model = nn.LSTM(4, 5)
    prune.random_unstructured(model, "weight_ih_l0", 0.5)
    run = dense(model, torch.randn(3, 2, 4))
    assert run.flops.zeros == 0
    assert any("masked weights" in name for name in run.flops.uncounted)


def test_masked_weights_of_a_layer_whose_calls_are_not_seen_are_named() -> None:
    model = nn.MultiheadAttention(8, 2)
    prune.random_unstructured(model.out_proj, "weight", 0.5)
    x = torch.randn(3, 2, 8)
    run = dense(model, x, x, x)
    assert dict(run.flops.uncounted) == {"masked weights of out_proj": 1}
