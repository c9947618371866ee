// What is known of the chosen model and of the data of each role.

import { $, fill, h, say, show } from "./dom.js";
import { age, bytes, count, UNKNOWN, whole } from "./format.js";
import { ROLES } from "./spec.js";
import { arrayOf, labelsOf, leftover, misfit, rowsOf, sizes } from "./spec-check.js";

/** Fills a select with files, the newest first, and keeps what is chosen. */
export function listFiles(select, files, describe) {
  const chosen = select.value;
  const sorted = [...files.values()].sort((one, other) => (one.created < other.created ? 1 : -1));
  const words = (file) => `${file.name} · ${describe(file)} · ${age(file.created)}`;
  fill(select, select.options[0], sorted.map((file) => h("option", { value: file.id }, words(file))));
  select.value = files.has(chosen) ? chosen : "";
}

export const aboutModel = (model) => bytes(model.size_bytes);
export const aboutData = (data) => `${whole(rowsOf(data))} rows`;

const tensor = ({ name, dtype, shape }) => h("span", h("code", name), ` ${dtype}, ${sizes(shape)}`);
const listed = (tensors) => tensors.flatMap((one, index) => [index ? h("br") : null, tensor(one)]);

/** What was found in the model. */
export function drawModel(model) {
  if (!model) return;
  const facts = [
    ["Inputs", listed(model.inputs)],
    ["Outputs", listed(model.outputs)],
    ["Layers", `${whole(model.layer_count)}, of which ${whole(model.quantizable_count)} can be compressed`],
    ["Parameters", count(model.parameters)],
    ["MACs for a row", model.macs === null ? UNKNOWN : count(model.macs)],
    ["Opset", String(model.opset)],
  ];
  fill("model-facts", facts.flatMap(([name, value]) => [h("dt", name), h("dd", value)]));
}

/** The rows of one role, its arrays and what becomes of each. */
export function drawRole(name, values, model, data) {
  const words = $(`${name}-words`);
  show(document.querySelector(`[data-role="${name}"] .details`), Boolean(data));
  if (!data) return say(words, words.dataset.leftOut);
  const arrays = data.arrays.map((array) => h("span.array", tensor(array), purpose(array, values, model, data)));
  fill(words, `${whole(rowsOf(data))} rows, each with `, arrays.flatMap((array, index) => (index ? [" ", array] : [array])));
}

function purpose(array, values, model, data) {
  if (array === arrayOf(data, values.target)) return h("span.purpose", { "data-fit": true }, "labels");
  if (!model) return null;
  if (!model.inputs.some((input) => input.name === array.name)) return h("span.purpose", "not used");
  if (misfit(model, data)) return h("span.purpose", "does not fit the model");
  return h("span.purpose", { "data-fit": true }, "fits the model’s input");
}

/** Offers the arrays that can hold labels; the choice of before stays where it is possible. */
export function listLabels(name, chosen, model, data) {
  const select = $(`target-${name}`);
  if (!data) return fill(select);
  const names = leftover(model, data).map((array) => array.name).filter((array) => array !== "labels");
  const first = arrayOf(data, "labels") ? "labels" : "none";
  fill(select, h("option", { value: "labels" }, first), names.map((array) => h("option", { value: array }, array)));
  const wanted = chosen ?? labelsOf(model, data);
  select.value = [...select.options].some((option) => option.value === wanted) ? wanted : "labels";
}

/** What the form says of a role. */
export function roleValues(name) {
  const [file, first, end, target] = ["role", "first", "end", "target"].map((part) => $(`${part}-${name}`).value);
  return { file, first, end, target: target || "labels" };
}

export const allRoles = () => Object.fromEntries(ROLES.map((name) => [name, roleValues(name)]));
