// Numbers as people read them: few digits, always a unit, a dash for what is not known. The words are those of the report.

export const UNKNOWN = "–";
const NARROW = "\u00a0";
const minus = (text) => text.replaceAll("-", "−");
const known = (value) => typeof value === "number" && Number.isFinite(value);

export function number(value, digits = 3) {
  if (!known(value)) return UNKNOWN;
  if (value === 0) return "0";
  // The size after rounding: 0.99999 is 1.00.
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  const size = Number(exponent);
  if (size < -4) return minus(`${mantissa}e${size}`);
  const places = Math.max(0, digits - 1 - size);
  return minus(value.toLocaleString("en", { minimumFractionDigits: places, maximumFractionDigits: places }));
}

export const whole = (value) => (known(value) ? minus(Math.round(value).toLocaleString("en")) : UNKNOWN);
export const percent = (share, digits = 2) => (known(share) ? `${minus((100 * share).toFixed(digits))}${NARROW}%` : UNKNOWN);
export const times = (ratio) => (known(ratio) ? `${ratio.toFixed(2)}×` : UNKNOWN);

function scaled(value, base, units) {
  let step = 0;
  while (Math.abs(value) >= base * 0.9995 && step < units.length - 1) {
    value /= base;
    step += 1;
  }
  const text = step ? number(value, Math.abs(value) >= 999.5 ? 4 : 3) : whole(value);
  return units[step] ? `${text}${NARROW}${units[step]}` : text;
}

export const bytes = (value) => (known(value) ? scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]) : UNKNOWN);
export const count = (value) => (known(value) ? scaled(value, 1000, ["", "k", "M", "G", "T"]) : UNKNOWN);

const SHARE = /^(top\d+|agreement|macro_f1|auroc)$/;
export const isShare = (metric) => SHARE.test(metric);

export const NAMES = {
  latency_ms: "Latency",
  size_bytes: "Size",
  compressed_size_bytes: "Size, compressed",
  macs: "MACs",
  params: "Parameters",
  peak_memory_bytes: "Peak memory",
};
export const nameOf = (metric) => NAMES[metric] ?? metric;

export function quantity(metric, value, unit = "") {
  if (!known(value)) return UNKNOWN;
  if (isShare(metric)) return percent(value);
  if (metric.endsWith("_bytes")) return bytes(value);
  if (metric === "macs" || metric === "params") return count(value);
  const named = metric === "latency_ms" ? "ms" : unit;
  return named ? `${number(value)}${NARROW}${named}` : number(value);
}

export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  if (seconds < 0.9995) return `${(1000 * seconds).toFixed(0)}${NARROW}ms`;
  if (seconds < 59.95) return `${seconds.toFixed(1)}${NARROW}s`;
  const minutes = Math.floor(Math.round(seconds) / 60);
  if (minutes < 60) return `${minutes}${NARROW}min ${Math.round(seconds) % 60}${NARROW}s`;
  return `${Math.floor(minutes / 60).toLocaleString("en")}${NARROW}h ${minutes % 60}${NARROW}min`;
}

/** A span that changes every second, without tenths. */
export const span = (seconds) => (known(seconds) && seconds >= 1 && seconds < 60 ? `${Math.round(seconds)}${NARROW}s` : duration(seconds));

