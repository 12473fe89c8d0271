// Line charts and maps, drawn as SVG elements: values under the pointer or at the arrow keys' place, and the same as a table.

import { byId, el, number, plain, say, svg, whole } from "/dom.js";

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const MARGIN = { left: 52, right: 14, top: 10, bottom: 30 };

// ---- values under the pointer --------------------------------------------------------------------------------------------

export function showTip(title, rows, x, y) {
  const tip = byId("tip");
  tip.replaceChildren(el("strong", {}, title));
  for (const [style, name, value] of rows) {
    tip.append(el("div", {}, style ? el("i", { class: style }) : null, el("bdi", {}, name), el("b", {}, value)));
  }
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth - 6 ? x - 14 - box.width : x + 14;
  tip.style.left = `${clamp(left, 6, Math.max(6, innerWidth - box.width - 6))}px`;
  tip.style.top = `${clamp(y - box.height - 12, 6, Math.max(6, innerHeight - box.height - 6))}px`;
}

export function hideTip() {
  byId("tip").hidden = true;
}

document.addEventListener("scroll", hideTip, { passive: true, capture: true });

// `at(x, y)` is the place for a point, `move(place, dx, dy)` its neighbour, `tell(place)` shows it and returns what is spoken.
function explore(box, { at, move, tell, clear, pick }) {
  let place = null;
  const leave = () => {
    hideTip();
    clear();
  };
  const point = (event) => {
    place = at(event);
    if (place !== null) tell(place);
  };
  box.addEventListener("pointermove", point);
  box.addEventListener("pointerleave", leave);
  box.addEventListener("blur", leave);
  box.addEventListener("click", (event) => {
    place = at(event);
    if (place !== null && pick) pick(place);
  });
  box.addEventListener("keydown", (event) => {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Home: [-Infinity, 0], End: [Infinity, 0] };
    const way = ways[event.key];
    if (way) {
      event.preventDefault();
      event.stopPropagation();
      place = move(place, ...way);
      say(tell(place));
    } else if (event.key === "Enter" && place !== null && pick) {
      event.preventDefault();
      event.stopPropagation();
      pick(place);
    }
  });
}

const along = (place, n, by) => (place === null ? (by > 0 ? 0 : n - 1) : clamp(place + by, 0, n - 1));

// ---- scales --------------------------------------------------------------------------------------------------------------

function ticks(low, high, n) {
  if (!(high > low)) return [low];
  const raw = (high - low) / n;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((m) => m * size >= raw) * size;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(Math.abs(value) < step / 1e6 ? 0 : value);
  return found;
}

function stepTicks(low, high, isLog, n) {
  if (!isLog) return ticks(low, high, n).filter(Number.isInteger);
  const found = [low];
  for (let value = 1; value <= high; value *= 10) if (value > low) found.push(value);
  return [...new Set(found)];
}

// ---- line charts ---------------------------------------------------------------------------------------------------------

// spec: label, x, y (names of axes), lines: [{name, style, points: [[x, y]], dots}], bands: [{name, style, points: [[x, low, high]]}],
// marks: [{x, name, style}], chosen (x), pick(x), stops: [x] (where keys go; else the points of lines), table: bool
export function lineChart(spec) {
  let isLog = false;
  const plot = el("div", { class: "plot", tabindex: "0", role: "group", "aria-roledescription": "chart", "aria-label": `${spec.label}. Arrow keys read its values.` });
  const toggle = el("button", { type: "button", class: "quiet small", "aria-pressed": "false", onclick: () => {
    isLog = !isLog;
    toggle.setAttribute("aria-pressed", String(isLog));
    draw();
  } }, "log steps");
  const head = el("div", { class: "chart-head" }, el("span", { class: "unit" }, spec.y), toggle);
  const figure = el("figure", { class: "chart" }, head, plot, el("div", { class: "x-name" }, spec.x), legend(spec));
  if (spec.table) figure.append(el("details", {}, el("summary", {}, "As a table"), el("div", { class: "scroll" }, table(spec))));
  const view = { chosen: spec.chosen, geometry: null };
  const draw = () => {
    const width = plot.clientWidth;
    if (width > 0) view.geometry = drawLines(plot, spec, view, width, isLog);
  };
  let last = 0;
  const watch = new ResizeObserver(() => {
    if (plot.clientWidth === last) return;
    last = plot.clientWidth;
    draw();
  });
  watch.observe(plot);
  const stops = spec.stops ?? [...new Set(spec.lines.flatMap((line) => line.points.map(([x]) => x)))].sort((a, b) => a - b);
  const nearest = (event) => {
    if (!view.geometry || !stops.length) return null;
    const left = event.clientX - plot.getBoundingClientRect().left;
    return stops.reduce((best, x, i) => (Math.abs(view.geometry.px(x) - left) < Math.abs(view.geometry.px(stops[best]) - left) ? i : best), 0);
  };
  explore(plot, {
    at: nearest,
    move: (place, dx, dy) => along(place ?? (view.chosen === undefined ? null : Math.max(0, stops.indexOf(view.chosen))), stops.length, dx || -dy),
    tell: (place) => tellValues(plot, spec, view, stops[place]),
    clear: () => plot.querySelector(".cross")?.remove(),
    pick: spec.pick ? (place) => spec.pick(stops[place]) : null,
  });
  figure.choose = (x) => {
    view.chosen = x;
    draw();
  };
  return figure;
}

