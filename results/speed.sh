#!/usr/bin/env bash
# Makes decode_*.json and ffn.csv: what decoding takes on this machine, which should do nothing else meanwhile.
#   bash results/speed.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=passive
python benchmarks/ffn.py --csv results/ffn.csv
for threads in 1 2; do
    python benchmarks/decode.py model=opt_wide "exprune.stages=[64,128,256,512]" data.limit=300 --rounds 12 --drop-tokens 10000 --threads $threads \
        --json results/decode_opt_wide_$threads.json
done
