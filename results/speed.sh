#!/usr/bin/env bash
# Makes decode_*.json and ffn.csv: what decoding takes on this machine, which should do nothing else meanwhile. The price
# is the one of results/opt_wide_stdlib.csv at a drop of 0.1 points, the shares that OPT-1.3B's shape is given its own.
#   bash results/speed.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=passive
network=(exprune.lam=1.334e-9)
python benchmarks/decode.py "${network[@]}" --rounds 12 --drop-tokens 5000 --json results/decode_opt_wide_1.json
python benchmarks/decode.py "${network[@]}" --rounds 12 --drop-tokens 0 --threads 2 --json results/decode_opt_wide_2.json
python benchmarks/decode.py --shape opt-1.3b --read 0.34 --positive 0.12 --rounds 6 --tokens 16 --json results/decode_shape_1.json
python benchmarks/ffn.py --hidden 1024 2048 --csv results/ffn.csv
