"""Optimizers that go on with a network whose tensors are cut: those that treat each entry of a parameter alone."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.optim import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop, Rprop

from telescopic.layers.filter import filters_of

# Not LBFGS, whose history is one vector of all parameters; not Adafactor, whose moments belong to rows and columns; not
# Muon, which makes a matrix orthogonal, though its state has the shape of the matrix.
_KNOWN: set[type[Optimizer]] = {
    SGD, ASGD, Adam, AdamW, Adamax, NAdam, RAdam, Adagrad, Adadelta, RMSprop, Rprop,
}  # fmt: skip


def register_optimizer(kind: type[Optimizer]) -> None:
    """Vouch for an optimizer of yours: `compact_` and `order_` may cut and reorder what it keeps.

    Its step must change each entry of a parameter by that entry's own value, gradient and state alone, so that the
    others do not notice when it is gone: no norm, sum or mean over a parameter, no matrix product. What it keeps of
    a parameter are single numbers, and tensors of the parameter's shape. Nothing of this can be seen from outside.

    Args:
        kind: its class; subclasses are others.
    """
    _KNOWN.add(kind)


def checked(model: nn.Module, optimizers: Iterable[Optimizer]) -> tuple[Optimizer, ...]:
    """Optimizers, without wrappers around them, of which it is known what to cut.

    Raises:
        ValueError: if one is not known to treat each entry alone, holds none of the network's parameters, or keeps
            something of another shape; or if all together hold only some of the parameters that are trained.
    """
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    unwrapped = tuple(map(_unwrapped, optimizers))
    held: set[int] = set()
    for optimizer in unwrapped:
        kind = type(optimizer).__name__
        if type(optimizer) not in _KNOWN:
            known = ", ".join(sorted(each.__name__ for each in _KNOWN))
            raise ValueError(
                f"{kind} is not known to update each entry of a parameter by itself, and if it does not, training "
                f"would go on differently without some of them. Known are {known}; if yours does, "
                f"say so with shrink.register_optimizer({kind})"
            )
        mine = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not mine & own.keys():
            raise ValueError(
                f"this {kind} holds none of the network's {len(own)} parameters but {len(mine)} of elsewhere, so that "
                "its steps do not train this network. shrink.add_filters returns a copy: make the optimizer from what "
                "it returned"
            )
        held |= mine
        _require_shapes(model, optimizer)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = [name for key, name in own.items() if name in trained and key not in held]
    if unwrapped and missing:
        kinds = " and ".join(type(optimizer).__name__ for optimizer in unwrapped)
        rest = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"{kinds} {'holds' if len(unwrapped) == 1 else 'hold'} {len(trained) - len(missing)} of the network's "
            f"{len(trained)} parameters that require gradients; missing are {', '.join(missing[:3])}{rest}. Give all "
            "optimizers that train the network, or freeze what none of them trains with requires_grad_(False)"
        )
    return unwrapped


def refuse_decay(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Refuse optimizers that decay θ.

    Raises:
        ValueError: naming the filter.
    """
    thetas = {id(part.theta): path for path, part in filters_of(model).items()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            decayed = [thetas[id(p)] for p in group["params"] if id(p) in thetas]
            if decayed and group.get("weight_decay"):
                raise ValueError(
                    f"{type(optimizer).__name__} decays θ of filter {decayed[0]} by {group['weight_decay']}, which "
                    "would kill channels: make it of shrink.parameter_groups(model) instead of model.parameters()"
                )


def _unwrapped(optimizer: object) -> Optimizer:
    """What accelerate wraps. Other wrappers may keep something themselves, as Lookahead does."""
    if type(optimizer).__module__ == "accelerate.optimizer":
        optimizer = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"a {type(optimizer).__name__} was given where optimizers stand, one by one behind the network; a batch of "
            "inputs is named: example=x. Schedulers and gradient scalers need not be given"
        )
    return optimizer


def _require_shapes(model: nn.Module, optimizer: Optimizer) -> None:
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.numel() > 1 and value.shape != parameter.shape:
                raise ValueError(
                    f"{type(optimizer).__name__} keeps {key!r} of {name} in the shape {tuple(value.shape)}, and {name} "
                    f"is {tuple(parameter.shape)}: its state is that of a network of other widths"
                )
