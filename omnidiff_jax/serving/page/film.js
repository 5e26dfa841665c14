// An answer's canvas as it fills in: the newest frame while it is decoded, any frame by the slider.

import { made, picture } from "./elements.js";

const PACE = 150; // milliseconds a frame
const COLOURS = "A row is a step: gray is masked, blue speech, green words, white the rest.";

export class Film {
  // `answer`: the element that takes the last frame's place once the answer is there. `strip`: whether frames are rows
  // that are seen below each other, as those of speech; they stay beside the answer.
  constructor(answer, strip) {
    this.answer = answer;
    this.strip = strip;
    this.frames = [];
    this.over = false;
    this.shown = made("div", "", strip ? "frame strip" : "frame");
    this.slider = Object.assign(document.createElement("input"), { type: "range", min: 1, max: 1, value: 1 });
    this.slider.setAttribute("aria-label", "Canvas");
    this.count = made("span");
    this.again = Object.assign(made("button", "▶\uFE0E"), { type: "button" });
    this.again.setAttribute("aria-label", "Replay");
    this.controls = made("div", "", "row");
    this.controls.append(this.slider, this.count, this.again);
    this.controls.hidden = true;
    this.element = made("figure", "", "film");
    this.element.append(this.shown, this.controls);
    if (strip) this.element.append(made("figcaption", COLOURS));
    this.slider.addEventListener("input", () => this.#show());
    this.again.addEventListener("click", () => this.#replay());
  }

  // A frame: {step, image} (a data URL) or {step, text} (a dot for each mask).
  add(frame) {
    const following = Number(this.slider.value) >= this.frames.length;
    this.frames.push(frame);
    this.slider.max = this.frames.length;
    if (following) this.slider.value = this.frames.length;
    if (this.strip) this.shown.append(drawn(frame));
    this.controls.hidden = this.frames.length < 2;
    this.#show();
  }

  // The answer is there.
  end() {
    this.over = true;
    this.#show();
  }

  #show() {
    const number = Number(this.slider.value);
    const whole = this.over && number >= this.frames.length;
    if (this.strip) [...this.shown.children].forEach((row, i) => (row.hidden = i >= number));
    else if (this.frames.length) this.shown.replaceChildren(drawn(this.frames[number - 1]));
    this.shown.hidden = whole && !this.strip;
    this.answer.hidden = !whole && !this.strip;
    const told = this.frames.length ? `step ${this.frames[number - 1].step} of ${this.frames.at(-1).step}` : "";
    this.count.textContent = told;
    this.slider.setAttribute("aria-valuetext", told);
  }

  #replay() {
    clearInterval(this.running);
    this.slider.value = 1;
    this.#show();
    this.running = setInterval(() => {
      if (Number(this.slider.value) >= this.frames.length) clearInterval(this.running);
      this.slider.value = Number(this.slider.value) + 1;
      this.#show();
    }, PACE);
  }
}

function drawn(frame) {
  if (frame.image) return picture(frame.image, `The canvas after step ${frame.step}`);
  const line = made("p");
  for (const run of frame.text.split(/(·+)/)) line.append(run.startsWith("·") ? made("mark", run) : run);
  return line;
}
