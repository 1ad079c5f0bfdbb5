"""Gradients on their way back, scaled; no output changes."""

from torch import Tensor, nn
from torch.func import functional_call

from telescopic.inputs import Tensors


def scaled(tensor: Tensor, scale: float) -> Tensor:
    """A tensor, exactly, of whose gradient a share goes back; with 0 nothing before it is computed for."""
    if scale == 1 or not tensor.requires_grad:
        return tensor
    if scale == 0:
        return tensor.detach()
    view = tensor.view_as(tensor)
    # A hook on a view, not `scale * p + (1 - scale) * p.detach()`: the value must stay exactly the tensor's.
    view.register_hook(lambda grad: grad * scale)  # type: ignore[no-untyped-call]
    return view


def run_scaled(module: nn.Module, x: Tensors, scale: float) -> Tensors:
    """Call a module whose parameters' gradients are scaled; 0 detaches them, so that they cost nothing."""
    if scale == 1:
        return module(x)
    shares = {parameter: scaled(parameter, scale) for parameter in module.parameters()}
    # Each place that holds a parameter once: with tie_weights, functional_call would not give back the parameters of a
    # layer that stands in the module twice.
    places = {
        name: shares[parameter]
        for prefix, part in module.named_modules()
        for name, parameter in part.named_parameters(prefix, recurse=False, remove_duplicate=False)
    }
    return functional_call(module, places, (x,), tie_weights=False)
