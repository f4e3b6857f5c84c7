// The calls of one turn: put together from a stream's deltas, shown, and answered by hand.

import { element } from "./dom.js";

export class ToolCalls {
  constructor(onResults) {
    this._calls = [];
    this._cards = element("div");
    this._send = element("button", { type: "button", textContent: "Send results" });
    this._send.hidden = true;
    this._send.addEventListener("click", () => {
      const results = this._calls.map(({ call, result }) => ({
        role: "tool", tool_call_id: call.id, content: result.value,
      }));
      this.close();
      onResults(results);
    });
    this.element = element("div", { className: "calls" }, this._cards, this._send);
  }

  take(deltas) {
    for (const delta of deltas) {
      const entry = (this._calls[delta.index] ??= this._card());
      const { call } = entry;
      call.id = delta.id ?? call.id;
      call.function.name += delta.function?.name ?? "";
      call.function.arguments += delta.function?.arguments ?? "";
      entry.name.textContent = call.function.name;
      entry.arguments.textContent = indented(call.function.arguments);
    }
  }

  // No more deltas come; `isWhole` where results may be sent.
  end(isWhole) {
    this._send.hidden = !isWhole || !this._calls.length;
    for (const { field } of this._calls) field.hidden = !isWhole;
  }

  // Results are no longer taken: the conversation has gone on.
  close() {
    this._send.hidden = true;
    for (const { result } of this._calls) result.readOnly = true;
  }

  all() {
    return this._calls.map(({ call }) => call);
  }

  _card() {
    const name = element("strong"), shown = element("code");
    const result = element("textarea", { rows: 2, className: "code", spellcheck: false });
    const field = element("label", { hidden: true }, "Result ", result);
    const title = element("p", {}, element("span", { className: "hint", textContent: "calls " }), name);
    this._cards.append(
      element("div", { className: "call" }, title, element("pre", { tabIndex: 0 }, shown), field),
    );
    const call = { id: "", type: "function", function: { name: "", arguments: "" } };
    return { call, name, arguments: shown, result, field };
  }
}

function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;  // not whole yet
  }
}
