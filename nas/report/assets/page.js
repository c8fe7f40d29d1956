"use strict";
// The page of a front: charts, limits, a table and the chosen model's card. What it shows is in `content`; `page.py` made it.
// Words from studies are only ever set as text.
const content = JSON.parse(document.getElementById("content").textContent);
const { models, studies } = content;
const NOTCHES = 200; // of a slider
const ONE_COLUMN = 1000; // pixels: the page is then one column, as page.css has it
const CHARTS = [["latency", "error"], ["latency", "eer"], ["error", "eer"]];
const AXES = { latency: "latency, ms", error: "keyword error, %", eer: "equal error rate, %" };
const LIMITS = [
  { name: "latency", label: "latency \u2264", unit: "ms", isMost: true, value: (m) => m.latency[0] },
  { name: "params", label: "params \u2264", unit: "M", isMost: true, value: (m) => m.params },
  { name: "memory", label: "memory \u2264", unit: "MB", isMost: true, value: (m) => m.memory },
  { name: "accuracy", label: "accuracy \u2265", unit: "%", isMost: false, value: (m) => 100 - m.error[0] },
  { name: "eer", label: "EER \u2264", unit: "%", isMost: true, value: (m) => m.eer[0] },
].filter((limit) => models.some((m) => limit.value(m) !== null));
const COLUMNS = [
  { title: "#", value: (m) => m.number },
  { title: "name", value: (m) => m.name, isText: true },
  ...(studies.length > 1 ? [{ title: "study", value: (m) => m.study, isText: true }] : []),
  { title: "accuracy, %", value: (m) => 100 - m.error[0], digits: 1, range: (m) => [100 - m.error[2], 100 - m.error[1]] },
  { title: "EER, %", value: (m) => m.eer[0], digits: 1, range: (m) => m.eer.slice(1) },
  { title: "latency, ms", value: (m) => m.latency[0], digits: 2, range: (m) => m.latency.slice(1) },
  { title: "params, M", value: (m) => m.params, digits: 2 },
  { title: "memory, MB", value: (m) => m.memory, digits: 0 },
];
const colour = d3.scaleOrdinal(studies.map((s) => s.name), ["#0b72d9", "#d9670b", "#1b9e4b", "#a23bc4", "#c4a20b", "#0ba8b8"]);
const GREY = "#8a93a0"; // of references
let chosen = models.find((m) => m.aliases.includes("knee")) ?? models[0];
let sorting = { column: 0, isDown: false };

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const figure = (value, digits) => (value === null ? "" : value.toFixed(digits));
const byId = (id) => document.getElementById(id);

// --- limits

const fits = (m) => LIMITS.every(({ limit = null, isMost, value }) => {
  if (limit === null) return true;
  const own = value(m);
  return own !== null && (isMost ? own <= limit : own >= limit);
});

/** From a slider's notch to a value, evenly on a logarithmic scale where the values allow it; the last notch is no limit. */
function scaleOf(limit) {
  const [low, high] = d3.extent(models.map(limit.value).filter((v) => v !== null));
  const scale = low > 0 && limit.isMost ? d3.scaleLog([low, high], [0, NOTCHES - 1]) : d3.scaleLinear([low, high], [1, NOTCHES]);
  return low === high ? d3.scaleLinear([low - 1, high + 1], [0, NOTCHES]) : scale;
}

function addLimit(limit) {
  const scale = scaleOf(limit);
  const open = limit.isMost ? NOTCHES : 0; // the notch of no limit
  const slider = element("input", { type: "range", id: `${limit.name}-slider`, min: "0", max: `${NOTCHES}`, "aria-label": limit.label });
  const box = element("input", { type: "number", id: `${limit.name}-limit`, step: "any", placeholder: "any" });
  const set = (value) => {
    limit.limit = value;
    if (value === null) box.value = "";
    slider.value = value === null ? open : Math.round(scale(value));
    refresh();
  };
  slider.addEventListener("input", () => {
    const notch = Number(slider.value);
    const round = limit.isMost ? Math.ceil : Math.floor; // towards what lets the model at this notch in
    const exact = notch === open ? null : scale.invert(notch);
    const unit = exact === null ? 1 : 10 ** (2 - Math.floor(Math.log10(Math.max(Math.abs(exact), 1e-9))));
    limit.limit = exact === null ? null : round(exact * unit - (limit.isMost ? 1e-6 : -1e-6)) / unit;
    box.value = limit.limit ?? "";
    refresh();
  });
  box.addEventListener("input", () => set(box.value === "" || Number.isNaN(box.valueAsNumber) ? null : box.valueAsNumber));
  limit.set = set;
  slider.value = open;
  byId("limits").append(element("div", {}, element("label", { for: box.id }, `${limit.label}, ${limit.unit}`, box), slider));
  const given = content.limits[limit.name];
  if (given !== undefined) { box.value = given; limit.limit = given; slider.value = Math.round(scale(given)); }
}