function legend(spec) {
  const items = [
    ...spec.lines.map((line) => [line.name, `key line ${line.style}`]),
    ...(spec.bands ?? []).map((band) => [band.name, `key band ${band.style}`]),
    ...[...new Map((spec.marks ?? []).map((mark) => [mark.kind, `key mark ${mark.style}`]))],
  ];
  return el("ul", { class: "keys-of-chart" }, items.map(([name, style]) => el("li", {}, el("i", { class: style }), el("bdi", {}, plain(name, 60)))));
}

function bounds(spec) {
  const xs = [], ys = [];
  for (const line of spec.lines) for (const [x, y] of line.points) if (y !== null) (xs.push(x), ys.push(y));
  for (const band of spec.bands ?? []) for (const [x, low, high] of band.points) (xs.push(x), ys.push(low, high));
  for (const stop of spec.stops ?? []) xs.push(stop);
  for (const mark of spec.marks ?? []) xs.push(mark.x);
  if (!xs.length) xs.push(0, 1);
  if (!ys.length) ys.push(0, 1);
  const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity), most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
  const [low, high] = [least(ys), most(ys)];
  const pad = (high - low || Math.abs(high) || 1) * 0.06;
  return { x: [least(xs), most(xs)], y: [low - pad, high + pad] };
}

function drawLines(plot, spec, view, width, isLog) {
  const height = plot.clientHeight;
  const { x: [x0, x1], y: [y0, y1] } = bounds(spec);
  const bend = isLog ? (x) => Math.log1p(x) : (x) => x;
  const px = (x) => MARGIN.left + ((bend(x) - bend(x0)) / (bend(x1) - bend(x0) || 1)) * (width - MARGIN.left - MARGIN.right);
  const py = (y) => MARGIN.top + ((y1 - y) / (y1 - y0)) * (height - MARGIN.top - MARGIN.bottom);
  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  for (const y of ticks(y0, y1, 5)) {
    picture.append(svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: py(y), y2: py(y) }));
    picture.append(svg("text", { class: "tick", x: MARGIN.left - 7, y: py(y) + 4, "text-anchor": "end" }, number(y, 3)));
  }
  let right = -Infinity;
  for (const x of stepTicks(x0, x1, isLog, Math.max(2, Math.floor(width / 90)))) {
    if (px(x) - right < 34) continue;
    right = px(x);
    picture.append(svg("text", { class: "tick", x: px(x), y: height - 10, "text-anchor": "middle" }, whole(x)));
  }
  for (const band of spec.bands ?? []) {
    const there = band.points.map(([x, , high]) => `${px(x)},${py(high)}`), back = band.points.map(([x, low]) => `${px(x)},${py(low)}`).reverse();
    picture.append(svg("polygon", { class: `band ${band.style}`, points: [...there, ...back].join(" ") }));
  }
  for (const mark of spec.marks ?? []) {
    picture.append(svg("line", { class: `mark ${mark.style}`, x1: px(mark.x), x2: px(mark.x), y1: MARGIN.top, y2: height - MARGIN.bottom }));
    picture.append(svg("path", { class: `mark-head ${mark.style}`, d: `M${px(mark.x) - 5} ${MARGIN.top - 8}h10l-5 8z` }));
  }
  for (const line of spec.lines) {
    const points = line.points.filter(([, y]) => y !== null).map(([x, y]) => [px(x), py(y)]);
    picture.append(svg("polyline", { class: `line ${line.style}`, points: points.map((point) => point.join(",")).join(" ") }));
    if (line.dots) for (const [cx, cy] of points) picture.append(svg("circle", { class: `dot ${line.style}`, cx, cy, r: 3 }));
  }
  for (const stop of spec.stops ?? []) {
    picture.append(svg("circle", { class: stop === view.chosen ? "stop chosen" : "stop", cx: px(stop), cy: height - MARGIN.bottom + 3, r: stop === view.chosen ? 6 : 3.5 }));
  }
  if (view.chosen !== undefined && view.chosen !== null) {
    picture.prepend(svg("line", { class: "chosen-line", x1: px(view.chosen), x2: px(view.chosen), y1: MARGIN.top, y2: height - MARGIN.bottom }));
  }
  plot.replaceChildren(picture);
  return { px, py, height, picture };
}

function valueAt(points, x) {
  return points.find(([at]) => at === x) ?? null;
}

