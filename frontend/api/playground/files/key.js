// The API key: asked for by a dialog, kept in this tab's sessionStorage and nowhere else.

import { byId } from "./dom.js";

const NAME = "switchyard-key";
let asking = null;

export const storedKey = () => sessionStorage.getItem(NAME) ?? "";

export function forgetKey() {
  sessionStorage.removeItem(NAME);
  location.reload();
}

// Resolves once there is another key; several callers share one dialog.
export function askKey(why) {
  asking ??= ask(why).finally(() => { asking = null; });
  return asking;
}

function ask(why) {
  const dialog = byId("key-dialog"), form = byId("key-form"), input = byId("key");
  show(why);
  input.value = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.oncancel = (event) => event.preventDefault();
    form.onsubmit = (event) => {
      event.preventDefault();
      const key = input.value.trim();
      if (!/^[!-~]+$/.test(key)) {
        show("A key has letters, digits and signs of ASCII alone, and no spaces.");
        return;
      }
      sessionStorage.setItem(NAME, key);
      input.value = "";
      byId("forget-key").hidden = false;
      dialog.close();
      resolve();
    };
  });
}

function show(why) {
  const line = byId("key-error");
  line.textContent = why;
  line.hidden = !why;
}
