// The run over its steps: losses, evaluations, expert load; and one checkpoint of it.

import { heatMap, lineChart, ramp } from "/charts.js";
import { byId, el, number, plain, plural, shown, whole } from "/dom.js";

let chart = null;

// acts: choose(step), use(step)
export function drawRun(run, step, acts) {
  const box = byId("view-run");
  const title = el("h2", {}, ...shown(plain(run.name, 80)));
  const chosen = el("section", { class: "card", id: "checkpoint", "aria-live": "polite" });
  box.replaceChildren(
    el("section", { class: "card" }, title, facts(run), losses(run, step, acts)), chosen,
    ...(run.load ? [load(run, acts)] : []),
    el("section", { class: "card" }, el("h2", {}, "Checkpoints"), el("div", { class: "scroll" }, table(run, acts))));
  drawCheckpoint(run, step, acts);
}

function facts(run) {
  const m = run.model;
  const rows = [
    ["Parameters", m.active === m.parameters ? whole(m.parameters) : `${whole(m.parameters)}, ${whole(m.active)} active`],
    ["Layers", `${m.n_layers} of width ${whole(m.d_model)}`],
    ["Experts", m.n_experts ? `${m.n_experts} per layer, ${m.top_k} active` : "none (dense)"],
    ["Sequence", plural(m.seq_len, "token")],
    ["Trained", `step ${whole(run.trained_step)} of ${whole(run.last_step)}, ${whole(run.trained_step * run.global_batch_size)} tokens`],
    ["Indexed", run.trace ? `${plural(run.trace.n_tokens, "training token")} of ${run.trace.sources.map((name) => plain(name, 40)).join(", ")}` : "nothing: texts cannot be traced"],
  ];
  return el("dl", { class: "numbers" }, rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, ...shown(value)))));
}

function losses(run, step, acts) {
  const lines = [];
  if (run.training) lines.push({ name: "training loss", style: "s0 thin", points: run.training.step.map((x, i) => [x, run.training.loss[i]]) });
  Object.entries(run.heldout).forEach(([name, points], i) => lines.push({ name: `held out: ${name}`, style: `s${1 + (i % 5)}`, points, dots: true }));
  chart = lineChart({
    label: "Losses over the run. Enter chooses a checkpoint", x: "step", y: "loss, nats per token", lines,
    stops: run.checkpoints.map((checkpoint) => checkpoint.step), chosen: step, pick: acts.choose,
  });
  return el("div", {}, chart, el("p", { class: "soft" }, "Dots on the axis are checkpoints: click one, or go with the arrow keys and press Enter."));
}

export function drawCheckpoint(run, step, acts) {
  const box = byId("checkpoint"), found = run.checkpoints.find((checkpoint) => checkpoint.step === step);
  if (!box || !found) return;
  chart?.choose(step);
  for (const row of document.querySelectorAll("#checkpoints tbody tr")) row.classList.toggle("chosen", Number(row.dataset.step) === step);
  const rows = [["Tokens", whole(found.tokens)], ["Training loss", number(found.loss)], ["Held-out loss", number(found.heldout_loss)], ["Learning rate", number(found.lr)]];
  box.replaceChildren(
    el("div", { class: "row" }, el("h2", {}, `Checkpoint of step ${whole(step)}`), el("button", { type: "button", class: "primary", onclick: () => acts.use(step) }, "Write with it")),
    el("dl", { class: "numbers" }, rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    evaluations(found), ...[experts(run, step)].filter(Boolean));
}

function evaluations(checkpoint) {
  if (!checkpoint.evaluations.length) return el("p", { class: "soft" }, "No evaluation at this step.");
  const rows = checkpoint.evaluations.flatMap((entry) => Object.entries(entry.metrics).filter(([, value]) => typeof value === "number").map(([metric, value]) =>
    el("tr", {}, el("td", { class: "words" }, entry.suite), el("td", { class: "words" }, ...shown(plain(entry.label, 60))), el("td", { class: "words" }, ...shown(plain(metric, 40))), el("td", {}, number(value)))));
  return el("details", { open: rows.length <= 8 }, el("summary", {}, "Evaluations"), el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, ["Suite", "Of", "Measure", "Value"].map((name, i) => el("th", { scope: "col", class: i < 3 ? "words" : null }, name)))), el("tbody", {}, rows))));
}

// ---- expert load ---------------------------------------------------------------------------------------------------------

const busy = (value) => (value === null ? 0 : Math.min(8, Math.max(0, Math.round((value - 1) * 4))));

function load(run, acts) {
  const { step, load_max_over_mean: peaks, load_entropy: entropy, dead_experts: dead } = run.load;
  const layers = peaks[0].map((_, layer) => layer);
  const nearest = (column) => run.checkpoints.reduce((best, checkpoint) => (Math.abs(checkpoint.step - step[column]) < Math.abs(best - step[column]) ? checkpoint.step : best), run.checkpoints[0].step);
  return el("section", { class: "card" }, el("h2", {}, "Expert load"),
    el("p", { class: "soft" }, "The busiest expert of each mixture layer, in units of an even share, at logged steps of training. Enter, or a click, chooses the nearest checkpoint."),
    heatMap({
      label: "Load of the busiest expert by layer and step", x: "step", y: "mixture layer", rows: layers.map(String), columns: step.map(whole), values: layers.map((layer) => peaks.map((row) => row[layer])), level: busy,
      tell: (r, c) => [`layer ${r}, step ${whole(step[c])}`, [["", "busiest expert", `${number(peaks[c][r], 3)} \u00d7 even`], ["", "entropy of the load", number(entropy[c]?.[r], 3)], ["", "experts without a token", whole(dead[c]?.[r])]]],
      pick: (column) => acts.choose(nearest(column)),
    }), ramp(["even", "3 times an even share"]));
}

function experts(run, step) {
  const layers = run.experts?.[String(step)];
  if (!layers) return null;
  const names = Object.keys(layers), n = layers[names[0]].length;
  return el("details", { open: true }, el("summary", {}, "Load of every expert on held-out tokens"), heatMap({
    label: `Load of every expert at step ${whole(step)}`, x: "expert", y: "layer", rows: names, columns: Array.from({ length: n }, (_, e) => String(e)), values: names.map((name) => layers[name]),
    level: (value) => Math.min(8, Math.round(value * n * 4 / 1.5)),
    tell: (r, c) => [`layer ${names[r]}, expert ${c}`, [["", "share of the choices", number(layers[names[r]][c], 3)], ["", "times an even share", number(layers[names[r]][c] * n, 3)]]],
  }), ramp(["none", "3 times an even share"]));
}

function table(run, acts) {
  const names = ["Step", "Tokens", "Loss", "Held out", "Evaluations"];
  return el("table", { id: "checkpoints" }, el("thead", {}, el("tr", {}, names.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, run.checkpoints.map((checkpoint) => el("tr", { "data-step": checkpoint.step, onclick: () => acts.choose(checkpoint.step) },
      el("th", { scope: "row" }, el("button", { type: "button", class: "as-text" }, whole(checkpoint.step))), el("td", {}, whole(checkpoint.tokens)), el("td", {}, number(checkpoint.loss)),
      el("td", {}, number(checkpoint.heldout_loss)), el("td", {}, whole(checkpoint.evaluations.length))))));
}
