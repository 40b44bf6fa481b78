// The page of the service: an image, a pixel of it, what is like it. It only asks the service.

const $ = (id) => document.getElementById(id);
const TYPES = { npy: "application/x-npy", tif: "image/tiff", tiff: "image/tiff" };
const SHOWN = 12; // nearest patches
const WIDEST = 640; // pixels of a canvas, beyond which the browser scales
const STEPS = [null, 16, 32, 64]; // between compared patches; null is the service's own choice

const state = {
  chosen: null, // the file that was chosen last, read or not
  image: null, // the one that was read, and what was said of its numbers
  picture: null, // of the same one
  cursor: null,
  asked: null,
  search: false,
  step: 0,
  complaints: 0, // made so far
  running: {}, // by kind of work, what gives up the requests of the last of it
};

start();

async function start() {
  $("file").addEventListener("change", () => open($("file").files[0]));
  $("sample").addEventListener("click", openSample);
  $("choose").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!state.model) describe().then(() => state.chosen && show());
    else if (state.chosen) show();
  });
  $("image").addEventListener("click", (event) => ask(pixelAt(event)));
  $("image").addEventListener("keydown", steer);
  for (const id of ["representation", "months", "tile"]) {
    $(id).addEventListener("change", () => state.asked && search(state.asked));
  }
  await describe();
}

// What is served: the model, and the index if there is one.
async function describe() {
  const models = await tell(() => request("GET", "models"));
  if (!models) return;
  state.model = (await models.json()).models[0];
  $("model").textContent = `${state.model.artifact.id}, reads ${state.model.bands.join(", ")}`;
  $("bands").placeholder = state.model.bands.join(",");
  const answer = await request("GET", "index").catch(() => null);
  if (!answer) return;
  const index = await answer.json();
  state.sample = index.sample;
  state.search = true;
  $("sample").hidden = !index.sample;
  $("search").hidden = false;
  $("notice").textContent = index.notice;
  $("index").textContent =
    `${index.patches} patches at ${index.dates} dates, ` +
    (index.start === null ? "none with data" : `${index.start} to ${index.end}`);
  const words = {
    shared: "what stays of a place (shared)",
    exclusive: "what its date has alone (exclusive)",
    both: "both",
  };
  const names = Object.keys(index.representations);
  if (names.length > 1) names.push("both");
  $("representation").replaceChildren(...names.map((name) => new Option(words[name] ?? name, name)));
  $("tile").append(...Object.keys(index.tiles).map((name) => new Option(name, name)));
}

function open(file) {
  if (!file) return;
  const type = TYPES[file.name.split(".").pop().toLowerCase()];
  if (!type) return complain("expected a file that ends in .npy, .tif or .tiff");
  state.chosen = { body: file, type, name: file.name };
  show();
}

async function openSample() {
  const signal = instead("image");
  const body = await tell(async () => (await request("GET", "index/sample.npy", { signal })).blob());
  if (!body || signal.aborted) return;
  state.chosen = { body, type: TYPES.npy, name: "the index's sample" };
  $("bands").value = state.sample.bands.join(",");
  for (const name of ["scale", "offset", "nodata"]) $(name).value = state.sample[name];
  show();
}

// The image as the service reads it: whatever can be asked about can be seen.
async function show() {
  const image = { ...state.chosen, said: said() };
  const signal = instead("image");
  say(`Reading ${image.name}…`);
  const picture = await tell(() => pictureOf(post(image, "preview", { signal })));
  if (!picture || signal.aborted) return; // another image was chosen meanwhile
  instead("map");
  instead("search");
  Object.assign(state, { image, picture });
  state.asked = null;
  state.step = 0;
  const { width, height } = state.picture;
  state.cursor = { row: height >> 1, col: width >> 1 };
  $("maps").hidden = false;
  for (const id of ["image", "map"]) {
    const scale = Math.max(1, Math.floor(WIDEST / Math.max(width, height)));
    Object.assign($(id), { width: width * scale, height: height * scale });
  }
  $("map").setAttribute("aria-label", "No pixel was chosen yet");
  $("nearest").replaceChildren();
  $("nothing").hidden = false;
  draw();
  say(`${image.name}: ${height} × ${width} pixels. Choose one.`);
  $("image").focus({ preventScroll: true });
}

