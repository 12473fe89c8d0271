// The page: what the address asks for is fetched and drawn; what the user does changes the address.

import { getRun, postTrace, stream } from "/api.js";
import { hideTip } from "/charts.js";
import { drawDocuments, openDocument } from "/documents.js";
import { byId, el, plain, plural, say, shown, whole } from "/dom.js";
import { drawBelief, stopBelief } from "/probability.js";
import { drawCheckpoint, drawRun } from "/run.js";
import { drawLegend, drawList, drawText, markChosen } from "/spans.js";
import { change, readAddress, state } from "/state.js";

let run = null, answer = null, opened = null;
let working = null;   // AbortController of the text in the making, or of the trace
let opening = null;   // of the document

// ---- what is told --------------------------------------------------------------------------------------------------------

const status = (text) => {
  byId("status").textContent = text;
};

function problem(error) {
  const box = byId("problem");
  box.hidden = error === null;
  box.textContent = error === null ? "" : error.message;
}

function begin() {
  working?.abort();
  working = new AbortController();
  problem(null);
  return working;
}

function busy(isBusy) {
  byId("stop").hidden = !isBusy;
  byId("do-trace").disabled = byId("do-generate").disabled = byId("try").disabled = isBusy;
  if (!isBusy) allow();
}

function allow() {
  byId("do-trace").disabled = run.trace === null;
  byId("do-generate").disabled = byId("try").disabled = run.generate_problem !== null;
}

// ---- views ---------------------------------------------------------------------------------------------------------------

