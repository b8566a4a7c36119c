#!/usr/bin/env bash
# The studies on a GPU, in rounds of limited time: every row of the five papers, then the conflicts.
#
#   DATA=DIR bash benchmarks/gpu_study.sh [OPTION of python -m bert_mtl_demo.study ...]
#
# What a round has finished is packed at its end, and unpacked by the next one, which goes on from
# there; a run that was cut short goes on from its checkpoint if it is on the same machine. Needs the
# demo's dependencies and no network.
#
#   DATA     folder of the tables; default: the embedded sample
#   OUT      folder for study.tar.gz; default runs
#   BEFORE   study.tar.gz of the round before
#   JOBS     runs at a time, default 6: one MiniLM does not fill a large GPU
#   TOTAL    seconds for this round, default 570
#   PYTHON   default python3
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

out=${OUT:-runs}
mkdir -p "$out"
[ -n "${BEFORE:-}" ] && tar -xzf "$BEFORE"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} MPLBACKEND=Agg HF_HUB_OFFLINE=1

study() {
  local left=$((${TOTAL:-570} - SECONDS))
  [ "$left" -lt 10 ] && return 1
  # SIGINT lets the runs save themselves.
  timeout --signal=INT --kill-after=30 "$left" "${PYTHON:-python3}" -m bert_mtl_demo.study "$@" \
    --data "${DATA:-sample}" --jobs "${JOBS:-6}" --output runs/study --no-texts
}

status=0
study all --seeds 0 1 2 --set amp=bf16 "$@" || status=$?
study conflicts --seeds 0 1 2 "$@" || status=$?
# Results and pages, no weights: what a page is made of, and what the next round need not repeat.
find runs/study -type f \( -name result.json -o -name settings.json -o -name '*.md' \
  -o -name '*.png' -o -path '*/pieces/*' -o -name study.json \) -print0 |
  tar --null -czf "$out/study.tar.gz" --files-from=-
exit "$status"
