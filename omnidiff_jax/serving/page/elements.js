// Pieces of the document.

export const at = (id) => document.getElementById(id);

export function made(tag, text = "", name = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  return element;
}

export function picture(url, told) {
  return Object.assign(document.createElement("img"), { src: url, alt: told });
}

export function player(url) {
  return Object.assign(document.createElement("audio"), { src: url, controls: true });
}