function showView() {
  const view = state.view === "run" ? "run" : "trace";
  byId("view-trace").hidden = view !== "trace";
  byId("view-run").hidden = view !== "run";
  for (const button of document.querySelectorAll("[data-view]")) {
    if (button.dataset.view === view) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  if (view === "run" && !byId("view-run").hasChildNodes()) drawRun(run, chosenStep(), { choose: chooseStep, use: writeWith });
}

function go(view) {
  hideTip();
  change({ view: view === "run" ? "run" : null }, true);
  showView();
}

function chosenStep() {
  const steps = run.checkpoints.map((checkpoint) => checkpoint.step);
  const asked = Number(state.step ?? NaN);
  return steps.includes(asked) ? asked : steps[steps.length - 1];
}

function chooseStep(step) {
  change({ step: String(step) });
  byId("step").value = String(step);
  drawCheckpoint(run, step, { choose: chooseStep, use: writeWith });
}

function writeWith(step) {
  chooseStep(step);
  go("trace");
  byId("text").focus();
}

// ---- text in, spans out --------------------------------------------------------------------------------------------------

function showResult() {
  byId("welcome").hidden = true;
  byId("result").hidden = false;
}

// The text of the address is traced, unless it is on the page already.
async function trace() {
  const { text, prompt } = state;
  const mine = begin();
  busy(true);
  status("Searching the training data\u2026");
  try {
    answer = await postTrace({ text, prompt: prompt ?? "" }, mine.signal);
    if (mine.signal.aborted) return;
    answer.prompt = prompt ?? "";
    showResult();
    byId("marked-title").textContent = state.from === null ? "Text" : `Written by step ${whole(Number(state.from))}`;
    drawText(answer, answer.prompt, pickSpan);
    drawList(answer, pickSpan);
    if (answer.spans.length) drawLegend();
    else byId("legend").hidden = true;
    const seconds = Object.values(answer.seconds).reduce((a, b) => a + b, 0);
    const redacted = Object.entries(answer.redacted).map(([kind, n]) => `${n} ${kind}`).join(", ");
    byId("summary").textContent = answer.spans.length
      ? `${plural(answer.spans.length, "span")} of ${plural(answer.tokens.length, "token")} ${answer.spans.length === 1 ? "stands" : "stand"} word for word in ${whole(answer.n_trained_tokens)} training tokens.${redacted ? ` Personal data in documents is replaced: ${redacted}.` : ""}`
      : `No span of ${plural(answer.tokens.length, "token")} stands in ${whole(answer.n_trained_tokens)} training tokens.`;
    if (answer.notes?.length) byId("summary").append(...answer.notes.flatMap((note) => [el("br"), ...shown(`Note: ${note}.`)]));
    status(`${plural(answer.spans.length, "span")}, ${plural(answer.documents.length, "document")}; ${Math.max(1, Math.round(seconds * 1000))} ms.${state.isWhole === false ? " The text is too long for the address: no link or reload brings it back." : ""}`);
    await showSpan(false);
  } catch (error) {
    if (error.name === "AbortError") return;
    status("");
    problem(error);
  } finally {
    if (working === mine) busy(false);
  }
}

function submit(text, prompt, from) {
  if (!text.trim()) {
    status("Write or paste a text first.");
    byId("text").focus();
    return;
  }
  if (isTooLong(text)) return;
  change({ view: null, text, prompt: prompt || null, from, span: null, tab: null, at: null, doc: null, page: null }, true);
  trace();
}

// Said here, because a body beyond the limit is refused before it is read.
function isTooLong(text) {
  const n = text.length > run.limits.text ? Array.from(text).length : 0, isOver = n > run.limits.text;
  if (isOver) problem(new Error(`The text has ${whole(n)} characters, limits.text=${whole(run.limits.text)} are taken; shorten it, or raise the limit.`));
  return isOver;
}

async function generate(prompt) {
  if (isTooLong(prompt)) return;
  const mine = begin(), step = Number(byId("step").value);
  const ask = { step, prompt, max_tokens: Number(byId("max-tokens").value), temperature: Number(byId("temperature").value), top_p: Number(byId("top-p").value), seed: Number(byId("seed").value) };
  busy(true);
  stopBelief();
  answer = null;
  showResult();
  byId("marked-title").textContent = `Written by step ${whole(step)}`;
  byId("summary").textContent = "";
  byId("legend").hidden = byId("spans-card").hidden = true;
  byId("documents").replaceChildren(el("p", { class: "soft" }, run.trace === null ? TRACE_MISSING : "The documents of the text come when it is written."));
  const out = el("span"), box = byId("marked");
  box.replaceChildren(el("span", { class: "prompt", title: "The prompt" }, shown(prompt)), out, el("span", { class: "caret" }, "\u258f"));
  let text = "";
  try {
    for await (const event of stream("/api/generate", ask, mine.signal)) {
      if (event.event === "waiting") status(`Waiting for ${plural(event.ahead, "other task")}\u2026`);
      if (event.event === "loading") status(`Loading step ${whole(event.step)}\u2026`);
      if (event.event === "piece") {
        status("Writing\u2026");
        text += event.text;
        out.append(...shown(event.text));
      }
      if (event.event === "done") text = event.text;
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      status("");
      problem(error);
      if (working === mine) busy(false);
      return;
    }
  }
  box.querySelector(".caret")?.remove();
  if (working !== mine) return;
  busy(false);
  if (!text.trim()) status("The model ended the text at once; another seed may say more.");
  else if (run.trace === null) status(`Written. ${TRACE_MISSING}`);
  else submit(text, prompt, String(step));
}

const TRACE_MISSING = "It cannot be traced: the training data is not indexed.";

// ---- one span ------------------------------------------------------------------------------------------------------------

function chosenSpan() {
  if (answer === null || state.span === null) return null;
  const number = Number(state.span);
  return answer.spans.some((span) => span.number === number) ? number : null;
}

function chooseSpan(number) {
  change({ span: number === null ? null : String(number), at: null, doc: null, page: null });
  showSpan(true);
  if (number !== null) {
    const span = answer.spans[number];
    say(`Span ${number + 1} of ${answer.spans.length}: ${plain(span.text, 200)}. ${plural(span.count, "occurrence")} in training.`);
  }
}

// By pointer: on a narrow screen the panel is below.
function pickSpan(number) {
  chooseSpan(number);
  if (matchMedia("(max-width: 62rem)").matches) byId("panel").scrollIntoView({ block: "start" });
}

function moveSpan(by) {
  if (!answer?.spans.length) return;
  const now = chosenSpan(), n = answer.spans.length;
  chooseSpan(now === null ? (by > 0 ? 0 : n - 1) : (now + by + n) % n);
}

async function showSpan(isScrolled) {
  markChosen(chosenSpan(), isScrolled);
  await showPanel();
}

async function showPanel() {
  const tab = state.tab === "probability" ? "probability" : "documents";
  for (const button of document.querySelectorAll("[data-tab]")) {
    const isChosen = button.dataset.tab === tab;
    button.setAttribute("aria-selected", String(isChosen));
    button.tabIndex = isChosen ? 0 : -1;
    byId(button.dataset.tab).hidden = !isChosen;
  }
  if (answer === null) return;
  if (tab === "probability") showBelief();
  else if (state.doc !== null) await showDocument();
  else {
    stopBelief();
    opened = null;
    drawDocuments(answer, chosenSpan(), { open: openAt, believe });
  }
}

const nameOf = (place) => [place.corpus, place.file, place.offset].join("-");

function openAt(place, number) {
  const span = answer.spans[number];
  change({ span: String(number), tab: null, doc: `${nameOf(place)}-${span.end - span.start}`, page: null }, true);
  showSpan(false).then(() => byId("close-document")?.focus());
}

async function showDocument() {
  const [corpus, file, offset, length] = state.doc.split("-").map(Number);
  opening?.abort();
  const mine = (opening = new AbortController());
  const close = () => {
    change({ doc: null, page: null }, true);
    showPanel();
  };
  try {
    opened = await openDocument({ corpus, file, offset, length: length || 0, start: state.page }, { page: turn, close }, mine.signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("documents").replaceChildren(el("button", { type: "button", class: "quiet", id: "close-document", onclick: close }, "\u2190 Documents"), el("p", { class: "problem" }, error.message));
  }
}

async function turn(start) {
  change({ page: String(start) });
  await showDocument();
  byId("documents").scrollIntoView({ block: "start" });
}

function believe(number, place) {
  change({ span: String(number), tab: "probability", at: nameOf(place) }, true);
  showSpan(false).then(() => byId("probability").focus({ preventScroll: true }));
}

// Of the occurrence in the address; else of the one that a step learned from first.
function showBelief() {
  const number = chosenSpan();
  if (number === null) {
    stopBelief();
    delete byId("probability").dataset.key;
    byId("probability").replaceChildren(el("h2", {}, "Probability"), el("p", { class: "soft" }, answer.spans.length ? "Choose a span of the text: click it, or press j." : "The text has no span that stands in the training data."));
    return;
  }
  const span = answer.spans[number];
  const words = Array.from(answer.text).slice(span.char_start, span.char_end).join("");
  const place = state.at === null || !PLACE.test(state.at) ? null : state.at.replaceAll("-", ":");
  drawBelief({ text: answer.text, span: words, place }, span, place === null ? "where it was learned first" : "in the chosen document");
}

const PLACE = /^\d{1,9}-\d{1,9}-\d{1,18}$/;

// ---- keys ----------------------------------------------------------------------------------------------------------------

const KEYS = {
  "/": () => {
    if (state.view === "run") go("trace");
    byId("text").focus();
    byId("text").select();
  },
  "?": () => byId("help").showModal(),
  j: () => moveSpan(1), k: () => moveSpan(-1), ArrowDown: () => moveSpan(1), ArrowUp: () => moveSpan(-1),
  d: () => pickTab("documents"), p: () => pickTab("probability"),
  "[": () => opened && opened.start > 0 && turn(Math.max(0, opened.start - (opened.end - opened.start))),
  "]": () => opened && opened.end < opened.n_tokens && turn(opened.end),
  1: () => go("trace"), 2: () => go("run"),
};

function pickTab(tab) {
  change({ tab: tab === "documents" ? null : tab });
  showPanel();
}

function escape() {
  hideTip();
  if (working && !byId("stop").hidden) working.abort();
  else if (document.activeElement?.matches("input, textarea, select")) document.activeElement.blur();
  else if (state.doc !== null) byId("close-document")?.click();
  else if (state.span !== null) chooseSpan(null);
}

function onKey(event) {
  if (event.defaultPrevented || byId("help").open) return;
  const writes = event.target.matches("input, textarea, select");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.id === "text") {
    event.preventDefault();
    byId("compose").requestSubmit();
    return;
  }
  if (event.key === "Escape") escape();
  if (writes || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter" || event.key === " ") {
    const mark = event.target.closest("#marked mark");
    if (!mark) return;
    event.preventDefault();
    const numbers = mark.dataset.spans.split(" ").map(Number), now = chosenSpan();
    if (!numbers.includes(now)) chooseSpan(numbers[0]);
    else enterPanel();
    return;
  }
  const isScrolling = event.key.startsWith("Arrow") && !event.target.closest("#marked");
  const act = isScrolling ? null : KEYS[event.key];
  if (!act || (state.view === "run" && "jkdp[]".includes(event.key))) return;
  event.preventDefault();
  act();
}

function enterPanel() {
  const panel = byId(state.tab === "probability" ? "probability" : "documents");
  (panel.querySelector("button, a, summary") ?? panel).focus();
  panel.scrollIntoView({ block: "nearest" });
}

// ---- beginning -----------------------------------------------------------------------------------------------------------

function fillFields() {
  byId("run-name").textContent = plain(run.name, 60);
  document.title = `${plain(run.name, 60)} \u00b7 olmo explore`;
  byId("step").replaceChildren(...[...run.checkpoints].reverse().map(({ step }) => el("option", { value: step }, `step ${whole(step)}`)));
  byId("max-tokens").max = run.limits.max_tokens;
  byId("index-facts").textContent = run.trace === null ? "" : `${plural(run.trace.n_tokens, "training token")} of ${run.trace.sources.map((name) => plain(name, 40)).join(", ")} are indexed.`;
  const missing = [run.trace_problem && `Texts cannot be traced: ${run.trace_problem}`, run.generate_problem].filter(Boolean);
  if (missing.length) problem(new Error(missing.join("\n")));
  allow();
}

// Bring the page to what the address says.
async function restore(isFirst) {
  const before = { text: state.text, prompt: state.prompt };
  readAddress();
  byId("step").value = String(chosenStep());
  showView();
  if (state.view === "run") drawCheckpoint(run, chosenStep(), { choose: chooseStep, use: writeWith });
  if (state.text === null) {
    byId("result").hidden = true;
    byId("welcome").hidden = false;
    answer = null;
  } else if (isFirst || answer === null || before.text !== state.text || before.prompt !== state.prompt) {
    byId("text").value = state.from === null ? state.text : (state.prompt ?? "");
    if (run.trace !== null) await trace();
  } else await showSpan(false);
}

function listen() {
  byId("compose").addEventListener("submit", (event) => {
    event.preventDefault();
    submit(byId("text").value, null, null);
  });
  byId("do-generate").addEventListener("click", () => generate(byId("text").value));
  byId("try").addEventListener("click", () => generate(byId("text").value));
  byId("stop").addEventListener("click", () => working?.abort());
  byId("step").addEventListener("change", () => chooseStep(Number(byId("step").value)));
  byId("help-button").addEventListener("click", () => byId("help").showModal());
  byId("copy-link").addEventListener("click", copyLink);
  for (const button of document.querySelectorAll("[data-view]")) button.addEventListener("click", () => go(button.dataset.view));
  const tabs = [...document.querySelectorAll("[data-tab]")];
  for (const button of tabs) {
    button.addEventListener("click", () => pickTab(button.dataset.tab));
    button.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      event.preventDefault();
      const other = tabs[(tabs.indexOf(button) + 1) % tabs.length];
      pickTab(other.dataset.tab);
      other.focus();
    });
  }
  document.addEventListener("keydown", onKey);
  window.addEventListener("popstate", () => restore(false));
}

async function copyLink() {
  const button = byId("copy-link");
  try {
    await navigator.clipboard.writeText(location.href);
    button.textContent = state.isWhole === false ? "Copied, without the text" : "Copied";
  } catch {
    button.textContent = "Copy it from the address bar";
  }
  setTimeout(() => {
    button.textContent = "Copy link";
  }, 2500);
}

async function main() {
  try {
    run = await getRun();
  } catch (error) {
    byId("loading").hidden = true;
    problem(error);
    return;
  }
  byId("loading").hidden = true;
  fillFields();
  listen();
  await restore(true);
}

main();
