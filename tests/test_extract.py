import copy

import pytest
import torch
from torch import Tensor, nn

from telescopic import Nested, Subnet, extract
from telescopic.layers import CausalBatchNorm2d, CausalConv2d, Residual, SharedHead, step_down
from telescopic.networks import mlp


class Doubled(nn.Sequential):
    """A Sequential only by inheritance: its forward pass is another one."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def kinds(module: nn.Module) -> list[type[nn.Module]]:
    return [type(child) for child in module.children()]


def test_the_result_is_what_one_would_write_by_hand() -> None:
    net = mlp(6, (5, 6), 3, dropout=(0.5,)).double()
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    assert kinds(extract(net)) == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert kinds(extract(net, Subnet(entry=1))) == [nn.Flatten, nn.Linear, nn.Linear, nn.ReLU, nn.Linear]
    (last, _), head = net.stages[1], net.exits["1"]
    adapter = net.entries["1"][1]
    hidden = (x.flatten(1) @ adapter.weight.T + adapter.bias) @ last.weight.T + last.bias
    by_hand = hidden.clamp(min=0) @ head.weight.T + head.bias
    torch.testing.assert_close(extract(net, Subnet(entry=1))(x), by_hand, rtol=0, atol=1e-12)
    assert kinds(extract(net, Subnet(entry=2))) == [nn.Flatten, nn.Linear]  # softmax regression


def test_entry_and_exit_choose_adapter_stages_and_head() -> None:
    stages, heads = [nn.Linear(2, 2) for _ in range(3)], {i: nn.Linear(2, 2) for i in (-1, 1, 2)}
    adapters = {0: nn.Linear(2, 2), 2: nn.Linear(2, 2)}
    net = Nested(stages, adapters, heads)
    made_of = {
        Subnet(): [adapters[0], *stages, heads[2]],
        Subnet(exit=1): [adapters[0], *stages[:2], heads[1]],
        Subnet(exit=-1): [adapters[0], heads[-1]],
        Subnet(entry=2): [adapters[2], stages[2], heads[2]],
        Subnet(entry=2, exit=1): [adapters[2], heads[1]],
    }
    assert len(made_of) == len(net.grid)
    for subnet, modules in made_of.items():
        taken = extract(net, subnet)
        assert [layer.weight.tolist() for layer in taken] == [module.weight.tolist() for module in modules]


def test_only_plain_sequentials_and_identities_are_laid_flat() -> None:
    stage = nn.Sequential(nn.Sequential(nn.Identity(), nn.Tanh()), Doubled(nn.Sequential(nn.Tanh()), nn.Identity()))
    net = Nested([stage])
    taken, x = extract(net), torch.randn(2, 3)
    assert kinds(taken) == [nn.Tanh, Doubled]
    assert torch.equal(taken(x), net(x))
    nothing = extract(Nested([nn.Identity()]))
    assert kinds(nothing) == []
    assert torch.equal(nothing(x), x)


def test_it_is_a_copy_in_eval_mode() -> None:
    net = Nested([nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))]).train()
    net(torch.randn(4, 3)).sum().backward()
    before = copy.deepcopy(net.state_dict())
    taken = extract(net)
    assert not any(module.training for module in taken.modules())
    assert all(module.training for module in net.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in taken.parameters())
    with torch.no_grad():
        for tensor in taken.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_what_is_frozen_stays_frozen() -> None:
    net = Nested([nn.Linear(3, 3), nn.Linear(3, 3)])
    net.stages[0].requires_grad_(False)
    assert [parameter.requires_grad for parameter in extract(net).parameters()] == [False, False, True, True]


def test_it_has_the_statistics_of_its_own_entry() -> None:
    stages = [nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))]
    net = Nested(stages, {0: nn.Identity(), 1: nn.Identity()}, statistics="per-entry")
    for member in net.grid:
        net.train()(10 * torch.randn(8, 3), member)
    means = {member.entry: extract(net, member)[-1].running_mean for member in net.grid}
    assert torch.equal(means[0], net.stages[1][1].running_mean)
    assert not torch.equal(means[1], means[0])
    for member in net.grid:
        x = torch.randn(4, 3)
        assert torch.equal(extract(net, member)(x), net.eval()(x, member))


def wide() -> Nested:
    """Widths of 2, 4 and 7 channels; two entries, two exits; statistics that have seen data."""
    torch.manual_seed(0)

    def block(given: int, made: int, stride: int = 1) -> nn.Sequential:
        conv = CausalConv2d(given, made, 3, stride, 1, width_groups=3)
        return nn.Sequential(conv, CausalBatchNorm2d(made, width_groups=3), nn.ReLU())

    def head(average: bool) -> nn.Sequential:
        shared = SharedHead(7, 4, width_groups=3, average=average)
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), shared)

    stages = [Residual(block(7, 7)), block(7, 7, 2)]
    entries = {0: nn.Conv2d(2, 7, 1), 1: step_down((2, 6, 6), (7, 6, 6))}
    net = Nested(stages, entries, {0: head(False), 1: head(True)}, statistics="per-entry", groups=3)
    for _ in range(3):
        net.train().all(torch.randn(8, 2, 6, 6))
    return net.double().eval()


def test_a_width_is_taken_out_as_stock_layers_of_the_first_channels() -> None:
    net, x = wide(), torch.randn(4, 2, 6, 6, dtype=torch.float64)
    net.stages[1].requires_grad_(False)
    taken = extract(net, Subnet(entry=1, width=2))
    first = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert kinds(taken) == [*first, *first, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]
    adapter, conv, norm = taken[0], taken[3], taken[4]
    assert torch.equal(adapter.weight, net.entries["1"][0].weight[:4])
    assert torch.equal(conv.weight, net.stages[1][0].weight[:4, :4]) and (conv.in_channels, conv.stride) == (4, (2, 2))
    assert not conv.weight[:2, 2:].any() and conv.weight[2:, 2:].all()  # groups of 2 channels each
    assert torch.equal(norm.running_var, net.twins["1-1"][1].running_var[:4])
    assert torch.equal(taken[-1].weight, net.exits["1"][-1].weight[:, :4] / 2)  # an average of two groups
    learn = {"0", "1", "8"}  # adapter and head
    assert {name.split(".")[0] for name, p in taken.named_parameters() if p.requires_grad} == learn
    before = copy.deepcopy(net.state_dict())
    torch.testing.assert_close(taken(x), net(x, Subnet(entry=1, width=2)), rtol=0, atol=1e-12)
    with torch.no_grad():
        for tensor in taken.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_norms_are_folded_in_every_width() -> None:
    net, x = wide(), torch.randn(4, 2, 6, 6, dtype=torch.float64)
    for member in net.grid:
        folded = extract(net, member, fold_bn=True)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        torch.testing.assert_close(folded(x), net(x, member), rtol=0, atol=1e-10)


def test_what_cannot_be_made_narrower() -> None:
    net = wide()
    net.stages[1] = nn.Conv2d(7, 7, 1)
    with pytest.raises(ValueError, match=r"^a Conv2d cannot be made narrower: use the Causal layers"):
        extract(net, Subnet(width=1))
    net.entries["0"] = nn.Identity()
    with pytest.raises(ValueError, match=r"^the adapter of a network with several widths ends in a convolution"):
        extract(net)


def test_no_such_member() -> None:
    with pytest.raises(ValueError, match=r"no member entry=4: .* nearest is entry=2,exit=1,width=1"):
        extract(mlp(4, (4, 4), 2), Subnet(entry=4))
