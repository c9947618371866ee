// The list of jobs: filtered by the server, kept in the address, refreshed while somebody looks.

import "./common.js";
import { get, page, query } from "./api.js";
import { $, asked, attempt, fill, h, ready, remember, say, show } from "./dom.js";
import { age, bytes, duration, moment, span, STATES, times, UNKNOWN, whole } from "./format.js";
import { dropOf, goalWords } from "./goal.js";

const REFRESH_MS = 3000;
const PAGE = 50;

const filters = $("filters");
let pages = 1;
let asking = 0;

function chosen() {
  const [sort, order] = filters.order.value.split(" ");
  return { search: filters.search.value.trim(), state: filters.state.value, sort, order };
}

function restore() {
  filters.search.value = asked("search") ?? "";
  filters.state.value = asked("state") ?? "";
  const order = `${asked("sort") ?? "created"} ${asked("order") ?? "desc"}`;
  filters.order.value = [...filters.order.options].some((option) => option.value === order) ? order : "created desc";
}

/** All rows that are shown so far, and whether there are more. An answer that a later question has overtaken is dropped. */
async function load() {
  const mine = ++asking;
  const wanted = chosen();
  const items = [];
  let next;
  for (let shown = 0; shown < pages && next !== null; shown += 1) {
    const found = await get(`/jobs${query({ ...wanted, limit: PAGE, cursor: next })}`);
    items.push(...found.items);
    next = found.next;
  }
  if (mine === asking) draw(items, next !== null, Boolean(wanted.search || wanted.state));
}

const drawn = new Map();

function draw(items, more, filtered) {
  const rows = items.map((job) => {
    const text = JSON.stringify(job) + (job.state === "running" ? "" : age(job.created));
    if (drawn.get(job.id)?.text !== text) drawn.set(job.id, { text, row: rowOf(job) });
    return drawn.get(job.id).row;
  });
  const body = $("rows");
  // Rows that did not change stay where they are: neither focus nor a selection of text is lost.
  if (rows.length !== body.children.length || rows.some((row, index) => row !== body.children[index])) {
    const focused = document.activeElement?.closest?.("tr")?.dataset.job;
    fill(body, ...rows);
    if (focused) drawn.get(focused)?.row.querySelector("a")?.focus();
  }
  show("list", items.length > 0);
  show("none", items.length === 0 && !filtered);
  show("nothing", items.length === 0 && filtered);
  show("more", more);
  say("counted", items.length ? `${items.length}${more ? " or more" : ""} ${items.length === 1 ? "job" : "jobs"}` : "");
  ready();
}

function rowOf(job) {
  const best = bestOf(job);
  const link = h("a", { href: page(`/jobs/${job.id}`) }, job.name);
  const cell = (label, kind, ...content) => h(kind, { "data-label": label }, h("div", ...content));
  return h(
    "tr",
    { "data-job": job.id },
    h("th", { scope: "row" }, link, h("span.beside", goalWords(job.goal))),
    cell("State", "td", stateOf(job)),
    cell("Accuracy lost", "td.n", best.drop, best.dropSpan && h("span.beside", best.dropSpan)),
    cell("Speed-up", "td.n", best.speed, best.speedSpan && h("span.beside", best.speedSpan)),
    cell("Size", "td.n", best.size),
    cell("Progress", "td", progressOf(job)),
    cell("Model", "td", job.model_name || UNKNOWN),
    cell("Submitted", "td.nowrap", h("time", { datetime: job.created, title: moment(job.created) }, age(job.created))),
  );
}

function stateOf(job) {
  if (job.outcome && unchanged(job.outcome)) return h("span.badge", { "data-state": "undecided" }, "nothing gained");
  if (job.outcome) return h("span.badge", { "data-state": job.outcome.verdict }, WORDS[job.outcome.verdict]);
  return h("span.badge", { "data-state": job.state }, job.cancel_requested && job.state === "running" ? "stopping" : STATES[job.state]);
}

const WORDS = { met: "target met", missed: "target missed", undecided: "undecided" };

/** The original itself was returned. */
const unchanged = (outcome) => outcome.verdict === "met" && outcome.size_ratio === 1 && outcome.drop_upper === 0;

/** What is best: as certified where the job is finished, as the search sees it before that. */
function bestOf(job) {
  const found = job.outcome ?? job.progress.best;
  if (!found) return { drop: UNKNOWN, speed: UNKNOWN, size: UNKNOWN };
  const words = dropOf(job.goal);
  const ratio = job.outcome ? job.outcome.size_ratio : null;
  const sizeBytes = job.progress.best?.values.size_bytes;
  return {
    drop: words.short(found.drop),
    dropSpan: words.interval(found.drop_lower, found.drop_upper),
    speed: times(found.speedup),
    speedSpan: found.speedup_lower ? `${times(found.speedup_lower)} to ${times(found.speedup_upper)}` : null,
    size: ratio ? `${(100 * ratio).toFixed(0)}\u00a0%` : bytes(sizeBytes),
  };
}

function progressOf(job) {
  const { phase, done, total, trials, seconds_left: left } = job.progress;
  if (job.error) return [h("span", `at ${job.error.step}`), h("span.beside.notes", shortened(job.error.message))];
  if (job.state === "running") {
    const counted = phase === "search" ? `${whole(done)} of at most ${whole(total)} trials` : (phase ?? "starting");
    const share = phase === "search" && total ? Math.min(1, done / total) : 0;
    const bar = h("span.meter", { "aria-hidden": "true" }, h("span", { style: { "--share": `${100 * share}%` } }));
    return [counted, bar, h("span.beside", left ? `about ${span(left)} left` : `${span(job.seconds)} so far`)];
  }
  if (job.state === "queued") return "waiting for its turn";
  return [`${whole(trials)} trials`, h("span.beside", `in ${duration(job.seconds)}`)];
}

const shortened = (text) => (text.length > 120 ? `${text.slice(0, 119)}…` : text);

async function refresh() {
  await attempt(load);
}

function changed() {
  pages = 1;
  const { sort, order, ...rest } = chosen();
  const usual = sort === "created" && order === "desc";
  remember({ ...rest, sort: usual ? null : sort, order: usual ? null : order });
  refresh();
}

let typing = 0;
filters.addEventListener("submit", (event) => event.preventDefault());
filters.addEventListener("change", changed);
filters.search.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(changed, 250);
});
$("more").addEventListener("click", () => {
  pages += 1;
  refresh();
});
$("clear").addEventListener("click", () => {
  filters.search.value = "";
  filters.state.value = "";
  changed();
});

async function keepUp() {
  if (!document.hidden) await refresh();
  setTimeout(keepUp, REFRESH_MS);
}

restore();
keepUp();
