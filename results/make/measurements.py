"""The list of measurements: network, settings, duration and the files that each one makes.

``python results/reproduce.py --list`` prints it. In the commands, ``{work}`` is an entry's working folder, ``{into}``
the folder of the tables (results by default), and ``{results}`` always the folder results. Durations are for two cores.
The duration of a search is the sum over the trials in its table; one with a ``~`` is estimated from the number of
passes and the time of one pass.
"""

import math
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from networks import ACTIVATIONS, FEED_FORWARD, NETWORKS, SETTINGS, STAGES, WITH_RECIPES, WITHOUT_RELU


@dataclass(frozen=True)
class Entry:
    """One table or figure, or several that are made together.

    Attributes:
        name: NETWORK/WHAT, or WHAT alone for a measurement of several networks.
        about: what it shows.
        takes: its duration on two cores.
        steps: command lines by name. A repeated run of the entry skips the steps that have finished.
        makes: the files, relative to the folder of the tables, the most important first.
        copies: the files that are copied from the working folder, with their paths there; the steps write the others.
        draws: the command line that redraws its figures from tables; empty if the tables do not suffice.
    """

    name: str
    about: str
    takes: str
    steps: Mapping[str, str]
    makes: tuple[str, ...]
    copies: Mapping[str, str] = field(default_factory=dict)
    draws: str = ""

    def jobs(self) -> int | None:
        """Return the number of rows of its first table, one per setting of its sweeps; None if it has other steps."""
        *sweeps, last = self.steps.values()
        if not sweeps or "fronts.pareto" not in last or not all(" -m " in step for step in sweeps):
            return None
        return sum(math.prod(map(_choices, shlex.split(step))) for step in sweeps)


def _choices(word: str) -> int:
    """Return the number of values that a word of a command gives to its setting; brackets make one value."""
    return len(re.sub(r"\[.*?\]", "", word).split(",")) if "=" in word else 1


def sweeps(
    network: str, what: str, about: str, takes: str, settings: str, runs: Mapping[str, str], plot: bool = False
) -> Entry:
    """Run evaluate.py over several settings; collect the results in one table and plot it."""
    name = f"{network}/{what}"
    steps = {
        run: f"python evaluate.py -m {settings} logger=none hydra.sweep.dir={{work}}/{run} {overrides}"
        for run, overrides in runs.items()
    }
    folders = " ".join(f"{{work}}/{run}" for run in runs)
    drawn = f" --plot {{into}}/{name}.png" if plot else ""
    steps["table"] = f"python -m exprune.lab.fronts.pareto {folders} --csv {{into}}/{name}.csv{drawn}"
    return Entry(
        name,
        about,
        takes,
        steps,
        (f"{name}.csv", *([f"{name}.png"] if plot else [])),
        draws=_drawn(name) if plot else "",
    )


def _drawn(name: str) -> str:
    """The command that draws a figure from the table of its name."""
    return f"python -m exprune.lab.fronts.pareto {{results}}/{name}.csv --plot {{into}}/{name}.png"


def script(name: str, about: str, takes: str, command: str, *makes: str) -> Entry:
    """Run one script that writes its own files; its docstring says whether it resumes."""
    return Entry(name, about, takes, {"all": command}, makes)


# --- the paper's tests, one tau for all sites

