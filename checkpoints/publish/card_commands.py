"""The part of a model card that tells what to type; its commands are run by the tests, in the folder of a release."""

from checkpoints.convert.gguf import find_model_problems
from checkpoints.publish.facts import Facts
from checkpoints.publish.markdown import code, fenced, table, wrap

LOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(".")
inputs = tokenizer("The", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))"""
LOAD_WITHOUT_TOKENIZER = """\
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")
print(model(input_ids=torch.tensor([[0, 1, 2]])).logits.shape)"""
LLAMA = """\
olmo convert . ../model.gguf --to gguf
llama-cli -m ../model.gguf -p 'The'"""
CONTINUE = """\
olmo convert . ../base --to step
olmo train --config-path "$PWD/training" --config-name config \\
    run_name=continued run_dir=../continued hydra.run.dir=../continued load.path=../base"""
CHECK = """\
python -c "import json
for path, entry in json.load(open('release.json'))['files'].items():
    print(entry['sha256'], path, sep='  ')" | sha256sum --check --quiet"""


def use_section(facts: Facts) -> list[str]:
    """How to load, serve, convert, and go on training."""
    without = "" if facts.has_tokenizer else " The run names no tokenizer, so this release has none; ids are of its own."
    revision = code(f"revision={facts.release.name}")
    out = [
        "## Use", "",
        *wrap(f"The commands run in the folder of this release; from a hub give its name and {revision}.{without}"),
        "", "With [transformers](https://github.com/huggingface/transformers):", "",
        *fenced("python", LOAD if facts.has_tokenizer else LOAD_WITHOUT_TOKENIZER),
    ]  # fmt: skip
    if facts.has_tokenizer:
        out += ["", "With vLLM:", "", *fenced("bash", "vllm serve .")]
    if facts.has_tokenizer and not find_model_problems(facts.run.model):
        out += ["", "With llama.cpp:", "", *fenced("bash", LLAMA)]
    go_on = (
        "Continue training: turn it into a step folder, and begin a run from it, here with the configuration it was trained "
        "with; `data.sources.NAME.path=FOLDER` says where your shards are, and any other value can be changed so:"
    )
    moments = "" if facts.release.has_optimizer else " load.optimizer_state=false"
    return [*out, "", *wrap(go_on), "", *fenced("bash", CONTINUE + moments)]


def verify_section(facts: Facts) -> list[str]:
    """How to check that this is what was published."""
    by_hand = (
        "By hand, with nothing of ours. `release.json` lists every file but itself, its signature and `.gitattributes`, and a "
        "SHA-256 for each tensor too; `weights_sha256` names the weights however they are cut into files."
    )
    rows = [("Weights", code(facts.release.weights_sha256)), ("Checkpoint before this one", _before(facts))]
    return [
        "## Verify",
        "",
        *fenced("bash", "olmo verify ."),
        "",
        *wrap(by_hand),
        "",
        *fenced("bash", CHECK),
        "",
        *table(("", ""), rows),
    ]


def _before(facts: Facts) -> str:
    parent = facts.release.parent
    if parent is None:
        return "none"
    digest = parent["weights_sha256"]
    return f"{code(parent['name'])}, weights " + (code(digest) if digest else "not known")


def trace_section(facts: Facts) -> list[str]:
    """How to find the documents of a step."""
    step = max(facts.release.step, 1)
    text = (
        "The order of the data is a function of the manifests, the seed and the step. With the shards where "
        "`training/config.yaml` names them, seen from the folder `training`, this prints the documents that step "
        f"{step:,} saw; `olmo data when . ID` prints the steps that saw a document:"
    )
    return ["## What a step saw", "", *wrap(text), "", *fenced("bash", f"cd training\nolmo data batch . {step} --row 0")]
