"""BatchNorm folded into the layer before it, as it is in inference."""

from __future__ import annotations

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

_PAIRS = (
    (nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d),
)  # fmt: skip


def fold_batch_norm(model: fx.GraphModule) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Fold in place, where the layer before is called once and nobody else sees its output.

    Returns:
        Name of each layer that a BatchNorm was folded into, to both as they were before.
    """
    folded: dict[str, tuple[nn.Module, nn.Module]] = {}
    calls: dict[str, int] = {}
    for node in model.graph.nodes:
        # a weight that is also read by itself must stay as it is
        name = str(node.target) if node.op == "call_module" else str(node.target).rpartition(".")[0]
        if node.op in ("call_module", "get_attr"):
            calls[name] = calls.get(name, 0) + 1
    for node in list(model.graph.nodes):
        if node.op != "call_module" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        before, norm = node.args[0], model.get_submodule(str(node.target))
        if before.op != "call_module" or len(before.users) > 1 or calls[str(before.target)] > 1:
            continue
        layer = model.get_submodule(str(before.target))
        fused = _fuse(layer, norm)
        if fused is not None:
            # of two norms in a row, the first is in `layer` by now
            folded[str(before.target)] = (layer, norm)
            model.set_submodule(str(before.target), fused)
            node.replace_all_uses_with(before)
            model.graph.erase_node(node)
    model.delete_all_unused_submodules()
    model.recompile()
    return folded


def _fuse(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
        return None
    if isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
        return fuse_linear_bn_eval(layer, norm)
    for convolution, normalisation in _PAIRS:
        if isinstance(layer, convolution) and isinstance(norm, normalisation):
            return fuse_conv_bn_eval(layer, norm)
    return None
