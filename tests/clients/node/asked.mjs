// What every client is asked, as tests/clients/cases.py and loops.py have it; by the pytest that runs
// these files.
import assert from "node:assert/strict";
import { z } from "zod";

export const {
  url, key, model, sum, answer, chain, mia, person, paint, noTopP, bias, loops, thinkingBlocks,
} = JSON.parse(process.env.ASKED);

const Coat = z
  .strictObject({ colour: z.enum(["red", "blue"]), glossy: z.boolean() })
  .meta({ id: "Coat" }); // so that the schema has a reference
export const Paint = z.strictObject({ first: Coat, second: Coat });
export const Person = z.strictObject({ name: z.string(), age: z.int() });

const tools = {
  calculator: ({ expression }) => {
    const [a, sign, b] = expression.split(" ");
    return sign === "+" ? Number(a) + Number(b) : Number(a) * Number(b);
  },
  add: ({ a, b }) => a + b,
  multiply: ({ a, b }) => a * b,
};

// A loop as it goes: runs the calls, and gathers what is told of each turn.
export class Run {
  made = [];
  thoughts = [];
  promptTokens = [];

  call(name, input) {
    this.made.push([name, input]);
    return String(tools[name](input));
  }

  check(loop, text) {
    assert.equal(text, loop.answer);
    assert.deepEqual(this.made, loop.calls);
    assert.deepEqual(this.thoughts, loop.thoughts);
    assert.deepEqual(this.promptTokens, loop.promptTokens);
  }
}
