// A blind listening test: what is stored, sound, the start page and the end. Nothing leaves the page.
"use strict";

const $ = (id) => document.getElementById(id);
const test = JSON.parse($("test").textContent);
const isMushra = test.kind === "mushra";
const questions = Object.keys(test.questions);
const RATER = /^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$/;
const NONE = "none"; // the answer "no preference"
const REFERENCE = "reference"; // the slot of the reference as such; the hidden one has a slot like any clip
const HEARD_S = 0.5; // a clip counts as heard after this long
const LAST_RATER = `presto-listening-${test.id}`;
const player = makePlayer(test.rate_hz);
const byId = new Map(test.trials.map((trial) => [trial.id, trial]));

let state = null; // {rater, started, current, answers: {trial id: answer}}: what is stored
let plan = []; // trials in this rater's order: {id, clips: in the order shown}
let rows = []; // of the trial shown: {clip, button, slider?, output?}; a slot of the player is a clip's id or REFERENCE
let startedAt = 0; // of the time spent on the trial shown

// --- progress, kept in this browser

const keyOf = (rater) => `presto-listening-${test.id}-${rater}`;

function store() {
  try {
    localStorage.setItem(keyOf(state.rater), JSON.stringify(state));
    localStorage.setItem(LAST_RATER, state.rater);
  } catch {
    notify("This browser keeps no progress: answer all trials without closing the page.");
  }
}

function load(rater) {
  try {
    const stored = JSON.parse(localStorage.getItem(keyOf(rater)));
    if (stored && stored.rater === rater && stored.answers) return stored;
  } catch { /* none, or not readable: the rater starts again */ }
  return { rater, started: new Date().toISOString(), current: 0, answers: {} };
}

function lastRater() {
  try { return localStorage.getItem(LAST_RATER) || ""; } catch { return ""; }
}

function notify(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

// --- sound

function listen(slot) {
  if (!player.buffers.has(slot)) return;
  if (player.playing && player.slot === slot) player.stop();
  else if (isMushra && player.playing) player.switchTo(slot); // at the same position
  else player.play(slot, isMushra || player.slot === slot ? rewind(player.offset) : 0);
  showPlayer();
}

function rewind(offset) {
  return offset >= player.duration - 0.05 ? 0 : offset;
}

function togglePlay() {
  listen(player.slot || (isMushra ? REFERENCE : rows[0].clip));
}

let lastTime = 0; // of the audio clock, which stands still where no sound comes out
function tick() {
  const now = player.context ? player.context.currentTime : 0;
  if (player.playing) {
    const before = player.heard.get(player.slot) || 0;
    const heard = before + now - lastTime;
    player.heard.set(player.slot, heard);
    if (!$("trial").hidden && before < HEARD_S && heard >= HEARD_S) showAnswers();
    if (player.position >= player.duration) {
      if (isMushra && $("start").hidden) player.play(player.slot, 0); // again and again, until paused
      else player.stop();
      showPlayer();
    }
  }
  lastTime = now;
  $("position").style.width = `${player.duration ? (100 * player.position) / player.duration : 0}%`;
}
setInterval(tick, 50);

// --- pages

function showSection(id) {
  for (const section of document.querySelectorAll("section")) section.hidden = section.id !== id;
  $("count").hidden = $("progress").hidden = id === "start";
}

function showStart() {
  showSection("start");
  $("task").textContent = isMushra
    ? `You hear clips of music made from one description, beside a reference. Rate how good each sounds, from 0 (bad) to 100 (excellent: as good as the reference). One of the clips is the reference itself: find it and rate it 100. There are ${test.trials.length} trials, about ${test.minutes} minutes.`
    : `You hear two clips and choose the better one. There are ${test.trials.length} trials, about ${test.minutes} minutes.`;
  $("rater").value = lastRater() || `rater-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
  nameBegin();
  $("rater").focus();
  $("rater").select();
}

function nameBegin() {
  const rater = $("rater").value.trim();
  const answered = RATER.test(rater) ? Object.values(load(rater).answers).filter((a) => a.done).length : 0;
  $("begin").textContent = answered ? `Continue (${answered} of ${test.trials.length} answered)` : "Start";
}

function begin(event) {
  event.preventDefault();
  const rater = $("rater").value.trim();
  if (!RATER.test(rater)) {
    notify("Write a name of 1 to 64 letters, digits or . _ - @ that starts with a letter or digit.");
    return;
  }
  notify("");
  state = load(rater);
  plan = makePlan(test, rater);
  const open = plan.findIndex((trial) => !answerOf(trial.id).done);
  state.current = open < 0 ? plan.length - 1 : open;
  store();
  if (open < 0) showEnd(); else showTrial();
}

function showEnd() {
  const open = plan.findIndex((trial) => !answerOf(trial.id).done);
  if (open >= 0) {
    state.current = open;
    showTrial();
    return;
  }
  player.stop();
  showSection("end");
  $("count").textContent = `${plan.length} of ${plan.length} answered`;
  $("progress").value = 1;
  $("download").focus();
}

function collect() {
  const done = plan.filter((trial) => answerOf(trial.id).done);
  return {
    format: 1, test: test.id, kind: test.kind, rater: state.rater, started: state.started,
    saved: new Date().toISOString(),
    answers: done.map(({ id, clips }) => {
      const { seconds, choices, ratings } = answerOf(id);
      return { trial: id, clips, seconds, ...(isMushra ? { ratings } : { choices }) };
    }),
  };
}

function download() {
  const url = URL.createObjectURL(new Blob([JSON.stringify(collect(), null, 1)], { type: "application/json" }));
  make("a", "", { href: url, download: `answers-${test.id}-${state.rater}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
