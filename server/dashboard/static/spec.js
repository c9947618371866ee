// A job as the form holds it, as the interface takes it, and as a job file or a command has it. Nothing here knows the page.

import { isShare } from "./format.js";
import { yaml } from "./yaml.js";

export const ROLES = ["validation", "calibration", "training", "holdout"];

/** What stands for a file that is not chosen yet. */
export const NONE = "…";

const DEFAULTS = {
  name: "job", metrics: ["auto"], objectives: ["latency"], space: "int8", strategy: "auto", stop: "budget", early_stopping: true, seed: 0,
};
const BUDGET = { trials: 60, seconds: 900, parallel: 1, threads: null, trial_seconds: 600, memory_gb: null };
const TARGET = { runtime: "onnxruntime-cpu", batch: 1, threads: 1 };

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
const without = (mapping, defaults) =>
  Object.fromEntries(Object.entries(mapping).filter(([name, value]) => value !== undefined && !same(value, defaults[name])));
/** 1.1 per cent is 0.011, not 0.011000000000000001. */
const exact = (value) => Number(value.toPrecision(12));
const numeral = (text) => (text.trim() === "" ? NaN : Number(text));

/** Whether the amount of a target is written in per cent: of the original's value, or because the metric is a share. */
export const inPercent = ({ demand, unit, metric }) => (demand === "drop" && unit === "relative") || isShare(metric) || metric === "auto";

function constraintOf(values) {
  const amount = exact(numeral(values.amount) / (inPercent(values) ? 100 : 1));
  const key = { drop: "max_drop", least: "at_least", most: "at_most" }[values.demand];
  return {
    metric: values.metric,
    [key]: amount,
    ...(values.demand === "drop" && values.unit === "relative" ? { relative: true } : {}),
    ...(values.confidence ? { confidence: Number(values.confidence) } : {}),
  };
}

function refOf({ file, first, end, target }, length) {
  const from = first.trim() === "" ? 0 : Number(first);
  const to = end.trim() === "" ? length : Number(end);
  const whole = first.trim() === "" && end.trim() === "";
  return { file: file || NONE, ...(whole ? {} : { rows: [from, to] }), ...(target === "labels" ? {} : { target }) };
}

/**
 * The job that the form's values ask for, without what has a default. rest: what a job may say and the form does not show.
 * lengthOf(id): the rows of a data file, for a range whose end is left open.
 */
export function specOf(values, rest, lengthOf) {
  const roles = ROLES.filter((role) => values.roles[role].file || role === "validation");
  const data = Object.fromEntries(roles.map((role) => [role, refOf(values.roles[role], lengthOf(values.roles[role].file))]));
  const seconds = exact(60 * numeral(values.minutes));
  const budget = without({ trials: Number(values.trials), seconds, parallel: Number(values.parallel), ...rest.budget }, BUDGET);
  const target = without({ ...rest.target, batch: Number(values.batch), threads: Number(values.threads) }, TARGET);
  const objectives = [...new Set([values.objective, values.second, ...(rest.objectives ?? [])])].filter(Boolean);
  const named = without({ name: values.name.trim(), metrics: rest.metrics, objectives }, DEFAULTS);
  const others = without(
    { space: values.space === "custom" ? rest.space : values.space, strategy: values.strategy, stop: values.stop,
      early_stopping: values.early, seed: Number(values.seed) }, DEFAULTS);
  const { name, metrics, objectives: aims } = named;
  return JSON.parse(JSON.stringify({
    name, model: values.model || NONE, data, metrics, constraints: [constraintOf(values), ...(rest.constraints ?? [])], objectives: aims,
    space: others.space, strategy: others.strategy, budget: some(budget), stop: others.stop, early_stopping: others.early_stopping,
    target: some(target), seed: others.seed,
  }));
}

const some = (mapping) => (Object.keys(mapping).length ? mapping : undefined);

/** A file's name as a path beside the job file. A tilde would be taken for somebody's home. */
const pathOf = (name) => (name.startsWith("~") ? `./${name}` : name);

