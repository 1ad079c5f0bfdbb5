"""Networks that take whole numbers, or several inputs by name; and features that pass between stages as several."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from fastapi.testclient import TestClient
from torch import Tensor, nn

from telescopic import data, layers, tasks
from telescopic.architecture import register_layer
from telescopic.bundle import Bundle, load, save
from telescopic.catalogue import Catalogue, measure
from telescopic.cost import cost, latency, nominal_macs
from telescopic.data import Augment, DataError, Dataset, Preprocess, Split
from telescopic.engine import Engine
from telescopic.engine.manifest import Manifest, PackError
from telescopic.export import export
from telescopic.extract import extract
from telescopic.inputs import each, examples, named, shape_of
from telescopic.nest import nest
from telescopic.nested import Nested
from telescopic.packing import pack
from telescopic.serve import application
from telescopic.shapes import checked_shape
from telescopic.shrink import add_filters_to_family, fold_family
from telescopic.slim import slim
from telescopic.subnet import Subnet
from telescopic.testing import check_nested
from telescopic.train import Recipe, Shrink, evaluate, fit

WORDS, LENGTH = 12, 7
SHAPE = {"ids": ("int64", LENGTH), "mask": ("bool", LENGTH)}


class InputsRead(nn.Module):
    """Ids and a mask to hidden states and the mask."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, channels)

    def forward(self, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.table(x["ids"]), x["mask"]


class Mix(nn.Module):
    """Each word and the mean of the words that count."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.own, self.others = nn.Linear(channels, channels), nn.Linear(channels, channels, bias=False)

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden, mask = x
        return torch.tanh(self.own(hidden) + self.others(pooled(x))[:, None]), mask


class Pool(nn.Module):
    """The mean of the words that count, and scores."""

    def __init__(self, channels: int = 8, classes: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        scores: Tensor = self.linear(pooled(x))
        return scores


def pooled(x: tuple[Tensor, Tensor]) -> Tensor:
    hidden, mask = x
    weights = mask.to(hidden.dtype)[..., None]
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def family(**options: Any) -> Nested:
    torch.manual_seed(0)
    return Nested([Mix(), Mix()], {0: InputsRead()}, {0: Pool(), 1: Pool()}, **options)


def sentences(num: int = 160) -> tuple[dict[str, Tensor], Tensor]:
    """Of different lengths; the class says whether word 3 is among them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, WORDS, (num, LENGTH), generator=generator)
    mask = torch.arange(LENGTH) < torch.randint(2, LENGTH + 1, (num, 1), generator=generator)
    ids = torch.where(mask, ids, 0)
    return {"ids": ids, "mask": mask}, (ids == 3).any(1).long()


# ------------------------------------------------------------------------------------------------- the way of a family


