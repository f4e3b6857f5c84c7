// A small part of Markdown as elements: code, headings, lists, bold, italics. Everything else, links,
// images and HTML included, stays the text that it is.

import { element } from "./dom.js";

const FENCE = /^\s*(```+|~~~+)\s*([\w+#.-]*)\s*$/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const BULLET = /^\s*[-*+]\s+(.*)$/;
const NUMBER = /^\s*(\d{1,9})[.)]\s+(.*)$/;
const INLINE = /(`+)(.+?)\1|\*\*(?=\S)(.+?)\*\*|\*(?=[^\s*])([^*]+?)\*/gs;

// The elements of a text, which may be cut anywhere: a stream's text so far.
export function markdown(text) {
  const lines = text.split("\n");
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    const fence = FENCE.exec(lines[at]);
    if (fence) {
      const end = closing(lines, at + 1, fence[1]);
      blocks.push(code(lines.slice(at + 1, end), fence[2]));
      at = end + 1;
    } else if (!lines[at].trim()) {
      at += 1;
    } else {
      const kind = kindOf(lines[at]);
      const start = at;
      do at += 1; while (at < lines.length && goesOn(kind, lines[at]));
      blocks.push(block(kind, lines.slice(start, at)));
    }
  }
  return blocks;
}

function closing(lines, from, mark) {
  const found = lines.findIndex((line, index) => index >= from && line.trim() === mark);
  return found < 0 ? lines.length : found;
}

function code(lines, language) {
  const inner = element("code", { textContent: lines.join("\n") });
  return element("pre", { dataset: { language }, tabIndex: 0 }, inner);
}

function kindOf(line) {
  if (HEADING.test(line)) return "heading";
  if (BULLET.test(line)) return "ul";
  return NUMBER.test(line) ? "ol" : "p";
}

function goesOn(kind, line) {
  if (!line.trim() || FENCE.test(line) || kind === "heading") return false;
  const other = kindOf(line);
  return other === kind || (other === "p" && /^\s/.test(line));
}

function block(kind, lines) {
  if (kind === "heading") {
    const [, marks, text] = HEADING.exec(lines[0]);
    return element(`h${Math.min(marks.length + 2, 6)}`, {}, ...inline(text));
  }
  if (kind === "p") return element("p", {}, ...inline(lines.join("\n")));
  const items = [];
  for (const line of lines) {
    const found = (kind === "ul" ? BULLET : NUMBER).exec(line);
    if (found) items.push(found.at(-1));
    else items.push(`${items.pop()}\n${line.trim()}`);
  }
  const list = element(kind, {}, ...items.map((item) => element("li", {}, ...inline(item))));
  if (kind === "ol") list.start = Number(NUMBER.exec(lines[0])[1]);
  return list;
}

function inline(text) {
  const parts = [];
  let end = 0;
  for (const found of text.matchAll(INLINE)) {
    const [whole, , codeText, bold, italic] = found;
    parts.push(text.slice(end, found.index));
    if (codeText !== undefined) parts.push(element("code", { textContent: codeText }));
    else if (bold !== undefined) parts.push(element("strong", {}, ...inline(bold)));
    else parts.push(element("em", {}, ...inline(italic)));
    end = found.index + whole.length;
  }
  parts.push(text.slice(end));
  return parts.filter((part) => part !== "");
}
