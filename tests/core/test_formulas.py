"""FLOPs of products of all kinds, by a slow reference that multiplies number by number."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exprune.core.accounting.flop_counter import FlopCounter
from exprune.core.calls.formulas import FORMULAS, flops_of, formula_of
from tests.core.counted import counted

aten = torch.ops.aten


class Number:
    """A number that counts multiply-adds: 2 FLOPs each, 8 for complex numbers."""

    flops = 0

    def __init__(self, value: complex) -> None:
        self.value = value

    def __mul__(self, other: "Number") -> "Number":
        Number.flops += 8 if isinstance(self.value, complex) else 2
        return Number(self.value * other.value)

    def __add__(self, other: "Number") -> "Number":
        return Number(self.value + other.value)


def numbers(x: Tensor) -> np.ndarray:
    """The stored values; None if nothing is stored."""
    array = np.vectorize(Number, otypes=[object])(x.to_dense().numpy())
    if x.layout != torch.strided:
        array[x.to_dense().numpy() == 0] = None
    return array


def contract(equation: str, left: Tensor | np.ndarray, right: Tensor | np.ndarray) -> np.ndarray:
    """``torch.einsum`` of two tensors, number by number."""
    words, result = equation.split("->")
    arrays = [numbers(x) if isinstance(x, Tensor) else x for x in (left, right)]
    sizes: dict[str, int] = {}
    for word, array in zip(words.split(","), arrays, strict=True):
        sizes |= dict(zip(word, array.shape, strict=True))
    out = np.full([sizes[letter] for letter in result], None, dtype=object)
    for place in product(*map(range, sizes.values())):
        at = dict(zip(sizes, place, strict=True))
        one, other = (
            array[tuple(at[letter] for letter in word)] for word, array in zip(words.split(","), arrays, strict=True)
        )
        if one is not None and other is not None:
            target = tuple(at[letter] for letter in result)
            out[target] = one * other if out[target] is None else out[target] + one * other
    return out


def values(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.vectorize(lambda one: 0 if one is None else one.value, otypes=[complex])(x))


def patches(x: Tensor, kernel: int) -> Tensor:
    for dim in range(2, x.dim()):
        x = x.unfold(dim, kernel, 1)
    return x


def softmax(scores: np.ndarray) -> Tensor:
    return values(scores).real.softmax(-1)


def matrices(a: Tensor, b: Tensor) -> np.ndarray:
    return contract("ij,jk->ik", a, b)


def batches(a: Tensor, b: Tensor) -> np.ndarray:
    return contract("bij,bjk->bik", a, b)


def sampled(where: Tensor, left: Tensor, right: Tensor) -> np.ndarray:
    """Values that are not stored are not computed."""
    out = numbers(where)
    for i, j in where.coalesce().indices().T.tolist():
        out[i, j] = contract("k,k->", left[i], right[j])[()]
    return out


def attention(query: Tensor, key: Tensor, value: Tensor) -> np.ndarray:
    """Several query heads share one key and value head."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    return contract("bhqk,bhkd->bhqd", softmax(contract("bhqd,bhkd->bhqk", query, key)), value)


def grouped(left: Tensor, right: Tensor) -> Tensor:
    ends = torch.tensor([2, 8], dtype=torch.int32)
    return torch._grouped_mm(left.bfloat16(), right.bfloat16(), offs=ends).float()


torch.manual_seed(0)
A, B, V = torch.randn(4, 5), torch.randn(5, 6), torch.randn(5)
C = torch.randn(4, 5, dtype=torch.complex64)
SPARSE = torch.randn(4, 5) * (torch.arange(20).reshape(4, 5) % 3 == 0)
BATCH = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
LONG, KERNELS = torch.randn(2, 3, 9), torch.randn(4, 3, 2)
DEEP, CUBES = torch.randn(1, 2, 3, 3, 3), torch.randn(2, 2, 2, 2, 2)
FLOAT8 = torch.ones(16, 16).to(torch.float8_e4m3fn)
ONE = torch.tensor(1.0)

