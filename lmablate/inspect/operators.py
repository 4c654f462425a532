"""The kind of work of each operator of a training step: the table behind ``lmablate inspect time``.

The kinds are those of Ivanov et al. 2021 (arXiv 2007.00072, table 1): tensor contractions, statistical normalisation
(softmax and norms), element-wise; and further ones that the table leaves out. Operators are classified by name. Two cases do
not depend on names, and :mod:`lmablate.inspect.profiling` handles them: element-wise work inside a norm is normalisation, and
all work of the optimizer is the optimizer's.
"""

from __future__ import annotations

import re

CONTRACTIONS = "tensor contractions"  # matrix products
ATTENTION = "fused attention"  # products and softmax of attention in one kernel, which shows neither apart
NORMALISATION = "normalisation and softmax"  # norms with their gains, softmax, cross entropy's log-softmax
POINTWISE = "element-wise"  # activations, sums of the residual stream, rotations, masks, biases, reductions
MOVEMENT = "data movement"  # copies, casts, concatenations, look-ups, fills
OPTIMIZER = "optimizer"  # clipping and the optimizer's step
HOST = "host"  # Python, autograd's bookkeeping, views, memory; on a GPU the time in which it waits for them
OTHER = "other"  # operators that the table does not know

KINDS = (CONTRACTIONS, ATTENTION, NORMALISATION, POINTWISE, MOVEMENT, OPTIMIZER, HOST, OTHER)

# Names without "aten::" and without the underscore of the in-place form.
_NAMES = {
    CONTRACTIONS: """
        mm addmm bmm baddbmm addbmm dot mv addmv vdot outer addr einsum _scaled_mm _grouped_mm convolution _convolution
        convolution_backward mkldnn_convolution mkldnn_linear _mkl_linear _linear_pointwise _addmm_activation
    """,
    ATTENTION: """
        _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention_for_cpu_backward
        _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_backward
        _scaled_dot_product_efficient_attention _scaled_dot_product_efficient_attention_backward
        _scaled_dot_product_cudnn_attention _scaled_dot_product_cudnn_attention_backward
        _scaled_dot_product_fused_attention_overrideable _scaled_dot_product_fused_attention_overrideable_backward
        _flash_attention_forward _flash_attention_backward _efficient_attention_forward _efficient_attention_backward
        _cudnn_attention_forward _cudnn_attention_backward flex_attention flex_attention_backward
    """,
    NORMALISATION: """
        native_layer_norm native_layer_norm_backward _fused_rms_norm _fused_rms_norm_backward
        _weight_norm_interface _weight_norm_interface_backward
        _softmax _softmax_backward_data _safe_softmax _log_softmax _log_softmax_backward_data logsumexp logcumsumexp
        _masked_softmax _masked_softmax_backward
    """,
    POINTWISE: """
        abs add addcdiv addcmul all amax amin any argmax argmin bernoulli bitwise_and bitwise_not bitwise_or __and__ __or__
        bitwise_xor __xor__ bitwise_left_shift bitwise_right_shift __lshift__ __rshift__ erfinv
        bincount ceil clamp clamp_min clamp_max cos cumsum cumprod div elu elu_backward eq erf exp exp2 expm1 floor
        floor_divide fmod ge gelu gelu_backward gt hardswish hardswish_backward histc isfinite isinf isnan isneginf
        isposinf le lerp linalg_vector_norm log log1p log2 log_sigmoid_forward log_sigmoid_backward logaddexp
        logical_and logical_not logical_or lt max maximum mean min minimum mish mish_backward mul native_dropout
        native_dropout_backward ne neg nll_loss_forward nll_loss_backward norm pow prod random normal uniform reciprocal
        relu remainder round rsqrt rsub selu sigmoid sigmoid_backward sign silu silu_backward sin softplus
        softplus_backward sqrt square std sub sum tanh tanh_backward threshold_backward tril triu true_divide trunc var
        var_mean xlogy _fused_dropout masked_scale where masked_fill sort topk searchsorted bucketize
        _foreach_add _foreach_mul _foreach_div _foreach_norm _foreach_sqrt _foreach_lerp _foreach_addcdiv _foreach_addcmul
        _fused_adamw _fused_adam _fused_sgd hardsigmoid_backward hardtanh_backward leaky_relu_backward glu_backward
        softshrink_backward hardshrink_backward _prelu_kernel _prelu_kernel_backward
    """,
    MOVEMENT: """
        _to_copy _copy_from cat clone constant_pad_nd copy embedding_dense_backward fill flip full gather index index_add
        index_select_backward gather_backward value_selecting_reduction_backward
        index_put _index_put_impl index_select index_copy masked_scatter masked_select pad_sequence put repeat
        repeat_interleave roll scatter scatter_add select_backward slice_backward take zero _unsafe_index _unsafe_index_put
        arange eye linspace nonzero one_hot tril_indices _pin_memory record_stream slice_scatter select_scatter unfold_backward
        select_backward_out embedding_renorm randperm _foreach_copy _foreach_zero
    """,
    HOST: """
        _local_scalar_dense _reshape_alias _unsafe_view alias as_strided atleast_1d broadcast_to chunk contiguous
        cross_entropy_loss detach dropout embedding embedding_backward empty empty_like empty_strided expand expand_as
        flatten full_like is_nonzero item layer_norm rms_norm lift_fresh lift linear log_softmax mH mT matmul matrix_H
        movedim moveaxis narrow new_empty new_empty_strided new_full new_ones new_zeros nll_loss nll_loss_nd numpy_T ones
        ones_like pad permute promote_types rand randn rand_like randn_like randint real reshape reshape_as resize
        resolve_conj resolve_neg result_type scalar_tensor scaled_dot_product_attention
        _scaled_dot_product_attention_math _fused_sdp_choice select set_ set slice softmax softmax_backward_data special_log_softmax
        split split_with_sizes squeeze stack swapaxes t tensor_split to transpose unbind unflatten unsqueeze unfold
        view view_as view_as_real view_as_complex zeros zeros_like is_leaf output_nr _version requires_grad retain_grad
        data set_data is_same_size hstack vstack column_stack tensordot inner block_diag squared_relu one_hot nan_to_num
        binary_cross_entropy_with_logits conv1d conv2d conv_depthwise is_pinned pin_memory
    """,
}
_KIND = {name: kind for kind, names in reversed(_NAMES.items()) for name in names.split()}

