// Elements and texts. Nothing here, or anywhere in the page, makes markup out of a string: texts become text nodes.

const SVG = "http://www.w3.org/2000/svg";

// el("button", { class: "quiet", onclick: f, "aria-pressed": true }, "text", node, ...)
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const byId = (id) => document.getElementById(id);

// ---- texts from documents ------------------------------------------------------------------------------------------------

// What a browser would not show, or would let rearrange what is around it: control characters, bidi controls, invisible letters,
// tags. Tab, newline and the joiners of scripts and emoji stay.
const HIDDEN = /[\u0000-\u0008\u000B-\u001F\u007F-\u009F\u00AD\u034F\u061C\u115F\u1160\u17B4\u17B5\u180B-\u180F\u200B\u200E\u200F\u2028-\u202E\u2060-\u206F\u3164\uD800-\uDFFF\uFEFF\uFFA0\uFFF0-\uFFFB\u{1BCA0}-\u{1BCA3}\u{1D173}-\u{1D17A}\u{E0000}-\u{E0FFF}]/gu;
const NAMES = { // abbreviations, which every font has; pictures of control characters few do
  ...Object.fromEntries("NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US".split(" ").map((name, point) => [point, name])),
  0x7f: "DEL",
  0x200b: "ZWSP", 0x200e: "LRM", 0x200f: "RLM", 0x061c: "ALM", 0x202a: "LRE", 0x202b: "RLE", 0x202c: "PDF", 0x202d: "LRO", 0x202e: "RLO",
  0x2066: "LRI", 0x2067: "RLI", 0x2068: "FSI", 0x2069: "PDI", 0xfeff: "BOM", 0x00ad: "SHY", 0x2028: "LS", 0x2029: "PS", 0x2060: "WJ",
};

const code = (point) => `U+${point.toString(16).toUpperCase().padStart(4, "0")}`;

const picture = (point) => NAMES[point] ?? code(point);

// A text as nodes: hidden characters as pictures of themselves.
export function shown(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(HIDDEN)) {
    if (match.index > from) nodes.push(document.createTextNode(text.slice(from, match.index)));
    const point = match[0].codePointAt(0);
    nodes.push(el("span", { class: "hidden-char", title: `${code(point)}${NAMES[point] ? ` ${NAMES[point]}` : ""}` }, picture(point)));
    from = match.index + match[0].length;
  }
  if (from < text.length) nodes.push(document.createTextNode(text.slice(from)));
  return nodes;
}

// One line of text, cut; for titles and labels, which hold no nodes.
export function plain(text, most = 120) {
  const line = text.replace(/\s+/gu, " ").replace(HIDDEN, (char) => `[${picture(char.codePointAt(0))}]`);
  const chars = Array.from(line);
  return chars.length > most ? `${chars.slice(0, most - 1).join("")}\u2026` : line;
}

// A link only if it leads where a browser goes without running anything.
export function link(address) {
  let url = null;
  try {
    url = new URL(address);
  } catch {
    url = null;
  }
  const isWeb = url !== null && (url.protocol === "https:" || url.protocol === "http:") && !url.username && !url.password;
  const label = plain(address, 90);
  return isWeb ? el("a", { href: url.href, target: "_blank", rel: "noopener noreferrer", title: plain(url.href, 300) }, label) : el("bdi", {}, label);
}

// ---- numbers -------------------------------------------------------------------------------------------------------------

export const whole = (value) => (value === null || value === undefined ? "\u2013" : Math.round(value).toLocaleString("en-US"));

export function number(value, digits = 4) {
  if (value === null || value === undefined) return "\u2013";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e7) return value.toExponential(2).replace("e+", "e");
  return value.toLocaleString("en-US", { maximumSignificantDigits: digits });
}

export const plural = (n, one, many = `${one}s`) => `${whole(n)} ${n === 1 ? one : many}`;

export function power(exponent) {
  const digits = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079";
  return `10${String(exponent).replace("-", "\u207b").replace(/\d/g, (digit) => digits[digit])}`;
}

export function say(text) {
  byId("spoken").textContent = text;
}
