"""Every operator of torch is of one of four kinds; no unknown operator is both uncounted and unnamed."""

import re
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils.flop_counter import register_flop_formula

from exprune.core import ExPrune, find_sites
from exprune.core.accounting.flop_counter import _FREE_NAMES
from exprune.core.calls.formulas import Cost, cost_of, formula_of, multiplies
from exprune.core.calls.operators import costs_nothing, made_of_others
from tests.core.counted import counted

aten = torch.ops.aten


def overloads(namespace: str) -> Iterator[OpOverload]:
    """Return all operators of a namespace, including those of TorchScript's interpreter."""
    names = {*torch._C._dispatch_get_all_op_names(), *(s.name for s in torch._C._jit_get_all_schemas())}
    packets = {name.split("::")[1].split(".")[0] for name in names if name.startswith(f"{namespace}::")}
    for packet in (getattr(getattr(torch.ops, namespace), name) for name in sorted(packets)):
        yield from (getattr(packet, overload) for overload in packet.overloads())


ATEN = list(overloads("aten"))


def dispatched(op: OpOverload) -> bool:
    """Return whether a dispatch mode can see the operator."""
    return bool(torch._C._dispatch_has_kernel(op.name()))


# Kinds


def test_every_operator_is_of_one_kind() -> None:
    kinds = Counter(cost_of(op) for op in ATEN)
    assert set(kinds) == set(Cost) and kinds.total() == len(ATEN) > 2000
    for op in ATEN:
        others, formula, nothing = made_of_others(op), formula_of(op) is not None, costs_nothing(op)
        assert not (formula and nothing), op
        alone = {Cost.FORMULA: formula, Cost.NOTHING: nothing, Cost.UNKNOWN: not formula and not nothing}
        assert cost_of(op) is Cost.OTHERS if others else [cost_of(op)] == [kind for kind, so in alone.items() if so], op
        assert multiplies(op) == (formula or not nothing), op


# The words by which products, factorisations, solutions and transforms are called.
COSTLY = set(
    """
    addbmm addmm addmv baddbmm bmm mm mv matmul gemm linear bilinear trilinear conv convolution rnn lstm gru attention
    cdist pdist dot vdot einsum linalg cholesky solve svd eig eigh eigvals qr geqrf orgqr ormqr lu inv inverse det fft
    tensordot kron semi
    """.split()
)
# Read one by one: what they have of those is the word alone.
NAMESAKES = set(
    """
    upsample_bilinear2d upsample_bilinear2d_aa upsample_linear1d upsample_trilinear3d thnn_fused_gru_cell
    thnn_fused_lstm_cell linalg_cross linalg__powsum linalg_vector_norm linalg_check_errors fft_fftfreq fft_rfftfreq
    lu_unpack slice_inverse cudnn_rnn_flatten_weight
    mkldnn_reorder_conv2d_weight mkldnn_reorder_conv3d_weight use_cudnn_rnn_flatten_weight
    """.split()
)


def test_nothing_that_is_called_a_product_costs_nothing() -> None:
    names = {op._overloadpacket.__name__ for op in ATEN if cost_of(op) is Cost.NOTHING and dispatched(op)}
    called = {name for name in names if COSTLY & set(re.split(r"_|\d", name))}
    assert {re.sub("_backward(_impl)?$", "", name).strip("_") for name in called} <= NAMESAKES


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            Cost.NOTHING,
            """
            relu_ add.out _foreach_add_ view detach _to_copy expand_copy squeeze_ sum std_mean empty_like new_zeros
            arange normal_ bernoulli uniform_ native_dropout _local_scalar_dense is_pinned _nnz native_layer_norm
            _native_batch_norm_legit_no_training cudnn_batch_norm_backward _softmax _log_softmax_backward_data
            max_pool2d_with_indices _adaptive_avg_pool2d upsample_bilinear2d grid_sampler_2d sort topk cumsum index
            scatter_add _embedding_bag _fused_adamw_ _foreach_norm nll_loss_forward tril im2col cat
            quantize_per_tensor _to_sparse_csr masked_fill where addcmul lerp_ equal bitwise_and ne
            """,
        ),
        (
            Cost.FORMULA,
            """
            mm mm.out addmm_ bmm mv dot vdot convolution convolution_backward _scaled_mm _int_mm _grouped_mm
            _foreach_mm addbmm conv_tbc mkldnn_rnn_layer _cudnn_rnn _sparse_addmm linear.out
            _scaled_dot_product_flash_attention_for_cpu _flash_attention_forward
            """,
        ),
        (
            Cost.OTHERS,
            "matmul linear.default einsum conv2d lstm scaled_dot_product_attention linalg_norm linalg_inv tensordot",
        ),
        (
            Cost.UNKNOWN,
            """
            _fft_r2c _fft_c2c _linalg_svd linalg_cholesky_ex linalg_lu _linalg_solve_ex linalg_matrix_exp geqrf ormqr
            _cdist_forward _pdist_forward _euclidean_dist _trilinear quantized_lstm _sparse_sparse_matmul
            _transformer_encoder_layer_fwd _native_multi_head_attention fbgemm_linear_int8_weight linear_backward
            """,
        ),
    ],
    ids=lambda x: x.name if isinstance(x, Cost) else "",
)
def test_operators_of_each_kind(kind: Cost, names: str) -> None:
    for name in names.split():
        packet, _, overload = name.partition(".")
        ops = [op for op in ATEN if op._overloadpacket.__name__ == packet and overload in ("", op._overloadname)]
        kinds = {cost_of(op) for op in ops if dispatched(op)}
        assert kinds and kinds - {Cost.OTHERS} == {kind} - {Cost.OTHERS}, name


