// Which role a data file has, by its name.

const KINDS = [
  ["calibration", /calib/],
  ["holdout", /hold[-_ ]?out|held/],
  ["validation", /(^|[^a-z])(e?val|dev)/],
  ["test", /(^|[^a-z])test/],
  ["training", /train/],
];
const CALIBRATION_ROWS = 512;

const kindOf = (name) => KINDS.find(([, pattern]) => pattern.test(name.toLowerCase()))?.[0] ?? "other";
const part = (file, first = "", end = "") => ({ file: file.id, first, end });

/** {role: {file, first, end}} for data files that were sent, as [{id, name, rows}]. A file that is alone validates. */
export function guessRoles(files) {
  if (files.length === 1) return { validation: part(files[0]) };
  const by = {};
  for (const file of files) by[kindOf(file.name)] ??= file;
  const { test, other, training } = by;
  const validation = by.validation ?? test ?? other;
  const holdout = by.holdout ?? (by.validation ? test : undefined);
  const rows = training && Math.min(CALIBRATION_ROWS, training.rows);
  const calibration = by.calibration ? part(by.calibration) : training && part(training, "0", String(rows));
  const wholes = Object.entries({ validation, holdout, training }).filter(([, file]) => file).map(([role, file]) => [role, part(file)]);
  return { ...Object.fromEntries(wholes), ...(calibration ? { calibration } : {}) };
}
