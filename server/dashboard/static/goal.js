// How drops are said where only the target's sentence is known, as in lists.

import { dropWords, targetSentence } from "./format.js";

const SENTENCE = /^(\S+) may get worse by at most ([\d.e-]+)( of its value)?(?:, with (\d+)% confidence)?$/;

/** The words for drops under a target such as "top1 may get worse by at most 0.01 of its value". */
export function dropOf(goal) {
  const found = SENTENCE.exec(goal);
  return dropWords({ metric: found?.[1] ?? "", relative: Boolean(found?.[3]) });
}

/** The target's sentence with its numbers as people say them. */
export function goalWords(goal) {
  const found = SENTENCE.exec(goal);
  if (!found) return goal;
  const [, metric, drop, relative, sure] = found;
  return targetSentence({ metric, max_drop: Number(drop), relative: Boolean(relative), confidence: sure ? Number(sure) / 100 : null });
}
