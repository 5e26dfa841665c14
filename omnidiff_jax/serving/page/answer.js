// Answers as they come: their canvases fill in, then they stand there as text, picture and sound.

import { made, picture, player } from "./elements.js";
import { Film } from "./film.js";

// `count` answers side by side in an element, each with the methods that api.js tells; `said` of one is what the
// conversation keeps of it.
export function answersIn(element, count, form) {
  const began = performance.now();
  const row = made("div", "", "answers");
  element.append(row);
  return Array.from({ length: count }, () => new Answer(row, form, began));
}

class Answer {
  constructor(row, form, began) {
    this.began = began;
    this.said = { role: "assistant", content: null };
    this.words = made("p");
    this.content = made("div", "", "content");
    this.content.append(this.words);
    this.film = new Film(this.content, form.includes("speech"));
    this.element = made("div", "", "answer");
    this.element.append(this.content, this.film.element);
    row.append(this.element);
  }

  canvas(frame) {
    this.film.add(frame);
  }

  text(more) {
    this.words.textContent += more;
    this.said.content = this.words.textContent;
  }

  image(url) {
    this.content.append(picture(url, "The answer's picture"));
    this.said.images = [...(this.said.images ?? []), { type: "image_url", image_url: { url } }];
  }

  audio(url, words) {
    this.content.append(player(url));
    if (words) this.words.textContent = words;
    this.said.content = words || this.said.content;
    this.said.audio = { data: url.slice(url.indexOf(",") + 1), transcript: words };
  }

  end(reason) {
    this.film.end();
    const steps = this.film.frames.at(-1)?.step ?? 1;
    const seconds = ((performance.now() - this.began) / 1000).toFixed(1);
    const cut = reason === "length" ? ", cut at the canvas's end" : "";
    this.element.append(made("p", `${steps} step${steps === 1 ? "" : "s"}, ${seconds} s${cut}`, "facts"));
  }
}
