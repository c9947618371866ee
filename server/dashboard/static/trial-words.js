// What pages about single trials say of one: its state, what it lost, and which letter each scheme of its plan has.

import { h } from "./dom.js";
import { NAMES } from "./format.js";

const WORDS = {
  feasible: "within target",
  infeasible: "misses target",
  stopped: "stopped early",
  failed: "failed",
  running: "running",
  queued: "waiting",
  cancelled: "cancelled",
};

export const FLOAT = "float";
export const COMING = ["queued", "running"];

/** Whether every constraint was judged and none is violated; lists of trials say so themselves. */
const feasible = ({ feasible: said, verdicts }) => said ?? (verdicts.length > 0 && verdicts.every((one) => one.violation <= 0));

/** A trial's state, of one that is complete whether it is within the target. */
export const kindOf = (trial) => (trial.state === "complete" ? (feasible(trial) ? "feasible" : "infeasible") : trial.state);

export function badge(node, trial) {
  node.dataset.state = kindOf(trial);
  node.textContent = WORDS[node.dataset.state];
  return node;
}

/** The verdict on the constraint that pages speak of: those on metrics stand before those on costs. */
export const mainVerdict = (trial) => trial.verdicts[0] ?? null;

/** The job's constraints in the order in which a trial's verdicts stand. */
export function judgedConstraints({ constraints }) {
  const cost = ({ metric }) => metric in NAMES;
  return [...constraints.filter((one) => !cost(one)), ...constraints.filter(cost)];
}

const PHRASES = { met: "met", missed: "missed", undecided: "undecided" };

export const verdictBadge = (verdict) => h("span.badge", { "data-state": verdict.decision }, PHRASES[verdict.decision]);

/** {scheme: {code, fill, count}} of {layer: scheme}: A for the most frequent; what is left in float is a dot without a fill. */
export function codes(plan) {
  const counts = new Map();
  for (const scheme of Object.values(plan)) counts.set(scheme, (counts.get(scheme) ?? 0) + 1);
  const compressed = [...counts].filter(([scheme]) => scheme !== FLOAT).sort((a, b) => b[1] - a[1]);
  const known = new Map(compressed.map(([scheme, count], rank) => [scheme, { code: letter(rank), fill: `k${rank % FILLS}`, count }]));
  if (counts.has(FLOAT)) known.set(FLOAT, { code: "·", fill: "", count: counts.get(FLOAT) });
  return known;
}

const FILLS = 7;
const letter = (rank) => `${String.fromCharCode(65 + (rank % 26))}${rank >= 26 ? Math.floor(rank / 26) : ""}`;

/** [{name, op, scheme}] in the order of the graph, operator types after the layers. */
export function inOrder(assignment, layers) {
  const ops = new Map(layers.map((layer) => [layer.name, layer.op]));
  const named = [...ops.keys()].filter((name) => name in assignment);
  const rest = Object.keys(assignment).filter((name) => !ops.has(name));
  return [...named, ...rest].map((name) => ({ name, op: ops.get(name) ?? operator(name), scheme: String(assignment[name]) }));
}

const operator = (name) => (name.startsWith("op:") ? name.slice(3) : "");

/** A layer's name as people read it. */
export const layerWords = (name) => (name.startsWith("op:") ? `every ${name.slice(3)}` : name);
