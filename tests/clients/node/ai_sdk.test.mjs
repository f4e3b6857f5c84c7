// The AI SDK, by its provider of servers that speak OpenAI's API, and by OpenAI's own, which asks for
// responses.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import {
  Paint, Person, Run, answer, bias, chain, key, loops, mia, model, noTopP, paint, person, sum, url,
} from "./asked.mjs";

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
// It asks for thoughts where it knows that a model thinks, or is told so.
const thinking = { store: false, forceReasoning: true, reasoningSummary: "auto" };
const thinker = { maxRetries: 0, providerOptions: { openai: thinking } };

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

  test(`${name}: a tool is called that has to be, whole and streamed`, async () => {
    const tools = { paint: tool({ description: "Paint a wall.", inputSchema: Paint }) };
    for (const call of [generateText, streamText]) {
      const result = await call({ ...terse, prompt: paint, tools, toolChoice: "required" });
      const [made] = await result.toolCalls;
      assert.equal(made.toolName, "paint");
      Paint.parse(made.input);
    }
  });

  describe(`${name}: loops of tools`, { concurrency: true }, () => {
    for (const [kind, loop] of Object.entries(loops)) {
      test(kind, async () => {
        const run = new Run();
        const tools = Object.fromEntries(loop.functions.map((each) => [each.name, tool({
          inputSchema: jsonSchema(each.parameters), execute: (input) => run.call(each.name, input),
        })]));
        const call = loop.streams ? streamText : generateText;
        const asked = { ...thinker, model: make(loop.body)(model), prompt: loop.question, tools };
        const result = await call({ ...asked, stopWhen: stepCountIs(4) });
        const text = await result.text;
        const steps = await result.steps;
        run.thoughts = steps.flatMap((step) => step.reasoning.map((part) => part.text));
        run.promptTokens = steps.map((step) => step.usage.inputTokens);
        run.check(loop, text);
      });
    }
  });

  test(`${name}: thoughts come apart from the answer`, async () => {
    const asked = { ...thinker, model: make({})(model), prompt: chain.question };
    const { reasoningText, text } = await generateText(asked);
    assert.deepEqual([reasoningText, text], [chain.thought, chain.answer]);
  });

  test(`${name}: output keeps to a schema`, async () => {
    const output = Output.object({ schema: Paint });
    Paint.parse((await generateText({ ...terse, prompt: paint, output })).output);
    const told = { ...plain, prompt: mia, output: Output.object({ schema: Person }) };
    assert.deepEqual((await generateText(told)).output, person);
  });

  test(`${name}: an error has its class`, async () => {
    const refused = generateText({ ...plain, prompt: sum, topP: noTopP });
    await assert.rejects(refused, (error) => {
      return APICallError.isInstance(error) && error.statusCode === 400;
    });
  });
}
