// OpenAI's own package.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import {
  zodFunction, zodResponseFormat, zodResponsesFunction, zodTextFormat,
} from "openai/helpers/zod";
import { Paint, answer, bias, key, model, noTopP, paint, sum, url } from "./asked.mjs";

const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });
const question = [{ role: "user", content: sum }];
const request = [{ role: "user", content: paint }];

test("several choices, streamed with usage and scores", async () => {
  const stream = client.chat.completions.stream({
    model, messages: question, n: 2, logprobs: true, stream_options: { include_usage: true },
  });
  const { choices, usage } = await stream.finalChatCompletion();
  assert.deepEqual(choices.map((choice) => choice.message.content), [answer, answer]);
  assert.equal(choices[0].logprobs.content[0].token, answer[0]);
  assert.equal(usage.completion_tokens, 6);
});

test("output and arguments are parsed", async () => {
  const output = await client.chat.completions.parse({
    model, messages: request, logit_bias: bias, response_format: zodResponseFormat(Paint, "paint"),
  });
  Paint.parse(output.choices[0].message.parsed);
  const called = await client.chat.completions.parse({
    model, messages: request, logit_bias: bias, tool_choice: "required",
    tools: [zodFunction({ name: "paint", parameters: Paint })],
  });
  const [call] = called.choices[0].message.tool_calls;
  Paint.parse(call.function.parsed_arguments);
});

test("errors have their classes", async () => {
  const refused = client.chat.completions.create({ model, messages: question, top_p: noTopP });
  await assert.rejects(refused, (error) => {
    return error instanceof OpenAI.BadRequestError && error.param === "top_p";
  });
  const stranger = client.withOptions({ apiKey: "another" });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
});

test("responses, streamed, parsed and with a tool", async () => {
  const stream = client.responses.stream({ model, input: sum });
  const { output, usage } = await stream.finalResponse();
  assert.equal(output[0].content[0].text, answer);
  assert.equal(usage.output_tokens, 3);
  const parsed = await client.responses.parse({
    model, input: paint, logit_bias: bias, text: { format: zodTextFormat(Paint, "paint") },
  });
  Paint.parse(parsed.output_parsed);
  const called = await client.responses.parse({
    model, input: paint, logit_bias: bias, tool_choice: "required",
    tools: [zodResponsesFunction({ name: "paint", parameters: Paint })],
  });
  Paint.parse(called.output[0].parsed_arguments);
});
