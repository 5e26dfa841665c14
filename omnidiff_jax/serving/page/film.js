// An answer's canvas as it fills in: the newest frame while it is decoded, any frame by the slider.

export class Film {
  constructor() {
    this.frames = [];
    this.element = document.createElement("figure");
    this.element.className = "film";
    this.shown = document.createElement("div");
    this.shown.className = "frame";
    this.slider = document.createElement("input");
    this.slider.type = "range";
    this.slider.min = 1;
    this.count = document.createElement("span");
    const label = document.createElement("label");
    label.append("Canvas", this.slider, this.count);
    this.element.append(this.shown, label);
    this.element.hidden = true;
    this.slider.addEventListener("input", () => this.#show(Number(this.slider.value) - 1));
  }

  // A frame: {step, image} (a data URL), {step, text} (a dot for each mask) or {step, masked} (a flag for each position).
  add(frame) {
    const following = Number(this.slider.value) >= this.frames.length;
    this.frames.push(frame);
    this.slider.max = this.frames.length;
    this.element.hidden = false;
    if (following) this.#show(this.frames.length - 1);
    else this.#tell(Number(this.slider.value) - 1);
  }

  #show(number) {
    const frame = this.frames[number];
    this.slider.value = number + 1;
    this.shown.replaceChildren(frame.image ? picture(frame.image) : frame.masked ? cells(frame.masked) : text(frame.text));
    this.#tell(number);
  }

  #tell(number) {
    this.count.textContent = `step ${this.frames[number].step} of ${this.frames.at(-1).step}`;
  }
}

function picture(url) {
  const image = document.createElement("img");
  image.src = url;
  image.alt = "The picture as far as it is decoded";
  return image;
}

function cells(masked) {
  const row = document.createElement("div");
  row.className = "cells";
  row.setAttribute("role", "img");
  row.setAttribute("aria-label", `${masked.filter((mask) => !mask).length} of ${masked.length} positions decoded`);
  for (const mask of masked) {
    const cell = document.createElement("i");
    if (!mask) cell.className = "known";
    row.append(cell);
  }
  return row;
}

function text(partly) {
  const line = document.createElement("p");
  for (const run of partly.split(/(·+)/)) {
    if (!run.startsWith("·")) line.append(run);
    else {
      const mark = document.createElement("mark");
      mark.textContent = run;
      line.append(mark);
    }
  }
  return line;
}
