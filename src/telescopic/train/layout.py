"""How features lie in memory while a network is trained."""

import torch
from torch import nn

from telescopic.inputs import Tensors, each
from telescopic.layers.filter import Filter
from telescopic.layers.narrowing import takes_width, used
from telescopic.nested import Nested


def layout_for(net: nn.Module, device: torch.device, precision: str) -> torch.memory_format:
    """Channels last where that is safe and was measured to be faster, else the usual, contiguous layout.

    A joint step of CNSN gains up to 30 % by it in bf16 and loses nothing. In fp32 on the CPU it gains 20 % with up to
    128 channels, and loses 9 to 21 % with 512 (benchmarks/speed_cnsn.py); likewise with AVX2 alone.

    On the CPU it is safe with channels in eights, as oneDNN's kernels take them. With fewer than 8, those for AVX2
    write past the end of a buffer in the backward pass of strided 1 × 1 convolutions, also of one that reads an image:
    with one thread it crashes, with two the gradient is wrong at times (benchmarks/crashes.py). Where each width is a
    pass, what narrower members run counts as well.
    """
    kernels = [p.shape for p in net.parameters() if p.ndim > 3] + narrow_kernels(net)
    if not kernels or any(len(kernel) > 4 for kernel in kernels):  # there is another such layout for 3-d convolutions
        return torch.contiguous_format
    if device.type == "cuda":
        pays = precision == "bf16"
    elif device.type == "cpu":
        # Larger kernels of 1 or 3 channels read the image, whose gradient nobody asks for. Filters make any width of
        # any; kernels of transposed convolutions name their channels the other way round.
        safe = all(
            made % 8 == 0 and (read % 8 == 0 or (read in (1, 3) and max(size) > 1)) for made, read, *size in kernels
        )
        safe = safe and not any(
            isinstance(part, Filter | nn.ConvTranspose2d) or _silent(part) for part in net.modules()
        )
        pays = safe and (precision == "bf16" or max(kernel[0] for kernel in kernels) <= 128)
    else:
        pays = False
    return torch.channels_last if pays else torch.contiguous_format


def narrow_kernels(net: nn.Module) -> list[torch.Size]:
    """Shapes of the kernels of two dimensions that narrower members convolve with, where each width is a pass."""
    if not isinstance(net, Nested) or net.causal:
        return []
    kernels = []
    for part in (part for _, part in net.parts() if takes_width(part)):
        for width in range(1, net.groups):
            for parameter, mask in used(part, width):
                if mask is not None and parameter.ndim == 4:
                    left = mask.expand_as(parameter).flatten(2).any(2)  # [outputs, inputs of one]
                    sizes = int(left.any(1).sum()), int(left.sum(1).max())
                    kernels.append(torch.Size((*sizes, *parameter.shape[2:])))
    return kernels


def _silent(layer: nn.Module) -> bool:
    """Whether it is told widths and does not say what it uses in each."""
    told, says = (callable(getattr(layer, method, None)) for method in ("in_width", "used"))
    return told and not says


def lay_out_(net: nn.Module, layout: torch.memory_format) -> None:
    """Put all kernels of a network into a layout, whatever they were in."""
    net.to(memory_format=layout)  # type: ignore[call-overload] # torch's own stub lacks this form


def laid_out(x: Tensors, layout: torch.memory_format) -> Tensors:
    """Inputs in a layout, those that are images, which alone have it."""
    return each(lambda x: x.to(memory_format=layout) if x.ndim == 4 else x, x)
