// The controls of the form: what they say, how they are set, and what is wrong beside each of them.

import { $, fill, h, show } from "./dom.js";
import { allRoles } from "./new-roles.js";
import { isShare, percent } from "./format.js";
import { ROLES } from "./spec.js";

const PLAIN = [
  "model", "metric", "demand", "unit", "confidence", "objective", "second", "trials", "minutes", "parallel", "batch", "threads", "name",
  "strategy", "stop", "seed",
];

/** What the form says, as text. */
export function formValues() {
  return {
    ...Object.fromEntries(PLAIN.map((id) => [id, $(id).value])),
    amount: $("max-drop").value,
    early: $("early").checked,
    space: document.querySelector("[name=space]:checked")?.value ?? "int8",
    roles: allRoles(),
  };
}

/** Sets a select, also to what it did not offer. */
export function choose(id, value) {
  const select = $(id);
  if (value && ![...select.options].some((option) => option.value === value)) select.append(h("option", { value }, value));
  select.value = value;
}

/** Sets a role's file and rows; its labels follow from the file. */
export function setRole(name, { file = "", first = "", end = "" } = {}) {
  $(`role-${name}`).value = file;
  $(`first-${name}`).value = first;
  $(`end-${name}`).value = end;
}

export function setForm(values) {
  for (const id of PLAIN) {
    if ($(id).tagName === "SELECT") choose(id, values[id]);
    else $(id).value = values[id];
  }
  $("max-drop").value = values.amount;
  $("early").checked = values.early;
  for (const name of ROLES) setRole(name, values.roles[name]);
  const card = document.querySelector(`[name=space][value="${CSS.escape(values.space)}"]`) ?? offerSpace(values.space, "As in that job.");
  card.checked = true;
}

/** Adds a space to the cards. */
export function offerSpace(name, words) {
  const radio = h("input", { type: "radio", name: "space", value: name });
  $("space-wrong").before(h("label.choice", radio, " ", h("strong", name), " ", h("span.hint", words)));
  return radio;
}

/** Which unit goes with the metric and the kind of target, and what the target comes to. */
export function drawTarget(values, hasLabels, summary) {
  const share = isShare(values.metric) || values.metric === "auto";
  const drop = values.demand === "drop";
  show("unit", drop);
  show("unit-fixed", !drop);
  $("unit-fixed").textContent = share ? " %" : "";
  $("unit").options[1].textContent = share ? "percentage points" : "in its own unit";
  const auto = hasLabels === null ? "top1 where there are labels, and agreement with the original where there are none"
    : hasLabels ? "top1, since the validation data have labels" : "agreement with the original, since the validation data have no labels";
  $("metric-hint").textContent = values.metric === "auto" ? `Accuracy is ${auto}.` : `${values.metric}: ${summary}`;
  $("aim").textContent = aim(values, share);
}

const EXAMPLE = 0.92;

function aim(values, share) {
  const amount = Number(values.amount) / 100;
  if (!share || values.amount.trim() === "" || !(amount >= 0 && amount < 1)) return "";
  if (values.demand !== "drop") return `Whatever the original reaches, the new model needs ${percent(amount)}.`;
  const needed = values.unit === "relative" ? EXAMPLE * (1 - amount) : EXAMPLE - amount;
  return `For example: if the original reaches ${percent(EXAMPLE, 0)}, the new model needs ${percent(Math.max(0, needed))}.`;
}

const boxOf = (control) => $(control.getAttribute("aria-describedby").split(" ").find((id) => id.endsWith("-wrong")));
const controls = () => [...$("new").querySelectorAll("[aria-describedby*='-wrong']")];

/** Shows what is wrong beside the controls, [[id, sentence]], and clears the rest. */
export function mark(wrongs) {
  const texts = new Map();
  const ids = new Set(wrongs.map(([id]) => id));
  for (const [id, text] of wrongs) {
    const box = $(id) && boxOf($(id));
    if (box) texts.set(box, [...(texts.get(box) ?? []), text]);
  }
  for (const control of controls()) {
    if (ids.has(control.id)) control.setAttribute("aria-invalid", "true");
    else control.removeAttribute("aria-invalid");
    const box = boxOf(control);
    box.textContent = [...new Set(texts.get(box) ?? [])].join(" ");
    box.hidden = !texts.has(box);
  }
}

/** What is wrong, with the control's own name before it. */
export function labelled([id, text]) {
  const control = $(id);
  const label = control?.getAttribute("aria-label") ?? (control?.labels?.[0] ?? control?.querySelector?.("legend"))?.textContent;
  return label ? `${label}: ${text}` : text;
}

/** All that is wrong in one place, each leading to its control. */
export function summarize(title, wrongs) {
  const box = $("summary");
  show(box, wrongs.length > 0);
  if (!wrongs.length) return;
  const items = wrongs.map(([id, text]) =>
    h("li", $(id) ? h("a", { href: `#${id}`, onclick: (event) => lead(event, id) }, labelled([id, text])) : text));
  fill(box, h("p", h("strong", title)), h("ul", items));
}

/** The first control with which something is wrong gets the focus. */
export function reachFirst(wrongs) {
  const first = wrongs.find(([id]) => $(id));
  if (first) reach(first[0]);
}

function lead(event, id) {
  event.preventDefault();
  reach(id);
}

function reach(id) {
  const place = $(id);
  const closed = place.closest("details:not([open])");
  if (closed) closed.open = true;
  (place.matches("fieldset") ? place.querySelector("input") : place).focus();
}

// The names of the interface, longest first, and the controls that they speak of.
const FIELDS = [
  ...ROLES.flatMap((name) => [
    [`data.${name}.rows`, `first-${name}`], [`data.${name}.target`, `target-${name}`], [`data.${name}`, `role-${name}`],
  ]),
  ["budget.trials", "trials"], ["budget.seconds", "minutes"], ["budget.parallel", "parallel"], ["target.batch", "batch"],
  ["target.threads", "threads"], ["model", "model"], ["metrics", "metric"], ["constraints", "max-drop"], ["objectives", "objective"],
  ["space", "spaces"], ["strategy", "strategy"], ["seed", "seed"], ["name", "name"], ["data", "role-validation"],
];

/** The control that a field of the interface stands for; the field itself where there is none. */
export const controlOf = (field) => FIELDS.find(([name]) => field === name || field.startsWith(`${name}.`))?.[1] ?? field;