_ONE_TAU = {  # Threshold's scale is that of the network's pre-activations
    "gnn": (
        "15 min",
        "experiment=paper/gnn_molhiv",
        "0,0.01,0.02,0.05,0.075,0.1,0.125,0.15,0.2,0.25,0.3,0.4,0.5",
        "-0.3,-0.2,-0.15,-0.1,-0.075,-0.05,-0.04,-0.03,-0.02,-0.01,-0.005,0",
    ),
    "opt": (
        "~15 min",
        "model=opt",
        "0,0.01,0.02,0.05,0.1,0.15,0.2,0.3,0.4,0.5",
        "-0.1,-0.05,-0.03,-0.02,-0.015,-0.01,-0.007,-0.005,-0.002,0",
    ),
    "vgg11_bn": (
        "~20 min",
        "model=vgg11_bn data=cifar10_jpeg",
        "0,0.01,0.02,0.05,0.1,0.15,0.2,0.25,0.3,0.4,0.5",
        "-0.05,-0.035,-0.025,-0.02,-0.015,-0.01,-0.007,-0.005,-0.003,-0.001,0",
    ),
    "resnet18": (
        "~1 h",
        "model=resnet18 data=cifar10_jpeg",
        "0,0.01,0.02,0.05,0.1,0.15,0.2,0.25,0.3,0.4,0.5",
        "-0.1,-0.05,-0.035,-0.025,-0.015,-0.01,-0.006,-0.003,-0.001,0",
    ),
    "vgg11_bn_static": (
        "~1 h",
        "model=vgg11_bn data=cifar10_jpeg static=magnitude static.sparsity=0.9,0.95,0.98",
        "0.01,0.02,0.05,0.1,0.15,0.2,0.25,0.3,0.4,0.5",
        "-0.03,-0.02,-0.015,-0.01,-0.0075,-0.005,-0.0035,-0.002,-0.001,0",
    ),
}


def one_tau(network: str) -> Entry:
    takes, settings, stats_test, threshold = _ONE_TAU[network]
    runs = {
        "stats_test": f"exprune=stats_test exprune.tau={stats_test}",
        "threshold": f"exprune=threshold exprune.tau={threshold}",
    }
    if network == "gnn":  # with the paper's four sites, and with all five
        runs |= {f"{test}_five": f"{overrides} exprune.sites=null" for test, overrides in runs.items()}
    return sweeps(network, "one_tau", "the paper's tests, one tau for all sites", takes, settings, runs, plot=True)


# --- the paper's tests, one tau for each site, searched on the validation split

_SEARCHES = {  # duration, network, trials, other settings (the inputs of a trial, the points measured on test)
    "gnn": ("37 min", "gnn", 200, ""),
    "gnn_80": ("64 min", "gnn_80", 200, ""),
    "gnn_2000": ("80 min", "gnn", 2000, "search.limit=1000"),
    "opt": ("26 min", "opt", 200, "search.limit=128 search.front=8"),
    "vgg11_bn": ("25 min", "vgg11_bn", 200, "search.limit=1000 search.front=8"),
    "vgg11_bn_2000": ("155 min", "vgg11_bn", 2000, "search.limit=1000 search.front=8"),
    "vgg11_bn_paper": ("21 min", "vgg11_bn_paper", 200, "search.limit=1000 search.front=8"),
    "vgg11_bn_static": ("44 min", "vgg11_bn_static", 200, "search.limit=1000 search.front=6"),
    "resnet18": ("35 min", "resnet18", 100, "search.limit=1000 search.front=6"),
}
_SEARCH = (
    "python evaluate.py {settings} search=tpe search.trials={trials} {more} exprune={test} logger=none "
    "hydra.run.dir={{work}}/{test}"
)


def search(name: str) -> Entry:
    takes, network, trials, more = _SEARCHES[name]
    settings, tests = " ".join(SETTINGS[network]), ("threshold", "stats_test")
    steps = {test: _SEARCH.format(settings=settings, trials=trials, more=more, test=test) for test in tests}
    folders = " ".join(f"{{work}}/{test}/test" for test in tests)
    files = f"--csv {{into}}/{name}/search.csv --plot {{into}}/{name}/search.png"
    steps["table"] = f"python -m exprune.lab.fronts.pareto {folders} {files}"
    kept = [(test, table) for test in tests for table in ("front", "trials")]
    copies = {f"{name}/search_{test}_{table}.csv": f"{test}/{table}.csv" for test, table in kept}
    return Entry(
        f"{name}/search",
        f"the paper's tests, one tau for each site, {trials:,} trials",
        takes,
        steps,
        (f"{name}/search.csv", f"{name}/search.png", *copies),
        copies,
        _drawn(f"{name}/search"),
    )


