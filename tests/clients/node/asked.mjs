// What every client is asked, as tests/clients/cases.py has it; by the pytest that runs these files.
import { z } from "zod";

export const { url, key, model, sum, answer, paint, noTopP, bias } = JSON.parse(process.env.ASKED);

const Coat = z
  .strictObject({ colour: z.enum(["red", "blue"]), glossy: z.boolean() })
  .meta({ id: "Coat" }); // so that the schema has a reference
export const Paint = z.strictObject({ first: Coat, second: Coat });
