// The two live charts of a job: accuracy against cost, and the best so far.

import { page } from "./api.js";
import { $, say } from "./dom.js";
import { colours, marks, plot } from "./charts.js";
import { allowed, bytes, dropWords, mainConstraint, times, whole } from "./format.js";
import { COMING, kindOf } from "./trial-words.js";

const OUTLIER = 6;

/** How many times less than the original's a trial costs, by the job's first objective that is a cost; predicted where not measured. */
function gainOf(trial, objective, original) {
  if (objective === "size" && trial.values.size_bytes) return { value: original.size_bytes / trial.values.size_bytes, measured: true };
  if (objective === "latency" && trial.speedup) {
    return { value: trial.speedup, low: trial.speedup_lower, high: trial.speedup_upper, measured: true };
  }
  return trial.predicted_gain ? { value: trial.predicted_gain, measured: false } : null;
}

const COSTS = ["latency", "size", "compressed_size", "macs", "params", "peak_memory"];
const AXES = {
  latency: "speed-up over the original, ×",
  size: "times smaller than the original, ×",
};

export class Charts {
  constructor(id) {
    this.id = id;
  }

  draw(seen) {
    const { job, original, trials } = seen;
    const objective = job.spec.objectives.find((name) => COSTS.includes(name)) ?? "latency";
    const constraint = mainConstraint(job.spec);
    const words = dropWords(constraint, job.progress.metrics?.[0] ?? constraint.metric);
    const best = job.result?.best.trial ?? job.progress.best?.number;
    const rows = [...trials.values()]
      .filter((trial) => !COMING.includes(trial.state))
      .sort((a, b) => a.number - b.number)
      .map((trial) => ({ trial, gain: gainOf(trial, objective, original), kind: trial.number === best ? "best" : kindOf(trial) }));
    if (rows.length === 0) return;
    const told = { rows, words, limit: allowed(constraint), axis: AXES[objective] ?? `${objective}: times less than the original, ×` };
    this.scatter(told, job);
    this.history(told);
  }

  scatter(told, job) {
    const target = opened("scatter");
    const drawn = told.rows.filter(({ trial, gain }) => gain && Number.isFinite(trial.drop));
    const most = ceiling(drawn, told.limit);
    const above = drawn.filter(({ trial }) => trial.drop > most).length;
    const make = () => ({ data: scatterData(drawn, told, most), layout: scatterLayout(told) });
    const label = `Accuracy lost against the gain for ${drawn.length} trials`;
    plot(target, make, { clicked: (point) => this.open(point), label });
    say("scatter-note", note(told.rows, drawn, above, job));
  }

  history(told) {
    const target = opened("history");
    const rows = told.rows.filter(({ trial, gain }) => trial.feasible && gain?.measured);
    const make = () => historyChart(told, rows);
    plot(target, make, { clicked: (point) => this.open(point), label: "Best so far" });
  }

  open(point) {
    if (point.customdata !== undefined) location.assign(page(`/jobs/${this.id}/trials/${point.customdata}`));
  }
}

function opened(name) {
  const target = $(name);
  if (target.classList.contains("empty")) {
    target.classList.remove("empty");
    target.replaceChildren();
  }
  return target;
}

/** The largest drop that is drawn to scale: what lies far outside is drawn at the edge, so that the interesting part is seen. */
function ceiling(drawn, limit) {
  const drops = drawn.map(({ trial }) => trial.drop);
  const inside = Math.max(limit ?? 0, ...drawn.filter(({ trial }) => trial.feasible).map(({ trial }) => trial.drop), 0.002);
  return Math.min(Math.max(...drops, inside), OUTLIER * inside);
}

function note(rows, drawn, above, job) {
  const parts = ["Every mark is a trial; bars are its interval. Click one to see it."];
  if (drawn.some(({ gain }) => !gain.measured)) parts.push("Pale marks are not timed: their gain is predicted.");
  if (above) parts.push(`Drawn at the upper edge because they lose far more: ${above}.`);
  if (rows.length < job.progress.trials) {
    parts.push(`${whole(rows.length)} of ${whole(job.progress.trials)} trials are drawn: all leaders, and others spread evenly.`);
  }
  return parts.join(" ");
}

