// The microphone, as a WAV file of 16-bit mono samples made in the page.

const RATE = 16000;
const MAX_SECONDS = 60;

export class Recorder {
  // Begins at once; rejects where the browser has no microphone or may not use it.
  static async start() {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
    return new Recorder(stream);
  }

  constructor(stream) {
    this.stream = stream;
    this.context = new AudioContext({ sampleRate: RATE });
    this.parts = [];
    this.length = 0;
    const source = this.context.createMediaStreamSource(stream);
    // An AudioWorklet would need a file of its own for a loop of three lines.
    this.tap = this.context.createScriptProcessor(4096, 1, 1);
    this.tap.onaudioprocess = (event) => {
      if (this.length >= MAX_SECONDS * RATE) return;
      const samples = new Float32Array(event.inputBuffer.getChannelData(0));
      this.parts.push(samples);
      this.length += samples.length;
    };
    source.connect(this.tap);
    this.tap.connect(this.context.destination);
  }

  // Ends the recording; a File.
  async stop() {
    this.stream.getTracks().forEach((track) => track.stop());
    this.tap.disconnect();
    const rate = this.context.sampleRate;
    await this.context.close();
    const samples = new Float32Array(this.length);
    let at = 0;
    for (const part of this.parts) {
      samples.set(part, at);
      at += part.length;
    }
    return new File([wav(samples, rate)], "recording.wav", { type: "audio/wav" });
  }
}

// Samples from -1 to 1 as the bytes of a WAV file.
export function wav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const word = (at, text) => [...text].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  word(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  word(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of what follows
  view.setUint16(20, 1, true); // whole numbers
  view.setUint16(22, 1, true); // one channel
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  word(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, i) => view.setInt16(44 + 2 * i, 32767 * Math.max(-1, Math.min(1, sample)), true));
  return view.buffer;
}
