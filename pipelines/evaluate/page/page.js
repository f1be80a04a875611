// Sorting, the choice of columns and systems, and players of which one plays at a time. Without it, the page still shows all.
"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// --- the results table

function sortBy(header) {
  const table = header.closest("table");
  const column = [...header.parentElement.children].indexOf(header);
  const first = header.querySelector("button").dataset.better === "higher" ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = header.getAttribute("aria-sort") === first ? other : first;
  all("th[aria-sort]", table).forEach((th) => th.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", order);
  const body = table.querySelector("tbody.systems");
  if (!body) return;
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...body.rows].map((row) => ({ row, value: row.cells[column].dataset.value }));
  rows.sort((a, b) => {
    if (a.value === undefined || b.value === undefined) return (a.value === undefined) - (b.value === undefined);
    const compared = column === 0 ? a.value.localeCompare(b.value, undefined, { numeric: true }) : a.value - b.value;
    return sign * compared;
  });
  body.append(...rows.map(({ row }) => row));
}

function chooseColumns() {
  for (const box of all("input[data-group]"))
    for (const table of all(".results")) table.classList.toggle(`hide-${box.dataset.group}`, !box.checked);
  const details = document.getElementById("show-details").checked;
  for (const table of all(".results")) table.classList.toggle("show-details", details);
}

function chooseEmbedder(number) {
  for (const table of all(".results")) table.hidden = table.dataset.embedder !== number;
}

for (const button of all(".results thead button")) button.addEventListener("click", () => sortBy(button.parentElement));
const tableControls = document.getElementById("table-controls"); // the page of a data set has none
if (tableControls) {
  tableControls.addEventListener("change", (event) => {
    if (event.target.id === "embedder") chooseEmbedder(event.target.value);
    else chooseColumns();
  });
  chooseColumns(); // a browser keeps the state of boxes when a page is loaded again
}

// --- players

let current = null; // the clip that keys act on

const soundOf = (clip) => clip.querySelector("audio");
const isPlaying = (clip) => clip !== null && !soundOf(clip).paused;
const visibleClip = (cell) => cell && cell.querySelector(".clip:not([hidden])");