def one_search(network: str, test: str, takes: str, more: str, *tables: str) -> Entry:
    """Search with one of our tests; only its front, and optionally its trials, are kept."""
    settings = " ".join(SETTINGS[network])
    command = _SEARCH.format(settings=settings, trials=200, more=more, test=test)
    copies = {f"{network}/search_{test}_{table}.csv": f"{test}/{table}.csv" for table in tables}
    about = f"{test.capitalize()}, one setting for each site, 200 trials"
    return Entry(f"{network}/search_{test}", about, takes, {test: command}, tuple(copies), copies)


# --- ours

_BEYOND = {
    "gnn": "~15 min", "gnn_80": "~15 min", "opt": "~30 min", "vgg11_bn": "~30 min", "vgg11_bn_paper": "~30 min",
    "resnet18": "~2 h", "vgg11_bn_static": "~30 min",
}  # fmt: skip
_INPUT_ORDER = {
    "gnn": "~20 min", "gnn_80": "~20 min", "opt": "~1 h", "vgg11_bn": "~2 h", "vgg11_bn_paper": "~2 h",
    "resnet18": "~6 h", "vgg11_bn_static": "~2 h",
}  # fmt: skip


def beyond(network: str, without: Collection[str] = ()) -> Entry:
    stages, first = "", ""
    if network == "vgg11_bn_static":  # 20 to 80 terms are left per neuron
        stages, first = "exprune.stages=[8,16,24,32,48,64,96,128,192,256]", "exprune.n=8"
    runs = {
        "oracle": f"exprune=oracle {first}",
        "calibrated": f"exprune=calibrated {stages} exprune.order=layer exprune.tau=0.01,0.02,0.05,0.1,0.2",
        "calibrated-chosen": f"exprune=calibrated {stages} exprune.order=layer exprune.target_drop=0.1,1",
        "optimal": f"exprune=optimal {stages} exprune.order=layer exprune.target_drop=0.1,0.5,1",
        "optimal-neuron": f"exprune=optimal {stages} exprune.order=neuron exprune.target_drop=0.1,1",
    }
    runs = {run: overrides for run, overrides in runs.items() if run not in without}
    about = "calibrated risk and optimal stopping, layer's order; oracle"
    settings = " ".join(SETTINGS[network])
    plot = network != "vgg11_bn_paper"
    return sweeps(network, "beyond", about, _BEYOND[network], settings, runs, plot)


def input_order(network: str, without: Collection[str] = ()) -> Entry:
    optimal = "exprune=optimal exprune.order=input exprune.target_drop=0.1,1"
    runs = {
        "zero": optimal,
        "calibrated": "exprune=calibrated exprune.order=input exprune.target_drop=0.1,1",
        "magnitude": "exprune=magnitude exprune.target_drop=0.1,1",
        "predicted": f"{optimal} exprune.predict=true",
        "oracle": "exprune=oracle exprune.order=input exprune.n=8",
    }
    if network == "opt":
        runs["all"] = f"{optimal} exprune.refine=2 exprune.predict=true exprune.scope=all head=dominance"
    runs = {run: overrides for run, overrides in runs.items() if run not in without}
    about = "each input's largest terms first; small inputs left out"
    return sweeps(network, "input_order", about, _INPUT_ORDER[network], " ".join(SETTINGS[network]), runs)


def ladder(network: str) -> Entry:
    """The steps of docs/exchangeability.md that no other table has."""
    line = "exprune.order=model exprune.stages=[32]"
    runs = {
        "one_tau": "exprune=stats_test exprune.tau=null",
        "finite": "exprune=stats_test exprune.tau=null exprune.finite_population=true",
        "line": f"exprune=calibrated {line}",
        "loss": f"exprune=optimal {line}",
        "stages": "exprune=optimal exprune.order=model exprune.stages=[32,64,128,192,256]",
    }
    runs = {run: f"{overrides} exprune.target_drop=0.1,1" for run, overrides in runs.items()}
    about = "what each piece of knowledge adds, one setting at a time"
    return sweeps(network, "ladder", about, _BEYOND[network], " ".join(SETTINGS[network]), runs)


