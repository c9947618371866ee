// The table of layers, sorted by the column that is clicked.

import { $, fill, h } from "./dom.js";
import { count, number, percent, quantity, structureWords, UNKNOWN } from "./format.js";
import { FLOAT, isStructure, layerWords } from "./trial-words.js";

const sum = (rows, of) => rows.reduce((total, row) => total + (of(row) || 0), 0);
// What may be taken from a layer has no parameters beside the layer's own.
const params = (row) => (isStructure(row.layer) ? null : row.params);
const float = (row) => row.latency_ms?.[FLOAT];
const best = (row) => (row.choice && !isStructure(row.layer) ? row.latency_ms?.[row.choice] : undefined);
const harm = (row) => (row.choice ? row.divergence?.[row.choice] : undefined);

/** The columns that this table can fill, in the order of the graph at first. */
function columns(rows) {
  const [weights, macs] = [sum(rows, params), sum(rows, (row) => row.macs)];
  const all = [
    { title: "Operator", of: (row) => row.op, words: (text) => text },
    { title: "Parameters", of: params, words: (value) => withShare(count(value), value / weights), n: true },
    { title: "MACs", of: (row) => row.macs, words: (value) => withShare(count(value), value / macs), n: true },
    { title: "Latency in float", of: float, words: (value) => quantity("latency_ms", value), n: true },
    { title: "In the best plan", of: best, words: (value) => quantity("latency_ms", value), n: true },
    { title: "Its divergence", of: harm, words: (value) => number(value), n: true },
    { title: "Its choice", of: (row) => row.choice, words: (text) => structureWords(text) ?? text },
  ];
  return all.filter(({ of }) => rows.some((row) => of(row) !== undefined && of(row) !== null));
}

function withShare(text, share) {
  return Number.isFinite(share) ? [text, h("span.beside", percent(share, 1))] : text;
}

/** Draws the table. chosen(layer) hears which layer is asked for. */
export function table(rows, chosen) {
  const shown = columns(rows);
  const state = { column: null, down: true };
  const draw = () => {
    fill("layer-head", head(null, "Layer", state, draw), shown.map((column) => head(column, column.title, state, draw)));
    const current = document.querySelector("#layer-rows tr[aria-current]")?.dataset.layer;
    fill("layer-rows", sorted(rows, state).map((row) => line(row, shown, chosen, current)));
  };
  draw();
}

function head(column, title, state, draw) {
  const sort = state.column === column ? (column === null || !state.down ? "ascending" : "descending") : null;
  const id = `by-${title.toLowerCase().replaceAll(" ", "-")}`;
  const onclick = () => {
    state.down = state.column === column ? !state.down : Boolean(column?.n);
    state.column = column;
    draw();
    $(id).focus();
  };
  return h(column?.n ? "th.n" : "th", { scope: "col", "aria-sort": sort }, h("button.sort", { type: "button", id, onclick }, `${title} `));
}

/** Without a column the order of the graph; what is not known comes last. */
function sorted(rows, { column, down }) {
  if (!column) return rows;
  const known = (row) => column.of(row) ?? null;
  const order = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
  const full = rows.filter((row) => known(row) !== null).sort((a, b) => (down ? -1 : 1) * order(known(a), known(b)));
  return [...full, ...rows.filter((row) => known(row) === null)];
}

function line(row, shown, chosen, current) {
  const measured = row.divergence !== undefined;
  const name = layerWords(row.layer);
  const cell = measured ? h("button.plain", { type: "button", onclick: () => chosen(row.layer) }, name) : name;
  const cells = shown.map(({ of, words, n }) => h(n ? "td.n" : "td", (of(row) ?? null) === null ? UNKNOWN : words(of(row))));
  const about = { "data-layer": row.layer, "aria-current": row.layer === current ? "true" : null };
  return h("tr", about, h("th", { scope: "row" }, cell), cells);
}
