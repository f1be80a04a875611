// The page: what is asked for, sent to the service, and shown as cards.

import { ServiceError, edit, generate, listModels, setToken } from "/page/api.js";
import { makeCard } from "/page/card.js";

const find = (id) => document.getElementById(id);
let controller = null, underWay = "";

function readForm() {
  const optional = { tempo_bpm: "tempo", seconds: "seconds", steps: "steps" };
  const settings = { prompt: find("prompt").value, seed: Number(find("seed").value) };
  for (const [name, id] of Object.entries(optional)) if (find(id).value) settings[name] = Number(find(id).value);
  if (find("key").value.trim()) settings.key = find("key").value.trim();
  return settings;
}

// one request at a time; what is asked for meanwhile is not done, and the page says so
async function work(message, make) {
  if (controller) {
    find("status").textContent = `${underWay} Nothing else was started: wait until it is done, or cancel it.`;
    find("status").scrollIntoView({ block: "nearest" });
    return;
  }
  controller = new AbortController();
  underWay = message;
  find("problem").hidden = true;
  find("status").textContent = message;
  find("make").disabled = true;
  find("cancel").hidden = false;
  try {
    await make(controller.signal);
    find("status").textContent = "Done.";
  } catch (error) {
    find("status").textContent = error.name === "AbortError" ? "Cancelled." : "";
    if (error.name !== "AbortError") explain(error);
  } finally {
    controller = null;
    find("make").disabled = false;
    find("cancel").hidden = true;
  }
}

function explain(error) {
  find("problem").textContent = error instanceof ServiceError ? error.message : `This page failed: ${error.message}`;
  find("problem").hidden = false;
  if (error.status === 401) {
    find("token-field").hidden = false;
    find("token").focus();
  }
}

const actions = {
  again: (clip) => {
    const asked = { ...clip.asked, seed: clip.asked.seed + 1 };
    work("Making it with another seed…", async (signal) => {
      find("seed").value = asked.seed;
      show(await generate(asked, signal), asked);
    });
  },
  edit: (clip, change, how) => {
    const { prompt, tempo_bpm, key, model, steps, seed } = clip.asked;
    const asked = Object.fromEntries(Object.entries({ prompt, tempo_bpm, key, model, steps, seed, ...change }).filter(([, value]) => value !== undefined));
    work("Editing…", async (signal) => show(await edit(clip.wav, asked, signal), { ...clip.asked, seed: asked.seed }, how));
  },
};

async function show(clip, asked, how) {
  find("clips").prepend(await makeCard({ ...clip, asked, how }, actions));
  find("nothing").hidden = true;
}

async function showPair(clips, asked) {
  const pair = document.createElement("li");
  pair.className = "pair";
  const cards = [];
  for (const [number, clip] of clips.entries()) {
    const title = `${"AB"[number]}: ${clip.about.model}`;
    cards.push(await makeCard({ ...clip, title, asked: asked[number] }, actions));
  }
  const button = document.createElement("button");
  button.type = "button";
  button.className = "switch";
  button.textContent = "Play A, then switch between A and B";
  button.onclick = () => switchPlayers(cards.map((card) => card.querySelector("audio")), button);
  const list = document.createElement("ul");
  list.append(...cards);
  pair.append(button, list);
  find("clips").prepend(pair);
  find("nothing").hidden = true;
}

// plays the other clip from where this one is
function switchPlayers([a, b], button) {
  const next = a.paused ? a : b, other = next === a ? b : a;
  next.currentTime = other.currentTime < next.duration ? other.currentTime : 0;
  other.pause();
  next.play().catch((error) => { if (error.name !== "AbortError") explain(error); }); // switched back before it began
  button.textContent = `Playing ${next === a ? "A" : "B"}: switch to ${next === a ? "B" : "A"}`;
}

find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(find("token").value);
  const settings = { ...readForm(), model: find("model").value }, other = find("other").value;
  work(other ? "Making both…" : "Making it…", async (signal) => {
    if (!other) return show(await generate(settings, signal), settings);
    const asked = [settings, { ...settings, model: other }];
    return showPair(await Promise.all(asked.map((one) => generate(one, signal))), asked);
  });
});
find("cancel").addEventListener("click", () => controller?.abort());
find("token").addEventListener("change", () => {
  setToken(find("token").value);
  fillModels();
});
// Ctrl+Enter in the prompt, as in other chat and music tools
find("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("ask").requestSubmit();
});

async function fillModels() {
  try {
    const { models, limits } = await listModels();
    const option = (value, text) => Object.assign(document.createElement("option"), { value, textContent: text });
    find("model").replaceChildren(...models.map(({ name, version }) => option(name, version && !version.endsWith(name) ? `${name} (${version})` : name)));
    find("other").replaceChildren(option("", "nothing"), ...models.map(({ name }) => option(name, name)));
    find("steps").max = limits.max_steps;
    find("seconds").max = limits.max_seconds;
    find("problem").hidden = true;
  } catch (error) {
    explain(error);
  }
}

fillModels();
