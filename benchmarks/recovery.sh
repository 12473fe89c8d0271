#!/usr/bin/env bash
# Time from a fault to the next step, on a real Slurm of four nodes on this machine: a rank killed three times, then a node (with a spare).
#   PATH=.venv/bin:$PATH bash benchmarks/recovery.sh      # once before, as root: bash launch/slurm_local.sh install
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export SLURM_LOCAL_DIR SLURM_LOCAL_PORT=18600 SLURM_LOCAL_PREFIX=rec SLURM_LOCAL_NODES=4
work=$(mktemp -d /tmp/recovery.XXXX)
SLURM_LOCAL_DIR=$work/slurm
slurm() { bash "$root/launch/slurm_local.sh" "$@" 2>/dev/null; }
trap 'olmo cancel first --now >/dev/null 2>&1; slurm purge; rm -rf "$work"' EXIT
cd "$work"
slurm start && eval "$(slurm env)"
PYTHONPATH=$root python - <<'P' >words
from pathlib import Path
from tests.corpora import write_corpus
from tests.runs import small
write_corpus(Path("shards"))
print("\n".join(small(Path("shards").resolve(), Path("runs/first").resolve(), "max_tokens=256000", "checkpoint.ephemeral_every=5",
                      "checkpoint.save_every=1000", "metrics.log_every=1", "faults.silent_s=10", "eval.eval_every=null")))
P
mapfile -t words <words
olmo launch cluster=local nodes=2 spare_nodes=1 time=20 "${words[@]}" >/dev/null
attempts=runs/first/jobs/0001/attempts
last() { tail -n1 runs/first/metrics.jsonl 2>/dev/null | sed 's/.*"step": \([0-9]*\).*/\1/'; }
for i in 1 2 3 4; do
  until [ "$(last || echo 0)" -ge $((i * 60)) ] 2>/dev/null; do sleep 0.05; done
  n=$(find $attempts -mindepth 1 -maxdepth 1 | wc -l) what="a rank" fault=$(date +%s.%N)
  if [ $i = 4 ]; then what="a node (silent_s=10)"; slurm kill-node rec2
  else kill -9 "$(pgrep -f "olmo_train.parallel.srun.*$work/runs/first" | tail -1)"; fi
  until [ "$(find $attempts -mindepth 1 -maxdepth 1 | wc -l)" -gt "$n" ]; do sleep 0.05; done
  next=$(date +%s.%N) log=$(printf '%s/%04d/rank-00000.log' $attempts $((n + 1)))
  until grep -q 'step [0-9]*/' "$log" 2>/dev/null; do sleep 0.05; done
  awk -v w="$what" -v f="$fault" -v n="$next" -v s="$(date +%s.%N)" \
    'BEGIN { printf "%s lost: the next attempt after %.1f s, its first step after %.1f s\n", w, n - f, s - f }'
done
