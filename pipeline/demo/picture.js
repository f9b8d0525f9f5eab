/* The predicted picture: photograph and colors on a canvas, and what lies under the pointer. */

/* Take an answer apart: pipeline/demo/exchange.py says how it is made. */
export async function readAnswer(buffer) {
  const end = 4 + new DataView(buffer).getUint32(0, true);
  const answer = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, end - 4)));
  const parts = [];
  let place = end;
  for (const length of answer.parts) {
    parts.push(buffer.slice(place, (place += length)));
  }
  const photo = await createImageBitmap(new Blob([parts[0]], { type: "image/jpeg" }));
  return { ...answer, photo, classIds: new Uint16Array(parts[1]), confidence: new Uint16Array(parts[2]) };
}

/* Make the body of a request. */
export function writeRequest(request, file) {
  const text = new TextEncoder().encode(JSON.stringify(request));
  const length = new DataView(new ArrayBuffer(4));
  length.setUint32(0, text.length, true);
  return new Blob([length, text, file]);
}

export class Picture {
  constructor(canvas, colorOf) {
    this.canvas = canvas;
    this.colorOf = colorOf; // [red, green, blue] of a class id
    this.colors = new OffscreenCanvas(1, 1);
    this.view = { opacity: 0.5, least: 0, only: null };
  }

  show(answer) {
    this.answer = answer;
    for (const canvas of [this.canvas, this.colors]) {
      canvas.width = answer.shown.width;
      canvas.height = answer.shown.height;
    }
    this.paint();
  }

  /* Change what is seen: opacity, the least confidence of a colored pixel, the only class that is colored. */
  change(view) {
    Object.assign(this.view, view);
    if (this.answer) this.paint(!("opacity" in view));
  }

  paint(again = true) {
    if (again) this.paintColors();
    const canvas = this.canvas.getContext("2d");
    canvas.globalAlpha = 1;
    canvas.drawImage(this.answer.photo, 0, 0);
    canvas.globalAlpha = this.view.opacity;
    canvas.drawImage(this.colors, 0, 0);
  }

  paintColors() {
    const { classIds } = this.answer;
    const pixels = new ImageData(this.colors.width, this.colors.height);
    for (let i = 0; i < classIds.length; i += 1) {
      const id = this.classAt(i);
      if (id === 0 || (this.view.only !== null && id !== this.view.only)) continue;
      pixels.data.set(this.colorOf(id), 4 * i);
      pixels.data[4 * i + 3] = 255;
    }
    this.colors.getContext("2d").putImageData(pixels, 0, 0);
  }

  /* Class id of a pixel, 0 where its confidence is too small. */
  classAt(i) {
    return this.answer.confidence[i] < 65535 * this.view.least ? 0 : this.answer.classIds[i];
  }

  /* Return class id and confidence under a pointer, or null beside the picture. */
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * this.canvas.width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * this.canvas.height);
    if (!this.answer || x < 0 || y < 0 || x >= this.canvas.width || y >= this.canvas.height) return null;
    const i = y * this.canvas.width + x;
    return { classId: this.classAt(i), confidence: this.answer.confidence[i] / 65535 };
  }
}