export function age(moment, now = Date.now()) {
  const seconds = Math.max(0, (now - Date.parse(moment)) / 1000);
  if (seconds < 45) return "just now";
  if (seconds < 5400) return `${Math.max(1, Math.round(seconds / 60))}${NARROW}min ago`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)}${NARROW}h ago`;
  return `${Math.round(seconds / 86400)} days ago`;
}

export const moment = (text) => new Date(text).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });

/** How drops under one constraint are said: per cent of the original's value, percentage points, or plain numbers. */
export function dropWords(constraint, metric = constraint.metric) {
  const share = isShare(metric) || metric === "auto";
  const factor = constraint.relative || share ? 100 : 1;
  const unit = constraint.relative ? "%" : share ? "points" : "";
  const digits = factor === 100 ? 2 : null;
  const plain = (value) => (digits === null ? number(value) : minus((factor * value).toFixed(digits)));
  const short = (value) => (known(value) ? `${plain(value)}${unit ? NARROW + unit : ""}` : UNKNOWN);
  const axis = { "%": "% of the original’s value", points: "percentage points" }[unit];
  return {
    factor,
    unit,
    short,
    /** A limit that somebody chose: as few digits as it has. */
    limit: (value) => (known(value) ? `${minus(String(Number((factor * value).toPrecision(6))))}${unit ? NARROW + unit : ""}` : UNKNOWN),
    interval: (low, high) => (known(low) && known(high) ? `${plain(low)} to ${short(high)}` : UNKNOWN),
    axis: `${metric} lost${axis ? `, ${axis}` : ""}`,
  };
}

/** The largest drop that a constraint allows, in its own unit; null for a limit, which depends on the original. */
export const allowed = (constraint) => constraint.max_drop ?? (known(constraint.at_least) || known(constraint.at_most) ? 0 : null);

/** The constraint that pages speak of: the first that protects accuracy. */
export const mainConstraint = (spec) => spec.constraints.find((one) => !(one.metric in NAMES)) ?? spec.constraints[0];

export function targetSentence(constraint, metric = constraint.metric) {
  const name = metric === "auto" ? "Accuracy" : metric;
  const sure = constraint.confidence ? `, with ${Math.round(100 * constraint.confidence)}${NARROW}% confidence` : "";
  if (known(constraint.max_drop)) {
    const words = dropWords(constraint, metric);
    return `${name} may get worse by at most ${words.limit(constraint.max_drop)}${constraint.relative ? " of its value" : ""}${sure}`;
  }
  const [bound, word] = known(constraint.at_least) ? [constraint.at_least, "at least"] : [constraint.at_most, "at most"];
  return `${nameOf(name)} must be ${word} ${quantity(metric, bound)}${sure}`;
}

/** A scheme's name in words: u8-asym-mse/s8-sym-channel. */
export function schemeParts(scheme) {
  if (!scheme || scheme === "float" || structureWords(scheme)) return { activation: null, weight: null };
  const [first, second] = scheme.split("/");
  const [dtype, symmetry, calibration] = first.split("-");
  const activation = first === "float" ? null : { dtype, symmetry, calibration };
  const [kind, sym, granularity] = (second ?? "").split("-");
  return { activation, weight: second ? { dtype: kind, symmetry: sym, granularity } : null };
}

const DTYPES = { u8: "unsigned 8 bit", s8: "signed 8 bit", u16: "unsigned 16 bit", s16: "signed 16 bit" };
const CALIBRATIONS = { minmax: "extremes", kl: "KL divergence", mse: "least squared error" };

const STRUCTURE = [
  [/^whole$/, () => "left whole"],
  [/^keep-(\d+)$/, (kept) => `${whole(Number(kept))} channels kept`],
  [/^cut-(0\.\d+)$/, (share) => `${percent(Number(share), 0)} of all channels removed`],
  [/^(0\.\d+)-any$/, (share) => `${percent(Number(share), 0)} of the weights zero`],
  [/^(0\.\d+)-(\d+):(\d+)$/, (share, kept, of) => `${percent(Number(share), 0)} of the weights zero, ${kept} of every ${of} stay`],
  [/^(0\.\d+)-(\d+)x(\d+)$/, (share, a, b) => `${percent(Number(share), 0)} of the weights zero, in blocks of ${a} × ${b}`],
  [/^([a-z][a-z0-9-]*)-(0(?:\.\d+)?)$/, (method, share) => `split by ${method}, ${percent(Number(share), 0)} fewer MACs`],
];

/** What a choice takes away, in words; null for a scheme of quantization. */
export function structureWords(choice) {
  for (const [spelled, words] of STRUCTURE) {
    const found = spelled.exec(choice);
    if (found) return words(...found.slice(1));
  }
  return null;
}

export function schemeWords(scheme) {
  const structure = structureWords(scheme);
  if (structure) return structure;
  const { activation, weight } = schemeParts(scheme);
  if (!activation && !weight) return "left in float";
  const parts = [];
  if (activation) {
    const range = CALIBRATIONS[activation.calibration] ?? `percentile ${activation.calibration.slice(1)}`;
    const symmetric = activation.symmetry === "sym" ? "symmetric" : "asymmetric";
    parts.push(`activations ${DTYPES[activation.dtype] ?? activation.dtype}, ${symmetric}, range by ${range}`);
  }
  if (weight) {
    const symmetric = weight.symmetry === "sym" ? "symmetric" : "asymmetric";
    parts.push(`weights ${DTYPES[weight.dtype] ?? weight.dtype}, ${symmetric}, per ${weight.granularity}`);
  }
  return parts.join("; ");
}

export const PHASES = ["prepare", "baseline", "calibrate", "sensitivity", "search", "certify", "export"];

export const STATES = {
  queued: "queued",
  running: "running",
  succeeded: "finished",
  failed: "failed",
  cancelled: "cancelled",
  interrupted: "interrupted",
};
