"""The tables and the figure of docs/language_models.md.

python results/make/language_tables.py    # draws language_models/rules.png and division.png
"""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from networks import INTO, RESULTS
from table_lines import NOT_YET, heading, line

from exprune.files import write_whole

FOLDER = RESULTS / "language_models"
LIMITS = (0.01, 0.02, 0.05, 0.1)  # nats
NETWORKS = {"smollm2": "SmolLM2-135M", "llama": "embedded Llama (SiLU)", "opt": "embedded OPT (ReLU)"}
_NEAR = 1.5  # by which factor the nearest measured KL may differ from a limit
_KINDS = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o",
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down", "lm_head": "head",
}  # fmt: skip


def at_limits(points: pd.DataFrame) -> dict[float, float]:
    """Return what a rule saves, in percent, at each limit of KL, interpolated between the two nearest points in log KL.

    A limit that no measured point is near (a factor of 1.5) has no entry.
    """
    points = points.sort_values("kl_mean")
    x, y = np.log(points.kl_mean.to_numpy()), 100 * points.saved.to_numpy()
    found = {}
    for limit in LIMITS:
        far = np.abs(x - math.log(limit))
        near = np.sort(np.argsort(far)[:2])
        if len(near) == 2 and far.min() < math.log(_NEAR):
            a, b = near
            found[limit] = float(y[a] + (y[b] - y[a]) * (math.log(limit) - x[a]) / (x[b] - x[a]))
    return found


def equal_change() -> str:
    """Return one row per network and rule: the savings at each KL."""
    table = pd.read_csv(FOLDER / "wikitext2.csv")
    lines = heading("network", "rule", *(f"KL {limit:g}" for limit in LIMITS))
    for (network, rule), points in table.groupby(["network", "rule"], sort=False):
        found = at_limits(points)
        cells = (f"{found[limit]:.1f} %" if limit in found else NOT_YET for limit in LIMITS)
        lines.append(line(NETWORKS[network], f"`{rule}`", *cells))
    return "\n".join(lines) + "\n"


def settings() -> str:
    """Return one row per measured setting."""
    table = pd.read_csv(FOLDER / "wikitext2.csv").sort_values(["network", "rule", "limit"], kind="stable")
    columns = ("FLOPs left out", "mean KL", "99 % of tokens below", "same top token", "perplexity")
    lines = heading("network", "rule", "setting", *columns)
    for row in table.itertuples():
        name = "price" if row.rule.startswith("optimal") else "share"
        kl = f"{row.kl_mean:.4f}" + ("" if math.isnan(row.kl_error) else f" ± {row.kl_error:.4f}")
        cells = (f"{100 * row.saved:.1f} %", kl, f"{row.kl_most:.2f}", f"{100 * row.kl_same:.1f} %")
        change = f"{row.perplexity_dense:.2f} → {row.perplexity_pruned:.2f}"
        lines.append(line(NETWORKS[row.network], f"`{row.rule}`", f"{name} {row.setting:.3g}", *cells, change))
    return "\n".join(lines) + "\n"


def piqa() -> str:
    """Return one row per setting on the measured half of PIQA, with paired intervals."""
    file = FOLDER / "piqa.csv"
    if not file.exists():
        return NOT_YET + "\n"
    lines = heading("rule", "found for KL", "FLOPs left out", "acc", "change", "acc_norm", "change")
    for row in pd.read_csv(file).itertuples():
        cells = []
        for metric in ("acc", "acc_norm"):
            dense, pruned = getattr(row, f"{metric}_dense"), getattr(row, f"{metric}_pruned")
            low, high = (-100 * getattr(row, f"{metric}_drop_{side}") for side in ("high", "low"))
            change = f"{100 * (pruned - dense):+.2f} [{low:+.2f}, {high:+.2f}]"
            cells += [f"{100 * dense:.2f} → {100 * pruned:.2f}", change]
        lines.append(line(f"`{row.rule}`", f"{row.limit:g}", f"{100 * row.saved:.1f} %", *cells))
    return "\n".join(lines) + "\n"


def division() -> str:
    """Return one row per rule: the share of FLOPs that it leaves out in each kind of layer."""
    table = pd.read_csv(FOLDER / "division.csv").replace({"layers": _KINDS})
    kinds = [kind for kind in _KINDS.values() if kind in set(table.layers)]
    lines = heading("rule", "KL, validation", *kinds)
    for rule, rows in table[table.network == "smollm2"].groupby("rule", sort=False):
        of = rows.set_index("layers").saved
        cells = (f"{100 * of[kind]:.1f} %" if kind in of else "" for kind in kinds)
        lines.append(line(f"`{rule}`", f"{rows.kl.iloc[0]:.3f}", *cells))
    return "\n".join(lines) + "\n"


LANGUAGE: dict[str, Callable[[], str]] = {
    "language models, at equal change": equal_change,
    "language models, settings": settings,
    "language models, PIQA": piqa,
    "language models, division": division,
}


def main() -> None:
    table = pd.read_csv(FOLDER / "wikitext2.csv")
    networks = list(table.network.unique())
    figure = Figure(figsize=(5.5 * len(networks), 4.2), layout="constrained")
    for axes, network in zip(np.ravel(figure.subplots(1, len(networks), squeeze=False)), networks, strict=True):
        for rule, points in table[table.network == network].groupby("rule", sort=False):
            points, ours = points.sort_values("kl_mean"), rule.startswith("optimal")
            axes.plot(100 * points.saved, points.kl_mean, "o-", ms=4, lw=2 if ours else 1, label=rule)
        axes.set(yscale="log", title=NETWORKS[network], xlabel="FLOPs of the whole network left out (%)")
        axes.set_ylabel("mean KL(dense || pruned), nats")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    write_whole(INTO / "language_models/rules.png", lambda partial: figure.savefig(partial, dpi=130, format="png"))

    table = pd.read_csv(FOLDER / "division.csv").query("network == 'smollm2'").replace({"layers": _KINDS})
    shares = table.pivot_table(index="layers", columns="rule", values="saved", sort=False)
    shares = 100 * shares.reindex([kind for kind in _KINDS.values() if kind in shares.index])
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    shares.plot.bar(ax=axes, rot=0, width=0.8)
    axes.set(xlabel="", ylabel="FLOPs of these layers left out (%)", title="SmolLM2-135M, by kind of layer")
    axes.legend(fontsize=8, ncols=2)
    write_whole(INTO / "language_models/division.png", lambda partial: figure.savefig(partial, dpi=130, format="png"))


if __name__ == "__main__":
    main()
