// Questions about the result: the talk so far, a box for the next one, answers as they come.

import { Failure, get, send } from "./api.js";
import { el } from "./dom.js";

const MOST_BUTTONS = 6; // cited facts in sight; the others are in the list

/** The panel. `onPick` shows polygons on the map and flies there. */
export async function panel(result, onPick) {
  const url = `/api/results/${encodeURIComponent(result.id)}/talk`;
  const { answerers, longest, examples, turns } = await get(url);
  const titles = new Map(answerers.map((a) => [a.name, a.title]));
  const log = el("div", { class: "talk", role: "log", "aria-label": "Questions and answers" });
  const trouble = el("p", { class: "trouble", role: "alert", hidden: true });
  const input = el("input", { id: "question", type: "text", maxlength: longest, required: true, autocomplete: "off" });
  const who = el("select", { id: "answerer" }, answerers.map((a) => el("option", { value: a.name }, a.title)));
  const button = el("button", { type: "submit", class: "tool primary" }, "Ask");
  const forget = el("button", { type: "button", class: "link", onclick: clear }, "Forget this talk");
  const hints = el(
    "div", { class: "hints", role: "group", "aria-label": "For example" },
    examples.map((text) => el("button", { type: "button", class: "hint", onclick: () => ask(text) }, text)),
  );
  const form = el(
    "form", { class: "asking" },
    el("label", { for: "question" }, "Your question"),
    el("div", { class: "asking-row" }, input, button),
    answerers.length > 1
      ? el("div", { class: "field" }, el("label", { for: "answerer" }, "Who answers"), who)
      : el("p", { class: "dim small" }, `Answered by: ${answerers[0].title}. A follow-up may go on from the question before.`),
    trouble, forget,
  );
  let asking = false;

  const show = () => {
    forget.hidden = !log.children.length;
    hints.hidden = Boolean(log.children.length);
  };
  async function clear() {
    await send("DELETE", url);
    log.replaceChildren();
    show();
    input.focus();
  }
  async function ask(question) {
    if (asking || !question.trim()) return;
    asking = true;
    trouble.hidden = true;
    const waiting = el("p", { class: "dim waiting" }, "Looking at the facts …");
    const said = el("div", { class: "said" });
    const turn = el("article", { class: "turn", "aria-label": question }, el("h3", { class: "asked" }, question), said, waiting);
    log.append(turn);
    show();
    turn.scrollIntoView({ block: "nearest" });
    try {
      await stream(url, { question, answerer: who.value || "rules" }, {
        step: ({ text }) => { waiting.textContent = `Looking up: ${text.replaceAll("_", " ")} …`; },
        sentence: ({ text }) => said.append(el("p", {}, text)),
        answer: (answer) => said.replaceWith(...answered(answer, titles, onPick)),
        trouble: ({ text }) => { throw new Failure(text); },
      });
      input.value = "";
    } catch (error) {
      turn.remove();
      show();
      trouble.textContent = error instanceof Failure ? error.message : "The answer broke off; ask again.";
      trouble.hidden = false;
      if (!(error instanceof Failure)) console.error(error);
    } finally {
      waiting.remove();
      asking = false;
      turn.scrollIntoView({ block: "nearest" });
      input.focus({ preventScroll: true });
    }
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask(input.value);
  });
  for (const { question, answer } of turns) {
    log.append(el("article", { class: "turn", "aria-label": question }, el("h3", { class: "asked" }, question), ...answered(answer, titles, onPick)));
  }
  show();
  return [log, hints, form];
}

function answered(answer, titles, onPick) {
  const showable = answer.facts.filter((f) => f.polygons);
  const cite = (fact) =>
    el(
      "button",
      {
        type: "button", class: "cite", "data-fact": fact.id, title: fact.sentence,
        "aria-label": `Show on the map: ${fact.sentence}`, onclick: () => onPick(fact.polygons, true),
      },
      fact.display,
    );
  const rest = el(
    "details", { class: "evidence" },
    el("summary", {}, answer.facts.length === 1 ? "1 fact behind it" : `${answer.facts.length} facts behind it`),
    el(
      "ul", { class: "cited" },
      answer.facts.map((f) => el("li", {}, el("code", {}, f.id), ` ${f.sentence} `, f.polygons ? cite(f) : null)),
    ),
  );
  return [
    el(
      "div", { class: answer.answered ? "said" : "said unknown" },
      answer.answered ? null : el("strong", { class: "badge" }, "Cannot tell"),
      answer.sentences.map((text) => el("p", {}, text)),
    ),
    showable.length ? el("div", { class: "cites" }, showable.slice(0, MOST_BUTTONS).map(cite)) : null,
    answer.facts.length ? rest : null,
    el("p", { class: "dim small" }, [sure(answer), titles.get(answer.answerer) ?? answer.answerer].filter(Boolean).join(" · ")),
  ].filter(Boolean);
}

function sure({ answered: known, confidence: { understood, evidence, statement } }) {
  const parts = [];
  if (!known) return "";
  if (typeof understood === "number") parts.push(`Question understood: ${Math.round(100 * understood)} %`);
  if (typeof evidence === "number") parts.push(`probability of the change: ${evidence.toFixed(2)}`);
  else if (statement) parts.push(statement);
  return parts.join(", ");
}

/** Sends a question and calls back for each event of the answer. */
async function stream(url, body, on) {
  let answer;
  try {
    answer = await fetch(url, {
      method: "POST", credentials: "same-origin", body: JSON.stringify(body), headers: { "content-type": "application/json" },
    });
  } catch {
    throw new Failure("The server does not answer. Is `terralapse serve` still running?");
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => null);
    throw new Failure(said?.detail ?? `The server answered with ${answer.status}.`);
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let ended = false;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    text += value;
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const found = text.slice(0, end).match(/^event: (\w+)\ndata: ([^]*)$/);
      text = text.slice(end + 2);
      if (!found) continue;
      on[found[1]]?.(JSON.parse(found[2]));
      ended ||= found[1] === "answer";
    }
  }
  if (!ended) throw new Failure("The answer broke off; ask again.");
}
