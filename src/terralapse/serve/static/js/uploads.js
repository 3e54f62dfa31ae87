// Sends images to the server in pieces. What breaks goes on where it stopped; what is sent survives the panel.

import { Failure, get, send } from "./api.js";
import { Sha256 } from "./sha256.js";

const PIECE = 4 * 2 ** 20;
const ATTEMPTS = 6;
const PASSING = [400, 408, 409, 423, 429, 502, 503, 504];
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

/** An image on its way: `state` is sending, checking, ready or failed; `share` is of its bytes. `done` is a
    promise that is kept when it ends, however that is. */
export class Sending {
  constructor(file, renew) {
    Object.assign(this, { file, name: file.name, bytes: file.size, state: "sending", share: 0, message: "", renew });
    this.id = null;
    this.input = null; // what an analysis calls it
    this.image = null; // what it is
    this.stopped = false;
    this.done = this.#run();
  }

  async stop() {
    this.stopped = true;
    await this.done;
    if (this.id) await send("DELETE", `/api/uploads/${this.id}`).catch(() => null);
  }

  #show(values) {
    Object.assign(this, values);
    this.renew();
  }

  async #run() {
    try {
      await this.#send();
    } catch (error) {
      if (!(error instanceof Failure)) console.error(error);
      const lost = `${this.name}: the browser cannot read it any more. Choose it again.`;
      this.#show({ state: "failed", message: error instanceof Failure ? error.message : lost });
    }
  }

  async #send() {
    const { file } = this;
    const key = `${file.size}:${file.lastModified}:${file.name}`.slice(0, 200);
    const made = await send("POST", "/api/uploads", { name: file.name, bytes: file.size, key });
    this.id = made.id;
    const hash = new Sha256();
    let { offset } = made;
    for (let at = 0; at < file.size && !this.stopped; at += PIECE) {
      const end = Math.min(at + PIECE, file.size);
      hash.add(new Uint8Array(await file.slice(at, end).arrayBuffer()));
      while (offset < end && !this.stopped) offset = await this.#piece(offset, end);
      this.#show({ share: offset / file.size });
    }
    if (this.stopped) return;
    this.#show({ state: "checking" });
    const ended = await send("POST", `/api/uploads/${this.id}/finish`, { sha256: hash.end() });
    this.#show({ state: "ready", input: ended.input, image: ended.image });
  }

  /** Sends the bytes from an offset to an end; returns how many the server has. */
  async #piece(offset, end) {
    for (let attempt = 1; ; attempt += 1) {
      let answer = null;
      try {
        answer = await fetch(`/api/uploads/${this.id}`, {
          method: "PATCH",
          body: this.file.slice(offset, end),
          headers: { "content-type": "application/offset+octet-stream", "upload-offset": String(offset) },
          credentials: "same-origin",
        });
        if (answer.ok) return (await answer.json()).offset;
      } catch {
        answer = null; // the connection broke
      }
      if ((answer !== null && !PASSING.includes(answer.status)) || attempt === ATTEMPTS) {
        const said = answer && (await answer.json().catch(() => null));
        throw new Failure(said?.detail ?? `${this.name}: the connection broke again and again. Choose it again to go on.`);
      }
      await pause(500 * 2 ** (attempt - 1));
      const { offset: have } = await get(`/api/uploads/${this.id}`).catch(() => ({ offset }));
      if (have !== offset) return have;
    }
  }
}

/** Lets files be dropped anywhere on the page; `take` gets them. */
export function catchDrops(take) {
  const root = document.documentElement;
  const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  let depth = 0;
  const over = (by) => {
    depth = Math.max(0, depth + by);
    root.classList.toggle("dropping", depth > 0);
  };
  addEventListener("dragenter", (event) => files(event) && over(1));
  addEventListener("dragleave", (event) => files(event) && over(-1));
  addEventListener("dragover", (event) => {
    if (files(event)) event.preventDefault();
  });
  addEventListener("drop", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    over(-depth);
    take([...event.dataTransfer.files]);
  });
}
