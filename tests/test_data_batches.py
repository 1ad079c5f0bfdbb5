import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from telescopic.data import Augment, DataError, Preprocess, Split, batch_sizes, batches, prepared


def numbered(n: int, device: str = "cpu") -> Split:
    """Every image is its own number."""
    number = torch.arange(n, device=device)
    return Split(number.to(torch.uint8).view(n, 1, 1, 1).expand(n, 2, 3, 3).contiguous(), number)


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def labels(split: Split, size: int, **options: int | None) -> list[list[int]]:
    return [y.tolist() for _, y in batches(split, size, **options)]


def test_in_order_with_a_smaller_last_batch() -> None:
    assert labels(numbered(7), 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert labels(numbered(0), 3, seed=0) == []


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 9))
def test_few_last_images_join_the_batch_before(n: int, size: int, least: int) -> None:
    got = labels(numbered(n), size, least=least)
    assert [number for batch in got for number in batch] == list(range(n)) and [
        len(batch) for batch in got
    ] == batch_sizes(n, size, least)
    assert all(len(batch) == size for batch in got[:-1])
    if len(got) > 1 and size >= least:
        assert least <= len(got[-1]) < size + least
    if n % size == 0 or n % size >= least:
        assert got == labels(numbered(n), size)


def test_shuffled_images_keep_their_labels() -> None:
    seen = []
    for x, y in batches(numbered(200), 64, seed=3, epoch=2):
        assert x.dtype == torch.uint8 and torch.equal(x[:, 1, 2, 2].long(), y)
        seen += y.tolist()
    assert sorted(seen) == list(range(200)) and seen != sorted(seen)


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    order = {(s, e): labels(numbered(50), 50, seed=s, epoch=e)[0] for s in range(3) for e in range(3)}
    torch.manual_seed(7)
    assert labels(numbered(50), 50, seed=1, epoch=2)[0] == order[1, 2]
    assert len({tuple(o) for o in order.values()}) == 9, "seed 0 epoch 1 must differ from seed 1 epoch 0"
    assert labels(numbered(10), 10, seed=0)[0] == [6, 3, 1, 5, 8, 7, 0, 2, 9, 4]  # for ever: results depend on it


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 5), st.none() | st.integers(0, 3))
def test_the_processes_together_see_the_global_batches(n: int, size: int, world: int, seed: int | None) -> None:
    whole = labels(numbered(n), size, seed=seed)
    parts = [labels(numbered(n), size, seed=seed, rank=rank, world=world) for rank in range(world)]
    assert [len(part) for part in parts] == [len(whole)] * world, "all take as many steps"
    for step, batch in enumerate(whole):
        assert [part[step] for part in parts] == [batch[rank::world] for rank in range(world)]


@pytest.mark.parametrize("bad", [{"rank": 2, "world": 2}, {"rank": -1}, {"seed": -1}, {"epoch": -1}, {"world": 0}])
def test_bad_requests_are_refused_at_the_call(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=rf"batches needs .* found batch_size=4.*{next(iter(bad))}="):
        batches(numbered(4), 4, **bad)
    with pytest.raises(ValueError, match="found batch_size=0"):
        batches(numbered(4), 0)


def test_a_split_holds_anything_of_the_same_number() -> None:
    numbers, y = torch.rand(4, 3), torch.rand(4, 2)
    assert len(Split(numbers, y)) == 4 and Split(numbers, y).images is numbers and Split(numbers, y).labels is y
    for x, targets in ((numbers, y[:3]), (torch.tensor(1.0), y), (numbers, torch.tensor(1.0))):
        with pytest.raises(DataError, match=r"as many targets \[n, ...\] as inputs .* these are inputs float32 \["):
            Split(x, targets)
    with pytest.raises(DataError, match="tensors, not ndarray and Tensor"):
        Split(numbers.numpy(), y)  # type: ignore[arg-type]


def test_preprocess_values() -> None:
    x = pixels(5, 3, 4, 4)
    assert torch.equal(Preprocess()(x), x.float() / 255)
    got = Preprocess((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))(x)
    want = (x.double() / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1).double()) / torch.tensor(
        [0.5, 0.6, 0.7]
    ).view(3, 1, 1).double()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=0)
    torch.testing.assert_close(Preprocess((0.5,), (0.5,))(x), x.float() / 127.5 - 1, atol=1e-6, rtol=0)


