"""The tables of docs/exchangeability.md."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from networks import RESULTS, whole
from table_lines import heading, line

FOLDER = RESULTS / "exchangeability"
_ALPHA = 0.05  # of all tests of the table together


def theorem() -> str:
    """Return one line per group: each test's result and conclusion, with Holm's correction for the number of tests."""
    table = pd.read_csv(FOLDER / "theorem.csv")
    table["rejected"] = _holm(table.p.to_numpy()) <= _ALPHA
    table["first"] = table.start.map({"as PyTorch does": 0, "not trained": 1}).fillna(2)
    table["kind"] = table.network.map({"MLP": 0, "CNN": 1, "GCN": 2})
    table = table.sort_values(["first", "kind", "start"], kind="stable")
    lines = heading("network", "start", "group", "members", "the theorem", "p: SGD", "p: Adam", "exchangeable")
    keys = ["network", "start", "group", "members", "theorem"]
    for (network, start, group, members, expected), rows in table.groupby(keys, sort=False):
        cells = []
        for optimizer in ("SGD", "Adam"):
            of = rows[rows.optimizer.isin((optimizer, "none"))].set_index("test").p
            cells.append(f"{_p(of['kernel'])}, {_p(of['classifier'])}" if len(of) else "")
        theorem = "holds" if expected else "does not apply"
        tested = rows.groupby("optimizer").rejected.any()
        found = "no" if tested.all() else "not rejected" if not tested.any() else "not with every optimiser"
        lines.append(line(network, start, group, members, theorem, *cells, found))
    known = table[table.start == "as PyTorch does"].drop_duplicates(["network", "optimizer"])
    known = known.sort_values(["kind", "optimizer"], ascending=[True, False])
    accuracies = "; ".join(f"{row.network}, {row.optimizer}: {row.accuracy:.3f}" for row in known.itertuples())
    text = f"{table.networks.iloc[0]} networks each. Mean accuracy on unseen inputs: {accuracies}."
    return "\n".join(lines) + f"\n\n{text}\n"


def simulation() -> str:
    """Return one line per design: how often each test rejects at 0.05."""
    table = pd.read_csv(FOLDER / "simulation.csv")
    counts = list(table.networks.unique())
    columns = [f"{test}, {count} networks" for count in counts for test in ("kernel", "classifier")]
    lines = heading("groups of 8 members", "exchangeable", *columns)
    for (design, exchangeable), rows in table.groupby(["design", "exchangeable"], sort=False):
        of = rows.set_index(["networks", "test"])
        cells = []
        for count in counts:
            for test in ("kernel", "classifier"):
                row = of.loc[count, test]
                cells.append(f"{row.rejected:.3f} [{row.low:.3f}, {row.high:.3f}]")
        lines.append(line(design, "yes" if exchangeable else "no", *cells))
    return "\n".join(lines) + "\n"


def nominal() -> str:
    """Return one line per network and order: the share stopped at the boundary, at three levels."""
    table = pd.read_csv(FOLDER / "nominal.csv")
    table = table[table.site == "all"]
    levels = (0.01, 0.1, 0.3)
    columns = [f"alpha {alpha:g}" for alpha in levels]
    lines = heading("", "32 terms", "error of", *columns, "neurons above, below 0.1")
    for (network, order, finite), rows in table.groupby(["network", "order", "finite_population"], sort=False):
        of = rows.set_index("alpha")
        cells = [
            f"{row.stopped_at_boundary:.3f} ({row.neuron_10:.3f} to {row.neuron_90:.3f})"
            for row in (of.loc[alpha] for alpha in levels)
        ]
        at = of.loc[0.1]
        outside = f"{at.neurons_above:.0%}, {at.neurons_below:.0%} of {int(at.neurons)}"
        kind = "finite population" if finite else "as published"
        lines.append(line(whole(network), order, kind, *cells, outside))
    return "\n".join(lines) + "\n"


def levels_by_site() -> str:
    """Return one line per network and number of terms: the measured level at 0.1, over random draws, by both errors."""
    table = pd.read_csv(FOLDER / "nominal.csv")
    table = table[(table.site != "all") & (table.alpha == 0.1) & (table.order == "drawn for each row")]
    columns = ("", "terms", "sites", "as published", "finite population", "as published, centred", "finite, centred")
    lines = heading(*columns)
    for (network, terms), rows in table.groupby(["network", "terms"], sort=False):
        cells = []
        for figure in ("stopped_at_boundary", "stopped_centred"):
            for finite in (False, True):
                cells.append(f"{rows[rows.finite_population == finite][figure].mean():.3f}")
        lines.append(line(whole(network), int(terms), rows.site.nunique(), *cells))
    return "\n".join(lines) + "\n"


def explained() -> str:
    """Return one line per network: what 32 terms explain, by order, and what equally correlated terms would."""
    table = pd.read_csv(FOLDER / "explained.csv")
    table = table[table.n == 32]
    orders = list(table.order.unique())
    columns = ("terms", "correlation", "effective terms", "n / N", "equally correlated", *orders)
    lines = heading("", *columns)
    for network, rows in table.groupby("network", sort=False):
        sites = rows.drop_duplicates("site")
        several = sorted(sites.terms.unique())
        terms = f"{several[0]} to {several[-1]}" if len(several) > 1 else several[0]
        worth = f"{sites.effective_terms.min():.0f} to {sites.effective_terms.max():.0f}"
        shares = [(32 / sites.terms).mean(), sites.if_equally_correlated.mean()]
        shares += [rows[rows.order == order].explained_50.mean() for order in orders]
        cells = (terms, f"{sites.correlation.mean():.3f}", worth, *(f"{share:.2f}" for share in shares))
        lines.append(line(whole(network), *cells))
    return "\n".join(lines) + "\n"


def ladder() -> str:
    """Return one line per step: the share of the network saved, and the change on the test split."""
    table = pd.read_csv(FOLDER / "ladder.csv")
    networks = list(table.network.unique())
    columns = [f"{whole(network)}, {limit:g}" for network in networks for limit in (0.1, 1.0)]
    lines = heading("", "what is known beside", *columns)
    for (number, step), rows in table.groupby(["number", "step"], sort=True):
        of = rows.set_index(["network", "drop_limit"])
        cells = []
        for at in ((network, limit) for network in networks for limit in (0.1, 1.0)):
            if at in of.index:
                row = of.loc[at]
                cells.append(f"{row.saved_percent:.1f} ({round(-row.drop_points, 2) + 0:+.2f})")
            else:
                cells.append("")
        lines.append(line(number, step, *cells))
    return "\n".join(lines) + "\n"


def _holm(p: np.ndarray) -> np.ndarray:
    """Return the p-values of several tests, adjusted by Holm's step-down rule."""
    order, count = np.argsort(p), len(p)
    adjusted = np.maximum.accumulate(p[order] * (count - np.arange(count))).clip(max=1)
    return adjusted[np.argsort(order)]


def _p(value: float) -> str:
    return f"{value:.4f}" if value < 0.01 else f"{value:.2f}"


THEORY: dict[str, Callable[[], str]] = {
    "theorem": theorem,
    "simulation": simulation,
    "nominal level": nominal,
    "nominal level by site": levels_by_site,
    "explained": explained,
    "ladder": ladder,
}
