// One clip as a card: player, waveform with a region, spectrogram, and what can be done next.

import { drawSpectrogram, drawWave } from "/page/draw.js";

const EXTEND_SECONDS = 4;

export async function makeCard(clip, actions) {
  // imported: in the template's own document, players load nothing
  const card = document.importNode(document.getElementById("card").content.firstElementChild, true);
  const find = (selector) => card.querySelector(selector);
  const { about, wav } = clip, settings = about.settings;
  find("h2").textContent = clip.title ?? settings.prompt;
  find(".about").textContent = describe(about, clip.how);
  const sound = await decode(wav);
  const samples = sound.getChannelData(0), seconds = sound.duration;
  const audio = find("audio"), link = find(".download");
  audio.src = link.href = URL.createObjectURL(wav);
  link.download = `presto-${slug(settings.prompt)}-seed${settings.seed}.wav`;
  const label = `${settings.prompt}, ${about.model}, seed ${settings.seed}`;
  audio.setAttribute("aria-label", `Player: ${label}`);
  find(".spectrogram").setAttribute("aria-label", `Spectrogram of ${seconds.toFixed(1)} seconds: ${label}`);
  find(".from").value = (seconds / 3).toFixed(2);
  find(".to").value = ((2 * seconds) / 3).toFixed(2);
  for (const name of [".from", ".to"]) find(name).max = seconds.toFixed(2);
  find(".again").onclick = () => actions.again(clip);
  find(".vary").onclick = () => actions.edit(clip, { operation: "vary", strength: 0.5, seed: settings.seed + 1 }, "varied");
  find(".extend").onclick = () => actions.edit(clip, { operation: "extend", seconds: EXTEND_SECONDS }, `${EXTEND_SECONDS} s longer`);
  find(".repaint").onclick = () => {
    const [from, to] = [Number(find(".from").value), Number(find(".to").value)];
    const strength = Number(find(".strength").value);
    const how = `repainted from ${from} s to ${to} s`;
    actions.edit(clip, { operation: "repaint", regions: [[from, to]], strength, seed: settings.seed + 1 }, how);
  };
  selectRegion(card, seconds);
  followPlayer(card, audio, seconds);
  const draw = () => {
    drawWave(find(".wave"), samples);
    drawSpectrogram(find(".spectrogram"), samples, sound.sampleRate);
  };
  let width = 0;
  new ResizeObserver(([entry]) => {
    if (Math.abs(entry.contentRect.width - width) < 2) return;
    width = entry.contentRect.width;
    draw();
  }).observe(card);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  return card;
}

async function decode(wav) {
  const context = new OfflineAudioContext(1, 1, 44100);
  return context.decodeAudioData(await wav.arrayBuffer());
}

function describe(about, how) {
  const { settings, notes } = about;
  const parts = [
    how, about.model, `${about.seconds.toFixed(1)} s`, `${settings.steps} steps`, `seed ${settings.seed}`,
    settings.tempo_bpm && `${settings.tempo_bpm} bpm`, settings.key, `made in ${(about.took_ms / 1000).toFixed(1)} s`,
    notes.cut_text && `not read: “${notes.cut_text}”`,
  ];
  return parts.filter(Boolean).join(" · ");
}

function selectRegion(card, seconds) {
  const sound = card.querySelector(".sound"), region = card.querySelector(".region");
  const from = card.querySelector(".from"), to = card.querySelector(".to");
  const show = () => {
    const [start, end] = [Number(from.value), Number(to.value)];
    region.hidden = !(end > start);
    region.style.left = `${(100 * start) / seconds}%`;
    region.style.width = `${(100 * (end - start)) / seconds}%`;
  };
  let begun = null;
  const timeAt = (event) => {
    const box = sound.getBoundingClientRect();
    return Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1) * seconds;
  };
  sound.addEventListener("pointerdown", (event) => {
    begun = timeAt(event);
    sound.setPointerCapture(event.pointerId);
  });
  sound.addEventListener("pointermove", (event) => {
    if (begun === null) return;
    const now = timeAt(event);
    from.value = Math.min(begun, now).toFixed(2);
    to.value = Math.max(begun, now).toFixed(2);
    show();
  });
  for (const name of ["pointerup", "pointercancel"]) sound.addEventListener(name, () => { begun = null; });
  for (const input of [from, to]) input.addEventListener("input", show);
  show();
}

function followPlayer(card, audio, seconds) {
  const cursor = card.querySelector(".cursor");
  const show = () => {
    cursor.hidden = audio.currentTime === 0;
    cursor.style.left = `${(100 * audio.currentTime) / seconds}%`;
    if (!audio.paused) requestAnimationFrame(show);
  };
  audio.addEventListener("play", show);
  audio.addEventListener("timeupdate", show);
}

function slug(text) {
  return text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40).replace(/^-|-$/g, "") || "clip";
}