# The call, its arguments, and the same computation number by number.
CALLS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...], Callable[..., np.ndarray]]] = {
    "mm": (torch.mm, (A, B), matrices),
    "mv": (torch.mv, (A, V), lambda a, v: contract("ij,j->i", a, v)),
    "dot": (torch.dot, (V, V), lambda v, w: contract("i,i->", v, w)),
    "bmm": (torch.bmm, BATCH, batches),
    "addbmm": (
        lambda a, b: torch.addbmm(torch.zeros(3, 5), a, b),
        BATCH,
        lambda a, b: contract("bij,bjk->ik", a, b),
    ),
    "linear, into a tensor": (
        lambda a, b: torch._C._nn.linear(a, b.T, out=torch.empty(4, 6)),
        (A, B),
        matrices,
    ),
    "several": (
        lambda a, b: torch.stack(torch._foreach_mm([a, a], [b, b])),
        (A, B),
        lambda a, b: np.stack([matrices(a, b), matrices(a, b)]),
    ),
    "rows in groups": (
        grouped,
        (torch.randn(8, 8), torch.randn(2, 8, 8)),
        lambda a, b: np.concatenate([matrices(a[:2], b[0]), matrices(a[2:], b[1])]),
    ),
    "columns in groups": (
        grouped,
        (torch.randn(2, 3, 8), torch.randn(8, 8)),
        lambda a, b: np.concatenate([matrices(a[0], b[:, :2]), matrices(a[1], b[:, 2:])], axis=1),
    ),
    "terms in groups": (
        grouped,
        (torch.randn(3, 8), torch.randn(8, 8)),
        lambda a, b: np.stack([matrices(a[:, :2], b[:2]), matrices(a[:, 2:], b[2:])]),
    ),
    # types
    "int8": (torch._int_mm, (torch.randint(-3, 3, (32, 16)).char(), torch.randint(-3, 3, (16, 24)).char()), matrices),
    "int32": (torch.mm, (torch.arange(12).int().reshape(3, 4), torch.arange(8).int().reshape(4, 2)), matrices),
    "float8": (
        lambda a, b: torch._scaled_mm(a, b.t(), ONE, ONE, out_dtype=torch.float32),
        (FLOAT8, FLOAT8),
        lambda a, b: matrices(a.float(), b.float()),
    ),
    "int8 weights": (
        lambda x, weight: aten._weight_int8pack_mm(x.bfloat16(), weight, torch.ones(8).bfloat16()).float(),
        (torch.randn(4, 16), torch.randint(-3, 3, (8, 16)).char()),
        lambda x, weight: contract("ik,jk->ij", x, weight.float()),
    ),
    "complex mm": (lambda a: a @ a.T, (C,), lambda a: matrices(a, a.T)),
    "complex einsum": (lambda a: torch.einsum("ij,ik->jk", a, a), (C,), lambda a: contract("ij,ik->jk", a, a)),
    "complex mv": (lambda a: torch.mv(a, a[0]), (C,), lambda a: contract("ij,j->i", a, a[0])),
    "complex dot": (lambda a: torch.dot(a[0], a[1]), (C,), lambda a: contract("i,i->", a[0], a[1])),
    # layouts
    "sampled": (
        lambda s, a, b: torch.sparse.sampled_addmm(s.to_sparse_csr(), a, b.T, beta=0.0),
        (SPARSE, torch.randn(4, 3), torch.randn(5, 3)),
        lambda s, a, b: sampled(s.to_sparse(), a, b),
    ),
    "sparse sums": (
        lambda a, b: torch.sparse.mm(a.to_sparse_csr(), b, "sum"),
        (SPARSE, B),
        lambda a, b: matrices(a.to_sparse(), b),
    ),
    "sparse blocks": (
        lambda a, b: a.to_sparse_bsr((2, 2)) @ b,
        (torch.tensor([[1.0, 2, 0, 0], [3, 4, 0, 0], [5, 6, 7, 8], [9, 10, 11, 12]]), torch.randn(4, 3)),
        lambda a, b: matrices(a.to_sparse(), b),
    ),
    "sparse mv": (
        lambda a, v: torch.mv(a.to_sparse_csr(), v),
        (SPARSE, V),
        lambda a, v: contract("ij,j->i", a.to_sparse(), v),
    ),
    "sparse weight": (
        lambda a, b: F.linear(b.T, a.to_sparse_csr()),
        (SPARSE, B),
        lambda a, b: contract("ij,jk->ki", a.to_sparse(), b),
    ),
    "sparse batches": (
        lambda a, b: torch.bmm(a.to_sparse(), b),
        (torch.stack([SPARSE, SPARSE.flip(0)]), torch.randn(2, 5, 3)),
        lambda a, b: batches(a.to_sparse(), b),
    ),
    **{
        f"{name} of {pack.__name__}": (
            lambda a, b, pack=pack, multiply=multiply: multiply(pack(a), b),
            (SPARSE, B),
            lambda a, b: matrices(a.to_sparse(), b),
        )
        for pack in (Tensor.to_sparse, Tensor.to_sparse_csr, Tensor.to_sparse_csc)
        for name, multiply in (("mm", torch.mm), ("sparse.mm", torch.sparse.mm), ("spmm", torch.spmm))
    },
    # convolutions
    "conv1d": (F.conv1d, (LONG, KERNELS), lambda x, w: contract("bcpk,ock->bop", patches(x, 2), w)),
    "time first": (
        lambda x, w: torch.conv_tbc(x.permute(2, 0, 1).contiguous(), w.permute(2, 1, 0).contiguous(), torch.zeros(4)),
        (LONG, KERNELS),
        lambda x, w: contract("bcpk,ock->pbo", patches(x, 2), w),
    ),
    "slow conv3d": (
        lambda x, w: aten.slow_conv3d_forward(x, w, [2, 2, 2], None, [1, 1, 1], [0, 0, 0]),
        (DEEP, CUBES),
        lambda x, w: contract("bcxyzijk,ocijk->boxyz", patches(x, 2), w),
    ),
    "slow conv2d": (
        lambda x, w: aten.slow_conv_dilated2d(x, w, [2, 2]),
        (torch.randn(1, 2, 3, 3), torch.randn(3, 2, 2, 2)),
        lambda x, w: contract("bcxyij,ocij->boxy", patches(x, 2), w),
    ),
    "slow transposed": (
        lambda x, w: aten.slow_conv_transpose2d(x, w, [1, 2], None, [1, 2]),
        (torch.randn(1, 2, 1, 3), torch.randn(2, 4, 1, 2)),
        lambda x, w: contract("bchx,cohk->bohxk", x, w).reshape(1, 4, 1, 6),
    ),
    # attention
    "attention": (
        F.scaled_dot_product_attention,
        (torch.randn(2, 2, 3, 4), torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)),
        lambda q, k, v: attention(q / 2, k, v),
    ),
    "attention of heads in groups": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        (torch.randn(1, 4, 3, 4), torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)),
        lambda q, k, v: attention(q / 2, k, v),
    ),
}