def exchangeability() -> Iterator[Entry]:
    """Of docs/exchangeability.md."""
    folder, make = "exchangeability", "python results/make"
    yield script(f"{folder}/theorem", "which parameters are exchangeable, by permutation tests", "~15 min",
                 f"{make}/exchangeability.py", f"{folder}/theorem.csv", f"{folder}/simulation.csv")  # fmt: skip
    files = [f"{folder}/{name}" for name in ("nominal.csv", "explained.csv", "nominal.png", "explained.png")]
    about = "the level of the paper's test; what the first terms explain"
    steps = {"measure": f"{make}/nominal_alpha.py", "draw": f"{make}/nominal_alpha.py --figures"}
    yield Entry(f"{folder}/nominal", about, "~15 min", steps, tuple(files))
    command = f"{make}/ladder.py"
    makes = (f"{folder}/ladder.csv", f"{folder}/ladder.png")
    yield Entry(f"{folder}/ladder", "the steps of all networks", "seconds", {"all": command}, makes, draws=command)


# --- networks whose activation need not be a ReLU

_HARD = "~1 h"
_TAKES = {"vit": "~10 min", "torchcrepe": "~30 min"}


def _without_relu(network: str, what: str, about: str, runs: Mapping[str, str], sites: str = "") -> Entry:
    settings = " ".join((*WITHOUT_RELU[network], "exprune.target_drop=0.1,1", sites))
    return sweeps(network, what, about, _TAKES.get(network, _HARD), settings, runs)


def _predicted(network: str) -> str:
    # One step of the search for lam changes the savings by up to 8 points, one for tau by half a point. The last step
    # of lam is therefore halved twice.
    stages = " ".join(STAGES.get(network, ()))
    return f"exprune=optimal exprune.order=input exprune.predict=true exprune.refine=2 {stages}"


def activations(network: str) -> Entry:
    runs = {
        "predicted": f"{_predicted(network)} exprune.scope=all",
        "magnitude": "exprune=magnitude exprune.scope=all",
    }
    about = "its feed-forward layers, whatever the activation"
    return _without_relu(network, "activations", about, runs, " ".join(FEED_FORWARD[network]))


def scopes(network: str) -> Entry:
    runs = {
        "relu": f"{_predicted(network)} exprune.scope=relu",
        "all": f"{_predicted(network)} exprune.scope=all",
        "magnitude": "exprune=magnitude exprune.scope=all",
    }
    return _without_relu(network, "scopes", "all layers before an activation, and every layer", runs)


def divergence(network: str) -> Entry:
    about = "what is saved at the same change of the predictions"
    return script(f"{network}/divergence", about, "~1 h", f"python results/make/divergence.py {network}",
                  f"{network}/divergence.csv")  # fmt: skip


# --- parts, estimates, promises

_LAMS = {  # half decades, from almost no drop to far more than one point
    "gnn": "1e-12,2e-12,5e-12,1e-11,1.5e-11,2e-11,3e-11,4e-11,5e-11,7e-11,1e-10,1.5e-10,2e-10,5e-10",
    "opt": "1e-9,3e-9,1e-8,2e-8,5e-8,1e-7,2e-7,3e-7,5e-7,1e-6",
    "vgg11_bn": "3e-13,1e-12,3e-12,1e-11,2e-11,4e-11,8e-11,1.6e-10,3e-10,1e-9",
    "resnet18": "1e-13,3e-13,1e-12,2e-12,4e-12,8e-12,1.6e-11,3e-11,1e-10",
    "vgg11_bn_static": "1e-10,3e-10,1e-9,2e-9,5e-9,1e-8,2e-8,5e-8,1e-7",
}


