// The AI SDK, by its provider of servers that speak OpenAI's API, and by OpenAI's own, which asks for
// responses.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, generateText, streamText, tool } from "ai";
import { Paint, answer, bias, key, model, noTopP, paint, sum, url } from "./asked.mjs";

// What the SDK has no option for is added to each body.
const provider = (added) => createOpenAICompatible({
  name: "switchyard", baseURL: url, apiKey: key, includeUsage: true, supportsStructuredOutputs: true,
  transformRequestBody: (body) => ({ ...body, ...added }),
});
const responses = (added) => createOpenAI({
  baseURL: url, apiKey: key,
  fetch: (address, options) => fetch(address, {
    ...options, body: JSON.stringify({ ...JSON.parse(options.body), ...added }),
  }),
});
// Nothing is stored, so that the SDK must not refer to what was.
const options = { maxRetries: 0, providerOptions: { openai: { store: false } } };

for (const [name, make] of [["chat", provider], ["responses", responses]]) {
  const plain = { ...options, model: make({})(model) };
  const terse = { ...options, model: make({ logit_bias: bias })(model) };

  test(`${name}: it answers whole and streamed`, async () => {
    const whole = await generateText({ ...plain, prompt: sum });
    assert.equal(whole.text, answer);
    assert.equal(whole.usage.outputTokens, 3);
    const stream = streamText({ ...plain, prompt: sum });
    assert.equal(await stream.text, answer);
    assert.equal((await stream.usage).outputTokens, 3);
  });

  test(`${name}: a tool is called, whole and streamed`, async () => {
    const tools = { paint: tool({ description: "Paint a wall.", inputSchema: Paint }) };
    for (const call of [generateText, streamText]) {
      const result = await call({ ...terse, prompt: paint, tools, toolChoice: "required" });
      const [made] = await result.toolCalls;
      assert.equal(made.toolName, "paint");
      Paint.parse(made.input);
      const { messages } = await result.response;
      const { toolCallId, toolName } = made;
      const done = { type: "tool-result", toolCallId, toolName, output: { type: "text", value: "done" } };
      const before = [{ role: "user", content: paint }, ...messages, { role: "tool", content: [done] }];
      const end = await generateText({ ...plain, messages: before, tools, maxOutputTokens: 16 });
      assert.ok(end.usage.outputTokens <= 16);
    }
  });

  test(`${name}: output keeps to a schema`, async () => {
    const output = Output.object({ schema: Paint });
    Paint.parse((await generateText({ ...terse, prompt: paint, output })).output);
  });

  test(`${name}: an error has its class`, async () => {
    const refused = generateText({ ...plain, prompt: sum, topP: noTopP });
    await assert.rejects(refused, (error) => {
      return APICallError.isInstance(error) && error.statusCode === 400;
    });
  });
}
