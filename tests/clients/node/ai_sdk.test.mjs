// The AI SDK, by its provider of servers that speak OpenAI's API.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, generateText, streamText, tool } from "ai";
import { Paint, answer, bias, key, model, noTopP, paint, sum, url } from "./asked.mjs";

// What the SDK has no option for is added to each body.
const provider = (added) => createOpenAICompatible({
  name: "switchyard", baseURL: url, apiKey: key, includeUsage: true, supportsStructuredOutputs: true,
  transformRequestBody: (body) => ({ ...body, ...added }),
});
const plain = { model: provider({})(model), maxRetries: 0 };
const terse = { model: provider({ logit_bias: bias })(model), maxRetries: 0 };

test("it answers whole and streamed", async () => {
  const whole = await generateText({ ...plain, prompt: sum });
  assert.equal(whole.text, answer);
  assert.equal(whole.usage.outputTokens, 3);
  const stream = streamText({ ...plain, prompt: sum });
  assert.equal(await stream.text, answer);
  assert.equal((await stream.usage).outputTokens, 3);
});

test("a tool is called, whole and streamed", async () => {
  const tools = { paint: tool({ description: "Paint a wall.", inputSchema: Paint }) };
  for (const call of [generateText, streamText]) {
    const result = await call({ ...terse, prompt: paint, tools, toolChoice: "required" });
    const [made] = await result.toolCalls;
    assert.equal(made.toolName, "paint");
    Paint.parse(made.input);
  }
});

test("output keeps to a schema", async () => {
  const output = Output.object({ schema: Paint });
  Paint.parse((await generateText({ ...terse, prompt: paint, output })).output);
});

test("an error has its class", async () => {
  const refused = generateText({ ...plain, prompt: sum, topP: noTopP });
  await assert.rejects(refused, (error) => {
    return APICallError.isInstance(error) && error.statusCode === 400;
  });
});
