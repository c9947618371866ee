// The table of a job's trials: sorted and filtered by the server, a page at a time; choices are kept in the page's address.

import { get, page, query } from "./api.js";
import { $, asked, fill, h, remember, say } from "./dom.js";
import { bytes, count, dropWords, duration, mainConstraint, quantity, times, whole } from "./format.js";
import { badge } from "./trial-words.js";

const ROWS = 25;
const MOST_COMPARED = 4;
/** The columns: `sort` is the server's name of the order, `fixed` ones cannot be put away, `hidden` ones are put away at first. */
const COLUMNS = [
  {
    id: "number",
    title: "Trial",
    sort: "number",
    fixed: true,
    number: true,
    cell: (t, told) => h("a", { href: told.address(t.number) }, whole(t.number)),
  },
  { id: "state", title: "State", fixed: true, cell: (t) => badge(h("span.badge"), t) },
  {
    id: "drop",
    title: "Accuracy lost",
    sort: "violation",
    number: true,
    cell: (t, { words }) => [words.short(t.drop), beside(words.interval(t.drop_lower, t.drop_upper))],
  },
  {
    id: "speed",
    title: "Speed-up",
    sort: "speedup",
    number: true,
    cell: (t) => [times(t.speedup), t.speedup && beside(`${times(t.speedup_lower)} to ${times(t.speedup_upper)}`)],
  },
  { id: "size", title: "Size", sort: "size_bytes", number: true, cell: (t) => bytes(t.values.size_bytes) },
  { id: "metric", title: "Accuracy", number: true, cell: (t, { metric }) => quantity(metric, t.values[metric]) },
  { id: "latency", title: "Latency", number: true, hidden: true, cell: (t) => quantity("latency_ms", t.values.latency_ms) },
  { id: "macs", title: "MACs", number: true, hidden: true, cell: (t) => count(t.values.macs) },
  { id: "rows", title: "Rows scored", number: true, hidden: true, cell: (t) => whole(t.samples) },
  { id: "seconds", title: "Time", number: true, cell: (t) => duration(t.seconds) },
  { id: "notes", title: "Notes", cell: (t) => notes(t) },
];

const beside = (text) => h("span.beside", text);

function notes(trial) {
  if (trial.error) return h("div.notes.line", { title: trial.error.message }, `${trial.error.step}: ${trial.error.message}`);
  if (!trial.notes.length) return "";
  const [first, ...rest] = trial.notes;
  return h("div.notes.line", { title: trial.notes.join("\n") }, first, rest.length ? beside(`and ${rest.length} more`) : null);
}

export class TrialTable {
  constructor(id) {
    this.id = id;
    this.cursors = [null];
    this.marked = new Set();
    this.sort = COLUMNS.some((column) => column.sort === asked("sort")) ? asked("sort") : "number";
    this.order = asked("order") === "desc" ? "desc" : "asc";
    const wanted = asked("columns");
    this.shown = new Set(wanted === null ? COLUMNS.filter((column) => !column.hidden).map((column) => column.id) : wanted.split(" "));
    for (const column of COLUMNS) if (column.fixed) this.shown.add(column.id);
    $("trial-state").value = asked("state") ?? "";
    $("trial-feasible").value = asked("feasible") ?? "";
    this.controls();
  }

  controls() {
    for (const name of ["trial-state", "trial-feasible"]) $(name).addEventListener("change", () => this.first());
    $("trial-filters").addEventListener("submit", (event) => event.preventDefault());
    $("trials-back").addEventListener("click", () => this.turn(-1));
    $("trials-on").addEventListener("click", () => this.turn(1));
    const boxes = COLUMNS.filter((column) => !column.fixed).map((column) => {
      const box = h("input", { type: "checkbox", checked: this.shown.has(column.id) });
      box.addEventListener("change", () => this.toggle(column.id, box.checked));
      return h("label.inline", box, column.title);
    });
    fill("column-list", boxes);
  }

  toggle(id, visible) {
    if (visible) this.shown.add(id);
    else this.shown.delete(id);
    const usual = COLUMNS.every((column) => this.shown.has(column.id) === !column.hidden);
    remember({ columns: usual ? null : [...this.shown].join(" ") });
    this.draw();
  }

