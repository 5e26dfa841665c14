// The page: a conversation, what is attached to the next turn, and answers whose canvases are seen filling in.

import { chat, edit, modelName } from "./api.js";
import { Brush } from "./brush.js";
import { Film } from "./film.js";
import { MODALITIES, PRESETS, SETTINGS } from "./presets.js";
import { Recorder } from "./recorder.js";

const at = (id) => document.getElementById(id);
const made = (tag, text = "", name = "") => {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  return element;
};

const brush = new Brush(at("brush"), at("radius"));
let model = "";
let turns = []; // as the server takes them
let attached = []; // {kind, file, url}
let recorder = null;
let running = null;
let painted = null; // the picture under the brush

function preset() {
  return PRESETS[at("preset").value];
}

function choose() {
  const chosen = preset();
  at("answer").disabled = chosen.answer !== null;
  if (chosen.answer) at("answer").value = chosen.answer;
  at("hint").textContent = chosen.hint;
  paintable();
}

async function paintable() {
  const picture = attached.find((one) => one.kind === "image");
  at("painting").hidden = !(preset().paints && picture);
  if (!at("painting").hidden && painted !== picture.file) {
    painted = picture.file;
    brush.show(await createImageBitmap(picture.file, { imageOrientation: "from-image" }));
  }
}

function attach(files) {
  for (const file of files) {
    const kind = file.type.startsWith("image/") ? "image" : "audio";
    attached = attached.filter((one) => one.kind !== kind); // one of each a turn
    attached.push({ kind, file, url: URL.createObjectURL(file) });
  }
  shown();
}

function shown() {
  at("attached").replaceChildren(
    ...attached.map((one) => {
      const item = document.createElement("li");
      const medium = document.createElement(one.kind === "image" ? "img" : "audio");
      medium.src = one.url;
      if (one.kind === "image") medium.alt = one.file.name;
      else medium.controls = true;
      const remove = made("button", "Remove");
      remove.type = "button";
      remove.setAttribute("aria-label", `Remove ${one.file.name}`);
      remove.addEventListener("click", () => {
        attached = attached.filter((other) => other !== one);
        shown();
      });
      item.append(medium, remove);
      return item;
    }),
  );
  paintable();
}

async function record() {
  try {
    if (recorder === null) {
      recorder = await Recorder.start();
    } else {
      const done = recorder;
      recorder = null;
      attach([await done.stop()]);
    }
  } catch (error) {
    tell(`the microphone cannot be used: ${error.message}`);
  }
  at("record").setAttribute("aria-pressed", String(recorder !== null));
  at("record").textContent = recorder === null ? "Record" : "Stop recording";
}

const base64 = async (file) => {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
  return url.slice(url.indexOf(",") + 1);
};

function settings() {
  const found = {};
  for (const name of Object.keys(SETTINGS)) {
    const value = at(`setting-${name}`).value;
    if (value !== "") found[name] = Number(value);
  }
  return found;
}

// The user's turn as the server takes it: words before media, as the model was trained.
async function asked(words) {
  const chosen = preset();
  const text = (chosen.user ?? "{text}").replace("{text}", words || (chosen.fallback ?? ""));
  const parts = text ? [{ type: "text", text }] : [];
  for (const kind of ["audio", "image"]) {
    const one = attached.find((other) => other.kind === kind);
    if (!one) continue;
    const data = await base64(one.file);
    if (kind === "image") parts.push({ type: "image_url", image_url: { url: `data:${one.file.type};base64,${data}` } });
    else parts.push({ type: "input_audio", input_audio: { data, format: formatOf(one.file) } });
  }
  return { role: "user", content: parts };
}

function formatOf(file) {
  const known = ["wav", "mp3", "flac", "ogg", "opus", "webm"];
  const end = file.name.split(".").pop().toLowerCase();
  return known.includes(end) ? end : "wav";
}

function missing(words) {
  for (const kind of preset().needs ?? []) {
    if (!attached.some((one) => one.kind === kind)) return kind === "image" ? "a picture" : "a recording";
  }
  if (preset().paints && !brush.painted) return "a painted hole";
  if (!words && !attached.length) return "words, a picture or a recording";
  return "";
}

function turn(role) {
  at("empty").hidden = true;
  const element = made("li", "", `turn ${role}`);
  at("turns").append(element);
  return element;
}

