"""Determine which of torch's operators cost something, from what they declare (docs/method.md, section 5).

An operator is only assumed to cost nothing if that is certain: operators of later PyTorch versions or of other
libraries may cost something.
"""

import re
from functools import cache

import torch
from torch._ops import OpOverload

_TAGS = {
    getattr(torch.Tag, name)
    for name in ("pointwise", "reduction", "view_copy", "inplace_view")
    if name in dir(torch.Tag)
}
# Namespaces whose operator schemas are reliable.
_PYTORCH = {"aten", "prim", "prims", "inductor"}
# These send tensors to other processes, or write logs.
_SENDING = {"c10d", "_c10d_functional", "_c10d_functional_autograd", "fsdp", "profiler", "debugprims"}

# Operators whose work grows no faster than the data they read and write, which neither tags nor schemas show.
# One name stands for a family, see `_family`.
_FREE = set(
    # elementwise
    """
    add_relu addr complex dist fill floor_divide glu hardswish irshift log_sigmoid masked_scale polar prelu prelu_kernel
    rrelu_with_noise thnn_fused_gru_cell thnn_fused_lstm_cell transform_bias_rescale_qkv zero adagrad adam adamw sgd
    update_scale non_finite_check_and_unscale binomial dirichlet_grad standard_gamma_grad
    """
    # reductions that are not tagged in earlier versions
    """
    all allclose amax amin aminmax any argmax argmin count_nonzero csr_prod csr_sum hash_tensor is_all_true is_any_true
    linalg_vector_norm logsumexp max mean min norm powsum prod std std_mean sum trace var var_mean
    """
    # normalisations and cumulative operations
    """
    batch_norm batch_norm_elemt batch_norm_backward_elemt batch_norm_backward_reduce batch_norm_stats
    batch_norm_gather_stats batch_norm_gather_stats_with_counts batch_norm_update_stats batch_norm_no_update
    batch_norm_with_update batch_norm_legit_no_training group_norm instance_norm layer_norm rms_norm renorm
    embedding_renorm weight_norm weight_norm_interface softmax log_softmax safe_softmax masked_softmax
    tensor_softmax_with_shape cummax cummin cumprod cumsum logcumsumexp
    """
    # pooling and interpolation over a few neighbours each
    """
    adaptive_avg_pool adaptive_max_pool avg_pool fractional_max_pool max_pool max_unpool upsample_bicubic
    upsample_bilinear upsample_lanczos upsample_linear upsample_nearest upsample_nearest_exact upsample_trilinear
    grid_sampler affine_grid_generator linalg_cross
    """
    # losses
    """
    binary_cross_entropy binary_cross_entropy_with_logits ctc_loss huber_loss mse_loss multi_margin_loss
    multilabel_margin_loss nll_loss smooth_l1_loss soft_margin_loss
    """
    # comparisons: sorting, searching and counting
    """
    bincount bucketize histc histogram isin kthvalue median mode nanmedian nonzero nonzero_static searchsorted sort topk
    unique unique2 unique_consecutive unique_dim unique_dim_consecutive
    """
    # rows that are looked up, added up or written
    """
    embedding embedding_dense embedding_bag embedding_bag_dense embedding_bag_forward_only
    embedding_bag_per_sample_weights gather index index_add index_fill index_put index_reduce index_select
    masked_index masked_index_put_accumulate masked_scatter masked_select put scatter scatter_add scatter_reduce
    segment_reduce take
    """
    # copies, also into another shape, layout or type
    """
    as_strided_scatter block_diag cat channel_shuffle chunk_cat coalesced col2im compressed_tensor constant_pad_nd
    convert_indices_from_coo_to_csr convert_indices_from_csr_to_coo convert_weight_to_int4pack
    convert_weight_to_int4pack_for coo_tensor_with_dims_and_tensors copy copy_from copy_from_and_resize
    copy_sparse_to_sparse diag_embed diagonal_scatter dyn_quant_pack_4bit_weight flip im2col jagged_to_padded_dense
    from_padded from_padded_and_nested_example from_padded_tensor get_lengths get_max_seqlen get_min_seqlen get_offsets
    lazy_clone lift lu_unpack mask pack_padded_sequence padded_dense_to_jagged pixel_shuffle pixel_unshuffle
    record_stream reflection_pad reorder_conv2d_weight reorder_conv3d_weight repeat repeat_interleave replication_pad
    resize resize_and_clear resize_as resize_as_sparse resize_output rnn_flatten_weight roll rot90 select_scatter set
    spdiags stack to_dense to_mkldnn to_padded_tensor to_sparse to_sparse_bsc to_sparse_bsr to_sparse_csc to_sparse_csr
    tensor_from_mask tensor_from_tensor_list tensor_size tensor_storage_offsets tensor_strides
    tril triu dequantize int_repr make_per_channel_quantized_tensor make_per_tensor_quantized_tensor moving_avg_obs_fq
    q_per_channel_scales q_per_channel_zero_points quantize_learnable_per_channel_affine
    quantize_learnable_per_tensor_affine quantize_per_channel quantize_per_channel_affine_cachemask quantize_per_tensor
    quantize_per_tensor_affine_cachemask quantize_per_tensor_dynamic
    """
    # queries about several tensors
    """
    functional_assert_async functional_assert_scalar functional_sym_constrain_range
    functional_sym_constrain_range_for_size has_same_storage_numel is_same_size is_set_to sdp_choice
    tensor_from_mask_left_aligned
    use_cudnn_ctc_loss use_miopen_ctc_loss validate_compressed_sparse_indices
    """.split()
)
_FREE_ELSEWHERE = {
    f"torchvision::{name}" for name in ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")
}

