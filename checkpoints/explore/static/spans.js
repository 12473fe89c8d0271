// The text with its spans marked by rarity, the list of spans, and moving among them.

import { byId, el, plain, plural, power, shown, whole } from "/dom.js";

// How often a span would stand in the training data if its tokens were drawn one by one: what makes a match of words a find.
const LEVELS = [
  { from: -6, name: "common words" },
  { from: -15, name: "unlikely" },
  { from: -30, name: "rare" },
  { from: -Infinity, name: "very rare" },
];

const chance = (span, nTokens) => (span.log_prob + Math.log(Math.max(1, nTokens))) / Math.LN10;
export const levelOf = (span, nTokens) => LEVELS.findIndex(({ from }) => chance(span, nTokens) > from) + 1;

export function chanceText(span, nTokens) {
  const exponent = Math.round(chance(span, nTokens));
  return exponent >= 0 ? "1 or more" : power(exponent);
}

// Pieces [start, end) of the text by the spans that cover them, the rarest first.
function segments(answer) {
  const length = Array.from(answer.text).length;
  const cuts = [...new Set([0, length, ...answer.spans.flatMap((span) => [span.char_start, span.char_end])])].sort((a, b) => a - b);
  return cuts.slice(0, -1).map((start, i) => {
    const covering = answer.spans.filter((span) => span.char_start <= start && span.char_end >= cuts[i + 1]);
    covering.sort((a, b) => a.log_prob - b.log_prob);
    return { start, end: cuts[i + 1], covering };
  });
}

export function drawText(answer, prompt, pick) {
  const chars = Array.from(answer.text), seen = new Set();
  const box = byId("marked");
  box.replaceChildren(...(prompt ? [el("span", { class: "prompt", title: "The prompt" }, shown(prompt))] : []));
  for (const { start, end, covering } of segments(answer)) {
    const text = chars.slice(start, end).join(""), nodes = shown(text);
    if (!covering.length) {
      box.append(...nodes);
      continue;
    }
    const [rarest] = covering, isFirst = !seen.has(rarest.number) && /\S/u.test(text);
    if (isFirst) seen.add(rarest.number);
    const names = covering.map((span) => span.number + 1).join(", ");
    box.append(el("mark", {
      class: `level${levelOf(rarest, answer.n_trained_tokens)}`,
      "data-spans": covering.map((span) => span.number).join(" "),
      role: "button", tabindex: isFirst ? "0" : "-1", "aria-pressed": "false",
      "aria-label": `${plain(rarest.text, 200)}. Span ${names}, ${plural(rarest.count, "occurrence")}, ${LEVELS[levelOf(rarest, answer.n_trained_tokens) - 1].name}`,
      title: `span ${names}: ${plural(rarest.count, "occurrence")} in training`,
      onclick: () => pick(nextOf(covering)),
    }, nodes));
  }
}

// Clicking again where several spans lie over each other takes the next one.
function nextOf(covering) {
  const numbers = covering.map((span) => span.number);
  const chosen = document.querySelector("#spans tr.chosen")?.dataset.span;
  const at = numbers.indexOf(Number(chosen ?? -1));
  return numbers[(at + 1) % numbers.length];
}

export function drawLegend() {
  const items = LEVELS.map(({ name, from }, i) => {
    const range = i === 0 ? `more than ${power(from)}` : i === LEVELS.length - 1 ? `${power(LEVELS[i - 1].from)} or less` : `down to ${power(from)}`;
    return el("li", {}, el("mark", { class: `level${i + 1}` }, name), el("small", {}, range));
  });
  byId("legend").replaceChildren(el("span", {}, "Times expected by chance:"), el("ul", {}, items));
  byId("legend").hidden = false;
}

export function drawList(answer, pick) {
  const head = ["", "Span", "Tokens", "In training", "Held out", "By chance"];
  const rows = answer.spans.map((span) => el("tr", { "data-span": span.number, onclick: () => pick(span.number) },
    el("td", {}, el("span", { class: `swatch level${levelOf(span, answer.n_trained_tokens)}` }, String(span.number + 1))),
    el("td", { class: "words" }, el("button", { type: "button", class: "as-text" }, ...shown(plain(span.text, 160)))),
    el("td", {}, whole(span.end - span.start)), el("td", {}, whole(span.count)), el("td", {}, whole(span.heldout_count)),
    el("td", {}, chanceText(span, answer.n_trained_tokens))));
  byId("spans").replaceChildren(el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, rows));
  byId("spans-card").hidden = !rows.length;
}

// Show which one is chosen; null: none.
export function markChosen(number, isScrolled) {
  for (const mark of document.querySelectorAll("#marked mark")) {
    const isChosen = number !== null && mark.dataset.spans.split(" ").includes(String(number));
    mark.classList.toggle("chosen", isChosen);
    mark.setAttribute("aria-pressed", String(isChosen));
  }
  for (const row of document.querySelectorAll("#spans tbody tr")) row.classList.toggle("chosen", Number(row.dataset.span) === number);
  if (isScrolled && number !== null) {
    const first = document.querySelector("#marked mark.chosen");
    first?.focus({ preventScroll: true });
    first?.scrollIntoView({ block: "nearest" });
  }
}
