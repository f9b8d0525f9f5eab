/* Paint truth, prediction and errors of the chosen variant, and name what the pointer is on. */
(() => {
  const data = JSON.parse(document.getElementById("gallery-data").textContent);
  const place = document.getElementById("gallery");
  const tip = document.getElementById("tip");
  const RIGHT = [226, 228, 231], UNLABELED = [255, 255, 255];
  const percent = (share) => (share === null || Number.isNaN(share) ? "–" : `${(100 * share).toFixed(2)} %`);
  const rowOf = (id) => document.getElementById(`class-${id}`);
  const nameOf = (id) => rowOf(id)?.cells[0].textContent ?? `class ${id}`;
  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const chosen = (name) => document.querySelector(`#gallery-controls input[name=${name}]:checked`).value;

  async function inflate(text, bytes) {
    const packed = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const buffer = await new Response(stream).arrayBuffer();
    return bytes === 1 ? new Uint8Array(buffer) : new Uint16Array(buffer);
  }

  async function mapsOf(image) {  /* the truth, then the variants' predictions: numbers of the picture's classes */
    image.decoded ??= await Promise.all(image.maps.map((text) => inflate(text, image.bytes)));
    return image.decoded;
  }

  function paint(canvas, image, colorOf) {
    const context = canvas.getContext("2d"), pixels = context.createImageData(image.width, image.height);
    for (let at = 0; at < image.width * image.height; at += 1) pixels.data.set([...colorOf(at), 255], 4 * at);
    context.putImageData(pixels, 0, 0);
  }

  class Card {
    constructor(image) {
      this.image = image;
      this.colors = image.colors.map((text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16)));
      this.heading = element("h3");
      this.legend = element("p", { class: "legend" });
      this.numbers = element("div", { class: "class-numbers", role: "status" });
      const photograph = element("img", { src: image.photograph, alt: `Image ${image.id}`, width: image.width, height: image.height });
      photograph.style.height = "auto";
      this.canvases = ["truth", "prediction", "errors"].map((kind) =>
        element("canvas", { class: "map", role: "img", width: image.width, height: image.height, "data-kind": kind }));
      const captions = [`image ${image.id}`, "truth", "prediction", "errors"];
      this.captions = captions.map((text) => element("figcaption", {}, text));
      const panels = [photograph, ...this.canvases];
      this.node = element("div", { class: "example", id: `image-${image.id}` }, this.heading,
        element("div", { class: "tiles" }, ...panels.map((one, at) => element("figure", {}, one, this.captions[at]))),
        this.legend, this.numbers);
      for (const panel of panels) {
        panel.addEventListener("pointermove", (event) => this.tell(event));
        panel.addEventListener("pointerleave", () => { tip.hidden = true; });
        panel.addEventListener("click", (event) => {
          const [truth, prediction] = this.at(event);
          const number = panel === photograph || panel === this.canvases[0] ? truth : prediction;
          if (number) this.showNumbers(image.classes[number - 1]);
        });
      }
    }

    async show(variant) {
      const [truth, ...predictions] = await mapsOf(this.image);
      this.variant = variant;
      [this.truth, this.prediction] = [truth, predictions[variant]];
      const color = (number) => (number ? this.colors[number - 1] : UNLABELED);
      paint(this.canvases[0], this.image, (at) => color(truth[at]));
      paint(this.canvases[1], this.image, (at) => color(this.prediction[at]));
      paint(this.canvases[2], this.image, (at) => (truth[at] && truth[at] === this.prediction[at] ? RIGHT : color(this.prediction[at])));
      const name = data.variants[variant], right = percent(this.image.accuracies[variant]);
      this.heading.replaceChildren(`image ${this.image.id} `, element("small", {}, `${name}: ${right} of the labeled pixels right`));
      this.captions[2].textContent = name;
      this.captions[3].textContent = `errors of ${name}`;
      this.describe(name, right);
      this.fillLegend();
      this.numbers.replaceChildren();
    }

    describe(name, right) {
      const names = (map) => {
        const counts = new Map();
        for (const number of map) if (number) counts.set(number, (counts.get(number) ?? 0) + 1);
        return [...counts].sort((one, other) => other[1] - one[1]).slice(0, 6).map(([number]) => nameOf(this.image.classes[number - 1])).join(", ");
      };
      const id = this.image.id;
      this.canvases[0].setAttribute("aria-label", `Truth of image ${id}: ${names(this.truth)}`);
      this.canvases[1].setAttribute("aria-label", `Prediction of ${name} for image ${id}: ${names(this.prediction)}`);
      this.canvases[2].setAttribute("aria-label", `Errors of ${name} in image ${id}: ${right} of the labeled pixels are right`);
    }

    fillLegend() {
      const present = new Set([...this.truth, ...this.prediction]);
      const counts = this.image.counts[this.variant];
      const pixels = (id) => (counts[id] ? counts[id][1] + counts[id][2] : 0);
      const numbers = [...present].filter(Boolean).sort((one, other) => pixels(this.image.classes[other - 1]) - pixels(this.image.classes[one - 1]));
      this.legend.replaceChildren(...numbers.map((number) => {
        const id = this.image.classes[number - 1], chip = element("i");
        chip.style.background = this.image.colors[number - 1];
        const button = element("button", { type: "button", "data-class": id, "aria-pressed": "false" }, chip, nameOf(id));
        button.addEventListener("click", () => this.showNumbers(id));
        return button;
      }));
    }

    at(event) {
      const box = event.target.getBoundingClientRect(), { width, height } = this.image;
      const column = Math.min(Math.max(Math.floor((event.clientX - box.left) / box.width * width), 0), width - 1);
      const row = Math.min(Math.max(Math.floor((event.clientY - box.top) / box.height * height), 0), height - 1);
      return this.truth ? [this.truth[row * width + column], this.prediction[row * width + column]] : [0, 0];
    }

    tell(event) {
      const [truth, prediction] = this.at(event);
      const name = (number) => nameOf(this.image.classes[number - 1]);
      tip.textContent = truth ? `truth: ${name(truth)}\n${data.variants[this.variant]}: ${name(prediction)}` : "unlabeled";
      tip.hidden = false;
      tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 6)}px`;
      tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 6)}px`;
    }

    showNumbers(id) {
      for (const button of this.legend.children) button.setAttribute("aria-pressed", String(button.dataset.class === String(id)));
      const row = rowOf(id), header = element("tr", {}, ...["", "IoU on val", "IoU here", "true pixels here", "predicted here"].map((text) => element("th", { scope: "col" }, text)));
      const rows = data.variants.map((name, at) => {
        const [hits, predicted, actual] = this.image.counts[at][id] ?? [0, 0, 0];
        const here = predicted + actual ? percent(hits / (predicted + actual - hits)) : "–";
        const cells = [row?.cells[3 + at].textContent ?? "–", here, actual.toLocaleString("en"), predicted.toLocaleString("en")];
        return element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((text) => element("td", {}, text)));
      });
      const link = element("a", { class: "example-link", href: `#class-${id}` }, "in the table of all classes");
      this.numbers.replaceChildren(element("p", {}, element("strong", {}, nameOf(id)), ` (${row?.cells[1].textContent ?? ""}, ${row?.cells[2].textContent ?? 0} true pixels in val), `, link),
        element("div", { class: "scroll" }, element("table", {}, element("thead", {}, header), element("tbody", {}, ...rows))));
    }
  }

  const cards = data.images.map((image) => new Card(image));
  function show() {
    const wanted = data.kinds[chosen("kind")].map((at) => cards[at]);
    place.replaceChildren(...wanted.map((card) => card.node));
    return Promise.all(wanted.map((card) => card.show(Number(chosen("variant"))))).then(() => { place.dataset.shown = `${chosen("kind")} ${chosen("variant")}`; });
  }
  document.getElementById("gallery-controls").addEventListener("change", show);
  addEventListener("hashchange", () => {  /* a link to an image of another kind */
    const at = data.images.findIndex((image) => location.hash === `#image-${image.id}`);
    if (at < 0 || cards[at].node.isConnected) return;
    const kind = Object.keys(data.kinds).find((one) => data.kinds[one].includes(at));
    document.querySelector(`#gallery-controls input[value=${kind}]`).checked = true;
    show().then(() => cards[at].node.scrollIntoView());
  });
  show();
})();
