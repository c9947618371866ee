// One job: what it is doing, what it has found, live until it is settled.

import "./common.js";
import { follow, get, post, settled, Unreachable } from "./api.js";
import { $, announce, attempt, h, ready, say, show, trouble } from "./dom.js";
import { mainConstraint, moment, targetSentence } from "./format.js";
import { Charts } from "./job-charts.js";
import { figures } from "./job-figures.js";
import { headline } from "./job-head.js";
import { TrialTable } from "./job-trials.js";

const id = document.body.dataset.job;
const MOST_DRAWN = 1000;
const MOST_EVENTS = 400;
const REDRAW_MS = 1000;
const REFRESH_MS = 2500;

const seen = { job: null, original: null, trials: new Map(), heard: Date.now(), last: null };

async function load() {
  const job = await get(`/jobs/${id}`);
  const [original, drawn] = await Promise.all([
    seen.original ?? modelOf(job),
    job.progress.trials ? get(`/jobs/${id}/trials/sample?most=${MOST_DRAWN}`) : { items: [] },
  ]);
  seen.job = job;
  seen.original = original;
  seen.heard = Date.now();
  for (const trial of drawn.items) seen.trials.set(trial.number, trial);
}

const modelOf = async (job) => get(`/models/${job.model}`);

const charts = new Charts(id);
const table = new TrialTable(id);

function draw() {
  headline(seen);
  charts.draw(seen);
}

/** Not more often than once in a while, but at last always. */
function paced(work, pause) {
  let waiting = 0;
  return () => {
    waiting ||= setTimeout(() => {
      waiting = 0;
      work();
    }, pause);
  };
}

const redraw = paced(draw, REDRAW_MS);
const renew = paced(() => table.load(seen).catch((error) => error instanceof Unreachable || trouble(error)), REFRESH_MS);

function heard(event) {
  const { job } = seen;
  write(event);
  if (event.seq <= job.events) return; // The job was read after that.
  job.events = event.seq;
  seen.heard = Date.now();
  const progress = { ...job.progress };
  if (event.kind === "state") {
    job.state = event.state;
    if (settled(event.state)) finish();
    else if (event.state === "running") job.error = null;
  } else {
    Object.assign(progress, { phase: event.phase, done: event.done, total: event.total, seconds_left: event.seconds_left });
    job.seconds = event.seconds;
  }
  if (event.kind === "trial") {
    seen.trials.set(event.trial.number, event.trial);
    progress.trials = event.done;
    progress.best = event.best;
    renew();
  }
  job.progress = progress;
  redraw();
}

/** The end of a job tells more than its last event: its result. */
async function finish() {
  await attempt(async () => {
    await load();
    draw();
    await table.load(seen);
  });
  announce($("verdict-title").textContent || `The job is ${seen.job.state}`);
}

function write(event) {
  seen.last = event.seq;
  const text = event.message || (event.kind === "state" && event.state);
  if (!text) return;
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 8;
  const time = h("time.quiet", { datetime: event.at, title: moment(event.at) }, new Date(event.at).toLocaleTimeString("en-GB"));
  log.append(h("li", time, ` ${event.kind === "state" ? "" : `${event.phase}: `}${text}`));
  while (log.children.length > MOST_EVENTS) log.firstChild.remove();
  if (atEnd) log.scrollTop = log.scrollHeight;
  show("log-empty", false);
}

function linked(up) {
  show("broken-link", !up);
  if (up && seen.stale) attempt(load).then(draw);
  seen.stale = !up;
}

let close = () => {};

function listen() {
  close();
  close = follow(id, seen.last ?? Math.max(0, seen.job.events - MOST_EVENTS), seen.job.events, heard, linked);
}

function button(name, path, words) {
  $(name)?.addEventListener("click", async (event) => {
    event.target.disabled = true;
    const done = await attempt(async () => {
      await post(`/jobs/${id}/${path}`);
      await load();
      draw();
      announce(words);
    });
    if (done && path === "resume") listen();
    event.target.disabled = false;
  });
}

async function start() {
  const loaded = await attempt(load);
  if (!loaded) return;
  const constraint = mainConstraint(seen.job.spec);
  say("goal", `Target: ${targetSentence(constraint, seen.job.progress.metrics?.[0] ?? constraint.metric)}.`);
  draw();
  await attempt(() => table.load(seen));
  figures(seen);
  button("cancel", "cancel", "The job stops");
  button("resume", "resume", "The job goes on");
  listen();
  setInterval(() => !document.hidden && seen.job.state === "running" && headline(seen), 1000);
  ready();
}

start();