// --- charts

function domainOf(name) {
  const [low, high] = d3.extent(models.map((m) => Math.max(m[name][0], 0.05)));
  return [low / 1.25, high * 1.25]; // logarithmic: intervals that reach zero are cut at the edge
}

/** 1, 2, 5, 10, ... within a domain. */
function ticksOf([low, high]) {
  const powers = d3.range(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)));
  return powers.flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power)).filter((tick) => low <= tick && tick <= high);
}

function drawChart(place, [x, y], width) {
  const at = (name, i) => (m) => Math.max(m[name][i], 0.01);
  const look = { stroke: (m) => (m.isMember ? colour(m.study) : GREY) };
  const scale = (name) => ({ type: "log", domain: domainOf(name), clamp: true, ticks: ticksOf(domainOf(name)), tickFormat: "~g",
    label: AXES[name] });
  const chart = Plot.plot({
    width, height: Math.max(260, Math.min(330, width)), marginLeft: 42, x: scale(x), y: { ...scale(y), grid: true },
    marks: [
      Plot.ruleX(models, { x: at(x, 0), y1: at(y, 1), y2: at(y, 2), ...look, strokeOpacity: 0.55 }),
      Plot.ruleY(models, { y: at(y, 0), x1: at(x, 1), x2: at(x, 2), ...look, strokeOpacity: 0.55 }),
      Plot.dot(models, { x: at(x, 0), y: at(y, 0), r: 5, symbol: (m) => (m.isMember ? "circle" : "times"), ...look,
        fill: (m) => (m.isMember ? colour(m.study) : "none"), strokeWidth: 2 }),
      Plot.text(models, { x: at(x, 0), y: at(y, 0), text: (m) => `${m.number}`, dx: 9, dy: -8, fontSize: 11, fill: "currentColor" }),
      Plot.tip(models, Plot.pointer({ x: at(x, 0), y: at(y, 0), title: summary, fill: "Canvas", textPadding: 6 })),
    ],
    symbol: { type: "identity" }, color: { type: "identity" },
  });
  d3.select(chart).selectAll("g[aria-label=dot] > *").attr("data-model", (i) => models[i].id)
    .on("click", (_, i) => choose(models[i]));
  place.replaceChildren(chart);
}

function summary(m) {
  return `${m.number} ${m.name}${m.aliases.length ? ` (${m.aliases.join(", ")})` : ""}\n${figure(100 - m.error[0], 1)} % accuracy, `
    + `${figure(m.eer[0], 1)} % EER\n${figure(m.latency[0], 2)} ms, ${figure(m.params, 2)} M params`;
}

function drawCharts() {
  for (const [i, pair] of CHARTS.entries()) {
    const place = byId("charts").children[i] ?? byId("charts").appendChild(element("figure"));
    drawChart(place, pair, Math.max(240, place.clientWidth));
  }
  refresh();
}

// --- table

function drawTable() {
  const heads = COLUMNS.map((column, i) => {
    const button = element("button", { type: "button" }, column.title);
    button.addEventListener("click", () => {
      sorting = { column: i, isDown: sorting.column === i && !sorting.isDown };
      drawTable();
    });
    const head = element("th", { scope: "col", class: column.isText ? "text" : "" }, button);
    if (sorting.column === i) head.setAttribute("aria-sort", sorting.isDown ? "descending" : "ascending");
    return head;
  });
  document.querySelector("#models thead").replaceChildren(element("tr", {}, ...heads));
  const { value } = COLUMNS[sorting.column];
  const order = d3.sort(models, (a, b) => (sorting.isDown ? d3.descending : d3.ascending)(value(a), value(b)));
  document.querySelector("#models tbody").replaceChildren(...order.map(rowOf));
  refresh();
}

