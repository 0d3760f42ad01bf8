"use strict";

// The page has a legend of its own for all charts.
const own = (key, value) => (key === "legend" ? null : value);
const specs = JSON.parse(document.getElementById("data").textContent, own);
const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));

/* The table: click on a heading to sort, again for the other direction; what is missing stays last. */
function sortBy(heading) {
  const row = heading.parentElement;
  const index = Array.from(row.children).indexOf(heading);
  const other = { ascending: "descending", descending: "ascending" };
  const direction = other[heading.getAttribute("aria-sort")] || heading.dataset.first;
  const sign = direction === "ascending" ? 1 : -1;
  const key = (line) => {
    const cell = line.children[index];
    if (index === 0) return cell.querySelector(".name").textContent.toLowerCase();
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  };
  const body = document.querySelector("#results tbody");
  const lines = Array.from(body.rows, (line) => [key(line), line]);
  lines.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return a === b ? 0 : a < b ? -sign : sign;
  });
  body.append(...lines.map(([, line]) => line));
  for (const th of row.children) th.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", direction);
}
for (const heading of all("#results thead th[aria-sort]")) {
  heading.querySelector("button").addEventListener("click", () => sortBy(heading));
}

/* All charts share what is shown and what is pointed at. */
const charts = all(".vega");
const entries = all(".legend li button");
const isOn = (entry) => entry.getAttribute("aria-pressed") === "true";

function tell(name, value) {
  for (const chart of charts) chart.view.signal(name, value).runAsync();
}
function show(wanted) {
  for (const entry of entries) entry.setAttribute("aria-pressed", String(wanted(entry)));
  tell("shown", entries.filter(isOn).map((entry) => entry.dataset.method));
}
for (const one of entries) {
  one.addEventListener("click", () => show((entry) => isOn(entry) !== (entry === one)));
}
for (const choice of all("[data-show]")) {
  const wanted = { all: () => true, none: () => false, some: (entry) => "named" in entry.dataset };
  choice.addEventListener("click", () => show(wanted[choice.dataset.show]));
}

let lit = "";
function light(name) {
  if (name === lit) return;
  lit = name;
  for (const part of all("[data-method]")) part.classList.toggle("lit", part.dataset.method === name);
  tell("lit", name);
}
const lightAt = (target) => light(target.closest?.("[data-method]")?.dataset.method ?? "");
document.addEventListener("pointerover", ({ target }) => target.closest?.(".vega") || lightAt(target));
document.addEventListener("focusin", ({ target }) => target.matches(":focus-visible") && lightAt(target));

/* The legend reads the curves of a chart off, at the place of the pointer. */
function readOff(chart, at) {
  const { title, usermeta, datasets } = specs[chart.dataset.chart];
  const { x: places } = datasets.curves[0];
  const nearest = at === null ? -1 : places.reduce((best, x, i) => (Math.abs(x - at) < Math.abs(places[best] - at) ? i : best), 0);
  const curves = new Map(datasets.curves.map((row) => [row.method, row.y[nearest]]));
  for (const entry of entries) {
    const y = curves.get(entry.dataset.method);
    const text = usermeta.share ? (100 * y).toFixed(1) : y?.toFixed(3);
    entry.querySelector(".value").textContent = y === undefined ? "" : text;
  }
  const place = nearest < 0 ? null : places[nearest];
  document.querySelector(".legend output").textContent = place === null ? "" : `${title.text}, at ${place.toFixed(2)}`;
  chart.view.signal("at", place).runAsync();
}

/* Expressions are interpreted, never run as code; colours are the page's own. */
const [text, muted, line, faint] = ["--text", "--muted", "--line", "--faint"].map((name) => `var(${name})`);
const config = {
  font: getComputedStyle(document.body).fontFamily,
  background: "transparent",
  view: { stroke: null },
  axis: {
    gridColor: line, domain: false, tickColor: faint, labelColor: muted, titleColor: muted,
    titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 12, titlePadding: 9, labelLimit: 260,
  },
  text: { fill: text },
};
/* On a phone a name takes two lines of at most 26 letters, and its row is as high. */
const phone = matchMedia("(max-width: 40rem)").matches;
const broken = "replace(datum.label, regexp('(?=.{27})(.{1,26}) ', 'g'), '$1|')";
const twoLines = {
  labelExpr: `split(${broken}, '|')`, labelFontSize: 10, labelLineHeight: 11,
  labelBaseline: { condition: { test: "length(datum.label) > 26", value: "bottom" }, value: "middle" },
};
function narrowed(spec) {
  const named = spec.layer.filter(({ encoding }) => encoding?.y?.field === "label");
  for (const { encoding } of named) encoding.y.axis = { ...encoding.y.axis, ...twoLines };
  return named.length ? { ...spec, height: 1.4 * spec.height } : spec;
}

async function draw(chart) {
  const { title, ...whole } = specs[chart.dataset.chart];
  const spec = phone ? narrowed(whole) : whole;
  const { view } = await vegaEmbed(
    chart,
    { ...spec, width: "container", autosize: { type: "fit-x", contains: "padding" } },
    { mode: "vega-lite", ast: true, actions: false, renderer: "svg", config },
  );
  chart.view = view;
  view.addEventListener("pointermove", (event, item) => light(item?.datum?.method ?? ""));
  chart.addEventListener("pointerleave", () => light(""));
  if (!spec.datasets) return;
  view.addEventListener("pointermove", ({ clientX }) => {
    const { left } = chart.querySelector("svg").getBoundingClientRect();
    readOff(chart, view.scale("x").invert(clientX - left - view.origin()[0]));
  });
  const home = spec.params.find(({ name }) => name === "at").value;
  chart.addEventListener("pointerleave", () => readOff(chart, home));
  if (home !== null) readOff(chart, home);
}
Promise.all(charts.map(draw)).then(() => (document.body.dataset.drawn = "yes"));