async function send(event) {
  event.preventDefault();
  const words = at("words").value.trim();
  const lack = missing(words);
  if (lack) return tell(`this task needs ${lack}`);
  const mine = turn("user");
  if (words) mine.append(made("p", words));
  for (const one of attached) {
    const medium = document.createElement(one.kind === "image" ? "img" : "audio");
    medium.src = one.url;
    if (one.kind === "image") medium.alt = "Your picture";
    else medium.controls = true;
    mine.append(medium);
  }
  const theirs = turn("assistant");
  theirs.scrollIntoView({ block: "end" });
  running = new AbortController();
  busy(true);
  try {
    await (preset().paints ? repaired(words, theirs) : answered(words, theirs));
    at("words").value = "";
    attached = [];
    shown();
  } catch (error) {
    theirs.append(made("p", error.name === "AbortError" ? "stopped" : error.message, "failed"));
  }
  busy(false);
  at("words").focus();
}

// Where an answer appears; `said` is what the conversation keeps of it.
function listener(element) {
  const film = new Film();
  const text = made("p");
  const began = performance.now();
  const said = { role: "assistant", content: null };
  element.append(text, film.element);
  return {
    said,
    canvas: (frame) => film.add(frame),
    text: (more) => {
      text.textContent += more;
      said.content = text.textContent;
    },
    image: (url) => {
      const image = document.createElement("img");
      image.src = url;
      image.alt = "The answer's picture";
      film.element.before(image);
      said.images = [...(said.images ?? []), { type: "image_url", image_url: { url } }];
    },
    audio: (url, words) => {
      const sound = document.createElement("audio");
      sound.src = url;
      sound.controls = true;
      film.element.before(sound);
      if (words) text.textContent = words;
      said.content = words || said.content;
      said.audio = { data: url.slice(url.indexOf(",") + 1), transcript: words };
    },
    end: (reason) => {
      const cut = reason === "length" ? ", cut at the canvas's end" : "";
      const seconds = ((performance.now() - began) / 1000).toFixed(1);
      element.append(made("p", `${film.frames.at(-1)?.step ?? 1} steps, ${seconds} s${cut}`, "facts"));
    },
  };
}

async function answered(words, element) {
  const free = preset().answer === null;
  const mine = await asked(words);
  const before = preset().system ? [{ role: "system", content: preset().system }] : [];
  const messages = free ? [...turns, mine] : [...before, mine];
  const heard = listener(element);
  const body = { model, messages, modalities: MODALITIES[at("answer").value], ...settings() };
  await chat(body, heard, running.signal);
  if (free) turns.push(mine, heard.said);
}

async function repaired(words, element) {
  const form = new FormData();
  form.append("model", model);
  form.append("prompt", words);
  form.append("image", attached.find((one) => one.kind === "image").file);
  form.append("mask", await brush.file());
  for (const [name, value] of Object.entries(settings())) form.append(name, value);
  await edit(form, listener(element), running.signal);
}

function busy(is) {
  at("send").disabled = is;
  at("stop").hidden = !is;
  tell(is ? "decoding…" : model);
}

function tell(text) {
  at("status").textContent = text;
}

async function connect() {
  try {
    model = await modelName();
    tell(model);
  } catch (error) {
    tell(`not ready: ${error.message}`);
    setTimeout(connect, 2000);
  }
}

for (const [name, { label }] of Object.entries(PRESETS)) at("preset").append(new Option(label, name));
for (const [name, [label, least, most, stride]] of Object.entries(SETTINGS)) {
  const field = made("label", label);
  const input = document.createElement("input");
  Object.assign(input, { id: `setting-${name}`, type: "number", min: least, max: most, step: stride, placeholder: "default" });
  field.append(input);
  at("fields").append(field);
}
at("preset").addEventListener("change", choose);
at("composer").addEventListener("submit", send);
at("record").addEventListener("click", record);
at("stop").addEventListener("click", () => running?.abort());
at("unpaint").addEventListener("click", () => brush.clear());
at("defaults").addEventListener("click", () => {
  for (const name of Object.keys(SETTINGS)) at(`setting-${name}`).value = "";
});
at("clear").addEventListener("click", () => {
  turns = [];
  at("turns").replaceChildren();
  at("empty").hidden = false;
});
at("file").addEventListener("change", (event) => {
  attach(event.target.files);
  event.target.value = "";
});
at("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !at("send").disabled) {
    event.preventDefault();
    at("composer").requestSubmit();
  }
});
document.addEventListener("paste", (event) => attach(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  attach(event.dataTransfer.files);
});
choose();
connect();