function rowOf(m) {
  const cells = COLUMNS.map((column) => {
    if (column.title === "name") return nameCell(m);
    const shown = column.isText ? column.value(m) : figure(column.value(m), column.digits ?? 0);
    const cell = element("td", { class: column.isText ? "text" : "" }, ...(column.title === "#" ? [mark(m), " "] : []), shown);
    if (column.range) cell.append(" ", element("small", {}, `[${column.range(m).map((v) => figure(v, column.digits)).join(", ")}]`));
    return cell;
  });
  const row = element("tr", { "data-model": m.id }, ...cells);
  row.addEventListener("click", () => choose(m));
  return row;
}

/** As in the charts: its study's dot, or a cross for a reference. */
function mark(m) {
  return element("span", { style: `color: ${m.isMember ? colour(m.study) : GREY}` }, m.isMember ? "\u25CF" : "\u00D7");
}

const aliasesOf = (m) => m.aliases.map((alias) => element("span", { class: "alias" }, ` ${alias}`));

function nameCell(m) {
  return element("td", { class: "text" }, element("button", { type: "button" }, m.name), ...aliasesOf(m));
}

// --- the chosen model

function choose(m) {
  chosen = m;
  drawCard();
  refresh();
  if (window.innerWidth <= ONE_COLUMN) byId("card").scrollIntoView({ block: "start" });
}

function drawCard() {
  const m = chosen;
  const facts = m.card.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]);
  const parts = [element("h2", {}, `${m.number} ${m.name}`, ...aliasesOf(m)), element("p", { id: "breaks" })];
  if (m.command) parts.push(element("pre", { id: "command" }, m.command), copyButton(m.command));
  else parts.push(element("p", {}, m.why_not));
  parts.push(element("dl", {}, ...facts));
  if (m.corpora.length) parts.push(corporaTable(m));
  byId("card").replaceChildren(...parts);
}

function corporaTable(m) {
  const line = (tag, texts) => element("tr", {}, ...texts.map((text, i) => element(tag, { class: i ? "" : "text" }, text)));
  return element("table", {}, line("th", ["corpus", "accuracy, %", "EER, %"]), ...m.corpora.map((texts) => line("td", texts)));
}

function copyButton(text) {
  const button = element("button", { type: "button", class: "copy", id: "copy" }, "Copy");
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text)) ? "Copied" : "Select it and press Ctrl-C";
    setTimeout(() => (button.textContent = "Copy"), 2500);
  });
  return button;
}

/** Whether the text reached the clipboard. A sandboxed frame, as MLflow's, has no clipboard of its own: there the old way works. */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.body.appendChild(element("textarea", {}, text));
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    return isCopied;
  }
}

// --- all of it

/** Marks what breaks a limit and what is chosen, everywhere. */
function refresh() {
  const isOut = new Set(models.filter((m) => !fits(m)).map((m) => m.id));
  for (const row of document.querySelectorAll("#models tbody tr")) {
    row.classList.toggle("out", isOut.has(row.dataset.model));
    row.classList.toggle("chosen", row.dataset.model === chosen.id);
  }
  for (const mark of ["dot", "rule", "text"]) {
    d3.selectAll(`#charts g[aria-label=${mark}] > *`).classed("out", (i) => isOut.has(models[i]?.id))
      .classed("chosen", (i) => mark === "dot" && models[i] === chosen);
  }
  if (byId("breaks")) byId("breaks").textContent = isOut.has(chosen.id) ? "It breaks your limits." : "";
  byId("reset").hidden = !LIMITS.some(({ limit = null }) => limit !== null);
  const members = models.filter((m) => m.isMember);
  byId("count").textContent = `${members.filter(fits).length} of ${members.length} members fit the limits. `
    + "Choose one in a chart or in the table. Dots are members, crosses are references, bars are intervals: of scores 95 %, of latency as said below. "
    + "Lower is better in all charts.";
}

function drawStudies() {
  byId("studies").replaceChildren(...studies.flatMap((study) => [
    element("h2", {}, study.name),
    element("p", {}, study.caption),
    element("ul", {}, ...study.notes.map((note) => element("li", {}, note))),
  ]));
  byId("warnings").replaceChildren(...content.warnings.map((warning) => element("li", {}, warning)));
}

LIMITS.forEach(addLimit);
byId("reset").addEventListener("click", () => LIMITS.forEach((limit) => limit.set(null)));
drawStudies();
if (models.length) {
  drawTable();
  drawCard();
  drawCharts();
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width) drawCharts();
    width = window.innerWidth;
  });
} else byId("count").textContent = "No candidate has finished yet.";
