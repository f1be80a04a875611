// Answers to the trial shown, and the way to the next one.
"use strict";

function change(edit) {
  const id = plan[state.current].id;
  const answer = structuredClone(answerOf(id));
  edit(answer);
  state.answers[id] = answer;
  store();
  showAnswers();
}

function choose(question, value) {
  change((answer) => { answer.choices[question] = value; });
}

function rate(clip, value) {
  change((answer) => { answer.ratings[clip] = Math.max(0, Math.min(100, Math.round(value))); });
}

function listMissing(answer) {
  const unheard = rows.filter((row) => (player.heard.get(row.clip) || 0) < HEARD_S);
  if (unheard.length && !answer.done) return [`Listen to ${unheard.map(nameOf).join(", ")}.`];
  if (isMushra) {
    const open = rows.filter((row) => !(row.clip in answer.ratings));
    return open.length ? [`Rate ${open.map(nameOf).join(", ")}.`] : [];
  }
  return questions.filter((name) => !(name in answer.choices)).slice(0, 1).map((name) => test.questions[name]);
}

function nameOf(row) {
  const index = rows.indexOf(row);
  return isMushra ? `clip ${index + 1}` : "AB"[index];
}

function showAnswers() {
  const answer = answerOf(plan[state.current].id);
  const done = Object.values(state.answers).filter((a) => a.done).length;
  $("count").textContent = `Trial ${state.current + 1} of ${plan.length}`;
  $("progress").value = done / plan.length;
  for (const button of document.querySelectorAll("#questions button")) {
    button.setAttribute("aria-pressed", answer.choices[button.dataset.question] === button.dataset.value);
  }
  for (const row of rows.filter((r) => r.slider)) {
    const rating = answer.ratings[row.clip];
    row.slider.classList.toggle("unrated", rating === undefined);
    row.output.textContent = rating === undefined ? "–" : rating;
    if (rating !== undefined) row.slider.value = rating;
  }
  const missing = listMissing(answer);
  $("missing").textContent = missing[0] || "";
  $("next").setAttribute("aria-disabled", missing.length > 0);
  showPlayer();
}

function showPlayer() {
  for (const button of document.querySelectorAll("button[data-slot]")) {
    const { slot } = button.dataset;
    button.classList.toggle("playing", slot === player.slot && player.playing);
    button.setAttribute("aria-pressed", slot === player.slot && player.playing);
    button.classList.toggle("heard", slot !== REFERENCE && (player.heard.get(slot) || 0) >= HEARD_S);
  }
  $("toggle").textContent = player.playing ? "Pause" : "Play";
  $("sound").textContent = player.playing ? "Stop test sound" : "Play test sound";
}

function next() {
  if ($("next").getAttribute("aria-disabled") === "true") return;
  change((answer) => {
    if (!answer.done || player.heard.size) answer.seconds += Math.round((performance.now() - startedAt) / 100) / 10;
    answer.done = true;
  });
  player.stop();
  if (state.current + 1 < plan.length) move(1);
  else showEnd();
}

function move(by) {
  const index = state.current + by;
  if (index < 0 || index >= plan.length) return;
  player.stop();
  state.current = index;
  store();
  showTrial();
}
