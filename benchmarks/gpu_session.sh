#!/usr/bin/env bash
# Everything that wants a GPU, in one call of at most 9 minutes: tests, kernels, training steps against peers, profile.
#   OUT=folder bash benchmarks/gpu_session.sh [name=value of the training config ...]
# Results go to $OUT (default ./bench_out): a .txt of each part, .json beside it, and summary.txt. A part that fails or takes too long
# does not stop the next. Seconds of each part: TESTS_S, KERNELS_S, STEP_S, PROFILE_S; PYTHON says which interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-./bench_out}
python=${PYTHON:-python3}
tests_s=${TESTS_S:-60} kernels_s=${KERNELS_S:-150} step_s=${STEP_S:-235} profile_s=${PROFILE_S:-85}
mkdir -p "$out"
: >"$out/summary.txt"

# part NAME SECONDS COMMAND...: run it, keep what it prints, note how it ended.
part() {
    local name=$1 seconds=$2 begin=$SECONDS status
    shift 2
    echo "== $name: $*"
    timeout -k 10 "$seconds" "$@" >"$out/$name.txt" 2>&1
    status=$?
    echo "$name: exit status $status after $((SECONDS - begin)) s" | tee -a "$out/summary.txt"
}

if [ "$tests_s" -gt 0 ]; then
    part gpu_tests "$tests_s" "$python" -m pytest -m gpu --durations=5
fi
# Kernels before steps: what they compile and tune is kept on disk, and the steps find it there.
part kernels "$kernels_s" "$python" benchmarks/kernels.py --budget $((kernels_s - 25)) --out "$out/kernels.json"
part train_step "$step_s" "$python" benchmarks/train_step.py --budget $((step_s - 15)) --side-budget 140 --settle 10 \
    --step-seconds 10 --out "$out/train_step.json" "$@"
part profile "$profile_s" "$python" benchmarks/profile.py --budget $((profile_s - 10)) --out "$out/profile.json" "$@"

for name in kernels train_step profile; do
    echo "==== $name"
    cat "$out/$name.txt"
done
tail -n 15 "$out/gpu_tests.txt" 2>/dev/null
cat "$out/summary.txt"
