"use strict";
const $ = id => document.getElementById(id);
const pad = $("pad"), pen = pad.getContext("2d", { willReadFrequently: true });
let about, members, colours, shape, image = null, drawn = false, mine = true, busy = false, again = false, rate = 0, token = "", scale;
const sent = { left: 0, answered: 0, refused: 0, kept: 0 };

const human = n => { for (const [s, u] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (n >= s) return (n / s).toPrecision(3) + " " + u; return n + ""; };
const ms = v => (v < 10 ? v.toPrecision(2) : v.toFixed(0)) + " ms";
const score = m => m.accuracy ?? m.score, worth = m => score(m) == null ? m.macs : about.metric.better === "lower" ? -score(m) : score(m);
const scored = (v, digits = 1) => v == null ? "not measured" : about.metric.unit === "%" ? (100 * v).toFixed(digits) + " %" : v.toPrecision(3) + " " + about.metric.unit;
function svg(parent, name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  return parent.appendChild(made);
}
function element(parent, name, text) {
  const made = parent.appendChild(document.createElement(name));
  if (text !== undefined) made.textContent = text;
  return made;
}

// ---- what the network sees

function pixels() {  // [channels, height, width], 0 to 255
  const [channels, height, width] = shape, small = new OffscreenCanvas(width, height), c = small.getContext("2d");
  c.imageSmoothingQuality = "high";
  if (image) c.drawImage(pad, 0, 0, width, height);  // for the load only, whose answers nobody reads
  else {
    const box = inked();
    if (box) {  // as MNIST was made: fitted into 20 of 28 pixels, its centre of mass in the middle
      const scale = Math.min(width, height) * 20 / 28 / Math.max(box.w, box.h);
      c.drawImage(pad, box.x, box.y, box.w, box.h, width / 2 - (box.mx - box.x) * scale, height / 2 - (box.my - box.y) * scale, box.w * scale, box.h * scale);
    }
  }
  const rgba = c.getImageData(0, 0, width, height).data, plane = height * width, out = new Uint8Array(channels * plane);
  for (let i = 0; i < plane; i++) {
    const [r, g, b] = [rgba[4 * i], rgba[4 * i + 1], rgba[4 * i + 2]];
    if (channels === 3) { out[i] = r; out[plane + i] = g; out[2 * plane + i] = b; }
    else out[i] = Math.round(.299 * r + .587 * g + .114 * b);
  }
  return out;
}

function inked() {
  const { data } = pen.getImageData(0, 0, 280, 280);
  let x0 = 280, y0 = 280, x1 = -1, y1 = -1, mass = 0, mx = 0, my = 0;
  for (let y = 0; y < 280; y++) for (let x = 0; x < 280; x++) {
    const v = data[4 * (280 * y + x)];
    if (v > 20) { x0 = Math.min(x0, x); x1 = Math.max(x1, x); y0 = Math.min(y0, y); y1 = Math.max(y1, y); mass += v; mx += v * x; my += v * y; }
  }
  return x1 < 0 ? null : { x: x0, y: y0, w: x1 - x0 + 1, h: y1 - y0 + 1, mx: mx / mass, my: my / mass };
}

function npy(type, one, examples) {  // in the format of numpy.save
  let header = `{'descr': '${type}', 'fortran_order': False, 'shape': (${[examples, ...shape].join(", ")},), }`;
  header = header.padEnd(128 - 10 - 1) + "\n";
  const head = Uint8Array.from("\x93NUMPY\x01\x00" + String.fromCharCode(header.length & 255, header.length >> 8) + header, c => c.charCodeAt(0));
  return new Blob([head, ...Array(examples).fill(one)], { type: "application/x-npy" });
}
function random(examples) {  // of each input what it may be, in JSON unless it is one of plain numbers
  const inputs = {}, [first] = Object.values(about.inputs);
  if (Array.isArray(shape) && first.type === "float32")  // which is read in a fraction of the time
    return npy("<f4", Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => Math.random() - .5), examples);
  for (const [name, { type, shape, below }] of Object.entries(about.inputs)) {
    let place = 0;
    const bounds = [below].flat(Infinity), bound = () => bounds[place++ % bounds.length] || 2;  // one for all, or for each
    const one = { float32: () => +(Math.random() - .5).toFixed(3), bool: () => true }[type] ?? (() => Math.floor(Math.random() * bound()));
    const filled = ([size, ...rest]) => size === undefined ? one() : Array.from({ length: size }, () => filled(rest));
    inputs[name] = Array(examples).fill(filled(shape));
  }
  return new Blob([JSON.stringify({ inputs })], { type: "application/json" });
}
const body = examples => isImage() ? npy("|u1", pixels(), examples) : random(examples);
const isImage = () => about.takes_pixels && shape.length === 3 && [1, 3].includes(shape[0]);

