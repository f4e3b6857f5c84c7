// Anthropic's own package.
import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import { z } from "zod";
import { Paint, answer, key, model, noTopP, paint, sum, url } from "./asked.mjs";

const baseURL = url.replace(/\/v1$/, "");
const client = new Anthropic({ baseURL, apiKey: key, maxRetries: 0 });
const asked = { model, max_tokens: 20, messages: [{ role: "user", content: sum }] };

test("it answers whole and streamed, with usage", async () => {
  const whole = await client.messages.create(asked);
  const stream = client.messages.stream(asked);
  for (const message of [whole, await stream.finalMessage()]) {
    assert.equal(message.content[0].text, answer);
    assert.equal(message.usage.output_tokens, 3);
    assert.equal(message.stop_reason, "end_turn");
  }
});

test("a tool is called, whole and streamed", async () => {
  const tool = { name: "paint", description: "Paint a wall.", input_schema: z.toJSONSchema(Paint) };
  const request = {
    model, max_tokens: 400, tools: [tool], tool_choice: { type: "any" },
    messages: [{ role: "user", content: paint }],
  };
  const whole = await client.messages.create(request);
  for (const message of [whole, await client.messages.stream(request).finalMessage()]) {
    assert.equal(message.content[0].name, "paint");
    Paint.parse(message.content[0].input);
  }
});

test("prompts are counted, and errors have their classes", async () => {
  const { input_tokens } = await client.messages.countTokens({ model, messages: asked.messages });
  assert.ok(input_tokens > 0);
  const refused = client.messages.create({ ...asked, top_p: noTopP });
  await assert.rejects(refused, Anthropic.BadRequestError);
  await assert.rejects(client.withOptions({ apiKey: "another" }).models.list(), Anthropic.AuthenticationError);
});
