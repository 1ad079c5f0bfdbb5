"""The last layers of heads, fitted once the features before them are final, which is a convex problem."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from telescopic.ambient import plain
from telescopic.data import Dataset, Preprocess, Split, batches, prepared
from telescopic.denormals import denormals_as_zero
from telescopic.fits import check_fits
from telescopic.inputs import Tensors, each
from telescopic.layers.causal import prefix
from telescopic.layers.heads import SharedHead
from telescopic.layers.narrowing import flat
from telescopic.nested import Nested
from telescopic.quantities import human
from telescopic.tasks import CLASSIFICATION, Task
from telescopic.wrappers import copied, hooked, in_mode

MOST_BYTES = 2**32
"""Of features that are held at once."""
STEPS = 50
"""Of L-BFGS; on CIFAR-10 the score after 25 was that after 100 within 0.2 points."""


@plain()
def fit_heads(
    net: Nested,
    data: Dataset,
    preprocess: Preprocess | None = None,
    *,
    task: Task | None = None,
    num_examples: int = 10_000,
    penalty: float = 1e-4,
    seed: int = 0,
) -> Nested:
    """A copy of a network whose heads end in linear layers that are the best for its features; all else is as it was.

    When a network learns, its features change, training inputs are altered at random, and hundreds of members pull at
    weights that they share; so small members and early exits end far from the best that can be read off their features.
    Here these are computed once, of training examples as they are, and what is left for each head is logistic
    regression, or what the task has instead: convex, and solved by L-BFGS on standardised features (Liu and Nocedal
    1989). A `layers.SharedHead` gets weights of its own for each width. Members that enter at different stages and read
    one head learn it together. A member costs what it did.

    What is found is kept where the loss of the validation examples is lower by more than its standard error; without
    such examples, always.

    Args:
        net: the trained network, which is left as it is. Its heads end in an `nn.Linear` or a `layers.SharedHead`;
            one without parameters, such as that of a last stage which answers itself, stays as it is.
        data: what it is to answer.
        preprocess: turns inputs into what the network sees, as in the recipe that it was trained by.
        task: what it has learned; by default classification.
        num_examples: how many training examples to use at most, drawn at random, and of the validation examples.
        penalty: factor of the sum of squared weights of the standardised features, beside the mean loss.
        seed: which examples are drawn.

    Raises:
        ValueError: if a head ends in something else, or none can be fitted; if widths take a pass each; if the network,
            the data and the task do not fit; or the features of so many examples would take more than 4 GiB.
    """
    made = copied(net)
    alone: dict[int, SharedHead] = {}
    for part in [*made.modules()]:
        for name, layer in part._modules.items():
            if isinstance(layer, SharedHead) and not layer.separate:
                # Entries with statistics of their own see a twin of the head, which has the same parameters.
                part._modules[name] = alone.setdefault(id(layer.weight), _separated(layer))
    how: dict[str, Any] = {"task": task, "num_examples": num_examples, "penalty": penalty, "seed": seed}
    fit_heads_(made, data.train, data.validation, preprocess, **how)
    return made


@plain()
def fit_heads_(
    net: Nested,
    train: Split,
    validation: Split,
    preprocess: Preprocess | None = None,
    *,
    task: Task | None = None,
    num_examples: int = 10_000,
    penalty: float = 1e-4,
    seed: int = 0,
) -> None:
    """The same in place, of a network whose shared heads are separate already."""
    if num_examples < 1 or not 0 <= penalty < math.inf:
        raise ValueError(f"heads are fitted to 1 example or more, with a penalty from 0: not {num_examples}, {penalty}")
    preprocess, task = preprocess or Preprocess(), task or CLASSIFICATION
    require_fitting(net)
    if not len(train):
        raise ValueError("heads are fitted to training examples, and there are none")
    check_fits(net, [train, validation], preprocess, task)
    with denormals_as_zero(), in_mode(net, training=False):
        read, targets = _seen(net, train, preprocess, num_examples, seed)
        tried, wanted = _seen(net, validation, preprocess, num_examples, seed)
        for name, last in _fittable(net).items():
            for width in range(1, net.groups + 1):
                here, apart = (
                    [x[..., : prefix(x.shape[-1], net.groups, width)] for x in found.get(name, [])]
                    for found in (read, tried)
                )
                had = _get(last, width)
                made = _fitted(*had, here, targets, task, penalty)
                if apart:
                    gained = _losses(*had, apart, wanted, task) - _losses(*made, apart, wanted, task)
                    if not gained.mean() > gained.std() / len(gained) ** 0.5:
                        continue
                _set(last, width, *made)


def require_fitting(net: Nested) -> None:
    """Refuse a network whose heads cannot be fitted by `fit_heads_`.

    Raises:
        ValueError: if a head ends in no linear layer, or in one with the same weights for all widths; or if widths take
            a pass each.
    """
    if net.groups > 1 and not net.causal:
        raise ValueError(
            "heads cannot be fitted where each width is a pass of its own, as in tl.slim: there all widths read one "
            "layer's weights, which has learned from all of them as it is"
        )
    if not _fittable(net):
        raise ValueError("no head of this network has weights that could be fitted: its stages answer themselves")
    for name, last in _fittable(net).items():
        if hooked(last) or not (type(last) is nn.Linear or isinstance(last, SharedHead)):
            kind = type(last).__name__ + " with hooks" * hooked(last)
            raise ValueError(f"the head of exit {name} ends in {kind}, and can be fitted if it ends in an nn.Linear")
        if isinstance(last, SharedHead) and not last.separate:
            raise ValueError(
                f"the head of exit {name} serves all widths with the same weights: make it with separate=True, so that "
                "each can be fitted by itself"
            )


def _fittable(net: Nested) -> dict[str, nn.Module]:
    """The last layers of heads that have parameters, by their exits."""
    return {name: flat(head)[-1] for name, head in net.exits.items() if any(True for _ in head.parameters())}


def _separated(head: SharedHead) -> SharedHead:
    """The same function, in which each width has room for weights of its own."""
    options: dict[str, Any] = {"width_groups": head.width_groups, "average": head.average}
    made = SharedHead(head.in_features, head.classes, **options, conditioned=head.conditioned, separate=True)
    made.to(head.weight).load_state_dict(head.state_dict(), strict=False)
    for name, parameter in head.named_parameters():
        made.get_parameter(name).requires_grad_(parameter.requires_grad)
    return made.train(head.training)


Read = dict[str, list[Tensor]]
"""Exit → what the last layer of its head reads of all examples `[examples, ..., features]`, for each entry."""


@torch.no_grad()
def _seen(net: Nested, split: Split, preprocess: Preprocess, num_examples: int, seed: int) -> tuple[Read, Tensor]:
    """Features and targets of some examples of a split; none of an empty one."""
    first, parts, targets, left = next(net.parameters()), list[Read](), list[Tensor](), num_examples
    if not len(split):
        return {}, torch.zeros(0)
    for inputs, some in batches(split, 200, seed=seed):
        found = _features(net, prepared(each(lambda x, left=left: x[:left], inputs), preprocess, first))
        if not parts:
            _require_room(found, num_examples if split.loader is not None else min(num_examples, len(split)))
        parts.append(found)
        targets.append(some[:left].to(first.device))
        left -= len(targets[-1])
        if left <= 0:
            break
    together = {name: [torch.cat(xs) for xs in zip(*(part[name] for part in parts), strict=True)] for name in parts[0]}
    return together, torch.cat(targets)


def _features(net: Nested, x: Tensors) -> Read:
    """What the last layers read of a batch at full width; what members share is run once."""
    done: dict[tuple[nn.Module, ...], Tensors] = {(): x}
    found: Read = {name: [] for name in _fittable(net)}
    for member in net.grid:
        if member.width < net.groups or str(member.exit) not in found:
            continue
        *body, (_, head) = net.path(member)
        ran: tuple[nn.Module, ...] = ()
        for module in (*(module for _, module in body), *flat(head)[:-1]):
            before, ran = ran, (*ran, module)
            if ran not in done:
                done[ran] = module(done[before])
        found[str(member.exit)].append(done[ran])
    return found


def _require_room(found: Read, examples: int) -> None:
    batch = [x for xs in found.values() for x in xs]
    size = sum(x.numel() // len(x) * x.element_size() for x in batch)
    if size * examples > MOST_BYTES:
        raise ValueError(
            f"what the heads read of {examples:,} examples takes {human(size * examples, 'B')}, and at most "
            f"{human(MOST_BYTES, 'B')} are held: give num_examples={MOST_BYTES // size:,} or fewer"
        )


def _fitted(
    weight: Tensor, bias: Tensor | None, read: Sequence[Tensor], targets: Tensor, task: Task, penalty: float
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the smallest mean loss of all examples, beginning with these."""
    x, targets = torch.cat([*read]), torch.cat([targets] * len(read))
    rows = x.flatten(0, -2)
    mean = torch.zeros_like(rows[0]) if bias is None else rows.mean(0)
    spread = (rows - mean).square().mean(0).sqrt()
    spread = torch.where(spread > 1e-6 * (1 + mean.abs()), spread, 1)  # what is always the same says nothing
    x = (x - mean) / spread
    w = (weight * spread).detach().clone().requires_grad_()
    b = None if bias is None else (bias + weight @ mean).detach().clone().requires_grad_()
    learns = [w] if b is None else [w, b]
    optimizer = torch.optim.LBFGS(learns, max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = task.loss(functional.linear(x, w, b)[None], targets).mean() + penalty * w.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    made = w.detach() / spread
    if not made.isfinite().all():  # of a loss that is not
        return weight, bias
    return made, None if b is None else b.detach() - made @ mean


@torch.no_grad()
def _losses(weight: Tensor, bias: Tensor | None, read: Sequence[Tensor], targets: Tensor, task: Task) -> Tensor:
    """Each example's loss, a mean over those who read the head."""
    return task.loss(torch.stack([functional.linear(x, weight, bias) for x in read]), targets).mean(0)


def _get(layer: nn.Module, width: int) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a width."""
    if isinstance(layer, SharedHead):
        return layer.of_width(width)
    assert isinstance(layer, nn.Linear)
    return layer.weight, layer.bias


@torch.no_grad()
def _set(layer: nn.Module, width: int, weight: Tensor, bias: Tensor | None) -> None:
    """Let a width have this weight and bias, and no other width be changed."""
    if isinstance(layer, SharedHead):
        assert layer.own is not None and layer.shift is not None and bias is not None
        had, features = layer.of_width(width)[0], weight.shape[1]
        layer.own[width - 1, :, :features] += (weight - had) * (width if layer.average else 1)
        layer.shift[width - 1] = bias - layer.bias
        return
    assert isinstance(layer, nn.Linear)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
