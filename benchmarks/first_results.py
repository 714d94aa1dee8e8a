"""How long a new user waits for first results: README's commands on the embedded data, from an empty cache.

    python benchmarks/first_results.py [--json OUT]

Networks without released weights are trained. Prints the seconds of each command and the metric it measured.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODELS = ("gnn", "vgg11_bn", "resnet18", "opt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    figures = {}
    for model in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "EXPRUNE_CACHE_DIR": f"{folder}/cache"}
            environment.pop("EXPRUNE_DATA_DIR", None)
            words = [f"model={model}", "exprune.tau=0.1", "hydra.run.dir=run"]
            start = time.perf_counter()
            command = [sys.executable, str(ROOT / "evaluate.py"), *words]
            subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            metric = json.loads((Path(folder) / "run" / "result.json").read_text())["metric"]
        figures[model] = {"seconds": round(seconds, 1), metric["name"]: metric["dense"]}
        print(
            f"python evaluate.py model={model} exprune.tau=0.1: {seconds:.0f} s, {metric['name']} {metric['dense']:.4f}"
        )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
