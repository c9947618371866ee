// A new job: the form, the same job as a file and as a request beside it, and what the server thinks of it.

import "./common.js";
import { address, call, get, page } from "./api.js";
import { $, asked, attempt, copying, fill, h, ready, say, sentence, show } from "./dom.js";
import { mainConstraint } from "./format.js";
import { guessRoles } from "./guess.js";
import {
  controlOf, drawTarget, formValues, labelled, mark, offerSpace, reachFirst, setForm, setRole, summarize,
} from "./new-form.js";
import { data, fetchCatalogue, fetchFiles, listAll, metricNamed, models, strategyWords, suitDemand } from "./new-catalogue.js";
import { check, incomplete } from "./new-preview.js";
import { drawModel, drawRole, listLabels, roleValues } from "./new-roles.js";
import { sending, watchFiles } from "./new-uploads.js";
import { command, jobFile, NONE, ROLES, specOf, valuesOf } from "./spec.js";
import { arrayOf, missing, rowsOf, wrongs } from "./spec-check.js";
import { yaml } from "./yaml.js";

const form = $("new");
const sent = [];
/** What the user has set, which no guess changes any more: names of roles, of their labels, and `name`. */
const touched = new Set();
const most = { parallel: Number(form.dataset.mostParallel) };
let rest = {};
let tried = false;
let refusal = { text: "", items: [] };

const nameOf = (id) => (models.get(id) ?? data.get(id))?.name ?? NONE;
const lengthOf = (id) => (data.has(id) ? rowsOf(data.get(id)) : null);
/** Without a name it is the default's. */
const named = (values) => ({ ...values, name: values.name.trim() || "job" });
const jobOf = (values) => specOf(named(values), rest, lengthOf);

/** What decides whether a job can start: all but its name. */
const checked = (spec) => JSON.stringify({ ...spec, name: undefined });

/** Ids of files mean nothing to people. */
const readable = (text) => [...data.values()].reduce((words, file) => words.replaceAll(`${file.id}.${file.format}`, file.name), text);

// Files

function arrived(kind, view) {
  if (kind === null) return update();
  (kind === "models" ? models : data).set(view.id, view);
  listAll();
  if (kind === "models") $("model").value = view.id;
  else {
    sent.push({ id: view.id, name: view.name, rows: rowsOf(view) });
    guess();
  }
  update();
}

function guess() {
  const files = [...new Map(sent.map((file) => [file.id, file])).values()];
  const guessed = guessRoles(files);
  for (const name of ROLES) if (!touched.has(name)) setRole(name, guessed[name]);
}

// What follows from a change

function update() {
  const model = models.get($("model").value);
  if (model && !touched.has("name")) $("name").value = jobName(model.name);
  drawModel(model);
  for (const name of ROLES) {
    const file = data.get($(`role-${name}`).value);
    listLabels(name, touched.has(`target-${name}`) ? $(`target-${name}`).value : null, model, file);
    drawRole(name, roleValues(name), model, file);
  }
  follow();
}

const jobName = (file) => file.replace(/\.onnx$/i, "").replace(/[^A-Za-z0-9._ -]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 100);

/** The texts beside the form, what is wrong, and the check. */
function follow() {
  const values = formValues();
  const validation = data.get(values.roles.validation.file);
  const hasLabels = validation ? Boolean(arrayOf(validation, values.roles.validation.target)) : null;
  drawTarget(values, hasLabels, metricNamed(values.metric)?.summary ?? "");
  const spec = jobOf(values);
  say("yaml", jobFile(spec, nameOf));
  say("curl", command(`${location.origin}${address("/jobs")}`, spec, document.body.dataset.key !== ""));
  const lacking = missing(values);
  const found = complaints(values);
  if (refusal.text !== checked(spec)) refusal = { text: "", items: [] };
  // Nobody is told of a number that is still being typed.
  const typing = document.activeElement?.matches("input") && !tried ? document.activeElement.id : "";
  mark([...found.filter(([id]) => id !== typing), ...(tried ? lackingWords(lacking) : []), ...refusal.items]);
  if (tried) summarize(TITLE, [...lackingWords(lacking), ...found, ...refusal.items]);
  if (lacking.length) incomplete(h("p.quiet", `Still needed: ${lacking.map(([, words]) => words).join(" and ")}.`));
  else if (found.length) incomplete(h("p", "Something is still wrong."), tried ? null : listed(found));
  else check(spec, (error) => answered(spec, error));
}

const complaints = (values) => wrongs(named(values), models.get(values.model), data, metricNamed(values.metric), most);
const listed = (found) => h("ul", found.map((one) => h("li", labelled(one))));
const TITLE = "The job cannot start yet";
const lackingWords = (lacking) => lacking.map(([id, words]) => [id, `Choose or send ${words}.`]);

