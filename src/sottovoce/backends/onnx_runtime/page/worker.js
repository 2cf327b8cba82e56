// Models run here, so that the page stays responsive. Messages in: {load: folder} or {samples, language}; out: what came of it.

import { Model } from "./model.js";

let model = null;

self.onmessage = async ({ data }) => {
  try {
    if (data.load) {
      const began = performance.now();
      model = await Model.load(data.load);
      self.postMessage({ loaded: { bytes: model.bytes, languages: model.languages, loadS: (performance.now() - began) / 1000 } });
    } else {
      self.postMessage({ result: await model.transcribe(data.samples, data.language) });
    }
  } catch (error) {
    self.postMessage({ error: error.message ?? String(error) });
  }
};
