// How probable a span was at each checkpoint, beside controls that no step saw.

import { stream } from "/api.js";
import { heatMap, lineChart, ramp } from "/charts.js";
import { byId, el, number, plain, plural, shown, whole } from "/dom.js";
import { sightList } from "/documents.js";

let running = null;

export function stopBelief() {
  running?.abort();
  running = null;
}

// body: the request of /api/belief; where: what is said of the place; key: what is drawn, so that it is not drawn again
export async function drawBelief(body, span, where) {
  const box = byId("probability"), key = JSON.stringify(body);
  if (box.dataset.key === key) return;
  stopBelief();
  box.dataset.key = key;
  const mine = (running = new AbortController());
  const bar = el("progress", { max: 1, value: 0, "aria-label": "Checkpoints measured" }), says = el("p", { class: "soft", role: "status" }, "Measuring the span at every checkpoint\u2026");
  box.replaceChildren(el("h2", {}, `Probability of span ${span.number + 1}`), el("p", { class: "soft" }, ...shown(`\u201c${plain(span.text, 120).trim()}\u201d, ${where}.`)), bar, says);
  try {
    for await (const event of stream("/api/belief", body, mine.signal)) {
      if (event.event === "waiting") says.textContent = `Waiting for ${plural(event.ahead, "other task")}\u2026`;
      if (event.event === "progress") {
        bar.value = event.number / event.n;
        says.textContent = `Checkpoint ${whole(event.number)} of ${whole(event.n)}: step ${whole(event.step)}`;
      }
      if (event.event === "done") {
        bar.remove();
        says.remove();
        drawAll(box, event.belief, event.notes);
      }
    }
  } catch (error) {
    delete box.dataset.key;
    if (error.name === "AbortError" || mine.signal.aborted) return;
    bar.remove();
    says.replaceWith(el("p", { class: "problem" }, error.message));
  }
}

// ---- the curve -----------------------------------------------------------------------------------------------------------

const perToken = (curve) => curve.points.map((point) => [point.step, point.log_prob / Math.max(1, point.log_probs_T.length)]);

function quantile(values, share) {
  const at = (values.length - 1) * share, low = Math.floor(at);
  return values[low] + (values[Math.min(low + 1, values.length - 1)] - values[low]) * (at - low);
}

function controlBand(controls) {
  const rows = controls.map((curve) => new Map(perToken(curve)));
  const steps = controls.length ? controls[0].points.map((point) => point.step) : [];
  return steps.map((step) => {
    const values = rows.map((row) => row.get(step)).filter((value) => value !== undefined && value !== null).sort((a, b) => a - b);
    return { step, low: quantile(values, 0.1), high: quantile(values, 0.9), mean: values.reduce((a, b) => a + b, 0) / values.length };
  });
}

function drawAll(box, belief, notes) {
  const band = controlBand(belief.controls), lines = [{ name: "the span", style: "s0", points: perToken(belief.span), dots: true, more: chances(belief) }];
  if (band.length) lines.push({ name: `mean of ${plural(band.length && belief.controls.length, "control")}`, style: "s1", points: band.map((row) => [row.step, row.mean]), dots: false });
  const learned = new Map(belief.span.sights.filter((sight) => sight.mark === "learned").map((sight) => [sight.step, sight]));
  const others = new Map(belief.all_sights.filter((sight) => sight.mark === "learned" && !learned.has(sight.step)).map((sight) => [sight.step, sight]));
  const marks = [
    ...[...others.keys()].slice(0, 200).map((x) => ({ x, name: "another occurrence is learned", kind: "step that learned another occurrence", style: "other" })),
    ...[...learned.keys()].slice(0, 200).map((x) => ({ x, name: "this occurrence is learned", kind: "step that learned this occurrence", style: "sight" })),
  ];
  box.append(lineChart({
    label: "Log-probability of the span at each checkpoint", x: "step", y: "nats per token; 0 is certain", lines,
    bands: band.length ? [{ name: "8 of 10 controls", style: "s1", points: band.map((row) => [row.step, row.low, row.high]) }] : [], marks, table: true,
  }));
  box.append(el("p", { class: "soft" }, ...shown(`Context: ${plural(belief.span.n_context, "token")} of the ${CONTEXTS[belief.span.context_kind] ?? belief.span.context_kind}. Controls: spans of held-out documents as long and about as improbable, which no step saw.`)));
  if (belief.estimates.length) box.append(...estimates(belief));
  box.append(tokensTable(belief), ...experts(belief));
  box.append(el("h3", {}, "When this occurrence was seen"), belief.span.place === null ? el("p", { class: "soft" }, "It was read in the text above, not in a document.") : sightList({ in_run: true, is_heldout: false, sights: belief.span.sights }));
  const cautions = [...notes, ...belief.cautions];
  if (cautions.length) box.append(el("h3", {}, "What these numbers cannot say"), el("ul", { class: "cautions" }, cautions.map((caution) => el("li", {}, ...shown(caution)))));
}

