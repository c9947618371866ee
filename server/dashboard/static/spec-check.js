// What can be known to be wrong with a new job before the server is asked: how the data fit the model, and what numbers may be.

import { inPercent, ROLES } from "./spec.js";

const CLASSES = /^(auto|top\d+|macro_f1|auroc)$/;
const YEAR = 366 * 1440;
const NAME = /^[A-Za-z0-9][A-Za-z0-9._ -]{0,99}$/;

/** Which types a type takes without loss. */
const TAKES = {
  bool: ["bool"], uint8: ["bool", "uint8"], int8: ["bool", "int8"],
  uint16: ["bool", "uint8", "uint16"], int16: ["bool", "uint8", "int8", "int16"],
  uint32: ["bool", "uint8", "uint16", "uint32"], int32: ["bool", "uint8", "int8", "uint16", "int16", "int32"],
  uint64: ["bool", "uint8", "uint16", "uint32", "uint64"],
  int64: ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "int64"],
  float16: ["bool", "uint8", "int8", "float16"], float32: ["bool", "uint8", "int8", "uint16", "int16", "float16", "float32"],
  float64: ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"],
};

export const arrayOf = (data, name) => data.arrays.find((array) => array.name === name);
export const rowsOf = (data) => data.arrays[0]?.shape[0] ?? 0;
/** The sizes of one row, as people write them. */
export const sizes = (shape) => shape.slice(1).map((size) => size ?? "any").join(" × ") || "one number";

/** The arrays that are no input of the model: labels can be among them. */
export const leftover = (model, data) => data.arrays.filter((array) => !model?.inputs.some((input) => input.name === array.name));

/** The array that holds the labels, if any: the one called so, or the only one of the others that looks like it. */
export function labelsOf(model, data) {
  if (!model || arrayOf(data, "labels")) return "labels";
  const likely = leftover(model, data).filter((array) => array.shape.length === 1 && /int/.test(array.dtype));
  return likely.length === 1 ? likely[0].name : "labels";
}

const product = (shape) => shape.reduce((all, size) => all * size, 1);

function fits(input, array, format) {
  const [wanted, row] = [input.shape.slice(1), array.shape.slice(1)];
  if (format === "parquet" && row.length === 1 && !wanted.includes(null) && row[0] === product(wanted)) return true;
  return wanted.length === row.length && wanted.every((size, index) => size === null || size === row[index]);
}

/** What keeps a data file from feeding a model; null where nothing does. */
export function misfit(model, data) {
  for (const input of model.inputs) {
    const array = arrayOf(data, input.name);
    if (!array) {
      const held = data.arrays.map((one) => one.name).join(", ");
      return `${data.name} has no array “${input.name}” for the model’s input. It holds: ${held}. Save it under the input’s name.`;
    }
    if (!fits(input, array, data.format)) {
      return `The input “${input.name}” expects rows of ${sizes(input.shape)}, and ${data.name} has ${sizes(array.shape)}. ` +
        "Save the rows in that shape.";
    }
    if (TAKES[input.dtype] && !TAKES[input.dtype].includes(array.dtype)) {
      return `The input “${input.name}” takes ${input.dtype}, and ${data.name} has ${array.dtype}, which does not convert ` +
        `without loss. Save it with array.astype("${input.dtype}").`;
    }
  }
  return null;
}

const blank = (text) => text.trim() === "";
const isWhole = (text, low, high) => /^\d+$/.test(text.trim()) && Number(text) >= low && Number(text) <= high;

function* numbers(values, most) {
  const whole = [
    ["trials", 1, 100000], ["batch", 1, 65536], ["threads", 1, 1024], ["parallel", 1, most.parallel], ["seed", 0, 2 ** 32 - 1],
  ];
  for (const [field, low, high] of whole) {
    if (!isWhole(values[field], low, high)) yield [field, `Give a whole number from ${low} to ${high.toLocaleString("en")}.`];
  }
  const minutes = Number(values.minutes);
  if (blank(values.minutes) || !(minutes > 0 && minutes <= YEAR)) yield ["minutes", "Give a number above 0 and at most 527,040 (a year)."];
  if (!NAME.test(values.name.trim())) {
    yield ["name", "Give a name of at most 100 letters, digits, spaces, points, hyphens or underscores; it begins with a letter or digit."];
  }
  if (values.second && values.second === values.objective) yield ["second", "Choose another objective than the first, or none."];
}

