"""Make method.png: one neuron of VGG11-BN on CIFAR-10 (JPEG mirror), with its terms summed until tests stop it.

    python results/make/method_figure.py

The released checkpoint is used; EXPRUNE_DATA_DIR names the data.
"""

from statistics import NormalDist

import numpy as np
from composed import subject_of
from matplotlib.figure import Figure
from networks import INTO, SETTINGS

import torch  # isort: skip
from torch.nn import functional as F  # isort: skip

from exprune.core import Calibrated, ExPrune, Oracle
from exprune.files import write_whole
from exprune.lab.evaluation.calibration import calibrate

SITE, NEURON, IMAGES, TAU = 3, 7, 48, 0.05  # the fourth site: convolution 5, 256 terms, without a BatchNorm


def main() -> None:
    settings = ("exprune=calibrated", "exprune.order=layer", f"exprune.tau={TAU}")
    subject = subject_of(*SETTINGS["vgg11_bn"], *settings)
    stages = list(subject.cfg.exprune.stages)
    statistics = calibrate(subject)
    network = subject.task.network.eval()
    images = next(iter(subject.loader("valid")))[0]
    site = [site for site in subject.sites if site.eligible][SITE]
    of = statistics[site.name]

    inputs = []
    hook = site.module.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.inference_mode():
        network(images)
    hook.remove()
    weight = site.module.weight[NEURON].detach()  # (terms, 3, 3): each channel by itself is one term
    terms = F.conv2d(inputs[0][:IMAGES], weight[:, None], padding=1, groups=len(weight))
    middle = terms.shape[-1] // 2
    sums = terms[:, of.order, middle, middle].cumsum(1).numpy()
    u = NormalDist().inv_cdf(1 - TAU)
    bounds = ((-of.offset - u * of.sd) / of.slope)[:, NEURON].tolist()

    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    saved = 0
    for line in sums:
        stop = next((n for n, bound in zip(of.stages, bounds, strict=True) if line[n - 1] < bound), None)
        saved += 0 if stop is None else 1 - stop / len(line)
        colour = "tab:red" if line[-1] > 0 else "tab:blue"
        end = stop or len(line)
        x = np.arange(1, len(line) + 1)
        left.plot(x[:end], line[:end], color=colour, linewidth=0.9, alpha=0.8)
        left.plot(x[end - 1 :], line[end - 1 :], color=colour, linewidth=0.5, alpha=0.15)
        if stop:
            left.plot(stop, line[stop - 1], "o", color=colour, markersize=4)
    left.plot(of.stages, bounds, "k_", markersize=18, markeredgewidth=2, label=f"stops below (risk {TAU:.0%})")
    left.axhline(0, color="black", linewidth=0.8)
    left.plot([], [], color="tab:red", label="positive in the end")
    left.plot([], [], color="tab:blue", label="negative in the end: the ReLU gives 0")
    left.set_xlabel("terms summed, those that vary most first")
    left.set_ylabel("sum so far")
    left.set_title(f"one neuron, {IMAGES} images: {saved / IMAGES:.0%} of its terms left out")
    left.legend(fontsize="small")

    names, shares = [], []
    for heuristic in (Calibrated(TAU, stages, statistics), Oracle()):
        with torch.inference_mode(), ExPrune(subject.sites, heuristic, gain_ratio=1.0) as run:
            network(images)
        names = [count.site.name for count in run.flops.sites]
        shares.append([count.pruned / count.outputs for count in run.flops.sites])
    places = np.arange(len(names))
    right.barh(places, shares[1], color="lightgrey", label="negative")
    right.barh(places, shares[0], height=0.5, color="tab:blue", label="stopped")
    right.set_yticks(places, [f"layer {place + 2}" for place in places])
    right.invert_yaxis()
    right.set_xlabel("share of the neurons")
    right.set_title(f"all layers, {len(images)} images")
    right.legend(fontsize="small", loc="lower right")
    write_whole(INTO / "method.png", lambda partial: figure.savefig(partial, dpi=130, format="png"))


if __name__ == "__main__":
    main()