def test_preprocess_fit_normalises() -> None:
    x = pixels(50, 3, 8, 8) // torch.tensor([1, 2, 3], dtype=torch.uint8).view(3, 1, 1)
    split = Split(x, torch.zeros(50, dtype=torch.int64))
    fitted = Preprocess.fit(split)
    flat = x.double().transpose(0, 1).flatten(1) / 255
    torch.testing.assert_close(torch.tensor(fitted.mean).double(), flat.mean(1), atol=1e-7, rtol=0)
    torch.testing.assert_close(torch.tensor(fitted.std).double(), flat.std(1, correction=0), atol=1e-7, rtol=0)
    constant = Preprocess.fit(Split(torch.full((2, 1, 2, 2), 51, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)))
    assert constant.mean == pytest.approx((0.2,)) and constant.std == (1.0,)


def test_numbers_that_are_no_bytes_are_not_divided() -> None:
    words, floats = torch.tensor([[3, 4], [5, 900]]), torch.tensor([[1.0, 10.0], [3.0, 30.0]], dtype=torch.float64)
    assert Preprocess()(words) is words and Preprocess()(floats) is floats
    assert Augment()(words, torch.Generator()) is words
    fitted = Preprocess.fit(Split(floats, torch.zeros(2)))
    assert fitted == Preprocess((2.0, 20.0), (1.0, 10.0))
    assert fitted(floats).tolist() == [[-1.0, -1.0], [1.0, 1.0]]
    like = torch.zeros(1, dtype=torch.float16)
    assert prepared(words, Preprocess(), like).dtype == torch.int64, "numbers of words stay whole"
    assert prepared(floats, Preprocess(), like).dtype == torch.float16


def test_preprocess_errors() -> None:
    with pytest.raises(ValueError, match="as many means as stds, found 2 and 1"):
        Preprocess((0.0, 0.0), (1.0,))
    for std in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite means and stds above 0"):
            Preprocess((0.0,), (std,))
    with pytest.raises(ValueError, match=r"takes numbers \[batch, 3, ...\], not uint8 \[2, 1, 4, 4\]"):
        Preprocess((0.0,) * 3, (1.0,) * 3)(pixels(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"takes numbers \[batch, channels, ...\], not int64 \[2, 5\]"):
        Preprocess((0.5,), (1.0,))(torch.ones(2, 5, dtype=torch.int64))
    with pytest.raises(DataError, match=r"bytes or floating-point numbers, not int64 \[2, 5\]"):
        Preprocess.fit(Split(torch.ones(2, 5, dtype=torch.int64), torch.zeros(2)))
    with pytest.raises(ValueError, match=r"Augment takes images .* not float32 \[2, 5\]"):
        Augment(pad=1)(torch.rand(2, 5), torch.Generator())
    with pytest.raises(DataError, match="needs images"):
        Preprocess.fit(numbered(0))


def crops(image: torch.Tensor, pad: int) -> dict[bytes, tuple[int, int]]:
    padded = torch.nn.functional.pad(image, [pad] * 4)
    _, height, width = image.shape
    span = range(2 * pad + 1)
    return {padded[:, i : i + height, j : j + width].numpy().tobytes(): (i, j) for i in span for j in span}


def test_augment_takes_every_crop_evenly() -> None:
    x = pixels(1, 3, 5, 7).expand(4500, 3, 5, 7)
    places = crops(x[0], 1)
    out = Augment(pad=1)(x, torch.Generator().manual_seed(0))
    counts = torch.zeros(3, 3)
    for image in out:
        counts[places[image.numpy().tobytes()]] += 1
    assert out.dtype == torch.uint8 and counts.min() > 420 and counts.max() < 580  # 500 expected, sd 21


def test_augment_flips_half_and_each_image_stays_itself() -> None:
    x = pixels(1000, 1, 3, 4)
    out = Augment(flip=True)(x, torch.Generator().manual_seed(0))
    same, mirrored = (out == x).flatten(1).all(1), (out == x.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all() and 440 < mirrored.sum() < 560
    both = Augment(pad=2, flip=True)(x, torch.Generator().manual_seed(1))
    for image, original in zip(both[:100], x, strict=False):
        assert {image.numpy().tobytes(), image.flip(2).contiguous().numpy().tobytes()} & crops(original, 2).keys()


def test_augment_is_determined_by_its_generator() -> None:
    x, augment = pixels(64, 3, 8, 8), Augment(4, True)
    generator = torch.Generator().manual_seed(5)
    first, second = augment(x, generator), augment(x, generator)
    torch.manual_seed(99)
    assert torch.equal(first, augment(x, torch.Generator().manual_seed(5))) and not torch.equal(first, second)
    assert Augment()(x, generator) is x
    assert augment(x[:0], generator).shape == (0, 3, 8, 8)
    with pytest.raises(ValueError, match="0 pixels or more, not -1"):
        Augment(pad=-1)
