"""Claim: members of a family for a task of any kind are about as good as twins trained alone, and leave as ONNX.

Each job is an example: its data, family and recipe are those of `examples/JOB.py`. The members of a family, trained
together, stand beside twins: each member's layers with new weights, trained alone by the same recipe. Scores are those
of the test examples at the last epoch, so that nothing is chosen by them. Then the best member of the last seed within
a budget is exported, and ONNX Runtime's answers are scored in the same way.

    python benchmarks/tasks.py JOB [--seeds 3] [--epochs N]
"""

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import nn

import telescopic as tl

import results

JOBS = ("regression", "prices", "series", "two_digits", "mail")


def alone(member: nn.Module, seed: int) -> tl.Nested:
    """The same layers with new weights."""
    torch.manual_seed(seed)
    for layer in member.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return tl.Nested([member])


def exported(net: tl.Nested, data: tl.data.Dataset, recipe: tl.Recipe, task: tl.Task) -> dict[str, Any]:
    """The best member that takes half of the full one's multiply-adds, as ONNX: its score, and the catalogue's."""
    catalogue = tl.measure(net, data, preprocess=recipe.preprocess, task=task)
    choice = catalogue.choose(max_macs=max(catalogue[-1].macs / 2, catalogue[0].macs))
    with tempfile.TemporaryDirectory() as folder:
        member, inputs = tl.extract(net, choice.subnet), data.test.inputs
        path = tl.export(member, Path(folder) / "member.onnx", inputs[:32], preprocess=recipe.preprocess)
        session = onnxruntime.InferenceSession(path)
        name = session.get_inputs()[0].name
        answers = [torch.from_numpy(session.run(None, {name: some.numpy()})[0]) for some in inputs.split(200)]
        score = task.total(task.sums(torch.cat(answers)[None], data.test.targets), len(inputs)).item()
        facts = {"member": choice.label, "MACs": choice.macs, "file, bytes": path.stat().st_size}
    return facts | {"score in the catalogue": round(choice.test_score or 0.0, 5), "score in ONNX": round(score, 5)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    job = importlib.import_module(args.job)
    torch.set_num_threads(1)  # layers this small are slower with more
    began = time.process_time()
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(args.seeds):
        data = job.load(seed=seed)  # each seed divides the examples anew, where there is no division of their own
        recipe = job.recipe(data) if args.epochs is None else job.recipe(data, args.epochs)
        how: dict[str, Any] = {"task": job.TASK, "seed": seed, "keep": "last", "precision": "fp32"}
        torch.manual_seed(seed)
        net = job.family(data)
        together = tl.fit(net, data, recipe, cpu=True, progress=False, **how)[-1].test
        for place, subnet in enumerate(net.grid):
            twin = alone(tl.extract(net, subnet), seed)
            (score,) = tl.fit(twin, data, recipe, cpu=True, progress=False, **how)[-1].test
            row = found.setdefault(net.grid.label(subnet), {"member": [], "twin": []})
            row["member"].append(together[place])
            row["twin"].append(score)
            print(seed, net.grid.label(subnet), f"{together[place]:.4f} {score:.4f}", file=sys.stderr, flush=True)
    figures: dict[str, Any] = {
        label: {
            name: {"mean": round(statistics.mean(each), 4), "each seed": [round(one, 4) for one in each]}
            for name, each in row.items()
        }
        for label, row in found.items()
    }
    config = {"seeds": args.seeds, "epochs": recipe.epochs, "data": data.name, "score": f"test {job.TASK.metric.name}"}
    config |= {
        "examples": [len(split) for split in data.splits],
        "minutes": round((time.process_time() - began) / 60, 1),
    }
    figures["exported"] = exported(net, data, recipe, job.TASK)
    results.write(args.job.replace("_", "-"), config, figures)


if __name__ == "__main__":
    main()
