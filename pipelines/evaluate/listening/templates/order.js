// The order of trials and clips: the same for the same rater, test and seed.
"use strict";

function makeRandom(text) {
  let hash = 2166136261; // FNV-1a
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 16777619);
  return () => { // mulberry32
    hash = (hash + 0x6d2b79f5) | 0;
    let x = Math.imul(hash ^ (hash >>> 15), 1 | hash);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 4294967296;
  };
}

function shuffle(items, random) {
  const result = [...items];
  for (let i = result.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [result[i], result[j]] = [result[j], result[i]];
  }
  return result;
}

const REPEAT_GAP = 3; // trials between a pair and its repeat, at least

function makePlan(test, rater) {
  const random = makeRandom(`${test.id} ${test.seed} ${rater}`);
  const order = shuffle(test.trials.filter((t) => !t.repeat_of), random)
    .map((t) => ({ id: t.id, clips: shuffle(t.clips, random) }));
  for (const trial of test.trials.filter((t) => t.repeat_of)) {
    const first = order.findIndex((other) => other.id === trial.repeat_of);
    const from = Math.min(first + 1 + REPEAT_GAP, order.length);
    const index = from + Math.floor(random() * (order.length - from + 1));
    order.splice(index, 0, { id: trial.id, clips: [...order[first].clips].reverse() });
  }
  return order;
}
