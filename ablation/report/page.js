"use strict";
// What the page does beside standing there: it draws its charts, sorts its tables, tells its age,
// and reloads itself where it will be written again, at the place where the reader is.

const body = document.body;
const written = Number(body.dataset.written), reloadAfter = Number(body.dataset.reload);
const place = "place of " + location.pathname;

function remembered() {
  try { return JSON.parse(sessionStorage.getItem(place)) || {}; } catch { return {}; }
}
const before = remembered();

// --- Tables -----------------------------------------------------------------------------------

const SECONDS = { s: 1, min: 60, h: 3600 };

function key(row, column) { // "<0.0001" is a number, and "2.5 min" is more than "45 s"
  const text = row.cells[column].textContent.trim();
  const found = /^<?([-+\u2212]?[\d.][^ ]*)(?: (s|min|h)$)?/.exec(text);
  const number = Number.parseFloat(found?.[1].replace("\u2212", "-").replaceAll(",", ""));
  return { text, number: number * (SECONDS[found?.[2]] || 1) };
}

function compared(a, b, sign) {
  const numbers = [a, b].filter((k) => !Number.isNaN(k.number)).length;
  if (numbers === 1) return Number.isNaN(a.number) ? 1 : -1; // words after numbers, in any order
  if (numbers === 2 && a.number !== b.number) return sign * (a.number - b.number);
  return sign * a.text.localeCompare(b.text, "en", { numeric: true });
}

function sort(table, column, order) {
  const rows = [...table.tBodies[0].rows].map((row) => [key(row, column), row]);
  const sign = order === "descending" ? -1 : 1;
  rows.sort((a, b) => compared(a[0], b[0], sign));
  table.tBodies[0].append(...rows.map(([, row]) => row));
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, n) => head.setAttribute("aria-sort", n === column ? order : "none"));
}

const tables = [...document.querySelectorAll("table")];
tables.forEach((table, number) => {
  const heads = [...table.tHead.rows[0].cells].filter((head) => head.hasAttribute("aria-sort"));
  heads.forEach((head) => head.querySelector("button").addEventListener("click", () => {
    const rising = head.getAttribute("aria-sort") === "ascending";
    sort(table, head.cellIndex, rising ? "descending" : "ascending");
  }));
  const sorted = (before.sorted || {})[number];
  if (sorted && heads[sorted[0]]) sort(table, ...sorted);
});

// --- The place where the reader is --------------------------------------------------------------

const folds = [...document.querySelectorAll("details")];
folds.forEach((fold, number) => { if ((before.open || [])[number]) fold.open = true; });
history.scrollRestoration = "manual";
if (before.scroll !== undefined) scrollTo({ top: before.scroll, behavior: "instant" });

function sortedTables() {
  const found = tables.map((table, number) => {
    const heads = [...table.tHead.rows[0].cells];
    const head = heads.find((each) => /ing$/.test(each.getAttribute("aria-sort") || ""));
    return head && [number, [head.cellIndex, head.getAttribute("aria-sort")]];
  });
  return Object.fromEntries(found.filter(Boolean));
}

function remember() {
  const now = {
    scroll: scrollY, open: folds.map((fold) => fold.open), sorted: sortedTables(),
    views, ranges: zoomed(), hidden: hidden(), written,
    wide: [...document.querySelectorAll(".wide")].map((each) => [each.scrollLeft, each.scrollTop]),
    focus: focusable().indexOf(document.activeElement),
  };
  try { sessionStorage.setItem(place, JSON.stringify(now)); } catch { /* it is not remembered */ }
}
addEventListener("pagehide", remember);

function focusable() { return [...document.querySelectorAll("a, button, summary, [tabindex]")]; }
(before.wide || []).forEach(([left, top], number) => {
  const each = document.querySelectorAll(".wide")[number];
  if (each) { each.scrollLeft = left; each.scrollTop = top; }
});
if (before.focus >= 0) focusable()[before.focus]?.focus({ preventScroll: true });

// --- Charts -----------------------------------------------------------------------------------

const plots = [...document.querySelectorAll(".plot")];
const views = {}; // chart: the view that was chosen

function zoomed() {
  const found = {};
  for (const plot of plots) {
    const axes = Object.entries(plot._fullLayout || {}).filter(([name]) => /^[xy]axis\d*$/.test(name));
    for (const [name, axis] of axes) {
      if (plot.dataset.zoomed) (found[plot.dataset.chart] ||= {})[name + ".range"] = [...axis.range];
    }
  }
  return found;
}

