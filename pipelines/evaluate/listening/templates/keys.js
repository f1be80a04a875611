// Keyboard, buttons, and the start of the page.
"use strict";

const KEYS = isMushra
  ? [["0 / 1…9", "hear the reference / a clip, at the same position"], ["← / →", "previous / next clip, at the same position"],
     ["Space", "play or pause"], ["↑ / ↓", "rating of the clip that you hear, by 1; with Shift, by 10"], ["Enter", "next trial"], ["P", "previous trial"]]
  : [["A / B", "hear a clip from its start"], ["Space", "play or pause"],
     ...questions.map((name, i) => [`${3 * i + 1} / ${3 * i + 2} / ${3 * i + 3}`, `${questions.length > 1 ? `${test.questions[name]} ` : ""}A / no preference / B`]),
     ["Enter", "next trial"], ["P", "previous trial"]];

function showKeys() {
  $("keys").replaceChildren(...KEYS.flatMap(([keys, text]) => {
    const term = make("dt", "");
    term.append(...keys.split(" / ").map((key) => make("kbd", key)));
    return [term, make("dd", text)];
  }));
  if (matchMedia("(pointer: coarse)").matches) $("help").open = false;
}

function nudge(by) {
  const row = rows.find((r) => r.clip === player.slot);
  if (row) rate(row.clip, Number(row.slider.value) + by);
}

function step(by) {
  const index = rows.findIndex((r) => r.clip === player.slot);
  const row = rows[Math.max(0, Math.min(rows.length - 1, index + by))];
  if (row.clip !== player.slot) listen(row.clip);
}

function press(key, shift) {
  const digit = /^\d$/.test(key) ? Number(key) : -1;
  if (key === " ") togglePlay();
  else if (key === "enter") next();
  else if (key === "p") move(-1);
  else if (isMushra && (key === "arrowup" || key === "arrowdown")) nudge((key === "arrowup" ? 1 : -1) * (shift ? 10 : 1));
  else if (isMushra && (key === "arrowleft" || key === "arrowright")) step(key === "arrowleft" ? -1 : 1);
  else if (isMushra && digit === 0) listen(REFERENCE);
  else if (isMushra && digit > 0 && rows[digit - 1]) listen(rows[digit - 1].clip);
  else if (!isMushra && (key === "a" || key === "b")) listen(rows[key === "a" ? 0 : 1].clip);
  else if (!isMushra && digit > 0) document.querySelectorAll("#questions button")[digit - 1]?.click();
  else return false;
  return true;
}

document.addEventListener("keydown", (event) => {
  if ($("trial").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const { target, key } = event;
  if (target.tagName === "BUTTON" && (key === " " || key === "Enter")) return; // the button's own
  if (target.tagName === "SUMMARY" && (key === " " || key === "Enter")) return;
  if (target.type === "range" && key.startsWith("Arrow")) return; // the slider's own
  if (press(key.toLowerCase(), event.shiftKey)) event.preventDefault();
});
// a mouse click leaves no focus behind, so that Space and Enter keep their meaning
document.addEventListener("click", (event) => {
  if (event.detail > 0) event.target.closest?.("button")?.blur();
});

document.title = test.title;
$("title").textContent = test.title;
$("enter").onsubmit = begin;
$("rater").oninput = nameBegin;
$("sound").onclick = async () => {
  const clip = test.trials[0].clips[0];
  if (player.playing) player.stop();
  else {
    await player.load(new Map([[clip, clip]]));
    player.play(clip, 0);
  }
  showPlayer();
};
$("toggle").onclick = togglePlay;
$("next").onclick = next;
$("previous").onclick = () => move(-1);
$("back").onclick = () => { state.current = 0; showTrial(); };
$("download").onclick = $("partial").onclick = download;
showKeys();
showStart();