def promise(network: str) -> Entry:
    order = (
        "input" if network in ("gnn", "opt") else "layer"
    )  # for images, simulating the input order takes much longer
    settings = f"{' '.join(SETTINGS[network])} exprune=optimal exprune.order={order} exprune.lam={_LAMS[network]}"
    rest = "bootstrap=100 logger=none"
    steps = {
        split: f"python evaluate.py -m {settings} split={split} {rest} hydra.sweep.dir={{work}}/{split}"
        for split in ("valid", "test")
    }
    steps["divisions"] = f"python results/make/promise.py {{work}} {{into}}/{network}/promise"
    about = "how often the drop on unseen inputs exceeds the target"
    makes = (f"{network}/promise.csv", f"{network}/promise.png")
    return Entry(f"{network}/promise", about, "~1 h" if network != "resnet18" else "~3 h", steps, makes)


def damage(network: str) -> Entry:
    return script(
        f"{network}/damage",
        "the damage that is expected, and what is measured",
        "~20 min",
        f"python results/make/damage.py {network}",
        f"{network}/damage.csv",
        f"{network}/damage.png",
    )


def input_order_ablation(network: str, more: str = "") -> Entry:
    return script(
        f"{network}/input_order_ablation",
        "what each part of the order of each input is worth",
        "~1 h" if not more else "~5 min",
        f"python results/make/input_order_ablation.py {network}{more}",
        f"{network}/input_order_ablation.csv",
    )


def figures() -> Entry:
    makes = (*(f"{network}/fronts.png" for network in NETWORKS), "front.png", "input_order.png", "without_relu.png",
             "decoding/decoding.png")  # fmt: skip
    command = "python results/make/figures.py"
    return Entry(
        "figures", "the figures of README and the results pages", "seconds", {"draw": command}, makes, draws=command
    )


def pruned_passes() -> Entry:
    runs = ("model=gnn data=ogbg_molhiv data.limit=1024 --rounds 5", "model=opt data.limit=64 --rounds 5",
            "model=vgg11_bn data=cifar10_jpeg data.limit=512 --rounds 3",
            "model=resnet18 data=cifar10_jpeg data.limit=256 --rounds 3")  # fmt: skip
    steps = {
        run.split()[0].removeprefix("model="): f"python benchmarks/pruned_pass.py {run} --csv {{into}}/pruned_pass.csv"
        for run in runs
    }
    about = "what a pruned pass costs on this processor"
    return Entry("pruned_pass", about, "~30 min", steps, ("pruned_pass.csv",))


def decoding(processor: str) -> Entry:
    """Time decoding on a machine with this processor, which should be idle otherwise.

    The prices are those in opt_wide/optimal.csv for drops of 0.1 and 1 points. The shares given to OPT-1.3B's shape are
    those measured at 0.1 points.
    """
    at, decode = "exprune.lam=1.334e-9", "OMP_WAIT_POLICY=passive python benchmarks/decode.py"
    # The fifth run simulates a processor with only AVX2: torch, its libraries and numba may use no later instructions.
    avx2 = (
        "ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 NUMBA_CPU_NAME=haswell "
        "NUMBA_CPU_FEATURES="
    )
    out = f"{{into}}/decoding/{processor}"
    runs = {
        "opt_wide_1": f"{decode} {at} --rounds 12 --drop-tokens 5000",
        "opt_wide_2": f"{decode} {at} --rounds 12 --drop-tokens 0 --threads 2",
        "opt_wide_3": f"{decode} {at} --rounds 12 --drop-tokens 0 --dtype float16",
        "opt_wide_4": f"{decode} exprune.lam=8.66e-9 --rounds 12 --drop-tokens 5000",
        "opt_wide_5": f"{avx2} {decode} {at} --rounds 12 --drop-tokens 0",
        "shape": f"{decode} --shape opt-1.3b --read 0.34 --positive 0.12 --head-read 0.28 --rounds 6 --tokens 16",
    }
    steps = {run: f"{command} --json {out}/{run}.json" for run, command in runs.items()}
    steps["kernels"] = f"OMP_WAIT_POLICY=passive python benchmarks/ffn.py --hidden 1024 2048 --csv {out}/kernels.csv"
    makes = (*(f"decoding/{processor}/{run}.json" for run in runs), f"decoding/{processor}/kernels.csv")
    return Entry(f"decoding/{processor}", "what decoding takes on that processor", "~1 h", steps, makes)