  first() {
    this.cursors = [null];
    remember({
      state: $("trial-state").value,
      feasible: $("trial-feasible").value,
      sort: this.sort === "number" ? null : this.sort,
      order: this.order === "asc" ? null : this.order,
    });
    return this.load(this.seen);
  }

  turn(step) {
    if (step > 0) this.cursors.push(this.page.next);
    else this.cursors.pop();
    return this.load(this.seen);
  }

  by(sort) {
    this.order = this.sort === sort && this.order === "asc" ? "desc" : "asc";
    // Of what is better when larger, the best is asked for first.
    if (this.sort !== sort && sort === "speedup") this.order = "desc";
    this.sort = sort;
    return this.first();
  }

  /** The page of trials as it is now. */
  async load(seen) {
    this.seen = seen;
    const wanted = { sort: this.sort, order: this.order, state: $("trial-state").value, feasible: $("trial-feasible").value };
    this.page = await get(`/jobs/${this.id}/trials${query({ ...wanted, limit: ROWS, cursor: this.cursors.at(-1) })}`);
    this.draw();
  }

  draw() {
    const columns = COLUMNS.filter((column) => this.shown.has(column.id));
    const focused = document.activeElement?.dataset?.keep;
    const { job } = this.seen;
    const mark = h("th", { scope: "col" }, h("span.unseen", "Mark for comparing"));
    fill("trial-head", mark, columns.map((column) => this.head(column)));
    const constraint = mainConstraint(job.spec);
    const metric = job.progress.metrics?.[0] ?? constraint.metric;
    const told = { words: dropWords(constraint, metric), metric, address: (number) => page(`/jobs/${this.id}/trials/${number}`) };
    const best = job.result?.best.trial ?? job.progress.best?.number;
    fill("trial-rows", this.page.items.map((trial) => this.row(trial, columns, told, best)));
    if (focused) document.querySelector(`[data-keep="${focused}"]`)?.focus();
    $("trials-back").disabled = this.cursors.length === 1;
    $("trials-on").disabled = !this.page.next;
    say("trials-page", this.page.items.length ? `page ${this.cursors.length}` : "no trial fits");
    say("trials-count", `${whole(job.progress.trials)} finished`);
    this.offer();
  }

  head(column) {
    const kind = column.number ? "th.n" : "th";
    if (!column.sort) return h(kind, { scope: "col" }, column.title);
    const sorted = this.sort === column.sort ? { "aria-sort": this.order === "asc" ? "ascending" : "descending" } : {};
    const pressed = { type: "button", "data-keep": `sort-${column.id}`, onclick: () => this.by(column.sort) };
    const button = h("button.sort", pressed, `${column.title} `);
    return h(kind, { scope: "col", ...sorted }, button);
  }

  row(trial, columns, told, best) {
    const label = `Mark trial ${trial.number} for comparing`;
    const checked = this.marked.has(trial.number);
    const box = h("input", { type: "checkbox", "aria-label": label, "data-keep": `mark-${trial.number}`, checked });
    box.disabled = !["complete", "stopped"].includes(trial.state);
    box.addEventListener("change", () => {
      if (box.checked) this.marked.add(trial.number);
      else this.marked.delete(trial.number);
      this.offer();
    });
    const cells = columns.map((column) => h(column.number ? "td.n" : "td", column.cell(trial, told)));
    return h("tr", { "aria-current": trial.number === best ? "true" : null }, h("td", box), cells);
  }

  /** The link to comparing, once two to four are marked. */
  offer() {
    const numbers = [...this.marked].sort((a, b) => a - b);
    const link = $("compare");
    const fits = numbers.length >= 2 && numbers.length <= MOST_COMPARED;
    const few = numbers.length ? `Compare ${numbers.length} marked` : "Compare: mark two to four";
    say(link, numbers.length > MOST_COMPARED ? `Compare: ${MOST_COMPARED} at most` : few);
    if (fits) link.href = page(`/jobs/${this.id}/compare?${numbers.map((number) => `trial=${number}`).join("&")}`);
    else link.removeAttribute("href");
    link.setAttribute("aria-disabled", String(!fits));
  }
}
