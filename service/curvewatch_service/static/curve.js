"use strict";
// Draws the curves of a run: one chart of the loss and one of each metric, by epoch.
(() => {
  const run = document.getElementById("content").dataset.run;
  const lossChart = document.getElementById("loss-chart");
  const metricCharts = document.getElementById("metric-charts");
  const logScale = document.getElementById("log-scale");
  let epochs = [];

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  function bestEpoch() {
    const rated = epochs.filter((epoch) => epoch.validation.loss !== null);
    return rated.reduce((best, epoch) => (best && best.validation.loss <= epoch.validation.loss ? best : epoch), null);
  }

  function trace(split, value) {
    const symbol = split === "train" ? "circle" : "diamond";
    return {
      name: split,
      x: epochs.map((epoch) => epoch.epoch),
      y: epochs.map((epoch) => value(epoch[split])),
      cliponaxis: false,
      mode: epochs.length > 60 ? "lines" : "lines+markers",
      line: { color: color(split), width: 2.25 },
      marker: { color: color(split), size: 6, symbol },
      hovertemplate: `%{y:.5g}<extra>${split}</extra>`,
    };
  }

  function star(best, value) {
    return {
      name: `best: epoch ${best.epoch}`,
      x: [best.epoch],
      y: [value],
      mode: "markers",
      marker: { color: color("best"), size: 15, symbol: "star", line: { color: color("card"), width: 1 } },
      hovertemplate: "%{y:.5g}<extra>best validation loss</extra>",
    };
  }

  function layout(best, yaxis) {
    const grid = color("grid");
    const line = best && {
      type: "line", x0: best.epoch, x1: best.epoch, yref: "paper", y0: 0, y1: 1,
      line: { color: color("best"), width: 1, dash: "dot" },
    };
    return {
      autosize: true,
      height: 320,
      margin: { l: 48, r: 12, t: 12, b: 44 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: color("muted"), family: "inherit", size: 12 },
      hovermode: "x unified",
      hoverlabel: { bgcolor: color("card"), bordercolor: grid, font: { color: color("text") } },
      showlegend: false, // ours is text of the page, with the symbols of the numbers above
      xaxis: { title: { text: "epoch" }, gridcolor: grid, zeroline: false, tickformat: "d", ...epochAxis() },
      yaxis: { gridcolor: grid, zeroline: false, ...yaxis },
      shapes: line ? [line] : [],
    };
  }

  // Epochs are whole numbers from 1; left alone, the axis would begin at 0 and a short run get ticks at halves.
  function epochAxis() {
    const [first, last] = [epochs[0].epoch, epochs.at(-1).epoch];
    const ticks = last - first < 10 ? { dtick: 1 } : { nticks: 12 };
    return { range: [first - 0.6, last + 0.6], ...ticks };
  }

  function writeLegend(chart, best) {
    const keys = [["train", "train"], ["validation", "validation"]];
    if (best) keys.push(["best", `best: epoch ${best.epoch}`]);
    chart.previousElementSibling.replaceChildren(
      ...keys.map(([kind, text]) => {
        const key = document.createElement("span");
        key.className = `key ${kind}`;
        key.textContent = text;
        return key;
      }),
    );
  }

  const CONFIG = { displayModeBar: false, responsive: true };

  function drawLoss(best) {
    const traces = [trace("train", (split) => split.loss), trace("validation", (split) => split.loss)];
    if (best) traces.push(star(best, best.validation.loss));
    writeLegend(lossChart, best);
    const type = logScale.checked ? "log" : "linear";
    Plotly.react(lossChart, traces, layout(best, { type, rangemode: type === "linear" ? "tozero" : "normal" }), CONFIG);
  }

  function metricChart(name) {
    const id = `metric-${name}`;
    let chart = document.getElementById(id);
    if (chart === null) {
      const card = document.createElement("section");
      card.className = "card";
      const title = document.createElement("h2");
      title.textContent = `${name.charAt(0).toUpperCase()}${name.slice(1)} by epoch`;
      const legend = document.createElement("p");
      legend.className = "legend";
      chart = document.createElement("div");
      chart.id = id;
      chart.className = "chart";
      chart.setAttribute("role", "img");
      chart.setAttribute("aria-label", `Train and validation ${name} by epoch`);
      card.append(title, legend, chart);
      metricCharts.append(card);
    }
    return chart;
  }

  function drawMetric(name, best) {
    const value = (split) => split.metrics[name] ?? null;
    const traces = [trace("train", value), trace("validation", value)];
    if (best && value(best.validation) !== null) traces.push(star(best, value(best.validation)));
    const chart = metricChart(name);
    writeLegend(chart, best);
    Plotly.react(chart, traces, layout(best, {}), CONFIG);
  }

  function draw() {
    if (epochs.length === 0) return;
    const best = bestEpoch();
    drawLoss(best);
    const names = new Set(epochs.flatMap((epoch) => Object.keys(epoch.validation.metrics)));
    for (const name of names) drawMetric(name, best);
  }

  async function load() {
    let answer;
    try {
      const response = await fetch(`/api/v1/runs/${encodeURIComponent(run)}/epochs`, {
        headers: { Accept: "application/json" },
        cache: "no-store",
      });
      if (!response.ok) return;
      answer = await response.json();
    } catch {
      return; // live.js says that the service is away
    }
    if (JSON.stringify(answer.epochs) === JSON.stringify(epochs)) return;
    epochs = answer.epochs;
    draw();
  }

  document.addEventListener("curvewatch:refreshed", load);
  logScale.addEventListener("change", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  load();
})();
