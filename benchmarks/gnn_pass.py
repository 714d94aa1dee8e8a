"""What a pruned pass costs, as a multiple of a dense pass: the GCN on a whole split, both sides in turn.

    python benchmarks/gnn_pass.py [--data ogbg_molhiv|nci] [--rounds 5]

Prints the median over the rounds of the ratio within each round. Weights are random: the time of a pass does
not depend on them.
"""

import argparse
import contextlib
import statistics
import time
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import exprune.lab  # noqa: F401  repairs torchvision before lightning is imported

import torch  # isort: skip

from exprune.core import ExPrune, Heuristic, StatsTest, Threshold, find_sites


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ogbg_molhiv")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        cfg = compose("evaluate", ["model=gnn", f"data={options.data}", "overrides=[]", "paths.output_dir=."])
    data = instantiate(cfg.data.module)
    data.setup()
    batches = list(data.test_dataloader())
    torch.manual_seed(0)
    network = instantiate(cfg.model.network).eval()
    sites = find_sites(network, batches[0])

    def seconds(heuristic: Heuristic | None) -> float:
        context = contextlib.nullcontext() if heuristic is None else ExPrune(sites, heuristic)
        start = time.perf_counter()
        with torch.inference_mode(), context:
            for batch in batches:
                network(batch)
        return time.perf_counter() - start

    heuristics = {"dense": None, "Threshold": Threshold(-0.05), "StatsTest": StatsTest(0.1)}
    seconds(heuristics["StatsTest"])  # warm-up
    rounds = [{name: seconds(heuristic) for name, heuristic in heuristics.items()} for _ in range(options.rounds)]
    print(f"{options.data}, {sum(b.num_graphs for b in batches):,} graphs, {torch.get_num_threads()} threads")
    for name in heuristics:
        times = [one[name] for one in rounds]
        ratios = [one[name] / one["dense"] for one in rounds]
        print(
            f"{name:10} {statistics.median(times):7.2f} s   {statistics.median(ratios):5.2f} x dense "
            f"(min {min(ratios):.2f}, max {max(ratios):.2f} over {options.rounds} rounds)"
        )


if __name__ == "__main__":
    main()
