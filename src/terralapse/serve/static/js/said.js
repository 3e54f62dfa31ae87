// What the forms of people have in common: grades, drawing an outline, and sending what was said.

import { el } from "./dom.js";

export const GRADES = [["", "not graded"], ["none", "No damage"], ["minor", "Minor damage"], ["major", "Major damage"], ["destroyed", "Destroyed"]];

/** Draws an outline: `shape` says what to do and `tools` holds the buttons. `done` is told the ring, or null when it
    was given up. */
export function draw(pen, shape, tools, done) {
  const finish = el("button", { type: "button", class: "tool primary", onclick: () => pen.finish() }, "Finish");
  pen.begin(done, (n) => {
    shape.textContent = n ? `${n} points. Three make an outline.` : "Click its corners on the map one after the other, or move the map and add its middle.";
    finish.disabled = n < 3;
  });
  tools.replaceChildren(
    finish,
    el("button", { type: "button", class: "tool", onclick: () => pen.atMiddle() }, "Add middle of the map"),
    el("button", { type: "button", class: "tool", onclick: () => pen.undo() }, "Undo point"),
    el("button", { type: "button", class: "link", onclick: () => pen.stop() }, "Cancel"),
  );
}

/** Sends and tells what came of it, a conflict with what somebody else said. */
export async function post(url, body) {
  try {
    const found = await fetch(url, {
      method: "POST", credentials: "same-origin", body: JSON.stringify(body), headers: { "content-type": "application/json" },
    });
    const answer = await found.json().catch(() => null);
    return { ok: found.ok, answer, problem: found.ok ? null : (answer?.detail ?? `The server answered with ${found.status}.`) };
  } catch {
    return { ok: false, answer: null, problem: "The server does not answer. Is `terralapse serve` still running?" };
  }
}