@pytest.mark.filterwarnings("ignore:.*(beta state|invariant)")
@pytest.mark.parametrize("name", CALLS)
def test_formulas(name: str) -> None:
    call, arguments, slowly = CALLS[name]
    Number.flops = 0
    expected = values(slowly(*arguments))
    out = call(*arguments).to_dense().to(torch.complex128)
    torch.testing.assert_close(out, expected, rtol=0.05, atol=0.2)  # some are of bfloat16
    assert counted(call, *arguments) == (Number.flops, {})


def test_a_complex_convolution_is_three_real_ones() -> None:
    """This is how torch computes it."""
    real = counted(F.conv1d, LONG, KERNELS)[0]
    assert counted(F.conv1d, LONG + 1j * LONG, KERNELS + 1j * KERNELS) == (3 * real, {})


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no such type")
def test_an_element_may_hold_two_numbers() -> None:
    left, right = (
        torch.empty(shape, dtype=torch.uint8, device="meta").view(torch.float4_e2m1fn_x2)
        for shape in ((16, 32), (8, 32))
    )
    scales = torch.empty(512, dtype=torch.float8_e4m3fn, device="meta")
    formula = formula_of(aten._scaled_mm)
    assert formula is not None
    out = torch.empty(16, 8, device="meta")
    assert flops_of(formula, (left, right.t(), scales, scales), {}, out) == 2 * 16 * 64 * 8


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: torch.sparse.mm(SPARSE.to_sparse(), B.to_sparse()), "aten._sparse_sparse_matmul"),
        (lambda: torch.mm(SPARSE.to_sparse_csr(), B.to_sparse_csr()), "aten.mm of sparse or nested tensors"),
        (lambda: F.linear(torch.nested.nested_tensor([A, A[:2]]), B.T), "aten.linear of sparse or nested tensors"),
        (lambda: torch.fft.rfft(A), "aten._fft_r2c"),
        (lambda: torch.stft(V.repeat(4), 4, window=torch.ones(4), return_complex=True), "aten._fft_r2c"),
        (lambda: torch.linalg.svdvals(A), "aten._linalg_svd"),
        (lambda: torch.linalg.matrix_norm(A, 2), "aten._linalg_svd"),
        (lambda: torch.linalg.cholesky(torch.eye(3)), "aten.linalg_cholesky_ex"),
        (lambda: torch.linalg.solve(torch.eye(3), torch.eye(3)), "aten._linalg_solve_ex"),
        (lambda: torch.linalg.inv(torch.eye(3)), "aten.linalg_inv_ex"),
        (lambda: torch.matrix_exp(torch.eye(3)), "aten.linalg_matrix_exp"),
        (lambda: torch.cdist(A, A), "aten._cdist_forward"),
        (lambda: torch.cdist(torch.randn(30, 3), torch.randn(30, 3)), "aten._euclidean_dist"),
        (lambda: F.pdist(A), "aten._pdist_forward"),
        (lambda: F.bilinear(A, A, torch.randn(2, 5, 5)), "aten._trilinear"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(nested tensors is in prototype|invariant|beta state)")
def test_what_has_no_formula_is_named(call: Callable, name: str) -> None:
    assert counted(call) == (0, {name: 1})


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.interpolate(LONG, scale_factor=2, mode="linear"),
        lambda: F.grid_sample(torch.randn(1, 2, 4, 4), torch.rand(1, 3, 3, 2), align_corners=False),
        lambda: F.embedding_bag(torch.tensor([[1, 2]]), A, mode="sum", per_sample_weights=torch.ones(1, 2)),
        lambda: (
            torch.zeros(4, 5).scatter_add(0, torch.zeros(4, 5, dtype=torch.long), A).cumsum(1).sort().values.topk(2)
        ),
        lambda: F.layer_norm(A, (5,)) + F.group_norm(A[None], 2).softmax(-1).std(),
        lambda: F.max_pool1d(LONG, 2) + F.adaptive_avg_pool1d(LONG, 4),
        lambda: torch.outer(V, V) + torch.addr(torch.zeros(5, 5), V, V) + torch.kron(V, V).sum(),
        lambda: torch._foreach_add([A, A], [A, A]),
        lambda: torch.sparse_coo_tensor(torch.tensor([[0], [1]]), torch.ones(1), (2, 2)).coalesce().to_dense(),
        lambda: (
            torch.quantile(A, 0.5) + torch.median(A) + torch.histc(A).sum() + torch.bincount(torch.tensor([1, 2]))[0]
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*invariant")
def test_what_costs_nothing_worth_counting(call: Callable) -> None:
    assert counted(call) == (0, {})


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("settings", [{}, {"bidirectional": True, "bias": False}, {"proj_size": 3, "num_layers": 3}])
def test_cudnn_and_the_cpu_cost_the_same(settings: dict) -> None:
    """A GPU runs all layers in one operator, which gets all weights."""
    lstm, x = nn.LSTM(4, 6, **{"num_layers": 2, **settings}), torch.randn(5, 2, 4)
    weights = [parameter.detach() for parameter in lstm.parameters()]
    assert FORMULAS[aten._cudnn_rnn](x, weights, 4, None, x, x, out_val=None) == counted(lstm, x)[0] > 0


# Operators of higher order, such as torch.cond, get functions.


def test_of_a_condition_what_ran_is_counted() -> None:
    def of(x: Tensor, sign: float) -> Tensor:
        condition = torch.tensor(sign) > 0
        return torch.ops.higher_order.cond(condition, lambda x: (x @ x,), lambda x: (x.sin(),), (x,))[0]

    x = torch.randn(3, 3)
    assert counted(of, x, 1.0) == (54, {})
    assert counted(of, x, -1.0) == (0, {})
    flop_counter = FlopCounter()
    with torch.no_grad():
        flop_counter.begin()
        out = of(x, -1.0)
        flop_counter.end()
    assert torch.equal(out, x.sin())  # FlopCounterMode gives x @ x


def test_of_a_loop_every_turn_is_counted() -> None:
    def loop(x: Tensor) -> Tensor:
        start = torch.tensor(0), x
        return torch.ops.higher_order.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x @ x), start, ())[1]

    assert counted(loop, torch.eye(4)) == (3 * 2 * 4**3, {})
