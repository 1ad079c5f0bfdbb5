"""Networks that are trained together become what each becomes by itself; see benchmarks/together.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from telescopic.cost import cost
from telescopic.data import Dataset, Preprocess, Split
from telescopic.extract import extract
from telescopic.nested import Nested
from telescopic.papers import shrinknets
from telescopic.shrink.family import fold_family
from telescopic.train import Recipe, fit

import together

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture(scope="module")
def images() -> Dataset:
    """Of two channels, the brighter quarter of which is the class."""
    generator = torch.manual_seed(0)
    labels = torch.arange(160) % 4
    inputs = torch.randint(150, (160, 2, 16, 16), generator=generator)
    for number, label in enumerate(labels.tolist()):
        inputs[number, :, 8 * (label // 2) :, 8 * (label % 2) :][:, :8, :8] += 60
    splits = [
        Split(inputs[part].to(torch.uint8), labels[part]) for part in (slice(100), slice(100, 130), slice(130, 160))
    ]
    return Dataset("quarters", *splits, tuple("abcd"), "made")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("network", "kind"),
    [("mlp", "fixed"), ("mlp", "shrinknets"), ("lenet", "fixed-l2"), ("lenet", "shrinknets")],
)
def test_together_is_alone(
    network: str, kind: str, device: str, images: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = {"mlp": ((), (24, 20, 16)), "lenet": ((6, 5), (20,))}[network]
    monkeypatch.setattr(shrinknets, "NETWORKS", {**shrinknets.NETWORKS, network: sizes})
    widths = [None, None, None]
    if kind != "shrinknets":
        widths = [tuple(max(2, size - less) for size in (*sizes[0], *sizes[1])) for less in (0, 3, 9)]
    drawn = [
        together.Drawn(number, penalty, w, 7 + number)
        for number, (penalty, w) in enumerate(zip((1e-4, 3e-2, 0.3), widths, strict=True))
    ]
    one = shrinknets.random_model

    def random_model(*args: Any, **options: Any) -> tuple[Nested, Recipe]:
        net, recipe = one(*args, **options)
        return net, replace(recipe, batch_size=24, learning_rate=0.02)

    monkeypatch.setattr(shrinknets, "random_model", random_model)
    epochs, place = 5, torch.device(device)
    options = {"epochs": epochs, "device": place, "dtype": torch.float64}
    begun = together.Together(images, network, kind, drawn, **options)
    looks = iter([False] * 2 + [True])
    assert not begun.run(lambda: next(looks)) and len(begun.seen) == 2
    begun.save(tmp_path / "state.safetensors")
    all_ = together.Together(images, network, kind, drawn, **options)
    assert all_.load(tmp_path / "state.safetensors") and all_.run()
    found = all_.models()

    shrunk = []
    for i, model in enumerate(drawn):
        torch.manual_seed(model.seed)
        net, recipe = shrinknets.random_model(
            kind,
            network,
            penalty=model.penalty,
            widths=model.widths,
            epochs=epochs,
            preprocess=Preprocess.fit(images.train),
            input_shape=images.image_shape,
            classes=4,
        )
        net = net.double()
        how = {"seed": model.seed, "keep": "last", "precision": "fp32", "progress": False, "cpu": device == "cpu"}
        history = fit(net, images, recipe, **how)
        for epoch, ours in zip(history, all_.seen, strict=True):
            assert ours["validation"][i] == pytest.approx(epoch.validation[0])
            assert ours["test"][i] == pytest.approx(epoch.test[0])
            assert tuple(ours["widths"][i]) == (epoch.widths or model.widths)
        # Of a network among wider ones, the living channels stand in front.
        for name, tensor in net.state_dict().items():
            mine = all_.tensors[name][i][tuple(map(slice, tensor.shape))]
            if tensor.is_floating_point() and not tensor.isnan().any():
                torch.testing.assert_close(mine.detach(), tensor, rtol=1e-6, atol=1e-9)
        best = history.best()
        assert (found[i].validation, found[i].test, found[i].epoch) == (best.validation[0], best.test[0], best.epoch)
        if best is history[-1]:
            plain = net
            if kind == "shrinknets":
                plain = fold_family(net, torch.zeros(2, *images.image_shape, dtype=torch.float64, device=place))
            price = cost(extract(plain), images.image_shape)
            assert (found[i].macs, found[i].params) == (price.macs, price.params)
        shrunk.append(history[-1].widths)
    if kind == "shrinknets":
        assert all_.tensors[f"{all_.layers[0]}.weight"].shape[1] == max(widths[0] for widths in shrunk)
        assert len({widths[0] for widths in shrunk}) > 1, "networks of one width would prove little"
    assert max(found, key=lambda model: model.test).test > 0.6


def test_what_is_drawn_depends_on_the_number_alone() -> None:
    five, three = (together.draw("cifar10", "lenet", "fixed-l2", 200, models) for models in (5, 3))
    assert five[:3] == three and len({model.seed for model in five}) == 5
    assert all(1e-6 <= m.penalty <= 1e-2 and m.widths is not None and len(m.widths) == 3 for m in five)
    assert all(1 <= w <= 50 for m in five for w in (m.widths or ())[:2])
    assert all(16 <= (m.widths or ())[2] <= 4096 for m in five)


def test_models_of_like_width_are_trained_together() -> None:
    drawn = together.draw("cifar10", "mlp", "fixed", 100, 50)
    found = together.groups(drawn, 10)
    assert [len(group) for group in found] == [10] * 5
    assert sorted(model.number for group in found for model in group) == list(range(50))
    biggest = [max(torch.tensor(model.widths or ()).prod() for model in group) for group in found]
    assert biggest == sorted(biggest)
