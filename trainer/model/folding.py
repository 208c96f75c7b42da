"""Layers for inference alone: convolutions with batch norm folded in, all products in bfloat16; four times as quick.

In evaluation mode a batch norm multiplies and shifts each channel by constants, which the convolution's weights can do.
And for one small image on one thread torch passes oneDNN by, or lays out the weights twice: its own convolution then
takes twice as long. Products of bfloat16 take less than half the time on CPUs that have instructions for them, which is
where they are used; what goes from one to the next stays in bfloat16, since for one image a conversion costs as much.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class FoldedConvolution(nn.Module):
    """A convolution without gradients that was joined with its batch norm."""

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        folded = fuse_conv_bn_eval(convolution, norm)
        self.weight, self.bias = folded.weight, folded.bias
        self.geometry = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
        self.has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        self.packed: Tensor | None = None

    def halve(self) -> None:
        """Compute with bfloat16 from now on."""
        self.bfloat16()
        stride, padding, dilation, groups = self.geometry
        if _packs(self.weight) and not isinstance(padding, str):
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight.detach(), padding, stride, dilation, groups, None
            )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels before, height, width) -> (batch, channels after, height, width by the stride).

        In the precision of the weights.
        """
        stride, padding, dilation, groups = self.geometry
        x = x.to(self.weight.dtype)
        # Checked first: a graph that reads the batch size is specialised to it.
        if not _traced() and self.has_onednn and not isinstance(padding, str) and _is_one_small(x):
            if self.packed is not None:
                convolved: Tensor = torch.ops.mkldnn._convolution_pointwise(
                    x, self.packed, self.bias, padding, stride, dilation, groups, "none", [], ""
                )
                return convolved
            return torch.mkldnn_convolution(x, self.weight, self.bias, padding, stride, dilation, groups)
        return F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)


class HalfLinear(nn.Module):
    """A linear layer that computes with bfloat16; autocast would convert its weights anew for every batch."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().bfloat16(), requires_grad=False)
        bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().bfloat16(), requires_grad=False)
        self.bias: nn.Parameter | None = bias
        packs = _packs(self.weight)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach()) if packs else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., before) -> (..., after), in bfloat16, as a linear layer gives under autocast."""
        x = x.bfloat16()
        if self.packed is None or x.device.type != "cpu" or _traced():
            return F.linear(x, self.weight, self.bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return product


@cache
def cpu_has_bfloat16() -> bool:
    """Return whether the CPU has instructions for products of bfloat16, and oneDNN uses them: one product is tried.

    A setting (``ONEDNN_MAX_CPU_ISA``) or a virtual machine may withhold from oneDNN what the CPU's flags promise.
    """
    has = torch.cpu.get_capabilities()
    if not (torch.backends.mkldnn.is_available() and (has.get("avx512_bf16") or has.get("amx_bf16"))):  # type: ignore[no-untyped-call]
        return False
    one = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16)
    try:
        torch.mkldnn_convolution(one, one, None, (0, 0), (1, 1), (1, 1), 1)
    except RuntimeError:
        return False
    return True


def halve(module: nn.Module) -> None:
    """Have, in place, linear layers and folded convolutions within ``module`` compute with bfloat16.

    It cannot be trained then; what else is in it, autocast decides.
    """
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, HalfLinear(child))
        elif isinstance(child, FoldedConvolution):
            child.halve()
        else:
            halve(child)


def _traced() -> bool:
    return torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()


def _packs(weight: Tensor) -> bool:
    """Return whether oneDNN can lay out weights in bfloat16 once, instead of for every image.

    What it is called by, torch keeps for its own compiler: where a version has no such names, each image pays.
    """
    named = all(hasattr(torch.ops.mkldnn, name) for name in ("_convolution_pointwise", "_linear_pointwise"))
    return named and weight.device.type == "cpu" and cpu_has_bfloat16()


def _is_one_small(x: Tensor) -> bool:
    computes = x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and cpu_has_bfloat16())
    return len(x) == 1 and computes and x.device.type == "cpu"


def fold_batch_norms(module: nn.Module) -> None:
    """Replace, in place, every sequence (convolution, batch norm) within ``module`` by one :class:`FoldedConvolution`.

    The module has to be in evaluation mode; it cannot be trained any further, and its weights have other names.
    """
    for name, child in module.named_children():
        match list(child.children()) if isinstance(child, nn.Sequential) else []:
            case [nn.Conv2d() as convolution, nn.BatchNorm2d() as norm]:
                setattr(module, name, FoldedConvolution(convolution, norm))
            case _:
                fold_batch_norms(child)
