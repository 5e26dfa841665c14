// The server's endpoints, as this page asks them.

// The name of the model that is served; rejects while it is not ready.
export async function modelName() {
  const answer = await fetch("v1/models");
  if (!answer.ok) throw new Error(await said(answer));
  return (await answer.json()).data[0].id;
}

// Streams a conversation's answer into `heard`, an object with canvas(frame), text(more), image(url), audio(url, words)
// and end(reason).
export async function chat(body, heard, signal) {
  const asked = { ...body, stream: true, stream_options: { include_canvas: true } };
  const answer = await fetch("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(asked),
    signal,
  });
  for await (const [name, data] of events(answer)) {
    if (name === "canvas") heard.canvas(frame(data.canvas));
    for (const choice of data.choices ?? []) {
      const { content, images, audio } = choice.delta;
      if (content) heard.text(content);
      for (const image of images ?? []) heard.image(image.image_url.url);
      if (audio) heard.audio(`data:audio/wav;base64,${audio.data}`, audio.transcript);
      if (choice.finish_reason) heard.end(choice.finish_reason);
    }
  }
}

// Streams a picture with its hole filled; `form` holds image, mask, prompt and settings.
export async function edit(form, heard, signal) {
  form.append("stream", "true");
  form.append("partial_images", "3");
  const answer = await fetch("v1/images/edits", { method: "POST", body: form, signal });
  let step = 0;
  for await (const [name, data] of events(answer)) {
    const url = `data:image/png;base64,${data.b64_json}`;
    if (name.endsWith(".partial_image")) heard.canvas({ step: ++step, image: url });
    else if (name.endsWith(".completed")) {
      heard.image(url);
      heard.end("stop");
    }
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
  if (!answer.ok) throw new Error(await said(answer));
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
