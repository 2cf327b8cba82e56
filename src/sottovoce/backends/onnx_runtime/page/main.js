// The page: loads the models that models.json lists, takes a recording, shows what each model recognizes.

import { record, samplesOf } from "./audio.js";
import { differing } from "./words.js";

const find = (id) => document.getElementById(id);
const [status, problem, file, button, language, results] = ["status", "problem", "file", "record", "language", "results"].map(find);
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

// A model in a worker of its own.
class Remote {
  constructor({ name, folder }) {
    this.name = name;
    this.folder = new URL(`../${folder}`, import.meta.url).href;
    this.worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  }

  ask(message) {
    return new Promise((done, fail) => {
      this.worker.onmessage = ({ data }) => (data.error ? fail(new Error(`${this.name}: ${data.error}`)) : done(data));
      this.worker.onerror = () => fail(new Error(`${this.name}: a script of the page cannot be loaded. Copy the whole exported folder to the server.`));
      this.worker.postMessage(message);
    });
  }

  async load() { Object.assign(this, (await this.ask({ load: this.folder })).loaded); }
}

function say(text, error = "") {
  status.textContent = text;
  problem.textContent = error;
  problem.hidden = !error;
}

function setBusy(busy) {
  document.body.ariaBusy = String(busy);
  file.disabled = button.disabled = language.disabled = busy;
}

function element(tag, text, parent) {
  const made = document.createElement(tag);
  made.textContent = text;
  parent.append(made);
  return made;
}

function show(models, answers, durationS) {
  results.replaceChildren();
  const marked = answers.length === 2 ? differing(answers[0].text, answers[1].text) : answers.map(() => null);
  answers.forEach((answer, i) => {
    const card = element("article", "", results);
    element("h3", models[i].name, card);
    const text = element("p", answer.text || "no words", card);
    text.className = answer.text ? "words" : "words none";
    if (marked[i] && answer.text) {
      text.textContent = "";
      marked[i].forEach(({ word, differs }) => { element(differs ? "mark" : "span", word, text); text.append(" "); });
    }
    const figures = element("dl", "", card), seconds = answer.encoderS + answer.decoderS;
    for (const [what, value] of [
      ["size", megabytes(models[i].bytes)],
      ["time", `${seconds.toFixed(2)} s`],
      ["encoder, decoder", `${answer.encoderS.toFixed(2)} s, ${answer.decoderS.toFixed(2)} s`],
      ["speed", `${(durationS / seconds).toFixed(1)} s of audio per second`],
    ]) {
      const pair = element("div", "", figures);
      element("dt", what, pair);
      element("dd", value, pair);
    }
  });
  find("legend").hidden = !document.querySelector("mark");
}

async function transcribe(models, blob, name) {
  setBusy(true);
  find("legend").hidden = true;
  results.replaceChildren();
  try {
    say(`Reading ${name} ...`);
    const samples = await samplesOf(blob, name), durationS = samples.length / 16000, answers = [];
    find("player").src = URL.createObjectURL(blob);
    find("player").hidden = false;
    for (const model of models) {
      say(`${model.name} transcribes ${name} (${durationS.toFixed(1)} s) ...`);
      answers.push((await model.ask({ samples, language: language.value })).result);
    }
    show(models, answers, durationS);
    say(`${name}: ${durationS.toFixed(1)} s, done.`);
  } catch (error) {
    say("", error.message);
  } finally {
    setBusy(false);
  }
}

function offerLanguages(codes) {
  const names = new Intl.DisplayNames(["en"], { type: "language", fallback: "code" });
  for (const code of ["auto", ...codes]) {
    const option = element("option", code === "auto" ? "detect" : names.of(code), language);
    option.value = code;
    option.selected = code === "en";
  }
  find("languages").hidden = false;
}

async function start() {
  const list = await (await fetch(new URL("./models.json", import.meta.url))).json();
  const models = list.map((entry) => new Remote(entry));
  for (const model of models) {
    say(`Loading ${model.name} ...`);
    await model.load();
  }
  if (models[0].languages.length) offerLanguages(models[0].languages);
  say(`Ready: ${models.map((model) => `${model.name}, ${megabytes(model.bytes)}`).join("; ")}.`);
  file.onchange = () => { if (file.files.length) transcribe(models, file.files[0], file.files[0].name); };
  document.body.ondragover = (event) => event.preventDefault();
  document.body.ondrop = (event) => {
    event.preventDefault();
    if (!file.disabled && event.dataTransfer.files.length) transcribe(models, event.dataTransfer.files[0], event.dataTransfer.files[0].name);
  };
  let stop = null;
  button.onclick = async () => {
    try {
      const stopped = stop;
      stop = stopped ? null : await record();
      button.textContent = stop ? "Stop recording" : "Record";
      if (stop) say("Recording ...");
      if (stopped) await transcribe(models, await stopped(), "the recording");
    } catch (error) {
      say("", error.message);
    }
  };
  setBusy(false);
}

start().catch((error) => say("", error.message));
