#!/usr/bin/env bash
# Makes opt/one_tau.csv and opt/one_tau.png: the embedded OPT on the held-out files of Python's standard library, from the
# released checkpoint and tokenizer; both heuristics at every tau below, one tau for all sites.
#   bash results/make/opt_stdlib.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
sweep=$(mktemp -d)
trap 'rm -rf "$sweep"' EXIT

run() { # NAME OVERRIDE...
    python evaluate.py -m model=opt logger=none hydra.sweep.dir="$sweep/$1" "${@:2}"
}
run stats exprune=stats_test exprune.tau=0,0.01,0.02,0.05,0.1,0.15,0.2,0.3,0.4,0.5
run threshold exprune=threshold exprune.tau=-0.1,-0.05,-0.03,-0.02,-0.015,-0.01,-0.007,-0.005,-0.002,0
python -m exprune.lab.fronts.pareto "$sweep" --csv results/opt/one_tau.csv --plot results/opt/one_tau.png