function scatterData(drawn, told, most) {
  const c = colours();
  const kinds = marks();
  const { factor } = told.words;
  const traces = ["infeasible", "stopped", "feasible", "best"].map((kind) => {
    const rows = drawn.filter((row) => row.kind === kind);
    const y = rows.map(({ trial }) => factor * Math.min(trial.drop, most));
    // A hundred bars and more hide the marks; hovering still tells the interval.
    const bars = drawn.length <= 150 || kind === "best";
    return {
      type: "scatter",
      mode: "markers",
      name: kinds[kind].name,
      x: rows.map(({ gain }) => gain.value),
      y,
      customdata: rows.map(({ trial }) => trial.number),
      text: rows.map((row) => hover(row, told.words)),
      hovertemplate: "%{text}<extra></extra>",
      marker: { ...markOf(kind, kind === "best" ? 15 : 9), opacity: rows.map(({ gain }) => (gain.measured ? 0.95 : 0.4)) },
      error_y: bars
        ? {
            type: "data",
            symmetric: false,
            array: rows.map(({ trial }, at) => Math.max(0, factor * Math.min(trial.drop_upper ?? trial.drop, most) - y[at])),
            arrayminus: rows.map(({ trial }, at) => Math.max(0, y[at] - factor * (trial.drop_lower ?? trial.drop))),
            color: kinds[kind].color,
            thickness: 1,
            width: 3,
          }
        : undefined,
    };
  });
  const origin = { type: "scatter", mode: "markers", x: [1], y: [0], marker: markOf("original", 10) };
  origin.hovertemplate = "the original<extra></extra>";
  return [frontOf(drawn, factor, c), ...traces.filter((trace) => trace.x.length), origin];
}

function markOf(kind, size) {
  const { symbol, color } = marks()[kind];
  return { symbol, color, size };
}

/** The trials within the target that no other beats in both: a staircase. */
function frontOf(drawn, factor, c) {
  const rows = drawn.filter(({ gain, trial }) => gain.measured && trial.state === "complete").sort((a, b) => b.gain.value - a.gain.value);
  const corners = [];
  for (const row of rows) if (!corners.length || row.trial.drop < corners.at(-1).trial.drop) corners.push(row);
  return {
    type: "scatter",
    mode: "lines",
    name: "front",
    x: corners.map(({ gain }) => gain.value),
    y: corners.map(({ trial }) => factor * trial.drop),
    line: { shape: "vh", dash: "dot", width: 1.5, color: c.quiet },
    hoverinfo: "skip",
  };
}

function hover({ trial, gain }, words) {
  const doubt = gain.low ? ` (${times(gain.low)} to ${times(gain.high)})` : gain.measured ? "" : ", predicted";
  const lines = [
    `<b>trial ${trial.number}</b>`,
    `lost ${words.short(trial.drop)} (${words.interval(trial.drop_lower, trial.drop_upper)})`,
    `${times(gain.value)}${doubt}`,
    bytes(trial.values.size_bytes),
  ];
  return lines.join("<br>");
}

function scatterLayout(told) {
  const c = colours();
  const { factor } = told.words;
  const layout = { showlegend: false, xaxis: { title: { text: told.axis } }, yaxis: { title: { text: told.words.axis } } };
  if (told.limit === null) return layout;
  const height = factor * told.limit;
  layout.shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: height, y1: height, line: { color: c.bad, width: 2, dash: "dash" } }];
  const text = `target: at most ${told.words.limit(told.limit)}`;
  const place = { xref: "paper", x: 1, xanchor: "right", y: height, yanchor: "bottom" };
  layout.annotations = [{ ...place, text, showarrow: false, font: { color: c.bad } }];
  return layout;
}

function historyChart(told, rows) {
  const kinds = marks();
  let best = 0;
  const steps = rows.map(({ gain }) => (best = Math.max(best, gain.value)));
  const last = told.rows.at(-1).trial.number;
  const numbers = rows.map(({ trial }) => trial.number);
  const line = {
    type: "scatter",
    mode: "lines",
    name: "best so far",
    x: rows.length ? [...numbers, Math.max(last, numbers.at(-1))] : [],
    y: rows.length ? [...steps, best] : [],
    line: { shape: "hv", width: 2.5, color: colours().accent },
    hovertemplate: "best up to trial %{x}: %{y:.2f}×<extra></extra>",
  };
  const points = {
    type: "scatter",
    mode: "markers",
    name: kinds.feasible.name,
    x: numbers,
    y: rows.map(({ gain }) => gain.value),
    customdata: numbers,
    hovertemplate: "trial %{x}: %{y:.2f}×<extra></extra>",
    marker: markOf("feasible", 8),
  };
  const one = { type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: colours().quiet, dash: "dot", width: 1 } };
  return {
    data: [line, points],
    layout: {
      showlegend: false,
      xaxis: { title: { text: "trial" }, rangemode: "tozero" },
      yaxis: { title: { text: told.axis } },
      shapes: [one],
    },
  };
}
