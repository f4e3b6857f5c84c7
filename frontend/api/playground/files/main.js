// Starts the page: panels, settings, the chat, and, once the server answers, its side view.

import { json } from "./api.js";
import { startChat } from "./chat.js";
import { byId } from "./dom.js";
import { forgetKey, storedKey } from "./key.js";
import { showState, startServer } from "./server.js";
import { startSettings } from "./settings.js";

const RETRY_MS = 2000;
const wide = matchMedia("(min-width: 70rem)");
const panelButtons = [...document.querySelectorAll("[data-panel]")];

function showPanel(button, isShown) {
  byId(button.dataset.panel).hidden = !isShown;
  button.setAttribute("aria-expanded", String(isShown));
}

function startPanels() {
  for (const button of panelButtons) {
    showPanel(button, wide.matches);
    button.addEventListener("click", () => {
      const isShown = byId(button.dataset.panel).hidden;
      if (!wide.matches) panelButtons.forEach((each) => showPanel(each, false));
      showPanel(button, isShown);
    });
  }
  wide.addEventListener("change", () => {
    panelButtons.forEach((each) => showPanel(each, wide.matches));
  });
}

async function connect() {
  try {
    const { data: [model] } = await json("v1/models");
    byId("model-name").textContent = model.id;
    document.title = `${model.id} · Switchyard`;
    startServer(model.id);
  } catch (error) {
    showState("lost", error.message);
    setTimeout(connect, RETRY_MS);
  }
}

startPanels();
startSettings();
startChat();
byId("forget-key").hidden = !storedKey();
byId("forget-key").addEventListener("click", forgetKey);
byId("prompt").focus();
connect();
