// Values under the pointer or at the arrow keys' place, choices of map and checkpoint, and the download. Without it the page is whole.
"use strict";
(() => {
  const source = document.getElementById("data").textContent;
  const data = JSON.parse(source);
  const tip = document.getElementById("tip");
  const spoken = document.getElementById("spoken");
  const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

  function format(value) {
    if (value === null || value === undefined) return "\u2013";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (Number.isInteger(value) && size < 1e15) return value.toLocaleString("en-US");
    if (size < 1e-3 || size >= 1e6) return value.toExponential(2).replace("e+", "e");
    return value.toLocaleString("en-US", { maximumSignificantDigits: 4 });
  }

  // ---- the tooltip: rows of [style, name, value], never HTML ----------------------------------------------------------

  function show(title, rows, x, y, isSpoken) {
    tip.replaceChildren();
    const head = document.createElement("strong");
    head.textContent = title;
    tip.append(head);
    for (const [style, name, value] of rows) {
      const row = document.createElement("div");
      if (style) {
        row.style.cssText = style;
        row.append(document.createElement("i"));
      }
      const label = document.createElement("bdi");
      label.textContent = name;
      const number = document.createElement("b");
      number.textContent = value;
      row.append(label, number);
      tip.append(row);
    }
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = x + 14 + box.width > innerWidth - 6 ? x - 14 - box.width : x + 14;
    tip.style.left = `${clamp(left, 6, Math.max(6, innerWidth - box.width - 6))}px`;
    tip.style.top = `${clamp(y - box.height - 12, 6, Math.max(6, innerHeight - box.height - 6))}px`;
    if (isSpoken) spoken.textContent = `${title}: ${rows.map(([, name, value]) => `${name} ${value}`).join("; ")}`;
  }

  function hide() {
    tip.hidden = true;
  }

  // `at(x, y)` gives the place for a point of the box, both 0..1; `move(place, dx, dy)` the neighbour (dx = +-Infinity: the ends);
  // `tell(place, isSpoken)` shows it; `clear()` takes its mark away.
  function explore(box, plot, at, move, tell, clear) {
    let place = null;
    const point = (event) => {
      const area = plot.getBoundingClientRect();
      place = at((event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height, event);
      if (place !== null) tell(place, false);
    };
    const leave = () => {
      hide();
      clear();
    };
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", point);
    plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && leave());
    box.addEventListener("blur", leave);
    box.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Home: [-Infinity, 0], End: [Infinity, 0] }[event.key];
      if (event.key === "Escape") leave();
      if (!way) return;
      event.preventDefault();
      place = move(place, ...way);
      tell(place, true);
    });
  }

  // The next of `n` places; from nowhere, the end that the key leads away from.
  function along(place, n, by) {
    if (place === null) return by === Infinity || by === -1 ? n - 1 : 0;
    return clamp(place + by, 0, n - 1);
  }

  document.addEventListener("scroll", hide, { passive: true });
  document.addEventListener("pointerdown", (event) => {
    if (!event.target.closest(".plot, .tokens")) hide();
  });

  // ---- line charts -----------------------------------------------------------------------------------------------------

  for (const box of document.querySelectorAll(".chart")) {
    const chart = JSON.parse(box.dataset.chart);
    const plot = box.querySelector(".plot");
    const styles = [...box.querySelectorAll("svg > g")].map((group) => group.getAttribute("style"));
    const stops = [...new Map(chart.lines.flatMap((line) => line.left.map((left, i) => [left, line.x[i]])))].sort((a, b) => a[0] - b[0]);
    const cross = document.createElement("div");
    cross.className = "cross";
    cross.hidden = true;
    plot.append(cross);
    const nearest = (places, left) => places.reduce((best, place, i) => (Math.abs(place - left) < Math.abs(places[best] - left) ? i : best), 0);
    const tell = (stop, isSpoken) => {
      const [left, x] = stops[stop];
      const rows = [];
      let top = 1000;
      chart.lines.forEach((line, i) => {
        const k = nearest(line.left, left);
        if (Math.abs(line.left[k] - left) > 60) return;
        const name = chart.lines.length > 1 ? line.name : chart.unit;
        rows.push([styles[i], line.x[k] === x ? name : `${name} (${format(line.x[k])})`, format(line.y[k])]);
        top = Math.min(top, line.top[k]);
      });
      cross.hidden = false;
      cross.style.left = `${left / 10}%`;
      const area = plot.getBoundingClientRect();
      show(`${chart.x} ${format(x)}`, rows, area.left + (left / 1000) * area.width, area.top + (top / 1000) * area.height, isSpoken);
    };
    const lefts = stops.map(([left]) => left);
    explore(
      box, plot,
      (x) => nearest(lefts, 1000 * x),
      (stop, dx, dy) => along(stop, stops.length, dx || -dy),
      tell,
      () => { cross.hidden = true; },
    );
  }

  // ---- what is picked --------------------------------------------------------------------------------------------------

  function resolve(path, picks) {
    let value = data, pick = 0;
    const names = path.split(".");
    for (let i = 0; i < names.length; i++) {
      if (names[i] === "@") return Object.values(value).map((row) => names.slice(i + 1).reduce((inner, name) => inner[name], row));
      value = value?.[names[i] === "*" ? picks[pick++] : names[i]];
    }
    return value;
  }

  function pickable(box, redraw) {
    const holder = box.closest(".pickable");
    const inputs = [...holder.querySelectorAll(".pickers select, .pickers input")];
    const read = () => inputs.map((input) => Number(input.value));
    for (const input of inputs) {
      input.closest(".pickers").hidden = false;
      input.addEventListener("input", () => { hide(); redraw(read()); });
    }
    return read;
  }

  // ---- heat maps -------------------------------------------------------------------------------------------------------

  for (const box of document.querySelectorAll(".heat")) {
    const { path, scale, unit, largest, diagonal } = box.dataset;
    const [rowName, columnName, phrase] = box.dataset.names.split("\n");
    const rowNames = box.dataset.rows.split("\n");
    const plot = box.querySelector(".plot");
    const cells = [...box.querySelectorAll("rect")];
    const nRows = rowNames.length, nColumns = cells.length / nRows;
    const colour = (value) => scale === "share"
      ? `q${Number(largest) > 0 ? clamp(Math.floor((value / Number(largest)) * 8 + 0.5), 0, 8) : 0}`
      : `d${value <= 0 ? 0 : clamp(Math.floor(2 * Math.log2(value) + 4.5), 0, 8)}`;
    let values = null;
    const redraw = (picks) => {
      values = resolve(path, picks).map((row) => row.map((value) => value * Number(unit)));
      cells.forEach((cell, i) => {
        const y = Math.floor(i / nColumns), x = i % nColumns;
        cell.setAttribute("class", diagonal === "skip" && x === y ? "own" : colour(values[y][x]));
      });
    };
    const read = pickable(box, redraw);
    redraw(read());
    const mark = document.createElement("div");
    mark.className = "cell";
    mark.hidden = true;
    plot.append(mark);
    const tell = ([x, y], isSpoken) => {
      const area = plot.getBoundingClientRect();
      Object.assign(mark.style, {
        left: `${(100 * x) / nColumns}%`, top: `${(100 * y) / nRows}%`, width: `${100 / nColumns}%`, height: `${100 / nRows}%`,
      });
      mark.hidden = false;
      const rows = diagonal === "skip" && x === y ? [["", "the expert itself", ""]] : [["", phrase, format(values[y][x])]];
      show(`${rowName} ${rowNames[y]}, ${columnName} ${x}`, rows, area.left + ((x + 0.5) / nColumns) * area.width, area.top + (y / nRows) * area.height, isSpoken);
    };
    explore(
      box, plot,
      (x, y) => [clamp(Math.floor(x * nColumns), 0, nColumns - 1), clamp(Math.floor(y * nRows), 0, nRows - 1)],
      (cell, dx, dy) => (cell === null ? [0, 0] : [clamp(cell[0] + dx, 0, nColumns - 1), clamp(cell[1] + dy, 0, nRows - 1)]),
      tell,
      () => { mark.hidden = true; },
    );
  }

  // ---- texts -----------------------------------------------------------------------------------------------------------

  const probability = (log) => (log === null ? null : Math.exp(log));
  for (const box of document.querySelectorAll(".tokens")) {
    const spans = [...box.querySelectorAll("span")];
    const says = box.closest(".pickable").querySelector("output");
    let text = null, steps = data.series.checkpoints.map((checkpoint) => checkpoint.step ?? checkpoint.where);
    const redraw = (picks) => {
      text = resolve(box.dataset.path, picks);
      spans.forEach((span, i) => {
        const p = probability(text.log_probs[i]);
        span.className = `t${p >= 0.5 ? 0 : p >= 0.1 ? 1 : p >= 0.01 ? 2 : p >= 0.001 ? 3 : 4}`;
      });
      says.textContent = `step ${format(steps[picks[0]])}: ${format(text.loss)} nats per token`;
    };
    const read = pickable(box, redraw);
    redraw(read());
    const tell = (i, isSpoken) => {
      for (const span of spans) span.removeAttribute("data-here");
      spans[i].setAttribute("data-here", "");
      const area = spans[i].getBoundingClientRect();
      const log = text.log_probs[i];
      const rows = [["", "probability", format(probability(log))], ["", "nats", format(log === null ? null : -log)], ["", "rank", format(text.ranks[i])]];
      show(`${spans[i].textContent}`, rows, area.left + area.width / 2, area.top, isSpoken);
    };
    explore(
      box, box,
      (x, y, event) => { const i = spans.indexOf(event.target.closest("span")); return i < 0 ? null : i; },
      (i, dx, dy) => along(i, spans.length, dx || dy),
      tell,
      () => { for (const span of spans) span.removeAttribute("data-here"); },
    );
  }

  // ---- the download ----------------------------------------------------------------------------------------------------

  const button = document.getElementById("download");
  button.hidden = false;
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([source], { type: "application/json" }));
    link.download = "curves.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
})();
