// How many rows of each class are right, against the original: a chart of those that changed most, and a table of all.

import { colours, plot } from "./charts.js";
import { $, fill, h, show } from "./dom.js";
import { percent, whole } from "./format.js";

const MOST_DRAWN = 30;
const BAR_PX = 13;
const PATTERNS = ["", "/", ".", "x"];
const points = (share) => 100 * share;

/** Draws the classes whose share changed most. Without any the place says so. */
export function classChart(compared) {
  const place = $("classes");
  const changed = compared.classes
    .map((one) => ({ ...one, most: Math.max(...one.trials.map((share) => Math.abs(share - one.original))) }))
    .filter(({ most }) => most > 0)
    .sort((a, b) => b.most - a.most)
    .slice(0, MOST_DRAWN)
    .sort((a, b) => b.label - a.label);
  if (!changed.length) {
    const none = "Rows have no class here, or are not simply right or wrong.";
    place.textContent = compared.classes.length ? "No class has gained or lost a row." : none;
    return;
  }
  place.classList.remove("empty");
  place.textContent = "";
  place.style.minHeight = `${90 + changed.length * (compared.trials.length * BAR_PX + 10)}px`;
  const label = `Change of the share of right rows in ${changed.length} classes, for ${compared.trials.length} trials`;
  plot(place, () => ({ data: bars(changed, compared), layout: layout(compared) }), { label });
}

function bars(changed, { trials }) {
  const c = colours();
  const fills = [c.accent, c.warn, c.good, c.bad];
  const labels = changed.map(({ label, rows }) => `class ${label} (${rows} row${rows === 1 ? "" : "s"})`);
  // From the last to the first: bars of one class stand one above the other from below, and legends are read from above.
  return trials.map((number, at) => ({
    type: "bar",
    orientation: "h",
    name: `trial ${number}`,
    y: labels,
    x: changed.map((one) => points(one.trials[at] - one.original)),
    customdata: changed.map((one) => [percent(one.original), percent(one.trials[at])]),
    hovertemplate: `<b>trial ${number}</b>, %{y}<br>%{x:+.2f} points: %{customdata[0]} to %{customdata[1]}<extra></extra>`,
    marker: {
      color: fills[at],
      pattern: { shape: PATTERNS[at], fgcolor: c.panel, bgcolor: fills[at], size: 6 },
      line: { color: fills[at], width: 1 },
    },
  })).reverse();
}

function layout({ metric }) {
  return {
    barmode: "group",
    bargap: 0.3,
    xaxis: { title: { text: `${metric} gained, percentage points` }, zeroline: true, zerolinecolor: colours().ink },
    yaxis: { type: "category", showgrid: false },
    legend: { traceorder: "reversed", orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
  };
}

/** All classes, by label. */
export function classTable({ classes }) {
  show("class-table", classes.length > 0);
  fill("class-rows", classes.map((one) =>
    h(
      "tr",
      h("th", { scope: "row" }, `class ${one.label}`),
      h("td.n", whole(one.rows)),
      h("td.n", percent(one.original)),
      one.trials.map((share) => h("td.n", percent(share), change(share - one.original))),
    )));
}

function change(difference) {
  if (!difference) return null;
  return h("span.beside", `${difference > 0 ? "gained +" : "lost −"}${Math.abs(points(difference)).toFixed(2)} points`);
}
