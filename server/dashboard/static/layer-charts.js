// The heat map of sensitivity, and the shares of layers.

import { colours, plot, scale } from "./charts.js";
import { $ } from "./dom.js";
import { bytes, number, quantity, schemeWords } from "./format.js";
import { FLOAT, isStructure, layerWords, RESTS } from "./trial-words.js";

const ROW_PX = 26;
const COLUMN_PX = 34;
const LEAST_PX = 446;
const BARS_PX = 11;

/** A chart that is as tall as its rows need, and at least as its box, which scrolls. */
function sized(name, pixels) {
  const place = $(name);
  place.style.height = `${Math.max(LEAST_PX, pixels)}px`;
  return place;
}

/** Each layer alone under each scheme. chosen(layer) hears of clicks. */
export function sensitivity(rows, chosen) {
  const schemes = [...new Set(rows.flatMap(({ divergence }) => Object.keys(divergence)))].filter((scheme) => !RESTS.includes(scheme));
  const place = sized("map", rows.length * ROW_PX + 240);
  place.style.minWidth = `${schemes.length * COLUMN_PX + 270}px`;
  const label = `Predicted divergence of ${rows.length} layers and operator types under ${schemes.length} schemes`;
  const clicked = (point) => chosen(String(point.y));
  return plot(place, () => ({ data: cells(rows, schemes), layout: mapLayout(rows, schemes) }), { clicked, label });
}

function cells(rows, schemes) {
  const all = rows.flatMap(({ divergence }) => Object.values(divergence)).filter((value) => value > 0);
  const [low, high] = all.length ? [Math.floor(Math.log10(Math.min(...all))), Math.ceil(Math.log10(Math.max(...all)))] : [-1, 0];
  // What harms nothing at all has no logarithm; it is drawn at the lower end of the scale.
  const height = (value) => (value === undefined ? null : value > 0 ? Math.log10(value) : low);
  const decades = Array.from({ length: high - low + 1 }, (_, step) => low + step);
  const heat = {
    type: "heatmap",
    x: schemes,
    y: rows.map(({ layer }) => layer),
    z: rows.map(({ divergence }) => schemes.map((scheme) => height(divergence[scheme]))),
    text: rows.map((row) => schemes.map((scheme) => hover(row, scheme))),
    hovertemplate: "%{text}<extra></extra>",
    hoverongaps: false,
    xgap: 1,
    ygap: 1,
    colorscale: scale(),
    zmin: low,
    zmax: Math.max(high, low + 1),
    colorbar: {
      title: { text: "divergence", side: "right" },
      tickvals: decades,
      ticktext: decades.map((power) => number(10 ** power, 1)),
      thickness: 14,
      outlinewidth: 0,
    },
  };
  return [heat, choices(rows)];
}

/** A ring where the best plan is. */
function choices(rows) {
  const c = colours();
  const taken = rows.filter(({ choice }) => choice && !RESTS.includes(choice));
  return {
    type: "scatter",
    mode: "markers",
    name: "chosen by the best plan",
    showlegend: taken.length > 0,
    x: taken.map(({ choice }) => choice),
    y: taken.map(({ layer }) => layer),
    text: taken.map((row) => hover(row, row.choice)),
    hovertemplate: "%{text}<br>chosen by the best plan<extra></extra>",
    marker: { symbol: "circle", size: 11, color: c.panel, line: { color: c.ink, width: 2.5 } },
  };
}

function hover({ layer, divergence, latency_ms: latency, size_bytes: size }, scheme) {
  const cost = (words, values) => {
    if (isStructure(layer)) return Number.isFinite(values[scheme]) ? `saves ${words(-values[scheme])}` : null;
    return `${words(values[scheme])} (float: ${words(values[FLOAT])})`;
  };
  const lines = [
    `<b>${escaped(layerWords(layer))}</b>`,
    ...schemeWords(scheme).split("; "),
    `divergence ${number(divergence[scheme])}`,
    cost((value) => quantity("latency_ms", value), latency),
    cost(bytes, size),
  ];
  return lines.filter(Boolean).join("<br>");
}

// Plotly reads some tags in its texts, and names of layers come from files.
const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

function mapLayout(rows, schemes) {
  return {
    xaxis: {
      type: "category",
      range: [-0.5, schemes.length - 0.5],
      tickvals: schemes,
      ticktext: schemes,
      tickangle: -50,
      showgrid: false,
      tickfont: { size: 11 },
    },
    yaxis: layerAxis(rows),
    margin: { l: 40, r: 10, t: 34, b: 60 },
  };
}

const SHORT = 22;
/** Layers from above to below in the order of the graph, long names by their end. */
const layerAxis = (rows) => ({
  type: "category",
  autorange: false,
  range: [rows.length - 0.5, -0.5],
  tickvals: rows.map(({ layer }) => layer),
  ticktext: rows.map(({ layer }) => escaped(layer.length > SHORT ? `…${layer.slice(-SHORT)}` : layer)),
  showgrid: false,
  tickfont: { size: 11 },
});

/** Parameters, MACs and latency of each layer as parts of the whole. */
export function shares(rows, chosen) {
  const kinds = sharesOf(rows);
  const place = sized("shares", rows.length * (kinds.length * BARS_PX + 8) + 110);
  const label = `Shares of ${kinds.map(({ name }) => name).join(", ")} by layer`;
  const clicked = (point) => chosen(String(point.y));
  return plot(place, () => ({ data: bars(rows, kinds), layout: shareLayout(rows) }), { clicked, label });
}

/** [{name, values, words}], shares from 0 to 1; only of what is known. */
function sharesOf(rows) {
  const kinds = [
    { name: "parameters", of: (row) => row.params },
    { name: "MACs", of: (row) => row.macs },
    { name: "latency in float", of: (row) => row.latency_ms?.[FLOAT] },
    { name: "latency in the best plan", of: (row) => row.choice && row.latency_ms[row.choice], whole: (row) => row.latency_ms?.[FLOAT] },
  ];
  const total = (of) => rows.reduce((sum, row) => sum + (of(row) || 0), 0);
  const values = (of, whole) => rows.map((row) => (of(row) ?? 0) / whole);
  return kinds.filter(({ of }) => total(of) > 0).map(({ name, of, whole }) => ({ name, values: values(of, total(whole ?? of)) }));
}

const PATTERNS = ["", "/", ".", "x"];

function bars(rows, kinds) {
  const c = colours();
  const fills = [c.quiet, c.warn, c.accent, c.good];
  return kinds.map(({ name, values }, at) => ({
    type: "bar",
    orientation: "h",
    name,
    y: rows.map(({ layer }) => layer),
    x: values.map((share) => 100 * share),
    hovertemplate: `<b>%{y}</b><br>${name}: %{x:.1f}\u00a0%<extra></extra>`,
    marker: { color: fills[at], pattern: { shape: PATTERNS[at], fgcolor: c.panel, bgcolor: fills[at], size: 6 } },
  }));
}

const shareLayout = (rows) => ({
  barmode: "group",
  bargap: 0.25,
  xaxis: { title: { text: "% of the model" }, rangemode: "tozero" },
  yaxis: layerAxis(rows),
  margin: { l: 40, r: 10, t: 34, b: 48 },
});
