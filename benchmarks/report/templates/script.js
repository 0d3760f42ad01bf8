"use strict";

const specs = JSON.parse(document.getElementById("data").textContent);
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

/* The charts share what is shown and what is pointed at. */
const views = new Map();
const entries = all(".legend li button");
const hidden = new Set();
let lit = "";

function tell(name, value) {
  for (const view of views.values()) view.signal(name, value).runAsync();
}

function show(names, on) {
  for (const name of names) hidden[on ? "delete" : "add"](name);
  for (const entry of entries) entry.setAttribute("aria-pressed", String(!hidden.has(entry.dataset.method)));
  for (const view of views.values()) {
    view.signal("shown", view.methods.filter((name) => !hidden.has(name))).runAsync();
  }
}
for (const entry of entries) {
  entry.addEventListener("click", () => show([entry.dataset.method], hidden.has(entry.dataset.method)));
}
for (const choice of all("[data-show]")) {
  choice.addEventListener("click", () => {
    const which = choice.dataset.show;
    const wanted = (entry) => which === "all" || (which === "some" && "named" in entry.dataset);
    for (const on of [true, false]) {
      show(entries.filter((entry) => wanted(entry) === on).map((entry) => entry.dataset.method), on);
    }
  });
}

function light(name) {
  if (name === lit) return;
  lit = name;
  for (const part of all("[data-method]")) part.classList.toggle("lit", part.dataset.method === name);
  tell("lit", name);
}
const methodAt = (target) => target.closest?.("[data-method]")?.dataset.method ?? "";
document.addEventListener("pointerover", (event) => {
  if (!event.target.closest?.(".vega")) light(methodAt(event.target));
});
document.addEventListener("focusin", (event) => {
  if (event.target.matches(":focus-visible")) light(methodAt(event.target));
});

/* A legend reads all curves beside it off at the place of the pointer. */
function readOff(card, at) {
  const output = card.querySelector("output");
  const home = output.dataset.at === undefined ? null : Number(output.dataset.at);
  const place = at ?? home;
  const share = (value) => value.toFixed(2);
  output.textContent = place === null ? output.dataset.home : `at ${share(place)}`;
  for (const chart of all(".vega", card)) {
    const view = views.get(chart.dataset.chart);
    view.signal("at", place).runAsync();
    for (const value of all(`.value[data-chart="${CSS.escape(chart.dataset.chart)}"]`, card)) {
      value.dataset.home ??= value.textContent;
      const curve = view.curves.get(value.closest("button").dataset.method);
      if (at === null || curve === undefined) value.textContent = value.dataset.home;
      else value.textContent = view.share ? (100 * curve.get(place)).toFixed(1) : curve.get(place).toFixed(3);
    }
  }
}

function follow(chart, view) {
  const card = chart.closest(".curves");
  const found = [view.spec, ...view.spec.layer].map((one) => one.data?.values ?? view.spec.datasets?.[one.data?.name]);
  const rows = found.find((values) => Array.isArray(values?.[0]?.x));
  if (!rows || !card.querySelector("output")) return;
  view.share = view.spec.layer.some((layer) => layer.encoding?.y?.axis?.format === ".0%");
  view.curves = new Map(rows.map((row) => [row.method, new Map(row.x.map((x, i) => [x, row.y[i]]))]));
  const places = rows[0].x;
  view.addEventListener("pointermove", (event) => {
    const box = chart.querySelector("svg").getBoundingClientRect();
    const x = view.scale("x").invert(event.clientX - box.left - view.origin()[0]);
    readOff(card, places.reduce((best, one) => (Math.abs(one - x) < Math.abs(best - x) ? one : best)));
  });
  chart.addEventListener("pointerleave", () => readOff(card, null));
}

/* Charts are drawn with the page's colours, and their expressions interpreted, never run as code. */
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function settings() {
  const [text, muted, line, faint] = ["--text", "--muted", "--line", "--faint"].map(colour);
  return {
    font: getComputedStyle(document.body).fontFamily,
    background: "transparent",
    view: { stroke: null },
    axis: {
      gridColor: line, domain: false, tickColor: faint, labelColor: muted, titleColor: muted,
      titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 12, titlePadding: 9,
      labelLimit: innerWidth < 640 ? 130 : 260,
    },
    text: { fill: text },
  };
}

async function draw(chart) {
  const { title, ...spec } = structuredClone(specs[chart.dataset.chart]);
  // The page has legends of its own, which switch the lines.
  for (const { encoding = {} } of spec.layer) {
    for (const channel of [encoding.color, encoding.shape]) if (channel?.legend) channel.legend = null;
  }
  Object.assign(spec, { width: "container", autosize: { type: "fit-x", contains: "padding" } });
  const { view } = await vegaEmbed(chart, spec, {
    mode: "vega-lite", ast: true, actions: false, renderer: "svg", config: settings(),
    tooltip: { theme: dark.matches ? "dark" : "light" },
  });
  view.spec = spec;
  view.methods = spec.params.find((one) => one.name === "shown").value;
  chart.view = view;
  views.set(chart.dataset.chart, view);
  view.addEventListener("pointermove", (event, item) => light(item?.datum?.method ?? ""));
  chart.addEventListener("pointerleave", () => light(""));
  if (chart.closest(".curves")) follow(chart, view);
}

async function drawAll() {
  for (const chart of all(".vega")) {
    chart.view?.finalize();
    await draw(chart);
  }
  for (const card of all(".curves")) if (card.querySelector("output")) readOff(card, null);
  show([], true);
  document.body.dataset.drawn = "yes";
}
drawAll();
dark.addEventListener("change", drawAll);

/* Maps over their images. */
document.getElementById("overlays")?.addEventListener("change", (event) => {
  document.body.classList.toggle("bare", !event.target.checked);
});

/* The command to the clipboard, where the browser allows it. */
const copy = document.getElementById("copy");
if (navigator.clipboard) {
  copy.hidden = false;
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(document.getElementById("command").textContent);
      copy.textContent = "copied";
    } catch {
      copy.textContent = "not allowed";
    }
  });
}