function tellValues(plot, spec, view, x) {
  const { px, height, picture } = view.geometry;
  picture.querySelector(".cross")?.remove();
  picture.append(svg("line", { class: "cross", x1: px(x), x2: px(x), y1: MARGIN.top, y2: height - MARGIN.bottom }));
  const rows = [];
  for (const line of spec.lines) {
    const point = valueAt(line.points, x);
    if (point) rows.push([`line ${line.style}`, line.name, number(point[1])], ...(line.more?.(x) ?? []));
  }
  for (const band of spec.bands ?? []) {
    const point = valueAt(band.points, x);
    if (point) rows.push([`band ${band.style}`, band.name, `${number(point[1])} to ${number(point[2])}`]);
  }
  for (const mark of spec.marks ?? []) if (mark.x === x) rows.push([`mark ${mark.style}`, mark.name, ""]);
  const area = plot.getBoundingClientRect(), title = `${spec.x} ${whole(x)}`;
  showTip(title, rows, area.left + px(x), area.top + MARGIN.top + 40);
  return `${title}: ${rows.map(([, name, value]) => `${name} ${value}`).join("; ")}`;
}

function table(spec) {
  const columns = [...spec.lines.map((line) => [line.name, (x) => number(valueAt(line.points, x)?.[1])])];
  for (const band of spec.bands ?? []) {
    columns.push([band.name, (x) => {
      const point = valueAt(band.points, x);
      return point ? `${number(point[1])} to ${number(point[2])}` : "\u2013";
    }]);
  }
  const xs = [...new Set(spec.lines.flatMap((line) => line.points.map(([x]) => x)))].sort((a, b) => a - b);
  return el("table", {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, spec.x), columns.map(([name]) => el("th", { scope: "col" }, plain(name, 60))))),
    el("tbody", {}, xs.map((x) => el("tr", {}, el("th", { scope: "row" }, whole(x)), columns.map(([, value]) => el("td", {}, value(x)))))));
}

// ---- maps of values ------------------------------------------------------------------------------------------------------

// spec: label, rows, columns (names), values[row][column], level(value) -> 0..8, tell(row, column) -> [title, rows], pick(column), x, y
export function heatMap(spec) {
  const nRows = spec.rows.length, nColumns = spec.columns.length;
  const picture = svg("svg", { viewBox: `0 0 ${nColumns} ${nRows}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  spec.values.forEach((row, r) => row.forEach((value, c) => {
    picture.append(svg("rect", { x: c, y: r, width: 1, height: 1, class: value === null ? "none" : `q${spec.level(value)}` }));
  }));
  const mark = el("div", { class: "cell", hidden: true });
  const plot = el("div", { class: "heat-plot", tabindex: "0", role: "group", "aria-roledescription": "map", "aria-label": `${spec.label}. Arrow keys read its values.` }, picture, mark);
  plot.style.height = `${clamp(nRows * 22, 44, 420)}px`;
  const every = Math.ceil(nRows / 19);
  const names = el("div", { class: "heat-rows" }, spec.rows.map((name, r) => el("span", {}, r % every ? "" : name)));
  const ends = el("div", { class: "heat-ends" }, el("span", {}, spec.columns[0]), el("span", {}, spec.x), el("span", {}, nColumns > 1 ? spec.columns[nColumns - 1] : ""));
  const tell = ([c, r]) => {
    const area = plot.getBoundingClientRect();
    Object.assign(mark.style, { left: `${(100 * c) / nColumns}%`, top: `${(100 * r) / nRows}%`, width: `${100 / nColumns}%`, height: `${100 / nRows}%` });
    mark.hidden = false;
    const [title, rows] = spec.tell(r, c);
    showTip(title, rows, area.left + ((c + 0.5) / nColumns) * area.width, area.top + (r / nRows) * area.height);
    return `${title}: ${rows.map(([, name, value]) => `${name} ${value}`).join("; ")}`;
  };
  explore(plot, {
    at: (event) => {
      const area = plot.getBoundingClientRect();
      return [clamp(Math.floor(((event.clientX - area.left) / area.width) * nColumns), 0, nColumns - 1), clamp(Math.floor(((event.clientY - area.top) / area.height) * nRows), 0, nRows - 1)];
    },
    move: (place, dx, dy) => (place === null ? [0, 0] : [clamp(place[0] + dx, 0, nColumns - 1), clamp(place[1] + dy, 0, nRows - 1)]),
    tell,
    clear: () => {
      mark.hidden = true;
    },
    pick: spec.pick ? ([c]) => spec.pick(c) : null,
  });
  return el("figure", { class: "heat" }, el("div", { class: "unit" }, spec.y), el("div", { class: "heat-grid" }, names, plot, el("span"), ends));
}

export function ramp(labels) {
  return el("div", { class: "ramp" }, el("span", {}, labels[0]), Array.from({ length: 9 }, (_, i) => el("i", { class: `q${i}` })), el("span", {}, labels[1]));
}
