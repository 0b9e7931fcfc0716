// What fal's own JavaScript client does against an emulator: `node scenarios.mjs NAME`.
// The client is unchanged; a middleware turns its addresses to the emulator's.
// Each scenario writes one JSON value, which the test in Python judges.
import { createFalClient } from "@fal-ai/client";

const ENDPOINT = "fal-ai/ltx-2.3-22b/extend-video";
const emulator = process.env.EMULATOR_URL;
const input = {
  prompt: process.env.PROMPT ?? "p",
  video_url: `${emulator}/files/sample.mp4`,
  num_frames: 9,
  num_context_frames: 5,
  seed: 7,
};

const fal = createFalClient({
  credentials: process.env.KEY ?? "emulator-key",
  requestMiddleware: async (request) => {
    const url = new URL(request.url);
    return { ...request, url: `${emulator}${url.pathname}${url.search}` };
  },
});

async function readSample() {
  const response = await fetch(input.video_url);
  return new Blob([await response.arrayBuffer()], { type: "video/mp4" });
}

async function follow(options) {
  const updates = [];
  const result = await fal.subscribe(ENDPOINT, {
    input,
    logs: true,
    onQueueUpdate: (update) => updates.push(update),
    ...options,
  });
  return { result, updates };
}

const scenarios = {
  async submit() {
    const submitted = await fal.queue.submit(ENDPOINT, {
      input,
      priority: "low",
      startTimeout: 30,
      hint: "near",
      storageSettings: { expiresIn: "1h" },
    });
    const requestId = submitted.request_id;
    await fal.queue.subscribeToStatus(ENDPOINT, { requestId, pollInterval: 20 });
    const status = await fal.queue.status(ENDPOINT, { requestId, logs: true });
    const result = await fal.queue.result(ENDPOINT, { requestId });
    return { submitted, status, result };
  },

  async webhook() {
    const webhookUrl = process.env.WEBHOOK_URL;
    return await fal.queue.submit(ENDPOINT, { input, webhookUrl });
  },

  async cancel() {
    const { request_id: requestId } = await fal.queue.submit(ENDPOINT, { input });
    const before = await fal.queue.status(ENDPOINT, { requestId, logs: true });
    await fal.queue.cancel(ENDPOINT, { requestId });
    const after = await fal.queue.status(ENDPOINT, { requestId });
    return { before, after };
  },

  async refused() {
    try {
      return await fal.subscribe(ENDPOINT, { input: { ...input, num_frames: 1 }, pollInterval: 20 });
    } catch (error) {
      const { name, status, requestId } = error;
      return { name, status, requestId, fields: error.getFieldErrors?.("num_frames") ?? [] };
    }
  },

  async timeout() {
    let requestId;
    try {
      await fal.subscribe(ENDPOINT, { input, timeout: 400, onEnqueue: (id) => (requestId = id) });
    } catch (error) {
      return { requestId, message: error.message };
    }
  },

  async polling() {
    return await follow({ mode: "polling", pollInterval: 20 });
  },

  async streaming() {
    return await follow({ mode: "streaming" });
  },

  async stream_status() {
    const { request_id: requestId } = await fal.queue.submit(ENDPOINT, { input });
    const stream = await fal.queue.streamStatus(ENDPOINT, { requestId, logs: true });
    const states = [];
    for await (const status of stream) {
      states.push(status.status);
    }
    return { states, last: await stream.done() };
  },

  async upload() {
    const blob = new Blob(["content"], { type: "text/plain" });
    const file = new File(["content"], "my file.txt", { type: "text/plain" });
    return [await fal.storage.upload(blob), await fal.storage.upload(file)];
  },

  async upload_with_lifecycle() {
    const lifecycle = { expiresIn: "1d", initialAcl: { default: "hide", rules: [] } };
    return await fal.storage.upload(new Blob(["content"], { type: "text/plain" }), { lifecycle });
  },

  async upload_in_parts() {
    const block = new Uint8Array(1024 * 1024).map((_, place) => place % 251);
    const blocks = Array.from({ length: 91 }, () => block);
    return await fal.storage.upload(new File(blocks, "long.bin", { type: "video/mp4" }));
  },

  async upload_by_itself() {
    const video_url = await readSample();
    return await fal.subscribe(ENDPOINT, { input: { ...input, video_url }, pollInterval: 20 });
  },
};

try {
  process.stdout.write(JSON.stringify((await scenarios[process.argv[2]]()) ?? null));
} catch (error) {
  const { name, status, message, body } = error;
  process.stdout.write(JSON.stringify({ failed: { name, status, message, body } }));
}
