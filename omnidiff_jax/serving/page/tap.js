// Runs in the audio thread: hands on what the microphone gives, and null once it is told to end, after the last of it.

class Tap extends AudioWorkletProcessor {
  constructor() {
    super();
    this.over = false;
    this.port.onmessage = () => {
      this.over = true;
      this.port.postMessage(null);
    };
  }

  process([input]) {
    if (!this.over && input.length) this.port.postMessage(input[0].slice());
    return !this.over;
  }
}

registerProcessor("tap", Tap);
