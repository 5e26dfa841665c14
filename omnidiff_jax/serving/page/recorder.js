// The microphone: a WAV file of 16-bit mono samples that an AudioWorklet hands over, or WebM where there is no worklet.

const TOLD = 10; // times a second

// Begins a recording; `stop()` of it gives a File. `heard(seconds, level)` is told how much there is so far and how
// loud the newest of it is, from 0 to 1, or null where that is not known; `gone()` that the microphone was taken away.
// Rejects where the browser has no microphone or may not use it.
export async function startRecording(heard, gone) {
  if (!navigator.mediaDevices) throw new Error("browsers give it to pages of https and localhost only");
  // Automatic gain would make silence loud, and the loudness that is told untrue.
  const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, autoGainControl: false } });
  stream.getAudioTracks()[0].addEventListener("ended", gone);
  const context = new AudioContext(); // at the microphone's rate: the server resamples
  try {
    if (!context.audioWorklet) {
      await context.close();
      return new Encoded(stream, heard);
    }
    await context.audioWorklet.addModule("tap.js");
    await context.resume();
    return new Samples(stream, context, heard);
  } catch (error) {
    silence(stream);
    throw error;
  }
}

class Samples {
  constructor(stream, context, heard) {
    this.stream = stream;
    this.context = context;
    this.parts = [];
    this.length = 0;
    const mono = { channelCount: 1, channelCountMode: "explicit", numberOfOutputs: 0 };
    this.tap = new AudioWorkletNode(context, "tap", mono);
    let loudest = 0;
    let due = 0;
    this.tap.port.onmessage = ({ data }) => {
      this.parts.push(data);
      this.length += data.length;
      for (const sample of data) loudest = Math.max(loudest, Math.abs(sample));
      if (this.length < due) return;
      heard(this.length / context.sampleRate, Math.min(1, loudest));
      due = this.length + context.sampleRate / TOLD;
      loudest = 0;
    };
    context.createMediaStreamSource(stream).connect(this.tap);
  }

  async stop() {
    const take = this.tap.port.onmessage;
    await new Promise((resolve) => {
      this.tap.port.onmessage = (message) => (message.data ? take(message) : resolve());
      this.tap.port.postMessage("end");
    });
    silence(this.stream);
    await this.context.close();
    const samples = new Float32Array(this.length);
    let at = 0;
    for (const part of this.parts) {
      samples.set(part, at);
      at += part.length;
    }
    return new File([wav(samples, this.context.sampleRate)], "recording.wav", { type: "audio/wav" });
  }
}

class Encoded {
  constructor(stream, heard) {
    this.stream = stream;
    this.parts = [];
    this.recorder = new MediaRecorder(stream, { mimeType: "audio/webm" });
    let began = 0;
    this.recorder.onstart = () => (began = performance.now());
    this.recorder.ondataavailable = ({ data }) => {
      this.parts.push(data);
      heard((performance.now() - began) / 1000, null);
    };
    this.recorder.start(1000 / TOLD);
  }

  async stop() {
    await new Promise((resolve) => {
      this.recorder.onstop = resolve;
      this.recorder.stop();
    });
    silence(this.stream);
    return new File(this.parts, "recording.webm", { type: "audio/webm" });
  }
}

function silence(stream) {
  for (const track of stream.getTracks()) track.stop();
}

// Samples from -1 to 1 as the bytes of a WAV file.
function wav(samples, rate) {
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
