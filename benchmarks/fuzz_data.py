"""Claim: whatever happens to a data file's bytes, reading it succeeds or raises DataError, soon and in little memory.

Archives of NumPy, idx files, CIFAR-10's records, MATLAB files, and folders of images, whose bytes are flipped, cut and
added, and whose headers lie. A foreign exception, a reading of more than 2 s of processor time, or 500 MB more memory
at the peak counts as a failure; a crash or a minute's hang ends the program. There are a fifth as many MATLAB files,
for a process of its own reads each. It writes results/fuzz-data.json:

    python benchmarks/fuzz_data.py [--cases 1200] [--seed 0]
"""

import argparse
import io
import random
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from telescopic.data import DataError
from telescopic.data.photos import read_folder
from telescopic.data.readers import read_cifar10, read_idx, read_npz, read_svhn

import fuzz_bundle
import results

SLOW_S = 2.0
RNG = np.random.default_rng(0)
SHAPES = ((10**12,), (2**31, 2**31), (0,), (10, 1, 10**5, 10**5), (30_000_000,), (-1,), ())
TYPES = ("|u1", "<i8", "<U1", "<U9999", "|O", "<f8", "|V0", "<M8[s]")


def npz(chance: random.Random) -> bytes:
    """An archive, in which an array may say of itself what it likes."""
    file = io.BytesIO()
    arrays = {"images": RNG.integers(0, 255, (6, 1, 4, 4), np.uint8), "labels": np.arange(6) % 2, "classes": ["a", "b"]}
    if chance.random() < 0.5:
        arrays = {"inputs": RNG.normal(size=(6, 4)), "targets": RNG.normal(size=(6, 2)), "test_inputs": np.ones((1, 4))}
        arrays["test_targets"] = np.ones((1, 2))
    np.savez_compressed(file, **arrays)
    if chance.random() < 0.5:
        return file.getvalue()
    lies = io.BytesIO()
    with zipfile.ZipFile(file) as given, zipfile.ZipFile(lies, "w", zipfile.ZIP_DEFLATED) as made:
        liar = chance.choice(given.namelist())
        for name in given.namelist():
            content = given.read(name)
            if name == liar:
                head = io.BytesIO()
                about = {"descr": chance.choice(TYPES), "fortran_order": False, "shape": chance.choice(SHAPES)}
                np.lib.format.write_array_header_1_0(head, about)
                content = head.getvalue() + b"\0" * chance.choice((0, 100, 40_000_000))
            made.writestr(name, content)
    return lies.getvalue()


def idx(chance: random.Random) -> bytes:
    """An idx file."""
    return struct.pack(
        ">4I", 0x803, *(chance.choice((2, 2**31)) if chance.random() < 0.1 else 2 for _ in range(3))
    ) + bytes(8)


def mat(chance: random.Random) -> bytes:
    """A MATLAB file."""
    pixels = RNG.integers(0, 255, (32, 32, 3, 2), np.uint8)
    savemat(file := io.BytesIO(), {"X": pixels, "y": np.array([[1], [10]])}, do_compression=chance.random() < 0.5)
    return file.getvalue()


def image(chance: random.Random) -> bytes:
    """An image file."""
    kind, side = chance.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")), chance.choice((8, 8, 8, 300))
    Image.fromarray(RNG.integers(0, 255, (side, side, 3), np.uint8)).save(file := io.BytesIO(), kind)
    return file.getvalue()


def changed(content: bytes, chance: random.Random) -> bytes:
    """With other bytes here and there."""
    made = bytearray(content)
    for _ in range(chance.choice((0, 1, 1, 2, 8))):
        place, action = chance.randrange(len(made) or 1), chance.random()
        if action < 0.7 and made:
            made[min(place, chance.choice((place, 64)), len(made) - 1)] ^= 1 << chance.randrange(8)
        elif action < 0.85:
            del made[place : place + chance.randint(1, 50)]
        else:
            made[place:place] = chance.randbytes(chance.randint(1, 50))
    return bytes(made)


def main() -> int:
    """Run the benchmark; the exit status tells whether the claim holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1200, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        path, folder = Path(name) / "data.npz", Path(name) / "images"
        (folder / "a").mkdir(parents=True)

        def as_npz(content: bytes) -> object:
            path.write_bytes(content)
            return read_npz(path)

        def as_image(content: bytes) -> object:
            (folder / "a" / "one.png").write_bytes(content)
            try:
                return read_folder(folder, (8, 8))
            except DataError as error:  # of a line for each file
                raise DataError(str(error).replace("\n", " ")) from error

        whole = RNG.integers(0, 9, 3073 * 2, np.uint8).tobytes()
        parts = [f"data_batch_{n}.bin" for n in range(1, 6)]
        kinds: dict[str, tuple[Callable[[random.Random], bytes], Callable[[bytes], object]]] = {
            "npz": (npz, as_npz),
            "idx": (idx, lambda content: read_idx(content, "idx")),
            "cifar10": (
                lambda chance: whole,
                lambda content: read_cifar10(dict.fromkeys(parts, content) | {"test_batch.bin": whole}),
            ),
            "svhn": (mat, lambda content: read_svhn({f"{part}_32x32.mat": content for part in ("train", "test")})),
            "image": (image, as_image),
        }
        cases = dict.fromkeys(kinds, given.cases) | {"svhn": given.cases // 5}
        for kind, (make, read) in kinds.items():
            # What is whole takes the memory that it takes, of which a process of its own leaves next to nothing here.
            for _ in range(1 if kind == "svhn" else 20):
                try:
                    read(make(chance))
                except DataError:
                    continue

        def of(kind: str) -> Callable[[random.Random], Callable[[], object]]:
            make, read = kinds[kind]
            return lambda chance: partial(read, changed(make(chance), chance))

        figures = fuzz_bundle.fuzzed({kind: (of(kind), DataError) for kind in kinds}, cases, chance, SLOW_S)
    results.write("fuzz-data", vars(given), figures)
    return 1 if figures["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