// ---- asking

const bearing = headers => ({ headers: token ? { ...headers, Authorization: "Bearer " + token } : headers });
async function ask(query, body) {
  const response = await fetch("predict" + query, { method: "POST", body, ...bearing({ "Content-Type": body.type }) });
  return [response.status, await response.json()];
}

async function answer() {
  if (busy) { again = true; return; }
  if (isImage() && !image && !drawn) return;
  busy = true;
  try {
    const [status, told] = await ask(mine ? "?max_latency_ms=" + budget() : "", image || body(1));
    $("wrong").textContent = status === 200 ? "" : told.error;
    if (status === 200) show(told);
  } catch { $("wrong").textContent = "The server does not answer."; }
  busy = false;
  if (again) { again = false; answer(); }
}

function show(told) {
  select(told.member.label);
  $("took").textContent = ms(told.computed_ms) + (told.late ? ", late" : "");
  $("answer").replaceChildren();
  for (const v of told.outputs ? told.outputs[0].flat(Infinity).slice(0, 12) : []) element($("answer"), "p", v.toPrecision(4)).className = "big";
  const best = (told.probabilities ?? [[]])[0].map((p, i) => [p, i]).sort((a, b) => b[0] - a[0]).slice(0, 5);
  for (const [p, i] of best) {
    const bar = element($("answer"), "div"); bar.className = "bar";
    element(bar, "span", about.classes.length ? about.classes[i] : "class " + i);
    const length = element(bar, "b"); length.style.width = 100 * p + "%"; length.style.background = colours[told.member.label];
    element(bar, "span", (100 * p).toFixed(p < .0995 ? 1 : 0) + " %");
  }
}

// ---- the member

function range() {  // of the slider, and of the plot
  const all = members.map(m => m.p95_ms);
  return [Math.log(Math.min(...all) * .9), Math.log(Math.max(...all) * 1.15)];
}
function budget() { const [low, high] = range(); return Math.exp(low + (high - low) * $("slider").value / 1000); }
function expected() {
  const fitting = members.filter(m => m.p95_ms <= budget());
  return fitting.length ? fitting.reduce((a, b) => worth(b) > worth(a) ? b : a) : members.reduce((a, b) => b.p95_ms < a.p95_ms ? b : a);
}

function select(label) {
  const m = members.find(m => m.label === label), widest = Math.max(...members.map(m => m.width));
  $("label").textContent = m.label; $("colour").style.background = colours[m.label];
  $("accuracy").textContent = scored(score(m));
  $("macs").textContent = human(m.macs); $("params").textContent = human(m.params);
  const stages = $("stages").children;
  for (let s = 0; s < stages.length - 2; s++) {
    const on = m.entry <= s && s <= m.exit;
    stages[s + 1].firstChild.style.background = colours[m.label];
    stages[s + 1].firstChild.style.height = on ? 100 * m.width / widest + "%" : "0";
  }
  for (const dot of $("front").querySelectorAll("circle")) {
    const chosen = dot.dataset.label === label;
    dot.setAttribute("r", chosen ? 7 : 4); dot.setAttribute("fill-opacity", chosen ? 1 : .8);
    dot.setAttribute("stroke", chosen ? "var(--ink)" : "none");
  }
}

function front() {
  const plot = $("front"), all = members.map(worth), [low, high] = range();
  const [least, most] = [Math.min(...all), Math.max(...all)];
  scale = ms => 44 + 266 * (Math.log(ms) - low) / (high - low);
  const y = v => 108 - 92 * (v - least) / (most - least || 1);
  svg(plot, "path", { d: "M44 8V116H312", fill: "none", stroke: "var(--line)" });
  svg(plot, "line", { id: "limit", y1: 8, y2: 116, stroke: "var(--ink)", "stroke-dasharray": "3 3" });
  for (const m of members) {
    const dot = svg(plot, "circle", { cx: scale(m.p95_ms), cy: y(worth(m)), r: 4, fill: colours[m.label] });
    dot.dataset.label = m.label; svg(dot, "title", {}, `${m.label}: ${scored(score(m))}, ${ms(m.p95_ms)}`);
  }
  const shown = v => score(members[0]) == null ? human(v) : scored(about.metric.better === "lower" ? -v : v, most - least < .02 ? 1 : 0);
  for (const v of new Set([least, most])) svg(plot, "text", { x: 40, y: y(v) + 4, "text-anchor": "end" }, shown(v));
  const times = members.map(m => m.p95_ms), [first, last] = [Math.min(...times), Math.max(...times)];
  svg(plot, "text", { x: scale(first), y: 130, "text-anchor": "middle" }, ms(first));
  if (scale(last) - scale(first) > 60) svg(plot, "text", { x: Math.min(scale(last), 294), y: 130, "text-anchor": "middle" }, ms(last));
  svg(plot, "text", { x: 178, y: 146, "text-anchor": "middle" }, "computed in, for 95 % of runs");
}

