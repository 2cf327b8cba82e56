// One exported model: encoder, decoder with cache, greedy decoding. The same steps as `sottovoce transcribe` takes in ONNX Runtime.

import * as ort from "./onnxruntime-web/ort.wasm.min.mjs";
import { contextOf, shortened } from "./context.js";
import { logMel } from "./mel.js";
import { Tokenizer } from "./tokenizer.js";

export const SAMPLE_RATE = 16000;
const LONGEST_S = 30; // of one pass
const SHORTEST_S = 0.1;
const SHORTEST_RAW = 1024; // samples that Moonshine's convolutions want

ort.env.wasm.wasmPaths = new URL("./onnxruntime-web/", import.meta.url).href;
ort.env.wasm.numThreads = self.crossOriginIsolated ? navigator.hardwareConcurrency : 1;

async function fetched(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${new URL(url).pathname} cannot be read (${answer.status}); copy the whole exported folder to the server`);
  return answer;
}

// Cut at the quietest 50 ms of the last third, as in Python.
export function splitAtSilence(samples, seconds) {
  const longest = seconds * SAMPLE_RATE, width = SAMPLE_RATE / 20, pieces = [];
  while (samples.length > longest) {
    const start = Math.floor((longest * 2) / 3);
    let energy = 0, best = Infinity, at = 0;
    for (let i = start; i < longest; i++) {
      energy += samples[i] ** 2 - (i - start >= width ? samples[i - width] ** 2 : 0);
      if (i - start >= width - 1 && energy < best) { best = energy; at = i - start - width + 1; }
    }
    const cut = start + at + width / 2;
    pieces.push(samples.subarray(0, cut));
    samples = samples.subarray(cut);
  }
  if (samples.length >= SHORTEST_S * SAMPLE_RATE || !pieces.length) pieces.push(samples);
  return pieces;
}

function largest(scores, allowed) {
  let best = -1;
  for (let i = 0; i < scores.length; i++) if (allowed(i) && (best < 0 || scores[i] > scores[best])) best = i;
  return best;
}

const tensor64 = (ids) => new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]);

export class Model {
  static async load(folder) {
    const json = async (name) => (await fetched(`${folder}${name}`)).json();
    const bytes = async (name) => new Uint8Array(await (await fetched(`${folder}${name}`)).arrayBuffer());
    const model = new Model();
    [model.config, model.generation] = await Promise.all([json("config.json"), json("generation_config.json")]);
    if (!["whisper", "moonshine"].includes(model.config.model_type)) {
      throw new Error(`config.json is of a ${model.config.model_type} model; this page runs whisper and moonshine`);
    }
    model.frontEnd = await json("preprocessor_config.json");
    model.tokenizer = new Tokenizer(await json("tokenizer.json"));
    const [encoder, decoder] = await Promise.all([bytes("onnx/encoder_model.onnx"), bytes("onnx/decoder_model_merged.onnx")]);
    model.bytes = encoder.length + decoder.length;
    model.encoder = await ort.InferenceSession.create(encoder);
    model.decoder = await ort.InferenceSession.create(decoder);
    model.past = model.decoder.inputNames.filter((name) => name.startsWith("past_key_values."));
    const shape = model.decoder.inputMetadata.find((input) => input.name === model.past[0]).shape;
    [model.heads, model.size] = [shape[1], shape[3]];
    return model;
  }

  get isWhisper() { return this.config.model_type === "whisper"; }

  // Codes of languages to choose from; empty for a model of one language.
  get languages() {
    return this.generation.is_multilingual ? Object.keys(this.generation.lang_to_id).map((token) => token.slice(2, -2)) : [];
  }

  async transcribe(samples, language) {
    const texts = [], tokens = [];
    let encoderS = 0, decoderS = 0;
    const seconds = this.isWhisper ? this.frontEnd.chunk_length : LONGEST_S;
    const pieces = splitAtSilence(samples, seconds);
    for (const piece of pieces) {
      const began = performance.now();
      const { last_hidden_state: states } = await this.encoder.run(this.features(piece, pieces.length === 1));
      const between = performance.now();
      const ids = await this.decode(states, await this.prompt(states, language));
      encoderS += (between - began) / 1000;
      decoderS += (performance.now() - between) / 1000;
      tokens.push(...ids);
      texts.push(this.tokenizer.decode(ids));
    }
    return { text: texts.filter(Boolean).join(" "), tokens, encoderS, decoderS };
  }

  // `mayBeShort`: whether the encoder may stop when the clip does. Pieces of a long recording have whole windows.
  features(samples, mayBeShort) {
    if (this.isWhisper) {
      const { feature_size: count, chunk_length: seconds } = this.frontEnd;
      const positions = contextOf(samples.length, mayBeShort ? this.config.sottovoce_short_context : null, this.config.max_source_positions);
      const frames = shortened(logMel(samples, count, seconds), count, positions);
      return { input_features: new ort.Tensor("float32", frames, [1, count, frames.length / count]) };
    }
    const padded = new Float32Array(Math.max(samples.length, SHORTEST_RAW));
    padded.set(samples);
    return { input_values: new ort.Tensor("float32", padded, [1, padded.length]) };
  }

  async prompt(states, language) {
    const settings = this.generation, start = settings.decoder_start_token_id ?? this.config.decoder_start_token_id;
    if (!this.isWhisper) return [start];
    if (!settings.is_multilingual) return [start, settings.no_timestamps_token_id];
    let spoken = settings.lang_to_id[`<|${language}|>`];
    if (language === "auto") {
      const ids = new Set(Object.values(settings.lang_to_id));
      spoken = largest((await this.step([start], states, null)).scores, (id) => ids.has(id));
    }
    return [start, spoken, settings.task_to_id.transcribe, settings.no_timestamps_token_id];
  }

  async decode(states, prompt) {
    const settings = this.generation, ends = [settings.eos_token_id].flat(), ids = [];
    const never = new Set(settings.suppress_tokens ?? []), notFirst = new Set(settings.begin_suppress_tokens ?? []);
    const positions = this.isWhisper ? this.config.max_target_positions : this.config.max_position_embeddings;
    const room = Math.min(settings.max_length ?? positions, positions) - prompt.length;
    let input = prompt, cache = null;
    while (ids.length < room) {
      const step = await this.step(input, states, cache);
      const next = largest(step.scores, (id) => !never.has(id) && !(ids.length === 0 && notFirst.has(id)));
      if (ends.includes(next)) break;
      ids.push(next);
      input = [next];
      cache = step.cache;
    }
    return ids;
  }

  // One pass of the decoder. Later passes return no keys and values of the audio: those of the first are kept.
  async step(ids, states, cache) {
    const feed = { input_ids: tensor64(ids), encoder_hidden_states: states };
    feed.use_cache_branch = new ort.Tensor("bool", [cache !== null], [1]);
    for (const name of this.past) {
      feed[name] = cache?.[name] ?? new ort.Tensor("float32", new Float32Array(0), [1, this.heads, 0, this.size]);
    }
    const found = await this.decoder.run(feed);
    const kept = {};
    for (const name of this.past) {
      kept[name] = cache !== null && name.includes(".encoder.") ? cache[name] : found[name.replace("past_key_values", "present")];
    }
    const [, length, width] = found.logits.dims;
    return { scores: found.logits.data.subarray((length - 1) * width), cache: kept };
  }
}
