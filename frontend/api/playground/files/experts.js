// The map of experts: a row for each sparse layer, a column for each expert, and a colour for its
// tokens beside the mean of its layer. The legend's fields hold the colours.

import { byId } from "./dom.js";

const HOTTEST = 2;
const MAX_CELL_HEIGHT = 22;

export class ExpertMap {
  constructor() {
    this._canvas = byId("expert-map");
    this._legend = [...document.querySelectorAll(".legend i")];
    this._previous = [];
    this._latest = [];
    this._layers = [];
    this._at = null;
    this._canvas.addEventListener("pointermove", (event) => this._point(event));
    this._canvas.addEventListener("keydown", (event) => this._move(event));
    byId("experts-total").addEventListener("change", () => this._choose());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this._draw());
    new ResizeObserver(() => this._draw()).observe(byId("experts"));
  }

  // The newest counts: what was added since the last look is shown, where anything was.
  take({ layers }) {
    byId("experts").hidden = !layers.length;
    if (!layers.length) return;
    if (!sameSums(layers, this._latest)) {
      this._previous = this._latest;
      this._latest = layers;
      this._choose();
    }
  }

  _choose() {
    const isTotal = byId("experts-total").checked;
    this._layers = isTotal ? this._latest : added(this._previous, this._latest);
    const imbalance = Math.max(...this._latest.map((layer) => layer.imbalance));
    const about = `${this._layers.length} layers × ${this._layers[0].tokens.length} experts; `
      + `busiest rank of any layer: ${imbalance.toFixed(2)} × the mean`;
    byId("experts-about").textContent = about;
    this._canvas.setAttribute("aria-label", `Map of experts: ${about}`);
    this._draw();
    this._tell();
  }

  _draw() {
    const width = this._canvas.clientWidth * devicePixelRatio;
    if (!this._layers.length || !width) return;
    const rows = this._layers.length, columns = this._layers[0].tokens.length;
    const size = width / columns;
    const height = Math.max(2, Math.min(size, MAX_CELL_HEIGHT * devicePixelRatio));
    const gap = Math.min(size, height) > 6 ? devicePixelRatio : 0;
    this._canvas.width = width;
    this._canvas.height = Math.ceil(rows * height);
    Object.assign(this._canvas.dataset, { layers: rows, experts: columns });
    const colours = this._legend.map((field) => getComputedStyle(field).backgroundColor);
    const context = this._canvas.getContext("2d");
    this._layers.forEach(({ tokens }, row) => {
      const heats = heatsOf(tokens);
      heats.forEach((heat, column) => {
        context.fillStyle = colours[level(heat, colours.length)];
        const left = Math.round(column * size), right = Math.round((column + 1) * size);
        const top = Math.round(row * height), bottom = Math.round((row + 1) * height);
        context.fillRect(left, top, right - left - gap, bottom - top - gap);
      });
    });
  }

  _point(event) {
    const box = this._canvas.getBoundingClientRect();
    const part = (at, from, length, number) =>
      Math.max(0, Math.min(number - 1, Math.floor(((at - from) / length) * number)));
    this._at = {
      row: part(event.clientY, box.top, box.height, this._layers.length),
      column: part(event.clientX, box.left, box.width, this._layers[0].tokens.length),
    };
    this._tell();
  }

  _move(event) {
    const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    const step = steps[event.key];
    if (!step || !this._layers.length) return;
    event.preventDefault();
    const wrapped = (at, number) => (at + number) % number;
    const { row, column } = this._at ?? { row: 0, column: 0 };
    this._at = {
      row: wrapped(row + step[0], this._layers.length),
      column: wrapped(column + step[1], this._layers[0].tokens.length),
    };
    this._tell();
  }

  _tell() {
    if (!this._at) return;
    const { row, column } = this._at, { layer, tokens } = this._layers[row];
    byId("expert-cell").textContent = `Layer ${layer}, expert ${column}: `
      + `${tokens[column].toLocaleString("en")} tokens, ${heatsOf(tokens)[column].toFixed(2)} × the mean`;
  }
}

// Each expert's tokens over the mean of its layer.
function heatsOf(tokens) {
  const mean = tokens.reduce((sum, count) => sum + count, 0) / tokens.length;
  return tokens.map((count) => (mean ? count / mean : 0));
}

// The first colour is for none; the mean has the middle one.
const level = (heat, number) =>
  heat ? 1 + Math.min(number - 2, Math.floor((heat / HOTTEST) * (number - 2))) : 0;

const sum = (layers) => layers.reduce((all, { tokens }) => tokens.reduce((a, b) => a + b, all), 0);
const sameSums = (a, b) => a.length === b.length && sum(a) === sum(b);

// Tokens added from one look to the next; all of them where workers have started anew.
function added(before, now) {
  if (before.length !== now.length || sum(before) > sum(now)) return now;
  return now.map((layer, row) => ({
    ...layer, tokens: layer.tokens.map((count, column) => count - before[row].tokens[column]),
  }));
}
