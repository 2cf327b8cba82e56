// How much of Whisper's window the encoder works through, as `Context` of the Python package says it.

const SAMPLES_PER_POSITION = 320, FRAMES_PER_POSITION = 2;

// Encoder positions for a clip of so many samples: `tuned` { margin, smallest } if the model was tuned for short contexts, else all.
export function contextOf(samples, tuned, all) {
  if (!tuned) return all;
  return Math.min(all, Math.max(Math.ceil(samples / SAMPLES_PER_POSITION) + tuned.margin, tuned.smallest));
}

// The frames of `features` [count, frames] up to an encoder position.
export function shortened(features, count, positions) {
  const frames = features.length / count, kept = FRAMES_PER_POSITION * positions;
  if (kept >= frames) return features;
  const result = new Float32Array(count * kept);
  for (let row = 0; row < count; row++) result.set(features.subarray(row * frames, row * frames + kept), row * kept);
  return result;
}