def test_a_family_of_sentences_goes_all_the_way(tmp_path: Path) -> None:
    """Trained, measured, judged by hand, extracted, saved, loaded, and exported in each format."""
    for cls in (InputsRead, Mix, Pool):
        register_layer(cls, [])
    inputs, targets = sentences()
    given = data.of(inputs, targets, classes=("without", "with"))
    assert given.input_shape == SHAPE and given.train.inputs["mask"].dtype == torch.bool
    net = family()
    recipe = Recipe(epochs=12, batch_size=32, optimizer="adam", learning_rate=0.02)
    out = tmp_path / "run"
    history = fit(net, given, recipe, out=out, cpu=True, progress=False)
    assert history.best().validation[1] > 0.8 and history[-1].loss < 0.8 * history[0].loss
    catalogue = measure(net, given)
    x, y = given.test.inputs, given.test.targets
    for row in catalogue:
        with torch.no_grad():
            right = (net(x, row.subnet).argmax(1) == y).double().mean().item()
        assert row.test_score == pytest.approx(right)
        taken = extract(net, row.subnet)
        assert torch.equal(taken(x), net(x, row.subnet))
        assert row.params == sum(p.numel() for p in taken.parameters())
        # An own matrix at each word and one for the mean of them, for each stage; and the scores.
        assert row.macs == (row.subnet.exit + 1) * (LENGTH + 1) * 64 + 16
    assert [row.macs for row in catalogue] == nominal_macs(net, SHAPE)
    kept = Catalogue.from_json(out / "catalogue.json")
    assert kept.input_shape == SHAPE and [m.macs for m in kept] == [m.macs for m in catalogue]
    member = extract(net, Subnet(exit=0))
    for suffix in (".onnx", ".pt2"):
        path = export(member, tmp_path / f"member{suffix}", each(lambda x: x[:5], x))
        card = json.loads(path.with_name(f"{path.name}.json").read_text())
        assert [(one["name"], one["dtype"]) for one in card["input"]] == [("ids", "int64"), ("mask", "bool")]
    session = onnxruntime.InferenceSession(str(tmp_path / "member.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, each(lambda x: x.numpy(), x))
    np.testing.assert_allclose(logits, member(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    program = torch.export.load(tmp_path / "member.pt2").module()
    torch.testing.assert_close(program(x), member(x))


def test_classes_of_ones_own_are_rebuilt(tmp_path: Path) -> None:
    for cls in (InputsRead, Mix, Pool):
        register_layer(cls, [])
    net, x = family().eval(), sentences(4)[0]
    path = save(net, tmp_path / "net.safetensors", measure(net, input_shape=SHAPE), input_shape=x)
    assert Bundle.open(path).input_shape == SHAPE
    loaded = load(path)
    for member in net.grid:
        assert torch.equal(loaded(x, member), net(x, member))
        assert torch.equal(load(path, member)(x), net(x, member))


def test_laws_hold_of_several_inputs() -> None:
    check_nested(family(statistics="per-entry"), sentences(3)[0], rebuild=False)
    check_nested(family(), SHAPE, rebuild=False)


class Peeks(Mix):
    """Looks at its neighbours."""

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden, mask = super().forward(x)
        return hidden - hidden.mean(0), mask


class Writes(InputsRead):
    """Changes what others read."""

    def forward(self, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        made = super().forward(x)
        x["ids"].clamp_(max=3)
        return made


def test_laws_are_broken_by_several_inputs_too() -> None:
    x = sentences(3)[0]
    with pytest.raises(AssertionError, match=r"Neighbours: .* stages\.0 \(Peeks\) mixes the examples of a batch"):
        check_nested(Nested([Peeks(), Mix()], {0: InputsRead()}, {1: Pool()}), x, rebuild=False)
    with pytest.raises(AssertionError, match="changes its input: something works in place"):
        check_nested(Nested([Mix()], {0: Writes()}, {0: Pool()}), x, rebuild=False)


def test_dropout_is_of_features_and_leaves_a_mask() -> None:
    net, (x, _) = family(dropout=(0.5,)).train(), sentences(8)
    seen: list[tuple[Tensor, Tensor]] = []
    net.stages[1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net(x)
    hidden, mask = seen[0]
    assert 0.3 < (hidden == 0).double().mean() < 0.7 and torch.equal(mask, x["mask"])


# ------------------------------------------------------------------------------------------------ whole numbers; tokens


def blocks(classes: int = 5) -> list[nn.Module]:
    torch.manual_seed(0)
    middle = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2)]
    return [nn.Embedding(WORDS, 8), *middle, nn.Linear(8, classes)]


def test_words_are_nested_priced_and_saved(tmp_path: Path) -> None:
    net = nest(blocks(), input_shape=("int64", LENGTH), exits=(1,))
    assert isinstance(net.exits["1"], nn.Linear), "scores for each position: a linear layer at each"
    ids = sentences(90)[0]["ids"]
    given = data.of(ids, torch.where(ids == 0, -100, (ids + 1) % 5))
    assert given.input_shape == ("int64", LENGTH)
    out, recipe = tmp_path / "run", Recipe(epochs=15, batch_size=16, optimizer="adam", learning_rate=0.03)
    history = fit(net, given, recipe, task=tasks.tokens(), out=out, cpu=True, progress=False)
    assert history.best().test == (1.0, 1.0)
    bundle = Bundle.open(out / "model.safetensors")
    assert bundle.input_shape == ("int64", LENGTH) and bundle.catalogue is not None
    assert [row.macs for row in bundle.catalogue] == [LENGTH * (64 + 40), LENGTH * (128 + 40)]
    assert torch.equal(bundle.network()(ids), net(ids))
    check_nested(net, ids)
    path = export(bundle.member(Subnet(exit=1)), tmp_path / "words.onnx", ids)
    (end,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_inputs()
    assert (end.name, end.type) == ("input", "tensor(int64)")


def test_nest_takes_tuples_and_own_adapters() -> None:
    net = nest(
        [InputsRead(), Mix(), Mix(), Pool()],
        input_shape=SHAPE,
        entries={2: InputsRead()},
        exits={1: Pool()},
        statistics="shared",
    )
    x = sentences(4)[0]
    assert len(net.grid) == 4 and torch.equal(net.all(x)[-1], net(x))
    check_nested(net, x, rebuild=False)
    with pytest.raises(ValueError, match=r"the head of exit 1: several tensors pass here, \(2, 7, 8\), bool \(2, 7\)"):
        nest([InputsRead(), Mix(), Pool()], input_shape=SHAPE, exits=(1,))
    with pytest.raises(
        ValueError, match=r"adapter of entry 1: the input is int64 \(2, 7\), and step_down makes layers"
    ):
        nest(blocks(), input_shape=("int64", LENGTH), entries=(1,))
    with pytest.raises(
        ValueError, match=r"block 0 \(InputsRead\): this InputsRead failed on an input of shape \(2, 7\)"
    ):
        nest([InputsRead(), Pool()], input_shape=(LENGTH,))


def test_a_series_of_one_dimension(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Conv1d(a, b, 3, padding=1), nn.ReLU()) for a, b in ((2, 8), (8, 8))]
    net = nest([*parts, layers.pooled_head((8, 20), 3)], input_shape=(2, 20), exits=(0,))
    check_nested(net, (2, 20))
    x = examples(4, (2, 20), torch.float32, "cpu")
    export(extract(net, Subnet(exit=0)), tmp_path / "series.onnx", x)


class Twice(nn.ReLU):
    """Two tensors of one."""

    def forward(self, x: Tensor) -> Any:
        return x, x


def test_widths_of_several_tensors_are_refused() -> None:
    adapter = nn.Sequential(nn.Linear(3, 8), Twice())
    with pytest.raises(ValueError, match="a Twice cannot be in it: it gives no features"):
        Nested([nn.Identity()], {0: adapter}, {0: layers.SharedHead(8, 2, width_groups=2)}, groups=2)


# ------------------------------------------------------------------------------------------------------ packs of such


@pytest.mark.parametrize("statistics", ["shared", "per-entry"])
def test_a_family_of_sentences_is_packed_and_run(tmp_path: Path, statistics: Any) -> None:
    """Two entries share stages that pass hidden states and a mask; the engine is asked with names."""
    torch.manual_seed(0)
    stages, entries = [Mix(), Mix(), Mix()], {0: InputsRead(), 1: InputsRead()}
    net = Nested(stages, entries, {1: Pool(), 2: Pool()}, statistics=statistics).eval()
    x, _ = sentences(9)
    folder = pack(net, tmp_path / "pack", input_shape=SHAPE, samples=x, members="all")
    engine = Engine(folder, cache=tmp_path / "cache")
    assert engine.input_shape == SHAPE and len(engine.members) == 4
    given = each(lambda x: x.numpy(), x)
    for row in engine.members:
        wanted = net(x, row.subnet).detach().numpy()
        for asked in (given, (given["ids"].astype(np.int32), given["mask"])):
            np.testing.assert_allclose(engine.run(asked, subnet=row.subnet).logits, wanted, rtol=1e-4, atol=1e-5)
    *_, last = engine.anytime(given)
    np.testing.assert_allclose(last.logits, net(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert engine.run(given, max_latency_ms=1000).fits
    for wrong, reason in (
        ({"ids": given["ids"]}, "this network takes ids, mask, in a dict .*, not a dict of ids"),
        (given["ids"], "this network takes ids, mask, .*, not a ndarray"),
        (given | {"ids": given["ids"].astype(float)}, "ids: it is int64, not float64: convert it"),
        (given | {"mask": given["mask"].astype(np.int64)}, "mask: it is bool, not int64"),
        (given | {"mask": given["mask"][:3]}, "as many examples each, and these {'ids': 9, 'mask': 3}"),
        (given | {"mask": given["mask"][:, :3]}, r"mask: inputs have shape \[batch, 7\]"),
    ):
        with pytest.raises(ValueError, match=reason):
            engine.run(wrong)
    assert "Input: ids int64 `[batch, 7]` from 0 to 11, mask bool `[batch, 7]`." in (folder / "README.md").read_text()
    with pytest.raises(PackError, match="int8 is for networks of one input"):
        pack(net, tmp_path / "int8", input_shape=SHAPE, samples=x, int8=torch.zeros(2, 3))


def test_words_are_packed(tmp_path: Path) -> None:
    net = nest(blocks(), input_shape=("int64", LENGTH), exits=(1,)).eval()
    ids = sentences(9)[0]["ids"]
    engine = Engine(pack(net, tmp_path / "pack", input_shape=("int64", LENGTH), samples=ids), cache=False)
    assert engine.input_shape == ("int64", LENGTH) and engine.task == "tokens"
    np.testing.assert_allclose(engine.run(ids.numpy()).logits, net(ids).detach().numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"at \[0, 2\] is -1, and the network takes 0 to 11"):
        engine.run(np.array([[1, 1, -1, 1, 1, 1, 1]]))
    with TestClient(application(engine, slo_ms=60_000), base_url="http://localhost") as client:
        file = io.BytesIO()
        np.save(file, ids[:4].numpy())
        told = client.post("/predict", content=file.getvalue(), headers={"content-type": "application/x-npy"}).json()
        by_name = client.post("/predict", json={"inputs": {"input": ids[:4].tolist()}}).json()
        np.testing.assert_allclose(told["outputs"], net(ids[:4]).detach().numpy(), rtol=1e-4, atol=1e-5)
        assert told["outputs"] == by_name["outputs"]
        for wrong, reason in (([[-1] * LENGTH], r"is -1, and the network takes 0 to 11"), ([[0.5] * LENGTH], "whole")):
            refused = client.post("/predict", json={"inputs": wrong})
            assert refused.status_code == 422 and reason in refused.json()["error"]
    with pytest.raises(ValueError, match="samples are float32 of shape"):
        pack(net, tmp_path / "other", input_shape=("int64", LENGTH), samples=ids.float())


def test_what_a_manifest_says_of_types_is_not_believed(tmp_path: Path) -> None:
    net = nest(blocks(), input_shape=("int64", LENGTH), exits=(1,)).eval()
    text = (pack(net, tmp_path / "pack", input_shape=("int64", LENGTH)) / "manifest.json").read_text()
    assert Manifest.from_json(text).types == {"input": "int64"}
    for change, reason in (
        ({"types": {"input": "float99"}}, "'input' cannot be 'float99'"),
        ({"types": {"elsewhere": "int64"}}, "'elsewhere' cannot be"),
        ({"types": {"logits.3": "int64"}}, "'logits.3' cannot be"),
        ({"types": ["input"]}, "is no dict"),
    ):
        with pytest.raises(PackError, match=reason):
            Manifest.from_json(json.dumps(json.loads(text) | change))
    one = json.loads(text)
    one["tensors"]["input.more"] = [3]
    with pytest.raises(PackError, match="one input and several"):
        Manifest.from_json(json.dumps(one))


# ----------------------------------------------------------------------------------------------------- shapes and costs


def test_a_shape_is_plain_data() -> None:
    net, x = family().eval(), sentences(3)[0]
    assert checked_shape(json.loads(json.dumps(SHAPE))) == SHAPE == shape_of(x)
    assert cost(extract(net), SHAPE) == cost(extract(net), x)
    assert latency(extract(net), SHAPE, seconds=0.01).runs >= 3
    both = (torch.zeros(2, 3), {"a": torch.zeros(2, dtype=torch.int32)})
    assert shape_of(both) == ((3,), {"a": ("int32",)}) == checked_shape([[3], {"a": ["int32"]}])
    assert [*named(both)] == ["input0", "1.a"] or [*named(both)] == ["input0", "input1.a"]
    made = examples(5, SHAPE, torch.float64, "cpu")
    assert made["ids"].dtype == torch.int64 and made["mask"].all() and made["ids"].shape == (5, LENGTH)
    again = examples(5, x, torch.float64, "cpu")
    assert torch.equal(again["ids"], x["ids"][[0, 1, 2, 0, 1]])
    for wrong in (8, (0,), (3.0,), ("float99", 3), {}, {"": (3,)}, {"a": 3}, (True,), ((3,), 4), ("int64", "int64")):
        with pytest.raises(ValueError, match="must be whole numbers above 0"):
            checked_shape(wrong)
    with pytest.raises(ValueError, match=r"input_shape is .*, and the inputs of own are"):
        measure(net, data.of(*sentences(40)), input_shape=(LENGTH,))


def test_catalogues_and_bundles_of_strangers(tmp_path: Path) -> None:
    facts = measure(family(), input_shape=SHAPE).to_dict()
    assert Catalogue.from_dict(json.loads(json.dumps(facts))).input_shape == SHAPE
    for wrong in ({"ids": ["int64", -1]}, {"ids": "int64"}, [["int64", 3], 4], None):
        with pytest.raises(ValueError, match="input_shape"):
            Catalogue.from_dict({**json.loads(json.dumps(facts)), "input_shape": wrong})


# -------------------------------------------------------------------------------------------- data; what is refused


def test_data_of_several_inputs() -> None:
    x, y = sentences(60)
    found = data.of({"ids": x["ids"].numpy().astype(np.int32), "mask": x["mask"].numpy()}, y, test=10, validation=5)
    assert [len(split) for split in found.splits] == [45, 5, 10]
    for split in found.splits:
        assert split.inputs["ids"].dtype == torch.int64 and split.inputs["mask"].dtype == torch.bool
        assert torch.equal((split.inputs["ids"] == 3).any(1).long(), split.targets), "each keeps its own"
    pair = data.of((x["ids"], np.ones((60, 2))), y)
    assert isinstance(pair.train.inputs, tuple) and pair.input_shape == (("int64", LENGTH), (2,))
    assert len(found.train[2:5]) == 3 and torch.equal(found.train[2:5].inputs["ids"], found.train.inputs["ids"][2:5])
    with pytest.raises(DataError, match="there are 59 inputs 'mask' and 60 targets"):
        data.of({"ids": x["ids"], "mask": x["mask"][1:]}, y)
    with pytest.raises(DataError, match=r"inputs\['ids'\]: expected numbers"):
        data.of({"ids": ["a"] * 60}, y)
    with pytest.raises(
        DataError, match=r"training ids int64 .* and mask bool .*, but test ids int64 .* and length int64"
    ):
        data.of(x, y, test=({"ids": x["ids"], "length": x["ids"][:, 0]}, y))
    with pytest.raises(DataError, match=r"training ids int64 .*, but validation ids float32"):
        data.of({"ids": x["ids"]}, y, validation=({"ids": x["ids"].float()}, y))
    with pytest.raises(DataError, match="inputs and targets are tensors, not ndarray and Tensor"):
        Split(np.ones(3), torch.ones(3))
    with pytest.raises(DataError, match="as many targets"):
        Split({"a": torch.ones(3), "b": torch.ones(4)}, torch.ones(3))
    with pytest.raises(DataError, match=r"has inputs .*, and images are"):
        _ = found.image_shape


def given_with(**changed: Any) -> Dataset:
    x, y = sentences(60)
    return data.of({**x, **changed}, y)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (lambda: given_with(ids=torch.rand(60, LENGTH)), "the network does not take these ids .* and mask .*:"),
        (lambda: given_with(mask=torch.ones(60, 2).bool()), r"does not take these ids \[7\] and mask \[2\]"),
        (lambda: data.of({"words": sentences(60)[0]["ids"]}, sentences(60)[1]), "these words .*: it asks for 'ids'"),
        (lambda: data.of(sentences(60)[0]["ids"].float(), sentences(60)[1]), r"does not take these inputs \[7\]"),
        (lambda: given_with(more=torch.tensor([[0.0], [torch.nan]] * 30)), r"more\[\d+, 0\] of a split of .* is nan"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_done(given: Any, reason: str) -> None:
    net = family()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for attempt in (
        lambda: fit(net, given(), Recipe(epochs=1, batch_size=8, learning_rate=0.1), cpu=True, progress=False),
        lambda: evaluate(net, [given().test], Preprocess()),
    ):
        with pytest.raises(ValueError, match=reason):
            attempt()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_what_is_for_one_input_only_says_so() -> None:
    given, recipe = data.of(*sentences(60)), Recipe(epochs=1, batch_size=8, learning_rate=0.1)
    for changed, reason in (
        ({"preprocess": Preprocess((0.5,), (0.5,))}, "means and stds are for one input, and these are ids, mask"),
        ({"augment": Augment(flip=True)}, "Augment takes images .*, not int64 .*, bool"),
    ):
        with pytest.raises(ValueError, match=reason):
            fit(family(), given, replace(recipe, **changed), cpu=True, progress=False)
    with pytest.raises(DataError, match="needs images, or one input"):
        Preprocess.fit(given.train)
    pixels = {"image": torch.full((2, 3), 51, dtype=torch.uint8), "ids": torch.ones(2, dtype=torch.int64)}
    seen = Preprocess()(pixels)
    assert seen["image"].tolist() == [[pytest.approx(0.2)] * 3] * 2 and seen["ids"] is pixels["ids"]


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (
            np.ones((2, 3)),
            r"as a tensor \[batch, ...\], or a dict or tuple of such, not a numpy.ndarray: give torch.from",
        ),
        ({"ids": [[1]], "mask": torch.ones(1, 1)}, "not a int for ids"),
        (
            {"ids": torch.ones(2, 3).long(), "mask": torch.ones(3, 3).bool()},
            r"as many examples each.* mask has shape \(3, 3",
        ),
    ],
)
def test_what_a_network_is_called_with(x: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        family()(x)
    with pytest.raises(ValueError, match=reason):
        family().all(x)


def test_words_that_an_embedding_has_not() -> None:
    net = nest(blocks(), input_shape=("int64", LENGTH), exits=(1,))
    with pytest.raises(ValueError, match="goes from 0 to 12, and its first layer, an Embedding, takes 0 to 11"):
        net(torch.tensor([[0, 12]]))
    with pytest.raises(ValueError, match="its first layer, an Embedding, takes whole numbers"):
        net.all(torch.rand(2, 3))


# ------------------------------------------------------------------------------------------------------------- widths


class Sum(nn.Module):
    """Words that count, and a number, in one tensor of features."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(WORDS, channels), nn.Linear(LENGTH, channels)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        hidden = (self.table(x["ids"]) * x["mask"][..., None]).sum(1)
        features: Tensor = hidden + self.linear(x["mask"].to(hidden.dtype))
        return features


def summed() -> Nested:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(2)]
    return Nested(blocks, {0: Sum()}, {0: nn.Linear(32, 2), 1: nn.Linear(32, 2)}).eval()


def test_slim_takes_several_inputs_and_tensors_between_stages() -> None:
    register_layer(Sum, [])
    x, _ = sentences(6)
    whole = summed()
    made = slim(whole, x, widths=(0.5, 1.0))
    assert made.groups == 2 and torch.allclose(made(x), whole(x), atol=1e-6)
    assert made.narrowing.channels == {
        ("entries.0.table", "entries.0.linear"): (16, 32), ("stages.0.0",): (16, 32), ("stages.1.0",): (16, 32)
    }  # fmt: skip
    shapes = [tuple(parameter.shape) for parameter in extract(made, Subnet(width=1)).parameters() if parameter.ndim > 1]
    assert shapes == [(WORDS, 16), (16, LENGTH), (16, 16), (16, 16), (2, 16)]
    check_nested(made, x)
    torch.manual_seed(0)
    tuples = Nested([Mix(32), Mix(32)], {0: Both(32)}, {1: Pool(32)}).eval()  # a tuple is one value, here too
    given = (x["ids"], x["mask"])
    made = slim(tuples, given, widths=(0.5, 1.0))
    assert made.groups == 2 and torch.allclose(made(given), tuples(given), atol=1e-6)
    check_nested(made, given, rebuild=False)


class Both(InputsRead):
    """The same of a tuple."""

    def forward(self, x: Any) -> tuple[Tensor, Tensor]:
        return self.table(x[0]), x[1]


def test_widths_are_learned_with_several_inputs(tmp_path: Path) -> None:
    inputs, targets = sentences(120)
    given = data.of(inputs, targets)
    recipe = Recipe(epochs=2, batch_size=20, learning_rate=0.05, shrink=Shrink(penalty=0.1, method="proximal"))
    how: dict[str, Any] = {"out": tmp_path, "cpu": True, "progress": False, "keep": "last"}
    history = fit(add_filters_to_family(summed(), inputs), given, recipe, **how)
    assert history.filters and sum(history[-1].widths) < 32 * len(history.filters)
    again = fit(add_filters_to_family(summed(), inputs), given, replace(recipe, epochs=3), resume=True, **how)
    assert again[:2] == history[:2] and sum(again[-1].widths) <= sum(history[-1].widths)
    small = load(tmp_path / "model.safetensors")
    assert isinstance(small, Nested) and small.all(inputs).isfinite().all()
    pair = (inputs["ids"], inputs["mask"])
    filtered = add_filters_to_family(Nested([nn.Linear(32, 32)], {0: Two()}, {0: nn.Linear(32, 2)}).eval(), pair)
    folded = fold_family(filtered, pair)
    assert torch.allclose(folded(pair), filtered(pair), atol=1e-6)


class Two(Sum):
    """The same of a tuple."""

    def forward(self, x: Any) -> Tensor:
        return super().forward({"ids": x[0], "mask": x[1]})


def test_causal_widths_of_several_inputs() -> None:
    """An adapter that ends in a layer with channels may read anything; what passes between stages is one tensor."""
    register_layer(Sum, [])
    torch.manual_seed(0)
    stage = nn.Sequential(layers.CausalLinear(32, 32, width_groups=2), nn.ReLU())
    head, x = layers.SharedHead(32, 2, width_groups=2), sentences(6)[0]
    check_nested(Nested([stage], {0: nn.Sequential(Sum(), nn.Linear(32, 32))}, {0: head}, groups=2).eval(), x)
    with pytest.raises(ValueError, match=r"entries.0 knows nothing of the 2 channel groups .* ends in a convolution"):
        Nested([stage], {0: Sum()}, {0: head}, groups=2)


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        ({"ids": np.ones((2, LENGTH))}, r"not a ndarray for ids: give torch.from_numpy\(x\)"),
        ({"ids": torch.ones(2, LENGTH, dtype=torch.int64)}, "does not run on two inputs of the example"),
        ({"ids": torch.ones(0, LENGTH), "mask": torch.ones(0, LENGTH)}, "one input or more, not a tensor"),
    ],
)
def test_examples_of_several_that_are_none(example: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        slim(summed(), example)
