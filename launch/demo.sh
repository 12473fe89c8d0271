#!/usr/bin/env bash
# The main job, from nothing, on a laptop: each command below is one you can run yourself.
# Text of this machine -> documents -> tokenizer -> shards -> a small mixture of experts on 2 FSDP ranks, stopped and resumed.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
run() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }

began=$SECONDS
run_name=${1:-demo}
rm -rf corpus/demo shards/demo "runs/$run_name"

say "Real text that every machine has: Python's own sources, the documentation of the installed packages"
run olmo data gather folder=corpus/demo

say "A byte-level BPE tokenizer learned from it"
run olmo data tokenizer 'documents=[corpus/demo/documents]' output=corpus/demo/tokenizer.json vocab_size=4096

say "Token shards with a manifest; every twentieth document is held out, chosen by its id"
run olmo data tokenize 'documents=[corpus/demo/documents]' tokenizer=corpus/demo/tokenizer.json output=shards/demo heldout_frac=0.05

train=(olmo launch local --ranks 2 "run_name=$run_name" experiment=demo)

say "Training on 2 ranks, with a deliberate stop half way"
run "${train[@]}" stop_at_step=300

say "The same command continues where it stopped, bit for bit"
run "${train[@]}"

prompt='def main():'
say "What the model writes before the first step, and after the last"
for step in 0 newest; do
  at=(); [ "$step" = newest ] || at=(--step "$step")
  printf -- '--- %s ---\n' "$step"
  run olmo generate "runs/$run_name" "${at[@]}" --prompt "$prompt" --max-tokens 80 --seed 1
done

say "Report, after $((SECONDS - began)) seconds"
run olmo report "runs/$run_name"
printf '\n(the commands are in .venv/bin; `source .venv/bin/activate` puts them on your PATH)\n'
