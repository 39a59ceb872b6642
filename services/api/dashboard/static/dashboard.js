// Draws the charts, copies snippets, adds overrides, applies presets, disables unused fields, and shows a notice while the service does not respond. All other features of the pages work without this script.
"use strict";

const POLL_MS = 3000;
const LABELS = {mlm: "MLM", task: "training", validation_loss: "validation", score: "score", tokens_per_second: "tokens/s", learning_rate: "rate"};
const NOISY = ["mlm", "task", "tokens_per_second"];
const SMOOTHED_FROM = 40;
const COLORS = Number(document.documentElement.dataset.colors);

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function readable(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  return size >= 100 ? Math.round(value).toLocaleString("en") : value.toPrecision(3);
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return value / 1e6 + "M";
  if (size >= 1e4) return value / 1e3 + "k";
  return size !== 0 && size < 1e-3 ? value.toExponential(1).replace(".0", "") : String(+value.toPrecision(6));
}

// Returns one line per curve and series name: name, columns, label, color, dash. In a comparison, a curve has the color of its job. A single curve has one color per series name. Dashes distinguish lines of one color.
function linesOf(curves, names) {
  const lines = [];
  const places = curves.map((curve, number) => (curve.column ?? number) % COLORS);
  curves.forEach((curve, number) => names.forEach((name, kind) => {
    const line = curve.series[name];
    if (!line) return;
    const alone = curves.length < 2 && curve.column === undefined;
    const parts = [alone ? "" : curve.name, alone || names.length > 1 ? LABELS[name] : ""].filter(Boolean);
    const earlier = places.slice(0, number).filter(place => place === places[number]).length;
    const dash = [...(kind ? [5, 4] : []), ...(earlier ? [2, 2 * earlier] : [])];
    lines.push({name, x: line.x, y: line.y, label: parts.join(", "), color: color("--c" + (alone ? kind : places[number])), dash: dash.length ? dash : undefined, noisy: NOISY.includes(name)});
  }));
  return lines;
}

// The centered moving average of a line. Its window shrinks at both ends, so that it has no lag.
function average(values) {
  const widest = Math.round(values.length / 30);
  return values.map((_, at) => {
    const side = Math.min(at, values.length - 1 - at, widest);
    const near = values.slice(at - side, at + side + 1);
    return near.reduce((sum, value) => sum + value, 0) / near.length;
  });
}

// Adds the moving average of each long noisy line. The noisy line becomes pale and has no legend.
function withAverages(lines) {
  return lines.flatMap(line => !line.noisy || line.y.length < SMOOTHED_FROM ? [line] :
    [{...line, color: line.color + "48", legend: "raw"}, {...line, y: average(line.y)}]);
}

// Shows the latest values in the legend while the pointer is outside the chart.
function showLatest(chart) {
  if (chart.cursor.left >= 0) return;
  chart.setLegend({idxs: chart.data.map(column => column.findLastIndex(value => value !== null && value !== undefined))}, false);
}

// Returns the range of the vertical axis. It shows no value above 1 if all lines are scores, which never exceed 1.
function verticalRange(lines) {
  const most = lines.every(line => line.name === "score") ? 1 : Infinity;
  return (_, low, high) => {
    const [from, to] = uPlot.rangeNum(low, high, 0.1, true);
    return [from, Math.min(to, most)];
  };
}

function options(lines, width) {
  const axis = {stroke: color("--dim"), grid: {stroke: color("--line"), width: 1}, ticks: {show: false}, font: "12px Inter, system-ui, sans-serif"};
  return {
    width, height: 190, legend: {live: true, markers: {dash: (chart, number) => chart.series[number].dash ? "dashed" : "solid"}}, hooks: {setCursor: [showLatest]}, cursor: {points: {size: 6}}, scales: {x: {time: false}, y: {range: verticalRange(lines)}},
    axes: [
      {...axis, grid: {show: false}, size: 26, values: (_, ticks) => ticks.map(short)},
      {...axis, size: 52, values: (_, ticks) => ticks.map(short)},
    ],
    series: [{label: "step", value: (_, value) => value?.toLocaleString("en") ?? "–"}, ...lines.map(line => ({
      label: line.label, class: line.legend, stroke: line.color, width: 1.6, dash: line.dash, spanGaps: true,
      points: {show: line.x.length < 30, size: 5, fill: line.color}, value: (_, value) => readable(value),
    }))],
  };
}