/** The job file, with the files' own names. nameOf(id): what a file was called by who sent it. */
export function jobFile(spec, nameOf) {
  const data = Object.fromEntries(Object.entries(spec.data).map(([role, ref]) => [role, { ...ref, file: pathOf(nameOf(ref.file)) }]));
  const names = [...new Set(Object.values(spec.data).map((ref) => ref.file))].map(nameOf);
  const twice = names.find((name, index) => names.indexOf(name) < index);
  const warning = twice ? `# Different files are called ${twice}: write where each of them lies.\n` : "";
  return warning + yaml({ ...spec, model: pathOf(nameOf(spec.model)), data });
}

/** JSON on one line, with the spaces that people put. */
function line(value) {
  if (Array.isArray(value)) return `[${value.map(line).join(", ")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([key, inner]) => `${JSON.stringify(key)}: ${line(inner)}`).join(", ")}}`;
}

/** JSON with a line for each entry of the top and of the data. */
function readable(spec) {
  const roles = Object.entries(spec.data).map(([role, ref]) => `    "${role}": ${line(ref)}`).join(",\n");
  const entries = Object.entries(spec).map(([key, value]) => `  "${key}": ${key === "data" ? `{\n${roles}\n  }` : line(value)}`);
  return `{\n${entries.join(",\n")}\n}`;
}

/** The same job as a command for a shell. signed: whether the server asks for keys. */
export function command(url, spec, signed) {
  const head = [`curl -fsS ${url}`, "-H 'Content-Type: application/json'", ...(signed ? ['-H "Authorization: Bearer $ACCUTUNE_KEY"'] : [])];
  return `${[...head, `-d '${readable(spec).replaceAll("'", "'\\''")}'`].join(" \\\n  ")}\n`;
}

/** The form's values and the rest of a job that is there already, with all defaults written out. */
export function valuesOf(spec, main) {
  const [objective, second, ...objectives] = spec.objectives;
  const share = isShare(main.metric) || main.metric === "auto";
  const demand = ["drop", "least", "most"][["max_drop", "at_least", "at_most"].findIndex((key) => typeof main[key] === "number")];
  const bound = main.max_drop ?? main.at_least ?? main.at_most;
  const values = {
    model: spec.model, roles: Object.fromEntries(ROLES.map((role) => [role, roleOf(spec.data[role])])),
    metric: main.metric, demand, amount: String(exact(bound * (main.relative || share ? 100 : 1))),
    unit: main.relative ? "relative" : "points", confidence: main.confidence ? String(main.confidence) : "",
    objective, second: second ?? "", space: typeof spec.space === "string" ? spec.space : "custom",
    trials: String(spec.budget.trials), minutes: String(exact(spec.budget.seconds / 60)), parallel: String(spec.budget.parallel),
    batch: String(spec.target.batch), threads: String(spec.target.threads), name: spec.name,
    strategy: spec.strategy, stop: spec.stop, early: spec.early_stopping, seed: String(spec.seed),
  };
  return { values, rest: restOf(spec, main, objectives) };
}

function roleOf(ref) {
  const [first, end] = (ref?.rows ?? ["", ""]).map(String);
  return { file: ref?.file ?? "", first, end, target: ref?.target ?? "labels" };
}

function restOf(spec, main, objectives) {
  const { trials, seconds, parallel, ...budget } = spec.budget;
  const others = spec.constraints.filter((one) => one !== main).map((one) => without(one, { relative: false, ...NOTHING }));
  const rest = {
    metrics: same(spec.metrics, DEFAULTS.metrics) ? undefined : spec.metrics,
    constraints: others.length ? others : undefined,
    objectives: objectives.length ? objectives : undefined,
    space: typeof spec.space === "string" ? undefined : spec.space,
    budget: some(without(budget, BUDGET)),
    target: some(without({ runtime: spec.target.runtime }, TARGET)),
  };
  return JSON.parse(JSON.stringify(rest));
}

const NOTHING = { max_drop: null, at_least: null, at_most: null, confidence: null };
