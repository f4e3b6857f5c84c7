// The form of settings, as parameters of a chat completion.

import { byId } from "./dom.js";

const NUMBERS = [
  "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
  "repetition_penalty", "seed", "max_tokens",
];
const EXAMPLE_TOOLS = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather of a city, now.",
      parameters: {
        type: "object",
        properties: { city: { type: "string" }, unit: { enum: ["celsius", "fahrenheit"] } },
        required: ["city"],
      },
    },
  },
];
const EXAMPLE_SCHEMA = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" } },
  required: ["name", "age"],
};

const form = byId("settings-form");
const pretty = (value) => JSON.stringify(value, null, 2);

export function startSettings() {
  const { format, schema, tools } = form.elements;
  schema.value = pretty(EXAMPLE_SCHEMA);
  format.addEventListener("change", () => {
    byId("schema-field").hidden = format.value !== "json_schema";
  });
  byId("example-tools").addEventListener("click", () => { tools.value = pretty(EXAMPLE_TOOLS); });
  form.addEventListener("input", (event) => event.target.removeAttribute("aria-invalid"));
  form.addEventListener("submit", (event) => event.preventDefault());
}

export const systemPrompt = () => form.elements.system.value;

// Throws an Error whose message names the field that cannot be used, which is marked.
export function parameters() {
  const fields = form.elements, body = {};
  for (const name of NUMBERS) {
    if (!fields[name].validity.valid) throw invalid(name, fields[name].validationMessage);
    if (fields[name].value !== "") body[name] = fields[name].valueAsNumber;
  }
  const stop = fields.stop.value.split("\n").filter(Boolean);
  if (stop.length) body.stop = stop;
  if (fields.reasoning_effort.value) body.reasoning_effort = fields.reasoning_effort.value;
  if (fields.logprobs.checked) {
    body.logprobs = true;
    body.top_logprobs = fields.top_logprobs.valueAsNumber || 0;
  }
  if (fields.format.value === "json_object") body.response_format = { type: "json_object" };
  if (fields.format.value === "json_schema") {
    const schema = { name: "answer", schema: parsed("schema") };
    body.response_format = { type: "json_schema", json_schema: schema };
  }
  if (fields.tools.value.trim()) {
    body.tools = parsed("tools");
    body.tool_choice = fields.tool_choice.value;
  }
  return body;
}

function parsed(name) {
  try {
    return JSON.parse(form.elements[name].value);
  } catch (error) {
    throw invalid(name, error.message);
  }
}

function invalid(name, why) {
  form.elements[name].setAttribute("aria-invalid", "true");
  return new Error(`Settings, ${name}: ${why}`);
}
