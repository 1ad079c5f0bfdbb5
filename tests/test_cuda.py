"""What a GPU is to do as the CPU does it: train, go on, take members out, export. Each test runs on both.

As a program (`torchrun --nproc-per-node 1 tests/test_cuda.py DEVICE FOLDER`) it trains as one of one processes.
"""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from telescopic.data import Augment, Dataset, Preprocess, Split
from telescopic.export import export
from telescopic.extract import extract
from telescopic.layers.cuts import named_tensors
from telescopic.nested import Nested
from telescopic.networks import mlp
from telescopic.papers import cnsn, doubly_nested
from telescopic.papers.shrinknets_runs import peak_bytes
from telescopic.shrink.family import add_filters_to_family
from telescopic.subnet import Subnet
from telescopic.train import History, Objective, Recipe, Shrink, evaluate, fit
from telescopic.train.layout import layout_for
from telescopic.train.optimizer import optimizer_for

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
PREPROCESS = Preprocess((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def images(num: int = 40) -> Dataset:
    """Whose class is a half that is brighter."""
    generator = torch.manual_seed(0)
    inputs, labels = torch.randint(150, (num + 30, 3, 32, 32), generator=generator), torch.arange(num + 30) % 2
    inputs[labels == 0, :, :16] += 90
    inputs[labels == 1, :, 16:] += 90
    parts = [Split(inputs[s].to(torch.uint8), labels[s]) for s in (slice(30, None), slice(15), slice(15, 30))]
    return Dataset("halves", *parts, ("upper", "lower"), "made")


def linear() -> tuple[Nested, Recipe]:
    torch.manual_seed(0)
    net = add_filters_to_family(mlp(3 * 32 * 32, (24, 20), 2, dropout=(0.1,)), torch.zeros(2, 3, 32, 32))
    how = Shrink(penalty=0.2, collect=2)
    return net, Recipe(epochs=3, batch_size=16, learning_rate=0.02, optimizer="adam", shrink=how, preprocess=PREPROCESS)


def convolutional(scale: float = 0.0625) -> tuple[Nested, Recipe]:
    torch.manual_seed(0)
    net = cnsn.network(scale=scale, classes=2, statistics="per-entry")
    augment = Augment(pad=2)
    return net, Recipe(epochs=4, batch_size=10, learning_rate=0.02, preprocess=PREPROCESS, augment=augment)


def causal() -> tuple[Nested, Recipe]:
    torch.manual_seed(0)
    options: dict[str, Any] = {"groups": 4, "channels": (2, 4, 8), "blocks": 1, "epochs": 2, "classes": 2}
    net, recipe = doubly_nested.experiment(doubly_nested.BEST_WAY, preprocess=PREPROCESS, **options)
    return net, replace(recipe, batch_size=10)


NETWORKS = {"linear": linear, "convolutional": convolutional, "causal": causal}


def trained(net: Nested, recipe: Recipe, device: str, **options: Any) -> History:
    options = {"keep": "last", "precision": "fp32", "cpu": device == "cpu", "progress": False, **options}
    return fit(net, images(), recipe, **options)


def tensors(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in named_tensors(net).items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_learns_what_it_does_on_the_cpu(name: str, precision: str, device: str) -> None:
    histories = []
    for place in dict.fromkeys((device, "cpu")):
        net, recipe = NETWORKS[name]()
        histories.append(trained(net, recipe, place, precision=precision if place == device else "fp32"))
        assert next(net.parameters()).device.type == place
        assert all(t.isfinite().all() or "filter." in key for key, t in tensors(net).items())
    losses = [history[-1].losses for history in histories]
    assert losses[0] == pytest.approx(losses[-1], rel=0.3 if precision == "bf16" else 0.05)
    assert histories[0][-1].loss < histories[0][0].loss and histories[0].precision == precision


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_that_was_stopped_goes_on(name: str, device: str, tmp_path: Path) -> None:
    """Bit for bit, but for convolutions on a GPU, whose gradients are added up in no fixed order."""
    net, recipe = NETWORKS[name]()
    expected = trained(net, recipe, device)
    passes: list[nn.Module] = []

    def stop(module: nn.Module, args: object, out: object) -> None:
        passes.extend([module] * isinstance(module, Objective))
        if len(passes) == 4:
            os.kill(os.getpid(), signal.SIGINT)
            passes.append(module)

    handle = nn.modules.module.register_module_forward_hook(stop)
    try:
        with pytest.raises(KeyboardInterrupt, match="stopped in epoch"):
            trained(NETWORKS[name]()[0], recipe, device, out=tmp_path)
    finally:
        handle.remove()
    again = NETWORKS[name]()[0]
    history = trained(again, recipe, device, out=tmp_path, resume=True)
    exact = device == "cpu" or name == "linear"
    for key, tensor in tensors(net).items():
        rtol, atol = (0.0, 0.0) if exact else (0.05, 0.01)
        torch.testing.assert_close(tensors(again)[key], tensor, rtol=rtol, atol=atol, equal_nan=True)
    assert history[-1].loss == pytest.approx(expected[-1].loss, rel=0 if exact else 0.02)
    # What was trained on one device is read on the other.
    elsewhere = NETWORKS[name]()[0]
    trained(elsewhere, recipe, "cpu", out=tmp_path, resume=True)
    assert all(torch.equal(tensors(elsewhere)[key].nan_to_num(), t.nan_to_num()) for key, t in tensors(again).items())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_member_is_taken_out_and_answers_as_it_did(name: str, device: str, tmp_path: Path) -> None:
    net, recipe = NETWORKS[name]()
    x = recipe.preprocess(images().test.inputs.to(device))
    net.to(device).all(x)  # in training mode, so that BatchNorm has seen something
    all_ = net.eval().all(x)
    for place in (0, len(net.grid) // 2, len(net.grid) - 1):
        member = extract(net, net.grid[place])
        torch.testing.assert_close(member(x), all_[place], rtol=1e-3, atol=1e-3)
    if name == "convolutional":
        import onnxruntime

        path = export(extract(net, Subnet(entry=2)), tmp_path / "member.onnx", x[:2])
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        answers = session.run(None, {session.get_inputs()[0].name: x[:2].cpu().numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(answers), net(x[:2], Subnet(entry=2)).cpu(), rtol=1e-2, atol=1e-3)
    scores, there = (evaluate(net.to(place), [images().test], recipe.preprocess) for place in (device, "cpu"))
    torch.testing.assert_close(scores, there, rtol=0, atol=1 / 15 + 1e-9)  # of one image


@pytest.mark.parametrize("device", DEVICES)
def test_optimizers_are_fused_and_layouts_are_those_measured(device: str) -> None:
    for make in NETWORKS.values():
        net, recipe = make()
        assert optimizer_for(net.to(device), recipe, torch.device(device)).defaults["fused"] is True
    net = convolutional(scale=0.125)[0].to(device)
    assert layout_for(net, torch.device(device), "bf16") == torch.channels_last
    assert layout_for(net, torch.device("cuda"), "fp32") == torch.contiguous_format


@pytest.mark.parametrize("device", DEVICES)
def test_memory_that_was_needed_is_told(device: str) -> None:
    net, recipe = convolutional()
    trained(net, recipe, device)
    held = sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers()))
    assert held < (peak_bytes() or 0) < 64 * 2**30


@pytest.mark.parametrize("device", DEVICES)
def test_one_process_under_torchrun_trains_as_one_without(device: str, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if device == "cpu":  # with what it sets, for test_distributed.py starts it there, and it loads torch once more
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        torchrun, environment = [sys.executable], environment | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    command = [*torchrun, __file__, device, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    net, recipe = linear()
    trained(net, recipe, device)
    stored = load_file(tmp_path / "net.safetensors")
    for name, tensor in tensors(net).items():
        torch.testing.assert_close(stored[name], tensor, rtol=1e-5, atol=1e-6, equal_nan=True)


if __name__ == "__main__":
    network, how = linear()
    trained(network, how, sys.argv[1])
    save_file(tensors(network), Path(sys.argv[2]) / "net.safetensors")
