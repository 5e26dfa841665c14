// A picture with a hole painted into it, by pointer or by keyboard.

const STEP = 4;

export class Brush {
  constructor(canvas, radius) {
    this.canvas = canvas;
    this.radius = radius;
    this.picture = null;
    this.mask = document.createElement("canvas"); // opaque where painted
    this.cursor = { x: 0, y: 0 };
    this.painted = false;
    let last = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      last = this.#place(event);
      this.#stroke(last, last);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (last === null) return;
      const here = this.#place(event);
      this.#stroke(last, here);
      last = here;
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (last = null));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("focus", () => this.#draw());
    canvas.addEventListener("blur", () => this.#draw());
  }

  // Shows a picture (an ImageBitmap) without a hole.
  show(picture) {
    this.picture = picture;
    for (const canvas of [this.canvas, this.mask]) {
      canvas.width = picture.width;
      canvas.height = picture.height;
    }
    this.cursor = { x: picture.width / 2, y: picture.height / 2 };
    this.clear();
  }

  clear() {
    this.mask.getContext("2d").clearRect(0, 0, this.mask.width, this.mask.height);
    this.painted = false;
    this.#draw();
  }

  // A PNG in the picture's own pixels, transparent where it is to be drawn anew.
  async file() {
    const whole = document.createElement("canvas");
    whole.width = this.mask.width;
    whole.height = this.mask.height;
    const context = whole.getContext("2d");
    context.fillRect(0, 0, whole.width, whole.height);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(this.mask, 0, 0);
    const blob = await new Promise((resolve) => whole.toBlob(resolve, "image/png"));
    return new File([blob], "mask.png", { type: "image/png" });
  }

  #size() {
    return (Number(this.radius.value) / 100) * Math.max(this.canvas.width, this.canvas.height);
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * this.canvas.width,
      y: ((event.clientY - box.top) / box.height) * this.canvas.height,
    };
  }

  #stroke(from, to) {
    const context = this.mask.getContext("2d");
    context.strokeStyle = "#e6249c";
    context.lineWidth = 2 * this.#size();
    context.lineCap = "round";
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(to.x + 0.01, to.y);
    context.stroke();
    this.painted = true;
    this.cursor = { ...to };
    this.#draw();
  }

  #key(event) {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (move) {
      const unit = Math.max(1, (STEP / 100) * this.canvas.width);
      this.cursor.x = Math.max(0, Math.min(this.canvas.width, this.cursor.x + move[0] * unit));
      this.cursor.y = Math.max(0, Math.min(this.canvas.height, this.cursor.y + move[1] * unit));
      this.#draw();
    } else if (event.key === " ") this.#stroke(this.cursor, this.cursor);
    else return;
    event.preventDefault();
  }

  #draw() {
    if (!this.picture) return;
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.drawImage(this.picture, 0, 0);
    context.globalAlpha = 0.7;
    context.drawImage(this.mask, 0, 0);
    context.globalAlpha = 1;
    if (this.canvas.matches(":focus-visible")) {
      context.strokeStyle = "#e6249c";
      context.lineWidth = Math.max(1, this.canvas.width / 128);
      context.beginPath();
      context.arc(this.cursor.x, this.cursor.y, this.#size(), 0, 2 * Math.PI);
      context.stroke();
    }
  }
}
