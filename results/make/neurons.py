"""Make neurons.csv: how many of the released networks' neurons are negative, and how many are never positive.

    python results/make/neurons.py        (or one network: gnn, gnn_80, opt, vgg11_bn, vgg11_bn_paper, resnet18, ...)

It uses the validation split. A unit is an output of a site (a channel of a convolution). It is dead if none of its
neurons is positive for any input at any position. EXPRUNE_DATA_DIR names the data.
"""

import argparse
from typing import Any

import pandas as pd
from composed import log_probabilities, subject_of
from networks import INTO, SETTINGS
from tqdm import tqdm

import torch  # isort: skip
from torch import Tensor  # isort: skip

from exprune.core import ExPrune, Oracle, Prefix
from exprune.files import write_whole

TABLE = INTO / "neurons.csv"


class Watching(Oracle):
    """Record which units of each site have been positive, as bools (units,) by site. Predictions are unchanged."""

    def __init__(self) -> None:
        super().__init__(n=1)
        self.positive: dict[str, Tensor] = {}

    def stop(self, seen: Prefix) -> Tensor:
        now = super().stop(seen)
        positive = ~now if seen.rows is None else ~now & seen.rows
        units = positive.transpose(0, 1).flatten(1).any(1)
        self.positive[seen.site.name] = units | self.positive.get(seen.site.name, torch.zeros_like(units))
        return now


def row_of(network: str) -> dict[str, Any]:
    subject = subject_of(*SETTINGS[network])
    subject.task.network.eval()
    watching = Watching()
    with ExPrune(subject.sites, watching) as run:
        loader = tqdm(subject.loader("valid"), desc=network, disable=None)
        inputs = sum(len(log_probabilities(subject, [batch], run)) for batch in loader)
    counts = [count for count in run.flops.sites if count.outputs]
    neurons = sum(int(count.outputs) for count in counts)
    units = torch.cat(list(watching.positive.values()))
    return {
        "network": network,
        "inputs": inputs,
        "neurons": neurons,
        "negative_percent": round(100 * sum(int(count.negative) for count in counts) / neurons, 2),
        "units": len(units),
        "dead_percent": round(100 * float((~units).double().mean()), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", choices=SETTINGS, help="all of them, if none is named")
    one = parser.parse_args().network
    rows = {row["network"]: row for row in pd.read_csv(TABLE).to_dict("records")} if TABLE.exists() else {}
    rows |= {network: row_of(network) for network in ([one] if one else SETTINGS)}
    table = pd.DataFrame([rows[network] for network in SETTINGS if network in rows])
    write_whole(TABLE, lambda partial: table.to_csv(partial, index=False))
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
