// Tokens of an answer, each coloured by its probability; what else could have stood there is shown
// for the one that is pointed at, or that the arrow keys lead to.

import { byId, element } from "./dom.js";

// The least probability of each class, best first: .likely-0 in chat.css has no colour.
const CLASSES = [0.9, 0.6, 0.3, 0.1, 0];

export class TokenText {
  constructor() {
    this.element = element("div", { className: "tokens", tabIndex: 0 });
    this.element.setAttribute("aria-label", "Tokens; the arrow keys lead from one to the next");
    this.element.setAttribute("aria-describedby", "token-card");
    this._spans = [];  // each with its tokens: several where they make a character together
    this._pending = [];  // parts of a character that has not ended
    this._at = -1;
    this.element.addEventListener("pointerover", (event) => this._point(event.target));
    this.element.addEventListener("pointerleave", ({ pointerType }) => {
      if (pointerType === "mouse") this._show(-1);  // a finger leaves whenever it is lifted
    });
    this.element.addEventListener("blur", () => this._show(-1));
    this.element.addEventListener("keydown", (event) => this._move(event));
  }

  get length() {
    return this._spans.length;
  }

  // The tokens of one event, and the text that came with them.
  add(added, text) {
    const tokens = [...this._pending, ...added];
    const first = tokens.findIndex(isPart), last = tokens.findLastIndex(isPart);
    this._pending = [];
    if (first < 0) {
      for (const token of tokens) this._append([token], token.token);
    } else if (!text && last === tokens.length - 1) {
      this._pending = tokens;
    } else {
      const before = tokens.slice(0, first), after = tokens.slice(last + 1);
      for (const token of before) this._append([token], token.token);
      this._append(tokens.slice(first, last + 1), between(text, before, after));
      for (const token of after) this._append([token], token.token);
    }
  }

  _append(tokens, text) {
    const least = Math.min(...tokens.map(({ logprob }) => Math.exp(logprob)));
    const level = CLASSES.findIndex((bound) => least >= bound);
    const span = element("span", { textContent: text, className: `likely-${level}` });
    this._spans.push({ span, tokens });
    this.element.append(span);
  }

  _point(target) {
    this._show(this._spans.findIndex(({ span }) => span === target));
  }

  _move(event) {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 };
    if (event.key === "Escape") this._show(-1);
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    const at = this._at < 0 ? 0 : this._at + step;
    this._show(Math.max(0, Math.min(at, this._spans.length - 1)));
  }

  _show(at) {
    this._spans[this._at]?.span.classList.remove("current");
    this._at = at;
    const card = byId("token-card"), shown = this._spans[at];
    card.hidden = !shown;
    if (!shown) return;
    const { span, tokens } = shown;
    span.classList.add("current");
    card.replaceChildren(...(tokens.length > 1 ? parts(tokens) : alternatives(tokens[0])));
    place(card, span.getClientRects()[0] ?? span.getBoundingClientRect());
  }
}

const isPart = (token) => token.bytes === null;

// What of an event's text is of the tokens between these.
function between(text, before, after) {
  const joined = (tokens) => tokens.map(({ token }) => token).join("");
  const start = joined(before), end = joined(after);
  const rest = text.startsWith(start) ? text.slice(start.length) : text;
  return end && rest.endsWith(end) ? rest.slice(0, -end.length) : rest;
}

// The token that was drawn, and the likeliest ones in its place.
function alternatives(token) {
  const isDrawn = (each) => each.token === token.token && each.logprob === token.logprob;
  const likeliest = token.top_logprobs;
  const listed = likeliest.some(isDrawn) ? likeliest : [token, ...likeliest];
  return listed.map((each) => row(visible(each.token), each.logprob, isDrawn(each)));
}

// The tokens that make a character together.
const parts = (tokens) =>
  tokens.map(({ logprob }, at) => row(`part ${at + 1} of ${tokens.length}`, logprob, true));

function row(name, logprob, isDrawn) {
  const share = Math.exp(logprob), bar = element("span", { className: "share" });
  bar.style.width = `${share * 100}%`;
  return element(
    "div",
    { className: isDrawn ? "drawn" : "" },
    element("code", { textContent: name }),
    element("span", { className: "bar" }, bar),
    element("span", { textContent: percent(share) }),
  );
}

const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "·");
const percent = (share) => (share < 0.0005 ? "<0.1 %" : `${(share * 100).toFixed(1)} %`);

function place(card, spot) {
  const { offsetWidth: width, offsetHeight: height } = card;
  const left = Math.max(8, Math.min(spot.left, innerWidth - width - 8));
  const below = spot.bottom + 6;
  card.style.left = `${left}px`;
  card.style.top = `${below + height > innerHeight ? spot.top - height - 6 : below}px`;
}
