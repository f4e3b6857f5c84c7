// Calls of this server's API, with the key where there is one, and its server-sent events.

import { askKey, storedKey } from "./key.js";

export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

// A successful response. Asks for a key, and again, while the server refuses the one it is sent.
export async function call(path, { body, signal } = {}) {
  for (;;) {
    const key = storedKey();
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    const options = { headers, signal, cache: "no-store" };
    if (body !== undefined) {
      options.method = "POST";
      options.body = JSON.stringify(body);
      headers["content-type"] = "application/json";
    }
    const response = await reached(path, options);
    if (response.ok) return response;
    if (response.status !== 401) throw await refusal(response);
    if (key === storedKey()) await askKey(key ? "The server does not know this key." : "");
  }
}

export async function json(path, options) {
  return (await call(path, options)).json();
}

// The objects of a stream's events; an error among them is thrown, as is an end without [DONE].
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await read(reader);
    if (done) throw new ApiError("The connection ended before the answer did.");
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      if (!block.startsWith("data: ")) continue;  // a comment
      const data = block.slice("data: ".length);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(event.error.message);
      yield event;
    }
  }
}

async function reached(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    throw lost(error);
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw lost(error);
  }
}

const lost = (error) =>
  error.name === "AbortError" ? error : new ApiError("The server cannot be reached.");

async function refusal(response) {
  let message = `The server answered ${response.status}.`;
  try {
    const { error } = await response.json();
    message = error.param ? `${error.param}: ${error.message}` : error.message;
  } catch {
    // No JSON: something between here and the server has answered.
  }
  return new ApiError(message, response.status);
}