function formatTime(seconds) {
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

function addPlayer(clip) {
  const sound = soundOf(clip);
  const name = sound.getAttribute("aria-label");
  const player = document.createElement("div");
  const button = document.createElement("button");
  const clock = document.createElement("span");
  const position = document.createElement("input");
  player.className = "player";
  button.type = "button";
  clock.className = "clock";
  position.type = "range";
  Object.assign(position, { min: 0, max: 1000, step: 1, value: 0, tabIndex: -1 });
  position.setAttribute("aria-label", `Position in ${name}`);
  player.append(button, clip.querySelector(".estimates"));
  sound.removeAttribute("controls");
  sound.after(player);
  clip.querySelector(".picture").append(position, clock);

  function show() {
    button.textContent = sound.paused ? "▶" : "❚❚";
    button.setAttribute("aria-label", `${sound.paused ? "Play" : "Pause"} ${name}`);
    const length = sound.duration;
    position.classList.toggle("idle", !sound.currentTime);
    position.value = length ? (1000 * sound.currentTime) / length : 0;
    clock.textContent = length ? `${formatTime(sound.currentTime)} / ${formatTime(length)}` : "";
  }
  function showWhilePlaying() {
    show();
    if (!sound.paused) requestAnimationFrame(showWhilePlaying);
  }
  sound.addEventListener("play", () => {
    if (sound.paused) return; // the event comes late: by now, keys went on to another clip
    for (const other of all(".clip audio")) if (other !== sound) other.pause();
    showWhilePlaying();
  });
  for (const event of ["pause", "ended", "seeked", "loadedmetadata"]) sound.addEventListener(event, show);
  sound.addEventListener("error", () => {
    clock.textContent = "cannot be played";
    clock.classList.add("broken");
  });
  button.addEventListener("click", () => {
    select(clip);
    toggle();
  });
  position.addEventListener("input", () => {
    const share = position.value / 1000;
    select(clip);
    withLength(sound, () => { sound.currentTime = share * sound.duration; });
  });
  show();
}

function withLength(sound, action) {
  if (sound.duration) action();
  else {
    sound.addEventListener("loadedmetadata", action, { once: true });
    sound.preload = "auto";
  }
}

function play(clip) {
  soundOf(clip).play().catch(() => {}); // a sound that cannot be played has an error event of its own
}

function toggle() {
  if (isPlaying(current)) soundOf(current).pause();
  else play(current);
}

function select(clip) {
  for (const marked of all(".listening .current")) marked.classList.remove("current");
  current = clip;
  clip.classList.add("current");
  clip.closest("tr").classList.add("current");
  const button = clip.querySelector(".player button");
  button.focus({ preventScroll: true });
  clip.scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
}

// Go on with another clip where this one is: what A/B listening needs.
function switchTo(clip) {
  if (!clip || clip === current) return;
  const before = current;
  const wasPlaying = isPlaying(before);
  if (before && before.closest("tr") === clip.closest("tr")) {
    const position = soundOf(before).currentTime;
    soundOf(before).pause();
    withLength(soundOf(clip), () => { soundOf(clip).currentTime = Math.min(position, soundOf(clip).duration); });
  }
  select(clip);
  if (wasPlaying) play(clip);
}

function moveToSystem(step) {
  const row = current.closest("tr");
  const clips = all("td", row).map(visibleClip).filter(Boolean);
  switchTo(clips[(clips.indexOf(current) + step + clips.length) % clips.length]);
}

function moveToPrompt(step) {
  const column = current.closest("td").dataset.column;
  const rows = all(".listening tbody tr");
  const wasPlaying = isPlaying(current);
  for (let i = rows.indexOf(current.closest("tr")) + step; i >= 0 && i < rows.length; i += step) {
    const clip = visibleClip(rows[i].querySelector(`td[data-column="${column}"]`));
    if (!clip) continue;
    if (wasPlaying) soundOf(current).pause();
    select(clip);
    soundOf(clip).currentTime = 0;
    if (wasPlaying) play(clip);
    return;
  }
}

function restart() {
  soundOf(current).currentTime = 0;
}

const LETTERS = {
  j: () => moveToPrompt(1), k: () => moveToPrompt(-1), l: () => moveToSystem(1), h: () => moveToSystem(-1), " ": toggle, 0: restart,
};
const ARROWS = { ArrowDown: LETTERS.j, ArrowUp: LETTERS.k, ArrowRight: LETTERS.l, ArrowLeft: LETTERS.h };

// Letters work anywhere; arrows only inside the clips, so that they still scroll the page. Controls keep their own keys.
function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isInside = event.target.closest(".clip") !== null;
  const isControl = event.target.closest("select, input, button, a, summary") !== null && !isInside;
  const action = LETTERS[event.key] || (isInside && ARROWS[event.key]);
  if (!action || isControl) return;
  event.preventDefault();
  if (current) {
    action();
    return;
  }
  const first = all(".listening td").map(visibleClip).find(Boolean);
  if (first) select(first);
  if (first && event.key === " ") toggle();
}

function chooseSystem(column, system) {
  for (const cell of all(`.listening td[data-column="${column}"]`)) {
    const before = visibleClip(cell);
    for (const clip of all(".clip", cell)) clip.hidden = clip.dataset.system !== system;
    const after = visibleClip(cell);
    if (before && before === current && after) switchTo(after);
    else if (before) soundOf(before).pause();
    if (before === current && !after) current = null;
  }
}

all(".clip").forEach(addPlayer);
for (const choice of all(".listening thead select")) {
  choice.addEventListener("change", () => chooseSystem(choice.dataset.column, choice.value));
  chooseSystem(choice.dataset.column, choice.value);
}
document.addEventListener("keydown", onKey);
