/* Drop a photograph, see its classes; search among all classes and restrict the search to some. */
import { Picture, readAnswer, writeRequest } from "./picture.js";

const LISTED = 100; // names shown at once
const element = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const plain = (name) => name.toLowerCase().replaceAll("_", " ").trim();

const { checkpoint, classes } = await (await fetch("classes")).json();
const byId = new Map(classes.map(([id, name, color]) => [id, { id, name, color, plain: plain(name) }]));
const channels = new Map(classes.map(([id, , color]) => [id, [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16))]));
const picture = new Picture(element("picture"), (id) => channels.get(id));
const chosen = new Set();
let file = null;
let latest = 0; // request: answers to earlier ones are passed over

function made(tag, properties, ...children) {
  const one = Object.assign(document.createElement(tag), properties);
  one.append(...children);
  return one;
}

function swatch(color) {
  const one = made("span", { className: "color" });
  one.style.background = color;
  return one;
}

async function predict() {
  if (!file) return;
  const request = (latest += 1);
  element("state").textContent = `Predicting ${file.name} …`;
  element("problem").hidden = true;
  try {
    const body = writeRequest({ name: file.name, classes: [...chosen] }, file);
    const headers = { "Content-Type": "application/octet-stream" };
    const response = await fetch("predict", { method: "POST", headers, body });
    if (request !== latest) return;
    if (!response.ok) throw new Error(await problem(response));
    const answer = await readAnswer(await response.arrayBuffer());
    if (request === latest) show(answer);
  } catch (error) {
    if (request !== latest) return;
    element("state").textContent = "";
    element("problem").hidden = false;
    element("problem").textContent =
      error instanceof TypeError ? "The server does not answer: is pipeline demo still running?" : error.message;
  }
}

async function problem(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error;
  } catch {
    return `Error ${response.status}: the terminal of pipeline demo says more.`;
  }
}

function show(answer) {
  picture.view.only = null;
  picture.show(answer);
  const { width, height, shown } = answer;
  const size = shown.width === width ? "" : `, shown at ${shown.width} × ${shown.height}`;
  element("caption").textContent = `${file.name}: ${width} × ${height} pixels${size}, ${answer.seconds} s`;
  element("frame").className = Math.max(shown.width, shown.height) < 256 ? "small" : "";
  element("result").hidden = element("controls").hidden = false;
  element("state").textContent = `${answer.classes.length} classes found`;
  element("found").replaceChildren(...answer.classes.map(foundRow));
}

function foundRow({ class_id: id, name, share, confidence }) {
  const button = made(
    "button",
    { type: "button", title: `class ${id}: show it alone` },
    swatch(byId.get(id).color),
    made("span", { className: "name" }, name),
    made("span", { className: "number", title: "share of the picture" }, percent(share)),
    made("span", { className: "number", title: "mean confidence" }, `(${percent(confidence)})`),
  );
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    const only = picture.view.only === id ? null : id;
    for (const other of element("found").querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", String(only === id));
    picture.change({ only });
  });
  return made("li", {}, button);
}

function listNames() {
  const wanted = plain(element("search").value);
  const rank = (one) => [one.plain === wanted || String(one.id) === wanted, one.plain.startsWith(wanted), one.plain.includes(wanted)].indexOf(true);
  const found = [...byId.values()].filter((one) => rank(one) >= 0);
  if (wanted) found.sort((a, b) => rank(a) - rank(b));
  const more = found.length > LISTED ? `, the first ${LISTED} are listed` : "";
  element("matches").textContent = `${found.length.toLocaleString("en")} of ${byId.size.toLocaleString("en")} classes${more}`;
  element("names").replaceChildren(...found.slice(0, LISTED).map(nameRow));
}

function nameRow({ id, name, color }) {
  const box = made("input", { type: "checkbox", checked: chosen.has(id) });
  box.addEventListener("change", () => choose(id, box.checked));
  const label = made("label", {}, box, swatch(color), made("span", { className: "name" }, name), made("span", { className: "number" }, String(id)));
  return made("li", {}, label);
}

function choose(id, wanted) {
  if (wanted) chosen.add(id);
  else chosen.delete(id);
  chosenChanged();
}

function chosenChanged() {
  const chips = [...chosen].sort((a, b) => a - b).map((id) => {
    const button = made("button", { type: "button", title: "leave out" }, `${byId.get(id).name} ×`);
    button.addEventListener("click", () => choose(id, false));
    return made("li", {}, button);
  });
  element("chips").replaceChildren(...chips);
  element("chosen").hidden = chosen.size === 0;
  listNames();
  predict();
}

function take(files) {
  const [one] = files;
  if (!one) return;
  file = one;
  predict();
}

element("checkpoint").textContent = `${checkpoint}, ${byId.size.toLocaleString("en")} classes`;
element("file").addEventListener("change", (event) => take(event.target.files));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    element("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files);
  });
}
document.addEventListener("paste", (event) => take(event.clipboardData.files));
element("search").addEventListener("input", listNames);
element("clear").addEventListener("click", () => {
  chosen.clear();
  chosenChanged();
});
element("opacity").addEventListener("input", (event) => picture.change({ opacity: Number(event.target.value) }));
element("confidence").addEventListener("input", (event) => {
  const least = Number(event.target.value);
  element("least").textContent = percent(least);
  picture.change({ least });
});
element("picture").addEventListener("pointermove", (event) => {
  const found = picture.at(event);
  const pointed = element("pointed");
  pointed.hidden = found === null;
  if (found === null) return;
  const name = found.classId === 0 ? "unlabeled" : `${byId.get(found.classId).name} (${found.classId})`;
  pointed.textContent = `${name} ${percent(found.confidence)}`;
  const right = event.offsetX > element("picture").clientWidth / 2;
  pointed.style.left = right ? "auto" : `${event.offsetX + 14}px`;
  pointed.style.right = right ? `${element("picture").clientWidth - event.offsetX + 14}px` : "auto";
  pointed.style.top = `${Math.max(0, event.offsetY - 32)}px`;
});
element("picture").addEventListener("pointerleave", () => {
  element("pointed").hidden = true;
});
listNames();
