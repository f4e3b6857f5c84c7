// The conversation: what has been said, the composer, and one answer at a time.

import { call, events } from "./api.js";
import { byId } from "./dom.js";
import { parameters, systemPrompt } from "./settings.js";
import { AnswerTurn, saidTurn } from "./turn.js";

const prompt = byId("prompt"), turns = byId("turns");
let messages = [];
let running = null;  // the AbortController of the answer that comes
let latest = null;  // the newest AnswerTurn, whose calls may be answered

export function startChat() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running && prompt.value.trim()) say([{ role: "user", content: prompt.value }]);
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      byId("composer").requestSubmit();
    }
  });
  prompt.addEventListener("input", fit);
  byId("stop").addEventListener("click", stop);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
  byId("new-chat").addEventListener("click", begin);
  for (const button of document.querySelectorAll(".examples button")) {
    button.addEventListener("click", () => {
      if (!running) say([{ role: "user", content: button.textContent }]);
    });
  }
}

function begin() {
  stop();
  messages = [];
  latest = null;
  turns.replaceChildren();
  byId("welcome").hidden = false;
  complain("");
  prompt.focus();
}

function stop() {
  running?.abort();
}

// Adds messages to the conversation and has them answered.
async function say(added) {
  let body;
  try {
    body = parameters();
  } catch (error) {
    complain(error.message);
    return;
  }
  complain("");
  latest?.calls.close();
  messages.push(...added);
  for (const { role, content } of added) turns.append(saidTurn(role, content));
  byId("welcome").hidden = true;
  prompt.value = "";
  fit();
  await answer(body);
}

async function answer(settings) {
  const controller = new AbortController(), conversation = messages;
  const turn = new AnswerTurn({ onResults: say });
  const system = systemPrompt();
  const body = {
    ...settings,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...conversation],
    stream: true,
    stream_options: { include_usage: true },
  };
  latest = turn;
  turns.append(turn.element);
  busy(controller);
  try {
    const response = await call("v1/chat/completions", { body, signal: controller.signal });
    for await (const chunk of events(response)) {
      const atEnd = isAtEnd();
      turn.take(chunk);
      if (atEnd) requestAnimationFrame(toEnd);
    }
    turn.end();
    keep(turn, conversation);
  } catch (error) {
    if (controller.signal.aborted) {
      turn.end("stopped");
      keep(turn, conversation);
    } else {
      turn.fail(error.message, () => {
        if (running || turn !== latest) return;
        turn.element.remove();
        answer(settings);
      });
    }
  }
  if (running === controller) busy(null);
}

function keep(turn, conversation) {
  const message = turn.message();
  if (message) conversation.push(message);
}

function busy(controller) {
  running = controller;
  turns.setAttribute("aria-busy", String(Boolean(controller)));
  byId("send").hidden = Boolean(controller);
  byId("stop").hidden = !controller;
  toEnd();
}

const isAtEnd = () => turns.scrollHeight - turns.scrollTop - turns.clientHeight < 80;
const toEnd = () => { turns.scrollTop = turns.scrollHeight; };

function fit() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

function complain(message) {
  const line = byId("composer-error");
  line.textContent = message;
  line.hidden = !message;
}