function* target(values, metric) {
  const amount = Number(values.amount);
  const field = "max-drop";
  if (blank(values.amount) || !Number.isFinite(amount)) yield [field, "Give a number."];
  else if (values.demand === "drop" && amount < 0) yield [field, "Give 0 or more: a drop always means worse."];
  else if (values.demand === "drop" && values.unit === "relative" && amount >= 100) yield [field, "Give less than 100 % of the value."];
  else if (values.demand !== "drop") yield* limit(values, amount / (inPercent(values) ? 100 : 1), metric, field);
}

const known = (value) => typeof value === "number";

function* limit(values, bound, metric, field) {
  const lower = metric?.direction === "lower";
  if (lower && values.demand === "least") yield [field, `${values.metric} is better the lower it is. Choose “must be at most”.`];
  else if (!lower && values.demand === "most") yield [field, `${values.metric} is better the higher it is. Choose “must be at least”.`];
  else if (inPercent(values) && (bound < 0 || bound > 1)) yield [field, "Give a percentage from 0 to 100."];
  else if (known(metric?.highest) && bound > metric.highest) yield [field, `It can be ${metric.highest} at most.`];
  else if (known(metric?.lowest) && bound < metric.lowest) yield [field, `It is never below ${metric.lowest}.`];
}

/** The rows that a role reads, [first, end); null where the range is wrong. */
function rangeOf(role, data) {
  const length = rowsOf(data);
  const first = blank(role.first) ? 0 : Number(role.first);
  const end = blank(role.end) ? length : Number(role.end);
  const right = [role.first, role.end].every((text) => blank(text) || /^\d+$/.test(text.trim()));
  return right && first < end && end <= length ? [first, end] : null;
}

function* roleItself(name, role, model, data) {
  const reason = model && misfit(model, data);
  if (reason) yield [`role-${name}`, reason];
  if (!rangeOf(role, data)) yield [`first-${name}`, `Give rows from 0 to ${rowsOf(data).toLocaleString("en")}, the first below the end.`];
  const lengths = new Set([...(model?.inputs ?? []).map((input) => arrayOf(data, input.name)), arrayOf(data, role.target)]
    .filter(Boolean).map((array) => array.shape[0]));
  if (lengths.size > 1) yield [`role-${name}`, `The arrays in ${data.name} differ in their number of rows. Save one entry per row.`];
}

function* labels(values, metric, validation, holdout) {
  const found = arrayOf(validation, values.roles.validation.target);
  if (!found && metric?.needs_labels) {
    yield ["metric", `${values.metric} needs labels, and validation has none. Choose the array with the labels, or the metric agreement.`];
  }
  if (found && found.shape.length > 1 && CLASSES.test(values.metric)) {
    const shape = sizes(found.shape);
    yield ["target-validation", `Labels are one class number per row, and “${found.name}” has ${shape}. Save argmax over the classes.`];
  }
  if (found && holdout && !arrayOf(holdout, values.roles.holdout.target)) {
    yield ["role-holdout", `The holdout needs labels where validation has them, and ${holdout.name} has none. Add them.`];
  }
}

function* shared(values, files) {
  const roles = ROLES.filter((name) => files.get(values.roles[name].file));
  for (const [index, one] of roles.entries()) {
    for (const other of roles.slice(index + 1)) {
      if ([one, other].every((name) => name === "calibration" || name === "training")) continue;
      const [a, b] = [values.roles[one], values.roles[other]];
      if (a.file !== b.file) continue;
      const [left, right] = [rangeOf(a, files.get(a.file)), rangeOf(b, files.get(b.file))];
      if (left && right && Math.max(left[0], right[0]) < Math.min(left[1], right[1])) {
        const out = other === "holdout" ? ", or leave it out" : "";
        yield [`role-${other}`, `Rows of ${files.get(a.file).name} are in ${one} too. Give ${other} other rows${out}.`];
      }
    }
  }
}

/** What is not there yet, in words: [field, words]. */
export function missing(values) {
  return [
    ...(values.model ? [] : [["model", "a model"]]),
    ...(values.roles.validation.file ? [] : [["role-validation", "validation data"]]),
  ];
}

/** Everything that is wrong: [field, sentence]. files: data by id; metric: what is known of it; most: limits of the server. */
export function wrongs(values, model, files, metric, most) {
  const [validation, holdout] = ["validation", "holdout"].map((name) => files.get(values.roles[name].file));
  const roles = ROLES.map((name) => [name, values.roles[name]]).filter(([, role]) => files.has(role.file));
  return [
    ...(model?.quantizable_count === 0 ? [["model", `${model.name} has no layer that can be compressed.`]] : []),
    ...roles.flatMap(([name, role]) => [...roleItself(name, role, model, files.get(role.file))]),
    ...shared(values, files),
    ...target(values, metric),
    ...(validation ? labels(values, metric, validation, holdout) : []),
    ...numbers(values, most),
  ];
}
