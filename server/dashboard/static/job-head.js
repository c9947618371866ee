// The head of a job's page: state, verdict, phases, and the best at a glance.

import { page, settled } from "./api.js";
import { $, fill, h, say, show } from "./dom.js";
import { front } from "./job-front.js";
import { bytes, dropWords, mainConstraint, PHASES, quantity, span, STATES, times, whole } from "./format.js";
import { isStructure } from "./trial-words.js";

const TITLES = { met: "Target met", missed: "Target missed", undecided: "Neither certified nor refuted" };
const RESUMABLE = ["cancelled", "failed", "interrupted"];

/** Draws everything above the charts from what is known of the job. */
export function headline(seen) {
  const { job } = seen;
  badge(job);
  verdict(job);
  front(job);
  failure(job);
  phases(job, seen);
  // Of a job that ended before its first trial there is nothing to draw.
  show("charts", job.progress.trials > 0 || !settled(job.state));
  stats(job, seen.original, seen);
}

function badge(job) {
  const stopping = job.cancel_requested && job.state === "running";
  const state = job.result ? (gained(job.result) ? job.result.best.verdict : "undecided") : job.state;
  const words = job.result ? STATES[job.state] : stopping ? "stopping" : STATES[job.state];
  $("badge").dataset.state = state;
  say("badge", words);
  if ($("cancel")) show("cancel", !settled(job.state) && !stopping);
  if ($("resume")) show("resume", RESUMABLE.includes(job.state) && job.state !== "interrupted");
}

const HERE = { running: "now", failed: "broken" };

const gained = (result) => Object.keys(result.best.layers).length > 0;

function verdict(job) {
  const { result } = job;
  show("verdict", Boolean(result));
  if (!result) return;
  const { best } = result;
  say("verdict-title", gained(result) || best.verdict !== "met" ? TITLES[best.verdict] : "Nothing was gained");
  // The title says it already.
  say("verdict-summary", capital(result.summary.replace(/^(Target met|Undecided|Nothing was gained): /, "")));
  say("verdict-stop", `The search ended because ${result.stop_reason}.`);
  const tips = [...result.advice.map((tip) => `${capital(tip)}.`), ...result.blame.map((layer) => `Most to blame: ${layer}.`)];
  fill("verdict-advice", tips.map((tip) => h("li", tip)));
  show("verdict-advice", tips.length > 0);
  $("winner").href = page(`/jobs/${job.id}/trials/${best.trial}`);
  say("winner", `Trial ${best.trial}`);
  show("weights", Object.keys(best.layers).some(isStructure));
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function failure(job) {
  show("failure", Boolean(job.error) && job.state === "failed");
  if (!job.error) return;
  const way = job.progress.trials ? " Finished trials are kept: Resume goes on from them." : "";
  fill("failure", h("p", h("strong", `Failed at ${job.error.step}: `), `${job.error.message} (${job.error.type}).${way}`));
}

function phases(job, seen) {
  const now = job.state === "succeeded" ? PHASES.length : PHASES.indexOf(job.progress.phase);
  for (const item of $("phases").children) {
    const place = PHASES.indexOf(item.dataset.name);
    const state = place < now ? "done" : place === now ? HERE[job.state] ?? "" : "";
    item.dataset.phase = state;
    if (state === "now") item.setAttribute("aria-current", "step");
    else item.removeAttribute("aria-current");
    say(item.querySelector(".beside"), state === "now" ? counted(job.progress) : took(job, item.dataset.name));
  }
  say("left", leftWords(job, seen));
}

function counted({ phase, done, total }) {
  if (!total || phase === "export") return "";
  if (phase === "certify") return `finalist ${done}`;
  return `${whole(done)} of ${whole(total)}`;
}

function took(job, phase) {
  const seconds = job.result?.phases[phase];
  return seconds === undefined ? "" : span(seconds);
}

function leftWords(job, seen) {
  const { progress } = job;
  if (job.state === "queued") return "waiting for its turn";
  if (job.state !== "running") return job.state === "succeeded" ? `took ${span(job.seconds)}` : "";
  const since = (Date.now() - seen.heard) / 1000;
  if (progress.phase === "search" && progress.seconds_left !== null) {
    return `about ${span(Math.max(0, progress.seconds_left - since))} of searching left, then certifying`;
  }
  if (["certify", "export"].includes(progress.phase)) return "almost done";
  return `at most ${span(Math.max(0, job.spec.budget.seconds - job.seconds - since))} left`;
}

function stats(job, original, seen) {
  const constraint = mainConstraint(job.spec);
  const metric = job.progress.metrics?.[0] ?? constraint.metric;
  const words = dropWords(constraint, metric);
  const best = job.result?.best ?? job.progress.best;
  const { drop, speed } = job.result ? { drop: best.drop, speed: best.speedup } : best ? soFar(best) : {};
  const where = job.result ? "on the holdout" : "on validation, so far";
  say("stat-drop-name", `Accuracy lost (${metric === "auto" ? "first metric" : metric})`);
  say("stat-drop", best ? words.short(drop.value) : "–");
  say("stat-drop-more", best ? `${words.interval(drop.lower, drop.upper)} ${where}` : "no trial yet");
  say("stat-speed", best ? times(speed.value) : "–");
  say("stat-speed-more", speed?.lower ? `${times(speed.lower)} to ${times(speed.upper)}${latency(job)}` : "not timed yet");
  size(job, best, original);
  say("stat-trials", whole(job.progress.trials));
  say("stat-trials-more", `of at most ${whole(job.spec.budget.trials)}${feasibleWords(seen)}`);
  const since = job.state === "running" ? (Date.now() - seen.heard) / 1000 : 0;
  say("stat-time", span(job.seconds + since));
  say("stat-time-more", `of at most ${span(job.spec.budget.seconds)}`);
}

const soFar = (best) => ({
  drop: { value: best.drop, lower: best.drop_lower, upper: best.drop_upper },
  speed: { value: best.speedup, lower: best.speedup_lower, upper: best.speedup_upper },
});

function latency(job) {
  const found = job.result?.best.measurements.latency_ms;
  return found ? `, ${quantity("latency_ms", found.value)}` : "";
}

function size(job, best, original) {
  const value = job.result ? job.result.best.measurements.size_bytes?.value : best?.values.size_bytes;
  say("stat-size", value ? bytes(value) : "–");
  say("stat-size-more", value ? `${Math.round((100 * value) / original.size_bytes)}\u00a0% of ${bytes(original.size_bytes)}` : "");
}

function feasibleWords(seen) {
  const { trials, job } = seen;
  if (trials.size < job.progress.trials || !trials.size) return "";
  const within = [...trials.values()].filter((trial) => trial.feasible).length;
  return `, ${whole(within)} within the target`;
}