def test_calls_that_are_not_looked_into_cost_nothing() -> None:
    for name in _FREE_NAMES:
        ops = [op for op in ATEN if op._overloadpacket.__name__ in (name, f"{name}_") and dispatched(op)]
        assert {cost_of(op) for op in ops} <= {Cost.NOTHING, Cost.OTHERS}, name


@pytest.mark.parametrize("namespace", ["quantized", "mkldnn", "onednn", "sparse", "symm_mem"])
def test_products_of_pytorchs_other_libraries_are_named(namespace: str) -> None:
    for op in overloads(namespace):
        if re.search("mm|linear|conv|matmul|lstm|gru", op._overloadpacket.__name__) and dispatched(op):
            assert cost_of(op) in (Cost.UNKNOWN, Cost.OTHERS), op


# Of others

LIBRARY = torch.library.Library("exprune_operators", "DEF")
for definition in ("mystery(Tensor x) -> Tensor", "nms(Tensor x) -> Tensor", "view(Tensor(a) x) -> Tensor(a)"):
    LIBRARY.define(definition)
LIBRARY.define("both(Tensor x) -> Tensor")
LIBRARY.define("softened(Tensor x) -> Tensor", tags=(torch.Tag.pointwise,))
LIBRARY.define("known(Tensor x) -> Tensor")
LIBRARY.define("relu(Tensor x) -> Tensor")
for name in ("mystery", "nms", "softened", "known", "relu"):
    LIBRARY.impl(name, lambda x: x @ x, "CompositeExplicitAutograd")
LIBRARY.impl("view", lambda x: x.view(-1), "CompositeExplicitAutograd")
LIBRARY.impl("both", lambda x: torch.ops.exprune_operators.mystery(x @ x), "CompositeImplicitAutograd")
theirs = torch.ops.exprune_operators


@register_flop_formula(theirs.known)
def flops_of_known(x: tuple[int, ...], **kwargs: object) -> int:
    return 2 * x[0] ** 3


@pytest.mark.parametrize("name", ["mystery", "nms", "view", "relu"])
def test_an_operator_of_an_unknown_library_is_named(name: str) -> None:
    """Named whatever its name and its schema say: neither is trusted for an unknown library."""
    assert counted(getattr(theirs, name), torch.ones(3, 3)) == (0, {f"exprune_operators.{name}": 1})


def test_an_operator_of_an_unknown_library_may_say_what_it_costs() -> None:
    x = torch.ones(3, 3)
    assert counted(theirs.known, x) == (54, {})
    assert counted(theirs.softened, x) == (0, {})
    assert counted(theirs.both, x) == (54, {"exprune_operators.mystery": 1})


def test_operators_of_torchvision() -> None:
    pytest.importorskip("torchvision")
    assert cost_of(torch.ops.torchvision.nms.default) is Cost.NOTHING
    if hasattr(torch.ops.torchvision, "deform_conv2d"):
        assert cost_of(torch.ops.torchvision.deform_conv2d.default) is Cost.UNKNOWN


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_operators_that_hide_their_products_are_named() -> None:
    """They are declared as composed of other operators, but multiply where no mode sees it."""
    weight = torch.randint(-3, 3, (5, 4), dtype=torch.int8)
    try:
        packed = torch.fbgemm_pack_quantized_matrix(weight)
    except RuntimeError:
        pytest.skip("this processor has no FBGEMM")
    scale, zero = torch.tensor(1.0), torch.tensor(0)
    rest = weight, packed, torch.zeros(5, dtype=torch.int32), scale, zero, torch.zeros(5)

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fbgemm_linear_int8_weight_fp32_activation(x, *rest)

    x = torch.randn(3, 4)
    for mode in (torch.no_grad, torch.inference_mode):
        run = ExPrune(find_sites(Layer(), x), None)
        with mode(), run:
            Layer()(x)
        assert dict(run.flops.uncounted) == {"aten.fbgemm_linear_int8_weight_fp32_activation": 1}
