"""Claim: Figure 3 of Doubly Nested Network, MACs, parameters and largest feature map of 352 members, takes ≤ 30 s.

MACs and parameters are nominal, as the paper counts them. Beside the figure stands the time of `tl.measure`, which
prices each member by itself, as it is executed when it is taken out; both must agree on the largest feature maps.
Writes results/figure3.json and docs/papers/figure3.svg:

    python benchmarks/figure3.py [--threads 1]
"""

import argparse
import re
import time
from itertools import accumulate
from pathlib import Path
from xml.sax.saxutils import quoteattr

import torch

from telescopic import Subnet, measure
from telescopic.cost import cost_on_meta, nominal_macs, nominal_params, on_meta
from telescopic.layers.narrowing import narrow, narrow_outputs
from telescopic.nested import Nested
from telescopic.papers import doubly_nested
from telescopic.report.heatmaps import heatmap
from telescopic.report.page import PALETTE
from telescopic.report.plots import Plot

import results

IMAGE = (3, 32, 32)
SVG = Path(__file__).parents[1] / "docs" / "papers" / "figure3.svg"


def largest_feature_maps(net: Nested) -> list[int]:
    """Bytes of each member's largest feature map, in grid order: a deeper one adds the maps of the parts it adds.

    Heads are left out, for they only average what the last block gives.
    """
    found: dict[tuple[int, int], int] = {}
    on_paper = on_meta(net)
    for width in net.grid.widths:
        shape, sizes = IMAGE, []
        stages = [narrow(stage, width) for stage in on_paper.stages]
        for part in [narrow_outputs(on_paper.entries["0"], width, net.groups), *stages]:
            sizes.append(cost_on_meta(part, shape).largest_feature_map)
            shape = tuple(part(torch.empty(1, *shape, device="meta")).shape[1:])
        found |= {(exit_, width): size for exit_, size in zip(net.grid.exits, accumulate(sizes, max), strict=True)}
    return [found[member.exit, member.width] for member in net.grid]


def beside(plots: list[Plot], title: str) -> str:
    """Plots in one SVG, in the colours of the reader's mode."""
    sizes = [[float(size) for size in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', plot.svg)[0]] for plot in plots]
    lefts = list(accumulate((width for width, _ in sizes), initial=0))
    height = max(height for _, height in sizes)
    used = {name: pair for name, pair in PALETTE.items() if any(f"var({name})" in plot.inline() for plot in plots)}
    light, dark = (" ".join(f"{name}: {pair[i]};" for name, pair in used.items()) for i in (0, 1))
    parts = [
        re.sub(r"<svg [^>]*>", f'<svg x="{x}" width="{w}" height="{h}" viewBox="0 0 {w} {h}">', plot.inline(), count=1)
        for plot, x, (w, h) in zip(plots, lefts, sizes, strict=False)
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' viewBox="0 0 {lefts[-1]} {height}" role="img" aria-label={quoteattr(title)}'
        ' font-family="system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif">\n'
        f"<style>:root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}</style>\n"
        f'<rect width="100%" height="100%" fill="var(--page)"/>\n{"".join(parts)}</svg>\n'
    )


@torch.no_grad()
def main() -> None:
    """Count, draw, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    net = doubly_nested.network()
    grid, seconds = net.grid, {}

    began = time.perf_counter(), time.process_time()
    maps = {
        "macs": ("MACs of one image, nominal", nominal_macs(net, IMAGE), ""),
        "params": ("parameters, nominal", nominal_params(net), ""),
        "largest-feature-map": ("largest feature map", largest_feature_maps(net), "B"),
    }
    plots = [heatmap(name, title, grid, values, unit=unit) for name, (title, values, unit) in maps.items()]
    SVG.write_text(beside(plots, "Resources of the 16 × 22 members of Doubly Nested Network"), encoding="utf-8")
    seconds["Figure 3, ≤ 30"] = time.perf_counter() - began[0], time.process_time() - began[1]

    began = time.perf_counter(), time.process_time()
    executed = measure(net, input_shape=IMAGE)
    seconds["measure, executed costs"] = time.perf_counter() - began[0], time.process_time() - began[1]

    at = {name: dict(zip(grid, values, strict=True)) for name, (_, values, _) in maps.items()}
    facts = {}
    for name, exit_, width in (("full", 14, 22), ("D5", 4, 22), ("D14 & W12", 13, 13)):
        member = grid.resolve(Subnet(exit=exit_, width=width))
        price = executed[grid.index(member)]
        nominal = {quantity: values[member] for quantity, values in at.items()}
        facts[name] = {"member": str(member), **nominal, "executed macs": price.macs, "executed params": price.params}
    assert list(at["largest-feature-map"].values()) == [member.largest_feature_map for member in executed]
    shown = [Subnet(entry=0, exit=exit_, width=width) for exit_ in (-1, 4, 9, 14) for width in (1, 6, 11, 16, 22)]
    figures = {
        "members": len(grid),
        "seconds": {name: {"wall": round(wall, 1), "cpu": round(cpu, 1)} for name, (wall, cpu) in seconds.items()},
        "in the paper's text": facts,
        "some members": {grid.label(m): " / ".join(f"{values[m]}" for values in at.values()) for m in shown},
    }
    results.write("figure3", vars(args), figures)


if __name__ == "__main__":
    main()