PROCESSORS = ("epyc", "xeon")  # add a name to measure on another processor


def _entries() -> Iterator[Entry]:
    yield from map(one_tau, NETWORKS)
    yield from map(search, _SEARCHES)
    yield one_search("gnn", "magnitude", "~15 min", "search.limit=1000", "front")
    yield one_search("vgg11_bn", "calibrated", "9 min", "search.limit=1000 search.front=6", "front", "trials")
    for network in WITH_RECIPES:
        yield beyond(network, ["calibrated"] if network == "vgg11_bn_paper" else [])
        not_calibrated = network in ("resnet18", "vgg11_bn_paper", "vgg11_bn_static")
        yield input_order(network, ["calibrated"] if not_calibrated else [])
    wide = "model=opt_wide checkpoint=checkpoints/opt_wide-stdlib-none-seed0-688fce1e-1of3.safetensors data.limit=200"
    chosen = "exprune=optimal exprune.order=layer exprune.stages=[64,128,256,512] exprune.target_drop=0.1,1"
    yield sweeps("opt_wide", "optimal", "the prices that decoding is timed with", "~30 min", wide, {"optimal": chosen})
    for network in ("gnn", "vgg11_bn", "resnet18", "opt"):
        yield input_order_ablation(network)
    yield input_order_ablation("vgg11_bn_static", " --only exact")
    yield script("vgg11_bn/ablation", "what each part of the calibrated tests is worth", "~30 min",
                 "python results/make/ablation.py vgg11_bn", "vgg11_bn/ablation.csv")  # fmt: skip
    yield from map(damage, ("gnn", "opt", "vgg11_bn", "gelu", "llama"))
    yield from map(promise, _LAMS)
    yield from map(activations, ACTIVATIONS)
    yield from map(scopes, ("gelu", "llama", "vit", "rxnmapper", "torchcrepe"))
    yield from map(divergence, ("gelu", "llama", "rxnmapper"))
    yield script("neurons", "how many neurons are negative, how many units dead", "~15 min",
                 "python results/make/neurons.py", "neurons.csv")  # fmt: skip
    yield ladder("gnn")
    yield from exchangeability()
    yield script("method", "one neuron's sums, and where tests stop it", "~1 min",
                 "python results/make/method_figure.py", "method.png")  # fmt: skip
    yield figures()
    yield script("own_model", "what README's lines on your own model draw", "1 min",
                 "python results/make/own_model.py", "own_model.png")  # fmt: skip
    yield script("own_models", "the three calls on five networks of other authors", "~15 min",
                 "python results/make/own_models.py", "own_models.csv")  # fmt: skip
    rules = "python results/make/language_models.py"
    yield script("language_models/wikitext2", "every rule on a language model, at equal KL", "~10 h",
                 f"{rules} smollm2", "language_models/wikitext2.csv")  # fmt: skip
    yield script("language_models/piqa", "the settings found there, on PIQA's questions", "~5 h",
                 f"{rules} smollm2 --piqa", "language_models/piqa.csv")  # fmt: skip
    yield script("language_models/division", "which layers each rule leaves out", "~20 min",
                 f"{rules} smollm2 --division", "language_models/division.csv")  # fmt: skip
    drawn = "python results/make/language_tables.py"
    pictures = ("language_models/rules.png", "language_models/division.png")
    yield Entry(
        "language_models/figures", "the figures of their page", "seconds", {"all": drawn}, pictures, draws=drawn
    )
    yield pruned_passes()
    yield from map(decoding, PROCESSORS)


ENTRIES = {entry.name: entry for entry in _entries()}
