#!/usr/bin/env bash
# The whole GPU pass in under ten minutes: versions, the library's tests, every benchmark.
#
#   bash benchmarks/gpu_pass.sh [OPTION of python -m benchmarks ...]
#
# Needs Python with torch, pytest, hypothesis, transformers, tqdm and matplotlib; the package itself
# need not be installed, and no network is used. Every part has a time limit; one that fails or runs
# out of time is told at the end, and the others still run.
#
#   OUT      folder for results.tar.gz and gpu_pass.log; without it results go to benchmarks/results
#   WHEELS   folder of the peers' wheels, installed into a temporary folder
#   DEVICE   cuda (default) or cpu, for a rehearsal: DEVICE=cpu bash benchmarks/gpu_pass.sh --quick
#   TESTS    what pytest runs, default tests/gradsurgery
#   TOTAL    seconds for everything, default 570
#   PYTHON   default python3
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

python=${PYTHON:-python3}
device=${DEVICE:-cuda}
total=${TOTAL:-570}
read -r -a tests <<<"${TESTS:-tests/gradsurgery}"
options=("$@")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
results=benchmarks/results
log=$scratch/gpu_pass.log
if [ -n "${OUT:-}" ]; then
  mkdir -p "$OUT"
  results=$scratch/results
  log=$OUT/gpu_pass.log
fi
mkdir -p "$results"
export PYTHONPATH=$PWD:$scratch/site${PYTHONPATH:+:$PYTHONPATH}
export MPLBACKEND=Agg HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
failed=()

# After each part, so that a pass that is cut short still leaves what it measured.
pack() {
  if [ -n "${OUT:-}" ]; then tar -C "$results" -czf "$OUT/results.tar.gz" .; fi
}

# part NAME SECONDS COMMAND...: run it within its seconds, and within what is left of the total.
part() {
  local name=$1 limit=$2 left=$((total - SECONDS)) status
  shift 2
  if [ "$left" -lt 10 ]; then
    failed+=("$name (no time left)")
    return
  fi
  [ "$limit" -gt "$left" ] && limit=$left
  printf '\n== %s (at %ss, at most %ss)\n' "$name" "$SECONDS" "$limit"
  timeout --kill-after=5 "$limit" "$@"
  status=$?
  [ "$status" -ne 0 ] && failed+=("$name (status $status)")
  pack
}

theme() {
  part "$1" "$2" "$python" -m benchmarks "$1" --device "$device" --results "$results" \
    --minutes "$3" ${options[@]+"${options[@]}"}
}

versions() {
  "$python" - <<'PYTHON'
import importlib.metadata as metadata
import platform

import torch

print("python", platform.python_version(), "torch", torch.__version__, "cuda", torch.version.cuda)
for name in ("triton", "transformers", "torchjd", "pytorch_optimizer", "LibMTL"):
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "not installed")
PYTHON
  command -v nvidia-smi >/dev/null &&
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  return 0
}

pass() {
  if [ -n "${WHEELS:-}" ]; then
    part wheels 60 "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
      --target "$scratch/site" "$WHEELS"/*.whl
  fi
  versions
  part tests 150 "$python" -m pytest -q -p no:cacheprovider "${tests[@]}"
  theme surgery 170 2.3
  theme step 80 1
  theme peers 120 1.5
  theme scaling 60 0.8
  theme memory 100 1.4
  theme trunk 60 0.8
  printf '\n== summary (%ss)\n' "$SECONDS"
  if [ "${#failed[@]}" -eq 0 ]; then
    echo "all parts passed"
    return 0
  fi
  printf 'failed: %s\n' "${failed[@]}"
  return 1
}

pass 2>&1 | tee "$log"
exit "${PIPESTATUS[0]}"
