// Whisper's front end: log-mel features of 30 s, as WhisperFeatureExtractor of transformers computes them.

const SAMPLE_RATE = 16000;
const N_FFT = 400; // 25 ms
const HOP = 160; // 10 ms
const BINS = N_FFT / 2 + 1;

const COS = Float64Array.from({ length: N_FFT }, (_, i) => Math.cos((2 * Math.PI * i) / N_FFT));
const SIN = Float64Array.from({ length: N_FFT }, (_, i) => Math.sin((2 * Math.PI * i) / N_FFT));
const HANN = COS.map((c) => 0.5 - 0.5 * c);

// Fourier transform of x[start], x[start + stride], ...: halves while the length is even, then by the definition (length 25).
function fourier(x, start, stride, length) {
  const re = new Float64Array(length), im = new Float64Array(length);
  const turn = N_FFT / length;
  if (length % 2) {
    for (let k = 0; k < length; k++) {
      for (let n = 0; n < length; n++) {
        const at = ((k * n) % length) * turn;
        re[k] += x[start + n * stride] * COS[at];
        im[k] -= x[start + n * stride] * SIN[at];
      }
    }
    return [re, im];
  }
  const half = length / 2;
  const [evenRe, evenIm] = fourier(x, start, 2 * stride, half);
  const [oddRe, oddIm] = fourier(x, start + stride, 2 * stride, half);
  for (let k = 0; k < half; k++) {
    const c = COS[k * turn], s = SIN[k * turn];
    const a = oddRe[k] * c + oddIm[k] * s, b = oddIm[k] * c - oddRe[k] * s;
    re[k] = evenRe[k] + a; im[k] = evenIm[k] + b;
    re[k + half] = evenRe[k] - a; im[k + half] = evenIm[k] - b;
  }
  return [re, im];
}

// Slaney's mel scale: linear below 1 kHz, logarithmic above.
const toMel = (hz) => (hz < 1000 ? (3 * hz) / 200 : 15 + (27 * Math.log(hz / 1000)) / Math.log(6.4));
const toHz = (mel) => (mel < 15 ? (200 * mel) / 3 : 1000 * Math.exp(((mel - 15) * Math.log(6.4)) / 27));

// Triangles over the bins of the spectrum, each of area one.
function melFilters(count) {
  const edges = Array.from({ length: count + 2 }, (_, i) => toHz((toMel(SAMPLE_RATE / 2) * i) / (count + 1)));
  return Array.from({ length: count }, (_, m) => {
    const [low, middle, high] = edges.slice(m, m + 3);
    return Float64Array.from({ length: BINS }, (_, k) => {
      const hz = (k * SAMPLE_RATE) / N_FFT;
      return (Math.max(0, Math.min((hz - low) / (middle - low), (high - hz) / (high - middle))) * 2) / (high - low);
    });
  });
}

// samples: 16 kHz mono. Returns Float32Array [count, seconds * 100].
export function logMel(samples, count, seconds) {
  const total = seconds * SAMPLE_RATE, frames = total / HOP, pad = N_FFT / 2;
  const at = (i) => {
    const reflected = i < 0 ? -i : i >= total ? 2 * (total - 1) - i : i;
    return reflected < samples.length ? samples[reflected] : 0;
  };
  const filters = melFilters(count), result = new Float32Array(count * frames).fill(-10);
  const window = new Float64Array(N_FFT), power = new Float64Array(BINS);
  for (let t = 0; t < frames; t++) {
    const start = t * HOP - pad;
    if (start >= samples.length && start + N_FFT < total) continue; // silence that fills up the 30 s: log10(1e-10) = -10
    for (let i = 0; i < N_FFT; i++) window[i] = at(start + i) * HANN[i];
    const [re, im] = fourier(window, 0, 1, N_FFT);
    for (let k = 0; k < BINS; k++) power[k] = re[k] * re[k] + im[k] * im[k];
    for (let m = 0; m < count; m++) {
      let energy = 0;
      for (let k = 0; k < BINS; k++) energy += filters[m][k] * power[k];
      result[m * frames + t] = Math.log10(Math.max(energy, 1e-10));
    }
  }
  let peak = -Infinity;
  for (const value of result) peak = Math.max(peak, value);
  return result.map((value) => (Math.max(value, peak - 8) + 4) / 4);
}
