"""Layers for inference alone: convolutions with batch norm folded in, linear layers in bfloat16; twice as quick.

In evaluation mode a batch norm multiplies and shifts each channel by constants, which the convolution's weights can do.
And for one small image on one thread torch passes oneDNN by: its own convolution then takes twice as long. Products of
bfloat16 take less than half the time on CPUs that have instructions for them, which is where they are used.
"""

from __future__ import annotations

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

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels before, height, width) -> (batch, channels after, height, width by the stride)."""
        stride, padding, dilation, groups = self.geometry
        # Asked first: a graph that asks for the batch's size is made for that size alone.
        traced = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
        if not traced and self.has_onednn and not isinstance(padding, str) and _is_one_small(x):
            return torch.mkldnn_convolution(x, self.weight, self.bias, padding, stride, dilation, groups)
        return F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)


class HalfLinear(nn.Module):
    """A linear layer that computes with bfloat16; autocast would convert its weights anew for every batch."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().bfloat16(), requires_grad=False)
        bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().bfloat16(), requires_grad=False)
        self.bias: nn.Parameter | None = bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., before) -> (..., after), in the precision that came in."""
        return F.linear(x.bfloat16(), self.weight, self.bias).to(x.dtype)


def cpu_has_bfloat16() -> bool:
    """Return whether the CPU has instructions for products of bfloat16."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def halve_linears(module: nn.Module) -> None:
    """Replace, in place, every linear layer within ``module`` by a :class:`HalfLinear`; it cannot be trained then."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, HalfLinear(child))
        else:
            halve_linears(child)


def _is_one_small(x: Tensor) -> bool:
    return len(x) == 1 and x.dtype == torch.float32 and x.device.type == "cpu"


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
