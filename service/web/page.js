// The page of the service: an image, a pixel of it, what is like it. It only asks the service.

const $ = (id) => document.getElementById(id);
const TYPES = { npy: "application/x-npy", tif: "image/tiff", tiff: "image/tiff" };
const SHOWN = 12; // nearest patches
const WIDEST = 640; // pixels of a canvas, beyond which the browser scales
const STEPS = [null, 16, 32, 64]; // between compared patches; null is the service's own choice

const state = { image: null, picture: null, cursor: null, asked: null, search: false, step: 0 };

start();

async function start() {
  $("file").addEventListener("change", () => open($("file").files[0]));
  $("sample").addEventListener("click", openSample);
  $("choose").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!state.model) describe().then(() => state.image && show());
    else if (state.image) show();
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
    `${index.patches} patches at ${index.dates} dates, ${index.start} to ${index.end}`;
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
  state.image = { body: file, type, name: file.name };
  show();
}

async function openSample() {
  const answer = await tell(() => request("GET", "index/sample.npy"));
  if (!answer) return;
  state.image = { body: await answer.blob(), type: TYPES.npy, name: "the index's sample" };
  $("bands").value = state.sample.bands.join(",");
  for (const name of ["scale", "offset", "nodata"]) $(name).value = state.sample[name];
  show();
}

// The image as the service reads it: whatever can be asked about can be seen.
async function show() {
  say(`Reading ${state.image.name}…`);
  const answer = await tell(() => post("preview", said()));
  if (!answer) return;
  state.picture = await createImageBitmap(await answer.blob());
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
  say(`${state.image.name}: ${height} × ${width} pixels. Choose one.`);
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
  const answer = await tell(() => mapOf(pixel));
  if (!answer || state.asked !== pixel) return false;
  const picture = await createImageBitmap(await answer.blob());
  const canvas = $("map");
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("aria-label", `Similarity to row ${pixel.row}, column ${pixel.col}`);
  return true;
}

// The map as a picture, in larger steps where the service takes no more patches.
async function mapOf(pixel) {
  for (;;) {
    const stride = STEPS[state.step] ? { stride: STEPS[state.step] } : {};
    try {
      return await post("similarity", { ...said(), ...pixel, ...stride }, "image/png");
    } catch (error) {
      if (!error.message.includes("larger stride") || state.step + 1 === STEPS.length) throw error;
      state.step += 1;
    }
  }
}

// The nearest patches to a pixel of the image, or to a look of the index.
async function search(query) {
  const byLook = "patch" in query;
  const wanted = { count: SHOWN, per_place: 1, representation: $("representation").value };
  if (byLook) wanted.place = "other";
  if ($("months").value.trim()) wanted.months = $("months").value.replaceAll(" ", "");
  if ($("tile").value) wanted.tile = $("tile").value;
  const parameters = byLook ? { ...wanted, ...query } : { ...wanted, ...said(), ...query };
  const answer = await tell(() =>
    byLook ? request("POST", "search", parameters) : post("search", parameters),
  );
  if (!answer || state.asked !== query) return "";
  const looks = (await answer.json()).queries[0].nearest;
  $("nothing").hidden = looks.length > 0;
  $("nothing").textContent = "The index has no such patch.";
  const items = await Promise.all(looks.map(item));
  if (state.asked !== query) return "";
  $("nearest").replaceChildren(...items);
  const words = looks.length === 1 ? "patch" : "patches";
  return looks.length ? `${looks.length} nearest ${words}, the first in ${looks[0].tile}` : "";
}

async function item(look) {
  const day = look.acquired.slice(0, 10);
  const picture = new Image();
  picture.alt = `${look.tile}, ${day}`;
  const answer = await request("GET", look.thumbnail).catch(() => null);
  if (answer) {
    picture.src = URL.createObjectURL(await answer.blob());
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
  say("Asking about a patch of the index…");
  const found = await search(query);
  if (state.asked !== query) return;
  say(`Patch of ${look.tile} on ${look.acquired.slice(0, 10)}: ${found || "nothing was found"}.`);
  $("nearest").querySelector("button")?.focus();
}

function post(path, parameters, accept = "*/*") {
  const { body, type } = state.image;
  return request("POST", path, parameters, { "Content-Type": type, Accept: accept }, body);
}

// Throws an Error whose message is the service's own.
async function request(method, path, parameters = {}, headers = {}, body = undefined) {
  const key = $("key").value.trim();
  if (key) headers = { ...headers, Authorization: `Bearer ${key}` };
  const query = new URLSearchParams(parameters).toString();
  let answer;
  try {
    answer = await fetch(query ? `${path}?${query}` : path, { method, headers, body });
  } catch {
    throw new Error("the service does not answer");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) $("keyed").hidden = false;
  const problem = await answer.json().catch(() => null);
  throw new Error(problem?.detail ?? `${answer.status} ${answer.statusText}`);
}

// The result of what is asked; null where it fails, which the user is told.
async function tell(asked) {
  try {
    const answer = await asked();
    $("problem").hidden = true;
    return answer;
  } catch (error) {
    complain(error.message);
    return null;
  }
}

function complain(words) {
  $("problem").textContent = words;
  $("problem").hidden = false;
  say("");
}

function say(words) {
  $("status").textContent = words;
}