function draw(figure, curves, smooth) {
  const plot = figure.querySelector(".plot");
  const measured = linesOf(curves, figure.dataset.series.split(" "));
  const lines = smooth ? withAverages(measured) : measured;
  const title = figure.querySelector("figcaption").textContent.replace(/\s+/g, " ").trim();
  const latest = measured.map(line => `${line.label} ${readable(line.y.at(-1))}`).join("; ");
  // Some stages lack the series of a chart. For example, a joint stage without task loss has no validation score.
  figure.hidden = !lines.length;
  if (figure.hidden) return;
  plot.setAttribute("aria-label", `${title}: ${latest}`);
  const shape = lines.map(line => line.label + line.color).join("|") + plot.clientWidth;
  const data = uPlot.join(lines.map(line => [line.x, line.y]));
  if (figure.chart && figure.shape === shape) {
    figure.chart.setData(data);
    return showLatest(figure.chart);
  }
  if (figure.chart) figure.chart.destroy();
  figure.shape = shape;
  figure.chart = new uPlot(options(lines, plot.clientWidth), data, plot);
  showLatest(figure.chart);
}

function showCharts(area) {
  const figures = [...area.querySelectorAll(".chart")];
  let curves = [];
  const smooth = area.querySelector("[name=smooth]");
  const redraw = () => {
    figures.forEach(figure => draw(figure, curves, smooth.checked));
    const empty = figures.every(figure => figure.hidden);
    area.querySelector(".no-data").hidden = !empty;
    area.querySelector(".plots").hidden = empty;
  };
  smooth.addEventListener("change", redraw);
  const load = async () => {
    const start = performance.now();
    let result;
    try {
      const response = await fetch(area.dataset.points, {headers: {"HX-Request": "true"}});
      if (!response.ok) return;
      result = await response.json();
    } catch {
      setTimeout(load, 2 * POLL_MS);
      return;
    }
    curves = result.curves;
    redraw();
    area.dataset.drawn = "yes";
    // The points of a long run take longer to read and change less, so request them less often.
    if (result.live) setTimeout(load, Math.max(POLL_MS, 20 * (performance.now() - start)));
  };
  new ResizeObserver(redraw).observe(area);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  load();
}

// Copies the text beside a button. Browsers allow this only over HTTPS and for localhost. Otherwise selects the text.
document.addEventListener("click", async event => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const code = button.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code);
  }
});

// Writes the chosen value of a recipe key into the lines of overrides, and removes an earlier line of this key.
document.addEventListener("click", event => {
  const button = event.target.closest("[data-override]");
  const value = button && document.getElementById("picked-value").value.trim();
  if (!value) return;
  const area = document.getElementById("overrides");
  const others = area.value.split("\n").filter(line => line.trim() && line.split("=")[0].trim() !== button.dataset.override);
  area.value = [...others, `${button.dataset.override} = ${value}`].join("\n");
  area.dispatchEvent(new Event("change", {bubbles: true}));
});

// Applies a preset to the form, whose other values stay. Without scripts, the link of the preset opens a new form.
document.querySelectorAll(".presets a").forEach(link => link.addEventListener("click", event => {
  event.preventDefault();
  const {scale, seeds} = document.getElementById("new-job").elements;
  scale.value = link.dataset.scale;
  seeds.value = link.dataset.seeds;
  seeds.dispatchEvent(new Event("change", {bubbles: true}));
}));

// Disables corpus and seeds at the scale `instant`, and marks the preset that the form matches. The server ignores corpus and seeds there, so a browser without scripts may send them.
const form = document.getElementById("new-job");
if (form) {
  const {corpus, scale, seeds} = form.elements;
  const follow = () => {
    const instant = corpus.disabled = seeds.disabled = scale.value === "instant";
    document.querySelectorAll(".presets a").forEach(link => {
      link.setAttribute("aria-current", link.dataset.scale === scale.value && (instant || link.dataset.seeds === seeds.value));
    });
  };
  form.addEventListener("change", follow);
  follow();
}

const offline = document.querySelector(".offline");
if (offline) {
  document.addEventListener("htmx:error", () => { offline.hidden = false; });
  document.addEventListener("htmx:after:request", () => { offline.hidden = true; });
}
document.querySelectorAll("[data-points]").forEach(showCharts);
