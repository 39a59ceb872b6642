// Draws the charts and shows a notice while the service does not respond. All other page features work without it.
"use strict";

const POLL_MS = 3000;
const LABELS = {mlm: "MLM", task: "task", score: "score", tokens_per_second: "tokens per second", learning_rate: "rate"};

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

// Returns one line per curve and series name: columns, label, color, dash.
function linesOf(curves, names) {
  const lines = [];
  curves.forEach((curve, number) => names.forEach((name, kind) => {
    const line = curve.series[name];
    if (!line) return;
    const parts = [curves.length > 1 ? curve.name : "", curves.length < 2 || names.length > 1 ? LABELS[name] : ""].filter(Boolean);
    lines.push({x: line.x, y: line.y, label: parts.join(", "), color: color("--c" + number % 6), dash: kind ? [5, 4] : undefined});
  }));
  return lines;
}

// Shows the latest values in the legend while the pointer is outside the chart.
function showLatest(chart) {
  if (chart.cursor.left >= 0) return;
  chart.setLegend({idxs: chart.data.map(column => column.findLastIndex(value => value !== null && value !== undefined))}, false);
}

function options(lines, width) {
  const axis = {stroke: color("--dim"), grid: {stroke: color("--line"), width: 1}, ticks: {show: false}, font: "12px system-ui, sans-serif"};
  return {
    width, height: 190, legend: {live: true}, hooks: {setCursor: [showLatest]}, cursor: {points: {size: 6}}, scales: {x: {time: false}},
    axes: [
      {...axis, grid: {show: false}, size: 26, values: (_, ticks) => ticks.map(short)},
      {...axis, size: 52, values: (_, ticks) => ticks.map(short)},
    ],
    series: [{label: "step", value: (_, value) => readable(value)}, ...lines.map(line => ({
      label: line.label, stroke: line.color, width: 1.6, dash: line.dash, spanGaps: true,
      points: {show: line.x.length < 30, size: 5, fill: line.color}, value: (_, value) => readable(value),
    }))],
  };
}

function draw(figure, curves) {
  const plot = figure.querySelector(".plot");
  const lines = linesOf(curves, figure.dataset.series.split(" "));
  const title = figure.querySelector("figcaption").textContent.replace(/\s+/g, " ").trim();
  const latest = lines.map(line => `${line.label} ${readable(line.y.at(-1))}`).join("; ");
  // Hide a chart whose series this stage does not have: only finetuning has validation scores.
  figure.hidden = !lines.length && curves.some(curve => Object.keys(curve.series).length);
  plot.setAttribute("aria-label", `${title}: ${latest || "no data yet"}`);
  const shape = lines.map(line => line.label).join("|") + plot.clientWidth + color("--ink");
  const data = lines.length ? uPlot.join(lines.map(line => [line.x, line.y])) : null;
  if (figure.chart && figure.shape === shape) {
    figure.chart.setData(data);
    return showLatest(figure.chart);
  }
  if (figure.chart) figure.chart.destroy();
  figure.chart = null;
  figure.shape = shape;
  plot.replaceChildren();
  if (data) {
    figure.chart = new uPlot(options(lines, plot.clientWidth), data, plot);
    showLatest(figure.chart);
  } else {
    const notice = document.createElement("p");
    notice.className = "none";
    notice.textContent = "no data yet";
    plot.append(notice);
  }
}

function showCharts(area) {
  const figures = [...area.querySelectorAll(".chart")];
  let curves = [];
  const redraw = () => figures.forEach(figure => draw(figure, curves));
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
    // Long runs are slow to read and change little, so poll them less often.
    if (result.live) setTimeout(load, Math.max(POLL_MS, 20 * (performance.now() - start)));
  };
  new ResizeObserver(redraw).observe(area);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  load();
}

const offline = document.querySelector(".offline");
if (offline) {
  document.addEventListener("htmx:error", () => { offline.hidden = false; });
  document.addEventListener("htmx:after:request", () => { offline.hidden = true; });
}
document.querySelectorAll("[data-points]").forEach(showCharts);
