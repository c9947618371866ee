// One layer: what it costs, and how the values that it reads and its weights are spread, with the ranges that were chosen for them.

import { colours, plot } from "./charts.js";
import { $, fill, h, say } from "./dom.js";
import { bytes, count, number, percent, quantity, schemeWords, UNKNOWN } from "./format.js";
import { FLOAT, isStructure, RESTS } from "./trial-words.js";

const CODES = { u8: [0, 255], s8: [-128, 127], u16: [0, 65535], s16: [-32768, 32767] };

/** Draws one profile. plan: the AppliedPlan whose ranges are drawn in; null where there is none. */
export async function detail(profile, plan) {
  facts(profile);
  const range = activationRange(profile, plan);
  const weight = plan?.layers[profile.layer]?.weight ?? null;
  say("activation-words", activationWords(profile, plan, range));
  say("weight-words", weightWords(profile, plan, weight));
  await Promise.all([
    histogram("activation", profile.activation, range, "No values were collected for it."),
    histogram("weight", profile.weight, weight && weightRange(profile.weight, weight), "It has no weight of its own."),
  ]);
}

function facts({ layer, op, params, macs, choice, divergence, latency_ms: latency, size_bytes: size }) {
  const both = (words, values) => {
    if (isStructure(layer)) return saved(words, choice, values);
    const float = `${words(values[FLOAT])} in float`;
    return choice && choice !== FLOAT ? `${float}, ${words(values[choice])} as chosen` : float;
  };
  const pairs = [
    ["Operator", op],
    ["Parameters", params ? count(params) : UNKNOWN],
    ["MACs", count(macs)],
    ["Latency", both((value) => quantity("latency_ms", value), latency)],
    ["Size", both(bytes, size)],
    ["Best plan", choice ? schemeWords(choice) : "none yet"],
    ["Divergence", choice ? number(divergence[choice]) : UNKNOWN],
  ];
  fill("layer-facts", pairs.flatMap(([name, text]) => [h("dt", name), h("dd", text)]));
}

/** What was measured of what may be taken away is what that saves. */
function saved(words, choice, values) {
  if (!choice || RESTS.includes(choice)) return "nothing saved";
  return Number.isFinite(values[choice]) ? `${words(-values[choice])} saved as chosen` : UNKNOWN;
}

/** What the chosen codes can hold of the tensor that this layer reads; null where it reads floats. */
function activationRange({ layer, tensor }, plan) {
  const found = plan?.tensors[tensor];
  if (!found || (found.readers.length && !found.readers.includes(layer))) return null;
  const [least, most] = CODES[found.dtype];
  return { low: (least - found.zero_point) * found.scale, high: (most - found.zero_point) * found.scale, dtype: found.dtype };
}

/** A weight's range is its exact extremes, widened to both sides of zero alike where it is symmetric. */
function weightRange(histogram, { symmetric }) {
  if (!histogram) return null;
  const most = Math.max(Math.abs(histogram.low), Math.abs(histogram.high));
  return symmetric ? { low: -most, high: most } : { low: Math.min(0, histogram.low), high: Math.max(0, histogram.high) };
}

function activationWords({ layer, tensor, activation }, plan, range) {
  if (isStructure(layer)) return "This is about what may be taken away from a layer; what the layer reads stands with the layer itself.";
  const several = "An operator type stands for several nodes, which read different values. ";
  const named = tensor ? `Of “${tensor}”, over the calibration rows. ` : several;
  if (!activation) return named;
  if (!plan) return `${named}No plan has chosen a range yet.`;
  if (!range) return `${named}The best plan leaves it in float.`;
  const lost = shareWords(clipped(activation, range));
  return `${named}Range of ${range.dtype}: ${number(range.low)} to ${number(range.high)}, which clips ${lost} of the values.`;
}

