// Recordings: from a file or the microphone to 16 kHz mono, with the checks that `sottovoce` makes.

const SAMPLE_RATE = 16000;
const SHORTEST_S = 0.1;
const SILENCE = 1e-4; // peak

export async function samplesOf(blob, name) {
  let decoded;
  try {
    decoded = await new OfflineAudioContext(1, 1, SAMPLE_RATE).decodeAudioData(await blob.arrayBuffer());
  } catch {
    throw new Error(`${name} is not a recording that this browser can read. Choose a WAV, MP3, FLAC, OGG, M4A or WebM file.`);
  }
  if (decoded.duration < SHORTEST_S) throw new Error(`${name} is too short: ${decoded.duration.toFixed(2)} s, at least ${SHORTEST_S} s are needed.`);
  const mixed = new Float32Array(decoded.length);
  let loudest = 0;
  for (let c = 0; c < decoded.numberOfChannels; c++) {
    const channel = decoded.getChannelData(c);
    for (let i = 0; i < mixed.length; i++) {
      mixed[i] += channel[i] / decoded.numberOfChannels;
      loudest = Math.max(loudest, Math.abs(channel[i]));
    }
  }
  const peak = mixed.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  if (loudest < SILENCE) throw new Error(`${name} is silent. Choose another recording, or check the microphone.`);
  if (peak < SILENCE) throw new Error(`${name}: its channels cancel each other. Choose a mono file.`);
  return mixed;
}

// Starts the microphone; the returned function stops it and gives what was recorded.
export async function record() {
  if (!navigator.mediaDevices?.getUserMedia) throw new Error("The microphone needs a page from https or from localhost. Choose a file instead.");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    throw new Error(`The microphone cannot be used (${error.message}). Allow it in the browser, or choose a file.`);
  }
  const recorder = new MediaRecorder(stream), parts = [];
  recorder.ondataavailable = ({ data }) => parts.push(data);
  recorder.start();
  return () => new Promise((done) => {
    recorder.onstop = () => {
      stream.getTracks().forEach((track) => track.stop());
      done(new Blob(parts, { type: recorder.mimeType }));
    };
    recorder.stop();
  });
}
