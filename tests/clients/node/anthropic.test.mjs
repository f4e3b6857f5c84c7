// Anthropic's own package.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import { z } from "zod";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import {
  Paint, Person, Run, answer, chain, key, loops, mia, model, noTopP, paint, person, sum, thinkingBlocks, url,
} from "./asked.mjs";

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

test("a tool is called that has to be, whole and streamed", async () => {
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

const of = (content, type) => content.filter((block) => block.type === type);
const textOf = (message) => of(message.content, "text").map((block) => block.text).join("");

describe("loops of tools", { concurrency: true }, () => {
  for (const [kind, loop] of Object.entries(loops)) {
    test(`a loop of tools: ${kind}`, async () => {
      const run = new Run();
      const messages = [{ role: "user", content: loop.question }];
      const tools = loop.functions.map(({ name, parameters }) => ({ name, input_schema: parameters }));
      const asked = { model, max_tokens: 400, messages, tools };
      if (loop.thinks) asked.thinking = thinkingBlocks;
      let message;
      do {
        message = loop.streams
          ? await client.messages.stream(asked).finalMessage() : await client.messages.create(asked);
        const { content, usage } = message;
        run.promptTokens.push(usage.input_tokens + usage.cache_read_input_tokens);
        run.thoughts.push(...of(content, "thinking").map((block) => block.thinking));
        const results = of(content, "tool_use").map(({ id, name, input }) => ({
          type: "tool_result", tool_use_id: id, content: run.call(name, input),
        }));
        messages.push({ role: "assistant", content }, { role: "user", content: results });
      } while (message.stop_reason === "tool_use");
      assert.equal(message.stop_reason, "end_turn");
      run.check(loop, textOf(message));
    });
  }
});

test("thoughts come apart from the answer", async () => {
  const message = await client.messages.create({
    model, max_tokens: 100, thinking: { type: "adaptive" },
    messages: [{ role: "user", content: chain.question }],
  });
  assert.equal(message.content[0].thinking, chain.thought);
  assert.equal(textOf(message), chain.answer);
});

test("output is filled rightly", async () => {
  const message = await client.messages.parse({
    model, max_tokens: 100, messages: [{ role: "user", content: mia }],
    output_config: { format: zodOutputFormat(Person) },
  });
  assert.deepEqual(message.parsed_output, person);
});

test("prompts are counted, and errors have their classes", async () => {
  const { input_tokens } = await client.messages.countTokens({ model, messages: asked.messages });
  assert.ok(input_tokens > 0);
  const refused = client.messages.create({ ...asked, top_p: noTopP });
  await assert.rejects(refused, Anthropic.BadRequestError);
  await assert.rejects(client.withOptions({ apiKey: "another" }).models.list(), Anthropic.AuthenticationError);
});
