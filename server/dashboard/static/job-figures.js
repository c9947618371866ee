// Further figures of the search, drawn by the server from the recorded history when somebody opens them.

import { get } from "./api.js";
import { $, fill, h, say } from "./dom.js";
import { colours, marks, plot } from "./charts.js";

/** Offers the figures once the box is opened. */
export function figures(seen) {
  const box = $("more-figures");
  let known = null;
  box.addEventListener("toggle", async () => {
    if (!box.open || known) return;
    known = await get(`/jobs/${seen.job.id}/figures`);
    tabs(seen, known);
  });
}

function tabs(seen, known) {
  const plain = { type: "button", role: "tab", "aria-selected": "false", tabindex: "-1", "aria-controls": "figure-panel" };
  const buttons = known.map((figure) => h("button", { ...plain, id: `figure-${figure.name}` }, figure.title));
  buttons.forEach((button, at) => {
    button.addEventListener("click", () => choose(seen, known, buttons, at));
    button.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = (at + step + buttons.length) % buttons.length;
      buttons[next].focus();
      choose(seen, known, buttons, next);
    });
  });
  fill("figure-tabs", buttons);
  choose(seen, known, buttons, 0);
}

async function choose({ job }, known, buttons, at) {
  buttons.forEach((button, place) => {
    button.setAttribute("aria-selected", String(place === at));
    button.tabIndex = place === at ? 0 : -1;
  });
  const figure = known[at];
  $("figure-panel").setAttribute("aria-labelledby", buttons[at].id);
  say("figure-caption", figure.caption);
  if (job.progress.trials < figure.fewest) {
    fresh(true).textContent = `There is something to draw after ${figure.fewest} trials.`;
    return;
  }
  try {
    const { data, layout } = await get(`/jobs/${job.id}/figures/${figure.name}`);
    const target = fresh(false);
    if (layout.height) target.style.height = `${layout.height}px`;
    await plot(target, () => ({ data: data.map(themed), layout: structuredClone(layout) }), { label: figure.title });
  } catch (error) {
    fresh(true).textContent = error.message;
  }
}

/** A trace in the page's colours, where its name is one of the kinds of trials and it has one colour for all. */
function themed(trace) {
  const own = structuredClone(trace);
  const kind = Object.values(marks()).find(({ name }) => name === own.name);
  const color = kind?.color ?? { "best so far": colours().accent, "on the front": colours().accent }[own.name];
  if (!color) return own;
  if (own.line) own.line.color = color;
  if (typeof (own.marker?.color ?? "") === "string") own.marker = { ...own.marker, color };
  return own;
}

/** A new place for each figure: kinds of figures differ too much to be changed into each other. */
function fresh(empty) {
  const place = h(empty ? "div.chart.tall.empty" : "div.chart.tall", { id: "figure" });
  $("figure").replaceWith(place);
  return place;
}
