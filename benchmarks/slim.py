"""Claim: a network that is trained already becomes a family whose narrower members are as good as twins.

A ResNet for CIFAR-10 with dense weights is trained alone; then it is slimmed into four widths and trained on, the
widest, the narrowest and one other at a step. Twins are the same members with new weights, each trained alone for as
many epochs as both together. Beside it the family from new weights, for as many epochs, all widths from the beginning
or the widest alone at first; and, where Torch-Pruning is installed, the network pruned by it once for each width, to as
many channels by the norms of groups, and trained on for as many epochs as the family. Runs go on after a kill:

    python benchmarks/slim.py [--out runs/slim] [--depth 14] [--alone 6] [--together 4] [--seed 0] [--images 50000]
"""

import argparse
import copy
import importlib.util
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import telescopic as tl

import results

SHARES = (0.25, 0.5, 0.75, 1.0)


def renewed(module: nn.Module, seed: int) -> nn.Module:
    """The same layers with weights as new ones have."""
    torch.manual_seed(seed)
    made = copy.deepcopy(module)
    for layer in made.modules():
        if callable(getattr(layer, "reset_parameters", None)):
            layer.reset_parameters()
    return made


def pruned(network: nn.Module, narrow: nn.Module, example: torch.Tensor) -> nn.Module | None:
    """A copy that Torch-Pruning has made as narrow as another one, layer by layer; None if it is not installed."""
    if importlib.util.find_spec("torch_pruning") is None:
        return None
    import torch_pruning

    made = copy.deepcopy(network).eval()
    convs = [[part for part in net.modules() if isinstance(part, nn.Conv2d)] for net in (made, narrow)]
    pruner = torch_pruning.pruner.MagnitudePruner(
        made,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio_dict={one: 1 - two.out_channels / one.out_channels for one, two in zip(*convs, strict=True)},
        ignored_layers=[part for part in made.modules() if isinstance(part, nn.Linear)],
    )
    pruner.step()
    return made


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/slim"))
    parser.add_argument("--data", default="cifar10")
    for name, value in (("depth", 14), ("alone", 6), ("together", 4), ("seed", 0), ("images", 50_000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    data = tl.data.load(args.data, seed=args.seed)
    if args.images < len(data.train):
        few = tl.data.Split(data.train.images[: args.images], data.train.labels[: args.images])
        data = tl.data.Dataset(data.name, few, data.validation, data.test, data.classes, data.source)
    pre = tl.Preprocess.fit(data.train)
    common: dict[str, Any] = {"preprocess": pre, "augment": tl.Augment(pad=4, flip=True)}
    plain: dict[str, Any] = {"learning_rate": 0.1, "schedule": "one-cycle", "nesterov": True, "weight_decay": 5e-4}
    figures: dict[str, Any] = {}
    config = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}

    def trained(name: str, net: tl.Nested, recipe: tl.Recipe) -> tl.Nested:
        start = time.time()
        history = tl.fit(net, data, recipe, out=args.out / name, resume=True, seed=args.seed, cpu=True, keep="last")
        test = {label: round(100 * value, 2) for label, value in zip(history.labels, history[-1].test, strict=True)}
        seconds = round(sum(epoch.seconds for epoch in history))
        figures[name] = {"test %": test, "seconds": seconds, "epochs": len(history)}
        print(name, figures[name], f"{time.time() - start:.0f} s now", flush=True)
        results.write("slim", config, figures)
        return net

    torch.manual_seed(args.seed)
    blocks = tl.networks.resnet(args.depth, channels=data.input_shape[0], classes=len(data.classes))
    network = nn.Sequential(*blocks)
    both = args.alone + args.together
    alone = trained("alone", tl.Nested([network]), tl.Recipe(epochs=args.alone, **plain, **common))
    example = pre(data.train.images[:8])
    family = tl.slim(alone, example, SHARES)
    trained("slim", family, tl.recipes.slim(args.together, **common))
    costs = tl.measure(family, input_shape=data.input_shape)
    figures["macs"] = {member.label: member.macs for member in costs}
    figures["narrowing"] = str(vars(family)["narrowing"]).splitlines()
    twins = [tl.extract(family, member.subnet) for member in costs]
    for share, twin in zip(SHARES[:-1], twins[:-1], strict=True):
        net = tl.Nested([renewed(twin, args.seed)])
        trained(f"twin-{share:g}", net, tl.Recipe(epochs=both, **plain, **common))
        if (narrow := pruned(alone.stages[0], twin, example)) is not None:
            theirs, ours = (tl.cost(net, data.input_shape).macs for net in (narrow, twin))
            assert theirs == ours, f"Torch-Pruning's has {theirs} multiply-adds, and ours {ours}"
            recipe = tl.Recipe(epochs=args.together, **{**plain, "learning_rate": 0.05}, **common)
            trained(f"pruned-{share:g}", tl.Nested([narrow]), recipe)
    # One training in which the family begins as the widest alone: the same epochs, and one fall of the rate.
    new = tl.slim(tl.Nested([renewed(network, args.seed)]), example, SHARES)
    first = tl.Phase(name="widest alone", until=args.alone, weights="full", distillation=0.0)
    trained("slim-delayed", new, tl.recipes.slim(both, learning_rate=0.1, phases=(first,), **common))
    uneven = tl.slim(alone, example, [member.macs / costs[-1].macs for member in costs], of="macs")
    figures["narrowing by macs"] = str(vars(uneven)["narrowing"]).splitlines()
    trained("slim-by-macs", uneven, tl.recipes.slim(args.together, **common))
    new = tl.slim(tl.Nested([renewed(network, args.seed)]), example, SHARES)
    trained("slim-from-new", new, tl.recipes.slim(both, learning_rate=0.1, **common))
    trained("twin-1", tl.Nested([renewed(network, args.seed)]), tl.Recipe(epochs=both, **plain, **common))


if __name__ == "__main__":
    main()
