import json
import random
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from telescopic import documents, tensorfile
from telescopic.tensorfile import opened, write

from chance import examples


class FileError(ValueError):
    pass


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "large": torch.randn(300, 1000, generator=generator),  # more than one piece
        "small": torch.randn(3, generator=generator, dtype=torch.float64),
        "half": torch.randn(7, 300, generator=generator).bfloat16(),
        "number": torch.tensor(5),
        "none": torch.ones(0, 4),
        "yes": torch.tensor([True, False]),
    }


def written(folder: Path, document: str = "{}") -> Path:
    path = folder / "tensors"
    write(path, tensors(), document)
    return path


def start(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def test_what_is_read_equals_what_was_written(tmp_path: Path) -> None:
    with opened(written(tmp_path, '{"a": 1}'), FileError) as file:
        assert file.document == '{"a": 1}' and file.places.keys() == tensors().keys()
        for name, tensor in tensors().items():
            read = file.read(name)
            assert torch.equal(read, tensor) and read.dtype == tensor.dtype and read.shape == tensor.shape


@pytest.mark.parametrize("name", ["large", "small", "half", "number", "yes"])
def test_every_flipped_bit_is_noticed_by_its_own_tensor_alone(name: str, tmp_path: Path) -> None:
    path = written(tmp_path)
    whole, chance = path.read_bytes(), random.Random(0)
    with opened(path, FileError) as file:
        place = file.places[name]
    for _ in range(20):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 1, 4))):
            damaged[start(whole) + chance.randrange(place.first, place.last)] ^= 1 << chance.randrange(8)
        if damaged == whole:
            continue
        path.write_bytes(damaged)
        with (
            pytest.raises(FileError, match=f"tensors: it is damaged: '{name}' has another checksum"),
            opened(path, FileError) as file,
        ):
            file.read(name)
        with opened(path, FileError) as file:
            for other in tensors().keys() - {name}:
                assert torch.equal(file.read(other), tensors()[other])


@pytest.mark.parametrize("distance", [3, 4, 509, 512, 1024, 60_000])
def test_values_that_change_places_are_noticed(distance: int, tmp_path: Path) -> None:
    """The sum of all would not tell. 1024 is a page of 4 kB."""
    path = written(tmp_path)
    damaged = bytearray(path.read_bytes())
    with opened(path, FileError) as file:
        first = start(damaged) + file.places["large"].first
    pages = np.frombuffer(damaged, "<u4", 300_000, first)
    here, there = slice(0, 3), slice(distance, distance + 3)
    pages[here], pages[there] = pages[there].copy(), pages[here].copy()
    path.write_bytes(damaged)
    with pytest.raises(FileError, match="'large' has another checksum"), opened(path, FileError) as file:
        file.read("large")


def test_a_checksum_is_that_of_column_sums_and_the_rest() -> None:
    rest = b"the rest"
    words = np.arange(2 * 509, dtype="<u8") * 2**55  # which overflow
    sums = [int(words[i]) + int(words[509 + i]) for i in range(509)]
    expected = tensorfile.zlib.crc32(struct.pack("<509Q", *(s % 2**64 for s in sums)), 7)
    assert tensorfile._checksum(memoryview(words.tobytes() + rest), 7) == tensorfile.zlib.crc32(rest, expected)
    assert tensorfile._checksum(memoryview(rest), 7) == tensorfile.zlib.crc32(rest, 7)


def test_what_a_file_says_is_guarded_too(tmp_path: Path) -> None:
    path = written(tmp_path, '{"accuracy": 0.91}')
    path.write_bytes(path.read_bytes().replace(b"0.91", b"0.97"))
    with pytest.raises(FileError, match="it is damaged: what it says"), opened(path, FileError):
        pass


def test_a_tensor_of_another_type_or_shape_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path)
    data = path.read_bytes()
    for old, new in ((b'"F32","shape":[300,1000]', b'"I32","shape":[300,1000]'), (b"[300,1000]", b"[1000,300]")):
        assert data.count(old) == 1
        path.write_bytes(data.replace(old, new))
        with pytest.raises(FileError, match="'large' has another checksum"), opened(path, FileError) as file:
            file.read("large")


