#!/usr/bin/env bash
# All parts of benchmarks/gpu.py, each alone and within a minute or so; eight minutes at most. A part that is ended or
# fails leaves the others alone. PYTHON names the interpreter; hoplon is taken from src/.
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
status=0
for part in values memory bounded half_width guards hardened importance; do
    timeout 68 "${PYTHON:-python3}" -P benchmarks/gpu.py --part "$part" "$@" || { status=1; echo "part $part did not finish" >&2; }
done
exit "$status"