# Operators that take functions, and compute nothing beyond what these functions compute.
CONTROL_FLOW = set(
    """
    cond while_loop scan associative_scan map_impl tag_activation_checkpoint wrap wrap_activation_checkpoint
    wrap_with_autocast wrap_with_set_grad_enabled hints_wrapper strict_mode invoke_subgraph run_const_graph
    """.split()
)

# These multiply in other libraries' code, although they are declared as composed of other operators.
HIDING = {
    *(f"fbgemm_linear_{kind}" for kind in ("int8_weight", "int8_weight_fp32_activation")),
    *(f"fbgemm_linear_{kind}" for kind in ("fp16_weight", "fp16_weight_fp32_activation")),
    *(f"quantized_{kind}_cell" for kind in ("gru", "lstm", "rnn_relu", "rnn_tanh")),
}


@cache
def made_of_others(op: OpOverload) -> bool:
    """Whether an operator only calls other operators, which are counted."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    known = torch._C._dispatch_has_kernel(op.name())  # operators of TorchScript's interpreter have none
    return known and op.has_kernel_for_dispatch_key(key) and not _asks(op) and _name(op) not in HIDING


@cache
def costs_nothing(op: OpOverload) -> bool:
    """Whether an operator costs nothing worth counting: its cost grows no faster than what it reads and writes.

    This is so if its tags say so; if it is one of PyTorch's own and its schema says so (a view, a tensor made from
    numbers, a random draw, a query); or if it is listed here.
    """
    if _TAGS & set(op.tags) or op.namespace in _SENDING or str(op._schema.name) in _FREE_ELSEWHERE:
        return True
    if op.namespace not in _PYTORCH:
        return False
    family = _family(_name(op))
    return family in _FREE or any(_says_so(other) for other in (*_packet(_name(op)), *_packet(family), op))


def _says_so(op: OpOverload) -> bool:
    return bool(_TAGS & set(op.tags)) or _views(op) or _makes(op) or _draws(op) or _asks(op)


def _views(op: OpOverload) -> bool:
    """Whether its results share the memory of its arguments and are not written."""
    results = op._schema.returns
    return bool(results) and all(x.alias_info is not None and not x.alias_info.is_write for x in results)


def _makes(op: OpOverload) -> bool:
    """Whether it creates a tensor without reading one."""
    kinds = [str(argument.type) for argument in op._schema.arguments if not argument.is_out]
    return not any("Tensor" in kind or "__torch__" in kind for kind in kinds)


def _draws(op: OpOverload) -> bool:
    """Whether it draws random numbers, reading at most one tensor."""
    return torch.Tag.nondeterministic_seeded in op.tags and _read(op) <= 1


def _asks(op: OpOverload) -> bool:
    """Whether it only queries properties of one tensor."""
    written = any(argument.alias_info is not None for argument in op._schema.arguments)
    tells = not any("Tensor" in str(result.type) for result in op._schema.returns)
    return tells and not written and _read(op) <= 1


def _read(op: OpOverload) -> int:
    kinds = [str(argument.type) for argument in op._schema.arguments if not argument.is_out]
    return sum(2 if "List[" in kind else 1 for kind in kinds if "Tensor" in kind)


def _name(op: OpOverload) -> str:
    return str(op._overloadpacket.__name__)


def _packet(name: str) -> list[OpOverload]:
    """All overloads of an ATen operator, except those for strings and lists that TorchScript gives the same name."""
    packet = getattr(torch.ops.aten, name, None)
    overloads = [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]
    return [op for op in overloads if torch._C._dispatch_has_kernel(op.name())]


_PREFIXES = re.compile(r"^(foreach|fused|fake|amp|cudnn|miopen|mkldnn|native|new|quantized|sparse|nested|unsafe)_")
_SUFFIXES = re.compile(
    r"_(copy|out|functional|forward|backward|like|data|jvp|impl|helper|legit|cpu|cpu_fallback|2d|3d|aa|with_indices"
    r"|tensor_qparams)$|(?<=[a-z])[123]d$"
)


def _family(name: str) -> str:
    """The operation that an operator computes, without backend, argument types, and direction.

    ``relu_``, ``_foreach_add_`` and ``cudnn_batch_norm_backward`` belong to the families ``relu``, ``add`` and
    ``batch_norm``: a gradient costs at most a few times as much as its function.
    """
    for pattern in (_PREFIXES, _SUFFIXES):
        while (stripped := pattern.sub("", name.strip("_"))) != name.strip("_"):
            name = stripped
    return name.strip("_")