# Patterns for everything but library operators; the first that matches decides.
_PATTERNS = (
    (MOVEMENT, r"Memcpy|Memset"),
    (OPTIMIZER, r"Optimizer\.(step|zero_grad)#"),
    (HOST, r"autograd::engine::|torch::autograd::|.*Backward\d*$|detach$|profiler::|lmablate::"),
    (HOST, r"cuda[A-Z]|cu[A-Z]\w+$|hip[A-Z]|Lazy Function Loading|Activity Buffer|Command Buffer|Buffer Flush"),
    (HOST, r"Torch-Compiled Region|CompiledFunction|TorchDynamo|AOTDispatcher|Pregraph|## Call|Inductor|_compile"),
    (CONTRACTIONS, r"mkldnn::_?\w*linear|triton_(tem|mm)_|extern_kernels"),
    (HOST, r"_[A-Z]\w*$|[A-Z]\w*Function$"),  # a torch.autograd.Function of ours: Python around its operators
)
_FUSED = re.compile(r"(?:graph_\d+_)?(?:cpp|triton_[a-z]+)_fused_(\w+?)_\d+$")
_NORM_PARTS = re.compile(r"rms_norm|layer_norm|softmax|cross_entropy|logsumexp|var_mean")
# A kernel of these alone only moves data. "linear" is the view of a product's result.
_MOVING_PARTS = re.compile(
    r"scaled_dot_product_attention|transpose|unflatten|flatten|unsqueeze|squeeze|expand|reshape|contiguous|clone|chunk|split|slice"
    r"|narrow|permute|view|linear|embedding|getitem|stack|cat|copy|flip|select|pad|movedim|mT|zeros|to|t"
)


def kind_of(name: str) -> str:
    """Return the kind of an operator, an autograd function, a compiled kernel or a runtime call."""
    if fused := _FUSED.match(name):
        return _fused_kind(fused[1])
    bare = name.removeprefix("aten::")
    if kind := _KIND.get(bare) or _KIND.get(bare.removesuffix("_")):
        return kind
    if name.startswith("aten::") and (_is_pointwise(bare) or _is_pointwise(bare.removesuffix("_"))):
        return POINTWISE
    return next((kind for kind, pattern in _PATTERNS if re.match(pattern, name)), OTHER)


def _is_pointwise(name: str) -> bool:
    """Return True if torch tags an operator as pointwise; it may be missing from the table, as in a user's own component."""
    import torch

    op = getattr(torch.ops.aten, name, None)
    return op is not None and any(torch.Tag.pointwise in getattr(op, own).tags for own in op.overloads())


def _fused_kind(name: str) -> str:
    """Return the kind of a kernel that the compiler fused, from the operators in its name.

    With a reduction of a norm or a softmax it is normalisation, element-wise parts included; with copies alone it is movement.
    """
    if _NORM_PARTS.search(name):
        return NORMALISATION
    return POINTWISE if _MOVING_PARTS.sub("", name.replace("backward", "")).strip("_0123456789") else MOVEMENT
