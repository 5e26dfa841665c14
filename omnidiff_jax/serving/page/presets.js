// What can be asked for: the model's tasks as it was trained on them, and free conversation.

// answer: its form; null = as chosen, in a conversation that is remembered. system, user: turns, {text} for what is
// typed. needs: the media it takes. worded: whether words must be typed, or may not be. positions: of an answer in
// text, where a few words are too little.
export const PRESETS = {
  chat: { label: "Conversation", answer: null, hint: "Say anything, with any media; earlier turns are remembered." },
  text_qa: {
    label: "Question about words", answer: "text", worded: true,
    hint: "Describe something and ask about it.",
  },
  captioning: {
    label: "Describe a picture", answer: "text", needs: ["image"], fallback: "Describe the image.", positions: 20,
    hint: "Attach a picture; words are optional.",
  },
  vqa: {
    label: "Question about a picture", answer: "text", needs: ["image"], worded: true,
    hint: "Attach a picture and ask about it.",
  },
  t2i: {
    label: "Draw", answer: "image", worded: true,
    user: "Generate an image based on the provided text description.\n{text}",
    hint: "Say what the picture shows.",
  },
  inpainting: {
    label: "Repair a picture", answer: "image", needs: ["image"], paints: true, worded: true,
    hint: "Attach a picture, paint over what is to be drawn anew, and say what the whole shows.",
  },
  asr: {
    label: "Transcribe", answer: "text", needs: ["audio"], worded: false,
    hint: "Record or attach speech.",
  },
  tts: {
    label: "Read aloud", answer: "speech", worded: true, user: "Convert the text to speech.\n{text}",
    hint: "Type what is to be said.",
  },
  spoken_qa: {
    label: "Ask aloud", answer: "text_and_speech", needs: ["audio"], system: "Please response the input audio.",
    hint: "Record a question; the answer is spoken.",
  },
  s2i: {
    label: "Speech to picture", answer: "image", needs: ["audio"],
    system: "Please generate an image based on the input audio.", hint: "Say what the picture shows.",
  },
  spoken_vqa: {
    label: "Ask aloud about a picture", answer: "text_and_speech", needs: ["audio", "image"],
    system: "Please response the input audio based on the given image.",
    hint: "Attach a picture and record a question.",
  },
};

// What an empty conversation offers to begin with: a preset, and words for it.
const SCENE = "small red circle top left, big blue square bottom right, on white";
export const STARTERS = [["t2i", SCENE], ["text_qa", `${SCENE}. what color is the circle`], ["tts", "it is red"]];

export const MODALITIES = { text: ["text"], image: ["image"], speech: ["audio"], text_and_speech: ["text", "audio"] };

// Settings of a request by the names that the server takes: [label, least, most, stride].
export const SETTINGS = {
  n: ["Answers", 1, 10, 1],
  steps: ["Steps", 1, 1024, 1],
  temperature: ["Temperature", 0, 10, 0.1],
  top_p: ["Top-p", 0.01, 1, 0.01],
  top_k: ["Top-k", 0, 10000, 1],
  guidance: ["Guidance", 0, 20, 0.1],
  repetition: ["Repetition penalty", 0.1, 10, 0.1],
  block: ["Block size", 0, 1024, 1],
  seed: ["Seed", 0, 4294967295, 1],
};

// Ways to choose what a step reveals, by the server's word for them.
export const REVEALS = {
  schedule: "as many as planned",
  threshold: "whatever is sure",
  stable: "whatever stays sure",
};
