"""The cost of a pruned pass as a multiple of a dense pass: a network on a whole test split, both sides taking turns.

    python benchmarks/pruned_pass.py model=gnn data=ogbg_molhiv
    python benchmarks/pruned_pass.py model=vgg11_bn data=cifar10_jpeg --rounds 3 --csv results/pruned_pass.csv

The overrides are those of evaluate.py. Prints the median of the ratio within each round, and the cost of calibration as
a multiple of a dense pass over its inputs. Weights are random, as times do not depend on them. ``--csv`` adds a row to
a table, or replaces one of the same command and processor.
"""

import argparse
import contextlib
import resource
import statistics
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from processor import processor
from tqdm import tqdm

import exprune.lab  # noqa: F401  repairs torchvision before lightning is imported

import torch  # isort: skip

from exprune.core import Calibrated, ExPrune, Heuristic, StatsTest, Threshold, find_sites
from exprune.lab.evaluation.calibration import calibrate
from exprune.lab.evaluation.subject import Subject, load_data
from exprune.lab.training.fit import make_trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="overrides of evaluate.py's configuration")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()

    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        given = ["exprune=calibrated", *options.overrides, "overrides=[]", "paths.output_dir=."]
        cfg, cfg_by_input = (compose("evaluate", [*given, f"exprune.order={order}"]) for order in ("layer", "input"))
    data = load_data(cfg)
    torch.manual_seed(0)
    task = instantiate(cfg.model.task, network=instantiate(cfg.model.network)).eval()
    batches = [task.network_inputs(batch) for batch in data.test_dataloader()]
    sites = find_sites(task.network, *batches[0])

    calibration = [task.network_inputs(batch) for batch in data.calibration_dataloader(cfg.exprune.inputs, None)]
    subject = Subject(cfg, make_trainer(cfg, devices=1, logger=False), task, data, sites, None)
    statistics_of_sites, of_rows = calibrate(subject), calibrate(replace(subject, cfg=cfg_by_input))
    task.eval()

    def seconds(heuristic: Heuristic | None, batches: list = batches) -> float:
        context = contextlib.nullcontext() if heuristic is None else ExPrune(sites, heuristic)
        start = time.perf_counter()
        with torch.inference_mode(), context:
            for batch in batches:
                task.network(*batch)
        return time.perf_counter() - start

    def seconds_of_calibration() -> float:
        start = time.perf_counter()
        calibrate(subject)
        task.eval()
        return time.perf_counter() - start

    heuristics = {
        "dense": None,
        "Threshold": Threshold(-0.05),
        "StatsTest": StatsTest(0.1),
        "Calibrated": Calibrated(0.05, cfg.exprune.stages, statistics_of_sites),
        "order=input": Calibrated(0.05, cfg_by_input.exprune.stages, of_rows),
    }
    with torch.inference_mode(), ExPrune(sites, StatsTest(0.1)):
        task.network(*batches[0])  # warm-up
    before = _peak()
    seconds(heuristics["order=input"], batches[:1])
    more = _peak() - before
    rounds = [
        {name: seconds(heuristic) for name, heuristic in heuristics.items()}
        for _ in tqdm(range(options.rounds), disable=None, leave=False)
    ]
    of_calibration = [seconds_of_calibration() / seconds(None, calibration) for _ in range(options.rounds)]
    print(f"{cfg.model.name} on {cfg.data.name}, {len(batches)} batches, {torch.get_num_threads()} threads")
    for name in heuristics:
        times = [one[name] for one in rounds]
        ratios = [one[name] / one["dense"] for one in rounds]
        print(
            f"{name:11} {statistics.median(times):7.2f} s   {statistics.median(ratios):5.2f} x dense "
            f"(min {min(ratios):.2f}, max {max(ratios):.2f} over {options.rounds} rounds)"
        )
    print(f"order=input takes up to {more:.2f} GiB more than calibration and the other tests")
    print(f"calibration on {cfg.exprune.inputs} inputs: {statistics.median(of_calibration):.2f} x dense")
    if options.csv:
        ratios = {name: statistics.median(one[name] / one["dense"] for one in rounds) for name in heuristics}
        row = {
            "network": cfg.model.name,
            "processor": processor(),
            "threads": torch.get_num_threads(),
            **{name: round(ratio, 3) for name, ratio in ratios.items() if name != "dense"},
            "order=input GiB": round(more, 2),
            "calibration": round(statistics.median(of_calibration), 3),
            "command": f"python benchmarks/pruned_pass.py {' '.join(options.overrides)} --rounds {options.rounds}",
        }
        _add(options.csv, row)


def _peak() -> float:
    """The largest memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux reports KiB


def _add(path: Path, row: dict[str, object]) -> None:
    table = pd.DataFrame([row])
    if path.exists():
        table = pd.concat([pd.read_csv(path), table])
    table.drop_duplicates(["command", "processor", "threads"], keep="last").to_csv(path, index=False)


if __name__ == "__main__":
    main()
