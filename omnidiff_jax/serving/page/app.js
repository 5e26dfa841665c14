// The page: a conversation, what is attached to the next turn, and the settings of its answer.

import { answersIn } from "./answer.js";
import { chat, edit, modelName, transcribe } from "./api.js";
import { Brush } from "./brush.js";
import { at, made, picture, player } from "./elements.js";
import { MODALITIES, PRESETS, REVEALS, SETTINGS, STARTERS } from "./presets.js";
import { startRecording } from "./recorder.js";

const LONGEST = 60; // seconds of a recording
const FAINT = 0.005; // of the loudest there can be: less is no sound
const QUIET = 1.5; // seconds without a sound, after which that is told
const NEAR = 80; // pixels from the end of the conversation, within which it is followed

const brush = new Brush(at("brush"), at("radius"));
let model = "";
let turns = []; // as the server takes them
let attached = []; // {kind, file, url}
let recording = null; // a promise of it while there is one
let running = null;
let painted = null; // the picture under the brush
let following = true;
let scrolled = 0;

function preset() {
  return PRESETS[at("preset").value];
}

function choose() {
  const chosen = preset();
  at("form").hidden = chosen.answer !== null;
  if (chosen.answer) at("answer").value = chosen.answer;
  at("hint").textContent = chosen.hint;
  paintable();
}

async function paintable() {
  const shown = attached.find((one) => one.kind === "image");
  at("painting").hidden = !(preset().paints && shown);
  if (at("painting").hidden || painted === shown.file) return;
  painted = shown.file;
  try {
    brush.show(await createImageBitmap(shown.file, { imageOrientation: "from-image" }));
  } catch {
    at("painting").hidden = true;
    tell(`${shown.file.name} cannot be shown here`, true);
  }
}

function kindOf(file) {
  if (file.type.startsWith("image/")) return "image";
  return /^(audio\/|video\/webm)/.test(file.type) ? "audio" : null;
}

function attach(files) {
  for (const file of files) {
    const kind = kindOf(file);
    if (!kind) tell(`${file.name} is neither a picture nor a sound`, true);
    else attached = [...attached.filter((one) => one.kind !== kind), { kind, file, url: URL.createObjectURL(file) }];
  }
  shown();
}

const medium = (one) => (one.kind === "image" ? picture(one.url, one.file.name) : player(one.url));

function shown() {
  at("attached").replaceChildren(
    ...attached.map((one) => {
      const item = document.createElement("li");
      const remove = Object.assign(made("button", "Remove"), { type: "button" });
      remove.setAttribute("aria-label", `Remove ${one.file.name}`);
      remove.addEventListener("click", () => {
        attached = attached.filter((other) => other !== one);
        shown();
        at("words").focus();
      });
      item.append(medium(one), remove);
      return item;
    }),
  );
  paintable();
}

