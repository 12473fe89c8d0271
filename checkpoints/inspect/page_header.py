"""Top of the report: title, one sentence, headline numbers and facts of the run."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from checkpoints.inspect.page_parts import tag, text
from checkpoints.inspect.page_view import View, whole_heldout
from checkpoints.inspect.readable import NONE, amount, exact, number

MAX_SOURCES = 12


def header_html(view: View) -> str:
    """All of it."""
    title = f"<h1><bdi>{text(view.document['run']['name'])}</bdi></h1>"
    return f'<header>{title}<p class="lede">{text(_lede(view))}</p>{_numbers(view)}{_facts(view)}</header>'


def _lede(view: View) -> str:
    run, last, n = view.document["run"], view.checkpoints[-1], len(view.checkpoints)
    model, counts = run["model"], run["parameters"]
    what = f"A dense language model with {amount(counts['total'])} parameters"
    if model.get("moe"):
        experts = f"({model['moe']['top_k']} of {model['moe']['n_experts']} experts in each layer)"
        what = f"A mixture of experts with {amount(counts['total'])} parameters, "
        what += f"{amount(counts['active'])} of them active per token {experts}"
    trained = f", after {amount(last['tokens'])} tokens" if last["tokens"] is not None else ""
    steps = f" in {exact(last['step'])} steps" if last["step"] is not None else ""
    many = f"{n} checkpoints are compared here." if n > 1 else "One checkpoint is shown here."
    return f"{what}{trained}{steps}. {many}"


def _numbers(view: View) -> str:
    """(what is shown, what it is, exactly)."""
    last, counts = view.checkpoints[-1], view.document["run"]["parameters"]
    heldout, routing = whole_heldout(last), last["routing"]
    tiles = [(amount(counts["total"]), f"parameters, {amount(counts['active'])} active per token", exact(counts["total"]))]
    if last["tokens"] is not None:
        tiles.append((amount(last["tokens"]), "tokens seen", exact(last["tokens"])))
    if last["train_loss"] is not None:
        tiles.append((number(last["train_loss"]), "training loss of the last step, nats per token", str(last["train_loss"])))
    if heldout:
        says = f"held-out loss, nats per token ({exact(heldout['tokens'])} tokens)"
        tiles.append((number(heldout["loss"]), says, str(heldout["loss"])))
        if heldout["bits_per_byte"] is not None:
            tiles.append((number(heldout["bits_per_byte"]), "held-out bits per byte", str(heldout["bits_per_byte"])))
    if routing:
        busiest = max(layer["balance"]["max_load"] for layer in routing["layers"])
        says = "load of the busiest expert, over the even share"
        tiles.append((f"{number(busiest, 3)}\N{MULTIPLICATION SIGN}", says, str(busiest)))
    items = "".join(f"<li>{tag('b', text(shown), title=title)}<span>{text(says)}</span></li>" for shown, says, title in tiles)
    return f'<ul class="numbers">{items}</ul>'


def _facts(view: View) -> str:
    rows = "".join(f"<dt>{name}</dt><dd>{inner}</dd>" for name, inner in _rows(view.document["run"]) if inner)
    return f'<dl class="facts">{rows}</dl>'


def _rows(run: dict[str, Any]) -> Iterator[tuple[str, str]]:
    counts, batch = run["parameters"], run["global_batch_size"]
    yield "Parameters", text(f"{exact(counts['total'])} in all, {exact(counts['active'])} active per token")
    yield "Architecture", text(_architecture(run))
    training = f"{exact(batch)} tokens per step, {exact(run['max_tokens'])} planned; {run['optimizer']}" if batch else ""
    yield "Training", text(training + (f", peak learning rate {run['peak_lr']:g}" if training and run["peak_lr"] else ""))
    yield "Data", "<br>".join(_sources(run["sources"]))
    starts = run["starts"]
    if starts:
        commits = dict.fromkeys(_commit(start["git"]) for start in starts if start["git"])
        devices = dict.fromkeys(f"{start['n_ranks']} \N{MULTIPLICATION SIGN} {start['device']}" for start in starts)
        began = datetime.fromtimestamp(starts[0]["time"], UTC).strftime("%-d %B %Y") if starts[0]["time"] else NONE
        yield "Code", ", ".join(f"<code>{text(commit)}</code>" for commit in commits)
        yield "Hardware", text(", ".join(devices))
        yield "Started", text(began + (f", {len(starts)} starts" if len(starts) > 1 else ""))


def _architecture(run: dict[str, Any]) -> str:
    model, moe = run["model"], run["model"].get("moe")
    shape = (
        f"{model['n_layers']} layers, width {exact(model['d_model'])}, {model['n_heads']} heads, {exact(model['vocab_size'])} ids"
    )
    experts = f"; {moe['n_experts']} experts of width {exact(moe['d_expert'])}, {moe['top_k']} per token" if moe else ""
    return f"{shape}{experts}; sequences of {exact(run['seq_len'])} tokens"


def _sources(sources: list[dict[str, Any]]) -> Iterator[str]:
    for source in sources[:MAX_SOURCES]:
        known = f": {exact(source['tokens'])} tokens in {exact(source['documents'])} documents" if source["tokens"] else ""
        yield f"<bdi>{text(source['name'])}</bdi>{known}"
    if len(sources) > MAX_SOURCES:
        yield f"and {len(sources) - MAX_SOURCES} more"


def _commit(git: dict[str, Any]) -> str:
    return f"{git['commit']}{' with uncommitted changes' if git.get('has_changes') else ''}"
