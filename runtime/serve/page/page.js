// Draws images and shows how they come out of the noise. The address of the page holds the request.
"use strict";

const byId = (id) => document.getElementById(id);
const FIELDS = ["num", "seed", "sampler", "steps", "classes", "guidance"];
const EMPTY = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==";
let running = null; // the AbortController of the request that runs
let model = null;

function say(text, isError = false) {
  byId("status").textContent = text;
  byId("status").className = isError ? "error" : "";
}

function headers(more) {
  const token = byId("token").value.trim();
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

async function loadModel() {
  const answer = await fetch("v1/model", { headers: headers({}) });
  if (answer.status === 401) {
    byId("token-label").hidden = false;
    byId("model").textContent = "This service wants a token.";
    return false;
  }
  if (!answer.ok) throw new Error(`the service answers ${answer.status}`);
  model = await answer.json();
  const { sample, schedule, conditions = [] } = model.process;
  byId("model").textContent =
    `${model.engine.name}: ${sample.width} × ${sample.height} pixels, ` +
    `${model.slots} slots, network ${model.engine.sha256.slice(0, 12)}`;
  byId("num").max = model.limits.images;
  byId("steps").max = schedule.num_train_timesteps ?? "";
  const chosen = byId("sampler").value;
  byId("sampler").replaceChildren(...model.samplers.map((name) => new Option(name)));
  if (chosen) byId("sampler").value = chosen;
  showSteps();
  byId("classes-label").hidden = !conditions.some((each) => each.type === "int64");
  byId("guidance-label").hidden = !conditions.some((each) => each.name === "guidance");
  return true;
}

// A table from a file has its own number of steps.
function showSteps() {
  const steps = model.tables[byId("sampler").value];
  byId("steps").disabled = steps !== undefined;
  if (steps !== undefined) byId("steps").value = steps;
}

// The form as the body of a request; what is not filled in is the service's to choose.
function body() {
  const fields = { num: Number(byId("num").value), seed: Number(byId("seed").value), sampler: byId("sampler").value };
  if (!byId("steps").disabled) fields.steps = Number(byId("steps").value);
  const classes = byId("classes").value.trim();
  if (!byId("classes-label").hidden && classes) {
    fields.classes = classes === "all" ? "all" : classes.split(",").map((each) => (each.trim() === "null" ? null : Number(each)));
  }
  if (!byId("guidance-label").hidden && byId("guidance").value) fields.guidance = Number(byId("guidance").value);
  return fields;
}

function link() {
  const query = new URLSearchParams();
  for (const name of FIELDS) {
    const field = byId(name);
    if (field.value && !field.closest("[hidden]")) query.set(name, field.value);
  }
  return `${location.pathname}?${query}`;
}

function readLink() {
  const query = new URLSearchParams(location.search);
  for (const name of FIELDS) {
    if (!query.has(name)) continue;
    if (name === "sampler") byId(name).add(new Option(query.get(name)));
    byId(name).value = query.get(name);
  }
  return query.has("seed");
}

function showImage(place, png, state, steps) {
  const item = byId("images").children[place];
  if (!item) return;
  item.dataset.state = state;
  item.firstElementChild.src = `data:image/png;base64,${png}`;
  item.firstElementChild.alt = state === "done" ? `Image ${place}` : `Image ${place} after ${steps} steps`;
}

// The events of a text/event-stream, one by one.
async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n");
      const name = lines.find((line) => line.startsWith("event: "));
      const data = lines.find((line) => line.startsWith("data: "));
      if (name && data) yield { name: name.slice(7), data: JSON.parse(data.slice(6)) };
    }
  }
}

async function draw() {
  const wanted = body();
  const shown = link();
  history.replaceState(null, "", shown);
  byId("images").replaceChildren(
    ...Array.from({ length: wanted.num }, (_, place) => {
      const item = document.createElement("li");
      const image = document.createElement("img");
      image.src = EMPTY;
      image.alt = `Image ${place}, not begun`;
      item.append(image);
      return item;
    }),
  );
  byId("link").hidden = true;
  byId("progress").value = 0;
  running = new AbortController();
  byId("draw").disabled = true;
  byId("stop").disabled = false;
  say("Waiting for a slot …");
  try {
    const answer = await fetch("v1/images", {
      method: "POST",
      headers: headers({ "Content-Type": "application/json", Accept: "text/event-stream" }),
      body: JSON.stringify({ ...wanted, preview_every: Math.max(1, Math.ceil(wanted.steps / 50)) }),
      signal: running.signal,
    });
    if (!answer.ok) {
      const problem = await answer.json().catch(() => ({}));
      throw new Error(problem.detail ?? `the service answers ${answer.status}`);
    }
    let ended = false;
    for await (const { name, data } of eventsOf(answer)) {
      if (name === "progress") {
        byId("progress").value = data.steps_done / data.steps;
        if (data.state === "running") say(`${data.images_done} of ${wanted.num} images, step ${data.steps_done} of ${data.steps}`);
        for (const each of data.previews) showImage(each.place, each.png, "running", each.steps_done);
      } else if (name === "error") {
        throw new Error(data.detail);
      } else if (name === "images") {
        ended = true;
        data.images.forEach((png, place) => showImage(place, png, "done"));
        byId("progress").value = 1;
        byId("link").href = shown;
        byId("link").hidden = false;
        say(`${data.images.length} images`);
      }
    }
    if (!ended) throw new Error("the connection ended before the images were done");
  } catch (error) {
    if (error.name === "AbortError") say("Stopped");
    else say(error.message, true);
  } finally {
    running = null;
    byId("draw").disabled = false;
    byId("stop").disabled = true;
  }
}

byId("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    if (model || (await loadModel())) await draw();
    else say("Give the token first", true);
  } catch (error) {
    say(error.message, true);
  }
});
byId("sampler").addEventListener("change", showSteps);
byId("stop").addEventListener("click", () => running?.abort());

const asked = readLink();
loadModel()
  .then((isKnown) => {
    readLink();
    if (asked && isKnown) return draw();
  })
  .catch((error) => say(error.message, true));