// ---- load

async function look() {
  try {
    const told = await (await fetch("load", bearing({}))).json(), chart = $("chart"), by = new Map(told.seconds.map(s => [s.second, s]));
    const total = s => Object.values(s.members).reduce((a, b) => a + b, 0) + s.refused;
    const seconds = Array.from({ length: 60 }, (_, i) => by.get(told.second - 60 + i)), most = Math.max(10, ...seconds.map(s => s ? total(s) : 0));
    chart.replaceChildren();
    seconds.forEach((s, i) => {
      if (!s) return;
      let y = 148;
      const bar = (count, colour, name) => {
        const h = 140 * count / most; y -= h;
        svg(svg(chart, "rect", { x: 16 * i, y, width: 13, height: h, fill: colour }), "title", {}, `${name}: ${count} a second`);
      };
      for (const m of members) if (s.members[m.label]) bar(s.members[m.label], colours[m.label], m.label);
      if (s.refused) bar(s.refused, "var(--bad)", "refused");
    });
    svg(chart, "line", { x1: 0, x2: 960, y1: 149, y2: 149, stroke: "var(--line)" });
    const last = seconds[59] || { members: {}, refused: 0, late: 0 };
    $("now").textContent = `${total(last)} a second, ${told.waiting} waiting, ${last.late} late, slow-down ${told.slowdown.toFixed(1)} ×`;
    $("most").textContent = most;
    if (sent.left) $("sent").textContent = `Sent on time, whether or not those before were answered: ${sent.left} requests; ${sent.answered} answered, ${sent.refused} refused (503), ${sent.kept} never sent, for this browser has 64 under way at most.`;
  } catch { $("now").textContent = "The server does not answer."; }
  setTimeout(look, 1000);
}

async function send() {  // as many as asked for, without wishes, few at a time under way
  let due = performance.now(), under = 0;
  for (;;) {
    await new Promise(wake => setTimeout(wake, 10));
    const now = performance.now();
    if (!rate || document.hidden) { due = now; continue; }
    const each = Math.min(8, Math.max(1, Math.round(rate / 100)));
    for (due = Math.max(due, now - 1000); due < now; due += 1000 * each / rate) {
      if (under >= 64) { sent.kept++; continue; }
      under++; sent.left++;
      ask("", body(each)).then(([status]) => { status === 503 ? sent.refused++ : sent.answered++; }).catch(() => 0).finally(() => under--);
    }
  }
}

// ---- hands

