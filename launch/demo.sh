#!/usr/bin/env bash
# The main job, from nothing, on a laptop: each command below is one you can run yourself.
# Text of this machine -> documents -> filters -> tokenizer -> shards -> a small mixture of experts on 2 FSDP ranks, stopped and resumed.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
run() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }

began=$SECONDS
run_name=${1:-demo}
rm -rf corpus/demo corpus/demo_mixed shards/demo "runs/$run_name" "releases/$run_name"

say "Real text that every machine has: Python's own sources, the documentation of the installed packages"
run olmo data gather folder=corpus/demo

say "What is wrong with each document, and which are nearly the same: attributes beside the documents"
run olmo data tag 'documents=[corpus/demo]' name=quality 'taggers=[gopher]'
run olmo data dedupe 'documents=[corpus/demo]' name=near by=minhash

say "The documents that go on; why the others do not is kept"
run olmo data mix output=corpus/demo_mixed 'sources.text={documents: [corpus/demo], attributes: [quality, near], drop: {near_duplicate: "near__minhash__duplicate >= 1", short: "gopher__word_count < 20"}}'

say "A byte-level BPE tokenizer learned from them"
run olmo data tokenizer 'documents=[corpus/demo_mixed]' output=corpus/demo/tokenizer.json vocab_size=4096

say "Token shards with a manifest; every twentieth document is held out, chosen by its id"
run olmo data tokenize 'documents=[corpus/demo_mixed]' tokenizer=corpus/demo/tokenizer.json output=shards/demo heldout_frac=0.05

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

say "Releases of it, as they would stand on a hub: weights for transformers, training state, model card, manifest"
run olmo publish "run=runs/$run_name" "target=releases/$run_name" 'steps=[0,1,4,16,64,300,600]'

say "Every byte, tensor and claim of them checked; then the steps from 0 to 1 trained again"
run olmo verify "releases/$run_name"
run olmo verify "releases/$run_name" --replay --from stage1-step0-tokens0B --shards demo=shards/demo

say "Norms, routing and the probability of a text over the run; a page for a browser"
run olmo checkpoints curve "runs/$run_name" --tokens-per-source 4096 --text "$prompt" >"runs/$run_name/curve.txt"
printf 'tables: runs/%s/curve.txt   figures and page: runs/%s/inspect/report.html\n' "$run_name" "$run_name"

say "An index of the shards: every span of every document, found in milliseconds"
run olmo trace index shards=shards/demo 'documents=[corpus/demo_mixed]'

say "A generated sample led back to the documents it repeats, and to the steps that saw them"
olmo generate "runs/$run_name" --prompt "$prompt" --max-tokens 80 --seed 1 --no-stream >"runs/$run_name/sample.txt"
run olmo trace text "runs/$run_name" --file "runs/$run_name/sample.txt" spans.max_spans=3 documents.per_span=2

say "Report, after $((SECONDS - began)) seconds"
run olmo report "runs/$run_name"
printf '\n(the commands are in .venv/bin; `source .venv/bin/activate` puts them on your PATH)\n'
printf '\nWhich documents, which steps, how the belief changed, in a browser:\n  olmo explore run=runs/%s\n' "$run_name"
