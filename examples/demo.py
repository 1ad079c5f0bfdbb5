"""From data to a deployed file in one minute: train NSN on handwritten digits, see every size, choose, take one out.

Run it with `make demo`, or `python examples/demo.py [FOLDER [EPOCHS]]`. It needs no download.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from rich import print

import telescopic as tl
from telescopic import run

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 300

print("[bold]1. Train one network[/bold]: two hidden layers that can be left out, 8×8 digits")
data = tl.data.load("digits")
torch.manual_seed(0)
net = tl.papers.nsn.network(2, inputs=64, classes=10)
tl.fit(net, data, tl.papers.nsn.recipe(2, epochs=epochs), out=folder, resume=True, provenance={"method": "nsn"})

print("\n[bold]2. See every size of it[/bold], with latency on this machine")
catalogue = run.Source.open(str(folder)).timed()
print(catalogue.table())

print("\n[bold]3. Choose by a budget[/bold]: at most 6 000 multiply-adds")
choice = catalogue.choose(max_macs=6_000)
print(f"{choice.label}: {choice.accuracy:.1%} on validation images. {choice.why}")

print("\n[bold]4. Take it out[/bold] as an ordinary module")
member = tl.extract(net, choice.subnet)
print(member, tl.cost(member, data.input_shape), sep="\n")

print("\n[bold]5. Export it[/bold] to ONNX, with preprocessing inside, and run the file alone")
preprocess = tl.Preprocess()
images = data.test.images
path = tl.export(member, folder / "small.onnx", images[:64], preprocess=preprocess, classes=data.classes)
session = onnxruntime.InferenceSession(path)
(logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
with torch.no_grad():
    ours = net(preprocess(images), choice.subnet).numpy()
print(f"{path}: {path.stat().st_size:,} bytes; largest difference from the network {np.abs(logits - ours).max():.1e}")
print(f"accuracy of the file on {len(images)} test images: {(logits.argmax(1) == data.test.labels.numpy()).mean():.2%}")

print("\n[bold]6. One page about it all[/bold]")
source = run.Source.open(str(folder))
print(
    tl.write_report(
        folder,
        net,
        catalogue,
        history=source.history(),
        title="NSN on handwritten digits",
        source=str(folder),
        facts=source.facts(),
    )
)
