#!/usr/bin/env bash
# Makes decode_*.json and ffn.csv: what decoding takes on this machine, which should do nothing else meanwhile. The price
# is what `python evaluate.py model=opt_wide exprune=optimal exprune.target_drop=0.1 ...` finds (docs/results.md).
#   bash results/speed.sh LAM
set -euo pipefail
lam=${1:?the price, loss per FLOP}
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=passive
python benchmarks/ffn.py --csv results/ffn.csv
for threads in 1 2; do
    python benchmarks/decode.py model=opt_wide exprune.lam="$lam" "exprune.stages=[64,128,256,512]" --rounds 12 \
        --threads $threads --drop-tokens 10000 --json results/decode_opt_wide_$threads.json
done
