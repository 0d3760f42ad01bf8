"use strict";

const data = JSON.parse(document.getElementById("data").textContent);

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

for (const heading of document.querySelectorAll("#results thead th[aria-sort]")) {
  heading.querySelector("button").addEventListener("click", () => sortBy(heading));
}

/* Every part of the page that belongs to a method, by its name. */
const parts = new Map();
for (const part of document.querySelectorAll("[data-method]")) {
  const name = part.dataset.method;
  if (!parts.has(name)) parts.set(name, []);
  parts.get(name).push(part);
  const swatch = part.querySelector(".swatch");
  if (swatch) parts.get(name).push(swatch);
}

/* The legends: lines switched on and off, in all charts together. */
const buttons = Array.from(document.querySelectorAll(".legend li button"));

function show(name, on) {
  for (const part of parts.get(name)) {
    part.classList.toggle("on", on);
    if (part.matches(".legend button")) part.setAttribute("aria-pressed", String(on));
  }
}

for (const button of buttons) {
  button.addEventListener("click", () => {
    show(button.dataset.method, button.getAttribute("aria-pressed") !== "true");
  });
}

for (const choice of document.querySelectorAll("[data-show]")) {
  const which = choice.dataset.show;
  choice.addEventListener("click", () => {
    for (const button of buttons) {
      show(button.dataset.method, which === "all" || (which === "some" && "highlighted" in button.dataset));
    }
  });
}

/* What is pointed at stands out wherever it is on the page. */
const charts = document.querySelectorAll(".chart > svg");
let lit = null;

function light(name) {
  if (name === lit) return;
  for (const part of parts.get(lit) || []) part.classList.remove("lit");
  for (const part of parts.get(name) || []) part.classList.add("lit");
  for (const chart of charts) {
    chart.classList.toggle("lighting", name !== null && chart.querySelector(".lit") !== null);
  }
  lit = name;
}

function methodAt(target) {
  const part = target instanceof Element ? target.closest("[data-method]") : null;
  return part ? part.dataset.method : null;
}

const tip = document.getElementById("tip");

function place(event) {
  const { offsetWidth: width, offsetHeight: height } = tip;
  const left = Math.min(event.clientX + 14, window.innerWidth - width - 8);
  const below = event.clientY + 14;
  const top = below + height > window.innerHeight ? event.clientY - height - 14 : below;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, top)}px`;
}

document.addEventListener("pointerover", (event) => {
  const name = methodAt(event.target);
  light(name);
  const inChart = name !== null && event.target.closest(".chart > svg") !== null;
  tip.hidden = !inChart || !(name in data.tips);
  if (!tip.hidden) {
    tip.textContent = data.tips[name];
    place(event);
  }
});
document.addEventListener("pointermove", (event) => {
  if (!tip.hidden) place(event);
});
document.documentElement.addEventListener("pointerleave", () => {
  light(null);
  tip.hidden = true;
});
document.addEventListener("focusin", (event) => {
  if (event.target.matches(":focus-visible")) light(methodAt(event.target));
});
document.addEventListener("focusout", () => light(null));

/* The curves read off at the threshold under the pointer. */
const chart = document.getElementById("curves");
if (chart) {
  const crosshair = chart.querySelector(".crosshair");
  const left = Number(chart.dataset.left);
  const right = Number(chart.dataset.right);
  const home = data.thresholds.indexOf(0.2);
  const values = Array.from(chart.parentElement.querySelectorAll(".legend li button"), (button) => [
    button.querySelector(".value"),
    data.curves[button.dataset.method],
  ]);

  const readAt = (index) => {
    const tau = data.thresholds[index];
    for (const end of ["x1", "x2"]) crosshair.setAttribute(end, left + tau * (right - left));
    document.getElementById("tau").textContent = `τ = ${tau.toFixed(2)}`;
    for (const [value, curve] of values) value.textContent = (100 * curve[index]).toFixed(1);
  };

  chart.addEventListener("pointermove", (event) => {
    const frame = chart.getScreenCTM();
    const tau = ((event.clientX - frame.e) / frame.a - left) / (right - left);
    const last = data.thresholds.length - 1;
    readAt(Math.min(last, Math.max(0, Math.round(tau * (last + 2)) - 1)));
  });
  chart.addEventListener("pointerleave", () => readAt(home));
}

/* Deletion and insertion read off together, at the share of the pixels under the pointer. */
const removal = document.querySelector(".removal");
if (removal) {
  const panels = Array.from(removal.querySelectorAll("svg[data-kind]"));
  const label = document.getElementById("share");
  const area = label.textContent;
  const values = Array.from(removal.querySelectorAll(".value"), (value) => [
    value,
    data.removal[value.dataset.kind][value.closest("button").dataset.method],
    value.textContent,
  ]);

  const readAt = (index) => {
    const share = data.removal.shares[index];
    for (const panel of panels) {
      const crosshair = panel.querySelector(".crosshair");
      const left = Number(panel.dataset.left);
      const at = left + share * (Number(panel.dataset.right) - left);
      for (const end of ["x1", "x2"]) crosshair.setAttribute(end, at);
      crosshair.setAttribute("visibility", "visible");
    }
    label.textContent = `at ${Math.round(100 * share)}% of the pixels`;
    for (const [value, curve] of values) value.textContent = curve[index].toFixed(3);
  };

  for (const panel of panels) {
    panel.addEventListener("pointermove", (event) => {
      const frame = panel.getScreenCTM();
      const left = Number(panel.dataset.left);
      const share = ((event.clientX - frame.e) / frame.a - left) / (Number(panel.dataset.right) - left);
      const last = data.removal.shares.length - 1;
      readAt(Math.min(last, Math.max(0, Math.round(share * last))));
    });
    panel.addEventListener("pointerleave", () => {
      for (const one of panels) one.querySelector(".crosshair").setAttribute("visibility", "hidden");
      label.textContent = area;
      for (const [value, , text] of values) value.textContent = text;
    });
  }
}

/* Maps over their images. */
const overlays = document.getElementById("overlays");
if (overlays) {
  overlays.addEventListener("change", () => {
    document.body.classList.toggle("bare", !overlays.checked);
  });
}

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
