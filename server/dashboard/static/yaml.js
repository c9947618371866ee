// Writes a job as YAML, in the way that the examples of the guide are written.

// Words that YAML 1.1 takes for truth or for nothing, in any spelling.
const WORD = /^(y|n|yes|no|true|false|on|off|null)$/i;
const PLAIN = /^[A-Za-z][A-Za-z0-9_./-]*$/;
// What a reader of YAML refuses or takes for the end of a line, although JSON lets it stand.
const HIDDEN = /[\u007f-\u00a0\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]/g;

const escaped = (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`;
/** Pairs of surrogates are one sign, which a reader of YAML takes only as it stands. */
const quoted = (text) => JSON.stringify(text).replace(/[\ud800-\udbff][\udc00-\udfff]|[\s\S]/g, (sign) =>
  sign.length === 1 ? sign.replace(HIDDEN, escaped) : sign);

function number(value) {
  const text = String(value);
  // Without the point, readers take 1e-7 for a word.
  return /e/.test(text) && !text.includes(".") ? text.replace("e", ".0e") : text;
}

/** One value on one line. */
function flow(value) {
  if (typeof value === "string") return PLAIN.test(value) && !WORD.test(value) ? value : quoted(value);
  if (typeof value === "number") return number(value);
  if (Array.isArray(value)) return `[${value.map(flow).join(", ")}]`;
  if (value === null || typeof value !== "object") return String(value);
  return `{${Object.entries(value).map(([key, inner]) => `${flow(key)}: ${flow(inner)}`).join(", ")}}`;
}

const isMapping = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
/** Mappings that hold mappings take a line for each entry, and so do lists of mappings. */
const isTall = (value) => (Array.isArray(value) ? value.some(isMapping) : isMapping(value) && Object.values(value).some(isMapping));

function tall(value) {
  if (Array.isArray(value)) return value.map((item) => `  - ${flow(item)}`);
  return Object.entries(value).map(([key, inner]) => `  ${flow(key)}: ${flow(inner)}`);
}

/** A whole document whose top is a mapping. */
export function yaml(mapping) {
  const lines = Object.entries(mapping).flatMap(([key, value]) =>
    isTall(value) ? [`${flow(key)}:`, ...tall(value)] : [`${flow(key)}: ${flow(value)}`]);
  return `${lines.join("\n")}\n`;
}