// What the form says of the pixels, as query parameters.
function said() {
  const values = ["bands", "scale", "offset", "nodata"].map((name) => [name, $(name).value.trim()]);
  return Object.fromEntries(values.filter(([, value]) => value !== ""));
}

function draw() {
  const canvas = $("image");
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(state.picture, 0, 0, canvas.width, canvas.height);
  const scale = canvas.width / state.picture.width;
  const x = (state.cursor.col + 0.5) * scale;
  const y = (state.cursor.row + 0.5) * scale;
  for (const [colour, width] of [["black", 4], ["white", 2]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      pen.moveTo(x + 4 * dx, y + 4 * dy);
      pen.lineTo(x + 14 * dx, y + 14 * dy);
    }
    pen.stroke();
  }
}

function pixelAt(event) {
  const box = event.target.getBoundingClientRect();
  const { width, height } = state.picture;
  const at = (value, size, count) =>
    Math.min(count - 1, Math.max(0, Math.floor((value / size) * count)));
  return {
    row: at(event.clientY - box.top, box.height, height),
    col: at(event.clientX - box.left, box.width, width),
  };
}

function steer(event) {
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    ask(state.cursor);
  } else if (event.key in moves) {
    event.preventDefault();
    const step = event.shiftKey ? 10 : 1;
    const [down, right] = moves[event.key];
    const clamp = (value, count) => Math.min(count - 1, Math.max(0, value));
    state.cursor = {
      row: clamp(state.cursor.row + down * step, state.picture.height),
      col: clamp(state.cursor.col + right * step, state.picture.width),
    };
    draw();
    say(`Row ${state.cursor.row}, column ${state.cursor.col}. Enter asks.`);
  }
}

async function ask(pixel) {
  state.cursor = pixel;
  state.asked = pixel;
  draw();
  say(`Asking about row ${pixel.row}, column ${pixel.col}…`);
  const [mapped, found] = await Promise.all([similarity(pixel), state.search && search(pixel)]);
  if (state.asked !== pixel) return; // another pixel was chosen meanwhile
  if (mapped) say(`Row ${pixel.row}, column ${pixel.col}${found ? `: ${found}` : ""}.`);
}

async function similarity(pixel) {
  const signal = instead("map");
  const picture = await tell(() => pictureOf(mapOf(pixel, signal)));
  if (!picture || signal.aborted) return false;
  const canvas = $("map");
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("aria-label", `Similarity to row ${pixel.row}, column ${pixel.col}`);
  return true;
}

// The map as a picture, in larger steps where the service takes no more patches.
async function mapOf(pixel, signal) {
  const { image } = state;
  for (;;) {
    const stride = STEPS[state.step] ? { stride: STEPS[state.step] } : {};
    try {
      const parameters = { ...pixel, ...stride };
      return await post(image, "similarity", { parameters, signal, accept: "image/png" });
    } catch (error) {
      if (signal.aborted || !error.message.includes("larger stride") || state.step + 1 === STEPS.length) throw error;
      state.step += 1;
    }
  }
}

