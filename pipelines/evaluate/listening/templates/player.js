// Sound: all clips of a trial run together, and all but one are silent, so that a switch has no gap.
"use strict";
const RAMP_S = 0.01; // of a switch between clips: no click

const makePlayer = (rateHz) => ({
  context: null, buffers: new Map(), voices: new Map(), heard: new Map(), slot: "", offset: 0, begun: 0, duration: 0,
  loads: 0,

  open() {
    if (!this.context) this.context = new AudioContext({ sampleRate: rateHz });
    if (this.context.state === "suspended") this.context.resume();
  },
  async load(clipOf) { // slot -> clip
    this.stop();
    this.open();
    Object.assign(this, { heard: new Map(), buffers: new Map(), slot: "", offset: 0, duration: 0 });
    const load = ++this.loads;
    const decoded = await Promise.all([...clipOf.values()].map((clip) => this.decode(clip)));
    if (load !== this.loads) return; // another trial is shown by now
    this.buffers = new Map([...clipOf.keys()].map((slot, i) => [slot, decoded[i]]));
    this.duration = Math.max(...decoded.map((buffer) => buffer.duration));
  },
  decode(clip) {
    const bytes = Uint8Array.from(atob(document.getElementById(`clip-${clip}`).textContent), (c) => c.charCodeAt(0));
    return this.context.decodeAudioData(bytes.buffer);
  },
  get playing() { return this.voices.size > 0; },
  get position() {
    if (!this.playing) return this.offset;
    return Math.max(0, Math.min(this.context.currentTime - this.begun, this.duration));
  },
  play(slot, offset) {
    this.open();
    this.stop();
    this.slot = slot;
    const when = this.context.currentTime + 0.02;
    for (const [id, buffer] of this.buffers) {
      const source = new AudioBufferSourceNode(this.context, { buffer });
      const level = new GainNode(this.context, { gain: id === slot ? 1 : 0 });
      source.connect(level).connect(this.context.destination);
      source.start(when, Math.min(offset, buffer.duration));
      this.voices.set(id, { source, level });
    }
    this.begun = when - offset;
  },
  switchTo(slot) {
    const now = this.context.currentTime;
    for (const [id, { level }] of this.voices) {
      level.gain.cancelScheduledValues(now);
      level.gain.setValueAtTime(level.gain.value, now);
      level.gain.linearRampToValueAtTime(id === slot ? 1 : 0, now + RAMP_S);
    }
    this.slot = slot;
  },
  stop() {
    this.offset = this.position;
    for (const voice of this.voices.values()) voice.source.stop();
    this.voices.clear();
  },
});
