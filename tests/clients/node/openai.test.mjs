// OpenAI's own package.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import OpenAI from "openai";
import {
  zodFunction, zodResponseFormat, zodResponsesFunction, zodTextFormat,
} from "openai/helpers/zod";
import {
  Paint, Person, Run, answer, bias, chain, key, loops, mia, model, noTopP, paint, person, sum, url,
} from "./asked.mjs";

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

test("output is filled rightly", async () => {
  const output = await client.chat.completions.parse({
    model, messages: [{ role: "user", content: mia }], response_format: zodResponseFormat(Person, "person"),
  });
  assert.deepEqual(output.choices[0].message.parsed, person);
  const answered = await client.responses.parse({
    model, input: mia, text: { format: zodTextFormat(Person, "person") },
  });
  assert.deepEqual(answered.output_parsed, person);
});

test("thoughts come apart from the answer", async () => {
  const messages = [{ role: "user", content: chain.question }];
  const { choices } = await client.chat.completions.create({ model, messages });
  const { reasoning_content, content } = choices[0].message;
  assert.deepEqual([reasoning_content, content], [chain.thought, chain.answer]);
  const { output, output_text } = await client.responses.create({ model, input: chain.question });
  assert.deepEqual([output[0].content[0].text, output_text], [chain.thought, chain.answer]);
});

// The package puts together the pieces of what it knows, which thoughts are not.
async function streamed(asked) {
  const stream = client.chat.completions.stream({ ...asked, stream_options: { include_usage: true } });
  let thought = "";
  stream.on("chunk", ({ choices }) => { thought += choices[0]?.delta.reasoning_content ?? ""; });
  const completion = await stream.finalChatCompletion();
  if (thought) completion.choices[0].message.reasoning_content = thought;
  return completion;
}

const of = (output, type) => output.filter((item) => item.type === type);

describe("loops of tools", { concurrency: true }, () => {
  for (const [kind, loop] of Object.entries(loops)) {
    test(`a loop of chat completions: ${kind}`, async () => {
      const run = new Run();
      const messages = [{ role: "user", content: loop.question }];
      const tools = loop.functions.map((each) => ({ type: "function", function: each }));
      const asked = { model, messages, tools, ...loop.body };
      let choice;
      do {
        const completion = await (loop.streams ? streamed(asked) : client.chat.completions.create(asked));
        choice = completion.choices[0];
        const { message } = choice;
        run.promptTokens.push(completion.usage.prompt_tokens);
        if (message.reasoning_content) run.thoughts.push(message.reasoning_content);
        messages.push(message);
        for (const { id, function: made } of message.tool_calls ?? []) {
          const content = run.call(made.name, JSON.parse(made.arguments));
          messages.push({ role: "tool", tool_call_id: id, content });
        }
      } while (choice.finish_reason === "tool_calls");
      run.check(loop, choice.message.content);
    });

    test(`a loop of responses: ${kind}`, async () => {
      const run = new Run();
      const input = [{ role: "user", content: loop.question }];
      const tools = loop.functions.map((each) => ({ type: "function", ...each }));
      const asked = { model, input, tools, ...loop.body };
      let calls, response;
      do {
        response = loop.streams
          ? await client.responses.stream(asked).finalResponse() : await client.responses.create(asked);
        const { output, usage } = response;
        run.promptTokens.push(usage.input_tokens);
        run.thoughts.push(...of(output, "reasoning").map((item) => item.content[0].text));
        calls = of(output, "function_call");
        input.push(...output, ...calls.map((made) => ({
          type: "function_call_output", call_id: made.call_id,
          output: run.call(made.name, JSON.parse(made.arguments)),
        })));
      } while (calls.length > 0);
      run.check(loop, response.output_text);
    });
  }
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