// The nearest patches to a pixel of the image, or to a look of the index.
async function search(query) {
  const signal = instead("search");
  const byLook = "patch" in query;
  const wanted = { count: SHOWN, per_place: 1, representation: $("representation").value };
  if (byLook) wanted.place = "other";
  if ($("months").value.trim()) wanted.months = $("months").value.replaceAll(" ", "");
  if ($("tile").value) wanted.tile = $("tile").value;
  const asked = { parameters: { ...wanted, ...query }, signal };
  const answer = await tell(async () =>
    (await (byLook ? request("POST", "search", asked) : post(state.image, "search", asked))).json(),
  );
  if (!answer || signal.aborted) return "";
  const looks = answer.queries[0].nearest;
  $("nothing").hidden = looks.length > 0;
  $("nothing").textContent = "The index has no such patch.";
  const items = await Promise.all(looks.map((look) => item(look, signal)));
  if (signal.aborted) return "";
  $("nearest").replaceChildren(...items);
  const words = looks.length === 1 ? "patch" : "patches";
  return looks.length ? `${looks.length} nearest ${words}, the first in ${looks[0].tile}` : "";
}

async function item(look, signal) {
  const day = look.acquired.slice(0, 10);
  const picture = new Image();
  picture.alt = `${look.tile}, ${day}`;
  const answer = await request("GET", look.thumbnail, { signal }).catch(() => null);
  const content = await answer?.blob().catch(() => null);
  if (content) {
    picture.src = URL.createObjectURL(content);
    picture.addEventListener("load", () => URL.revokeObjectURL(picture.src), { once: true });
  }
  const button = document.createElement("button");
  button.type = "button";
  button.title = "Show what is nearest to this patch";
  const place = document.createElement("small");
  place.textContent = `${look.lat.toFixed(4)}, ${look.lon.toFixed(4)}`;
  const words = document.createElement("span");
  words.textContent = `${look.tile}, ${day}; distance ${look.distance.toFixed(2)}`;
  button.append(picture, words, place);
  button.addEventListener("click", () => follow(look));
  const line = document.createElement("li");
  line.append(button);
  return line;
}

async function follow(look) {
  const query = { patch: look.patch, date: look.date };
  state.asked = query;
  instead("map"); // nobody looks at it any more
  say("Asking about a patch of the index…");
  const found = await search(query);
  if (state.asked !== query) return;
  say(`Patch of ${look.tile} on ${look.acquired.slice(0, 10)}: ${found || "nothing was found"}.`);
  $("nearest").querySelector("button")?.focus();
}

// A signal for work of which one piece at a time is wanted; the one before is given up.
function instead(kind) {
  state.running[kind]?.abort();
  state.running[kind] = new AbortController();
  return state.running[kind].signal;
}

function post(image, path, { parameters = {}, accept = "*/*", signal }) {
  const headers = { "Content-Type": image.type, Accept: accept };
  const all = { ...image.said, ...parameters };
  return request("POST", path, { parameters: all, headers, body: image.body, signal });
}

async function pictureOf(asked) {
  return createImageBitmap(await (await asked).blob());
}

// Throws an Error whose message is the service's own, or an AbortError where it was given up.
async function request(method, path, { parameters = {}, headers = {}, body, signal } = {}) {
  const key = $("key").value.trim();
  if (key) headers = { ...headers, Authorization: `Bearer ${key}` };
  const query = new URLSearchParams(parameters).toString();
  let answer;
  try {
    answer = await fetch(query ? `${path}?${query}` : path, { method, headers, body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the service does not answer");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) $("keyed").hidden = false;
  const problem = await answer.json().catch(() => null);
  throw new Error(problem?.detail ?? `${answer.status} ${answer.statusText}`);
}

// The result of what is asked; null where it fails, which the user is told, or is given up.
async function tell(asked) {
  const before = state.complaints;
  try {
    const answer = await asked();
    // What was asked for earlier says nothing of what has gone wrong since.
    if (state.complaints === before) $("problem").hidden = true;
    return answer;
  } catch (error) {
    if (error.name !== "AbortError") complain(error.message);
    return null;
  }
}

function complain(words) {
  state.complaints += 1;
  $("problem").textContent = words;
  $("problem").hidden = false;
  say("");
}

function say(words) {
  $("status").textContent = words;
}
