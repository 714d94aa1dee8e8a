# Read by scripts beside this file: what evaluates the network that their first argument names, from the repository's root.
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
network=${1:-}
settings=($(python results/make/networks.py "$network"))