function answered(spec, error) {
  if (!error) return;
  const items = itemsOf(error);
  fill("preview-body", h("p", "The server would refuse this job:"), listed(items));
  refusal = { text: checked(spec), items };
  mark(items);
}

function itemsOf(error) {
  const items = error.problem?.errors ?? [];
  if (!items.length) return [["", error.message]];
  return items.map((item) => [controlOf(item.field), readable(sentence(item))]);
}

// Submitting

let busy = false;
let attempted = { text: "", key: "" };

/** The same job keeps its key, so that pressing twice, or again after the connection broke, makes one. */
function keyFor(text) {
  if (attempted.text !== text) {
    const random = crypto.getRandomValues(new Uint8Array(16));
    attempted = { text, key: [...random].map((byte) => byte.toString(16).padStart(2, "0")).join("") };
  }
  return attempted.key;
}

const AGAIN = "The server does not answer. Press the button again when it does: the job is made once.";

async function submit(event) {
  event.preventDefault();
  if (busy) return;
  tried = true;
  const values = formValues();
  const found = [
    ...(sending() ? [["model-file", "Files are still being sent. Wait until they have arrived."]] : []),
    ...lackingWords(missing(values)), ...complaints(values),
  ];
  follow();
  summarize(TITLE, found);
  reachFirst(found);
  if (found.length) return;
  const spec = jobOf(values);
  const text = JSON.stringify(spec);
  starting(true);
  try {
    const headers = { "Content-Type": "application/json", "Idempotency-Key": keyFor(text) };
    const job = await call("POST", "/jobs", text, headers);
    location.assign(page(`/jobs/${job.id}`));
  } catch (error) {
    starting(false);
    const items = error.problem ? itemsOf(error) : [["", AGAIN]];
    refusal = { text: checked(spec), items };
    mark(items);
    summarize(error.problem?.title ?? "The job may not have started", items);
    reachFirst(items);
  }
}

function starting(now) {
  busy = now;
  $("submit").disabled = now;
  say("submit", now ? "Starting …" : "Start the job");
}

// A page that comes back from the browser's memory is ready for another job.
addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  attempted = { text: "", key: "" };
  starting(false);
});

// Events of the form

function touch(target) {
  const role = target.closest("[data-role]")?.dataset.role;
  if (target.id === "name") touched.add("name");
  if (!role) return;
  touched.add(role);
  if (target.id === `target-${role}`) touched.add(target.id);
  if (target.id === `role-${role}`) {
    touched.delete(`target-${role}`);
    setRole(role, { file: target.value });
  }
}

form.addEventListener("submit", submit);
form.addEventListener("input", (event) => {
  if (event.target.type === "file") return;
  touch(event.target);
  if (event.target.id === "demand") demandChanged();
  if (event.target.id === "metric" || event.target.id === "demand") suitDemand();
  if (event.target.id === "strategy") strategyWords();
  if (event.target.id === "model" || event.target.closest("[data-role]")) update();
  else follow();
});
form.addEventListener("focusout", () => setTimeout(follow));
copying($("copy-yaml"), () => $("yaml").textContent);
copying($("copy-curl"), () => $("curl").textContent);
$("rest-drop").addEventListener("click", () => {
  rest = {};
  document.querySelector("[name=space][value=custom]")?.closest("label").remove();
  if (!document.querySelector("[name=space]:checked")) document.querySelector("[name=space]").checked = true;
  show("rest", false);
  follow();
  $("submit").focus();
});

/** A percentage that may be lost is no percentage to be reached: the amount starts anew. */
function demandChanged() {
  $("max-drop").value = $("demand").value === "drop" ? "1" : "";
}

// Beginning

async function clone(id) {
  const job = await get(`/jobs/${encodeURIComponent(id)}`);
  await fetchFiles(job.spec);
  listAll();
  const found = valuesOf(job.spec, mainConstraint(job.spec));
  rest = found.rest;
  for (const name of ["name", ...ROLES, ...ROLES.map((role) => `target-${role}`)]) touched.add(name);
  if (rest.space) offerSpace("custom", rest.space.summary || "The space that the other job writes out.");
  setForm(found.values);
  suitDemand();
  for (const name of ROLES) {
    const { file, target } = found.values.roles[name];
    listLabels(name, target, models.get(job.spec.model), data.get(file));
  }
  show("rest", Object.keys(rest).length > 0);
  say("rest-yaml", yaml(rest));
  say("title", `New job, from ${job.name}`);
  const link = h("a", { href: page(`/jobs/${job.id}`) }, job.name);
  fill("lead", "Everything is as in ", link, ". Change what you like, and start it as a job of its own.");
}

async function begin() {
  watchFiles(arrived);
  say("submit-url", `--url ${location.origin}${page("")}`);
  await attempt(async () => {
    await fetchCatalogue();
    if (asked("from")) await clone(asked("from"));
    else if (models.has(asked("model"))) $("model").value = asked("model");
  });
  update();
  ready();
}

begin();
