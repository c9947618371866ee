// The server: machine, queue, limits, storage, what its runtime executes, and for admins the API keys.

import "./common.js";
import { get, page } from "./api.js";
import { $, attempt, fill, h, ready, say, show } from "./dom.js";
import { age, bytes, duration, number, percent, STATES, UNKNOWN, whole } from "./format.js";
import { keys } from "./system-keys.js";

const AGAIN_MS = 5000;
const MOST_SHOWN = 20;

async function load() {
  const [system, running] = await Promise.all([get("/system"), get(`/jobs?state=running&limit=${MOST_SHOWN}`)]);
  glance(system);
  machine(system);
  queue(system, running.items);
  storage(system.storage);
  limits(system.limits);
  return system;
}

function glance({ machine: m, queue: q, limits: l, storage: s }) {
  say("running", whole(q.jobs.running));
  say("running-more", `of at most ${whole(l.jobs)} at once on this server`);
  say("queued", whole(q.jobs.queued));
  say("queued-more", q.oldest_queued ? `the oldest since ${age(q.oldest_queued).replace(" ago", "")}` : "nothing waits");
  say("load", m.load === null ? UNKNOWN : number(m.load, 2));
  say("load-more", `processes on ${whole(m.cores)} cores, over a minute`);
  say("memory", percent(1 - m.memory_free_bytes / m.memory_bytes, 0));
  say("memory-more", `${bytes(m.memory_free_bytes)} of ${bytes(m.memory_bytes)} free`);
  say("disk", bytes(s.disk_free_bytes));
  say("disk-more", `of ${bytes(s.disk_bytes)} (${percent(s.disk_free_bytes / s.disk_bytes, 0)})`);
}

const facts = (target, pairs) => fill(target, pairs.flatMap(([name, text]) => [h("dt", name), h("dd", text)]));

const LIBRARIES = { python: "Python", onnxruntime: "onnxruntime", onnx: "onnx", numpy: "NumPy", optuna: "Optuna" };

function machine({ version, versions, machine: m }) {
  const installed = Object.entries(versions).map(([name, value]) => [LIBRARIES[name] ?? name, value]);
  facts("machine", [
    ["Accutune", version],
    ...installed,
    ["System", m.system],
    ["Processor", m.processor],
    ["Kind", m.kind],
    ["Features", m.features.join(", ") || "none that the runtime asks for"],
    ["Accelerates", `${m.accelerated.join(", ")} (activation/weight)`],
    ["Cores", whole(m.cores)],
    ["Memory", bytes(m.memory_bytes)],
  ]);
  show("warning", Boolean(m.warning));
  if (m.warning) say("warning", `${m.warning.charAt(0).toUpperCase()}${m.warning.slice(1)}.`);
}

function queue({ queue: q }, running) {
  facts("queue", Object.entries(q.jobs).map(([state, count]) => [STATES[state] ?? state, whole(count)]));
  fill("jobs", running.map((job) => {
    const { phase, done, total } = job.progress;
    const counted = total ? ` ${whole(done)} of ${whole(total)}` : "";
    return h("li", h("a", { href: page(`/jobs/${job.id}`) }, job.name), h("span.quiet", ` ${phase ?? "begins"}${counted}`));
  }));
  show("jobs-empty", running.length === 0);
}

function storage(s) {
  const kept = ({ files, size_bytes: size }) => `${bytes(size)} in ${whole(files)} file${files === 1 ? "" : "s"}`;
  const store = s.artifact_store === "folder" ? "a folder on this machine" : s.artifact_store;
  facts("storage", [
    ["Models", kept(s.models)],
    ["Data", kept(s.datasets)],
    ["Left by jobs", kept(s.artifacts)],
    ["Database", { sqlite: "SQLite", postgresql: "PostgreSQL" }[s.database]],
    ["Files lie in", store],
  ]);
}

function limits(l) {
  const gb = (value) => `${value.toLocaleString("en")}\u00a0GB`;
  const some = (value, words) => (value ? words(value) : "no limit");
  facts("limits", [
    ["Jobs at once", whole(l.jobs)],
    ["Trials at once, of one job", whole(l.parallel)],
    ["Memory of one trial", gb(l.trial_memory_gb)],
    ["Largest upload", gb(l.max_upload_gb)],
    ["Largest data, unpacked", gb(l.max_unpacked_gb)],
    ["Time to upload", duration(l.upload_seconds)],
    ["Time to look at a file", duration(l.inspect_seconds)],
    ["Requests per minute and key", some(l.requests_per_minute, whole)],
    ["Jobs waiting or running, of one key", some(l.max_active_jobs, whole)],
    ["Uploads kept, of one key", some(l.max_stored_gb, gb)],
  ]);
}

/** What never changes while the page is open. */
function able(target, kind) {
  say("able-runtime", `${target.runtime}, opsets ${target.opsets[0]} to ${target.opsets[1]}`);
  const row = (...cells) => h("tr", h("th", { scope: "row" }, cells[0]), cells.slice(1).map((text) => h("td", text)));
  const layers = Object.entries(target.layers);
  const kernels = (found) => found.join(", ") || "none: runs in float between conversions";
  const listed = (names) => names.join(", ");
  fill("able-layers", layers.map(([op, one]) => row(op, listed(one.activation), listed(one.weight), kernels(one.kernel), one.writes)));
  const operators = Object.entries(target.operators);
  facts("able-operators", [
    ["Operators without a weight", operators.map(([op, one]) => `${op} (${one.activation.join(", ")})`).join(", ")],
    ["Move numbers unchanged", target.transparent.join(", ")],
    ["Taken in by the layer before", target.absorbed.join(", ")],
  ]);
  fill("able-processors", target.processors.map((one) => {
    const name = one.name + (one.name === kind ? " (this machine)" : "");
    const line = row(name, listed(one.needs) || "anything else", listed(one.accelerated), one.warning ?? UNKNOWN);
    if (one.name === kind) line.setAttribute("aria-current", "true");
    return line;
  }));
  fill("able-forbidden", target.forbidden.map(forbidden).map((text) => h("li", text)));
}

function forbidden(rule) {
  const symmetry = rule.symmetric === null ? "" : rule.symmetric ? "symmetric " : "asymmetric ";
  const parts = [
    rule.activation && `${symmetry}${rule.activation} activations`,
    rule.weight && `${rule.activation ? "" : symmetry}${rule.weight} weights`,
    rule.granularity && `one scale per ${rule.granularity}`,
    rule.operators && `of ${rule.operators.join(", ")}`,
  ];
  return `${parts.filter(Boolean).join(", ")}: ${rule.why}.`;
}

async function start() {
  const [system, targets] = await Promise.all([load(), get("/capabilities")]);
  able(targets.find(({ runtime }) => runtime === system.runtime), system.machine.kind);
  if ($("keys")) await keys();
  setInterval(() => document.hidden || attempt(load), AGAIN_MS);
}

attempt(start).then(ready);
