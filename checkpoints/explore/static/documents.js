// The documents of a span, and a document opened at a place, a window of tokens at a time.

import { getDocument } from "/api.js";
import { byId, el, link, plain, plural, shown, whole } from "/dom.js";

const MARKS = { learned: "learned", masked: "left out of the loss", skipped: "step skipped", future: "still to come" };
const MANY = 6;
const WINDOW = 500;
const AROUND = 200, LINES = 3; // of the text around a match in the list; the document itself is a click away

// ---- when ----------------------------------------------------------------------------------------------------------------

function sightChip(sight) {
  const after = sight.checkpoint_after === null ? "no checkpoint after it yet" : `first checkpoint after: ${whole(sight.checkpoint_after)}`;
  const title = `step ${whole(sight.step)}, row ${whole(sight.row)}, epoch ${sight.epoch + 1}, columns ${whole(sight.column_start)} to ${whole(sight.column_end - 1)}; ${after}`;
  return el("li", { class: `sight ${sight.mark}`, title }, el("b", {}, `step ${whole(sight.step)}`), ` ${MARKS[sight.mark] ?? sight.mark}`,
    el("small", {}, sight.checkpoint_after === null ? " no checkpoint yet" : ` \u2192 checkpoint ${whole(sight.checkpoint_after)}`));
}

export function sightList(sighted) {
  if (!sighted) return el("p", { class: "soft" }, "No run: when it was seen is not known.");
  if (!sighted.in_run) return el("p", { class: "soft" }, "The run does not train on this file.");
  if (sighted.is_heldout) return el("p", { class: "soft" }, "Held out: no step saw it.");
  if (!sighted.sights.length) return el("p", { class: "soft" }, "No step of this run, to its end, sees it.");
  const list = el("ul", { class: "sights" }, sighted.sights.slice(0, MANY).map(sightChip));
  const rest = sighted.sights.slice(MANY);
  if (rest.length) {
    const more = el("button", { type: "button", class: "quiet small", onclick: () => {
      more.parentElement.remove();
      list.append(...rest.map(sightChip));
    } }, `${whole(rest.length)} more`);
    list.append(el("li", {}, more));
  }
  return list;
}

// ---- documents of a span -------------------------------------------------------------------------------------------------

// acts: open(place, length), believe(span, place)
export function drawDocuments(answer, number, acts) {
  const span = number === null ? null : answer.spans[number];
  const listed = span === null ? answer.documents : span.documents.map((n) => answer.documents.find((d) => d.number === n)).filter(Boolean);
  const title = span === null ? `${plural(listed.length, "document")} of all spans` : `${plural(listed.length, "document")} of span ${span.number + 1}`;
  const box = byId("documents");
  box.replaceChildren(el("h2", {}, title));
  if (span !== null) {
    const more = span.count > listed.length ? `; ${plural(span.count, "occurrence")} in training in all` : "";
    box.append(el("p", { class: "soft" }, `\u201c${plain(span.text, 90).trim()}\u201d${more}.`));
  }
  if (!listed.length) {
    const why = span !== null && span.count === 0 ? "It stands in no training document." : "No document is shown: other spans have better ones; ask for more with trace.documents.max_documents.";
    box.append(el("p", { class: "soft" }, answer.spans.length ? why : "Nothing of this text stands in the training data."));
  }
  for (const document of listed) box.append(card(document, span, acts));
}

function card(document, span, acts) {
  const snippets = document.snippets.filter((snippet) => span === null || snippet.span === span.number);
  const heading = el("header", {}, el("span", { class: "source" }, ...shown(plain(document.source, 40))), el("bdi", { class: "id" }, ...shown(plain(document.id, 120))),
    document.copies.length ? el("span", { class: "copies", title: document.copies.slice(0, 20).map((id) => plain(id, 60)).join("\n") }, plural(document.copies.length + 1, "copy", "copies")) : null);
  return el("article", { class: "card document", "data-document": document.number }, heading, facts(document), snippets.map((snippet) => snippetBox(snippet, acts)));
}

function facts(document) {
  const parts = [];
  if (document.url) parts.push(link(document.url));
  parts.push(el("span", {}, ...shown(`${plain(document.src, 80)}, line ${whole(document.line)}`)), el("span", {}, plural(document.n_tokens, "token")));
  const entries = Object.entries(document.metadata ?? {}).filter(([, value]) => value !== null && JSON.stringify(value) !== "{}");
  const about = entries.length ? el("details", {}, el("summary", {}, "Metadata"), metadata(entries)) : null;
  return el("div", { class: "facts" }, el("p", {}, parts), about);
}