const CONTEXTS = { row: "row of the training batch", document: "document", text: "text above" };

function chances(belief) {
  const byStep = new Map(belief.span.points.map((point) => [point.step, point]));
  return (step) => {
    const point = byStep.get(step);
    if (!point) return [];
    return [["", "probability per token", number(Math.exp(point.log_prob / Math.max(1, point.log_probs_T.length)), 3)], ["", "nats, whole span", number(point.log_prob)]];
  };
}

function estimates(belief) {
  const names = ["Between", "Span", "Controls", "Effect", "95 % interval", "p"];
  const row = (estimate) => el("tr", {}, el("th", { scope: "row" }, `${whole(estimate.step_before)} \u2192 ${whole(estimate.step_after)}`), el("td", {}, signed(estimate.span_change)), el("td", {}, signed(estimate.control_change)),
    el("td", {}, el("b", {}, signed(estimate.effect))), el("td", {}, `${signed(estimate.low)} to ${signed(estimate.high)}`), el("td", {}, number(estimate.p_holm ?? estimate.p_value, 2)));
  return [
    el("h3", {}, "What having seen it added"),
    el("p", { class: "soft" }, "Nats of the whole span between the checkpoints around the steps that saw it, less the change of the controls (difference in differences)."),
    el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, names.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, belief.estimates.map(row)))),
  ];
}

const signed = (value) => (value === null ? "\u2013" : `${value > 0 ? "+" : ""}${number(value, 3)}`);

// ---- token by token, expert by expert ------------------------------------------------------------------------------------

// A token that is white space alone is named by what it is.
const tokenName = (token) => (/\S/u.test(token) ? plain(token, 14) : token.replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5").replaceAll(" ", "\u2423").slice(0, 6) || "\u2423");

function tokensTable(belief) {
  const { tokens, points } = belief.span, steps = points.map((point) => whole(point.step));
  const map = heatMap({
    label: "Probability of each token at each checkpoint", x: "checkpoint", y: "token", rows: tokens.map(tokenName), columns: steps,
    values: tokens.map((_, t) => points.map((point) => point.log_probs_T[t])),
    level: (value) => Math.min(8, Math.max(0, Math.round(8 + value))),
    tell: (r, c) => [`\u201c${plain(tokens[r], 40)}\u201d at step ${steps[c]}`, [["", "probability", number(Math.exp(points[c].log_probs_T[r]), 3)], ["", "nats", number(points[c].log_probs_T[r])]]],
  });
  return el("details", { open: tokens.length <= 24 }, el("summary", {}, "Token by token"), map, ramp(["8 nats or more away", "certain"]));
}

function experts(belief) {
  const points = belief.span.points.filter((point) => point.experts.length);
  if (!points.length) return [];
  const layers = points[points.length - 1].experts.map((reading) => reading.layer), holder = el("div");
  const draw = (at) => {
    const readings = points.map((point) => point.experts[at]), nExperts = readings[0].share_E.length;
    holder.replaceChildren(heatMap({
      label: `Share of the span that each expert of layer ${layers[at]} reads`, x: "checkpoint", y: "expert", rows: readings[0].share_E.map((_, e) => String(e)), columns: points.map((point) => whole(point.step)),
      values: readings[0].share_E.map((_, e) => readings.map((reading) => reading.share_E[e])),
      level: (value) => Math.min(8, Math.round((value * nExperts) * 2)),
      tell: (r, c) => [`expert ${r} at step ${whole(points[c].step)}`, [["", "share of the span's choices", number(readings[c].share_E[r], 3)], ["", "agreement with the last checkpoint", number(readings[c].agreement, 3)]]],
    }), ramp(["none", "4 times an even share"]));
  };
  const choice = el("select", { "aria-label": "Layer", onchange: () => draw(Number(choice.value)) }, layers.map((layer, at) => el("option", { value: at }, `layer ${layer}`)));
  draw(0);
  return [el("details", {}, el("summary", {}, "Experts that read it"), el("p", {}, choice), holder)];
}
