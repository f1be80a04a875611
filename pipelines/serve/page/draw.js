// Pictures of a clip: its waveform, and its spectrogram over octaves.

const SIZE = 2048, LOWEST_HZ = 60, FLOOR_DB = -85;

export function drawWave(canvas, samples) {
  const { width, height, context } = prepare(canvas);
  context.clearRect(0, 0, width, height);
  context.fillStyle = getComputedStyle(canvas).getPropertyValue("--wave");
  for (let x = 0; x < width; x++) {
    const start = Math.floor((x * samples.length) / width);
    const end = Math.max(start + 1, Math.floor(((x + 1) * samples.length) / width));
    let low = 0, high = 0;
    for (let at = start; at < end; at++) {
      low = Math.min(low, samples[at]);
      high = Math.max(high, samples[at]);
    }
    const top = ((1 - high) / 2) * height;
    context.fillRect(x, top, 1, Math.max(1, ((high - low) / 2) * height));
  }
}

export function drawSpectrogram(canvas, samples, rateHz) {
  const { width, height, context } = prepare(canvas);
  const image = context.createImageData(width, height);
  const window = Float32Array.from({ length: SIZE }, (_, n) => 0.5 - 0.5 * Math.cos((2 * Math.PI * n) / SIZE));
  const highest = rateHz / 2;
  const bins = Float32Array.from({ length: height }, (_, y) => {
    const hz = LOWEST_HZ * (highest / LOWEST_HZ) ** (1 - (y + 0.5) / height);
    return Math.min((hz * SIZE) / rateHz, SIZE / 2 - 1);
  });
  const real = new Float32Array(SIZE), imaginary = new Float32Array(SIZE), level = new Float32Array(SIZE / 2 + 1);
  for (let x = 0; x < width; x++) {
    const centre = Math.floor(((x + 0.5) * samples.length) / width) - SIZE / 2;
    for (let n = 0; n < SIZE; n++) {
      real[n] = (samples[centre + n] ?? 0) * window[n];
      imaginary[n] = 0;
    }
    transform(real, imaginary);
    for (let k = 0; k <= SIZE / 2; k++) level[k] = 10 * Math.log10((real[k] ** 2 + imaginary[k] ** 2) / (SIZE / 4) ** 2 + 1e-12);
    for (let y = 0; y < height; y++) {
      const below = Math.floor(bins[y]), share = bins[y] - below;
      const db = level[below] * (1 - share) + level[below + 1] * share;
      image.data.set(colour(Math.min(Math.max(1 - db / FLOOR_DB, 0), 1)), 4 * (y * width + x));
    }
  }
  context.putImageData(image, 0, 0);
}

function prepare(canvas) {
  const box = canvas.getBoundingClientRect();
  canvas.width = Math.max(1, Math.round(box.width));
  canvas.height = Math.max(1, Math.round(box.height));
  return { width: canvas.width, height: canvas.height, context: canvas.getContext("2d") };
}

// black, violet, orange, pale yellow
const STOPS = [[8, 8, 22], [66, 20, 104], [164, 44, 96], [236, 106, 38], [250, 196, 60], [252, 255, 200]];

function colour(value) {
  const place = value * (STOPS.length - 1), below = Math.min(Math.floor(place), STOPS.length - 2), share = place - below;
  return [...STOPS[below].map((low, i) => low + share * (STOPS[below + 1][i] - low)), 255];
}

// FFT in place, radix 2
function transform(real, imaginary) {
  const size = real.length;
  for (let at = 1, mirror = 0; at < size; at++) {
    let bit = size >> 1;
    for (; mirror & bit; bit >>= 1) mirror ^= bit;
    mirror ^= bit;
    if (at < mirror) {
      [real[at], real[mirror]] = [real[mirror], real[at]];
      [imaginary[at], imaginary[mirror]] = [imaginary[mirror], imaginary[at]];
    }
  }
  for (let length = 2; length <= size; length <<= 1) {
    const half = length >> 1, turn = (-2 * Math.PI) / length;
    for (let k = 0; k < half; k++) {
      const cosine = Math.cos(turn * k), sine = Math.sin(turn * k);
      for (let start = k; start < size; start += length) {
        const end = start + half;
        const r = real[end] * cosine - imaginary[end] * sine, i = real[end] * sine + imaginary[end] * cosine;
        real[end] = real[start] - r;
        imaginary[end] = imaginary[start] - i;
        real[start] += r;
        imaginary[start] += i;
      }
    }
  }
}
