// The server's endpoints, as this page asks them.

// A request under /v1 that was granted; of one that was not, the error tells why and has its status.
async function asked(path, request, key) {
  const headers = { ...request.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const answer = await fetch(`v1/${path}`, { ...request, headers });
  if (!answer.ok) throw Object.assign(new Error(await said(answer)), { status: answer.status });
  return answer;
}

// The name of the model that is served.
export async function modelName(key) {
  const answer = await asked("models", {}, key);
  return (await answer.json()).data[0].id;
}

// Streams the answers to a conversation into `heard`, one listener each, with canvas(frame), text(more), image(url),
// audio(url, words) and end(reason).
export async function chat(body, heard, signal, key) {
  const whole = { ...body, n: heard.length, stream: true, stream_options: { include_canvas: true } };
  const headers = { "Content-Type": "application/json" };
  const request = { method: "POST", headers, body: JSON.stringify(whole), signal };
  const answer = await asked("chat/completions", request, key);
  for await (const [name, data] of events(answer)) {
    if (name === "canvas") heard[data.canvas.index].canvas(frame(data.canvas));
    for (const { index, delta, finish_reason } of data.choices ?? []) {
      if (delta.content) heard[index].text(delta.content);
      for (const image of delta.images ?? []) heard[index].image(image.image_url.url);
      if (delta.audio) heard[index].audio(`data:audio/wav;base64,${delta.audio.data}`, delta.audio.transcript);
      if (finish_reason) heard[index].end(finish_reason);
    }
  }
}

// Streams a picture with its hole filled into one listener; `form` holds image, mask, prompt and settings.
export async function edit(form, heard, signal, key) {
  form.append("stream", "true");
  form.append("include_canvas", "true");
  const answer = await asked("images/edits", { method: "POST", body: form, signal }, key);
  for await (const [name, data] of events(answer)) {
    if (name === "canvas") heard.canvas(frame(data.canvas));
    else if (name.endsWith(".completed")) {
      heard.image(`data:image/png;base64,${data.b64_json}`);
      heard.end("stop");
    }
  }
}

// Streams what a recording says into one listener; `form` holds file and settings.
export async function transcribe(form, heard, signal, key) {
  form.append("stream", "true");
  form.append("include_canvas", "true");
  const answer = await asked("audio/transcriptions", { method: "POST", body: form, signal }, key);
  for await (const [name, data] of events(answer)) {
    if (name === "canvas") heard.canvas(frame(data.canvas));
    else if (name.endsWith(".delta")) heard.text(data.delta);
    else if (name.endsWith(".done")) heard.end(data.finish === "end" ? "stop" : "length");
  }
}

function frame(canvas) {
  const { step, text, b64_json } = canvas;
  return b64_json ? { step, image: `data:image/png;base64,${b64_json}` } : { step, text };
}

// What a refusal says.
async function said(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the server answered ${answer.status}`;
  }
}

// The server-sent events of an answer, as [name, data].
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const whole = buffer.split("\n\n");
    buffer = whole.pop();
    for (const block of whole) {
      const lines = block.split("\n");
      const name = lines.find((line) => line.startsWith("event: "))?.slice(7) ?? "";
      const data = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (!data || data === "[DONE]") continue;
      const content = JSON.parse(data);
      if (name === "error" || content.error) throw new Error((content.error ?? content).message);
      yield [name, content];
    }
  }
}