function place(event) { const box = pad.getBoundingClientRect(); return [280 * (event.clientX - box.left) / box.width, 280 * (event.clientY - box.top) / box.height]; }
function wipe() { $("hint").hidden = false; image = null; drawn = false; pen.fillStyle = "#000"; pen.fillRect(0, 0, 280, 280); }
async function take(file) {
  if (!file) return;
  let seen;
  try { seen = await createImageBitmap(file); } catch { $("wrong").textContent = file.name + " is no image."; return; }
  const side = Math.min(seen.width, seen.height), scale = Math.min(1, 1024 / Math.max(seen.width, seen.height));
  pen.fillStyle = "#fff"; pen.fillRect(0, 0, 280, 280);  // where it is transparent, as the server takes it
  pen.drawImage(seen, (seen.width - side) / 2, (seen.height - side) / 2, side, side, 0, 0, 280, 280);
  // As it is: the server makes pixels of it in the way in which those were made from which the network learned.
  let file_sent = file;
  if (!["image/png", "image/jpeg", "image/webp"].includes(file.type) || file.size > 2 ** 23 || seen.width * seen.height > 2 ** 24) {
    const canvas = new OffscreenCanvas(Math.ceil(seen.width * scale), Math.ceil(seen.height * scale));
    canvas.getContext("2d").drawImage(seen, 0, 0, canvas.width, canvas.height);
    file_sent = await canvas.convertToBlob({ type: "image/png" });
  }
  image = file_sent; $("hint").hidden = true;
  answer();
}
pad.addEventListener("pointerdown", event => {
  if (shape[0] !== 1) return;
  if (image) wipe();
  pad.setPointerCapture(event.pointerId);
  pen.strokeStyle = "#fff"; pen.lineWidth = 20; pen.lineCap = pen.lineJoin = "round";
  pen.beginPath(); pen.moveTo(...place(event)); pen.lineTo(...place(event)); pen.stroke(); drawn = true; $("hint").hidden = true; answer();
});
pad.addEventListener("pointermove", event => { if (pad.hasPointerCapture(event.pointerId)) { pen.lineTo(...place(event)); pen.stroke(); answer(); } });
for (const name of ["dragenter", "dragover"]) document.addEventListener(name, event => { event.preventDefault(); pad.classList.add("over"); });
for (const name of ["dragleave", "drop"]) document.addEventListener(name, event => { event.preventDefault(); pad.classList.remove("over"); });
document.addEventListener("drop", event => take(event.dataTransfer.files[0]));
document.addEventListener("paste", event => take(event.clipboardData.files[0]));
$("file").addEventListener("change", event => take(event.target.files[0]));
$("clear").addEventListener("click", () => { wipe(); $("answer").replaceChildren(); });
function moved() { $("budget").textContent = mine ? "≤ " + ms(budget()) : "due in " + ms(about.slo_ms); $("slider").disabled = !mine; 
  const at = mine ? scale(budget()) : -9;
  $("limit").setAttribute("x1", at); $("limit").setAttribute("x2", at);
  if (mine) select(expected().label);
  answer();
}
$("slider").addEventListener("input", moved);
for (const id of ["mine", "servers"]) $(id).addEventListener("click", () => {
  mine = id === "mine"; $("mine").setAttribute("aria-pressed", mine); $("servers").setAttribute("aria-pressed", !mine); moved();
});

async function begin() {
  const response = await fetch("members", bearing({}));
  $("door").hidden = response.status !== 401;
  if (response.status === 401) { $("about").textContent = token ? "That is not its token." : ""; return; }
  if (!response.ok) throw response;
  about = await response.json(); members = about.members; shape = about.input_shape;
  colours = Object.fromEntries(members.map((m, i) => [m.label, `hsl(${165 + 130 * i / Math.max(1, members.length - 1)} 60% ${62 - 6 * i / Math.max(1, members.length - 1)}%)`]));
  $("about").textContent = `${members.length} members from one copy of the weights, ${human(Math.max(...members.map(m => m.params)))} parameters. Move the budget, and another member answers.`;
  $("metric").textContent = about.metric.name; $("against").textContent = about.metric.name[0].toUpperCase() + about.metric.name.slice(1) + " against latency";
  wipe();
  const word = shape[0] === 1 ? "Draw, or drop an image" : "Drop an image, or paste one";
  $("ask").textContent = isImage() ? word : "Input: random numbers"; $("hint").textContent = isImage() ? word + " here" : "";
  $("paper").hidden = $("clear").hidden = !isImage(); document.querySelector(".file").hidden = !isImage();
  const stages = Math.max(...members.map(m => m.exit)) + 1;
  element($("stages"), "span", "in").className = "end";
  for (let s = 0; s < stages; s++) element(element($("stages"), "div"), "i");
  element($("stages"), "span", "out").className = "end";
  for (const [label, colour] of [...members.map(m => [m.label, colours[m.label]]), ["refused", "var(--bad)"]]) {
    const entry = element($("legend"), "span");
    element(entry, "i").style.background = colour;
    entry.append(label);
  }
  for (const each of [0, 100, 500, 2000, 8000]) {
    const button = element($("rates"), "button", each ? each + " /s" : "none"); button.setAttribute("aria-pressed", !each);
    button.addEventListener("click", () => { rate = each; for (const b of $("rates").children) b.setAttribute("aria-pressed", b === button); });
  }
  front(); moved(); look(); send();
}
const start = () => begin().catch(() => { $("about").textContent = "The server does not answer."; });
$("door").addEventListener("submit", event => { event.preventDefault(); token = $("token").value.trim(); start(); });
start();