def rewritten(path: Path, change) -> Path:
    data = path.read_bytes()
    header = json.loads(data[8 : start(data)])
    change(header["__metadata__"])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[start(data) :])
    return path


def test_a_file_without_checksums_is_read_unverified(tmp_path: Path) -> None:
    path = rewritten(written(tmp_path), lambda metadata: metadata.pop("checksums"))
    data = bytearray(path.read_bytes())
    with opened(path, FileError) as file:
        place = file.places["small"]
        assert torch.equal(file.read("small"), tensors()["small"])
    data[start(data) + place.first] ^= 1
    path.write_bytes(data)
    with opened(path, FileError) as file:
        assert not torch.equal(file.read("small"), tensors()["small"])


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        ("[]", "its checksums cannot be read"),
        ('{"tensors": 3}', "its checksums cannot be read"),
        ('{"tensors": {}}', "what it says of its tensors"),
        ("{", "cannot be read"),
        ('{"document": 2745614147, "tensors": {}}', "'large' has another checksum"),
    ],
)
def test_checksums_that_are_none(sums: str, message: str, tmp_path: Path) -> None:
    path = rewritten(written(tmp_path), lambda metadata: metadata.update(checksums=sums))
    with pytest.raises(FileError, match=message), opened(path, FileError) as file:
        file.read("large")


TALL = torch.randn(1000, 700, generator=torch.Generator().manual_seed(1))  # of 2.8 MB


def rows_read(path: Path, rows: int) -> tuple[torch.Tensor, int]:
    """The first rows, and how many bytes were read for them."""
    with opened(path, FileError) as file:
        read = file.read("tall", rows)
        return read, file._file.tell() - file._start - file.places["tall"].first


