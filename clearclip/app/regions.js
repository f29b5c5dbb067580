// What Gradio runs once for the picture with its regions: `element` is that component, `trigger` sends an event.
const find = (name) => element.querySelector(`.cc-${name}`);
let known = null;  // the label map, read from its picture when a pointer first comes

function labels() {
  const image = find("labels");
  if (!image || !image.naturalWidth) return null;
  if (known?.source !== image.src) {
    const canvas = Object.assign(document.createElement("canvas"), { width: image.naturalWidth, height: image.naturalHeight });
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
    known = { source: image.src, width: canvas.width, height: canvas.height, data };
  }
  return known;
}

function place(event) {
  const box = find("picture").getBoundingClientRect();
  const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  return x >= 0 && x < 1 && y >= 0 && y < 1 ? { x, y } : null;
}

// Dim all but one region; null lights them all.
let lit = null;
function light(label) {
  const canvas = find("light"), map = labels();
  if (!canvas || !map || lit === `${map.source}${label}`) return;
  lit = `${map.source}${label}`;
  canvas.width = map.width;
  canvas.height = map.height;
  for (const entry of element.querySelectorAll(".cc-legend li")) entry.classList.toggle("cc-lit", +entry.dataset.label === label);
  if (label === null) return;
  const context = canvas.getContext("2d"), shade = context.createImageData(map.width, map.height);
  for (let i = 0; i < map.width * map.height; i++) if (map.data[4 * i] !== label) shade.data[4 * i + 3] = 110;
  context.putImageData(shade, 0, 0);
}

function leave() {
  light(null);
  if (find("tip")) find("tip").hidden = true;
}

element.addEventListener("pointermove", (event) => {
  const entry = event.target.closest(".cc-legend li");
  if (entry) return light(+entry.dataset.label);
  const map = event.target.closest(".cc-frame") && labels(), at = map && place(event), tip = find("tip");
  if (!at) return leave();
  const label = map.data[4 * (Math.floor(at.y * map.height) * map.width + Math.floor(at.x * map.width))];
  const text = element.querySelector(`.cc-legend li[data-label="${label}"]`)?.innerText;
  light(label);
  tip.hidden = !text;
  tip.textContent = text ?? "";
  tip.style.left = `${100 * at.x}%`;
  tip.style.top = `${100 * at.y}%`;
  tip.classList.toggle("cc-left", at.x > 0.7);
  tip.classList.toggle("cc-below", at.y < 0.15);
});
element.addEventListener("pointerleave", leave);
element.addEventListener("focusin", (event) => {
  const entry = event.target.closest(".cc-legend li");
  if (entry) light(+entry.dataset.label);
});
element.addEventListener("focusout", leave);
element.addEventListener("click", (event) => {
  const at = event.target.closest(".cc-frame") && place(event);
  if (!at) return;
  const mark = find("mark");
  mark.style.left = `${100 * at.x}%`;
  mark.style.top = `${100 * at.y}%`;
  mark.hidden = false;
  trigger("point", at);
});