function entry(trace) { return trace.name.replace(/ \(n = .*/, ""); } // in the legend, whatever its n

function hidden() { // what a click in the legend has put out of sight
  const of = (plot) => (plot._fullData || []).filter((trace) => trace.visible === "legendonly");
  return Object.fromEntries(plots.map((plot) => [plot.dataset.chart, of(plot).map(entry)]));
}

async function unpacked(id) {
  const text = document.getElementById(id).textContent;
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function choose(plot, menus, button) {
  const [menu, number] = button.split(".").map(Number), view = menus[menu]?.buttons[number];
  if (!view) return null;
  (views[plot.dataset.chart] ||= {})[menu] = button;
  delete plot.dataset.zoomed; // a view has axes of its own
  plot.closest("figure").querySelectorAll(`[data-view^="${menu}."]`).forEach((each) =>
    each.setAttribute("aria-pressed", each.dataset.view === button));
  return Plotly[view.method](plot, ...view.args);
}

async function drawn(plot, chart) {
  const { updatemenus = [], ...layout } = chart.layout;
  const options = { displaylogo: false, displayModeBar: false, doubleClick: "reset+autosize" };
  plot.textContent = "";
  await Plotly.newPlot(plot, chart.data, layout, options);
  const name = plot.dataset.chart;
  plot.closest("figure").querySelectorAll("[data-view]").forEach((button) => {
    button.addEventListener("click", () => choose(plot, updatemenus, button.dataset.view));
    const [menu, number] = button.dataset.view.split(".").map(Number);
    button.setAttribute("aria-pressed", number === (updatemenus[menu].active || 0));
  });
  for (const button of Object.values((before.views || {})[name] || {})) {
    await choose(plot, updatemenus, button);
  }
  const out = (before.hidden || {})[name] || [];
  const traces = plot._fullData.filter((each) => each.visible === true && out.includes(entry(each)));
  if (traces.length) {
    await Plotly.restyle(plot, { visible: "legendonly" }, traces.map((each) => each.index));
  }
  const ranges = (before.ranges || {})[name];
  if (ranges) { plot.dataset.zoomed = "yes"; await Plotly.relayout(plot, ranges); }
  plot.on("plotly_relayout", (change) => {
    const names = Object.keys(change);
    if (names.some((each) => /range/.test(each) && !/autorange/.test(each))) plot.dataset.zoomed = "yes";
    if (names.some((each) => /autorange/.test(each))) delete plot.dataset.zoomed;
  });
  const fit = () => {
    if (!printing && plot.clientWidth !== plot._fullLayout.width) Plotly.Plots.resize(plot);
  };
  new ResizeObserver(() => requestAnimationFrame(fit)).observe(plot);
}

// On paper a chart is drawn for the paper, whatever the window is, and scaled to its width.
const PAPER_WIDE = 960; // pixels of a chart: its words are then as small as a table's
let printing = false;
function onPaper(plot) {
  Plotly.relayout(plot, { width: PAPER_WIDE });
  const size = plot._fullLayout;
  plot.querySelectorAll(".main-svg").forEach((svg) =>
    svg.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`));
  plot.style.setProperty("--shape", `${size.width} / ${size.height}`);
}
function onScreen(plot) {
  plot.querySelectorAll(".main-svg").forEach((svg) => svg.removeAttribute("viewBox"));
  Plotly.relayout(plot, { width: null, autosize: true });
}
function there() { return plots.filter((plot) => plot._fullLayout); }
addEventListener("beforeprint", () => { printing = true; there().forEach(onPaper); });
addEventListener("afterprint", () => { printing = false; there().forEach(onScreen); });

async function draw() {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const library = document.createElement("script");
  library.textContent = await unpacked("plotly");
  document.head.append(library);
  for (const plot of plots) {
    if (charts[plot.dataset.chart]) await drawn(plot, charts[plot.dataset.chart]);
  }
  body.dataset.drawn = "yes";
}
if (plots.length) {
  draw().catch((error) => {
    plots.forEach((plot) => { if (!plot._fullLayout) plot.textContent = "This chart cannot be drawn: " + error; });
  });
}

// --- Age, and a page that is written again ----------------------------------------------------

function inWords(seconds) {
  if (seconds < 90) return `${seconds} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

function tellAge() {
  const seconds = Math.max(0, Math.round(Date.now() / 1000 - written));
  const why = busy() ? "it waits while you read a mark or select text" : "no news since: its writer may be gone";
  const stale = reloadAfter && seconds > 180 ? ` (${why})` : "";
  document.getElementById("ago").textContent = `, ${inWords(seconds)} ago${stale}`;
}
tellAge();
setInterval(tellAge, 1000);

function busy() { // somebody reads a mark, selects text, or drags
  return document.hidden || !getSelection().isCollapsed || document.querySelector(".hoverlayer .hovertext");
}

if (reloadAfter) {
  const same = before.written === written; // nothing new since: ask less often
  const timer = setInterval(() => {
    if (busy()) return;
    clearInterval(timer);
    location.reload();
  }, 1000 * reloadAfter * (same ? 3 : 1));
}
