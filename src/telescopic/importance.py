"""How important each weight of a network is to its loss."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from telescopic.ambient import plain
from telescopic.wrappers import in_mode, unwrapped


@plain()
def taylor(
    net: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor] = functional.cross_entropy,
) -> dict[str, Tensor]:
    """How much the loss would change without each weight, to first order: (gradient × weight)², summed over batches.

    (Importance Estimation for Neural Network Pruning, Molchanov et al. 2019, arXiv 1906.10771, equation 8.) A few
    batches of training data suffice. The network is run as in eval mode, so that nothing in it changes, and gradients
    that it has stay as they are.

    Args:
        net: a module; of a `Nested`, the full member counts.
        batches: inputs and targets, as `loss` takes them, on the network's device.
        loss: from the network's outputs and the targets to one number.

    Returns:
        For each parameter's name a tensor of its shape, for `slim(order=)`.

    Raises:
        ValueError: if there is no batch, the loss is not one finite number, or it depends on no parameter.
    """
    net = unwrapped(net)
    learning = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    parameters = dict(net.named_parameters())
    found = {
        name: torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))
        for name, parameter in parameters.items()
    }
    learns = [name for name, parameter in parameters.items() if parameter.is_floating_point()]
    number = 0
    try:
        with in_mode(net, training=False):
            for name in learns:
                parameters[name].requires_grad_()
            for inputs, targets in batches:
                number += 1
                with torch.enable_grad():
                    value = loss(net(inputs), targets)
                if value.numel() != 1 or not bool(torch.isfinite(value).all()):
                    raise ValueError(
                        f"of batch {number} the loss is no finite number: {list(value.shape)}, {value!s:.100}"
                    )
                if not value.requires_grad:
                    raise ValueError("the loss depends on no parameter of the network")
                gradients = torch.autograd.grad(value.sum(), [parameters[n] for n in learns], allow_unused=True)
                for name, gradient in zip(learns, gradients, strict=True):
                    if gradient is not None:
                        found[name] += (gradient.to(found[name].dtype) * parameters[name].detach()).square()
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(learning[name])
    if not number:
        raise ValueError("importance needs a batch of inputs and targets at least, and there is none")
    return found