function metadata(entries) {
  return el("dl", {}, entries.map(([key, value]) => [el("dt", {}, ...shown(plain(key, 60))), el("dd", {}, ...shown(typeof value === "string" ? value : JSON.stringify(value)))]));
}

function snippetBox(snippet, acts) {
  const place = snippet.sighted?.place ?? null, before = tail(snippet.before), after = head(snippet.after);
  const text = el("blockquote", { class: "text", dir: "auto" }, before !== snippet.before || snippet.is_cut_before ? "\u2026" : null, el("span", { class: "around" }, shown(before)),
    el("mark", { class: "match" }, shown(snippet.match)), el("span", { class: "around" }, shown(after)), after !== snippet.after || snippet.is_cut_after ? "\u2026" : null);
  const buttons = place === null ? null : el("div", { class: "actions" },
    el("button", { type: "button", class: "small", onclick: () => acts.open(place, snippet.span) }, "Open the document here"),
    el("button", { type: "button", class: "small", onclick: () => acts.believe(snippet.span, place) }, "Probability of this occurrence"));
  return el("div", { class: "snippet" }, text, sightList(snippet.sighted), copies(snippet.copies_sighted ?? []), buttons);
}

function copies(all) {
  const sights = all.filter((sighted) => sighted.in_run && !sighted.is_heldout).flatMap((sighted) => sighted.sights).sort((a, b) => a.step - b.step);
  if (!sights.length) return null;
  return el("details", {}, el("summary", {}, `Its copies were seen ${plural(sights.length, "time")} more`), sightList({ in_run: true, is_heldout: false, sights }));
}

const cut = (text, most, take) => {
  const chars = Array.from(text);
  return chars.length > most ? take(chars) : text;
};
const tail = (text) => lines(cut(text, AROUND, (chars) => chars.slice(-AROUND).join("")), (all) => all.slice(-LINES));
const head = (text) => lines(cut(text, AROUND, (chars) => chars.slice(0, AROUND).join("")), (all) => all.slice(0, LINES));
const lines = (text, take) => take(text.split("\n")).join("\n");

// ---- a document ----------------------------------------------------------------------------------------------------------

// query: {corpus, file, offset, length, start?}; acts: page(start), close()
export async function openDocument(query, acts, signal) {
  const box = byId("documents");
  box.replaceChildren(el("p", { class: "soft", role: "status" }, "Reading the document\u2026"));
  const { start, ...rest } = query;
  const found = await getDocument({ ...rest, n: WINDOW, ...(start === null ? {} : { start }) }, signal);
  drawWindow(box, found, acts);
  return found;
}

function drawWindow(box, found, acts) {
  const hasBefore = found.start > 0, hasAfter = found.end < found.n_tokens;
  const page = (name, start, isOn, hint) => el("button", { type: "button", class: "small", disabled: !isOn, title: hint, onclick: () => acts.page(Math.max(0, start)) }, name);
  const last = Math.max(0, found.n_tokens - WINDOW);
  const pages = () => el("div", { class: "actions pages" }, page("\u21e4 Start", 0, hasBefore, "first tokens"), page("\u2190 Before", found.start - WINDOW, hasBefore, "key ["),
    el("span", { class: "soft" }, `tokens ${whole(found.start + 1)} to ${whole(found.end)} of ${whole(found.n_tokens)}`),
    page("After \u2192", Math.min(last, found.end), hasAfter, "key ]"), page("End \u21e5", last, hasAfter, "last tokens"));
  const text = found.pieces.map((piece) => (piece.is_match ? el("mark", { class: "match" }, shown(piece.text)) : el("span", {}, shown(piece.text))));
  box.replaceChildren(
    el("button", { type: "button", class: "quiet", id: "close-document", onclick: acts.close }, "\u2190 Documents"),
    el("article", { class: "card document open" }, el("header", {}, el("span", { class: "source" }, ...shown(plain(found.source, 40))), el("bdi", { class: "id" }, ...shown(plain(found.id, 120)))),
      facts({ ...found, url: found.url }), pages(),
      el("div", { class: "text window", dir: "auto", id: "window" }, hasBefore ? "\u2026 " : null, text, hasAfter ? " \u2026" : el("span", { class: "end-mark", title: "end of the document" }, "\u25a0")),
      pages(), el("h3", {}, "When these tokens were seen"), sightList(found.sighted)));
  const view = byId("window"), match = view.querySelector("mark");
  if (match) view.scrollTop = match.getBoundingClientRect().top - view.getBoundingClientRect().top - view.clientHeight / 3;
}
