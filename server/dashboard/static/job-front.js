// The certified models of a job with several objectives, none of which another beats in all of them.

import { address, page } from "./api.js";
import { fill, h, show } from "./dom.js";
import { dropWords, mainConstraint, percent, times } from "./format.js";

/** Fills the table of the front; it is there only where there is more than one model to choose from. */
export function front({ id, spec, result }) {
  const models = result?.pareto ?? [];
  show("front", models.length > 1);
  if (models.length < 2) return;
  const constraint = mainConstraint(spec);
  fill("front-rows", models.map((model) => row(id, model, dropWords(constraint, constraint.metric), result.best.trial)));
}

function row(id, model, words, best) {
  const beside = (text) => h("span.beside", text);
  const file = model.file === "best.onnx" ? `/jobs/${id}/best` : `/jobs/${id}/artifacts/pareto/${model.file}`;
  return h(
    "tr",
    { "aria-current": model.trial === best ? "true" : null },
    h("th", { scope: "row" }, h("a", { href: page(`/jobs/${id}/trials/${model.trial}`) }, `Trial ${model.trial}`)),
    h("td.n", words.short(model.drop.value), beside(words.interval(model.drop.lower, model.drop.upper))),
    h("td.n", times(model.speedup.value), beside(`${times(model.speedup.lower)} to ${times(model.speedup.upper)}`)),
    h("td.n", percent(model.size_ratio, 0)),
    h("td", h("a", { href: address(file) }, "Download")),
  );
}