def test_the_first_rows_are_read_and_verified_without_the_others(tmp_path: Path) -> None:
    write(tmp_path / "tall", {"tall": TALL}, "{}")
    step, whole = tensorfile._STEP, (tmp_path / "tall").read_bytes()
    for rows in (1, 93, 94, 372, 373, 900, 999, 1000, 2000):
        read, number = rows_read(tmp_path / "tall", rows)
        assert torch.equal(read, TALL[:rows])
        assert number == min(-(-rows * 2800 // step) * step, 2_800_000) and read.untyped_storage().nbytes() == number
        for place in {0, number // 2, number - 1, min(number, 2_799_999), 2_799_999}:
            damaged = bytearray(whole)
            damaged[start(whole) + place] ^= 16
            (tmp_path / "damaged").write_bytes(damaged)
            if place < number:
                with pytest.raises(FileError, match="'tall' has another checksum"):
                    rows_read(tmp_path / "damaged", rows)
            else:
                assert torch.equal(rows_read(tmp_path / "damaged", rows)[0], TALL[:rows])
    (tmp_path / "short").write_bytes(whole[:-5])
    with pytest.raises(FileError):
        rows_read(tmp_path / "short", 1)


def test_rows_of_a_file_of_before_are_verified_by_all(tmp_path: Path) -> None:
    write(tmp_path / "tall", {"tall": TALL}, "{}")

    def older(metadata) -> None:
        sums = json.loads(metadata["checksums"])
        assert [len(steps) for steps in sums["begun"].values()] == [10]
        metadata["checksums"] = json.dumps({key: sums[key] for key in ("document", "tensors")})

    path = rewritten(tmp_path / "tall", older)
    read, number = rows_read(path, 7)
    assert torch.equal(read, TALL[:7]) and number == 2_800_000
    rewritten(path, lambda metadata: metadata.pop("checksums"))
    assert torch.equal(rows_read(path, 7)[0], TALL[:7]) and rows_read(path, 7)[1] == 7 * 2800


@pytest.mark.parametrize(
    ("begun", "message"),
    [
        (3, "its checksums cannot be read"),
        ({"tall": 3}, "its checksums cannot be read"),
        ({"tall": [1]}, "'tall' has another checksum"),
        ({"tall": ["1"]}, "'tall' has another checksum"),
        ({"tall": [[1]]}, "'tall' has another checksum"),
        ({"tall": [None]}, "'tall' has another checksum"),
    ],
)
def test_checksums_of_beginnings_that_are_none(begun: object, message: str, tmp_path: Path) -> None:
    write(tmp_path / "tall", {"tall": TALL}, "{}")

    def change(metadata) -> None:
        metadata["checksums"] = json.dumps(json.loads(metadata["checksums"]) | {"begun": begun})

    path = rewritten(tmp_path / "tall", change)
    with pytest.raises(FileError, match=message):
        rows_read(path, 7)


def test_parts_of_something_larger_are_written_alone(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    write(tmp_path / "parts", {"a": whole[:4], "b": whole[4:].reshape(2, 4)}, "{}")
    with opened(tmp_path / "parts", FileError) as file:
        assert file.read("a").tolist() == [0, 1, 2, 3] and file.read("b")[1].tolist() == [8, 9, 10, 11]
    assert (tmp_path / "parts").stat().st_size < 1000
    with pytest.raises(ValueError, match=r"c is torch\.complex128"):
        write(tmp_path / "none", {"c": torch.ones(2, dtype=torch.complex128)}, "{}")


# Documents ---------------------------------------------------------


def test_json_is_read_strictly() -> None:
    assert documents.parse(b'{"a": [1, 2.5, null, "x"]}') == {"a": [1, 2.5, None, "x"]}
    for text, message in (
        (b'{"a": 1, "a": 2}', "two values of one name"),
        (b"[NaN]", "the number NaN"),
        (b"[1e999]", "the number 1e999 is too large"),
        (b"[" * 300 + b"]" * 300, "more than 200 levels"),
        (b"[" * 10_000 + b"]" * 10_000, "nested too deeply"),
        (b"\xff", "utf-8"),
        (b"[1,,2]", "Expecting value"),
    ):
        with pytest.raises(ValueError, match=message):
            documents.parse(text)
    assert str(documents.parse(b"[NaN, 1e999]", finite=False)) == "[nan, inf]"
    with pytest.raises(ValueError, match=r"it has 6 values, or signs .*; 5 are allowed"):
        documents.parse(b"[1,2,3,4,5,6]", most_values=5)


@pytest.mark.parametrize("inner", [b'{"":0}', b"[]", b"[[]]", b'{"":{}}', b"0.5", b'""'])
def test_a_small_text_takes_no_great_memory(inner: bytes) -> None:
    text = b"[" + b",".join([inner] * (documents.MAX_BYTES // (len(inner) + 1) - 1)) + b"]"
    tracemalloc.start()
    with pytest.raises(ValueError, match="values, or signs that might separate some"):
        documents.parse(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_file_is_read_no_further_than_it_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b" " * (documents.MAX_BYTES + 1))
    with pytest.raises(ValueError, match=f"more than {documents.MAX_BYTES} bytes"):
        documents.read(tmp_path / "long")
    (tmp_path / "short").write_bytes(b"[1]")
    assert documents.read(tmp_path / "short") == [1]


@examples(few=50, many=1000)
@given(st.lists((st.integers(0, 0x3FF) | st.integers(0, sys.maxunicode)).map(chr)).map("".join))  # surrogates, too
def test_printable_text_is_harmless_and_tells_what_was_there(text: str) -> None:
    shown = documents.printable(text)
    assert shown.replace("\n", "").isprintable()
    shown.encode()  # no surrogates are left
    if text.isprintable():
        assert shown == text


def test_control_characters_are_spelt_out() -> None:
    assert documents.printable("a\x1b[31m\x07\u202eb\ud800\tc\nd") == "a\\x1b[31m\\x07\\u202eb\\ud800\\tc\nd"