async function record() {
  if (recording !== null) return finish();
  indicate("waiting for the microphone…", null);
  let quiet = 0;
  let before = 0;
  const heard = (seconds, level) => {
    quiet = level === null || level > FAINT ? 0 : quiet + seconds - before;
    before = seconds;
    const clock = `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
    indicate(`recording ${clock}${quiet > QUIET ? ", but nothing is heard: is the microphone muted?" : ""}`, level);
    if (seconds >= LONGEST) finish(`stopped at ${LONGEST} seconds`);
  };
  try {
    recording = startRecording(heard, () => finish("the microphone was taken away"));
    await recording;
  } catch (error) {
    recording = null;
    indicate("", null);
    tell(`the microphone cannot be used: ${error.message}`, true);
  }
}

async function finish(why = "") {
  const begun = recording;
  recording = null;
  const done = await begun?.catch(() => null); // record() tells of it
  if (!done) return;
  const file = await done.stop();
  indicate("", null);
  attach([file]);
  if (why) tell(why);
}

// What the microphone does; level: how loud it is, null = not known.
function indicate(words, level) {
  at("recording").hidden = !words;
  at("recording").classList.toggle("live", words.startsWith("recording"));
  at("clock").textContent = words;
  at("level").hidden = level === null;
  at("level").value = Math.sqrt(level ?? 0);
  at("record").setAttribute("aria-pressed", String(Boolean(words)));
  at("record").textContent = words ? "Stop recording" : "Record";
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

// How many answers, and the settings of each.
function settings() {
  const { n = 1, ...found } = Object.fromEntries(
    Object.keys(SETTINGS)
      .map((name) => [name, at(`setting-${name}`).value])
      .filter(([, value]) => value !== "")
      .map(([name, value]) => [name, Number(value)]),
  );
  const kind = at("reveal").value;
  return { n, found: kind ? { ...found, settings: { "sampler.reveal.kind": kind } } : found };
}

function alike() {
  at("alike").hidden = !(settings().n > 1 && !settings().found.temperature);
}

// The user's turn as the server takes it: words before media, as the model was trained.
async function asked(words) {
  const chosen = preset();
  const text = (chosen.user ?? "{text}").replace("{text}", () => words || (chosen.fallback ?? ""));
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

// What keeps the turn from being sent.
function wrong(words) {
  const { answer, needs = [], paints, worded } = preset();
  for (const kind of ["image", "audio"]) {
    const [there, name] = [attached.some((one) => one.kind === kind), kind === "image" ? "picture" : "recording"];
    if (needs.includes(kind) && !there) return `this task needs a ${name}`;
    if (answer && !needs.includes(kind) && there) return `this task takes no ${name}; remove it`;
  }
  if (paints && !brush.painted) return "this task needs a painted hole";
  if (worded && !words) return "this task needs words";
  if (worded === false && words) return "this task takes no words";
  if (!words && !attached.length) return "a turn needs words, a picture or a recording";
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
  if (recording !== null) await finish();
  const words = at("words").value.trim();
  const why = wrong(words);
  if (why) return tell(why, true);
  const mine = turn("user");
  if (words) mine.append(made("p", words));
  mine.append(...attached.map(medium));
  const theirs = turn("assistant");
  theirs.setAttribute("aria-busy", "true");
  following = true;
  follow();
  running = new AbortController();
  busy(true);
  try {
    if (preset().paints) await repaired(words, theirs);
    else if (at("preset").value === "asr") await transcribed(theirs);
    else await answered(words, theirs);
    at("words").value = "";
    attached = [];
    shown();
    tell(model);
  } catch (error) {
    for (const one of theirs.querySelectorAll(".answer")) if (!one.innerText.trim()) one.remove();
    theirs.append(made("p", error.name === "AbortError" ? "stopped" : error.message, "failed"));
    tell(model);
  }
  theirs.setAttribute("aria-busy", "false");
  busy(false);
  at("words").focus();
}

async function answered(words, element) {
  const free = preset().answer === null;
  const mine = await asked(words);
  const before = preset().system ? [{ role: "system", content: preset().system }] : [];
  const messages = free ? [...turns, mine] : [...before, mine];
  const { n, found } = settings();
  const heard = answersIn(element, n, at("answer").value);
  const body = { model, messages, modalities: MODALITIES[at("answer").value], ...found };
  if (preset().positions) body.max_tokens = preset().positions;
  await chat(body, heard, running.signal, at("key").value);
  if (free) keep(mine, heard);
}

// The conversation goes on with one of the answers.
function keep(mine, heard) {
  turns.push(mine, heard[0].said);
  if (heard.length === 1) return;
  const [conversation, place] = [turns, turns.length - 1];
  heard.forEach(({ element, said }, i) => {
    const radio = document.createElement("input");
    Object.assign(radio, { type: "radio", name: `kept-${place}`, checked: i === 0 });
    const label = made("label");
    label.append(radio, " go on with this");
    element.append(label);
    radio.addEventListener("change", () => (conversation[place] = said));
  });
}

const file = (kind) => attached.find((one) => one.kind === kind).file;

async function repaired(words, element) {
  await filed(element, "image", edit, { prompt: words, image: file("image"), mask: await brush.file() });
}

async function transcribed(element) {
  await filed(element, "text", transcribe, { file: file("audio") });
}

// Answers of an endpoint that takes a form, and gives one answer to it.
async function filed(element, kind, endpoint, fields) {
  const { n, found } = settings();
  const one = (listener, i) => {
    const form = new FormData();
    const mine = found.seed === undefined ? found : { ...found, seed: (found.seed + i) % 2 ** 32 };
    for (const [name, value] of Object.entries({ model, ...fields, ...mine })) {
      form.append(name, name === "settings" ? JSON.stringify(value) : value);
    }
    return endpoint(form, listener, running.signal, at("key").value);
  };
  await Promise.all(answersIn(element, n, kind).map(one));
}

function busy(is) {
  at("send").disabled = is;
  at("stop").hidden = !is;
  if (is) tell("decoding…");
}

function tell(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

function follow() {
  if (following) at("conversation").scrollTop = at("conversation").scrollHeight;
}

async function connect() {
  try {
    model = await modelName(at("key").value);
    at("door").hidden = true;
    tell(model);
  } catch (error) {
    at("door").hidden = error.status !== 401;
    tell(error.status === 401 ? "the server asks for a key" : `not ready: ${error.message}`, true);
    if (error.status !== 401) setTimeout(connect, 2000);
  }
}

function labelled(label, input) {
  const field = made("label", label);
  field.append(input);
  at("fields").append(field);
}

for (const [name, { label }] of Object.entries(PRESETS)) at("preset").append(new Option(label, name));
for (const [name, words] of STARTERS) {
  const starter = Object.assign(made("button", `${PRESETS[name].label}: ${words}`), { type: "button" });
  starter.addEventListener("click", () => {
    at("preset").value = name;
    choose();
    at("words").value = words;
    at("words").focus();
  });
  at("starters").append(starter);
}
for (const [name, [label, least, most, stride]] of Object.entries(SETTINGS)) {
  const input = document.createElement("input");
  const placeholder = name === "n" ? "1" : "default";
  Object.assign(input, { id: `setting-${name}`, type: "number", min: least, max: most, step: stride, placeholder });
  labelled(label, input);
}
labelled("A step reveals", Object.assign(document.createElement("select"), { id: "reveal" }));
at("reveal").append(new Option("default", ""));
for (const [kind, label] of Object.entries(REVEALS)) at("reveal").append(new Option(label, kind));

at("preset").addEventListener("change", choose);
at("composer").addEventListener("submit", send);
at("record").addEventListener("click", record);
at("stop").addEventListener("click", () => running?.abort());
at("unpaint").addEventListener("click", () => brush.clear());
at("key").addEventListener("change", connect);
at("fields").addEventListener("input", alike);
at("defaults").addEventListener("click", () => {
  for (const name of Object.keys(SETTINGS)) at(`setting-${name}`).value = "";
  at("reveal").value = "";
  alike();
});
at("clear").addEventListener("click", () => {
  running?.abort();
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
at("conversation").addEventListener("scroll", (event) => {
  const { scrollHeight, scrollTop, clientHeight } = event.target;
  const near = scrollHeight - scrollTop - clientHeight < NEAR;
  if (near || scrollTop < scrolled) following = near; // what is appended meanwhile is no wish to stay
  scrolled = scrollTop;
});
const sizes = new ResizeObserver(follow);
sizes.observe(at("turns"));
sizes.observe(at("conversation"));
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
