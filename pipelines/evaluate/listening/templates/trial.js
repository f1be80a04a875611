// A trial as it is shown: a pair with its questions, or clips with sliders (MUSHRA).
"use strict";

function answerOf(id) {
  return state.answers[id] || { seconds: 0, choices: {}, ratings: {}, done: false };
}

async function showTrial() {
  const { id, clips } = plan[state.current];
  const trial = byId.get(id);
  showSection("trial");
  startedAt = performance.now();
  $("prompt").textContent = trial.prompt || "(none)";
  $("previous").setAttribute("aria-disabled", state.current === 0);
  rows = [];
  $("players").replaceChildren(...(isMushra ? makeRatings(clips) : [makePair(clips)]));
  $("questions").replaceChildren(...(isMushra ? [] : questions.map((name, i) => makeQuestion(name, clips, i))));
  document.activeElement?.blur();
  showAnswers();
  try {
    const slots = clips.map((clip) => [clip, clip]);
    await player.load(new Map(isMushra ? [[REFERENCE, trial.reference], ...slots] : slots));
  } catch (error) {
    notify(`A clip cannot be decoded (${error.message}): use a current browser, or ask for the page again.`);
  }
  if (byId.get(plan[state.current].id) === trial) showAnswers();
}

function make(tag, text, properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text, ...properties });
}

function makeListenButton(slot, text) {
  const button = make("button", text, { type: "button", onclick: () => listen(slot) });
  button.dataset.slot = slot;
  return button;
}

function makePair(clips) {
  const pair = make("div", "", { className: "pair" });
  rows = clips.map((clip, i) => ({ clip, button: makeListenButton(clip, `Listen to ${"AB"[i]}`) }));
  pair.append(...rows.map((row) => row.button));
  return pair;
}

function makeQuestion(name, clips, index) {
  const field = make("fieldset", "");
  const choices = make("div", "", { className: "choices" });
  for (const [value, text] of [[clips[0], "A"], [NONE, "No preference"], [clips[1], "B"]]) {
    const button = make("button", text, { type: "button", onclick: () => choose(name, value) });
    Object.assign(button.dataset, { question: name, value });
    choices.append(button);
  }
  field.append(make("legend", test.questions[name]), choices);
  field.dataset.index = index;
  return field;
}

function makeRatings(clips) {
  const reference = make("div", "", { className: "row" });
  reference.append(makeListenButton(REFERENCE, "Reference"), make("span", "real music to compare with", { className: "quiet" }));
  const scale = make("div", "", { className: "row scale" });
  const labels = make("div", "");
  labels.append(...["Bad", "Poor", "Fair", "Good", "Excellent"].map((text) => make("span", text)));
  scale.append(make("span", ""), labels);
  rows = clips.map((clip, i) => makeRating(clip, i));
  return [reference, scale, ...rows.map((row) => row.element)];
}

function makeRating(clip, index) {
  const element = make("div", "", { className: "row" });
  const button = makeListenButton(clip, `Clip ${index + 1}`);
  const slider = make("input", "", { type: "range", min: 0, max: 100, step: 1, value: 50 });
  slider.setAttribute("aria-label", `Rating of clip ${index + 1}, 0 bad to 100 excellent`);
  slider.oninput = slider.onchange = () => rate(clip, Number(slider.value));
  slider.onpointerup = () => rate(clip, Number(slider.value)); // also where it stood already
  const output = make("output", "–");
  element.append(button, slider, output);
  return { clip, element, button, slider, output };
}
