// One turn of the conversation on the page. The assistant's grows with the chunks of a stream:
// thoughts, text or tokens, calls of tools, and a line on how it went.

import { element, perFrame } from "./dom.js";
import { markdown } from "./markdown.js";
import { TokenText } from "./tokens.js";
import { ToolCalls } from "./tool_calls.js";

export function saidTurn(role, text) {
  const who = role === "tool" ? "Result" : "You";
  return turnElement(role, who, element("div", { className: "said", textContent: text }));
}

function turnElement(role, who, ...children) {
  const name = element("h3", { className: "who", textContent: who });
  return element("li", { className: `turn ${role}` }, name, ...children);
}

export class AnswerTurn {
  // `onResults` is given a tool message for each call once its results are filled in.
  constructor({ onResults }) {
    this._text = "";
    this._thoughts = "";
    this._began = performance.now();
    this._first = 0;
    this._numDeltas = 0;
    this._usage = null;
    this._finish = "";
    this._waiting = element("p", { className: "hint waiting", textContent: "waiting" });
    this._thoughtText = element("div", { className: "said" });
    this._thoughtTokens = new TokenText();
    this._thoughtsTitle = element("summary", { textContent: "Thinking" });
    this._details = element(
      "details", { className: "thoughts", hidden: true }, this._thoughtsTitle, this._thoughtText,
      this._thoughtTokens.element,
    );
    this._prose = element("div", { className: "prose" });
    this._tokens = new TokenText();
    this._undecided = [];  // tokens of events without text, before there is any
    this._calls = new ToolCalls(onResults);
    this._about = element("p", { className: "hint about" });
    this.element = turnElement(
      "assistant", "Assistant", this._waiting, this._details, this._prose, this._tokens.element,
      this._calls.element, this._about,
    );
    this._view = perFrame(() => this._draw());
  }

  take(chunk) {
    this._usage = chunk.usage ?? this._usage;
    const choice = chunk.choices[0];
    if (!choice) return;
    const { content, reasoning_content: thought, tool_calls: calls } = choice.delta;
    if (content || thought || calls) {
      this._first ||= performance.now();
      this._last = performance.now();
      this._numDeltas += 1;
    }
    this._thoughts += thought ?? "";
    this._text += content ?? "";
    this._takeTokens(choice.logprobs?.content ?? [], choice.delta);
    this._calls.take(calls ?? []);
    this._finish = choice.finish_reason ?? this._finish;
    this._view.ask();
  }

  _takeTokens(tokens, { content, reasoning_content: thought, tool_calls: calls }) {
    this._undecided.push(...tokens);
    if (thought) this._thoughtTokens.add(this._undecided, thought);
    else if (this._text || calls) this._tokens.add(this._undecided, content ?? "");
    else return;
    this._undecided = [];
  }

  // The stream is over: by itself, or for the reason that is given.
  end(reason = "") {
    this._waiting.hidden = true;
    this._view.now();
    this._calls.end(!reason);
    this._about.textContent = [reason || this._finish, ...this._numbers()].filter(Boolean).join(" · ");
  }

  fail(message, again) {
    this.end("failed");
    const button = element("button", { type: "button", textContent: "Try again", onclick: again });
    this.element.append(element("p", { className: "error", textContent: message }), button);
  }

  get calls() {
    return this._calls;
  }

  // The turn as the API takes it back; null where nothing was said.
  message() {
    const calls = this._calls.all();
    if (!this._text && !this._thoughts && !calls.length) return null;
    const said = { role: "assistant", content: this._text };
    if (this._thoughts) said.reasoning_content = this._thoughts;
    if (calls.length) said.tool_calls = calls;
    return said;
  }

  _numbers() {
    if (!this._first) return [];
    const tokens = this._usage?.completion_tokens ?? this._numDeltas;
    const seconds = (this._last - this._first) / 1000;
    const about = this._usage ? "" : "≈ ";
    return [
      `${about}${tokens} tokens`,
      tokens > 1 && seconds > 0 ? `${about}${((tokens - 1) / seconds).toFixed(1)} tokens/s` : "",
      `first after ${Math.round(this._first - this._began)} ms`,
    ];
  }

  _draw() {
    this._waiting.hidden ||= this._first > 0;
    this._details.hidden = !this._thoughts;
    if (!choose(this._thoughtTokens, this._thoughtText)) {
      this._thoughtText.textContent = this._thoughts;
    }
    this._thoughtsTitle.textContent = this._text || this._finish ? "Thoughts" : "Thinking …";
    if (!choose(this._tokens, this._prose)) renew(this._prose, markdown(this._text));
    this._about.textContent = this._numbers().join(" · ");
  }
}

// Shows tokens where there are any, else the text; returns which.
function choose(tokens, text) {
  const hasTokens = tokens.length > 0;
  tokens.element.hidden = !hasTokens;
  text.hidden = hasTokens;
  return hasTokens;
}

// Replaces the blocks that have changed, so that what is selected above them stays so.
function renew(container, blocks) {
  blocks.forEach((block, index) => {
    const old = container.childNodes[index];
    if (!old) container.append(block);
    else if (!old.isEqualNode(block)) old.replaceWith(block);
  });
  while (container.childNodes.length > blocks.length) container.lastChild.remove();
}