function weightWords({ weight: histogram }, plan, weight) {
  if (!histogram) return "";
  if (!plan) return "No plan has chosen how to store it yet.";
  if (!weight) return "The best plan leaves it in float.";
  const channels = `one scale per index of axis ${weight.axis}, each from that channel’s own extremes`;
  const scales = weight.axis === null ? "one scale for the whole tensor" : channels;
  const kind = `${weight.dtype}, ${weight.symmetric ? "symmetric" : "asymmetric"}`;
  return `Stored as ${kind}, ${scales}. The range reaches to the extremes: nothing is clipped.`;
}

const shareWords = (share) => (share === 0 ? "none" : share < 0.00005 ? "less than 0.01\u00a0%" : `about ${percent(share)}`);

/** Which share of the values lies outside of the range. A bin that the end of the range divides counts in part. */
function clipped({ low, high, counts }, range) {
  const width = (high - low) / counts.length;
  const total = counts.reduce((sum, value) => sum + value, 0);
  if (!total || !(width > 0)) return 0;
  const inside = counts.reduce((sum, value, at) => {
    const from = low + at * width;
    const within = Math.min(from + width, range.high + SLACK * width) - Math.max(from, range.low - SLACK * width);
    return sum + value * Math.min(1, Math.max(0, within / width));
  }, 0);
  return Math.max(0, 1 - inside / total);
}

/** A scale that is rounded must not look as if it clipped the outermost bin. */
const SLACK = 1e-3;

async function histogram(name, found, range, missing) {
  const place = fresh(name, !found);
  if (!found) {
    place.textContent = missing;
    return;
  }
  const words = range ? `, and the range ${number(range.low)} to ${number(range.high)}` : "";
  const label = `Histogram from ${number(found.low)} to ${number(found.high)}${words}`;
  await plot(place, () => ({ data: [barsOf(found)], layout: layout(found, range) }), { label });
}

function fresh(name, empty) {
  const place = h(empty ? "div.chart.low.empty" : "div.chart.low", { id: name });
  $(name).replaceWith(place);
  return place;
}

function barsOf({ low, high, counts }) {
  const width = (high - low) / counts.length || 1;
  return {
    type: "bar",
    x: counts.map((_, at) => low + (at + 0.5) * width),
    y: counts.map((value) => value || null),
    width,
    customdata: counts.map((_, at) => [number(low + at * width), number(low + (at + 1) * width)]),
    hovertemplate: "%{customdata[0]} to %{customdata[1]}: %{y:,} values<extra></extra>",
    marker: { color: colours().accent },
  };
}

function layout(found, range) {
  const c = colours();
  const [least, most] = [Math.min(found.low, range?.low ?? found.low), Math.max(found.high, range?.high ?? found.high)];
  const room = 0.04 * (most - least) || 1;
  const shown = [least - room, most + room];
  const base = {
    xaxis: { title: { text: "value" }, range: shown, zeroline: false },
    yaxis: { title: { text: "how many" }, type: "log", dtick: 1, exponentformat: "power", rangemode: "tozero" },
    bargap: 0,
    showlegend: false,
    margin: { l: 56, r: 12, t: 26, b: 44 },
  };
  if (!range) return base;
  const full = { xref: "x", yref: "paper", y0: 0, y1: 1 };
  const edge = (x) => ({ ...full, type: "line", x0: x, x1: x, line: { color: c.bad, width: 2, dash: "dash" } });
  const beyond = (x0, x1) => ({ ...full, type: "rect", x0, x1, fillcolor: c.bad, opacity: 0.12, line: { width: 0 }, layer: "below" });
  const above = { y: 1, yref: "paper", yanchor: "bottom", showarrow: false, font: { size: 11, color: c.bad } };
  const tell = (x, text, xanchor) => ({ ...above, x, xanchor, text });
  base.shapes = [beyond(shown[0], range.low), edge(range.low), edge(range.high), beyond(range.high, shown[1])];
  base.annotations = [tell(range.low, `from ${number(range.low)}`, "left"), tell(range.high, `to ${number(range.high)}`, "right")];
  return base;
}
