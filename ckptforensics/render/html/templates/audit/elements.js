// How an element is made: whatever is put into one is text.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  for (const child of children) {
    if (child !== null && child !== undefined) {
      element.append(child instanceof Node ? child : String(child));
    }
  }
  return element;
}

const el = (tag, attributes, ...children) =>
  fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);
// A name of a model: its direction of writing stays its own.
const name = (text) => el("bdi", { class: "said" }, text);
const number = (value) => value.toLocaleString("en");

function bytes(count) {
  let value = count;
  for (const unit of ["B", "kB", "MB"]) {
    if (value < 999.5)
      return `${value >= 100 || unit === "B" ? value.toFixed(0) : value.toFixed(1)} ${unit}`;
    value /= 1000;
  }
  return `${value.toLocaleString("en", { maximumFractionDigits: 1 })} GB`;
}

function list(rows) {
  return el("ul", {}, ...rows.map((row) => el("li", { class: "said" }, row)));
}
