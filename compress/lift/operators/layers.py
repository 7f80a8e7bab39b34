"""Convolutions, normalisation and embeddings: nn modules again, under their dotted names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from compress.lift.builder import GraphBuilder
from compress.lift.operators.modules import form_module
from compress.lift.operators.registry import Call, rule
from compress.lift.values import Symbol, Value

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_CONV_FUNCTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_CONV_TRANSPOSE_FUNCTION = {
    1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d,
}  # fmt: skip
_BATCH_NORM = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@rule("aten::conv1d", "aten::conv2d", "aten::conv3d", "aten::_convolution", "aten::convolution",
      "aten::_convolution_mode", "aten::conv_transpose1d", "aten::conv_transpose2d",
      "aten::conv_transpose3d")  # fmt: skip
def _convolution(builder: GraphBuilder, call: Call) -> Value:
    weight, bias = call["weight"], call["bias"]
    shape = weight.value.shape
    rank = len(shape) - 2
    groups = call["groups"]
    stride, padding, dilation = (
        _per_axis(builder.fixed(call[name]), rank) for name in ("stride", "padding", "dilation")
    )
    options: dict[str, Any] = {
        "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
    }  # fmt: skip
    transposed = call.get("transposed", "conv_transpose" in call.name)
    if transposed:
        options["output_padding"] = _per_axis(builder.fixed(call["output_padding"]), rank)
        inside, outside = shape[0], shape[1] * groups
        kind: Callable[..., nn.Module] = _CONV_TRANSPOSE[rank]
    else:
        inside, outside = shape[1] * groups, shape[0]
        kind = _CONV[rank]
    path = form_module(
        builder,
        call,
        lambda: kind(
            inside, outside, tuple(shape[2:]), bias=bias is not None, device="meta", **options
        ),
        {"weight": weight, "bias": bias},
    )
    image = call["input"]
    if path is not None:
        return builder.call_module(path, image)
    if transposed:
        function: Callable[..., Any] = _CONV_TRANSPOSE_FUNCTION[rank]
        return builder.call(
            function, image, weight, bias, stride, padding, options["output_padding"], groups,
            dilation,
        )  # fmt: skip
    function = _CONV_FUNCTION[rank]
    return builder.call(function, image, weight, bias, stride, padding, dilation, groups)


def _per_axis(value: Any, rank: int) -> Any:
    """Traces sometimes hold one number for all axes; `padding` may be `same` or `valid`."""
    if isinstance(value, str):
        return value
    numbers = [value] if isinstance(value, int) else list(value)
    return tuple(numbers * rank if len(numbers) == 1 else numbers)


@rule("aten::batch_norm")
def _batch_norm(builder: GraphBuilder, call: Call) -> Value:
    image, weight, bias = call["input"], call["weight"], call["bias"]
    mean, variance = call["running_mean"], call["running_var"]
    rank = image.value.dim()
    if call["training"]:  # traced in train mode: it goes by its batch, whatever the model's mode
        return builder.call(
            F.batch_norm, image, None, None, weight, bias, True, call["momentum"], call["eps"]
        )
    if mean is not None and rank in _BATCH_NORM and (weight is None) == (bias is None):
        path = form_module(
            builder,
            call,
            lambda: _BATCH_NORM[rank](
                mean.value.numel(),
                eps=call["eps"],
                momentum=call["momentum"],
                affine=weight is not None,
                device="meta",
            ),
            {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance},
        )
        if path is not None:
            builder.modules[path]._buffers["num_batches_tracked"] = builder.weights.buffer_beside(
                path, "num_batches_tracked"
            )
            return builder.call_module(path, image)
    return builder.call(
        F.batch_norm, image, mean, variance, weight, bias, False, call["momentum"], call["eps"]
    )


@rule("aten::layer_norm")
def _layer_norm(builder: GraphBuilder, call: Call) -> Value:
    return layer_norm_of(
        builder, call, call["input"], call["normalized_shape"], call["weight"], call["bias"],
        call["eps"],
    )  # fmt: skip


def layer_norm_of(
    builder: GraphBuilder,
    call: Call,
    features: Symbol,
    shape: list[Value],
    weight: Symbol | None,
    bias: Symbol | None,
    eps: float,
) -> Any:
    """A layer norm over the last axes, which have `shape`; `weight` and `bias` have it too."""
    path = None
    if weight is not None:
        path = form_module(
            builder,
            call,
            lambda: nn.LayerNorm(
                tuple(builder.fixed(shape)), eps, bias=bias is not None, device="meta"
            ),
            {"weight": weight, "bias": bias},
        )
    if path is not None:
        return builder.call_module(path, features)
    return builder.call(F.layer_norm, features, shape, weight, bias, eps)


@rule("aten::group_norm")
def _group_norm(builder: GraphBuilder, call: Call) -> Value:
    features, weight, bias = call["input"], call["weight"], call["bias"]
    groups = call["num_groups"]
    path = None
    if weight is not None and bias is not None:
        path = form_module(
            builder,
            call,
            lambda: nn.GroupNorm(groups, weight.value.numel(), call["eps"], device="meta"),
            {"weight": weight, "bias": bias},
        )
    if path is not None:
        return builder.call_module(path, features)
    return builder.call(F.group_norm, features, groups, weight, bias, call["eps"])


@rule("aten::instance_norm")
def _instance_norm(builder: GraphBuilder, call: Call) -> Value:
    return builder.call(
        F.instance_norm, call["input"], call["running_mean"], call["running_var"], call["weight"],
        call["bias"], call["use_input_stats"], call["momentum"], call["eps"],
    )  # fmt: skip


@rule("aten::embedding")
def _embedding(builder: GraphBuilder, call: Call) -> Value:
    weight, indices = call["weight"], call["indices"]
    padding = call["padding_idx"]
    assert isinstance(weight.value, Tensor)
    rows, width = weight.value.shape
    path = form_module(
        builder,
        call,
        lambda: nn.Embedding(
            rows,
            width,
            padding_idx=None if padding < 0 else padding,
            scale_grad_by_freq=call["scale_grad_by_freq"],
            device="meta",
        ),
        {"weight": weight},
    )
    if path is not None:
        return builder.call_module(path, indices)
    return builder.call(F.embedding, indices, weight)


@rule("aten::prelu")
def _prelu(builder: GraphBuilder, call: Call) -> Value:
    features, weight = call.values
    path = form_module(
        builder,
        call,
        lambda: nn.PReLU(weight.value.numel(), device="meta"),
        {"weight": weight},
    )
    if path is not None:
        return builder.call_module(path, features)
    return builder.call(F.prelu, features, weight)


@rule("aten::embedding_bag")
def _embedding_bag(builder: GraphBuilder, call: Call) -> Value:
    """`indices [n]`, `offsets [bags]`; only the bags themselves are returned."""
    weight = call["weight"]
    padding = call.get("padding_idx")
    if padding is not None and padding < 0:
        return NotImplemented
    mode = ("sum", "mean", "max")[call["mode"]]
    if not isinstance(weight.value, Tensor):
        return NotImplemented
    rows, width = weight.value.shape
    path = form_module(
        builder,
        call,
        lambda: nn.EmbeddingBag(
            rows,
            width,
            mode=mode,
            scale_grad_by_freq=call["scale_grad_by_freq"],
            include_last_offset=call["include_last_offset"],
            padding_idx=padding,
            device="meta",
        ),
        {"weight": weight},
    )
    if path is None:
        return NotImplemented
    inputs = [call["indices"], call["offsets"]]
    if call["per_sample_weights"] is not None:
        inputs.append(call["per_sample_weights"])
    return [builder.call_module(path, *inputs), None, None, None]
