// The table of measurements: a row each, the original first, the best of the trials marked by a word and by weight.

import { h } from "./dom.js";
import { allowed, bytes, count, dropWords, duration, isShare, mainConstraint, percent, quantity, times, whole } from "./format.js";
import { mainVerdict } from "./trial-words.js";

const LOWER = 1;
const HIGHER = -1;

/** The rows of the table, from the job, its model, the trials and what their rows say. */
export function figureRows({ job, model, trials, compared }) {
  const constraint = mainConstraint(job.spec);
  const verdicts = trials.map((trial) => mainVerdict(trial));
  const metric = verdicts.find(Boolean)?.metric ?? constraint.metric;
  const words = dropWords(constraint, metric);
  const limit = allowed(constraint);
  const certified = job.result?.baseline.measurements.latency_ms?.value;
  const latency = { value: certified, beside: certified ? "when certified" : "" };
  const measured = (name) => trials.map(({ measurements }) => ({ value: measurements[name]?.value }));
  const lost = verdicts.map((one) => bounded(one && { ...one, value: one.drop }, words.interval));
  const speed = trials.map(({ speedup }) => bounded(speedup, (low, high) => `${times(low)} to ${times(high)}`));
  const seconds = trials.map(({ timings }) => ({ value: Object.values(timings).reduce((sum, one) => sum + one, 0) || undefined }));
  const title = `${metric === "auto" ? "Accuracy" : metric} lost`;
  return [
    row(title, words.short, { value: 0 }, lost, LOWER, limit === null ? "" : `allowed ${words.short(limit)}`),
    ...onSharedRows(compared, trials),
    row("Speed-up", times, { value: 1 }, speed, HIGHER),
    row("Latency", (value) => quantity("latency_ms", value), latency, measured("latency_ms"), LOWER),
    row("Size", bytes, { value: model.size_bytes }, measured("size_bytes"), LOWER),
    row("MACs", count, { value: model.macs }, measured("macs"), LOWER),
    row("Rows scored", whole, {}, verdicts.map((one) => ({ value: one?.samples }))),
    row("Time the trial took", duration, {}, seconds, LOWER),
  ];
}

const bounded = (found, interval) => (found ? { value: found.value, beside: interval(found.lower, found.upper) } : {});

/** Of the rows that all trials were scored on, the share that is right: the one figure that is the same rows for all. */
function onSharedRows(compared, trials) {
  const seen = compared?.classes.reduce((sum, one) => sum + one.rows, 0);
  if (!seen || seen !== compared.rows || !isShare(compared.metric)) return [];
  const share = (of) => compared.classes.reduce((sum, one) => sum + one.rows * of(one), 0) / seen;
  const cells = trials.map(({ number }) => {
    const place = compared.trials.indexOf(number);
    return place < 0 ? {} : { value: share((one) => one.trials[place]) };
  });
  const title = `${compared.metric} on ${whole(seen)} rows that all have scored`;
  return [row(title, percent, { value: share((one) => one.original) }, cells, HIGHER)];
}

function row(title, words, original, cells, better = 0, beside = "") {
  const best = bestOf(cells.map(({ value }) => value), words, better);
  return h(
    "tr",
    h("th", { scope: "row" }, title, beside ? h("span.beside", beside) : null),
    cell(words, original, false),
    cells.map((one) => cell(words, one, one.value !== undefined && words(one.value) === best)),
  );
}

/** How the best value is written; null where there is none or all look alike. */
function bestOf(values, words, better) {
  const known = values.filter((value) => Number.isFinite(value));
  if (!better || known.length < 2) return null;
  const best = known.reduce((one, other) => (better * (other - one) < 0 ? other : one));
  return known.every((value) => words(value) === words(best)) ? null : words(best);
}

function cell(words, { value, beside }, best) {
  const text = words(value);
  return h("td.n", best ? [h("strong", text), h("span.best", " best")] : text, beside ? h("span.beside", beside) : null);
}
